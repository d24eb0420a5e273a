//! Which threads that ask one peer at the same time ride together, and who of them does the asking.
//!
//! While few ask ([`CROWD`]), each does so by a plain request: to wait for others would cost more than
//! is spared. Of those who come on top, up to [`MAX_RUNNING`] lead a shared exchange. While those run,
//! keys gather in batches, and when one ends, a thread of the oldest batch leads the next; so it goes
//! on until hardly anybody asks ([`FEW`]). No sockets here: only who does what when.
//!
//! A thread waits for three exchanges at most: the ones under way when it came (side by side), the
//! one that its key rides in, and its own if that brought no answer. So at most as many batches
//! gather as exchanges run; whoever finds no room asks singly.
//!
//! A shared exchange is the leader's duty, and a guard ([`Lead`]) sees that it ends: if the leader
//! fails, panics or runs out of time, those who rode with it are told so and ask singly.

use std::collections::VecDeque;
use std::fmt;
use std::time::Duration;

use crate::sync::{Arc, Condvar, Mutex, OnceLock};

/// Brings together the threads that ask one peer.
pub(crate) struct Combiner<T> {
    /// Of one batch. Small numbers: see `Traffic`, in which this lies.
    max_keys: u32,
    /// Of the keys of one batch, together.
    max_bytes: u32,
    /// How many ask before others begin to share.
    crowd: u16,
    /// How many ask before others share, while shared exchanges run.
    few: u16,
    state: Mutex<State<T>>,
}

struct State<T> {
    /// Threads that ask by a plain request, which can be a long load at the owner, so nobody ever
    /// waits for it; that lead; and that ride, or wait to.
    asking: usize,
    /// Shared exchanges under way, and those whose leader is called and has not begun.
    running: usize,
    /// Batches not begun, the oldest first; empty unless [`MAX_RUNNING`] are running.
    gathering: VecDeque<Gathering<T>>,
}

struct Gathering<T> {
    group: Box<str>,
    keys: Vec<Box<str>>,
    bytes: usize,
    /// Those who wait in it; those who left before it began do not count.
    members: usize,
    batch: Arc<Batch<T>>,
}

/// What the threads of one exchange wait at. It has a lock of its own: threads that are woken
/// together would else meet at the lock that everybody needs.
struct Batch<T> {
    /// Locked last, where the state is locked too.
    phase: Mutex<Phase>,
    changed: Condvar,
    /// Set before the phase is `Over`; empty then if the leader gave up.
    outcome: OnceLock<T>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Keys gather.
    Gathering,
    /// An exchange may begin: the first member to see this leads it.
    Called,
    /// Its leader has the keys. Set under the lock of the state, with which the keys are taken.
    Led,
    /// There is an outcome, or there will be none.
    Over,
}

