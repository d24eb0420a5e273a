//! Loads a key that is not cached: from its owner, or from the getter.
//!
//! ```text
//!   mod.rs           which source, and in which order     flight.rs        one load for many callers
//!   populate.rs      caches the value; share, TTL         origin.rs        limits the getters that run
//!   refresh.rs       values that are not fresh            revalidation.rs  loads that find them unchanged
//!   failed_loads.rs  loads that failed lately             rejoin.rs        waits for flights, and joins again
//!   client_load.rs   a load that a client of the server waits for
//! ```

pub(super) mod client_load;
pub(super) mod failed_loads;
pub(super) mod flight;
pub(super) mod origin;
pub(super) mod populate;
pub(super) mod refresh;
pub(super) mod rejoin;
mod revalidation;

use std::time::{Duration, Instant};

use self::client_load::ClientWaiter;
use self::flight::{Executor, LoadFrom};
use self::populate::{NewValue, Placement};
use self::rejoin::after_peers;
use super::counters::GetterRun;
use super::lifetime::Lifetime;
use super::removal_clocks::fence::Answer;
use super::{Inner, LoadBegin, LoadKey, Loaded, MissToken};
use crate::clock::Tick;
use crate::context::Context;
use crate::error::{Error, ErrorKind, Result};
use crate::getter::LoadSink;
use crate::getter::old_value::OldValue;
use crate::panics::caught;
use crate::pb::GetRequest;
use crate::peers::{PeerResponse, ProtoGetter, Route};
use crate::store::EvictedEntries;
use crate::sync::{Arc, Mutex};
use crate::threads::nesting::{self, WaitFor};

/// The number of peers asked for one key before the getter runs here: the owner and its successor.
const MAX_PEERS_ASKED: usize = 2;

impl Inner {
    /// Loads a key for a caller of this process: from the key's owner, or here if this process owns
    /// the key.
    #[cold]
    pub(super) fn load(
        self: &Arc<Self>,
        ctx: &Context,
        key: &LoadKey<'_>,
        miss: Option<&MissToken>,
    ) -> Result<Loaded> {
        self.check_key(key.key)?;
        self.check_failed_loads(key)?;
        let from = self.source_of(key);
        self.load_once(&from, from.executor(ctx), ctx, key, miss)
    }

    /// The source of a key's value, for a caller of this process.
    pub(super) fn source_of(&self, key: &LoadKey<'_>) -> LoadFrom {
        match self.verified_route(self.peers.route(&self.name, key.key)) {
            Route::Own => LoadFrom::Getter(Placement::Main),
            Route::Fallback => LoadFrom::Getter(Placement::Fallback),
            Route::Peer(peer) => LoadFrom::Peers(peer),
        }
    }

    /// The error of a load that failed so lately that the key is not loaded now.
    pub(super) fn check_failed_loads(&self, key: &LoadKey<'_>) -> Result<()> {
        let recent = self.failed_loads.recent(key, self.store.clock());
        recent.and_then(|attempt| attempt.error).map_or(Ok(()), Err)
    }

    /// Loads a key for a peer: the owner's cached value if another process owns the key, else by the getter
    /// here. No request makes another process load, so two processes whose lists differ never wait for each
    /// other.
    ///
    /// The picker decides whether this process owns the key. It also owns the keys of a node that has been
    /// away for long.
    #[cold]
    pub(super) fn load_for_peer(
        self: &Arc<Self>,
        ctx: &Context,
        key: &LoadKey<'_>,
        miss: Option<&MissToken>,
        waiter: Option<&mut dyn ClientWaiter>,
    ) -> Result<Loaded> {
        self.check_key(key.key)?;
        self.check_failed_loads(key)?;
        let placement = self.placement_for_peer(key);
        match waiter {
            None => {
                let executor = Executor::for_getter(ctx);
                self.load_once(&LoadFrom::Getter(placement), executor, ctx, key, miss)
            }
            Some(waiter) => self.load_in_steps(placement, ctx, key, miss, waiter),
        }
    }

