//! The sharded, byte-bounded, expiring store behind a group.
//!
//! ```text
//!   mod.rs        which shard, which lock; the only file that locks
//!   shard.rs      table + slots + queues of one shard
//!   slab.rs       slots, and the lists through them
//!   s3fifo.rs     which entry goes next     ghost.rs   keys that left too early
//!   budget.rs     bytes of all shards       charge.rs  what an entry costs
//!   graveyard.rs  entries on their way out  cleared.rs  all of them
//!   aside.rs      what malloc keeps         iter.rs     a look at all entries
//!   counters.rs   what look-ups found
//! ```
//!
//! Three rules hold everywhere: no lock is taken while another is held; nothing that a user wrote
//! runs under a lock; no value is dropped under one.

mod aside;
mod budget;
mod charge;
mod cleared;
mod counters;
mod ghost;
mod graveyard;
mod iter;
mod s3fifo;
mod shard;
mod slab;
#[cfg(all(test, not(larder_loom)))]
mod tests;

use std::hash::{BuildHasher, Hasher};
use std::sync::atomic::{AtomicUsize, Ordering};

use foldhash::fast::RandomState;

use crate::byteview::ByteView;
use crate::clock::{Clock, Tick};
use crate::shared_bytes::SharedBytes;
use crate::stats::{CacheStats, CacheType};
use crate::sync::{Padded, RwLock};
use budget::{Budget, Targets};
use counters::Counters;
use shard::{EVICTED_AT_ONCE, Shard};

pub(crate) use charge::check_capacity;
pub(crate) use cleared::Cleared;
pub use graveyard::RemovalCause;
pub(crate) use graveyard::{Departed, Graveyard, Unsettled};
pub use iter::Entry;
pub(crate) use iter::Iter;

/// How the cache chooses what to evict.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Eviction {
    /// Size-aware S3-FIFO (Yang et al., SOSP '23). Better hit ratios than LRU on most workloads,
    /// unharmed by scans, and a hit takes only a shared lock.
    #[default]
    S3Fifo,
    /// Exact least-recently-used, as golang/groupcache. A hit takes the shard's lock alone.
    Lru,
}

/// A key's hash, seeded per process.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Hash(u64);

impl Hash {
    /// The part that a slot keeps.
    #[inline]
    fn table(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// The part kept, for the table, which takes the place from the low bits and the tag from the
    /// high ones.
    #[inline]
    fn spread(self) -> u64 {
        Hash::spread_of(self.table())
    }

    #[inline]
    fn spread_of(table: u32) -> u64 {
        u64::from(table) << 32 | u64::from(table)
    }

    /// The shard, from bits that the table does not use.
    #[inline]
    fn shard(self, shards: usize) -> usize {
        self.0 as usize & (shards - 1)
    }

    fn stripe(self, stripes: usize) -> usize {
        (self.0 >> 16) as usize % stripes
    }

    /// The hash as a number, for other maps of this process.
    pub(crate) fn get(self) -> u64 {
        self.0
    }
}

/// What was removed so far: see [`Store::peek_or_generation`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Generation {
    stripe: u32,
    clears: u32,
}

/// What a look-up found.
#[derive(Clone, Debug)]
pub(crate) struct Hit {
    pub(crate) view: ByteView,
    pub(crate) share: CacheType,
    pub(crate) expires: Option<Tick>,
}

/// What is to be put in.
pub(crate) struct NewEntry<'a> {
    pub(crate) hash: Hash,
    pub(crate) key: &'a str,
    /// Key and value, side by side, as [`ByteView::keyed`] makes them. The caller's, so that what
    /// is not put in is not dropped under the lock.
    pub(crate) data: &'a SharedBytes,
    pub(crate) share: CacheType,
    pub(crate) expires: Option<Tick>,
}

/// What a store is made of.
#[derive(Clone, Debug)]
pub(crate) struct StoreOptions {
    /// In bytes; 0 keeps nothing.
    pub(crate) capacity: u64,
    pub(crate) eviction: Eviction,
    /// The hot share's part of the capacity, 0 to 1.
    pub(crate) hot_fraction: f64,
    /// Rounded up to a power of two; `None` chooses.
    pub(crate) shards: Option<usize>,
    pub(crate) clock: Clock,
}

