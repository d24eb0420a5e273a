//! What a group does about a key that it has not cached: whom it asks, who waits, what is kept.

#[cfg(all(test, not(larder_loom)))]
mod tests;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::byteview::ByteView;
use crate::clock::Tick;
use crate::context::Context;
use crate::error::{Error, ErrorKind, Result};
use crate::getter::{Getter, LoadSink};
use crate::loader_pool::{LoaderPool, Turn};
use crate::pb::GetRequest;
use crate::peers::{PeerPicker, PeerResponse, PickerSlot, ProtoGetter};
use crate::recursion;
use crate::singleflight::{self, Joined, Lead, Waited};
use crate::stats::{CacheType, Stats};
use crate::store::{
    Departed, Generation, Graveyard, Hash, NewEntry, RemovalCause, Store, StoreOptions,
};
use crate::sync::Arc;

/// Which copies of other processes' values are kept in the hot share.
#[derive(Clone, Default)]
#[non_exhaustive]
pub enum HotAdmission {
    /// All of them; eviction sorts out which were worth it.
    #[default]
    Always,
    /// None: every get of another's key goes to its owner.
    Never,
    /// Each with this probability, 0 to 1. golang/groupcache keeps one in ten.
    Probability(f64),
    /// Those that the function says, of key and value.
    Custom(Arc<AdmissionFn>),
}

/// Says of a key and its value whether to keep a copy.
pub type AdmissionFn = dyn Fn(&str, &ByteView) -> bool + Send + Sync;

impl HotAdmission {
    fn admits(&self, key: &str, value: &ByteView) -> bool {
        match self {
            HotAdmission::Always => true,
            HotAdmission::Never => false,
            HotAdmission::Probability(p) => crate::random::unit() < *p,
            HotAdmission::Custom(admit) => admit(key, value),
        }
    }
}

impl std::fmt::Debug for HotAdmission {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            HotAdmission::Always => f.write_str("Always"),
            HotAdmission::Never => f.write_str("Never"),
            HotAdmission::Probability(p) => f.debug_tuple("Probability").field(p).finish(),
            HotAdmission::Custom(_) => f.write_str("Custom"),
        }
    }
}

/// Called for entries that leave the cache: key, value, and why.
pub(crate) type EvictionListener = dyn Fn(&str, ByteView, RemovalCause) + Send + Sync;

/// What a group is made of.
pub(crate) struct LoaderOptions {
    pub(crate) name: String,
    pub(crate) getter: Box<dyn Getter>,
    pub(crate) store: StoreOptions,
    pub(crate) time_to_live: Option<Duration>,
    pub(crate) hot_admission: HotAdmission,
    pub(crate) max_key_size: usize,
    pub(crate) max_value_size: usize,
    pub(crate) max_loader_threads: usize,
    pub(crate) eviction_listener: Option<Arc<EvictionListener>>,
}

/// A loaded value, and when it expires.
#[derive(Clone, Debug)]
pub(crate) struct Loaded {
    pub(crate) view: ByteView,
    pub(crate) expires: Option<Tick>,
}

type Flights = singleflight::Group<Result<Loaded>>;

/// A group's store, its flights, and the policy between them.
pub(crate) struct Loader {
    name: String,
    getter: Box<dyn Getter>,
    store: Store,
    /// Flights that ask a peer. Kept apart from those that run the getter: a request from a peer
    /// joins only the latter, so a process never waits for one that waits for it.
    peer_flights: Flights,
    /// Flights that run the getter.
    getter_flights: Flights,
    peers: PickerSlot,
    pool: LoaderPool,
    time_to_live: Option<Duration>,
    hot_admission: HotAdmission,
    max_key_size: usize,
    max_value_size: usize,
    eviction_listener: Option<Arc<EvictionListener>>,
    counters: Counters,
}

#[derive(Default)]
struct Counters {
    peer_loads: AtomicU64,
    peer_errors: AtomicU64,
    loads_deduped: AtomicU64,
    local_loads: AtomicU64,
    local_load_errs: AtomicU64,
    server_requests: AtomicU64,
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// Counts when it is dropped, so that a panic is counted too.
struct CountAtEnd<'a>(&'a AtomicU64);

