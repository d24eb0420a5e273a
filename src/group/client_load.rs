//! A load for a request of the server: it runs on a loader thread, and the request's thread waits for
//! it in steps. Between two steps the thread can leave, for example because its client has left.

use std::any::Any;
use std::time::Instant;

use super::flight::{LoadFrom, PoolJob, finish_with, give_up};
use super::populate::Placement;
use super::rejoin::wait_by;
use super::{Inner, LoadKey, Loaded, MissToken};
use crate::context::Context;
use crate::error::{ErrorKind, Result};
use crate::loader_pool::JobFor;
use crate::singleflight::{Joined, Waited, Waiter};
use crate::sync::Arc;

/// Decides how long a request's thread waits for a load.
pub(crate) trait ClientWaiter {
    /// Called before this request starts a load. The returned value is dropped when the load has
    /// ended.
    ///
    /// # Errors
    ///
    /// If the client may not start a load now. The request ends with this error.
    fn start(&mut self) -> Result<Option<Arc<dyn Any + Send + Sync>>>;

    /// Until when this request waits for a loader thread if all that clients may have are busy.
    fn thread_by(&self) -> Instant;

    /// The end of the next step; `None` if the thread is to leave. The load goes on without it.
    fn next_step(&mut self) -> Option<Instant>;
}

impl Inner {
    /// Leads or joins a getter flight until there is a result or `waiter` leaves. The getter runs on
    /// a loader thread even if `ctx` has no deadline.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::DeadlineExceeded`] if `waiter` left.
    pub(super) fn load_in_steps(
        self: &Arc<Self>,
        placement: Placement,
        ctx: &Context,
        key: LoadKey<'_>,
        miss: Option<MissToken>,
        waiter: &mut dyn ClientWaiter,
    ) -> Result<Loaded> {
        let from = LoadFrom::Getter(placement);
        while let Some(until) = waiter.next_step() {
            let flight = match self.getter_flights.join(key.hash.get(), key.key) {
                Joined::Waiter(flight) => flight,
                Joined::Leader(leader, epoch, forgets) => {
                    let mut begun = match self.begin(&from, (epoch, forgets), key, miss) {
                        Ok(begun) => begun,
                        Err(cached) => return Ok(finish_with(leader, cached)),
                    };
                    let kept = match waiter.start() {
                        Ok(kept) => kept,
                        Err(refused) => {
                            leader.abandon();
                            return Err(refused);
                        }
                    };
                    let permit = self.permit_lead(&from, &mut begun, ctx, key, Some(&mut *waiter));
                    let permit = match permit {
                        Ok(permit) => permit,
                        Err(refused) => return Err(give_up(leader, refused)),
                    };
                    let job_for = JobFor::Client(kept, waiter.thread_by());
                    let job = PoolJob { job_for, permit };
                    self.lead_on_pool(&from, leader, ctx, key, begun, job)?
                }
            };
            if let Some(result) = wait_until(until, &flight, ctx, waiter) {
                return result;
            }
        }
        Err(ErrorKind::DeadlineExceeded.into())
    }
}

/// Waits for a flight until it is over or `waiter` leaves. `None` if the caller has to join again.
///
/// # Errors
///
/// [`ErrorKind::DeadlineExceeded`] if `waiter` left.
pub(super) fn wait_in_steps(
    flight: &Waiter<Result<Loaded>>,
    ctx: &Context,
    waiter: &mut dyn ClientWaiter,
) -> Option<Result<Loaded>> {
    match waiter.next_step() {
        Some(until) => wait_until(until, flight, ctx, waiter),
        None => Some(Err(ErrorKind::DeadlineExceeded.into())),
    }
}

/// As [`wait_in_steps`]. The first step ends at `until`.
fn wait_until(
    mut until: Instant,
    flight: &Waiter<Result<Loaded>>,
    ctx: &Context,
    waiter: &mut dyn ClientWaiter,
) -> Option<Result<Loaded>> {
    let wait = || loop {
        match flight.wait(&ctx.with_deadline(until)) {
            Waited::Left(ended) => match waiter.next_step() {
                Some(next) if ctx.err().is_none() => until = next,
                _ => return Waited::Left(ended),
            },
            over => return over,
        }
    };
    wait_by(flight, wait).ok()
}