/// Entries of two shares under one budget, found by key.
pub(crate) struct Store {
    hasher: RandomState,
    shards: Shards,
    budget: Budget,
    /// The hot share's part of the capacity, in parts of [`HOT_PARTS`].
    hot_parts: u64,
    eviction: Eviction,
    clock: Clock,
    counters: Counters,
    /// Where the search for a shard that is over its part goes on.
    cursor: AtomicUsize,
}

/// Threads at different shards write to different cache lines.
type Shards = Box<[Padded<RwLock<Shard>>]>;

impl Store {
    pub(crate) fn new(options: StoreOptions) -> Store {
        let shards = options
            .shards
            .unwrap_or_else(|| default_shards(options.capacity))
            .clamp(1, MAX_SHARDS)
            .next_power_of_two();
        Store {
            hasher: RandomState::default(),
            shards: (0..shards)
                .map(|_| Padded(RwLock::new(Shard::new(options.eviction))))
                .collect(),
            budget: Budget::new(options.capacity),
            hot_parts: (options.hot_fraction * HOT_PARTS as f64) as u64,
            eviction: options.eviction,
            clock: options.clock,
            counters: Counters::new(),
            cursor: AtomicUsize::new(0),
        }
    }

    #[inline]
    pub(crate) fn hash(&self, key: &str) -> Hash {
        let mut hasher = self.hasher.build_hasher();
        hasher.write(key.as_bytes());
        Hash(hasher.finish())
    }

    pub(crate) fn clock(&self) -> &Clock {
        &self.clock
    }

    pub(crate) fn capacity(&self) -> u64 {
        self.budget.capacity()
    }

    /// The value of a key, counted as a look-up and a use; or, if there is none, the generation as
    /// [`peek_or_generation`](Self::peek_or_generation) tells it, and what `mark` returns.
    ///
    /// `mark` runs under the shard's lock: no entry comes between the look and the mark. It must
    /// take no lock.
    // Always, because a view that is returned through memory is written in words and read in pairs
    // of them, which processors do not forward: a sixth of a hit.
    #[inline(always)]
    pub(crate) fn get<M>(
        &self,
        hash: Hash,
        key: &str,
        mark: impl FnOnce() -> M,
    ) -> Result<ByteView, (Generation, M)> {
        let shard = self.shard(hash).read();
        let Some(entry) = shard.find(hash, key, &self.clock) else {
            let missed = (shard.generation(hash), mark());
            drop(shard);
            self.counters.count_miss();
            return Err(missed);
        };
        entry.mark.touch();
        let share = entry.mark.share();
        // In parts until the end: whole views are copied from place to place.
        let (data, start) = entry.parts();
        drop(shard);
        self.counters.count_hit(share);
        if self.eviction == Eviction::Lru {
            self.promote(hash, key);
        }
        let end = data.len();
        Ok(ByteView::window(data, start, end))
    }

    /// The same with what a peer must know of the entry.
    pub(crate) fn get_hit(&self, hash: Hash, key: &str) -> Option<Hit> {
        let hit = self.get_present(hash, key);
        if hit.is_none() {
            self.counters.count_miss();
        }
        hit
    }

    /// The entry of a key, counted as a look-up and a use if there is one, and as nothing if not.
    pub(crate) fn get_present(&self, hash: Hash, key: &str) -> Option<Hit> {
        let shard = self.shard(hash).read();
        let (hit, entry) = shard.find_hit(hash, key, &self.clock)?;
        entry.mark.touch();
        drop(shard);
        self.counters.count_hit(hit.share);
        if self.eviction == Eviction::Lru {
            self.promote(hash, key);
        }
        Some(hit)
    }

    /// Moves an entry to the front, under the shard's lock alone. It may have left between the two
    /// locks; then there is nothing to move.
    #[inline(never)]
    fn promote(&self, hash: Hash, key: &str) {
        self.shard(hash).write().promote(hash, key);
    }