    /// Where the value of a key that a peer asks for belongs.
    pub(super) fn placement_for_peer(&self, key: &LoadKey<'_>) -> Placement {
        match self.peers.route(&self.name, key.key) {
            Route::Own => Placement::Main,
            Route::Peer(_) => Placement::Misdirected,
            Route::Fallback => Placement::Fallback,
        }
    }

    /// Runs the getter. This is the work of a getter flight.
    pub(super) fn run_getter(
        self: &Arc<Self>,
        placement: Placement,
        ctx: &Context,
        key: &LoadKey<'_>,
        begun: &LoadBegin,
        evicted: &mut EvictedEntries,
    ) -> Result<Loaded> {
        if let Some(loaded) = self.take_over(placement, ctx, key, begun, evicted) {
            return Ok(loaded);
        }
        let run = GetterRun::new(&self.counters);
        let old = self.old_value(key, begun);
        let with_old = ctx.with_old_value(old.as_ref());
        let ctx = with_old.as_ref().unwrap_or(ctx);
        let mut sink = LoadSink::new(&self.store, key.hash, key.key, self.max_value_size);
        sink.old = old.as_ref();
        let returned = call_getter(|| self.getter.get(ctx, key.key, &mut sink));
        returned?.map_err(Error::from_getter)?;
        self.keep_loaded(placement, key, begun, run, &mut sink, evicted)
    }

    /// Puts the value that a getter set into the store.
    #[inline]
    pub(super) fn keep_loaded(
        &self,
        placement: Placement,
        key: &LoadKey<'_>,
        begun: &LoadBegin,
        mut run: GetterRun<'_>,
        sink: &mut LoadSink<'_>,
        evicted: &mut EvictedEntries,
    ) -> Result<Loaded> {
        let filled = sink.finish()?;
        run.has_loaded = true;
        drop(run);
        let value = NewValue {
            lifetime: Lifetime::of_load(begun.at, filled.ttl, self.freshness.allowance()),
            view: filled.value,
            is_entry: filled.is_entry,
            etag: filled.etag,
            owner_qps: None,
            is_renewal: filled.is_renewal,
        };
        let lifetime = self.populate(placement, key, begun, value, evicted);
        // The view is moved last. A move right after the writes would stall (no store forwarding).
        let view = sink.take_value();
        Ok(Loaded {
            view,
            lifetime,
            by_peer: false,
        })
    }

    /// Asks the peers for a key, and runs the getter if none answers. This is the work of a peer
    /// flight.
    pub(super) fn load_from_peers(
        self: &Arc<Self>,
        owner: &Arc<dyn ProtoGetter>,
        ctx: &Context,
        key: &LoadKey<'_>,
        begun: &LoadBegin,
        evicted: &mut EvictedEntries,
    ) -> Result<Loaded> {
        let old = self.old_value(key, begun);
        let mut peers = PeerLoad::new(self, ctx, key, begun, old.as_ref(), evicted);
        if let Some(result) = peers.ask_in_turn(owner) {
            return result;
        }
        // On a loader thread the getter can run at once: callers wait on their own threads and can
        // return before it ends.
        let executor = match begun.on_pool {
            true => Executor::LoaderThread,
            false => Executor::for_getter(ctx),
        };
        let from = LoadFrom::GetterAfterPeers;
        let loaded = match begun.replaces {
            false => self.load_once(&from, executor, ctx, key, None),
            true => self.lead_or_join(&from, executor, ctx, key, |(_, forgets)| {
                let is_newer = |lifetime: &Lifetime| lifetime.begun >= Some(begun.at);
                self.begin_newer(key, forgets, is_newer)
            }),
        };
        loaded.map_err(after_peers)
    }

