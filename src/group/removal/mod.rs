//! Removes keys, or everything, from the cache of this process or from those of the whole cluster.
//!
//! ```text
//!   mod.rs      removals                        set.rs         sets a value
//!   sweep.rs    drops the entries of a clear    broadcast.rs   sends a change to all peers
//!   compare.rs  finds missed removals           unverified.rs  max_unverified
//! ```

mod broadcast;
pub(super) mod compare;
pub(super) mod set;
mod sweep;
pub(super) mod unverified;

use self::broadcast::Confirmations;
use super::removal_clocks::{ALL_KEYS, Counted, KeyStripe};
use super::{Group, Inner, LoadKey};
use crate::byteview::ByteView;
use crate::context::Context;
use crate::error::Result;
#[cfg(doc)]
use crate::error::{Error, ErrorKind};
use crate::panics::FirstPanic;
use crate::pb::{ClearRequest, RemoveKeysRequest};
use crate::peers::ProtoGetter;
use crate::store::{ClearedEntries, Evicted, RemovalCause};
use crate::sync::Arc;

impl Group {
    /// Removes `key` from the caches of all processes: first from this one, then from those of all peers at
    /// the same time.
    ///
    /// If the source of the values has changed before this call, no get that begins after `Ok` returns
    /// the old value, in any process. Values that are loaded meanwhile are cached only if their load
    /// began after the removal. A get of another process that began before `Ok` may still return the
    /// old value.
    ///
    /// The call returns by the deadline of `ctx`. Without a deadline, each peer has the time of an
    /// exchange (1 s for [`HttpPool`](crate::http::HttpPool)).
    ///
    /// ```
    /// # use larder::{Context, Registry, getter_fn};
    /// # let colors = Registry::new().new_group("colors", 1 << 20, getter_fn(|_, name, dest| Ok(dest.set_str(name)?)))?;
    /// colors.get("red")?;
    /// colors.remove(&Context::background(), "red")?;
    /// assert!(!colors.contains_key("red"));
    /// # Ok::<(), larder::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Partial`] if some peers did not confirm the removal: [`Error::partial`] names them.
    /// The key is removed everywhere else. [`ErrorKind::KeyTooLong`], or the error of a context that
    /// has ended: then nothing has changed.
    ///
    /// # Panics
    ///
    /// If the eviction listener panics on this thread; the peers get the change first.
    pub fn remove(&self, ctx: &Context, key: &str) -> Result<()> {
        self.inner.remove_in_cluster(ctx, &[key])
    }

    /// Like [`remove`](Self::remove), for several keys. Each peer gets one request for all of them; several,
    /// one after the other, if the text of the keys is over about 10 KiB or there are more than 4,096.
    ///
    /// # Errors
    ///
    /// As for [`remove`](Self::remove).
    ///
    /// # Panics
    ///
    /// As for [`remove`](Self::remove).
    pub fn remove_many<K: AsRef<str>>(&self, ctx: &Context, keys: &[K]) -> Result<()> {
        let keys: Vec<&str> = keys.iter().map(AsRef::as_ref).collect();
        self.inner.remove_in_cluster(ctx, &keys)
    }

    /// Removes everything from the caches of all processes, with the effect of
    /// [`remove`](Self::remove) for each key.
    ///
    /// All entries leave the cache at once, however many there are. A new thread calls the eviction listener
    /// for them and frees their memory, and this call does not wait for it. If the system refuses to start
    /// that thread, this one does its work.
    ///
    /// # Errors
    ///
    /// As for [`remove`](Self::remove). The error also names each peer that is not larder, because other programs
    /// cannot clear a group.
    ///
    /// # Panics
    ///
    /// If this thread calls the eviction listener, and the listener panics; the peers get the change first.
    pub fn clear(&self, ctx: &Context) -> Result<()> {
        let inner = &self.inner;
        if let Some(ended) = ctx.err() {
            return Err(ended);
        }
        let (removal_id, count) = inner.removals.begin();
        let cleared = inner.clear_unswept(count);
        let mut panic = FirstPanic::default();
        panic.catch(|| inner.sweep_later(cleared));
        let request = ClearRequest {
            group: inner.name.clone().into(),
            removal_id: Some(removal_id),
        };
        let send = move |peer: &Arc<dyn ProtoGetter>, ctx: &_| peer.clear(ctx, &request);
        let by = inner.broadcast(ctx, &inner.all_peers(&[]), Arc::new(send));
        panic.resume();
        inner.confirmed(by, 0)
    }

    /// Removes `key` from this process's cache. Other processes keep their copies. If one of them
    /// owns the key, a later get may bring its value back.
    ///
    /// A get that begins after this call has returned does not get the removed value from this
    /// process's cache. It also does not join a load that began before the removal. The value of such
    /// a load is returned to the callers that wait for it already, and is not cached.
    pub fn invalidate(&self, key: &str) {
        self.inner.remove_here(key, Counted::Not);
    }

