//! Bounds the bytes that all connections of a server hold together.

use std::collections::VecDeque;
use std::time::Instant;

use crate::sync::{Arc, Condvar, Mutex};

/// Bytes that connections take and give back.
///
/// Strangers have half of them at most, so that clients that read nothing, or send half a body, cannot
/// keep the peers from theirs. Those that wait are served in turn, the peers among themselves and the
/// strangers among themselves.
pub(crate) struct ByteBudget {
    max: usize,
    used: Mutex<UsedBytes>,
}

#[derive(Default)]
struct UsedBytes {
    all: usize,
    by_strangers: usize,
    /// The waiters, peers and strangers: each has a condition of its own, so that only the first of them
    /// is woken.
    waiting: [VecDeque<Arc<Condvar>>; 2],
}

impl ByteBudget {
    pub(crate) fn new(max: usize) -> Self {
        ByteBudget {
            max,
            used: Mutex::default(),
        }
    }

    /// Takes `bytes`, if there is room, and no other connection waits for it. A response that is longer
    /// than the whole room gets it alone.
    pub(crate) fn take(&self, bytes: usize, is_stranger: bool) -> Option<ByteGuard<'_>> {
        let mut used = self.used.lock();
        let is_first = used.waiting[usize::from(is_stranger)].is_empty();
        if !is_first || !self.has_room(&used, bytes, is_stranger) {
            return None;
        }
        Some(self.add(&mut used, bytes, is_stranger))
    }

    /// Waits for its turn, and for room for `bytes`, and takes them. `next_step` returns the end of the
    /// next step of the wait, or `None` to leave. It is called under the lock, and must not wait.
    pub(crate) fn wait_for(
        &self,
        bytes: usize,
        is_stranger: bool,
        mut next_step: impl FnMut() -> Option<Instant>,
    ) -> Option<ByteGuard<'_>> {
        let class = usize::from(is_stranger);
        let turn = Arc::new(Condvar::new());
        let mut step = Instant::now();
        let mut used = self.used.lock();
        used.waiting[class].push_back(turn.clone());
        let mut guard = None;
        loop {
            let is_first = used.waiting[class].front();
            let is_first = is_first.is_some_and(|first| Arc::ptr_eq(first, &turn));
            if is_first && self.has_room(&used, bytes, is_stranger) {
                guard = Some(self.add(&mut used, bytes, is_stranger));
                break;
            }
            let left = step.saturating_duration_since(Instant::now());
            if left.is_zero() {
                match next_step() {
                    Some(next) => step = next,
                    None => break,
                }
                continue;
            }
            used = turn.wait_timeout(used, left);
        }
        used.waiting[class].retain(|other| !Arc::ptr_eq(other, &turn));
        used.wake_first();
        guard
    }

    fn add(&self, used: &mut UsedBytes, bytes: usize, is_stranger: bool) -> ByteGuard<'_> {
        used.add(bytes, is_stranger);
        ByteGuard {
            budget: self,
            bytes,
            is_stranger,
        }
    }

    fn has_room(&self, used: &UsedBytes, bytes: usize, is_stranger: bool) -> bool {
        let fits = |used: usize, max| used == 0 || used.saturating_add(bytes) <= max;
        fits(used.all, self.max) && (!is_stranger || fits(used.by_strangers, self.max / 2))
    }
}

impl UsedBytes {
    fn add(&mut self, bytes: usize, is_stranger: bool) {
        self.all = self.all.saturating_add(bytes);
        if is_stranger {
            self.by_strangers = self.by_strangers.saturating_add(bytes);
        }
    }

    /// To be called when there may be room for the first waiters, or others have become the first.
    fn wake_first(&self) {
        let first = self.waiting.iter().filter_map(VecDeque::front);
        first.for_each(|turn| turn.notify_one());
    }
}

/// Taken bytes, which are given back when it is dropped.
pub(crate) struct ByteGuard<'b> {
    budget: &'b ByteBudget,
    bytes: usize,
    is_stranger: bool,
}