impl Drop for CountAtEnd<'_> {
    fn drop(&mut self) {
        count(self.0);
    }
}

/// How long a process keeps the value of a key that it does not own but had to load: long enough
/// that a dead owner's keys are not loaded again and again, short enough that the owner's word is
/// soon heard again (the gutter of "Scaling Memcache at Facebook", NSDI '13, section 3.3).
const BORROWED_TTL: Duration = Duration::from_secs(10);

/// Peers asked for one key before the getter runs here: the owner and its successor on the ring.
const MAX_PEERS_ASKED: usize = 2;

/// On which thread a flight's work runs.
#[derive(Clone, Copy, PartialEq, Eq)]
enum RunOn {
    /// The caller's: it can wait as long as it takes, or the work itself ends by its deadline.
    Caller,
    /// A loader thread, so that the caller can leave before the work is done.
    LoaderPool,
}

impl RunOn {
    fn for_getter(ctx: &Context) -> RunOn {
        if ctx.can_end() {
            RunOn::LoaderPool
        } else {
            RunOn::Caller
        }
    }

    /// A peer that ends its exchanges by the deadline can be asked from the caller's thread.
    fn for_peer(ctx: &Context, peer: &dyn ProtoGetter) -> RunOn {
        if ctx.cancellable() || (ctx.can_end() && !peer.honors_deadline()) {
            RunOn::LoaderPool
        } else {
            RunOn::Caller
        }
    }
}