    /// Asks the owner for a newer value of a key. This is the work of a peer flight.
    pub(super) fn load_from_owner(
        self: &Arc<Self>,
        owner: &Arc<dyn ProtoGetter>,
        ctx: &Context,
        key: &LoadKey<'_>,
        begun: &LoadBegin,
        evicted: &mut EvictedEntries,
    ) -> Result<Loaded> {
        let old = self.old_value(key, begun);
        let loaded =
            PeerLoad::new(self, ctx, key, begun, old.as_ref(), evicted).ask(owner, false)?;
        // Without an answer that is newer than all removals, the old value is not renewed.
        Ok(loaded.ok_or(ErrorKind::Peer)?)
    }

    /// Counts the answer of a peer, and caches its value. `old` is the value that the peer need not have
    /// sent again.
    #[inline]
    pub(super) fn cache_answer(
        &self,
        placement: Placement,
        key: &LoadKey<'_>,
        begun: &LoadBegin,
        (sent, response): Answer,
        old: Option<&OldValue>,
        evicted: &mut EvictedEntries,
    ) -> Loaded {
        self.counters.add(|loads| &loads.peer_loads);
        let lifetime = self.lifetime_of(sent, &response);
        let mut view = response.value;
        let value = NewValue::from_peer(&mut view, lifetime, response.minute_qps, old);
        let lifetime = self.populate(placement, key, begun, value, evicted);
        Loaded {
            view,
            lifetime,
            by_peer: true,
        }
    }

    /// Counts an exchange with a peer that brought no answer.
    pub(super) fn note_failure(&self, error: &Error) {
        self.counters.add(|loads| &loads.peer_errors);
        log::debug!("group {}: {error}", self.name);
    }

    pub(super) fn check_key(&self, key: &str) -> Result<()> {
        if key.len() <= self.max_key_size {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::KeyTooLong,
            format!(
                "the key has {} bytes, over the group's max_key_size of {}",
                key.len(),
                self.max_key_size
            ),
        ))
    }
}

/// Runs a getter, and returns the permit of its run. If this thread unwinds already, because a drop calls
/// the group, a panic of the getter is an error: a second panic would abort the process.
#[inline]
pub(super) fn call_getter<T>(get: impl FnOnce() -> T) -> Result<T> {
    let returned = match std::thread::panicking() {
        true => caught(get),
        false => Some(get()),
    };
    nesting::release_permit();
    Ok(returned.ok_or(ErrorKind::GetterPanicked)?)
}

/// Decides whether a peer that is loading a key is asked again.
pub(super) struct LoadingRetries<'c> {
    ctx: &'c Context,
    max_load_wait: Duration,
    /// The end of the wait, and the time of the last request. `None` before the first answer that the peer
    /// is loading.
    asking: Option<(Instant, Instant)>,
}

impl<'c> LoadingRetries<'c> {
    pub(super) fn new(ctx: &'c Context, max_load_wait: Duration) -> Self {
        LoadingRetries {
            ctx,
            max_load_wait,
            asking: None,
        }
    }

    /// Whether to ask again, after an answer that the peer is loading. False only once the wait is over: then the
    /// caller's deadline has passed too, and no other peer is asked. A caller without a deadline waits in vain
    /// once, with the calls in its getter: getters of several processes may wait for each other. Pauses between two
    /// requests, so that a peer that answers at once is not asked in a busy loop.
    pub(super) fn may_ask_again(&mut self) -> bool {
        let mut now = Instant::now();
        let end = match self.asking {
            None => {
                let left = nesting::wait_left(WaitFor::Peer, self.max_load_wait);
                self.ctx.deadline().unwrap_or(now + left)
            }
            Some((end, asked_at)) => {
                if now - asked_at < SHORTEST_PAUSE {
                    std::thread::sleep(SHORTEST_PAUSE);
                    now = Instant::now();
                }
                end
            }
        };
        self.asking = Some((end, now));
        if end <= now + SHORTEST_PAUSE {
            std::thread::sleep(end.saturating_duration_since(now));
            if self.ctx.deadline().is_none() {
                nesting::count_wait(WaitFor::Peer, self.max_load_wait);
            }
            return false;
        }
        true
    }
}