    /// The entry of a key, counted as nothing.
    pub(crate) fn peek(&self, hash: Hash, key: &str) -> Option<Hit> {
        let shard = self.shard(hash).read();
        shard.find_hit(hash, key, &self.clock).map(|(hit, _)| hit)
    }

    /// The entry of a key, counted as nothing; or, if there is none, the generation that a load
    /// beginning now must give to [`insert`](Self::insert).
    ///
    /// A removal counts the key's generation on under the shard's lock, and an insertion compares
    /// it under that lock. So a value whose load began before a removal either goes in before it,
    /// and is taken out by it, or is turned away after it.
    pub(crate) fn peek_or_generation(&self, hash: Hash, key: &str) -> Result<Hit, Generation> {
        let shard = self.shard(hash).read();
        shard
            .find_hit(hash, key, &self.clock)
            .map(|(hit, _)| hit)
            .ok_or_else(|| shard.generation(hash))
    }

    /// Puts an entry in, in place of an older one of its key, and evicts what must go.
    ///
    /// Nothing is put in if the key was removed since `loaded_at`, or if the policy declines. The
    /// caller drops the graveyard, tells the listener of it, and then [settles](Self::settle): a
    /// value that takes the place of thousands is in before all of them are out.
    pub(crate) fn insert(
        &self,
        new: NewEntry<'_>,
        loaded_at: Option<Generation>,
        gone: &mut Graveyard,
    ) {
        let home = new.hash.shard(self.shards.len());
        let stopped = self.shards[home].0.write().insert(
            &new,
            loaded_at,
            (&mut self.budget.ledger(), self.targets()),
            &self.clock,
            gone,
        );
        if stopped {
            gone.set_unsettled(new.hash);
        } else if self.budget.is_over() {
            self.evict_elsewhere(new.hash, gone);
        }
    }

    /// Goes on with an insertion whose first victims are buried: evicts some more.
    ///
    /// Some, so that look-ups wait for as many at most. Other insertions meanwhile find the store
    /// over its capacity and evict for themselves and for this one. If nobody goes on, since a
    /// listener panicked, they do.
    pub(crate) fn settle(&self, Unsettled { hash }: Unsettled) -> Graveyard {
        let mut gone = Graveyard::default();
        let home = hash.shard(self.shards.len());
        let stopped = self.shards[home].0.write().settle(
            hash,
            &mut self.budget.ledger(),
            self.targets(),
            &mut gone,
        );
        if stopped {
            gone.set_unsettled(hash);
        } else if self.budget.is_over() {
            self.evict_elsewhere(hash, &mut gone);
        }
        gone
    }

    /// Evicts from other shards than that of `hash`, whose own part is used up or not reached:
    /// first from those over their part, then from any. A lone entry is left for last, since it may
    /// be one that is larger than a shard's part and fits the store all the same.
    fn evict_elsewhere(&self, hash: Hash, gone: &mut Graveyard) {
        let home = hash.shard(self.shards.len());
        let targets = self.targets();
        let count = self.shards.len();
        let first = self.cursor.fetch_add(1, Ordering::Relaxed);
        let others = (0..count)
            .map(|n| (first + n) & (count - 1))
            .filter(|&n| n != home);
        let rounds = [(targets.total, 1), (0, 1), (0, 0)];
        let visits = rounds
            .into_iter()
            .flat_map(|(bytes, entries)| others.clone().map(move |n| (n, bytes, entries)))
            .chain([(home, 0, 0)]);
        for (visited, bytes, entries) in visits {
            let mut shard = self.shards[visited].0.write();
            let mut ledger = self.budget.ledger();
            while ledger.is_over() && shard.bytes() > bytes && shard.len() > entries {
                if gone.len() >= EVICTED_AT_ONCE {
                    gone.set_unsettled(hash);
                    return;
                }
                if !shard.evict_one(0, &mut ledger, targets, gone) {
                    break;
                }
            }
            drop(ledger);
            drop(shard);
            if !self.budget.is_over() {
                return;
            }
        }
    }

