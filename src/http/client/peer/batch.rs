//! Gathers concurrent requests to one peer into batches, and picks the thread that sends each.
//!
//! While few threads ask ([`BATCH_ABOVE`]), each sends a request of its own, because waiting for
//! others would cost more than it saves. Of the threads above that number, up to [`MAX_RUNNING`]
//! lead a batch each. While those batches are under way, further keys gather. When a batch ends, a
//! waiter of the oldest gathering batch leads that one. This goes on until fewer than
//! [`BATCH_UNTIL`] threads ask.
//!
//! A caller waits for at most three requests: the batches that were under way when it came, which
//! run side by side; the batch with its key; and its own request, if the batch brought no value.
//! That is why at most [`MAX_RUNNING`] batches gather. A caller that finds no room in them sends a
//! request of its own.
//!
//! [`BatchLeader`] is a guard. If the leader panics or gives up, its waiters get no result and send
//! requests of their own.

use std::collections::VecDeque;
use std::time::Instant;

use crate::sync::{Arc, Condvar, Mutex};

/// Gathers the requests of the threads that ask one peer. `T` is the result of a batch, which all
/// its waiters share; cloning it must be cheap.
pub(crate) struct Batcher<T> {
    max_keys: usize,
    /// The most bytes of the keys of one batch together.
    max_bytes: usize,
    /// How many callers send requests of their own before others are batched.
    above: usize,
    /// How many do so while batches are under way.
    until: usize,
    state: Mutex<BatcherState<T>>,
}

struct BatcherState<T> {
    /// Callers that send a request of their own, lead a batch or wait in one. Those that were
    /// refused a place in a batch are not counted.
    callers: usize,
    /// Batches under way, and those whose leader is called and has not begun.
    running: usize,
    /// Batches that have not begun, the oldest first; empty unless [`MAX_RUNNING`] are running.
    gathering: VecDeque<OpenBatch<T>>,
}

/// A batch to which keys are added. Its leader takes it out of the state.
struct OpenBatch<T> {
    group: Box<str>,
    keys: Vec<Box<str>>,
    bytes: usize,
    /// Callers that lead this batch or wait for it. Those that timed out before it began are not
    /// counted.
    members: usize,
    signal: Arc<BatchSignal<T>>,
}

/// The phase of one batch, for which its waiters wait. It has a lock of its own, so that waiters
/// that are woken together do not contend for the lock of the state.
struct BatchSignal<T> {
    /// Where the state is locked too, it is locked first.
    phase: Mutex<BatchPhase<T>>,
    changed: Condvar,
}

enum BatchPhase<T> {
    Gathering,
    /// The batch may begin: the first waiter that reads this leads it.
    Called,
    Led,
    /// Holds no result if the leader gave up.
    Done(Option<T>),
}