/// One load from peers.
struct PeerLoad<'c> {
    group: &'c Arc<Inner>,
    ctx: &'c Context,
    key: LoadKey<'c>,
    begun: LoadBegin,
    /// The value of the key that is cached here. A peer need not send it again.
    old: Option<&'c OldValue>,
    evicted: &'c mut EvictedEntries,
    request: GetRequest<'c>,
    /// A time at or before the last request. For the first one, the begin of the load: the clock need
    /// not be read again.
    sent: Tick,
    is_first: bool,
    loading: LoadingRetries<'c>,
}

/// The outcome of asking one peer.
enum Asked {
    Answer(Result<Loaded>),
    NextPeer,
    LoadHere,
}

impl<'c> PeerLoad<'c> {
    fn new(
        group: &'c Arc<Inner>,
        ctx: &'c Context,
        key: &LoadKey<'c>,
        begun: &LoadBegin,
        old: Option<&'c OldValue>,
        evicted: &'c mut EvictedEntries,
    ) -> Self {
        PeerLoad {
            group,
            ctx,
            key: *key,
            begun: *begun,
            old,
            evicted,
            request: GetRequest {
                group: group.name.as_str().into(),
                key: key.key.into(),
            },
            sent: begun.at,
            is_first: true,
            loading: LoadingRetries::new(ctx, group.max_load_wait),
        }
    }

    /// Asks the owner, and if it does not answer, its successor. `None` if no peer answered.
    fn ask_in_turn(&mut self, owner: &Arc<dyn ProtoGetter>) -> Option<Result<Loaded>> {
        let (group, ctx, key) = (self.group, self.ctx, self.key.key);
        let mut replica = None;
        for attempt in 1..=MAX_PEERS_ASKED {
            let peer = replica.as_ref().unwrap_or(owner);
            let next = || match attempt {
                MAX_PEERS_ASKED => None,
                _ => group
                    .peers
                    .picker(&group.name)?
                    .pick_next(key, attempt, peer),
            };
            // The next peer is picked in advance only if the time that the first one gets depends on it.
            let picked = ctx.deadline().map(|_| next());
            let has_next = matches!(picked, Some(Some(_)));
            let next = match self.ask_unless_failed(peer, has_next) {
                Asked::Answer(answer) => return Some(answer),
                Asked::LoadHere => return None,
                Asked::NextPeer => picked.unwrap_or_else(next)?,
            };
            // This is the caller's thread, because the owner honors deadlines. A replica that does
            // not honor them is skipped, because the caller could miss its deadline.
            let is_late = || Executor::for_peer(ctx, &*next) == Executor::LoaderPool;
            if !self.begun.on_pool && is_late() {
                return None;
            }
            replica = Some(next);
        }
        None
    }

    /// Asks one peer, unless it failed already during the caller's call for several keys.
    fn ask_unless_failed(&mut self, peer: &Arc<dyn ProtoGetter>, has_next: bool) -> Asked {
        let (group, ctx) = (self.group, self.ctx);
        let failed = ctx.value::<FailedPeers>();
        if failed.is_some_and(|failed| failed.contain(peer)) {
            return Asked::NextPeer;
        }
        let error = match self.ask(peer, has_next) {
            Ok(Some(loaded)) => return Asked::Answer(Ok(loaded)),
            Ok(None) => return Asked::LoadHere,
            Err(error) => error,
        };
        match error.kind() {
            kind if is_no_answer(kind) && ctx.err().is_none() || kind == ErrorKind::Peer => {
                group.note_failure(&error);
                if let Some(failed) = failed {
                    failed.add(peer);
                }
                match ctx.err() {
                    Some(ended) => Asked::Answer(Err(ended)),
                    None => Asked::NextPeer,
                }
            }
            // The peer is up but does not have the group: it has not made it yet, or the processes
            // run different code. Its successor is no better choice than this process.
            ErrorKind::UnknownGroup => {
                group.note_failure(&error);
                Asked::LoadHere
            }
            // The peer's getter ran; its error is the answer.
            _ => Asked::Answer(Err(error)),
        }
    }

