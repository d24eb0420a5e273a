//! How a group finds and asks its peers: traits, and the picker of a process without peers.

use std::time::Duration;

use crate::byteview::ByteView;
use crate::context::Context;
use crate::error::{Error, ErrorKind, Result};
use crate::pb::{ClearRequest, GetRequest, RemovalTable, RemoveKeysRequest, SetRequest};
use crate::peer::Peer;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::{Arc, RwLock};

/// Finds the peer that owns a key.
pub trait PeerPicker: Send + Sync {
    /// The owner of `key`, or `None` if that is this process.
    fn pick_peer(&self, key: &str) -> Option<Arc<dyn ProtoGetter>>;

    /// The peer to ask for `key` after `attempt` peers have failed, the owner being the first. `None`
    /// means to load the key in this process. Attempt 0 is [`pick_peer`](Self::pick_peer).
    ///
    /// The default implementation returns no peer after the owner.
    fn pick_replica(&self, key: &str, attempt: usize) -> Option<Arc<dyn ProtoGetter>> {
        if attempt == 0 {
            self.pick_peer(key)
        } else {
            None
        }
    }

    /// The peer that may have cached a value of `key`, which this process owns only since a short time
    /// ago: the list of peers changed, or this process started. The group asks it, by
    /// [`ProtoGetter::get_many`], for 10 ms at most, before it runs its own getter. For the keys of one call
    /// of a [bulk getter](crate::BulkGetter), each previous owner gets one request, all at the same time. Two
    /// keys have the same previous owner if this returns clones of one `Arc` for both.
    ///
    /// The default implementation returns none.
    fn previous_owner(&self, key: &str) -> Option<Arc<dyn ProtoGetter>> {
        let _ = key;
        None
    }

    /// All peers but this process. Each of them gets removals.
    ///
    /// The default implementation lists none. Then a removal goes to the owner of the key only, a
    /// [`clear`](crate::Group::clear) to no peer, and copies elsewhere stay.
    fn all_peers(&self) -> Vec<Arc<dyn ProtoGetter>> {
        Vec::new()
    }

    /// Where `key` is loaded first. The default implementation asks [`pick_peer`](Self::pick_peer).
    ///
    /// A picker that knows which peers do not answer returns the next one in place of such an owner.
    fn route(&self, key: &str) -> Route {
        match self.pick_peer(key) {
            Some(owner) => Route::Peer(owner),
            None => Route::Own,
        }
    }

    /// Where `key` belongs, and why [`route`](Self::route) returns what it does, for people. The default
    /// implementation has no reasons.
    fn explain(&self, key: &str) -> KeyRoute {
        let url = |peer: Option<Arc<dyn ProtoGetter>>| peer.map(|peer| peer.url());
        KeyRoute {
            owner: url(self.pick_peer(key)),
            next: url(self.pick_replica(key, 1)),
            reasons: Vec::new(),
        }
    }

    /// The peer to ask for `key` after `asked` has failed, which [`route`](Self::route) or this method
    /// returned before; `None` means to load the key in this process. `attempt` is the number of peers
    /// that have failed. The default implementation asks [`pick_replica`](Self::pick_replica).
    fn pick_next(
        &self,
        key: &str,
        attempt: usize,
        asked: &Arc<dyn ProtoGetter>,
    ) -> Option<Arc<dyn ProtoGetter>> {
        let _ = asked;
        self.pick_replica(key, attempt)
    }
}

/// Where a key is loaded first.
#[derive(Clone)]
#[non_exhaustive]
pub enum Route {
    /// In this process, which owns the key.
    Own,
    /// By this peer: the owner, or another one in its place.
    Peer(Arc<dyn ProtoGetter>),
    /// In this process, although another one owns the key and does not answer. The value is kept for 10 s
    /// at most, so that the owner is soon asked again.
    Fallback,
}

/// Where a key belongs: the result of [`PeerPicker::explain`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct KeyRoute {
    /// The URL of the owner; `None` without peers. Of another picker than [`HttpPool`](crate::http::HttpPool)
    /// also if it is this process.
    pub owner: Option<String>,
    /// The URL of the node that is asked if the owner does not answer, this process or another; `None` if
    /// there is none.
    pub next: Option<String>,
    /// Why a get goes elsewhere than to the owner, and other conditions of the key's nodes.
    pub reasons: Vec<String>,
}