/// How a caller gets its value.
pub(crate) enum BatchRole<'b, T> {
    /// By a request of its own. The guard is held until the response was read. There is none if all
    /// batches are full.
    Single(Option<SingleGuard<'b, T>>),
    /// By a batch that it sends.
    Leader(BatchLeader<'b, T>),
    /// By a batch that another thread has sent: the result, and the place of the key in it. There
    /// is no result if the leader gave up.
    Waiter(Option<T>, usize),
    /// Not at all: the deadline passed.
    TimedOut,
}

impl<T: Clone> Batcher<T> {
    /// `max_keys` and `max_bytes` bound one batch. `connections` bounds the requests to the peer
    /// that are under way at a time.
    pub(crate) fn new(max_keys: usize, max_bytes: usize, connections: usize) -> Self {
        let single = connections.saturating_sub(MAX_RUNNING);
        Batcher {
            max_keys,
            max_bytes,
            above: single.clamp(1, BATCH_ABOVE),
            until: single.clamp(1, BATCH_UNTIL),
            state: Mutex::new(BatcherState {
                callers: 0,
                running: 0,
                gathering: VecDeque::new(),
            }),
        }
    }

    /// Decides how the calling thread gets the value of `key`. Waits until `deadline` if another
    /// thread sends the batch; the clock `now` is only read then.
    pub(crate) fn join(
        &self,
        group: &str,
        key: &str,
        deadline: Instant,
        now: impl FnMut() -> Instant,
    ) -> BatchRole<'_, T> {
        let mut state = self.state.lock();
        let limit = match state.running {
            0 => self.above,
            _ => self.until,
        };
        if state.callers < limit {
            state.callers += 1;
            return BatchRole::Single(Some(SingleGuard { batcher: self }));
        }
        if state.running < MAX_RUNNING {
            state.running += 1;
            state.callers += 1;
            let mut batch = OpenBatch::new(group, BatchPhase::Led);
            let place = batch.push(key);
            return self.lead(batch, place);
        }
        let Some((signal, place)) = self.gather(&mut state, group, key) else {
            return BatchRole::Single(None);
        };
        state.callers += 1;
        drop(state);
        match signal.wait(deadline, now) {
            Some(BatchPhase::Done(result)) => BatchRole::Waiter(result, place),
            Some(_) => {
                let batch = self.state.lock().take(&signal);
                self.lead(batch, place)
            }
            None => {
                self.leave(&signal);
                BatchRole::TimedOut
            }
        }
    }

    fn lead(&self, batch: OpenBatch<T>, place: usize) -> BatchRole<'_, T> {
        BatchRole::Leader(BatchLeader {
            batcher: self,
            batch,
            place,
            result: None,
        })
    }

    /// Adds the key to a batch of its group, a new one if necessary. `None` if there is no room.
    fn gather(
        &self,
        state: &mut BatcherState<T>,
        group: &str,
        key: &str,
    ) -> Option<(Arc<BatchSignal<T>>, usize)> {
        let has_room = |batch: &OpenBatch<T>| {
            *batch.group == *group
                && batch.keys.len() < self.max_keys
                && batch.bytes.saturating_add(key.len()) <= self.max_bytes
        };
        let at = match state.gathering.iter().position(has_room) {
            Some(at) => at,
            None if state.gathering.len() == MAX_RUNNING || key.len() > self.max_bytes => {
                return None;
            }
            None => {
                let batch = OpenBatch::new(group, BatchPhase::Gathering);
                state.gathering.push_back(batch);
                state.gathering.len() - 1
            }
        };
        let batch = &mut state.gathering[at];
        let place = batch.push(key);
        Some((batch.signal.clone(), place))
    }

    /// Takes a waiter that timed out off its batch. Its key stays, because the places of the others
    /// are fixed. The last waiter removes the batch.
    fn leave(&self, signal: &Arc<BatchSignal<T>>) {
        let next = {
            let mut state = self.state.lock();
            let Some(at) = state.position(signal) else {
                // The batch has begun, so its leader subtracts this caller from `callers`.
                return;
            };
            let is_called = matches!(*signal.phase.lock(), BatchPhase::Called);
            state.callers -= 1;
            state.gathering[at].members -= 1;
            if state.gathering[at].members == 0 {
                state.gathering.remove(at);
                is_called.then(|| state.call_next()).flatten()
            } else {
                // This waiter may have consumed the notification.
                is_called.then(|| signal.clone())
            }
        };
        if let Some(next) = next {
            next.changed.notify_one();
        }
    }
}

impl<T> BatcherState<T> {
    /// Takes out the batch that the calling thread leads. The state still has it: only the leader
    /// takes a batch out, and a waiter that times out removes it only if no other waiter is left.
    fn take(&mut self, signal: &Arc<BatchSignal<T>>) -> OpenBatch<T> {
        let at = self.position(signal);
        at.and_then(|at| self.gathering.remove(at))
            .expect("a batch stays until its leader takes it out")
    }

    fn position(&self, signal: &Arc<BatchSignal<T>>) -> Option<usize> {
        let mut batches = self.gathering.iter();
        batches.position(|batch| Arc::ptr_eq(&batch.signal, signal))
    }

    /// Calls the oldest batch that is not called yet, in place of one that ended. If there is one,
    /// the caller notifies one of its waiters.
    #[must_use]
    fn call_next(&mut self) -> Option<Arc<BatchSignal<T>>> {
        for next in &self.gathering {
            let mut phase = next.signal.phase.lock();
            if matches!(*phase, BatchPhase::Gathering) {
                *phase = BatchPhase::Called;
                return Some(next.signal.clone());
            }
        }
        self.running -= 1;
        None
    }
}

