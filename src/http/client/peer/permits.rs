//! Bounds the requests to one peer that are under way at a time: each holds a connection.

use std::collections::VecDeque;
use std::time::Instant;

use crate::sync::{Arc, Condvar, Mutex};

/// Permits for requests, handed out in the order in which they were asked for.
pub(crate) struct Permits {
    count: usize,
    state: Mutex<PermitState>,
}

struct PermitState {
    free: usize,
    /// The waiters in their order; empty while permits are free. Each has a condition variable of its
    /// own, so that a permit wakes one thread. A waiter that was taken out of the queue has the
    /// permit.
    queue: VecDeque<Arc<Condvar>>,
}

impl Permits {
    pub(crate) fn new(count: usize) -> Self {
        Permits {
            count,
            state: Mutex::new(PermitState {
                free: count,
                queue: VecDeque::new(),
            }),
        }
    }

    /// The requests that hold a permit or wait for one.
    pub(crate) fn in_use(&self) -> usize {
        let state = self.state.lock();
        self.count - state.free + state.queue.len()
    }

    /// Waits for a permit; `None` if there was none by `deadline`. Takes a free permit without
    /// reading the clock.
    pub(crate) fn acquire(&self, deadline: Instant) -> Option<Permit<'_>> {
        self.acquire_by(deadline, Instant::now)
    }

    fn acquire_by(&self, deadline: Instant, now: impl Fn() -> Instant) -> Option<Permit<'_>> {
        let mut state = self.state.lock();
        if state.free > 0 {
            state.free -= 1;
            return Some(Permit::new(self, None));
        }
        let waiter = Arc::new(Condvar::new());
        state.queue.push_back(waiter.clone());
        loop {
            let place = state.queue.iter().position(|one| Arc::ptr_eq(one, &waiter));
            let Some(place) = place else {
                return Some(Permit::new(self, Some(now())));
            };
            let left = deadline.saturating_duration_since(now());
            if left.is_zero() {
                state.queue.remove(place);
                return None;
            }
            state = waiter.wait_timeout(state, left);
        }
    }
}

/// The right to one request. Dropping it passes the right to the first waiter, or frees it.
pub(crate) struct Permit<'p> {
    permits: &'p Permits,
    /// When the wait for it ended; `None` if there was none.
    pub(crate) waited_until: Option<Instant>,
}

impl<'p> Permit<'p> {
    fn new(permits: &'p Permits, waited_until: Option<Instant>) -> Self {
        Permit {
            permits,
            waited_until,
        }
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        let mut state = self.permits.state.lock();
        match state.queue.pop_front() {
            // Hand it to the first waiter, so that newcomers cannot barge in.
            Some(waiter) => {
                drop(state);
                waiter.notify_one();
            }
            None => state.free += 1,
        }
    }
}

#[cfg(all(test, larder_loom))]
mod loom_models;

#[cfg(all(test, not(larder_loom)))]
mod tests {
    use super::*;
    use crate::sync::eventually;
    use std::sync::mpsc;
    use std::time::Duration;

    fn later() -> Instant {
        Instant::now() + Duration::from_secs(20)
    }

    fn wait_for_waiters(permits: &Permits, count: usize) {
        eventually(|| permits.state.lock().queue.len() >= count);
    }

    #[test]
    fn waiter_that_times_out_leaves_the_queue() {
        let permits = Permits::new(1);
        let held = permits.acquire(later()).expect("one is free");
        let soon = Instant::now() + Duration::from_millis(1);
        assert!(permits.acquire(soon).is_none());
        assert!(permits.state.lock().queue.is_empty());
        drop(held);
        assert!(permits.acquire(Instant::now()).is_some());
    }

    #[test]
    fn waiters_get_permits_in_their_order() {
        let permits = Permits::new(1);
        let (sender, receiver) = mpsc::channel();
        std::thread::scope(|scope| {
            let held = permits.acquire(later()).expect("one is free");
            for number in 0..5 {
                let (permits, sender) = (&permits, sender.clone());
                scope.spawn(move || {
                    let _held = permits.acquire(later()).expect("in time");
                    sender.send(number).expect("the receiver is there");
                });
                wait_for_waiters(permits, number + 1);
            }
            drop(held);
        });
        drop(sender);
        assert_eq!(receiver.iter().collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
        assert_eq!(permits.state.lock().free, 1);
    }

    #[test]
    fn panic_releases_the_permit() {
        let permits = Permits::new(1);
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let _held = permits.acquire(later());
            panic!("in the transport");
        }));
        assert!(panicked.is_err());
        assert!(permits.acquire(Instant::now()).is_some());
    }
}
