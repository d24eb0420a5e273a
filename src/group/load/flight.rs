//! One load for many callers: one caller leads, and the others wait. The load runs on the leader's
//! thread or on the loader pool.

use super::populate::Placement;
use super::rejoin::Rejoins;
use crate::clock::Tick;
use crate::context::Context;
use crate::error::{Error, ErrorKind, Result};
use crate::group::freshness::Phase;
use crate::group::{Flights, Inner, LoadBegin, LoadKey, Loaded, MissToken};
use crate::peers::ProtoGetter;
use crate::singleflight::{Epoch, ForgetCount, Joined, Leader, Waiter};
use crate::store::{EvictedEntries, Generation};
use crate::sync::Arc;
use crate::threads::load_permits::LoadPermit;
use crate::threads::loader_pool::{BusyGuard, JobFor};
use crate::threads::nesting;
use crate::threads::recursion;

/// The thread that runs a flight's work.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(in crate::group) enum Executor {
    /// The caller's thread: its context cannot end, or the work itself ends by the deadline.
    Caller,
    /// A thread of the loader pool, so that the caller can return before the work is done.
    LoaderPool,
    /// This thread, which is one of the loader pool, and whose caller waits on its own thread.
    LoaderThread,
}

impl Executor {
    pub(in crate::group) fn for_getter(ctx: &Context) -> Executor {
        if ctx.has_deadline_or_cancel() {
            Executor::LoaderPool
        } else {
            Executor::Caller
        }
    }

    /// A peer that honors deadlines is asked on the caller's thread, unless the caller can be
    /// cancelled.
    pub(in crate::group) fn for_peer(ctx: &Context, peer: &dyn ProtoGetter) -> Executor {
        if ctx.cancellable() || (ctx.has_deadline_or_cancel() && !peer.honors_deadline()) {
            Executor::LoaderPool
        } else {
            Executor::Caller
        }
    }
}

/// The source of a flight's value.
#[derive(Clone)]
pub(in crate::group) enum LoadFrom {
    /// The getter.
    Getter(Placement),
    /// The owner of the key, given here. If it fails, its successor, and then the getter.
    Peers(Arc<dyn ProtoGetter>),
    /// The owner of the key, given here. If it fails, nothing else is asked, because the cached copy may still
    /// be served.
    OwnerAlone(Arc<dyn ProtoGetter>),
    /// The getter, after the peers failed. The load that it is part of is counted already.
    GetterAfterPeers,
}

impl LoadFrom {
    pub(super) fn flights<'a>(&self, group: &'a Inner) -> &'a Flights {
        match self.asks_peer() {
            true => &group.peer_flights,
            false => &group.getter_flights,
        }
    }

    pub(in crate::group) fn asks_peer(&self) -> bool {
        matches!(self, LoadFrom::Peers(_) | LoadFrom::OwnerAlone(_))
    }

    /// The thread that loads for a caller with this context.
    pub(in crate::group) fn executor(&self, ctx: &Context) -> Executor {
        match self {
            LoadFrom::Peers(peer) | LoadFrom::OwnerAlone(peer) => Executor::for_peer(ctx, &**peer),
            LoadFrom::Getter(_) | LoadFrom::GetterAfterPeers => Executor::for_getter(ctx),
        }
    }
}

/// The caller that a flight on the loader pool works for, and the permit of its getter.
pub(in crate::group) struct PoolJob {
    pub(in crate::group) job_for: JobFor,
    pub(in crate::group) permit: Option<LoadPermit>,
}

impl Inner {
    /// Leads or joins a flight until there is a result or `ctx` ends.
    pub(in crate::group) fn load_once(
        self: &Arc<Self>,
        from: &LoadFrom,
        executor: Executor,
        ctx: &Context,
        key: &LoadKey<'_>,
        miss: Option<&MissToken>,
    ) -> Result<Loaded> {
        let begin = |flight| self.begin(from, flight, key, miss);
        self.lead_or_join(from, executor, ctx, key, begin)
    }

    /// Like [`load_once`](Self::load_once), with a flight whose work begins by `begin`, which may return a
    /// cached value instead.
    pub(super) fn lead_or_join(
        self: &Arc<Self>,
        from: &LoadFrom,
        executor: Executor,
        ctx: &Context,
        key: &LoadKey<'_>,
        begin: impl Fn((Epoch, ForgetCount)) -> Result<LoadBegin, Loaded>,
    ) -> Result<Loaded> {
        let _lent = nesting::lend_permit(ctx);
        let mut rejoins = Rejoins::new(ctx, self.max_load_wait);
        loop {
            if let Some(ended) = ctx.err() {
                return Err(ended);
            }
            let result = match from.flights(self).join(key.hash.get(), key.key) {
                Joined::Waiter(waiter) => rejoins.wait(&waiter),
                Joined::Leader(leader, epoch, forgets) => match begin((epoch, forgets)) {
                    Ok(ref mut begun) => {
                        self.lead_by(from, executor, leader, &mut rejoins, key, begun)
                    }
                    Err(cached) => return Ok(finish_with(leader, cached)),
                },
            };
            if let Some(result) = result {
                return result;
            }
        }
    }

