//! Gets of values that are near the end of their time to live, or past it: in the background a newer value
//! is loaded, or the old one is served if that fails or takes too long.

use std::iter;
use std::time::{Duration, Instant};

use super::client_load::ClientWaiter;
use super::failed_loads::{FailedLoad, RETRY_AFTER};
use super::flight::{LoadFrom, PoolJob, finish_with, give_up};
use super::populate::Placement;
use super::rejoin::wait_by;
use crate::byteview::ByteView;
use crate::clock::Tick;
use crate::context::Context;
use crate::error::{Error, ErrorKind, Result};
use crate::group::freshness::Phase;
use crate::group::lifetime::Lifetime;
use crate::group::{Inner, LoadBegin, LoadKey, Loaded};
use crate::panics::caught;
use crate::peers::{PeerResponse, Route};
use crate::singleflight::{ForgetCount, Joined, Leader, Waiter};
use crate::store::{EvictedEntries, Hit};
use crate::sync::Arc;
use crate::threads::loader_pool::JobFor;
use crate::threads::nesting;

impl Inner {
    /// The value for a get that found a [due](Hit::is_due) one. It is looked up again, for its times.
    #[cold]
    pub(in crate::group) fn get_found_due(
        self: &Arc<Self>,
        ctx: &Context,
        key: &LoadKey<'_>,
    ) -> Result<ByteView> {
        let loaded = match self.store.look(key.hash, key.key).0 {
            Some(hit) => self.get_due(ctx, key, hit),
            None => self.load(ctx, key, None),
        };
        loaded.map(|loaded| loaded.view)
    }

    /// The value for a caller of this process that found a [due](Hit::is_due) one.
    #[cold]
    pub(in crate::group) fn get_due(
        self: &Arc<Self>,
        ctx: &Context,
        key: &LoadKey<'_>,
        hit: Hit,
    ) -> Result<Loaded> {
        let old = self.loaded(hit);
        match self.phase(&old.lifetime) {
            Phase::Fresh => Ok(old),
            Phase::Refresh => {
                self.refresh(key);
                Ok(old)
            }
            Phase::Stale => self.load_or_stale(ctx, key, old, |ctx, limit| match limit {
                None => self.load(ctx, key, None),
                Some(limit) => self.load_softly(limit, &self.source_of(key), JobFor::Own, ctx, key),
            }),
        }
    }

    /// The value for a peer, if a [due](Hit::is_due) one was found. Another owner of the key is not asked
    /// for a newer one: a request of a peer causes no request to another peer.
    #[cold]
    pub(in crate::group) fn serve_due(
        self: &Arc<Self>,
        ctx: &Context,
        key: &LoadKey<'_>,
        hit: Hit,
        mut waiter: Option<&mut dyn ClientWaiter>,
    ) -> Result<Loaded> {
        let old = self.loaded(hit);
        match self.phase(&old.lifetime) {
            Phase::Fresh => Ok(old),
            Phase::Refresh => {
                self.refresh_own(key);
                Ok(old)
            }
            Phase::Stale => {
                self.load_or_stale(ctx, key, old, |ctx, limit| match limit {
                    None => {
                        let waiter = waiter.as_mut().map(|waiter| &mut **waiter as _);
                        self.load_for_peer(ctx, key, None, waiter)
                    }
                    Some(limit) => {
                        let from = LoadFrom::Getter(self.placement_for_peer(key));
                        // The client would not get the old value after that.
                        let left = waiter.as_ref().map_or(limit, |waiter| {
                            let by = waiter.answer_by();
                            by.saturating_duration_since(Instant::now())
                        });
                        self.load_softly(limit.min(left), &from, for_client(), ctx, key)
                    }
                })
            }
        }
    }

    /// Whether a load has to be waited for, because the value is served only if that fails. Takes no lock.
    pub(in crate::group) fn is_stale(&self, hit: &Hit) -> bool {
        hit.is_due && self.phase(&self.lifetime_of_hit(hit)) == Phase::Stale
    }

    /// Starts a load in the background if the value that a peer gets should be refreshed.
    #[inline]
    pub(in crate::group) fn refresh_if_due(self: &Arc<Self>, key: &LoadKey<'_>, hit: &Hit) {
        if hit.is_due && self.phase(&self.lifetime_of_hit(hit)) == Phase::Refresh {
            // The value is good, whether or not the picker panics.
            caught(|| self.refresh_own(key));
        }
    }

