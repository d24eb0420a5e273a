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