    /// Runs a flight until there is a result or the caller's context ends. `None` if the caller has to join
    /// again.
    fn lead_by(
        self: &Arc<Self>,
        from: &LoadFrom,
        executor: Executor,
        leader: Leader<'_, Result<Loaded>>,
        rejoins: &mut Rejoins<'_>,
        key: &LoadKey<'_>,
        begun: &mut LoadBegin,
    ) -> Option<Result<Loaded>> {
        let ctx = rejoins.ctx;
        let permit = match self.permit_lead(from, begun, ctx, key, None) {
            Ok(permit) => permit,
            Err(refused) => return Some(Err(give_up(leader, refused))),
        };
        match executor {
            Executor::Caller | Executor::LoaderThread => {
                let _held = permit.map(nesting::hold_permit);
                begun.on_pool = executor == Executor::LoaderThread;
                self.lead(from, leader, None, ctx, key, begun)
            }
            Executor::LoaderPool => {
                let job_for = JobFor::Own;
                let job = PoolJob { job_for, permit };
                match self.lead_on_pool(from, leader, ctx, key, *begun, job) {
                    Ok(waiter) => rejoins.wait(&waiter),
                    Err(refused) => Some(Err(refused)),
                }
            }
        }
    }

    /// Begins the work of a flight, unless the value is cached by now. Then the leader [finishes the
    /// flight](finish_with) with that value.
    pub(in crate::group) fn begin(
        &self,
        from: &LoadFrom,
        (epoch, forgets): (Epoch, ForgetCount),
        key: &LoadKey<'_>,
        miss: Option<&MissToken>,
    ) -> Result<LoadBegin, Loaded> {
        let generation = match miss {
            Some(&(generation, at_miss)) if at_miss.of(from) == epoch => generation,
            _ => match self.recheck_cache(key, !from.asks_peer()) {
                Ok(value) => return Err(value),
                Err(generation) => generation,
            },
        };
        if !matches!(from, LoadFrom::GetterAfterPeers) {
            self.counters.add(|loads| &loads.loads_deduped);
        }
        Ok(self.load_begin(generation, forgets))
    }

    pub(in crate::group) fn load_begin(
        &self,
        generation: Generation,
        forgets: ForgetCount,
    ) -> LoadBegin {
        LoadBegin {
            at: self.time_of_begin(),
            is_kept: true,
            replaces: false,
            on_pool: false,
            generation,
            forgets,
        }
    }

    /// The time for the begin of a load. It is exact if values expire here, or are compared with removals.
    /// Otherwise it is up to 10 ms early, so that the value seems older than it is.
    fn time_of_begin(&self) -> Tick {
        let is_exact = self.freshness.time_to_live.is_some()
            || self.store.may_expire()
            || !self.removals.are_unused();
        match is_exact {
            true => self.store.clock().now(),
            false => self.store.clock().recent(),
        }
    }

    /// Looks into the store once more, as the leader of a flight. Without this, two loads in a row
    /// are possible for one key:
    ///
    /// 1. A misses the store.
    /// 2. B misses the store, leads a flight, and loads.
    /// 3. B puts the value into the store.
    /// 4. B's flight ends.
    /// 5. A looks for a flight, finds none, and leads another.
    /// 6. A loads the value again.
    ///
    /// Skipped if the epochs are equal: then no flight of the key ended between A's miss and A
    /// becoming leader.
    ///
    /// A stale value counts as none. So does a [doubtful copy](Self::is_doubtful_copy) if peers may wait for
    /// the load.
    pub(in crate::group) fn recheck_cache(
        &self,
        key: &LoadKey<'_>,
        may_serve_peers: bool,
    ) -> Result<Loaded, Generation> {
        let (found, generation) = self.store.look(key.hash, key.key);
        let hit = found.ok_or(generation)?;
        if may_serve_peers && self.is_doubtful_copy(key, &hit) {
            return Err(generation);
        }
        let is_due = hit.is_due;
        let loaded = self.loaded(hit);
        match is_due && self.phase(&loaded.lifetime) == Phase::Stale {
            true => Err(generation),
            false => Ok(loaded),
        }
    }