/// A peer that can be asked for a key.
pub trait ProtoGetter: Send + Sync {
    /// Asks the peer, which answers from its cache or its getter, and has no other peer load.
    ///
    /// A transport passes on the [times](PeerResponse) of the response as the peer's
    /// [`Group::serve_peer`](crate::Group::serve_peer) returned them. It may lengthen
    /// [`age`](PeerResponse::age) and shorten [`ttl`](PeerResponse::ttl), for example to round them.
    ///
    /// # Errors
    ///
    /// The error of the peer's getter, with its kind ([`ErrorKind::NotFound`], [`ErrorKind::Getter`],
    /// [`ErrorKind::GetterPanicked`]…). Such an error is an answer, and the caller gets it unchanged.
    ///
    /// [`ErrorKind::Peer`] and [`ErrorKind::UnknownGroup`] mean that there was no answer. After
    /// `Peer` the group asks the next peer, then its own getter. After `UnknownGroup` it runs its own
    /// getter at once. [`ErrorKind::Loading`] means that the peer's getter still runs; the group asks
    /// the same peer again. [`ErrorKind::Overloaded`] is an answer. Return [`ErrorKind::DeadlineExceeded`] only
    /// if `ctx`'s own deadline has passed. A time-out of the exchange is [`ErrorKind::Peer`].
    fn get(&self, ctx: &Context, request: &GetRequest<'_>) -> Result<PeerResponse>;

    /// Like [`get`](Self::get), for a process that has cached `old`, an older answer of a peer for this key.
    /// If the peer's value is the same, a transport need not carry its bytes: the response has the `old`
    /// view as its value, with the times of the peer's answer.
    ///
    /// The default implementation calls [`get`](Self::get).
    ///
    /// # Errors
    ///
    /// As for [`get`](Self::get).
    fn revalidate(
        &self,
        ctx: &Context,
        request: &GetRequest<'_>,
        old: &ByteView,
    ) -> Result<PeerResponse> {
        let _ = old;
        self.get(ctx, request)
    }

    /// Asks the peer for those values of `keys` that it has cached, in as few exchanges as possible. A
    /// group calls this for keys that it takes over from a
    /// [previous owner](PeerPicker::previous_owner), and [`load_many`](Self::load_many) for a get of
    /// several keys.
    ///
    /// The result has one item for each key, in the order of `keys`. `None` means that the group has
    /// to ask for the key with [`get`](Self::get).
    ///
    /// The peer loads nothing, so no key waits for the load of another. The default implementation
    /// returns only `None`.
    ///
    /// # Errors
    ///
    /// As for [`get`](Self::get), for an error that concerns all keys. After [`ErrorKind::Peer`] the group
    /// does not ask this peer for the keys one by one. A result of the wrong length counts as all
    /// `None`.
    fn get_many(
        &self,
        ctx: &Context,
        group: &str,
        keys: &[&str],
    ) -> Result<Vec<Option<PeerResponse>>> {
        let _ = (ctx, group);
        Ok(vec![None; keys.len()])
    }

    /// Asks the peer for the values of `keys`, in as few exchanges as possible. The peer loads those
    /// that it has not cached, all at the same time:
    /// [`Group::serve_peer_many`](crate::Group::serve_peer_many) is the other side. The result has one
    /// item for each key, in the order of `keys`: its value, its error, or `None` if the group has to ask
    /// for the key with [`get`](Self::get). [`ErrorKind::Loading`] means that the getter still runs for the
    /// key; the group asks the same peer again.
    ///
    /// The default implementation calls [`get_many`](Self::get_many), and so loads nothing.
    ///
    /// # Errors
    ///
    /// As for [`get_many`](Self::get_many).
    fn load_many(
        &self,
        ctx: &Context,
        group: &str,
        keys: &[&str],
    ) -> Result<Vec<Option<Result<PeerResponse>>>> {
        let cached = self.get_many(ctx, group, keys)?;
        Ok(cached.into_iter().map(|answer| answer.map(Ok)).collect())
    }

    /// Like [`load_many`](Self::load_many), for a process that has cached `olds`, older answers of peers: one for
    /// each key, `None` where there is none. As for [`revalidate`](Self::revalidate), the response for a key
    /// whose value is the same has the old view as its value, and a transport need not carry its bytes.
    ///
    /// The default implementation calls [`load_many`](Self::load_many).
    ///
    /// # Errors
    ///
    /// As for [`get_many`](Self::get_many).
    fn revalidate_many(
        &self,
        ctx: &Context,
        group: &str,
        keys: &[&str],
        olds: &[Option<ByteView>],
    ) -> Result<Vec<Option<Result<PeerResponse>>>> {
        let _ = olds;
        self.load_many(ctx, group, keys)
    }

    /// Has the peer remove keys from its cache, by
    /// [`Group::serve_remove`](crate::Group::serve_remove).
    ///
    /// # Errors
    ///
    /// Any, if the peer did not confirm the removal; [`ErrorKind::Unsupported`] by default.
    fn remove(&self, ctx: &Context, request: &RemoveKeysRequest<'_>) -> Result<()> {
        let _ = (ctx, request);
        Err(ErrorKind::Unsupported.into())
    }

    /// Has the peer, which owns the key, cache this value, by
    /// [`Group::serve_set`](crate::Group::serve_set).
    ///
    /// # Errors
    ///
    /// Any, if the peer did not confirm it; [`ErrorKind::Unsupported`] by default.
    fn set(&self, ctx: &Context, request: &SetRequest<'_>) -> Result<()> {
        let _ = (ctx, request);
        Err(ErrorKind::Unsupported.into())
    }

    /// Has the peer remove everything from its cache, by
    /// [`Group::serve_clear`](crate::Group::serve_clear).
    ///
    /// # Errors
    ///
    /// Any, if the peer did not confirm it; [`ErrorKind::Unsupported`] by default.
    fn clear(&self, ctx: &Context, request: &ClearRequest<'_>) -> Result<()> {
        let _ = (ctx, request);
        Err(ErrorKind::Unsupported.into())
    }

    /// Exchanges the removals that this process has applied for those of the peer, by
    /// [`Group::serve_removals`](crate::Group::serve_removals). A group calls it if the two are not the
    /// same, which [`PeerResponse::removals`] shows.
    ///
    /// # Errors
    ///
    /// Any, if the peer did not answer; [`ErrorKind::Unsupported`] by default.
    fn exchange_removals(
        &self,
        ctx: &Context,
        request: &RemovalTable<'_>,
    ) -> Result<RemovalTable<'static>> {
        let _ = (ctx, request);
        Err(ErrorKind::Unsupported.into())
    }

