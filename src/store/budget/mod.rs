//! The bytes that all shards of a store share, and what else they have to know of each other.

pub(super) mod ceilings;
pub(super) mod demand;

use crate::sync::plain_atomic::{AtomicU32, AtomicU64, Ordering};

use crossbeam_utils::CachePadded;

use self::ceilings::Ceilings;
use super::policy::Moment;
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
    pub(super) ceilings: Ceilings,
    /// See [`hot_capacity`](Self::hot_capacity); without a ceiling.
    hot_capacity: AtomicU64,
    hot_fraction: f64,
    /// Whether there is more than one shard.
    is_sharded: bool,
    /// By share: the highest score that a victim had of late, or the highest score of all shards'
    /// oldest entries, as far as an operation has seen them.
    levels: [AtomicU64; 2],
    /// Written by most insertions. Padded against false sharing with the rest of the store, which
    /// every look-up reads.
    usage: CachePadded<Usage>,
    /// Bytes that no entry uses and that no other entry can have: see `Heap::excess`.
    excess: Arc<CachePadded<AtomicU64>>,
}

/// The sums over all shards, modulo 2^64 or 2^32.
#[derive(Debug, Default)]
struct Usage {
    bytes: AtomicU64,
    hot_bytes: AtomicU64,
    /// Each shard adds its [`Progress`] now and then.
    entries: AtomicU32,
    misses: AtomicU32,
}

/// The progress of one shard that is not in the sums of all shards yet.
///
/// The policy needs the number of misses, which is its time, and that of all entries. Neither has to be
/// exact, so a shard adds to the sums only once in many misses. Its own misses count for it at once.
#[derive(Debug, Default)]
pub(super) struct Progress {
    misses: u32,
    /// The shard's entries that are in the sum.
    known_entries: u32,
}

/// A shard adds its progress to the sums once in this part of as many misses as there are entries.
const ADDED_PART: u64 = 1024;

impl Budget {
    /// `hot_fraction` is 0 to 1.
    pub(super) fn new(
        capacity: u64,
        hot_fraction: f64,
        shards: usize,
        excess: Arc<CachePadded<AtomicU64>>,
    ) -> Budget {
        let budget = Budget {
            capacity: AtomicU64::default(),
            ceilings: Ceilings::new(),
            hot_capacity: AtomicU64::default(),
            hot_fraction,
            is_sharded: shards > 1,
            levels: Default::default(),
            usage: CachePadded::default(),
            excess,
        };
        budget.set_capacity(capacity);
        budget
    }

    /// The capacity now, which a temporary limit may lower.
    pub(super) fn capacity(&self) -> u64 {
        self.full_capacity().min(self.ceilings.lowest())
    }

    pub(super) fn full_capacity(&self) -> u64 {
        self.capacity.load(Ordering::Relaxed)
    }

    /// How much the hot share may hold if the main one needs the rest, in bytes.
    fn hot_capacity(&self) -> u64 {
        match self.ceilings.lowest() {
            u64::MAX => self.hot_capacity.load(Ordering::Relaxed),
            _ => (self.capacity() as f64 * self.hot_fraction) as u64,
        }
    }

    /// The caller evicts down to the new capacity. An insertion that has read the old one may insert
    /// its entry afterwards. The next insertion then evicts again.
    pub(super) fn set_capacity(&self, capacity: u64) {
        self.capacity.store(capacity, Ordering::Relaxed);
        let hot = (capacity as f64 * self.hot_fraction) as u64;
        self.hot_capacity.store(hot, Ordering::Relaxed);
    }

    pub(super) fn used(&self) -> u64 {
        self.usage.bytes.load(Ordering::Relaxed)
    }

    pub(super) fn is_over(&self) -> bool {
        !self.has_room(0)
    }

    /// The used bytes, and those that no entry can have.
    pub(super) fn occupied(&self) -> u64 {
        self.used().saturating_add(self.excess())
    }

    pub(super) fn has_room(&self, bytes: u64) -> bool {
        self.occupied().saturating_add(bytes) <= self.capacity()
    }

    fn excess(&self) -> u64 {
        self.excess.load(Ordering::Relaxed)
    }

    pub(super) fn is_sharded(&self) -> bool {
        self.is_sharded
    }

    /// Adds the progress of a shard that has so many entries to the sums.
    pub(super) fn add(&self, progress: &mut Progress, entries: usize) {
        let (misses, known) = (progress.misses, progress.known_entries);
        let (entries, order) = (entries as u32, Ordering::Relaxed);
        self.usage.misses.fetch_add(misses, order);
        if entries != known {
            let added = entries.wrapping_sub(known);
            self.usage.entries.fetch_add(added, order);
        }
        *progress = Progress {
            misses: 0,
            known_entries: entries,
        };
    }

