//! Hands jobs to the threads of the pool.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::sync::{Condvar, Mutex};

/// A queue on which idle threads sleep.
///
/// A receiver of crossbeam-channel yields its processor several times before it sleeps. On a busy machine, Linux
/// lets such a thread wait the longer for a processor when its next job comes.
pub(super) struct JobQueue<T> {
    state: Mutex<QueueState<T>>,
    changed: Condvar,
}

struct QueueState<T> {
    jobs: VecDeque<T>,
    is_closed: bool,
}

impl<T> JobQueue<T> {
    pub(super) fn new() -> JobQueue<T> {
        let state = QueueState {
            jobs: VecDeque::new(),
            is_closed: false,
        };
        JobQueue {
            state: Mutex::new(state),
            changed: Condvar::new(),
        }
    }

    pub(super) fn send(&self, job: T) {
        self.state.lock().jobs.push_back(job);
        self.changed.notify_one();
    }

    /// The next job. `None` if none comes in this time, or if none is left and the queue is closed.
    pub(super) fn receive(&self, timeout: Duration) -> Option<T> {
        let mut state = self.state.lock();
        let mut end = None;
        loop {
            if let Some(job) = state.jobs.pop_front() {
                return Some(job);
            }
            let now = Instant::now();
            let left = end
                .get_or_insert(now + timeout)
                .saturating_duration_since(now);
            if state.is_closed || left.is_zero() {
                return None;
            }
            state = self.changed.wait_timeout(state, left);
        }
    }

    /// Ends the waits of all receivers.
    pub(super) fn close(&self) {
        self.state.lock().is_closed = true;
        self.changed.notify_all();
    }
}

#[cfg(all(test, not(larder_loom)))]
mod tests {
    use super::*;
    use crate::sync::thread;

    const LONG: Duration = Duration::from_secs(600);

    #[test]
    fn jobs_are_received_in_their_order_also_after_the_close() {
        let queue = JobQueue::new();
        queue.send(1);
        queue.send(2);
        assert_eq!(queue.receive(LONG), Some(1));
        queue.close();
        assert_eq!(queue.receive(LONG), Some(2));
        assert_eq!(queue.receive(LONG), None);
    }

    #[test]
    fn job_and_close_wake_receivers_that_sleep() {
        let queue = JobQueue::new();
        thread::scope(|scope| {
            let receivers = [0, 1].map(|_| scope.spawn(|| queue.receive(LONG)));
            queue.send(7);
            queue.close();
            let mut received = receivers.map(|receiver| receiver.join().expect("no panic"));
            received.sort_unstable();
            assert_eq!(received, [None, Some(7)]);
        });
    }

    #[test]
    fn receiver_without_a_job_gives_up_after_its_time() {
        let queue = JobQueue::<()>::new();
        let begun = Instant::now();
        assert_eq!(queue.receive(Duration::from_millis(5)), None);
        assert!(begun.elapsed() >= Duration::from_millis(5));
    }
}