impl Loader {
    pub(crate) fn new(options: LoaderOptions, peers: PickerSlot) -> Loader {
        Loader {
            pool: LoaderPool::new(&options.name, options.max_loader_threads),
            name: options.name,
            getter: options.getter,
            store: Store::new(options.store),
            peer_flights: Flights::new(),
            getter_flights: Flights::new(),
            peers,
            time_to_live: options.time_to_live,
            hot_admission: options.hot_admission,
            max_key_size: options.max_key_size,
            max_value_size: options.max_value_size,
            eviction_listener: options.eviction_listener,
            counters: Counters::default(),
        }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    #[inline]
    pub(crate) fn store(&self) -> &Store {
        &self.store
    }

    /// Loads a key that was not found in the store: from its owner, or here.
    #[cold]
    pub(crate) fn load(self: &Arc<Self>, ctx: &Context, hash: Hash, key: &str) -> Result<ByteView> {
        self.check_key(key)?;
        let owner = self.peers.picker(&self.name).and_then(|picker| {
            let peer = picker.pick_peer(key)?;
            Some((picker, peer))
        });
        let Some((picker, owner)) = owner else {
            let run_on = RunOn::for_getter(ctx);
            let loaded = self.load_here(ctx, hash, key, Keep::Owned, run_on)?;
            return Ok(loaded.view);
        };
        let run_on = RunOn::for_peer(ctx, &*owner);
        let flight = Flight::Peer {
            picker,
            owner,
            run_on,
        };
        let loaded = self.fly(flight, ctx, hash, key, run_on)?;
        Ok(loaded.view)
    }

    /// Loads a key for a peer: here, whoever owns it. A request makes one hop and no more, so two
    /// processes whose rings disagree never wait for each other.
    #[cold]
    pub(crate) fn load_for_peer(
        self: &Arc<Self>,
        ctx: &Context,
        hash: Hash,
        key: &str,
    ) -> Result<Loaded> {
        self.check_key(key)?;
        let picker = self.peers.picker(&self.name);
        let keep = match picker.and_then(|picker| picker.pick_peer(key)) {
            None => Keep::Owned,
            Some(_) => Keep::Borrowed,
        };
        self.load_here(ctx, hash, key, keep, RunOn::for_getter(ctx))
    }

    /// Takes a key out of the store, and lets later gets wait for no load that began before.
    pub(crate) fn remove(&self, key: &str) -> Option<ByteView> {
        let hash = self.store.hash(key);
        // First the store, which turns away what loads under way bring; then the flights, so that
        // a get that begins after this function does not join one of those loads. The other way
        // round, a load could begin between the two, be spared by `forget`, and have its value
        // turned away for nothing.
        let gone = self.store.remove(hash, key);
        self.getter_flights.forget_hashed(hash.get(), key);
        self.peer_flights.forget_hashed(hash.get(), key);
        let live = |departed: &&Departed| departed.cause == RemovalCause::Explicit;
        let value = gone.iter().find(live).map(Departed::value);
        self.bury(gone);
        value
    }

    pub(crate) fn clear(&self) {
        let gone = self.store.clear();
        self.getter_flights.forget_all();
        self.peer_flights.forget_all();
        self.bury(gone);
    }

    pub(crate) fn count_server_request(&self) {
        count(&self.counters.server_requests);
    }

    pub(crate) fn stats(&self) -> Stats {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let (gets, cache_hits) = self.store.lookups();
        Stats {
            gets,
            cache_hits,
            peer_loads: read(&self.counters.peer_loads),
            peer_errors: read(&self.counters.peer_errors),
            loads: gets.saturating_sub(cache_hits),
            loads_deduped: read(&self.counters.loads_deduped),
            local_loads: read(&self.counters.local_loads),
            local_load_errs: read(&self.counters.local_load_errs),
            server_requests: read(&self.counters.server_requests),
        }
    }

    fn check_key(&self, key: &str) -> Result<()> {
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

    fn load_here(
        self: &Arc<Self>,
        ctx: &Context,
        hash: Hash,
        key: &str,
        keep: Keep,
        run_on: RunOn,
    ) -> Result<Loaded> {
        let flight = Flight::Getter {
            keep,
            counted: false,
        };
        self.fly(flight, ctx, hash, key, run_on)
    }

    /// Leads or joins a flight until there is a result or `ctx` ends.
    fn fly(
        self: &Arc<Self>,
        flight: Flight,
        ctx: &Context,
        hash: Hash,
        key: &str,
        run_on: RunOn,
    ) -> Result<Loaded> {
        loop {
            if let Some(ended) = ctx.err() {
                return Err(ended);
            }
            let ticket = match flight.map(self).join(hash.get(), key) {
                Joined::Follower(ticket) => ticket,
                Joined::Leader(lead) => {
                    let generation = match self.second_look(hash, key) {
                        Ok(loaded) => {
                            lead.finish(Ok(loaded.clone()));
                            return Ok(loaded);
                        }
                        Err(generation) => generation,
                    };
                    if !flight.is_counted() {
                        count(&self.counters.loads_deduped);
                    }
                    if run_on == RunOn::Caller {
                        let _edge = recursion::wait_for(lead.id())?;
                        let landing = Landing { turn: None, lead };
                        match self.work(flight.clone(), landing, ctx, hash, key, generation) {
                            Some(result) => return result,
                            // The work stopped because this caller's time is up.
                            None => continue,
                        }
                    }
                    let ticket = lead.ticket();
                    let (loader, flight) = (self.clone(), flight.clone());
                    let (ctx, key) = (ctx.clone(), String::from(key));
                    // If there is no thread, the lead is dropped with the closure: followers with
                    // time, or with a thread of their own to spend, take over.
                    self.pool.submit(move |turn| {
                        let turn = Some(turn);
                        let landing = Landing { turn, lead };
                        loader.work(flight, landing, &ctx, hash, &key, generation);
                    })?;
                    ticket
                }
            };
            let _edge = recursion::wait_for(ticket.id())?;
            match ticket.wait(ctx) {
                // A caller with a deadline asked a peer in vain and then found no loader thread.
                // This one needs none.
                Waited::Landed(Err(error))
                    if error.kind() == ErrorKind::Overloaded && !ctx.can_end() => {}
                Waited::Landed(result) => return result,
                Waited::Left(ended) => return Err(ended),
                // The leader ran out of time, or had no thread. Whoever comes first leads anew.
                Waited::Abandoned => {}
            }
        }
    }

    /// Looks into the store once more, now as the leader of a flight. Without this look two loads
    /// in a row are possible for one key:
    ///
    /// 1. A misses the store.
    /// 2. B misses the store, leads a flight, and loads.
    /// 3. B puts the value into the store.
    /// 4. B's flight leaves the map.
    /// 5. A asks for the flight, finds none, and leads another.
    /// 6. A loads what has just been loaded.
    fn second_look(&self, hash: Hash, key: &str) -> Result<Loaded, Generation> {
        self.store.peek_or_generation(hash, key).map(|hit| Loaded {
            view: hit.view,
            expires: hit.expires,
        })
    }

    /// Does a flight's work and lands it. `None` if the work stopped because `ctx` ended: then the
    /// flight is abandoned rather than failed, for its waiters may have time left.
    fn work(
        self: &Arc<Self>,
        flight: Flight,
        mut landing: Landing<'_>,
        ctx: &Context,
        hash: Hash,
        key: &str,
        generation: Generation,
    ) -> Option<Result<Loaded>> {
        let working = recursion::work_for(landing.lead.id());
        let run = || match flight {
            Flight::Getter { keep, .. } => {
                let (view, ttl) = self.run_getter(ctx, key)?;
                Ok(self.keep(keep, hash, key, view, ttl, generation))
            }
            Flight::Peer {
                picker,
                owner,
                run_on,
            } => match self.ask_peers(&*picker, owner, run_on, ctx, key) {
                Some(answer) => {
                    let PeerResponse { value, ttl, .. } = answer?;
                    Ok(self.keep(Keep::Hot, hash, key, value, ttl, generation))
                }
                // On a loader thread already, the callers can leave this flight; the getter
                // needs no other thread.
                None => {
                    let run_on = match run_on {
                        RunOn::LoaderPool => RunOn::Caller,
                        RunOn::Caller => RunOn::for_getter(ctx),
                    };
                    let flight = Flight::Getter {
                        keep: Keep::Borrowed,
                        counted: true,
                    };
                    let loaded = self.fly(flight, ctx, hash, key, run_on)?;
                    Ok((loaded, Graveyard::default()))
                }
            },
        };
        // Any code of the user's may panic here: getter, peer, picker, admission. The waiters are
        // told at once; an abandoned flight would have them try the same in turn.
        let (result, gone) = match catch_unwind(AssertUnwindSafe(run)) {
            Ok(Ok((loaded, gone))) => (Ok(loaded), gone),
            Ok(Err(error)) => (Err(error), Graveyard::default()),
            Err(panic) => {
                landing.finish(Err(ErrorKind::LoaderPanicked.into()));
                resume_unwind(panic);
            }
        };
        if result.is_err() && ctx.err().is_some() {
            return None;
        }
        // The listener comes after the landing: however long it takes, and if it panics, that is
        // no matter of those who wait for the value. This thread is busy until it is through.
        let turn = match self.eviction_listener {
            Some(_) if !gone.is_empty() => landing.turn.take(),
            _ => None,
        };
        landing.finish(result.clone());
        drop(working);
        self.bury(gone);
        drop(turn);
        Some(result)
    }

    fn run_getter(&self, ctx: &Context, key: &str) -> Result<(ByteView, Option<Duration>)> {
        let mut outcome = CountAtEnd(&self.counters.local_load_errs);
        let mut sink = LoadSink::new(key, self.max_value_size);
        self.getter
            .get(ctx, key, &mut sink)
            .map_err(Error::from_getter)?;
        let loaded = sink.finish()?;
        outcome.0 = &self.counters.local_loads;
        Ok(loaded)
    }

    /// Asks the owner, and if it does not answer, its successor. `None` if nobody answered.
    fn ask_peers(
        &self,
        picker: &dyn PeerPicker,
        owner: Arc<dyn ProtoGetter>,
        run_on: RunOn,
        ctx: &Context,
        key: &str,
    ) -> Option<Result<PeerResponse>> {
        let request = GetRequest {
            group: self.name.as_str().into(),
            key: key.into(),
        };
        let mut next = Some(owner);
        for attempt in 1..=MAX_PEERS_ASKED {
            let answer = next?.get(ctx, &request);
            let error = match answer {
                Ok(response) => {
                    count(&self.counters.peer_loads);
                    return Some(Ok(response));
                }
                Err(error) => error,
            };
            match error.kind() {
                kind if is_no_answer(kind) && ctx.err().is_none() || kind == ErrorKind::Peer => {
                    count(&self.counters.peer_errors);
                    log::debug!("group {}: {error}", self.name);
                }
                // The peer is well and does not know the group: it was not told of it yet, or the
                // processes run different code. Its successor is no better placed than we are.
                ErrorKind::UnknownGroup => {
                    count(&self.counters.peer_errors);
                    return None;
                }
                // The peer's getter has spoken.
                _ => return Some(Err(error)),
            }
            if let Some(ended) = ctx.err() {
                return Some(Err(ended));
            }
            next = picker.pick_replica(key, attempt);
            // One that could make the caller late is passed over: the owner was thought punctual,
            // so this is the caller's thread.
            if run_on == RunOn::Caller {
                next = next.filter(|peer| RunOn::for_peer(ctx, &**peer) == RunOn::Caller);
            }
        }
        None
    }

    /// Puts a loaded value into the share it belongs to. The caller buries what had to leave.
    fn keep(
        &self,
        keep: Keep,
        hash: Hash,
        key: &str,
        view: ByteView,
        ttl: Option<Duration>,
        generation: Generation,
    ) -> (Loaded, Graveyard) {
        let ttl = shorter(ttl, self.time_to_live);
        let (share, ttl) = match keep {
            Keep::Owned => (CacheType::Main, ttl),
            Keep::Hot => (CacheType::Hot, ttl),
            Keep::Borrowed => (CacheType::Main, shorter(ttl, Some(BORROWED_TTL))),
        };
        let expires = ttl.map(|ttl| self.store.clock().now().after(ttl));
        let mut gone = Graveyard::default();
        let admitted = keep != Keep::Hot || self.hot_admission.admits(key, &view);
        if admitted && ttl != Some(Duration::ZERO) && self.store.capacity() > 0 {
            let new = NewEntry {
                hash,
                key,
                data: view.clone().into_keyed(key),
                share,
                expires,
            };
            gone = self.store.insert(new, Some(generation));
        }
        (Loaded { view, expires }, gone)
    }

    /// Tells the listener what left the store, then drops it. No lock is held here.
    fn bury(&self, gone: Graveyard) {
        if let Some(listener) = &self.eviction_listener {
            for departed in gone.iter() {
                listener(departed.key(), departed.value(), departed.cause);
            }
        }
    }
}

/// Whether a peer's error says nothing of the key, only that the peer had no time or no means; as
/// it would over HTTP, where such errors arrive as [`ErrorKind::Peer`].
fn is_no_answer(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::Peer
            | ErrorKind::DeadlineExceeded
            | ErrorKind::Cancelled
            | ErrorKind::Overloaded
            | ErrorKind::Io
    )
}

fn shorter(a: Option<Duration>, b: Option<Duration>) -> Option<Duration> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

/// Where a loaded value belongs.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Keep {
    /// Ours: in the main share.
    Owned,
    /// A peer's, got from it: in the hot share, if it is admitted.
    Hot,
    /// A peer's, loaded here because the peer did not answer, or took us for the owner: in the main
    /// share, for [`BORROWED_TTL`] at most. The hot share would be too small for all the keys of an
    /// owner that is down, and they would be loaded over and over.
    Borrowed,
}

/// The duty to land a flight, and the loader thread that is busy with it.
struct Landing<'a> {
    /// Declared, and so dropped, before `lead`: see [`Turn`].
    turn: Option<Turn<'a>>,
    lead: Lead<Result<Loaded>>,
}

impl Landing<'_> {
    fn finish(self, result: Result<Loaded>) {
        drop(self.turn);
        self.lead.finish(result);
    }
}

/// The two kinds of flight.
#[derive(Clone)]
enum Flight {
    Getter {
        keep: Keep,
        /// Whether it carries on a load that is counted already, as a peer flight.
        counted: bool,
    },
    Peer {
        picker: Arc<dyn PeerPicker>,
        owner: Arc<dyn ProtoGetter>,
        run_on: RunOn,
    },
}

impl Flight {
    fn is_counted(&self) -> bool {
        matches!(self, Flight::Getter { counted: true, .. })
    }

    fn map<'a>(&self, loader: &'a Loader) -> &'a Flights {
        match self {
            Flight::Getter { .. } => &loader.getter_flights,
            Flight::Peer { .. } => &loader.peer_flights,
        }
    }
}