    /// The name of the peer in errors; its URL, if it has one. The default is "a peer".
    fn url(&self) -> String {
        "a peer".into()
    }

    /// Whether [`get`](Self::get), [`get_many`](Self::get_many), [`remove`](Self::remove),
    /// [`set`](Self::set) and [`clear`](Self::clear) always return by `ctx`'s deadline.
    ///
    /// If not (the default), calls with a deadline run on a loader thread, so that callers can return
    /// in time.
    fn honors_deadline(&self) -> bool {
        false
    }
}

/// The answer of a peer.
///
/// Its times count from the start of the request: for the peer, that is when the request arrived, and
/// for the process that asks, when it was sent. The request was sent first. So for the process that asks,
/// the value expires no later than at the peer, and its age is no less. The time that a getter takes does
/// not shorten the life of the value.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct PeerResponse {
    /// The value.
    pub value: ByteView,
    /// How long the value may be cached, from the start of the request. `None` means until it is
    /// evicted.
    pub ttl: Option<Duration>,
    /// How long after `ttl` the value may still be served while no newer one can be loaded. `None` means
    /// that the options of the asking group decide.
    pub stale: Option<Duration>,
    /// How long before the request the load of the value began; zero if it began later. `None` if the
    /// peer does not report it, or if it was weeks ago. It can be up to 10 ms too large.
    pub age: Option<Duration>,
    /// The removals that the peer had applied before it looked the value up, as a number that a group
    /// makes and reads. `None` if the peer reports none, as a Go program does. Then a value of unknown age
    /// is not used for 10 s after a removal.
    pub removals: Option<u64>,
    /// Requests for the key per second at the peer, the mean of about the last minute, if the peer
    /// [measures](crate::GroupBuilder::measure_rates) it.
    pub minute_qps: Option<f64>,
    /// How long the response waited for the load of the value at the peer: zero if it was cached, or if
    /// the peer does not report it. It is no part of the time that the peer takes to answer, by which
    /// slow peers are found.
    pub load_time: Duration,
}