    fn lifetime_of_hit(&self, hit: &Hit) -> Lifetime {
        Lifetime::of_entry(hit.begun.tick(), hit.expires, self.freshness.allowance())
    }

    pub(in crate::group) fn loaded(&self, hit: Hit) -> Loaded {
        Loaded {
            lifetime: self.lifetime_of_hit(&hit),
            view: hit.view,
            by_peer: false,
        }
    }

    pub(super) fn lifetime_of(&self, sent: Tick, response: &PeerResponse) -> Lifetime {
        Lifetime::of_response(sent, response, self.freshness.allowance())
    }

    pub(in crate::group) fn phase(&self, lifetime: &Lifetime) -> Phase {
        self.freshness.phase(lifetime, self.store.clock().now())
    }

    /// The result of `load`, or the old value if that fails or has failed lately. `load` gets the soft
    /// time-out. If the old value is over by then, it is called again without one.
    fn load_or_stale(
        &self,
        ctx: &Context,
        key: &LoadKey<'_>,
        old: Loaded,
        mut load: impl FnMut(&Context, Option<Duration>) -> Result<Loaded>,
    ) -> Result<Loaded> {
        let clock = self.store.clock();
        if self.failed_loads.recent(key, clock).is_none() {
            let with_stale = self.with_stale_served(ctx, iter::once(*key));
            match load(&with_stale, self.freshness.soft_timeout) {
                Err(error) if is_failure(error.kind()) => {
                    if old.lifetime.is_over(clock) {
                        return match is_impatience(&error, ctx) {
                            true => load(ctx, None),
                            false => Err(error),
                        };
                    }
                    log::debug!("group {}: a stale value is served: {error}", self.name);
                }
                result => return result,
            }
        }
        self.counters.add(|loads| &loads.stale_hits);
        Ok(old)
    }

    /// Loads on a loader thread, and waits for it no longer than `limit`.
    fn load_softly(
        self: &Arc<Self>,
        limit: Duration,
        from: &LoadFrom,
        job_for: JobFor,
        ctx: &Context,
        key: &LoadKey<'_>,
    ) -> Result<Loaded> {
        let _lent = nesting::lend_permit(ctx);
        let load = self.start_softly(from, job_for, ctx, key)?;
        load.end(ctx, Instant::now().checked_add(limit))
    }

    /// Starts a load on a loader thread, or joins one under way.
    pub(in crate::group) fn start_softly(
        self: &Arc<Self>,
        from: &LoadFrom,
        job_for: JobFor,
        ctx: &Context,
        key: &LoadKey<'_>,
    ) -> Result<SoftLoad> {
        let waiter = match from.flights(self).join(key.hash.get(), key.key) {
            Joined::Waiter(waiter) => waiter,
            Joined::Leader(leader, epoch, forgets) => {
                match self.begin(from, (epoch, forgets), key, None) {
                    Err(cached) => {
                        return Ok(SoftLoad::Ended(Ok(finish_with(leader, cached))));
                    }
                    Ok(mut begun) => {
                        let permit = match self.permit_lead(from, &mut begun, ctx, key, None) {
                            Ok(permit) => permit,
                            Err(refused) => return Err(give_up(leader, refused)),
                        };
                        let job = PoolJob { job_for, permit };
                        self.lead_on_pool(from, leader, ctx, key, begun, job)?
                    }
                }
            }
        };
        Ok(SoftLoad::Running(waiter))
    }

    /// Loads a value newer than the cached one, or joins a load under way.
    ///
    /// `fits` decides whether a cached value is new enough: that of another load, which ended after the
    /// look-up of this call.
    pub(in crate::group) fn load_newer(
        self: &Arc<Self>,
        ctx: &Context,
        key: &LoadKey<'_>,
        fits: impl Fn(&Lifetime) -> bool,
    ) -> Result<Loaded> {
        self.check_failed_loads(key)?;
        let from = self.source_of(key);
        self.lead_or_join(&from, from.executor(ctx), ctx, key, |(_, forgets)| {
            let begun = self.begin_newer(key, forgets, &fits)?;
            self.counters.add(|loads| &loads.loads_deduped);
            Ok(begun)
        })
    }