impl<T> OpenBatch<T> {
    fn new(group: &str, phase: BatchPhase<T>) -> Self {
        OpenBatch {
            group: group.into(),
            keys: Vec::new(),
            bytes: 0,
            members: 0,
            signal: Arc::new(BatchSignal {
                phase: Mutex::new(phase),
                changed: Condvar::new(),
            }),
        }
    }

    /// Adds the key of a new member and returns its place.
    fn push(&mut self, key: &str) -> usize {
        self.keys.push(key.into());
        self.bytes += key.len();
        self.members += 1;
        self.keys.len() - 1
    }
}

impl<T: Clone> BatchSignal<T> {
    /// Waits until the batch is done, or called: then the calling thread leads it. `None` if the
    /// deadline passes before.
    fn wait(&self, deadline: Instant, mut now: impl FnMut() -> Instant) -> Option<BatchPhase<T>> {
        let mut phase = self.phase.lock();
        loop {
            // Check for a result before reading the clock.
            if let BatchPhase::Done(result) = &*phase {
                return Some(BatchPhase::Done(result.clone()));
            }
            let left = deadline.saturating_duration_since(now());
            if left.is_zero() {
                // A called waiter leaves too: a leader without time would fail the batch.
                return None;
            }
            if let BatchPhase::Called = *phase {
                return Some(std::mem::replace(&mut *phase, BatchPhase::Led));
            }
            phase = self.changed.wait_timeout(phase, left);
        }
    }
}

/// Counts a caller that sends a request of its own.
pub(crate) struct SingleGuard<'b, T> {
    batcher: &'b Batcher<T>,
}

impl<T> Drop for SingleGuard<'_, T> {
    fn drop(&mut self) {
        self.batcher.state.lock().callers -= 1;
    }
}

/// Guard of a batch under way. Dropping it ends the batch, with the result if one was
/// [set](Self::set_result).
pub(crate) struct BatchLeader<'b, T> {
    batcher: &'b Batcher<T>,
    batch: OpenBatch<T>,
    place: usize,
    result: Option<T>,
}

impl<T> BatchLeader<'_, T> {
    /// The keys of the batch.
    pub(crate) fn keys(&self) -> Vec<&str> {
        self.batch.keys.iter().map(|key| &**key).collect()
    }

    /// The place of the leader's own key in the batch.
    pub(crate) fn place(&self) -> usize {
        self.place
    }

    /// Sets the result that the waiters get.
    pub(crate) fn set_result(&mut self, result: T) {
        self.result = Some(result);
    }
}

impl<T> Drop for BatchLeader<'_, T> {
    fn drop(&mut self) {
        // Wake the waiters before the next leader. With few processors, they run before it, and
        // those that ask again at once are added to its batch.
        *self.batch.signal.phase.lock() = BatchPhase::Done(self.result.take());
        self.batch.signal.changed.notify_all();
        let next = {
            let mut state = self.batcher.state.lock();
            state.callers -= self.batch.members;
            state.call_next()
        };
        if let Some(next) = next {
            next.changed.notify_one();
        }
    }
}

/// How many threads ask one peer by requests of their own before others are batched. A smaller
/// number is slower: a request costs about as much as two wake-ups. Measured on two processors that
/// ran both peers. One under loom.
const BATCH_ABOVE: usize = if cfg!(larder_loom) { 1 } else { 16 };

/// How many threads do so while batches are under way. The number is smaller, because the waiters of a
/// batch that just ended are missing for a moment, and the next keys would be asked for one by one. One
/// under loom.
const BATCH_UNTIL: usize = if cfg!(larder_loom) { 1 } else { 8 };

/// The batches to one peer that are under way at a time. With two, the peer works on one while the
/// response of the other is read. One under loom, to keep the model small.
const MAX_RUNNING: usize = if cfg!(larder_loom) { 1 } else { 2 };

#[cfg(test)]
mod tests;
