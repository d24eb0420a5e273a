//! The bytes that all shards of a store share.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::stats::CacheType;

/// The store's capacity and what is used of it.
///
/// It is a sum that each operation on a shard adds its [`Ledger`] to and checks after that, so it
/// needs no lock and orders nothing. Two insertions at once may both see the store over capacity and
/// evict one entry more than needed; neither can leave it over.
///
/// It has cache lines of its own, since every insertion writes to it and every look-up reads what
/// else a store is made of.
#[derive(Debug)]
#[repr(align(128))]
pub(crate) struct Budget {
    capacity: AtomicU64,
    used: AtomicU64,
}

impl Budget {
    pub(crate) fn new(capacity: u64) -> Budget {
        Budget {
            capacity: AtomicU64::new(capacity),
            used: AtomicU64::new(0),
        }
    }

    pub(crate) fn capacity(&self) -> u64 {
        self.capacity.load(Ordering::Relaxed)
    }

    /// The caller evicts what is over the new capacity. An insertion that read the old one may put
    /// its entry in after that; the next insertion evicts again.
    pub(crate) fn set_capacity(&self, capacity: u64) {
        self.capacity.store(capacity, Ordering::Relaxed);
    }

    pub(crate) fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    pub(super) fn is_over(&self) -> bool {
        self.used() > self.capacity()
    }

    pub(super) fn ledger(&self) -> Ledger<'_> {
        Ledger {
            budget: self,
            change: 0,
        }
    }
}

/// What one operation takes and releases, told to the budget at its end, in one addition or, if an
/// entry took the place of one as large, in none: threads that fill different shards seldom write
/// to what they share.
///
/// It ends before the lock of its shard does, which a guard made first sees to. Else an entry's
/// release could be told before its taking, and the sum fall below zero.
///
/// Until the end others do not see it. So two insertions at once may each find room that only one of
/// them has; whoever is told last finds the store over its capacity then, and evicts again.
#[derive(Debug)]
pub(super) struct Ledger<'a> {
    budget: &'a Budget,
    /// Modulo 2^64, so that it can be negative.
    change: u64,
}

impl Ledger<'_> {
    pub(super) fn take(&mut self, bytes: u64) {
        self.change = self.change.wrapping_add(bytes);
    }

    pub(super) fn release(&mut self, bytes: u64) {
        self.change = self.change.wrapping_sub(bytes);
    }

    pub(super) fn capacity(&self) -> u64 {
        self.budget.capacity()
    }

    pub(super) fn is_over(&self) -> bool {
        self.used() > self.capacity()
    }

    pub(super) fn has_room(&self, bytes: u64) -> bool {
        self.used().saturating_add(bytes) <= self.capacity()
    }

    fn used(&self) -> u64 {
        self.budget.used().wrapping_add(self.change)
    }
}

impl Drop for Ledger<'_> {
    fn drop(&mut self) {
        if self.change != 0 {
            self.budget.used.fetch_add(self.change, Ordering::Relaxed);
        }
    }
}

/// A shard's part of the capacity, and how much of that the hot share may hold.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Targets {
    pub(crate) total: u64,
    pub(crate) hot: u64,
}

impl Targets {
    /// What the queues of a share are sized by.
    pub(super) fn of(self, share: CacheType) -> u64 {
        match share {
            CacheType::Main => self.total,
            CacheType::Hot => self.hot,
        }
    }
}