    /// Begins the work of a flight, unless a cached value is new enough.
    pub(super) fn begin_newer(
        &self,
        key: &LoadKey<'_>,
        forgets: ForgetCount,
        fits: impl Fn(&Lifetime) -> bool,
    ) -> Result<LoadBegin, Loaded> {
        let (found, generation) = self.store.look(key.hash, key.key);
        let found = found.filter(|hit| !self.is_doubtful_copy(key, hit));
        let found = found.map(|hit| self.loaded(hit));
        match found.filter(|loaded| fits(&loaded.lifetime)) {
            Some(newer) => Err(newer),
            None => Ok(LoadBegin {
                replaces: true,
                ..self.load_begin(generation, forgets)
            }),
        }
    }

    /// Starts a load of a newer value, unless one is under way or failed lately.
    pub(in crate::group) fn refresh(self: &Arc<Self>, key: &LoadKey<'_>) {
        match self.verified_route(self.peers.route(&self.name, key.key)) {
            Route::Own => {
                self.start_refresh(key, &LoadFrom::Getter(Placement::Main), JobFor::Own);
            }
            Route::Peer(peer) => {
                self.start_refresh(key, &LoadFrom::OwnerAlone(peer), JobFor::Own);
            }
            // The owner does not answer. The old value is used until it is over.
            Route::Fallback => {}
        }
    }

    fn refresh_own(self: &Arc<Self>, key: &LoadKey<'_>) {
        if matches!(self.peers.route(&self.name, key.key), Route::Own) {
            self.start_refresh(key, &LoadFrom::Getter(Placement::Main), for_client());
        }
    }

    fn start_refresh(self: &Arc<Self>, key: &LoadKey<'_>, from: &LoadFrom, job_for: JobFor) {
        let Some((leader, begun)) = self.begin_refresh(key, from) else {
            return;
        };
        let ctx = Context::background().with_timeout(self.max_load_wait.max(SHORTEST_REFRESH));
        // Refused if no loader thread or no permit is free: a later get starts it.
        match self.permit_refresh(from) {
            Err(_) => leader.abandon(),
            Ok(permit) => {
                let job = PoolJob { job_for, permit };
                if self
                    .lead_on_pool(from, leader, &ctx, key, begun, job)
                    .is_ok()
                {
                    self.counters.add(|loads| &loads.refreshes);
                }
            }
        }
    }

    /// Begins the flight of a refresh; `None` if one is under way, or failed or succeeded lately.
    pub(super) fn begin_refresh(
        &self,
        key: &LoadKey<'_>,
        from: &LoadFrom,
    ) -> Option<(Leader<'_, Result<Loaded>>, LoadBegin)> {
        if self.failed_loads.recent(key, self.store.clock()).is_some() {
            return None;
        }
        let Joined::Leader(leader, _, forgets) = from.flights(self).join(key.hash.get(), key.key)
        else {
            return None;
        };
        // Another refresh may have ended between the look-up and the start of this flight.
        let (found, generation) = self.store.look(key.hash, key.key);
        let found = found.map(|hit| self.loaded(hit));
        if !found.is_some_and(|old| self.phase(&old.lifetime) != Phase::Fresh) {
            leader.abandon();
            return None;
        }
        Some((leader, self.load_begin(generation, forgets)))
    }

    /// Watches a load that begins now.
    pub(in crate::group) fn watch<'a>(
        &'a self,
        from: &'a LoadFrom,
        key: &LoadKey<'a>,
        begun: &LoadBegin,
    ) -> Option<LoadWatch<'a>> {
        self.freshness.remembers_failures().then(|| LoadWatch {
            group: self,
            from,
            key: *key,
            begun: *begun,
            error: None,
            has_succeeded: false,
        })
    }

    /// Removes the value of a key that does not exist any more, unless another load or a removal came
    /// between.
    pub(in crate::group) fn remove_vanished(
        &self,
        from: &LoadFrom,
        key: &LoadKey<'_>,
        begun: &LoadBegin,
    ) -> EvictedEntries {
        let forgets = || from.flights(self).forgets(key.hash.get()) != begun.forgets;
        let store = &self.store;
        store.remove_unless_changed(key.hash, key.key, begun.generation, &forgets)
    }
}

/// A load whose caller waits for it no longer than a soft time-out.
pub(in crate::group) enum SoftLoad {
    Ended(Result<Loaded>),
    Running(Waiter<Result<Loaded>>),
}

impl SoftLoad {
    /// Waits until the load or `ctx` has ended, no longer than until the given time.
    pub(in crate::group) fn end(self, ctx: &Context, until: Option<Instant>) -> Result<Loaded> {
        match self {
            SoftLoad::Ended(result) => result,
            SoftLoad::Running(waiter) => {
                let result = wait_by(&waiter, || waiter.wait_until(ctx, until));
                result.unwrap_or_else(|_| Err(ErrorKind::DeadlineExceeded.into()))
            }
        }
    }
}

