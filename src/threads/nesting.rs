//! Nested calls: user code that the crate runs may call the crate again. This module records the work
//! that such a call is part of: the thread and the flight that this thread works for, the permit of its
//! getter, and how deeply notifications nest.
//!
//! A listener may call a group, which may evict, which notifies a listener. Nested calls would grow
//! the stack without a limit. So each thread runs one notification at a time and queues the
//! notifications that it causes. The outermost call runs them in a loop.
//!
//! A listener may load the evicted key again. This evicts another entry and notifies the listener
//! again, without end. So a value is not cached if it is loaded in a notification that another
//! notification caused.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::mem::ManuallyDrop;
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

use crate::context::Context;
use crate::panics::FirstPanic;
use crate::random::mix;
use crate::sync::thread_local;
use crate::threads::load_permits::{LentPermit, LoadPermit};

/// The caller that a thread works for.
#[derive(Clone, Copy)]
pub(crate) struct Origin {
    /// The thread that waits for this loader thread's work; `None` if this thread works for itself.
    thread: Option<ThreadId>,
    /// The number of nested notifications, each caused by the one before.
    depth: u8,
}

type Notification = Box<dyn FnOnce(&mut FirstPanic)>;

/// Identifies a flight of this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LoadId {
    number: u64,
    /// The address of the stripe, which numbers its flights.
    stripe: usize,
}

impl LoadId {
    pub(crate) fn new<S>(stripe: &S, number: u64) -> LoadId {
        let stripe = std::ptr::from_ref(stripe).addr();
        LoadId { number, stripe }
    }

    /// The number in the stripe.
    pub(crate) fn number(self) -> u64 {
        self.number
    }

    pub(crate) fn hash(self) -> u64 {
        mix(self.number ^ mix(self.stripe as u64))
    }
}

/// The work of a thread.
struct Nesting {
    origin: Cell<Origin>,
    /// The innermost flight that the thread works for.
    flight: Cell<Option<LoadId>>,
    /// The permit of the getter that the thread runs.
    permit: Cell<Option<LoadPermit>>,
    /// How long the thread's outermost call and the calls in its getters have waited, by [`WaitFor`].
    waited: Cell<Waits>,
    is_notifying: Cell<bool>,
    queue: RefCell<VecDeque<(Origin, Notification)>>,
}

thread_local! {
    /// Has no destructor. A thread-local value with one cannot be used by the destructors of the
    /// program's own thread-local values, and these may call a group. None is needed: guards on the
    /// stack of the thread empty the permit and the queue.
    static NESTING: ManuallyDrop<Nesting> = const {
        ManuallyDrop::new(Nesting {
            origin: Cell::new(Origin { thread: None, depth: 0 }),
            flight: Cell::new(None),
            permit: Cell::new(None),
            waited: Cell::new(NO_WAITS),
            is_notifying: Cell::new(false),
            queue: RefCell::new(VecDeque::new()),
        })
    };
}

impl Origin {
    /// The origin of work that this thread hands to another thread.
    pub(crate) fn here() -> Origin {
        let origin = NESTING.with(|nesting| nesting.origin.get());
        Origin {
            thread: Some(origin.thread()),
            ..origin
        }
    }

    pub(crate) fn thread(&self) -> ThreadId {
        self.thread.unwrap_or_else(|| thread::current().id())
    }

    /// Runs `code` with this origin.
    pub(crate) fn run(self, code: impl FnOnce()) {
        struct Outer(Origin);
        impl Drop for Outer {
            fn drop(&mut self) {
                NESTING.with(|nesting| nesting.origin.set(self.0));
            }
        }
        let _outer = Outer(NESTING.with(|nesting| nesting.origin.replace(self)));
        code();
    }
}

/// Runs `notify`, and then the notifications that it queued. If this thread already runs a
/// notification, queues `notify` instead.
pub(crate) fn run_or_queue(panic: &mut FirstPanic, notify: impl FnOnce(&mut FirstPanic) + 'static) {
    struct Outermost;
    impl Drop for Outermost {
        fn drop(&mut self) {
            let queue = NESTING.with(|nesting| {
                nesting.is_notifying.set(false);
                nesting.queue.take()
            });
            drop(queue);
        }
    }
    let mut origin = NESTING.with(|nesting| nesting.origin.get());
    origin.depth = origin.depth.saturating_add(1);
    if NESTING.with(|nesting| nesting.is_notifying.replace(true)) {
        let queued = (origin, Box::new(notify) as Notification);
        return NESTING.with(|nesting| nesting.queue.borrow_mut().push_back(queued));
    }
    let _outermost = Outermost;
    origin.run(|| notify(panic));
    let next = || NESTING.with(|nesting| nesting.queue.borrow_mut().pop_front());
    while let Some((origin, notify)) = next() {
        origin.run(|| notify(panic));
    }
}

/// Whether a value that this thread loads may be cached.
pub(crate) fn may_keep() -> bool {
    NESTING.with(|nesting| nesting.origin.get().depth < 2)
}