impl PeerResponse {
    /// A value that does not expire, of unknown age.
    pub fn new(value: impl Into<ByteView>) -> Self {
        PeerResponse {
            value: value.into(),
            ..PeerResponse::default()
        }
    }

    /// The same response with a time to live.
    #[must_use]
    pub fn with_ttl(mut self, ttl: Duration) -> Self {
        self.ttl = Some(ttl);
        self
    }

    /// The same response with an age.
    #[must_use]
    pub fn with_age(mut self, age: Duration) -> Self {
        self.age = Some(age);
        self
    }
}

/// The picker of a process without peers. The process owns every key.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoPeers;

impl PeerPicker for NoPeers {
    fn pick_peer(&self, _key: &str) -> Option<Arc<dyn ProtoGetter>> {
        None
    }
}

/// Receives the list of peers whenever it changes.
pub trait PeerSet: Send + Sync {
    /// Replaces the list of peers.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidPeer`], [`ErrorKind::DuplicatePeer`] or [`ErrorKind::NoPeers`]; the peers stay as
    /// they were.
    fn set_peers(&self, peers: &[Peer]) -> Result<()>;
}

/// How a registry's groups find their picker.
#[derive(Clone)]
pub(crate) enum Pickers {
    One(Arc<dyn PeerPicker>),
    ByGroup(Arc<PickerOf>),
}

type PickerOf = dyn Fn(&str) -> Arc<dyn PeerPicker> + Send + Sync;

/// Holds a registry's peer picker. The registry's groups share it.
#[derive(Clone, Default)]
pub(crate) struct PickerSlot {
    shared: Arc<SharedPickers>,
}

#[derive(Default)]
struct SharedPickers {
    /// Whether there are pickers. If there are none, a load takes no lock here.
    is_set: AtomicBool,
    pickers: RwLock<Option<Pickers>>,
}

impl PickerSlot {
    /// Registers pickers, if there are none yet.
    pub(crate) fn register(&self, pickers: Pickers) -> Result<()> {
        let mut slot = self.shared.pickers.write();
        if slot.is_some() {
            return Err(Error::new(
                ErrorKind::AlreadyRegistered,
                "this registry has a peer picker already; make a Registry of its own for another \
                 pool",
            ));
        }
        *slot = Some(pickers);
        self.shared.is_set.store(true, Ordering::Release);
        Ok(())
    }

    /// Like [`register`](Self::register), until the returned guard is dropped.
    #[cfg(feature = "http")]
    pub(crate) fn lend(&self, picker: Arc<dyn PeerPicker>) -> Result<PickerGuard> {
        self.register(Pickers::One(picker))?;
        Ok(PickerGuard(self.clone()))
    }

    /// The picker of a group; `None` while none is registered.
    #[inline]
    pub(crate) fn picker(&self, group: &str) -> Option<Arc<dyn PeerPicker>> {
        match self.shared.is_set.load(Ordering::Acquire) {
            true => self.registered(group),
            false => None,
        }
    }

    fn registered(&self, group: &str) -> Option<Arc<dyn PeerPicker>> {
        // The lock is released before the program's code runs.
        let pickers = self.shared.pickers.read().clone();
        Some(match pickers? {
            Pickers::One(picker) => picker,
            Pickers::ByGroup(picker_of) => picker_of(group),
        })
    }

    /// The owner of `key`, whether it answers or not; `None` if that is this process, or while no picker is
    /// registered.
    pub(crate) fn owner(&self, group: &str, key: &str) -> Option<Arc<dyn ProtoGetter>> {
        self.picker(group)?.pick_peer(key)
    }

    /// Where `key` is loaded first; in this process while no picker is registered.
    #[inline]
    pub(crate) fn route(&self, group: &str, key: &str) -> Route {
        let picker = self.picker(group);
        picker.map_or(Route::Own, |picker| picker.route(key))
    }
}

/// Keeps a picker registered until it is dropped.
#[cfg(feature = "http")]
pub(crate) struct PickerGuard(PickerSlot);

#[cfg(feature = "http")]
impl Drop for PickerGuard {
    fn drop(&mut self) {
        let picker = {
            let mut slot = self.0.shared.pickers.write();
            self.0.shared.is_set.store(false, Ordering::Release);
            slot.take()
        };
        // Dropped after the lock is released, because the drop may run user code.
        drop(picker);
    }
}