    /// Does the same as [`invalidate`](Self::invalidate), and returns the value if there was one.
    pub fn remove_local(&self, key: &str) -> Option<ByteView> {
        self.inner.remove_here(key, Counted::Not)
    }

    /// Removes everything from this process's cache, with the effect of
    /// [`invalidate`](Self::invalidate) for each key, and returns the memory to the system.
    pub fn clear_local(&self) {
        self.inner.sweep(self.inner.take_all());
    }

    /// Removes keys because a peer has removed them.
    ///
    /// [`HttpPool`](crate::http::HttpPool) calls this for incoming requests. A transport of your own
    /// must call it, too.
    ///
    /// # Panics
    ///
    /// If the eviction listener panics; all keys are removed first.
    pub fn serve_remove(&self, request: &RemoveKeysRequest<'_>) {
        let removals = &self.inner.removals;
        if (request.unless_applied.as_ref()).is_some_and(|known| removals.has_applied(known)) {
            return;
        }
        let count = removals.admit(request.removal_id);
        // A peer sends 0 if it has applied a removal that this node may have missed: see `DroppedKeys`.
        let is_drop = request.removal_id == Some(0);
        let mut panic = FirstPanic::default();
        for key in &request.keys {
            if is_drop {
                let now = self.inner.store.clock().now();
                removals.dropped.note(self.inner.store.hash(key), now);
            }
            self.inner.note_removed(key);
            panic.catch(|| drop(self.inner.remove_here(key, count)));
        }
        removals.finish(count);
        panic.resume();
    }

    /// Removes everything because a peer has removed everything. A transport of your own must call this, too,
    /// like [`serve_remove`](Self::serve_remove).
    ///
    /// # Panics
    ///
    /// If this thread calls the eviction listener, as for [`clear`](Self::clear), and the listener panics.
    pub fn serve_clear(&self, request: &ClearRequest<'_>) {
        let count = self.inner.removals.admit(request.removal_id);
        self.inner.sweep_later(self.inner.clear_unswept(count));
    }

    /// Does the same as [`serve_clear`](Self::serve_clear), but the entries are dropped by the returned function.
    #[cfg(all(test, larder_loom))]
    pub(crate) fn clear_unswept(&self, request: &ClearRequest<'_>) -> impl FnOnce() + Send + use<> {
        let inner = self.inner.clone();
        let cleared = inner.clear_unswept(inner.removals.admit(request.removal_id));
        move || inner.sweep(cleared)
    }
}

impl Inner {
    fn remove_in_cluster(self: &Arc<Self>, ctx: &Context, keys: &[&str]) -> Result<()> {
        if let Some(ended) = ctx.err() {
            return Err(ended);
        }
        keys.iter().try_for_each(|key| self.check_key(key))?;
        let mut panic = FirstPanic::default();
        // Each request has a number of its own. If several had the same one, a peer that has served one of them
        // would be taken for a peer that has dropped the keys of all of them.
        let requests = by_request(keys).map(|keys| {
            let (removal_id, count) = self.removals.begin();
            for key in keys {
                self.note_removed(key);
                panic.catch(|| drop(self.remove_here(key, count)));
            }
            self.removals.finish(count);
            self.removal_request(keys, removal_id)
        });
        let requests = requests.collect();
        let by = self.broadcast_removals(ctx, &self.all_peers(keys), requests);
        panic.resume();
        self.confirmed(by, 0)
    }

    /// Notes the removal of a key before the key is dropped, so that no set that began earlier is kept.
    fn note_removed(&self, key: &str) {
        let hash = self.store.hash(key);
        self.removals.note_removed(hash, self.store.clock());
    }

