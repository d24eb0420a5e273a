//! Sets: the owner of a key replaces its value, and all other processes drop their copies.

use std::slice;
use std::time::Duration;

use crate::byteview::ByteView;
use crate::clock::saturating_nanos;
use crate::context::Context;
use crate::error::{Error, ErrorKind, Result};
use crate::group::removal_clocks::Counted;
use crate::group::{Group, Inner, LoadKey};
use crate::panics::FirstPanic;
use crate::pb::SetRequest;
use crate::peers::ProtoGetter;
use crate::stats::CacheType;
use crate::store::{EvictedEntries, Generation, NewEntry};
use crate::sync::Arc;

/// The options of [`Group::set`].
///
/// ```
/// use larder::SetOptions;
/// use std::time::Duration;
///
/// let options = SetOptions::new().expire_in(Duration::from_secs(60));
/// ```
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct SetOptions {
    /// How long the value may be cached. The group's
    /// [`time_to_live`](crate::GroupBuilder::time_to_live) shortens it. Default: `None`, until the
    /// value is evicted.
    pub ttl: Option<Duration>,
}

impl SetOptions {
    /// The defaults.
    pub fn new() -> Self {
        SetOptions::default()
    }

    /// The same options with a time to live.
    #[must_use]
    pub fn expire_in(mut self, ttl: Duration) -> Self {
        self.ttl = Some(ttl);
        self
    }
}

impl Group {
    /// Sets the value of `key` in the cluster: the key's owner caches the value in place of the old
    /// one, and then all other processes drop their copies of the old one.
    ///
    /// No get that begins after `Ok` returns an older value, in any process. The owner orders the sets
    /// of a key: of two concurrent ones, all processes see the same one last. A process that did not
    /// ask for the value does not get it. If the key is removed while this call is under way, the value may not
    /// be cached: it may be older than the removal.
    ///
    /// The owner is that of the list of peers, also while it is down or
    /// [absent](crate::http::HttpPoolBuilder::absent_after): then the call fails.
    ///
    /// A cache may lose any value. The next get then calls the getter, so update the getter's source
    /// first.
    ///
    /// The call returns by the deadline of `ctx`. Without a deadline, each peer has the time of an
    /// exchange.
    ///
    /// ```
    /// # use larder::{Context, Registry, SetOptions, getter_fn};
    /// # let colors = Registry::new().new_group("colors", 1 << 20, getter_fn(|_, name, dest| Ok(dest.set_str(name)?)))?;
    /// colors.set(&Context::background(), "red", "#ff0000", SetOptions::new())?;
    /// assert_eq!(colors.get("red")?, "#ff0000");
    /// # Ok::<(), larder::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Partial`] if the owner has the value and some other peers did not confirm that they
    /// dropped theirs; [`Error::partial`] names them. [`ErrorKind::KeyTooLong`],
    /// [`ErrorKind::ValueTooLarge`], or the error of a context that has ended: then nothing has
    /// changed. [`ErrorKind::Peer`], [`ErrorKind::UnknownGroup`], [`ErrorKind::DeadlineExceeded`],
    /// [`ErrorKind::Cancelled`] or [`ErrorKind::Unsupported`] if the owner did not confirm the value: no other
    /// process has changed. An
    /// owner that did not answer in time may have the value all the same; set it again or remove it.
    ///
    /// # Panics
    ///
    /// If the eviction listener panics on this thread; the peers get the change first.
    pub fn set(
        &self,
        ctx: &Context,
        key: &str,
        value: impl Into<ByteView>,
        options: SetOptions,
    ) -> Result<()> {
        let (inner, value) = (&self.inner, value.into());
        if let Some(ended) = ctx.err() {
            return Err(ended);
        }
        inner.check_entry(key, &value)?;
        let stamp = inner.removals.stamp_of(key);
        // Before the removal begins: a picker that panics would leave it under way.
        let owner = inner.peers.owner(&inner.name, key);
        let (removal_id, count) = inner.removals.begin();
        let mut panic = FirstPanic::default();
        match &owner {
            None => panic.catch(|| inner.set_here(key, value, options.ttl, count, Some(stamp))),
            Some(owner) => {
                // Without a result if the program's transport panics.
                let mut set = None;
                panic.catch(|| {
                    set = Some(inner.set_at(ctx, owner, key, value, options, (removal_id, stamp)));
                });
                if !matches!(set, Some(Ok(()))) {
                    // The number would be missing for ever.
                    inner.removals.finish(count);
                    panic.resume();
                    return set.unwrap_or_else(|| Err(ErrorKind::Peer.into()));
                }
                panic.catch(|| drop(inner.remove_here(key, count)));
            }
        }
        inner.removals.finish(count);
        let mut others = inner.all_peers(&[]);
        if let Some(owner) = &owner {
            others.retain(|peer| !crate::group::load::is_same(peer, owner));
        }
        let removal = inner.removal_request(&[key], removal_id);
        let by = inner.broadcast_removals(ctx, &others, vec![removal]);
        panic.resume();
        inner.confirmed(by, usize::from(owner.is_some()))
    }