    /// Runs a flight on a loader thread. The caller waits for it like a waiter.
    #[cold]
    pub(super) fn lead_on_pool(
        self: &Arc<Self>,
        from: &LoadFrom,
        leader: Leader<'_, Result<Loaded>>,
        ctx: &Context,
        key: &LoadKey<'_>,
        mut begun: LoadBegin,
        PoolJob { job_for, permit }: PoolJob,
    ) -> Result<Waiter<Result<Loaded>>> {
        begun.on_pool = true;
        let waiter = leader.detach();
        let (hash, id) = (key.hash, waiter.id());
        let submitted = {
            let (group, from, ctx) = (self.clone(), from.clone(), ctx.clone());
            let key = String::from(key.key);
            self.pool.submit(job_for, move |busy| {
                let _held = permit.map(nesting::hold_permit);
                let key = LoadKey { hash, key: &key };
                let leader = from.flights(&group).lead(hash.get(), id);
                let result = group.lead(&from, leader, Some(busy), &ctx, &key, &mut begun);
                (group, from, ctx, result)
            })
        };
        if let Err(refused) = submitted {
            // The waiters join again. One that has time left, or needs no loader thread, leads the
            // next flight.
            from.flights(self).lead(hash.get(), id).refuse();
            return Err(refused);
        }
        Ok(waiter)
    }

    /// Runs a flight, on the loader thread of `busy` if there is one, and publishes the result.
    /// Returns `None` if the work failed, and `ctx` has ended or only the owner was asked: the flight is
    /// then abandoned, because its waiters may have time left, or other peers to ask.
    ///
    /// If the getter, a peer, the picker or the admission function panics, the leader is dropped, and
    /// the waiters get [`ErrorKind::GetterPanicked`]. They do not load again one after the other, as
    /// they do after [`abandon`](Leader::abandon).
    pub(in crate::group) fn lead(
        self: &Arc<Self>,
        from: &LoadFrom,
        leader: Leader<'_, Result<Loaded>>,
        // This parameter comes after the leader, so that a panic drops it first. Then the thread is idle
        // before the waiters wake up: see `BusyGuard`.
        busy: Option<BusyGuard<'_>>,
        ctx: &Context,
        key: &LoadKey<'_>,
        begun: &mut LoadBegin,
    ) -> Option<Result<Loaded>> {
        let dependency = match recursion::work_for(leader.id()) {
            Ok(dependency) => dependency,
            Err(cycle) => {
                leader.abandon();
                return Some(Err(cycle));
            }
        };
        begun.set_context(ctx);
        let ctx = ctx.of_load();
        let watch = self.watch(from, key, begun);
        let mut evicted = EvictedEntries::default();
        let result = self.run_work(from, ctx, key, begun, &mut evicted);
        if let Some(watch) = watch {
            watch.end(&result, ctx);
        }
        let mut result = Some(result);
        if let Some(Err(error)) = &result {
            if error.kind() == ErrorKind::NotFound {
                evicted = self.remove_vanished(from, key, begun);
            }
            if ctx.err().is_some() || matches!(from, LoadFrom::OwnerAlone(_)) {
                // The drop of an error may run user code, for which the loader thread counts as busy.
                result = None;
            }
        }
        // The listener runs after the result is published, so that a slow or panicking listener does
        // not affect the waiters. The loader thread counts as busy until the listener returns.
        let notifies = self.eviction_listener.is_some() && !evicted.is_empty();
        let _busy = busy.filter(|_| notifies);
        drop(dependency);
        match &result {
            Some(result) => leader.finish(result),
            None => leader.abandon(),
        }
        self.notify_and_drop(&mut evicted);
        result
    }

    /// The work of a flight: the getter, or requests to peers. The store's victims go to `evicted`.
    #[inline]
    fn run_work(
        self: &Arc<Self>,
        from: &LoadFrom,
        ctx: &Context,
        key: &LoadKey<'_>,
        begun: &LoadBegin,
        evicted: &mut EvictedEntries,
    ) -> Result<Loaded> {
        match from {
            LoadFrom::Getter(placement) => self.run_getter(*placement, ctx, key, begun, evicted),
            LoadFrom::GetterAfterPeers => {
                self.run_getter(Placement::Fallback, ctx, key, begun, evicted)
            }
            LoadFrom::Peers(owner) => self.load_from_peers(owner, ctx, key, begun, evicted),
            LoadFrom::OwnerAlone(owner) => self.load_from_owner(owner, ctx, key, begun, evicted),
        }
    }
}

/// Publishes a value that was cached when the flight began.
pub(in crate::group) fn finish_with(leader: Leader<'_, Result<Loaded>>, cached: Loaded) -> Loaded {
    leader.finish(&Ok(cached.clone()));
    cached
}

/// Ends the flight of a load that this error keeps from beginning, and returns the error.
pub(in crate::group) fn give_up(leader: Leader<'_, Result<Loaded>>, error: Error) -> Error {
    match error.kind() {
        ErrorKind::Overloaded => leader.refuse(),
        _ => leader.abandon(),
    }
    error
}