    /// Changes the capacity. The caller evicts with [`shed`](Self::shed) what is over it.
    pub(crate) fn set_capacity(&self, capacity: u64) {
        self.budget.set_capacity(capacity);
    }

    /// Evicts a part of what is over the capacity, some entries from each shard; `None` once
    /// nothing is. A part, so that look-ups do not wait for all, and so that what was evicted can
    /// be dropped before more is.
    pub(crate) fn shed(&self) -> Option<Graveyard> {
        let mut gone = Graveyard::default();
        for shard in &self.shards {
            let mut shard = shard.0.write();
            let mut ledger = self.budget.ledger();
            let targets = self.targets();
            for _ in 0..EVICTED_AT_ONCE {
                if !ledger.is_over() || !shard.evict_one(0, &mut ledger, targets, &mut gone) {
                    break;
                }
            }
            shard.fit_tables();
        }
        (!gone.is_empty()).then_some(gone)
    }

    /// Takes a key out, for the cause [`RemovalCause::Explicit`] unless it had expired. A load of
    /// it that is under way puts nothing in.
    pub(crate) fn remove(&self, hash: Hash, key: &str) -> Graveyard {
        let mut gone = Graveyard::default();
        let mut shard = self.shard(hash).write();
        let ledger = &mut self.budget.ledger();
        shard.remove(hash, key, ledger, &self.clock, &mut gone);
        gone
    }

    /// Takes everything out, shard by shard. Loads under way put nothing in.
    pub(crate) fn clear(&self) -> Cleared {
        let mut bytes = 0;
        let shards = self.shards.iter().map(|shard| {
            let mut shard = shard.0.write();
            bytes += shard.bytes();
            shard.clear(&mut self.budget.ledger())
        });
        let shards = shards.collect();
        Cleared::new(shards, bytes)
    }

    /// All live entries, counted as nothing.
    pub(crate) fn iter(&self) -> Iter<'_> {
        Iter::new(&self.shards, &self.clock)
    }

    /// Look-ups and those that found something.
    pub(crate) fn lookups(&self) -> (u64, u64) {
        let counts = self.counters.read();
        let hits = counts.main_hits + counts.hot_hits;
        (hits + counts.misses, hits)
    }

    pub(crate) fn stats(&self, share: CacheType) -> CacheStats {
        let mut stats = CacheStats::default();
        for shard in &self.shards {
            let (bytes, items, evictions) = shard.0.read().usage(share);
            stats.bytes += bytes;
            stats.items += items;
            stats.evictions += evictions;
        }
        let counts = self.counters.read();
        let main_misses = counts.hot_hits + counts.misses;
        (stats.gets, stats.hits) = match share {
            CacheType::Main => (counts.main_hits + main_misses, counts.main_hits),
            CacheType::Hot => (main_misses, counts.hot_hits),
        };
        stats
    }

    /// Asked for by every insertion, so it divides and rounds nothing.
    #[inline]
    fn targets(&self) -> Targets {
        // The number of shards is a power of two.
        let total = self.budget.capacity() >> self.shards.len().trailing_zeros();
        let hot = u128::from(total) * u128::from(self.hot_parts) / HOT_PARTS;
        Targets {
            total,
            hot: hot as u64,
        }
    }

    #[inline]
    fn shard(&self, hash: Hash) -> &RwLock<Shard> {
        &self.shards[hash.shard(self.shards.len())].0
    }
}

/// All of the capacity.
const HOT_PARTS: u128 = 1 << 32;

const MAX_SHARDS: usize = 256;

/// Smaller shards choose worse victims and split large values.
const MIN_SHARD_BYTES: u64 = 2 << 20;

/// Four shards a core, as long as each keeps two mebibytes.
fn default_shards(capacity: u64) -> usize {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let wanted = (4 * cores).next_power_of_two().min(64);
    let room = usize::try_from(capacity / MIN_SHARD_BYTES)
        .unwrap_or(usize::MAX)
        .max(1);
    // The largest power of two that fits.
    wanted.min(1 << room.ilog2())
}
