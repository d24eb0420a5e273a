//! The bytes that all shards of a store share.

use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam_utils::CachePadded;

use crate::stats::CacheType;
use crate::sync::Arc;

/// The store's capacity, and how much of it is used.
///
/// The used bytes are a sum. Each operation on a shard adds its [`Ledger`] to the sum, and then
/// compares the sum with the capacity. So it needs no lock and no memory ordering. Two concurrent
/// insertions may both find the store over its capacity, and evict one entry more than needed.
/// Neither can leave the store over its capacity.
#[derive(Debug)]
pub(super) struct Budget {
    capacity: AtomicU64,
    /// Written by most insertions. Padded against false sharing with the rest of the store, which
    /// every look-up reads.
    used: CachePadded<AtomicU64>,
    /// Bytes that no entry uses and that no other entry can have: see `Heap::excess`.
    excess: Arc<CachePadded<AtomicU64>>,
    /// The hot share's part of the capacity, in units of 1/[`HOT_PARTS`].
    hot_parts: u64,
    /// The number of shards is a power of two; this is its exponent.
    shards_log2: u32,
}

/// The whole capacity, in the units of the hot share's part.
const HOT_PARTS: u128 = 1 << 32;

impl Budget {
    /// `shards` is a power of two, `hot_fraction` is 0 to 1.
    pub(super) fn new(
        capacity: u64,
        hot_fraction: f64,
        shards: usize,
        excess: Arc<CachePadded<AtomicU64>>,
    ) -> Budget {
        Budget {
            capacity: AtomicU64::new(capacity),
            used: CachePadded::default(),
            excess,
            hot_parts: (hot_fraction * HOT_PARTS as f64) as u64,
            shards_log2: shards.trailing_zeros(),
        }
    }

    pub(super) fn capacity(&self) -> u64 {
        self.capacity.load(Ordering::Relaxed)
    }

    /// The caller evicts down to the new capacity. An insertion that has read the old one may insert
    /// its entry afterwards. The next insertion then evicts again.
    pub(super) fn set_capacity(&self, capacity: u64) {
        self.capacity.store(capacity, Ordering::Relaxed);
    }

    pub(super) fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    pub(super) fn is_over(&self) -> bool {
        !self.has_room(0)
    }

    pub(super) fn has_room(&self, bytes: u64) -> bool {
        let used = self.used().saturating_add(self.excess());
        used.saturating_add(bytes) <= self.capacity()
    }

    fn excess(&self) -> u64 {
        self.excess.load(Ordering::Relaxed)
    }

    /// A shard's part of the capacity.
    pub(super) fn shard_limits(&self) -> ShardLimits {
        let total = self.capacity() >> self.shards_log2;
        let hot = u128::from(total) * u128::from(self.hot_parts) / HOT_PARTS;
        ShardLimits {
            total,
            hot: hot as u64,
        }
    }

    pub(super) fn ledger(&self) -> Ledger<'_> {
        Ledger {
            limits: self.shard_limits(),
            budget: self,
            change: 0,
        }
    }
}

/// The bytes that one operation takes and releases. The difference is added to the budget when the
/// ledger is dropped: in one addition, or in none if an entry replaced one of the same weight. So
/// threads that fill different shards rarely write to the shared sum.
///
/// Drop it before the lock of its shard is released. Otherwise the release of an entry could be added
/// before its insertion, and the sum would fall below zero.
///
/// Other threads do not see the change before the drop. Two concurrent insertions may each find room
/// that is enough for only one of them. The one whose ledger is added last then finds the store over
/// its capacity, and evicts again.
#[derive(Debug)]
pub(super) struct Ledger<'a> {
    pub(super) limits: ShardLimits,
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
        !self.has_room(0)
    }

    pub(super) fn has_room(&self, bytes: u64) -> bool {
        let used = self.budget.used().wrapping_add(self.change);
        let used = used.saturating_add(self.budget.excess());
        used.saturating_add(bytes) <= self.capacity()
    }
}

impl Drop for Ledger<'_> {
    fn drop(&mut self) {
        if self.change != 0 {
            self.budget.used.fetch_add(self.change, Ordering::Relaxed);
        }
    }
}

/// A shard's part of the capacity, and how much of that the hot share may hold, in bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct ShardLimits {
    pub(super) total: u64,
    pub(super) hot: u64,
}

impl ShardLimits {
    /// The capacity in bytes from which the queue sizes of a share are computed.
    pub(super) fn of(self, share: CacheType) -> u64 {
        match share {
            CacheType::Main => self.total,
            CacheType::Hot => self.hot,
        }
    }
}
