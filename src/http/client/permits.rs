//! How many exchanges with one peer go on at once: each holds a connection.

use std::collections::VecDeque;
use std::fmt;
use std::time::{Duration, Instant};

use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::{Arc, Condvar, Mutex};

/// Permits for exchanges, handed out in the order in which they were asked for.
pub(crate) struct Permits {
    state: Mutex<State>,
}

struct State {
    free: usize,
    /// Those who wait, the first to come in front. Empty while permits are free.
    queue: VecDeque<Arc<Waiter>>,
}

/// One that waits. It has a condition of its own, so that a permit wakes one thread and not all.
#[derive(Default)]
struct Waiter {
    /// Set and read under the lock of the state.
    granted: AtomicBool,
    changed: Condvar,
}

impl Permits {
    pub(crate) fn new(count: usize) -> Self {
        Permits {
            state: Mutex::new(State {
                free: count,
                queue: VecDeque::new(),
            }),
        }
    }

    /// Waits for a permit, `patience` at most, and tells how long it took: zero if one was free.
    /// `None` if there was none in that time.
    pub(crate) fn acquire(&self, patience: Duration) -> Option<(Permit<'_>, Duration)> {
        let mut state = self.state.lock();
        if state.free > 0 {
            state.free -= 1;
            return Some((Permit { permits: self }, Duration::ZERO));
        }
        let begun = Instant::now();
        let waiter = Arc::new(Waiter::default());
        state.queue.push_back(waiter.clone());
        loop {
            let waited = begun.elapsed();
            // A permit that was granted is taken even if the time is up by now: it would be lost.
            if waiter.granted.load(Ordering::Relaxed) {
                return Some((Permit { permits: self }, waited));
            }
            let left = patience.saturating_sub(waited);
            if left.is_zero() {
                state.queue.retain(|other| !Arc::ptr_eq(other, &waiter));
                return None;
            }
            state = waiter.changed.wait_timeout(state, left);
        }
    }

    fn release(&self) {
        let mut state = self.state.lock();
        match state.queue.pop_front() {
            // The permit passes from hand to hand: who comes now finds none free, and so cannot
            // get before those who wait.
            Some(waiter) => {
                waiter.granted.store(true, Ordering::Relaxed);
                drop(state);
                waiter.changed.notify_one();
            }
            None => state.free += 1,
        }
    }
}

impl fmt::Debug for Permits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state.lock();
        f.debug_struct("Permits")
            .field("free", &state.free)
            .field("waiting", &state.queue.len())
            .finish()
    }
}

/// The right to one exchange; dropping it passes it on.
pub(crate) struct Permit<'p> {
    permits: &'p Permits,
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        self.permits.release();
    }
}

#[cfg(all(test, not(larder_loom)))]
mod tests {
    use super::*;
    use std::sync::mpsc;

    const LONG: Duration = Duration::from_secs(20);

    fn wait_for_waiters(permits: &Permits, count: usize) {
        while permits.state.lock().queue.len() < count {
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_permit_that_does_not_come_in_time_is_given_up() {
        let permits = Permits::new(1);
        let held = permits.acquire(LONG).expect("one is free");
        assert!(permits.acquire(Duration::from_millis(1)).is_none());
        assert!(permits.state.lock().queue.is_empty());
        drop(held);
        assert!(permits.acquire(Duration::ZERO).is_some());
    }

    #[test]
    fn permits_go_to_those_who_wait_in_their_order() {
        let permits = Permits::new(1);
        let (told, heard) = mpsc::channel();
        std::thread::scope(|scope| {
            let held = permits.acquire(LONG).expect("one is free");
            for number in 0..5 {
                let (permits, told) = (&permits, told.clone());
                scope.spawn(move || {
                    let _held = permits.acquire(LONG).expect("in time");
                    told.send(number).expect("heard");
                });
                wait_for_waiters(permits, number + 1);
            }
            drop(held);
        });
        drop(told);
        assert_eq!(heard.iter().collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
        assert_eq!(permits.state.lock().free, 1);
    }

    #[test]
    fn a_panic_gives_the_permit_back() {
        let permits = Permits::new(1);
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let _held = permits.acquire(LONG);
            panic!("in the transport");
        }));
        assert!(panicked.is_err());
        assert!(permits.acquire(Duration::ZERO).is_some());
    }
}