    /// Asks one peer, and caches its value. `None` if it has none that is newer than all removals: then the
    /// getter has to run here.
    fn ask(&mut self, peer: &Arc<dyn ProtoGetter>, has_next: bool) -> Result<Option<Loaded>> {
        let (group, ctx, key) = (self.group, self.ctx, self.key);
        let mut response = self.request(&**peer, has_next)?;
        group.compare(peer, ctx, self.sent, response.removals);
        if !group.is_current(key.key, self.sent, &response) {
            let ask_again = || self.request(&**peer, has_next);
            match group.newer_answer(peer, ctx, key.key, response, ask_again)? {
                Some(newer) => response = newer,
                None => return Ok(None),
            }
        }
        let (answer, old) = ((self.sent, response), self.old);
        let loaded =
            group.cache_answer(Placement::Hot, &key, &self.begun, answer, old, self.evicted);
        Ok(Some(loaded))
    }

    /// Sends a request to a peer. If there is a next peer to ask, this one gets at most half of the time, so
    /// that the keys of a hung peer do not all fail.
    ///
    /// If the peer answers that it is loading the key, it is asked again as long as the caller can
    /// wait: it is alive, and another peer would load the key a second time.
    fn request(&mut self, peer: &dyn ProtoGetter, has_next: bool) -> Result<PeerResponse> {
        let clock = self.group.store.clock();
        if !std::mem::take(&mut self.is_first) {
            self.sent = clock.now();
        }
        let get = |ctx: &Context| match self.old {
            Some(old) => peer.revalidate(ctx, &self.request, &old.view),
            None => peer.get(ctx, &self.request),
        };
        let mut result = match has_next {
            true => get(&half_of(self.ctx)),
            false => get(self.ctx),
        };
        while matches!(&result, Err(error) if error.kind() == ErrorKind::Loading) {
            if !self.loading.may_ask_again() {
                break;
            }
            self.sent = clock.now();
            result = get(self.ctx);
        }
        result
    }
}

/// `ctx` with half of the time that is left.
pub(super) fn half_of(ctx: &Context) -> Context {
    match ctx.remaining() {
        Some(left) => ctx.with_timeout(left / 2),
        None => ctx.clone(),
    }
}

/// The peers that did not answer during one call for several keys. They are not asked for its other
/// keys, so that each of them costs at most one time-out.
#[derive(Default)]
pub(super) struct FailedPeers(Mutex<Vec<Arc<dyn ProtoGetter>>>);

impl FailedPeers {
    pub(super) fn add(&self, peer: &Arc<dyn ProtoGetter>) {
        self.0.lock().push(peer.clone());
    }

    /// Compares pointers, because pickers return clones of one `Arc` for one peer.
    pub(super) fn contain(&self, peer: &Arc<dyn ProtoGetter>) -> bool {
        let failed = self.0.lock();
        failed.iter().any(|other| is_same(other, peer))
    }
}

/// Whether two references are to one peer.
pub(super) fn is_same(one: &Arc<dyn ProtoGetter>, other: &Arc<dyn ProtoGetter>) -> bool {
    Arc::as_ptr(one).cast::<()>() == Arc::as_ptr(other).cast::<()>()
}

/// The shortest pause between two requests to a peer that is loading, and the shortest time for the last.
const SHORTEST_PAUSE: Duration = Duration::from_millis(1);

/// Whether a peer's error concerns the peer and not the key: for example, the peer had no time or no
/// thread left. Over HTTP such errors arrive as [`ErrorKind::Peer`].
pub(super) fn is_no_answer(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::Peer
            | ErrorKind::DeadlineExceeded
            | ErrorKind::Cancelled
            | ErrorKind::Loading
            | ErrorKind::Io
    )
}