    /// Applies a peer's set of a key: caches the value if this process owns the key, and drops its copy
    /// otherwise.
    ///
    /// [`HttpPool`](crate::http::HttpPool) calls this for incoming requests. A transport of your own
    /// must call it, too.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::KeyTooLong`] or [`ErrorKind::ValueTooLarge`]; then nothing has changed.
    pub fn serve_set(&self, request: &SetRequest<'_>) -> Result<()> {
        let inner = &self.inner;
        let (key, value) = (&*request.key, request.value.as_deref().unwrap_or_default());
        inner.check_entry(key, value)?;
        let ttl = match (request.ttl_nanos, request.expire) {
            (Some(nanos), _) => Some(Duration::from_nanos(nanos)),
            (None, None | Some(0)) => None,
            (None, Some(expire)) => {
                let left = expire.saturating_sub(inner.store.clock().unix_nanos());
                Some(Duration::from_nanos(u64::try_from(left).unwrap_or(0)))
            }
        };
        let owner = inner.peers.owner(&inner.name, key);
        let count = inner.removals.admit(request.removal_id);
        let mut panic = FirstPanic::default();
        match owner {
            None => panic.catch(|| inner.set_here(key, value.into(), ttl, count, request.removals)),
            Some(_) => panic.catch(|| drop(inner.remove_here(key, count))),
        }
        inner.removals.finish(count);
        panic.resume();
        Ok(())
    }
}

impl Inner {
    /// Sends a value to the owner of its key.
    fn set_at(
        self: &Arc<Self>,
        ctx: &Context,
        owner: &Arc<dyn ProtoGetter>,
        key: &str,
        value: ByteView,
        options: SetOptions,
        (removal_id, stamp): (u64, u64),
    ) -> Result<()> {
        let ttl_nanos = options.ttl.map(saturating_nanos);
        let now = self.store.clock().unix_nanos();
        let (group, key) = (self.name.clone(), key.to_owned());
        let send = move |peer: &Arc<dyn ProtoGetter>, ctx: &_| {
            let request = SetRequest {
                group: group.as_str().into(),
                key: key.as_str().into(),
                value: Some((&value[..]).into()),
                expire: ttl_nanos.map(|ttl| now.saturating_add_unsigned(ttl)),
                ttl_nanos,
                removal_id: Some(removal_id),
                removals: Some(stamp),
            };
            peer.set(ctx, &request)
        };
        let by = self.broadcast(ctx, slice::from_ref(owner), Arc::new(send));
        by.failed
            .into_iter()
            .next()
            .map_or(Ok(()), |failed| Err(failed.error))
    }

    fn check_entry(&self, key: &str, value: &[u8]) -> Result<()> {
        self.check_key(key)?;
        if value.len() <= self.max_value_size {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::ValueTooLarge,
            format!(
                "the value has {} bytes, over the group's max_value_size of {}",
                value.len(),
                self.max_value_size
            ),
        ))
    }

    /// Replaces the value of a key that this process owns. The values of loads under way are not
    /// cached.
    ///
    /// If a removal of the key came after the set began, with this stamp, the value may be older than the
    /// removal. Then it is not cached either, and the next get loads the key. Otherwise a set that takes longer
    /// than a removal would bring an old value back:
    ///
    /// 1. The source gets a value, and A begins to set it. The request takes long.
    /// 2. The source gets another value. B removes the key at all nodes, and the removal returns.
    /// 3. The request of A reaches the owner.
    fn set_here(
        &self,
        key: &str,
        mut value: ByteView,
        ttl: Option<Duration>,
        counted: Counted,
        stamp: Option<u64>,
    ) {
        let hash = self.store.hash(key);
        let clock = self.store.clock();
        let lifetime = self.lifetime_of_set(ttl);
        let is_kept = !lifetime.is_over(clock) && self.store.capacity() != 0;
        let adopted = is_kept.then(|| self.store.adopt(hash, key, &mut value, None));
        let Some(data) = adopted.flatten() else {
            self.remove_here(key, counted);
            return;
        };
        let mut evicted = EvictedEntries::default();
        let new = NewEntry {
            hash,
            key,
            data,
            has_etag: false,
            is_renewal: false,
            is_shortened: false,
            share: CacheType::Main,
            expires: lifetime.expires,
            begun: lifetime.begun,
            // Not compared: the value comes from no load.
            loaded_at: Generation::default(),
            is_forgotten: &|| false,
        };
        let key = LoadKey { hash, key };
        self.end_old_value(&key, counted, |note| {
            let at_removal = || {
                let removals = &self.removals;
                let is_outdated = |stamp| removals.may_be_outdated(&key, stamp, clock);
                let is_current = !stamp.is_some_and(is_outdated);
                note();
                is_current
            };
            self.store.set(new, &mut evicted, at_removal);
        });
        self.notify_and_drop(&mut evicted);
    }
}

#[cfg(all(test, not(larder_loom)))]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;
    use crate::getter::getter_fn;
    use crate::pb::GetRequest;
    use crate::peers::{PeerPicker, PeerResponse, PickerSlot, Pickers};

    /// The owner of all keys, of a transport that panics.
    struct Panicking;

    impl ProtoGetter for Panicking {
        fn get(&self, _: &Context, _: &GetRequest<'_>) -> Result<PeerResponse> {
            Err(ErrorKind::Peer.into())
        }

        fn url(&self) -> String {
            panic!("in the transport")
        }
    }

    struct Owner;

    impl PeerPicker for Owner {
        fn pick_peer(&self, _: &str) -> Option<Arc<dyn ProtoGetter>> {
            Some(Arc::new(Panicking))
        }
    }

    #[test]
    fn set_whose_transport_panics_leaves_no_removal_under_way() {
        let slot = PickerSlot::default();
        slot.register(Pickers::One(Arc::new(Owner))).expect("empty");
        let getter = getter_fn(|_, key, dest| Ok(dest.set_str(key)?));
        let group = Group::builder("set").make(getter, slot);
        let set = || group.set(&Context::background(), "key", "value", SetOptions::new());
        assert!(catch_unwind(AssertUnwindSafe(set)).is_err());
        let removals = &group.inner.removals;
        let known = removals.known().expect("all of them");
        assert!(removals.has_applied(&known));
    }
}
