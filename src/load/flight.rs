//! One load for many callers: who leads, who waits, and on which thread the work runs.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use super::keep::Keep;
use super::{Flights, Loaded, Loader};
use crate::context::Context;
use crate::error::{ErrorKind, Result};
use crate::loader_pool::Turn;
use crate::peers::{PeerPicker, PeerResponse, ProtoGetter};
use crate::recursion;
use crate::singleflight::{Joined, Lead, Waited};
use crate::store::{Generation, Graveyard, Hash};
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
        if ctx.can_end() {
            RunOn::LoaderPool
        } else {
            RunOn::Caller
        }
    }

    /// A peer that ends its exchanges by the deadline can be asked from the caller's thread.
    pub(super) fn for_peer(ctx: &Context, peer: &dyn ProtoGetter) -> RunOn {
        if ctx.cancellable() || (ctx.can_end() && !peer.honors_deadline()) {
            RunOn::LoaderPool
        } else {
            RunOn::Caller
        }
    }
}

/// The duty to land a flight, and the loader thread that is busy with it.
struct Landing<'a> {
    /// Declared, and so dropped, before `lead`: see [`Turn`].
    turn: Option<Turn<'a>>,
    lead: Lead<'a, Result<Loaded>>,
}

impl Landing<'_> {
    fn finish(self, result: &Result<Loaded>) {
        drop(self.turn);
        self.lead.finish(result);
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

impl Loader {
    pub(super) fn load_here(
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
    pub(super) fn fly(
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
                            let result = Ok(loaded);
                            lead.finish(&result);
                            return result;
                        }
                        Err(generation) => generation,
                    };
                    if !flight.is_counted() {
                        self.counters.add(|loads| &loads.loads_deduped);
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
                    let (ticket, lead) = (lead.ticket(), lead.into_owned());
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
                landing.finish(&Err(ErrorKind::LoaderPanicked.into()));
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
        landing.finish(&result);
        drop(working);
        self.bury(gone);
        drop(turn);
        Some(result)
    }
}