/// What a thread is to do.
pub(crate) enum Turn<'c, T> {
    /// Ask by a plain request; the guard ends when it is answered.
    Alone(Alone<'c, T>),
    /// Ask by a plain request: the batches are full.
    Singly,
    /// Ask for all of the lead's keys, and finish it.
    Lead(Lead<'c, T>),
    /// Another thread has asked: what came of it, and the place of this thread's key in it.
    Told(Told<T>, usize),
    /// There was no time left.
    TooLate,
}

/// What came of a shared exchange, for those who rode in it and for who led it.
pub(crate) struct Told<T>(Arc<Batch<T>>);

impl<T> Told<T> {
    /// `None` if the leader gave up: ask singly.
    pub(crate) fn outcome(&self) -> Option<&T> {
        self.0.outcome.get()
    }
}

impl<T> Combiner<T> {
    /// `max_keys` and `max_bytes`, of keys, bound one batch. There are as many `connections`.
    pub(crate) fn new(max_keys: usize, max_bytes: usize, connections: usize) -> Self {
        let singly = connections.saturating_sub(MAX_RUNNING);
        Combiner {
            max_keys: max_keys.try_into().unwrap_or(u32::MAX),
            max_bytes: max_bytes.try_into().unwrap_or(u32::MAX),
            crowd: singly.clamp(1, CROWD) as u16,
            few: singly.clamp(1, FEW) as u16,
            state: Mutex::new(State {
                asking: 0,
                running: 0,
                gathering: VecDeque::new(),
            }),
        }
    }

    /// Decides what the calling thread does about `key`, and waits if another thread asks for it,
    /// for as long as `time_left` says when it is asked.
    pub(crate) fn join(
        &self,
        group: &str,
        key: &str,
        mut time_left: impl FnMut() -> Duration,
    ) -> Turn<'_, T> {
        let mut state = self.state.lock();
        let others = match state.running {
            0 => self.crowd,
            _ => self.few,
        };
        if state.asking < usize::from(others) {
            state.asking += 1;
            return Turn::Alone(Alone { combiner: self });
        }
        if state.running < MAX_RUNNING {
            state.running += 1;
            state.asking += 1;
            return Turn::Lead(Lead {
                combiner: self,
                batch: Batch::new(Phase::Led),
                keys: vec![key.into()],
                place: 0,
                members: 1,
            });
        }
        let Some((batch, place)) = self.gather(&mut state, group, key) else {
            return Turn::Singly;
        };
        state.asking += 1;
        drop(state);
        while let Some(phase) = batch.wait(&mut time_left) {
            if phase == Phase::Over {
                return Turn::Told(Told(batch), place);
            }
            let mut state = self.state.lock();
            if let Some(begun) = state.take(&batch) {
                *batch.phase.lock() = Phase::Led;
                return Turn::Lead(Lead {
                    combiner: self,
                    batch,
                    keys: begun.keys,
                    place,
                    members: begun.members,
                });
            }
        }
        self.leave(&batch);
        Turn::TooLate
    }

    /// A member's time is up. Its key stays, asked for in vain, since places are counted; the last
    /// member takes the batch with it.
    fn leave(&self, batch: &Arc<Batch<T>>) {
        let next = {
            let mut state = self.state.lock();
            // A batch that has begun has been taken out, and nobody counts on this member.
            let Some(at) = state.position(batch) else {
                return;
            };
            let called = *batch.phase.lock() == Phase::Called;
            state.gathering[at].members -= 1;
            state.asking -= 1;
            match state.gathering[at].members {
                0 => {
                    state.gathering.remove(at);
                    called.then(|| state.call_next()).flatten()
                }
                // This member may have swallowed the call; without another, nobody would lead.
                _ => called.then(|| batch.clone()),
            }
        };
        if let Some(next) = next {
            next.changed.notify_one();
        }
    }

    /// Puts the key into a batch of its group, a new one if need be; `None` if there is no room.
    fn gather(
        &self,
        state: &mut State<T>,
        group: &str,
        key: &str,
    ) -> Option<(Arc<Batch<T>>, usize)> {
        let (max_keys, max_bytes) = (self.max_keys as usize, self.max_bytes as usize);
        let fits = |gathering: &Gathering<T>| {
            *gathering.group == *group
                && gathering.keys.len() < max_keys
                && gathering.bytes.saturating_add(key.len()) <= max_bytes
        };
        let at = match state.gathering.iter().position(fits) {
            Some(at) => at,
            None if state.gathering.len() == MAX_RUNNING || key.len() > max_bytes => {
                return None;
            }
            None => {
                state.gathering.push_back(Gathering {
                    group: group.into(),
                    keys: Vec::new(),
                    bytes: 0,
                    members: 0,
                    batch: Batch::new(Phase::Gathering),
                });
                state.gathering.len() - 1
            }
        };
        let gathering = &mut state.gathering[at];
        gathering.keys.push(key.into());
        gathering.bytes += key.len();
        gathering.members += 1;
        Some((gathering.batch.clone(), gathering.keys.len() - 1))
    }
}

impl<T> State<T> {
    /// Takes out a batch that begins.
    fn take(&mut self, batch: &Arc<Batch<T>>) -> Option<Gathering<T>> {
        let at = self.position(batch)?;
        self.gathering.remove(at)
    }

    fn position(&self, batch: &Arc<Batch<T>>) -> Option<usize> {
        let mut batches = self.gathering.iter();
        batches.position(|gathering| Arc::ptr_eq(&gathering.batch, batch))
    }

