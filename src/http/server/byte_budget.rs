//! Bounds the bytes that all connections of a server hold together.

use std::time::Instant;

use crate::sync::{Condvar, Mutex};

/// Bytes that connections take and give back.
///
/// Strangers have half of them at most, so that clients that read nothing, or send half a body, cannot
/// keep the peers from theirs.
pub(crate) struct ByteBudget {
    max: usize,
    used: Mutex<UsedBytes>,
    freed: Condvar,
}

#[derive(Default)]
struct UsedBytes {
    all: usize,
    by_strangers: usize,
}

impl ByteBudget {
    pub(crate) fn new(max: usize) -> Self {
        ByteBudget {
            max,
            used: Mutex::default(),
            freed: Condvar::new(),
        }
    }

    /// Takes `bytes`, if there is room. A response that is longer than the whole room gets it alone.
    pub(crate) fn take(&self, bytes: usize, is_stranger: bool) -> Option<ByteGuard<'_>> {
        let mut used = self.used.lock();
        if !self.has_room(&used, bytes, is_stranger) {
            return None;
        }
        used.add(bytes, is_stranger);
        Some(ByteGuard {
            budget: self,
            bytes,
            is_stranger,
        })
    }

    /// Waits until there is room for `bytes`, which another connection may take first. Returns `false`
    /// at `deadline`.
    pub(crate) fn wait_for(&self, bytes: usize, is_stranger: bool, deadline: Instant) -> bool {
        let mut used = self.used.lock();
        while !self.has_room(&used, bytes, is_stranger) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            used = self.freed.wait_timeout(used, left);
        }
        true
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
}

/// Taken bytes, which are given back when it is dropped.
pub(crate) struct ByteGuard<'b> {
    budget: &'b ByteBudget,
    bytes: usize,
    is_stranger: bool,
}

impl ByteGuard<'_> {
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
        drop(used);
        self.budget.freed.notify_all();
    }
}

#[cfg(all(test, not(larder_loom)))]
mod tests {
    use super::*;
    use std::time::Duration;

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
        assert!(!budget.wait_for(1, false, Instant::now()));
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
            let waiter = scope.spawn(|| budget.wait_for(100, false, deadline));
            drop(guard);
            assert!(waiter.join().expect("no panic"));
        });
    }
}