    pub(super) fn removal_request(
        &self,
        keys: &[&str],
        removal_id: u64,
    ) -> RemoveKeysRequest<'static> {
        RemoveKeysRequest {
            group: self.name.clone().into(),
            keys: keys.iter().map(|key| key.to_string().into()).collect(),
            removal_id: Some(removal_id),
            unless_applied: None,
        }
    }

    /// Sends these requests to each peer, one after the other.
    pub(super) fn broadcast_removals(
        self: &Arc<Self>,
        ctx: &Context,
        peers: &[Arc<dyn ProtoGetter>],
        requests: Vec<RemoveKeysRequest<'static>>,
    ) -> Confirmations {
        let send = move |peer: &Arc<dyn ProtoGetter>, ctx: &Context| {
            let mut requests = requests.iter();
            requests.try_for_each(|request| peer.remove(ctx, request))
        };
        self.broadcast(ctx, peers, Arc::new(send))
    }

    /// Returns the peers of the picker's list, or the owners of `keys` if it has no list.
    pub(super) fn all_peers(&self, keys: &[&str]) -> Vec<Arc<dyn ProtoGetter>> {
        let Some(picker) = self.peers.picker(&self.name) else {
            return Vec::new();
        };
        let mut peers = picker.all_peers();
        if peers.is_empty() {
            let owners = keys.iter().filter_map(|key| picker.pick_peer(key));
            for owner in owners {
                if !peers.iter().any(|peer| super::load::is_same(peer, &owner)) {
                    peers.push(owner);
                }
            }
        }
        peers
    }

    /// Removes a key from this process's cache, and returns its value. `counted` determines how the key's
    /// removal clock changes.
    pub(super) fn remove_here(&self, key: &str, counted: Counted) -> Option<ByteView> {
        let key = self.key(key);
        let mut removed = self.end_old_value(&key, counted, |note| {
            self.store.remove(key.hash, key.key, note)
        });
        let live = |evicted: &&Evicted| evicted.cause == RemovalCause::Explicit;
        let value = removed
            .iter()
            .find(live)
            .map(|evicted| evicted.entry.value());
        self.notify_and_drop(&mut removed);
        value
    }

    /// Runs `change`, which takes the old value of a key out of the store. Afterwards no further caller joins
    /// the loads of the key. `change` gets a function that advances the key's removal clock, and must call it
    /// while it holds the lock of the shard. `counted` determines how the clock advances.
    pub(super) fn end_old_value<T>(
        &self,
        place: &LoadKey<'_>,
        counted: Counted,
        change: impl FnOnce(&dyn Fn()) -> T,
    ) -> T {
        let &LoadKey { hash, key } = place;
        // The store comes first: from then on it refuses the values of loads under way. The flights
        // come second, so that a get that begins after this function does not join one of those
        // loads. In the other order, a load could begin between the two steps. The second step would miss
        // it, and the store would refuse its value although it is new.
        //
        // A load that begins between the two steps is forgotten, but the store would accept its
        // value. Suppose a later load, of a newer value, ends first. The older value would replace
        // the newer one. So an insertion also checks that its flight was not forgotten.
        //
        // Until both steps are done, answers to peers have no stamp. A stamp promises a value that is newer than
        // its removals, and a peer's request could still join a load that began before.
        let change_guard = self.removals.begin_change();
        let (stripe, clock) = (KeyStripe::of(key), self.store.clock());
        let advance = || self.removals.advance(stripe, key, counted, clock);
        let changed = change(&advance);
        self.getter_flights.forget_hashed(hash.get(), key);
        self.peer_flights.forget_hashed(hash.get(), key);
        drop(change_guard);
        // This step comes after the flights: see `FailedLoads::record`.
        self.failed_loads.forget(place);
        changed
    }

    /// Takes everything out of the cache, and lets no further caller join a load.
    pub(super) fn take_all(&self) -> ClearedEntries {
        let cleared = self.store.clear();
        self.forget_all();
        cleared
    }

    /// Lets no further caller join a load, and forgets the loads that failed.
    pub(super) fn forget_all(&self) {
        self.getter_flights.forget_all();
        self.peer_flights.forget_all();
        self.failed_loads.forget_all();
    }

    /// Takes everything out of the cache, and notes the removal of all keys.
    fn clear_unswept(&self, count: Counted) -> ClearedEntries {
        let change_guard = self.removals.begin_change();
        let clock = self.store.clock();
        self.removals.note_all_removed(clock);
        self.removals.advance(ALL_KEYS, "", count, clock);
        let cleared = self.take_all();
        drop(change_guard);
        self.removals.finish(count);
        cleared
    }
}

/// Splits the keys into parts, one for each request.
fn by_request<'a, 'k>(mut rest: &'a [&'k str]) -> impl Iterator<Item = &'a [&'k str]> {
    std::iter::from_fn(move || {
        let mut bytes = 0;
        let fits = |key: &&&str| {
            // JSON writes a byte as six bytes at most (`\u0001`). Each key has two quotes and a comma.
            bytes += 6 * key.len() + 3;
            bytes <= MAX_KEY_BYTES
        };
        let count = rest.iter().take_while(fits).count().clamp(1, MAX_KEYS);
        let (keys, later) = rest.split_at_checked(count)?;
        rest = later;
        Some(keys)
    })
}

/// The most keys of one request. Servers accept up to 65,536.
const MAX_KEYS: usize = 4096;

/// The most bytes of the keys of one request, as JSON text. Servers accept bodies of up to 128 KiB.
const MAX_KEY_BYTES: usize = 64 << 10;