    /// A shared exchange is over: the oldest batch that is not called yet takes its place. One of
    /// its members has to be woken.
    #[must_use]
    fn call_next(&mut self) -> Option<Arc<Batch<T>>> {
        for next in &self.gathering {
            let mut phase = next.batch.phase.lock();
            if *phase == Phase::Gathering {
                *phase = Phase::Called;
                return Some(next.batch.clone());
            }
        }
        self.running -= 1;
        None
    }
}

impl<T> Batch<T> {
    fn new(phase: Phase) -> Arc<Self> {
        Arc::new(Batch {
            phase: Mutex::new(phase),
            changed: Condvar::new(),
            outcome: OnceLock::new(),
        })
    }

    /// Waits until the batch is called or over; `None` if the time is up before. One whose time is
    /// up would lead an exchange that ends at once.
    fn wait(&self, time_left: &mut impl FnMut() -> Duration) -> Option<Phase> {
        let mut phase = self.phase.lock();
        loop {
            // Who is told an outcome does not read the clock.
            if *phase == Phase::Over {
                return Some(Phase::Over);
            }
            let left = time_left();
            if left.is_zero() {
                return None;
            }
            if *phase == Phase::Called {
                return Some(Phase::Called);
            }
            phase = self.changed.wait_timeout(phase, left);
        }
    }
}

impl<T> fmt::Debug for Combiner<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state.lock();
        f.debug_struct("Combiner")
            .field("asking", &state.asking)
            .field("running", &state.running)
            .field("gathering", &state.gathering.len())
            .finish()
    }
}

/// The right to ask by a plain request while few others ask.
pub(crate) struct Alone<'c, T> {
    combiner: &'c Combiner<T>,
}

impl<T> Drop for Alone<'_, T> {
    fn drop(&mut self) {
        self.combiner.state.lock().asking -= 1;
    }
}

/// The duty to ask for the keys of a batch. Dropping it without [`finish`](Self::finish) tells the
/// others to ask singly.
pub(crate) struct Lead<'c, T> {
    combiner: &'c Combiner<T>,
    batch: Arc<Batch<T>>,
    keys: Vec<Box<str>>,
    place: usize,
    /// Those who count on it, the leader among them.
    members: usize,
}

impl<T> Lead<'_, T> {
    /// The keys to ask for.
    pub(crate) fn keys(&self) -> &[Box<str>] {
        &self.keys
    }

    /// The place of the leader's own key among them.
    pub(crate) fn place(&self) -> usize {
        self.place
    }

    /// Tells those who ride along what came of it, and the leader itself.
    pub(crate) fn finish(self, outcome: T) -> Told<T> {
        // An error would mean that there is one already; a lead finishes once.
        let _ = self.batch.outcome.set(outcome);
        Told(self.batch.clone())
    }
}

impl<T> Drop for Lead<'_, T> {
    fn drop(&mut self) {
        // The riders are woken before the next leader. Where processors are short, they run before
        // it, and those that ask again at once find their keys a place in its exchange.
        if self.keys.len() > 1 {
            *self.batch.phase.lock() = Phase::Over;
            self.batch.changed.notify_all();
        }
        let next = {
            let mut state = self.combiner.state.lock();
            state.asking -= self.members;
            state.call_next()
        };
        if let Some(next) = next {
            next.changed.notify_one();
        }
    }
}

/// How many threads ask one peer by plain requests before others begin to share. Fewer lose by it: a
/// plain request costs about what it costs to be woken twice. Found by trying, on two processors that
/// held both peers. One under loom.
const CROWD: usize = if cfg!(larder_loom) { 1 } else { 16 };

/// How many do while shared exchanges run. When one ends, those who rode in it are gone for a moment:
/// few seem to ask, and the next ones would scatter. One under loom.
const FEW: usize = if cfg!(larder_loom) { 1 } else { 8 };

/// Shared exchanges with one peer that run side by side: with two, the peer works on one while the
/// answer of the other is read. One under loom, which would explore both.
const MAX_RUNNING: usize = if cfg!(larder_loom) { 1 } else { 2 };

#[cfg(test)]
mod tests;