/// The innermost flight that this thread works for.
#[inline]
pub(crate) fn flight() -> Option<LoadId> {
    NESTING.with(|nesting| nesting.flight.get())
}

#[inline]
pub(crate) fn set_flight(flight: Option<LoadId>) {
    NESTING.with(|nesting| {
        let before = nesting.flight.replace(flight);
        if before.is_some() && flight.is_none() {
            nesting.waited.set(NO_WAITS);
        }
    });
}

/// A reason to wait. A call that has no deadline waits for each of them only for some time in all, with the calls
/// in the getters that it runs. Otherwise each of these could wait for as long.
#[derive(Clone, Copy)]
pub(crate) enum WaitFor {
    /// A permit to run a getter, or a load that got none.
    Permit,
    /// A permit for a getter to go on.
    Resume,
    /// A peer that is loading.
    Peer,
}

/// The time for each reason.
pub(crate) type Waits = [Duration; 3];

const NO_WAITS: Waits = [Duration::ZERO; 3];

/// How long this thread's call has waited, for another thread that goes on with the call.
pub(crate) fn waits() -> Waits {
    NESTING.with(|nesting| nesting.waited.get())
}

pub(crate) fn set_waits(waits: Waits) {
    NESTING.with(|nesting| nesting.waited.set(waits));
}

/// Continues after another thread that went on with this thread's call. Both have waited at the same time.
pub(crate) fn join_waits(other: Waits) {
    let own = waits();
    set_waits(std::array::from_fn(|what| own[what].max(other[what])));
}

/// Begins the waits of a call anew, unless it is one of a getter.
pub(crate) fn begin_waits() {
    NESTING.with(|nesting| {
        if nesting.flight.get().is_none() {
            nesting.waited.set(NO_WAITS);
        }
    });
}

/// The time that is left of `max` for waits of this kind.
pub(crate) fn wait_left(what: WaitFor, max: Duration) -> Duration {
    max.saturating_sub(waits()[what as usize])
}

pub(crate) fn count_wait(what: WaitFor, time: Duration) {
    let mut waits = waits();
    let sum = &mut waits[what as usize];
    *sum = sum.saturating_add(time);
    set_waits(waits);
}

/// Keeps a permit for this thread until [`release_permit`], or until the guard is dropped.
pub(crate) fn hold_permit(permit: LoadPermit) -> HeldPermit {
    NESTING.with(|nesting| nesting.permit.set(Some(permit)));
    HeldPermit
}

/// Gives back the permit that this thread [holds](hold_permit), if there is one: the getter has returned.
#[inline]
pub(crate) fn release_permit() {
    drop(take_permit());
}

#[inline]
fn take_permit() -> Option<LoadPermit> {
    NESTING.with(|nesting| nesting.permit.take())
}

/// Guard of a permit that the thread [holds](hold_permit).
#[must_use]
pub(crate) struct HeldPermit;

impl Drop for HeldPermit {
    fn drop(&mut self) {
        release_permit();
    }
}

/// [Lends](LoadPermit::lend) the permit of this thread's getter until the guard is dropped, to a call with this
/// context.
#[inline]
pub(crate) fn lend_permit(ctx: &Context) -> PermitLoan {
    PermitLoan(take_permit().map(|permit| permit.lend(ctx.deadline())))
}

/// Guard of a permit that is [lent](lend_permit).
#[must_use]
pub(crate) struct PermitLoan(Option<LentPermit>);

impl Drop for PermitLoan {
    fn drop(&mut self) {
        if let Some(lent) = &self.0 {
            let began = Instant::now();
            let left = wait_left(WaitFor::Resume, lent.longest_resume());
            let resumed = lent.resume(began + left);
            count_wait(WaitFor::Resume, began.elapsed());
            // The guard of the permit's first holder is still there, and ends this one, too.
            NESTING.with(|nesting| nesting.permit.set(Some(resumed)));
        }
    }
}

#[cfg(all(test, not(larder_loom)))]
mod tests {
    use super::*;
    use crate::threads::load_permits::{LoadClass, LoadPermits, Urgency};

    #[test]
    fn getter_lends_its_permit_and_resumes_before_other_loads() {
        let permits = LoadPermits::new(1, Duration::from_secs(20));
        let permit = permits.try_acquire(LoadClass::Own);
        let held = hold_permit(permit.expect("it is free"));
        {
            let _lent = lend_permit(&Context::background());
            let nested = permits.try_acquire(LoadClass::Own);
            let nested = hold_permit(nested.expect("it is lent"));
            let _waiting = permits.queue(LoadClass::Own, Urgency::Background);
            drop(nested);
            assert_eq!(permits.usage(), (1, 0), "it went to the waiting load");
        }
        assert_eq!(permits.usage(), (1, 0), "the getter has it again");
        release_permit();
        assert_eq!(permits.usage(), (0, 0));
        drop(held);
        assert_eq!(permits.usage(), (0, 0));
    }
}
