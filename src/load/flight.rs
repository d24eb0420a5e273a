//! One load for many callers: who leads, who waits, and on which thread the work runs.

use super::keep::Keep;
use super::{Flights, Loaded, Loader, Loading};
use crate::context::Context;
use crate::error::{ErrorKind, Result};
use crate::getter::LoadSink;
use crate::loader_pool::Turn;
use crate::peers::{PeerResponse, ProtoGetter};
use crate::recursion;
use crate::singleflight::{Joined, Lead, Ticket, Waited};
use crate::store::{EvictedEntries, Generation, KeyHash};
use crate::sync::Arc;

/// On which thread a flight's work runs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum RunOn {
    /// The caller's: it can wait as long as it takes, or the work itself ends by its deadline.
    Caller,
    /// A loader thread, so that the caller can leave before the work is done.
    LoaderPool,
}

impl RunOn {
    pub(super) fn for_getter(ctx: &Context) -> RunOn {
        if ctx.has_deadline_or_cancel() {
            RunOn::LoaderPool
        } else {
            RunOn::Caller
        }
    }

    /// A peer that ends its exchanges by the deadline can be asked from the caller's thread.
    pub(super) fn for_peer(ctx: &Context, peer: &dyn ProtoGetter) -> RunOn {
        if ctx.cancellable() || (ctx.has_deadline_or_cancel() && !peer.honors_deadline()) {
            RunOn::LoaderPool
        } else {
            RunOn::Caller
        }
    }
}

/// The duty to land a flight, and the loader thread that is busy with it.
///
/// It must be finished or abandoned. It is dropped without only if code of the user's panics on the
/// way: getter, peer, picker, admission. The waiters are told at once then; an abandoned flight
/// would have them try the same in turn.
struct Landing<'a> {
    turn: Option<Turn<'a>>,
    lead: Option<Lead<'a, Result<Loaded>>>,
}

impl<'a> Landing<'a> {
    fn new(turn: Option<Turn<'a>>, lead: Lead<'a, Result<Loaded>>) -> Self {
        let lead = Some(lead);
        Landing { turn, lead }
    }

    fn finish(mut self, result: &Result<Loaded>) {
        self.land(Some(result));
    }

    fn abandon(mut self) {
        self.land(None);
    }

    #[inline]
    fn land(&mut self, result: Option<&Result<Loaded>>) {
        // The thread is free before the news is out: see `Turn`.
        drop(self.turn.take());
        if let (Some(lead), Some(result)) = (self.lead.take(), result) {
            lead.finish(result);
        }
    }
}

impl Drop for Landing<'_> {
    fn drop(&mut self) {
        if self.lead.is_some() {
            self.land(Some(&Err(ErrorKind::GetterPanicked.into())));
        }
    }
}

/// The two kinds of flight.
#[derive(Clone)]
pub(super) enum Flight {
    Getter {
        keep: Keep,
        /// Whether it carries on a load that is counted already, as a peer flight.
        counted: bool,
    },
    Peer(Route),
}

/// Which peer a flight asks first, and where its work runs.
#[derive(Clone)]
pub(super) struct Route {
    pub(super) owner: Arc<dyn ProtoGetter>,
    pub(super) run_on: RunOn,
}

impl Flight {
    fn is_counted(&self) -> bool {
        matches!(self, Flight::Getter { counted: true, .. })
    }

    fn map<'a>(&self, loader: &'a Loader) -> &'a Flights {
        match self {
            Flight::Getter { .. } => &loader.getter_flights,
            Flight::Peer(_) => &loader.peer_flights,
        }
    }
}

impl Loader {
    #[inline]
    pub(super) fn load_here(
        self: &Arc<Self>,
        ctx: &Context,
        hash: KeyHash,
        key: &str,
        keep: Keep,
        run_on: RunOn,
    ) -> Result<Loaded> {
        let flight = Flight::Getter {
            keep,
            counted: false,
        };
        self.fly(&flight, ctx, hash, key, run_on)
    }

