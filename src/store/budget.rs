//! The bytes that all shards of a store share.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::stats::CacheType;

/// The store's capacity and what is used of it.
///
/// Shards change what is used under their own locks, so it needs no lock and orders nothing: it is a sum that
/// each insertion checks after adding itself. Two insertions at once may both see the store over
/// capacity and evict one entry more than needed; neither can leave it over.
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

    pub(super) fn take(&self, bytes: u64) {
        self.used.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn release(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }

    pub(super) fn is_over(&self) -> bool {
        self.used() > self.capacity()
    }

    pub(super) fn has_room(&self, bytes: u64) -> bool {
        self.used().saturating_add(bytes) <= self.capacity()
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