    pub(super) fn level(&self, share: CacheType) -> u64 {
        self.levels[share as usize].load(Ordering::Relaxed)
    }

    /// Corrects the level of a share after all shards were searched.
    pub(super) fn set_level(&self, share: CacheType, score: u64) {
        self.levels[share as usize].store(score, Ordering::Relaxed);
    }

    /// Notes the score of a victim. Written only if it is much above the level, so that threads rarely
    /// write to the shared number.
    pub(super) fn note_victim(&self, share: CacheType, score: u64) {
        let level = &self.levels[share as usize];
        let known = level.load(Ordering::Relaxed);
        if self.is_sharded && score > known + known / 8 {
            level.store(score, Ordering::Relaxed);
        }
    }

    pub(super) fn ledger(&self) -> Ledger<'_> {
        Ledger {
            budget: self,
            bytes: 0,
            hot_bytes: 0,
        }
    }
}

/// The bytes that one operation takes and releases. The differences are added to the budget when the
/// ledger is dropped: in one addition each, or in none if an entry replaced one of the same weight. So
/// threads that fill different shards rarely write to the shared sums.
///
/// Drop it before the lock of its shard is released. Otherwise the release of an entry could be added
/// before its insertion, and the sum would fall below zero.
///
/// Other threads do not see the change before the drop. Two concurrent insertions may each find room
/// that is enough for only one of them. The one whose ledger is added last then finds the store over
/// its capacity, and evicts again.
#[derive(Debug)]
pub(super) struct Ledger<'a> {
    pub(super) budget: &'a Budget,
    /// The changes so far, modulo 2^64, so that they can be negative.
    bytes: u64,
    hot_bytes: u64,
}

impl Ledger<'_> {
    /// Adds an entry of this weight.
    pub(super) fn take(&mut self, share: CacheType, bytes: u64) {
        self.bytes = self.bytes.wrapping_add(bytes);
        if share == CacheType::Hot {
            self.hot_bytes = self.hot_bytes.wrapping_add(bytes);
        }
    }

    /// Subtracts entries of this weight together.
    pub(super) fn release(&mut self, share: CacheType, bytes: u64) {
        self.bytes = self.bytes.wrapping_sub(bytes);
        if share == CacheType::Hot {
            self.hot_bytes = self.hot_bytes.wrapping_sub(bytes);
        }
    }

    /// Counts a miss of a shard that has so many entries, and returns the state of the store.
    pub(super) fn miss(&self, progress: &mut Progress, entries: usize) -> Moment {
        progress.misses += 1;
        let moment = self.moment(progress, entries);
        if u64::from(progress.misses) * ADDED_PART > u64::from(moment.entries) {
            self.budget.add(progress, entries);
        }
        moment
    }

    /// The state of the store, as a shard with so many entries knows it.
    pub(super) fn moment(&self, progress: &Progress, entries: usize) -> Moment {
        let usage = &self.budget.usage;
        let misses = usage.misses.load(Ordering::Relaxed);
        let entries_of_all = usage.entries.load(Ordering::Relaxed);
        let others = entries_of_all.wrapping_sub(progress.known_entries);
        Moment {
            now: misses.wrapping_add(progress.misses),
            entries: others.wrapping_add(entries as u32),
            bytes: self.used(),
        }
    }

    pub(super) fn is_over(&self) -> bool {
        !self.has_room(0)
    }

    pub(super) fn has_room(&self, bytes: u64) -> bool {
        let used = self.used().saturating_add(self.budget.excess());
        used.saturating_add(bytes) <= self.budget.capacity()
    }

    fn used(&self) -> u64 {
        self.budget.used().wrapping_add(self.bytes)
    }

    /// The share that has to give room: the hot one if it is over its part of the capacity, else the
    /// main one.
    pub(super) fn giving_share(&self) -> CacheType {
        let used = self.budget.usage.hot_bytes.load(Ordering::Relaxed);
        let hot = used.wrapping_add(self.hot_bytes);
        if hot > self.budget.hot_capacity() {
            CacheType::Hot
        } else {
            CacheType::Main
        }
    }
}

impl Drop for Ledger<'_> {
    fn drop(&mut self) {
        let usage = &self.budget.usage;
        if self.bytes != 0 {
            usage.bytes.fetch_add(self.bytes, Ordering::Relaxed);
        }
        if self.hot_bytes != 0 {
            usage.hot_bytes.fetch_add(self.hot_bytes, Ordering::Relaxed);
        }
    }
}
