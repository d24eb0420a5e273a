//! A load for a request of the server: it runs on a loader thread, and the request's thread waits for
//! it in steps. Between two steps the thread can leave, for example because its client has left.

use std::any::Any;
use std::time::Instant;

use super::flight::{LoadFrom, PoolJob, finish_with, give_up};
use super::populate::Placement;
use super::rejoin::wait_by;
use crate::context::Context;
use crate::error::{ErrorKind, Result};
use crate::group::{Inner, LoadKey, Loaded, MissToken};
use crate::singleflight::{Joined, Waited, Waiter};
use crate::sync::Arc;
use crate::threads::loader_pool::JobFor;

/// Decides how long a request's thread waits for a load.
pub(crate) trait ClientWaiter {
    /// Called before this request starts a load. The returned value is dropped when the load has
    /// ended.
    ///
    /// # Errors
    ///
    /// If the client may not start a load now. The request ends with this error.
    fn start(&mut self) -> Result<Option<Arc<dyn Any + Send + Sync>>>;

    /// The end of the wait for a loader thread, if all threads that clients may have are busy.
    fn thread_by(&self) -> Instant;

    /// The time by which the value has to be there, to reach the client in time.
    fn answer_by(&self) -> Instant;

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
        key: &LoadKey<'_>,
        miss: Option<&MissToken>,
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
                    let guard = match waiter.start() {
                        Ok(guard) => guard,
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
                    let job_for = JobFor::Client(guard, waiter.thread_by());
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

/// Waits for a flight until it is over or `waiter` leaves. `None` if the caller has to join again. A flight
/// that is over takes no step of `waiter`: several that end together cost no more steps than one.
///
/// # Errors
///
/// [`ErrorKind::DeadlineExceeded`] if `waiter` left.
pub(in crate::group) fn wait_in_steps(
    flight: &Waiter<Result<Loaded>>,
    ctx: &Context,
    waiter: &mut dyn ClientWaiter,
) -> Option<Result<Loaded>> {
    if let Some(over) = flight.poll() {
        return wait_by(flight, || over).ok();
    }
    match waiter.next_step() {
        Some(until) => wait_until(until, flight, ctx, waiter),
        None => Some(Err(ErrorKind::DeadlineExceeded.into())),
    }
}

/// Like [`wait_in_steps`]. The first step ends at `until`.
fn wait_until(
    mut until: Instant,
    flight: &Waiter<Result<Loaded>>,
    ctx: &Context,
    waiter: &mut dyn ClientWaiter,
) -> Option<Result<Loaded>> {
    let wait = || loop {
        match flight.wait_until(ctx, Some(until)) {
            Waited::Left(ended) => match waiter.next_step() {
                Some(next) if ctx.err().is_none() => until = next,
                _ => return Waited::Left(ended),
            },
            over => return over,
        }
    };
    wait_by(flight, wait).ok()
}

#[cfg(all(test, not(larder_loom)))]
mod tests {
    use super::*;
    use crate::getter::getter_fn;
    use crate::group::Group;
    use crate::peers::PickerSlot;

    /// A client whose time is over, and how often it was asked for a step.
    #[derive(Default)]
    struct Spent(usize);

    impl ClientWaiter for Spent {
        fn start(&mut self) -> Result<Option<Arc<dyn Any + Send + Sync>>> {
            Ok(None)
        }

        fn thread_by(&self) -> Instant {
            Instant::now()
        }

        fn answer_by(&self) -> Instant {
            Instant::now()
        }

        fn next_step(&mut self) -> Option<Instant> {
            self.0 += 1;
            None
        }
    }

    /// Each step reads the clock, and asks the system whether the client has left.
    #[test]
    fn result_that_is_there_takes_no_step() {
        let getter = getter_fn(|_: &Context, key, dest| Ok(dest.set_str(key)?));
        let group = Group::builder("test").make(getter, PickerSlot::default());
        group.get("key").expect("a value");
        let hash = group.inner.store.hash("key");
        let flights = &group.inner.getter_flights;
        let Joined::Leader(leader, ..) = flights.join(hash.get(), "key") else {
            panic!("no load is under way");
        };
        let Joined::Waiter(flight) = flights.join(hash.get(), "key") else {
            panic!("a load is under way");
        };
        let ctx = Context::background();
        let mut client = Spent::default();
        let mut wait = |flight| {
            let result = wait_in_steps(flight, &ctx, &mut client).expect("an end");
            (result.map_err(|error| error.kind()), client.0)
        };
        let (late, steps) = wait(&flight);
        let late = late.map(|loaded| loaded.view);
        assert_eq!((late, steps), (Err(ErrorKind::DeadlineExceeded), 1));
        let (hit, _) = group.inner.store.look(hash, "key");
        finish_with(leader, group.inner.loaded(hit.expect("it is cached")));
        let (result, steps) = wait(&flight);
        assert_eq!(result.expect("a value").view, "key");
        assert_eq!(steps, 1, "the value was there");
    }
}