impl ByteGuard<'_> {
    /// How many bytes were taken.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Takes `more` bytes too, if there is room.
    #[must_use]
    pub(crate) fn grow(&mut self, more: usize) -> bool {
        let Some(grown) = self.budget.take(more, self.is_stranger) else {
            return false;
        };
        self.bytes += more;
        std::mem::forget(grown);
        true
    }
}

impl Drop for ByteGuard<'_> {
    fn drop(&mut self) {
        let mut used = self.budget.used.lock();
        used.all = used.all.saturating_sub(self.bytes);
        if self.is_stranger {
            used.by_strangers = used.by_strangers.saturating_sub(self.bytes);
        }
        used.wake_first();
    }
}

#[cfg(all(test, larder_loom))]
mod loom_models;

#[cfg(all(test, not(larder_loom)))]
mod tests {
    use super::*;
    use crate::sync::eventually;
    use std::time::Duration;

    /// The steps of a wait that ends at `deadline`.
    fn until(deadline: Instant) -> impl FnMut() -> Option<Instant> {
        move || (Instant::now() < deadline).then_some(deadline)
    }

    #[test]
    fn strangers_take_half_and_peers_take_all() {
        let budget = ByteBudget::new(100);
        let stranger = budget.take(50, true).expect("half");
        assert!(budget.take(1, true).is_none());
        let peer = budget.take(50, false).expect("the other half");
        assert!(budget.take(1, false).is_none());
        drop(stranger);
        assert!(budget.take(50, true).is_some());
        drop(peer);
        assert!(budget.take(100, false).is_some());
    }

    #[test]
    fn longer_than_the_budget_is_taken_alone() {
        let budget = ByteBudget::new(100);
        let long = budget.take(1000, true).expect("alone");
        assert!(budget.take(1, false).is_none());
        assert!(budget.wait_for(1, false, || None).is_none());
        drop(long);
        assert!(budget.take(1, false).is_some());
    }

    #[test]
    fn bytes_that_were_added_are_given_back_too() {
        let budget = ByteBudget::new(100);
        let mut guard = budget.take(10, false).expect("room");
        assert!(guard.grow(90));
        assert!(!guard.grow(1));
        drop(guard);
        assert!(budget.take(100, false).is_some());
    }

    #[test]
    fn waiter_goes_on_when_bytes_are_given_back() {
        let budget = ByteBudget::new(100);
        let guard = budget.take(100, false).expect("room");
        let deadline = Instant::now() + Duration::from_secs(20);
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| budget.wait_for(100, false, until(deadline)).is_some());
            drop(guard);
            assert!(waiter.join().expect("no panic"));
        });
    }

    #[test]
    fn long_response_is_not_passed_by_short_ones() {
        let budget = ByteBudget::new(100);
        let [first, second] = [50, 50].map(|bytes| budget.take(bytes, false).expect("room"));
        let deadline = Instant::now() + Duration::from_secs(20);
        std::thread::scope(|scope| {
            let long = scope.spawn(|| budget.wait_for(100, false, until(deadline)).map(drop));
            eventually(|| !budget.used.lock().waiting[0].is_empty());
            drop(first);
            assert!(budget.take(1, false).is_none(), "it waits for its turn");
            let short = scope.spawn(|| budget.wait_for(1, false, until(deadline)).map(drop));
            drop(second);
            assert!(long.join().expect("no panic").is_some());
            assert!(short.join().expect("no panic").is_some());
        });
        assert!(budget.take(100, false).is_some(), "no connection waits");
    }

    #[test]
    fn waiter_that_gives_up_lets_the_next_one_pass() {
        let budget = ByteBudget::new(100);
        let guard = budget.take(50, false).expect("room");
        let soon = Instant::now() + Duration::from_millis(20);
        let deadline = Instant::now() + Duration::from_secs(20);
        std::thread::scope(|scope| {
            let long = scope.spawn(|| budget.wait_for(100, false, until(soon)).is_some());
            let short = scope.spawn(|| budget.wait_for(50, false, until(deadline)).is_some());
            assert!(!long.join().expect("no panic"));
            assert!(short.join().expect("no panic"));
        });
        drop(guard);
    }
}