    /// Leads or joins a flight until there is a result or `ctx` ends.
    pub(super) fn fly(
        self: &Arc<Self>,
        flight: &Flight,
        ctx: &Context,
        hash: KeyHash,
        key: &str,
        run_on: RunOn,
    ) -> Result<Loaded> {
        loop {
            if let Some(ended) = ctx.err() {
                return Err(ended);
            }
            let landed = match flight.map(self).join(hash.get(), key) {
                Joined::Follower(ticket) => follow(&ticket, ctx),
                Joined::Leader(lead) => {
                    let generation = match self.second_look(hash, key) {
                        Ok(loaded) => {
                            let result = Ok(loaded);
                            lead.finish(&result);
                            return result;
                        }
                        Err(generation) => generation,
                    };
                    if !flight.is_counted() {
                        self.counters.add(|loads| &loads.loads_deduped);
                    }
                    let loading = Loading {
                        hash,
                        key,
                        generation,
                    };
                    match run_on {
                        RunOn::Caller => {
                            let _edge = recursion::wait_for(lead.id())?;
                            self.work(flight, Landing::new(None, lead), ctx, loading)
                        }
                        RunOn::LoaderPool => self.work_on_pool(flight, lead, ctx, loading),
                    }
                }
            };
            if let Some(result) = landed {
                return result;
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
    #[inline]
    fn second_look(&self, hash: KeyHash, key: &str) -> Result<Loaded, Generation> {
        self.store.peek(hash, key).map(|hit| Loaded {
            view: hit.view,
            expires: hit.expires,
        })
    }

    /// Has a loader thread do a flight's work, and waits for it as others do.
    #[cold]
    fn work_on_pool(
        self: &Arc<Self>,
        flight: &Flight,
        lead: Lead<'_, Result<Loaded>>,
        ctx: &Context,
        loading: Loading<'_>,
    ) -> Option<Result<Loaded>> {
        let (ticket, lead) = (lead.ticket(), lead.into_owned());
        let submitted = {
            let (loader, flight) = (self.clone(), flight.clone());
            let (ctx, key) = (ctx.clone(), String::from(loading.key));
            let Loading {
                hash, generation, ..
            } = loading;
            // If there is no thread, the lead is dropped with the closure: followers with time, or
            // with a thread of their own to spend, take over.
            self.pool.submit(move |turn| {
                let landing = Landing::new(Some(turn), lead);
                let loading = Loading {
                    hash,
                    key: &key,
                    generation,
                };
                loader.work(&flight, landing, &ctx, loading);
            })
        };
        match submitted {
            Ok(()) => follow(&ticket, ctx),
            Err(refused) => Some(Err(refused)),
        }
    }

    /// Does a flight's work and lands it. `None` if the work stopped because `ctx` ended: then the
    /// flight is abandoned rather than failed, for its waiters may have time left.
    #[inline]
    fn work(
        self: &Arc<Self>,
        flight: &Flight,
        mut landing: Landing<'_>,
        ctx: &Context,
        loading: Loading<'_>,
    ) -> Option<Result<Loaded>> {
        let working = landing
            .lead
            .as_ref()
            .map(|lead| recursion::work_for(lead.id()));
        // Given down and filled there: by value it would be copied at each return.
        let mut gone = EvictedEntries::default();
        let result = match flight {
            Flight::Getter { keep, .. } => self.load_by_getter(*keep, ctx, loading, &mut gone),
            Flight::Peer(route) => self.load_from_peers(route, ctx, loading, &mut gone),
        };
        if result.is_err() && ctx.err().is_some() {
            landing.abandon();
            return None;
        }
        // The listener comes after the landing: however long it takes, and if it panics, that is
        // no matter of those who wait for the value. This thread is busy until it is through.
        let turn = match self.eviction_listener {
            Some(_) if !gone.is_empty() => landing.turn.take(),
            _ => None,
        };
        landing.finish(&result);
        drop(working);
        self.bury(gone);
        drop(turn);
        Some(result)
    }

    #[inline]
    fn load_by_getter(
        &self,
        keep: Keep,
        ctx: &Context,
        loading: Loading<'_>,
        gone: &mut EvictedEntries,
    ) -> Result<Loaded> {
        let mut sink = LoadSink::new(loading.key, self.max_value_size);
        let (view, ttl) = self.run_getter(ctx, loading.key, &mut sink)?;
        let expires = self.keep(keep, loading, view, ttl, gone);
        // Not before: what was written as words a moment ago is read as pairs of them here.
        let view = sink.into_value()?;
        Ok(Loaded { view, expires })
    }

    /// Asks the peers for a key, and runs the getter if none answers.
    #[inline(never)]
    fn load_from_peers(
        self: &Arc<Self>,
        route: &Route,
        ctx: &Context,
        loading: Loading<'_>,
        gone: &mut EvictedEntries,
    ) -> Result<Loaded> {
        if let Some(answer) = self.ask_peers(route, ctx, loading.key) {
            let PeerResponse { value, ttl, .. } = answer?;
            let mut view = value;
            let expires = self.keep(Keep::Hot, loading, &mut view, ttl, gone);
            return Ok(Loaded { view, expires });
        }
        // On a loader thread already, the callers can leave this flight; the getter needs no other
        // thread.
        let run_on = match route.run_on {
            RunOn::LoaderPool => RunOn::Caller,
            RunOn::Caller => RunOn::for_getter(ctx),
        };
        let flight = Flight::Getter {
            keep: Keep::Borrowed,
            counted: true,
        };
        self.fly(&flight, ctx, loading.hash, loading.key, run_on)
    }
}

/// Waits for somebody else's flight, until it is over or `ctx` is. `None` if it is over and the
/// caller must ask again.
fn follow(ticket: &Ticket<Result<Loaded>>, ctx: &Context) -> Option<Result<Loaded>> {
    let _edge = match recursion::wait_for(ticket.id()) {
        Ok(edge) => edge,
        Err(circle) => return Some(Err(circle)),
    };
    match ticket.wait(ctx) {
        // A caller with a deadline asked a peer in vain and then found no loader thread. This one
        // needs none.
        Waited::Landed(Err(error))
            if error.kind() == ErrorKind::Overloaded && !ctx.has_deadline_or_cancel() =>
        {
            None
        }
        Waited::Landed(result) => Some(result),
        Waited::Left(ended) => Some(Err(ended)),
        // The leader ran out of time, or had no thread. Whoever comes first leads anew.
        Waited::Abandoned => None,
    }
}