/// Records the outcome of a load when it is dropped: a panic is a failure, too.
pub(in crate::group) struct LoadWatch<'a> {
    group: &'a Inner,
    from: &'a LoadFrom,
    key: LoadKey<'a>,
    begun: LoadBegin,
    error: Option<Error>,
    has_succeeded: bool,
}

impl LoadWatch<'_> {
    /// `ctx` is the context of the load. An error after its end comes from the caller's deadline or
    /// cancellation, even if a getter returned it. Other callers do not get it.
    pub(in crate::group) fn end(mut self, result: &Result<Loaded>, ctx: &Context) {
        match result {
            Err(error) => {
                let ended = ctx.err().filter(|_| !error.is_not_found());
                self.error = Some(ended.unwrap_or_else(|| error.clone()));
            }
            Ok(loaded) => {
                self.has_succeeded = true;
                if self.from.asks_peer() && self.group.phase(&loaded.lifetime) != Phase::Fresh {
                    // The owner is still loading a newer value, or has failed to.
                    let pause = loaded.lifetime.fresh_time() / 16;
                    self.record(pause.clamp(SHORTEST_PAUSE, LONGEST_PAUSE), None);
                } else {
                    self.group.failed_loads.forget(&self.key);
                }
            }
        }
    }

    fn record(&self, wait: Duration, error: Option<Error>) {
        let attempt = FailedLoad {
            until: self.group.store.clock().now().after(wait),
            error,
        };
        let flights = self.from.flights(self.group);
        let is_forgotten = || flights.forgets(self.key.hash.get()) != self.begun.forgets;
        self.group
            .failed_loads
            .record(&self.key, attempt, is_forgotten);
    }
}

impl Drop for LoadWatch<'_> {
    fn drop(&mut self) {
        if self.has_succeeded {
            return;
        }
        let (group, error) = (self.group, self.error.take());
        let freshness = &group.freshness;
        let kind = error.as_ref().map(Error::kind);
        let lasting = match kind {
            Some(ErrorKind::NotFound) => freshness.negative_ttl,
            Some(kind) if is_of_getter(kind) => freshness.error_ttl,
            _ => None,
        };
        let key = &self.key;
        let has_value = || {
            freshness.can_refresh()
                && (freshness.has_stale_if_error() && group.failed_loads.contains(key)
                    || group.store.look(key.hash, key.key).0.is_some())
        };
        if kind != Some(ErrorKind::NotFound) && has_value() {
            let shown = freshness.has_stale_if_error() && kind.is_some_and(is_of_getter);
            self.record(RETRY_AFTER, error.filter(|_| shown));
        } else if let Some(ttl) = lasting.filter(|_| !self.from.asks_peer()) {
            self.record(ttl, error);
        }
    }
}

/// The job of a refresh that a peer's request causes, while the peer gets the old value. It does not begin if
/// all loader threads that clients may have are busy.
fn for_client() -> JobFor {
    JobFor::Client(None, Instant::now())
}

/// Whether an old value is served instead of this error.
pub(in crate::group) fn is_failure(kind: ErrorKind) -> bool {
    !matches!(
        kind,
        ErrorKind::NotFound | ErrorKind::Cancelled | ErrorKind::RecursiveLoad
    )
}

/// Whether the wait for a load ended only because an old value is there: the caller has time left.
pub(in crate::group) fn is_impatience(error: &Error, ctx: &Context) -> bool {
    let kinds = [ErrorKind::DeadlineExceeded, ErrorKind::Overloaded];
    kinds.contains(&error.kind()) && ctx.err().is_none()
}

/// Whether this is an error of the getter. Others arise where the getter did not run to its end.
fn is_of_getter(kind: ErrorKind) -> bool {
    !matches!(
        kind,
        ErrorKind::DeadlineExceeded
            | ErrorKind::Cancelled
            | ErrorKind::Overloaded
            | ErrorKind::Loading
            | ErrorKind::Peer
            | ErrorKind::UnknownGroup
            | ErrorKind::RecursiveLoad
            | ErrorKind::Io
    )
}

const SHORTEST_REFRESH: Duration = Duration::from_secs(1);

/// The pauses before a copy's owner is asked again for a newer value.
const SHORTEST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
