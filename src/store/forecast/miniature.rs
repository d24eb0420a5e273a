//! Caches in miniature: they decide about a sample of the keys as caches of several capacities would, and
//! keep no values.
//!
//! A cache with 1/2^n of the capacity that sees one key in 2^n has about the hit ratio of the whole one
//! (Waldspurger et al., "Cache Modeling and Optimization using Miniature Simulations", USENIX ATC '17).

use hashbrown::HashTable;

use crate::clock::{Clock, Tick};
use crate::store::entry::key_hash::{KeyHash, table_hash};
use crate::store::entry::weight;
use crate::store::policy::{Choice, Cost, Moment, Policy};
use crate::store::slab::{EntryMeta, NIL, SlotLink, Slots};

#[cfg(all(test, not(larder_loom)))]
mod tests;

/// The number of caches. Their capacities are ¼, ½, 1, 2 and 4 times the real one.
pub(super) const CACHES: usize = 5;

/// The cache that has the real capacity.
pub(super) const REAL: usize = 2;

/// The slots of all caches together. When all are in use, half of the keys leave the sample.
const SLOTS: usize = 1280;

/// At most one key in 32 is sampled, because a sampled hit takes as long as several others.
const LOWEST_LEVEL: u32 = 5;

/// The number of bits of a hash that choose the sample.
const HIGHEST_LEVEL: u32 = 24;

/// The slots that each insertion checks for expiry.
const SWEEP_STEP: usize = 4;

/// A key of the sample.
#[derive(Clone, Copy, Debug)]
pub(super) struct SampledKey {
    hash: u32,
    /// The key is among those of a sample of one key in 2^level.
    level: u32,
}

impl SampledKey {
    pub(super) fn new(hash: KeyHash) -> SampledKey {
        SampledKey {
            hash: hash.short(),
            level: hash.sample_bits().trailing_zeros().min(HIGHEST_LEVEL),
        }
    }

    /// The hash of the key in one of the caches. It differs between the caches, so that one table can
    /// hold the keys of all.
    fn hash_in(self, cache: usize) -> u32 {
        self.hash ^ (cache as u32 + 1).wrapping_mul(0x9e37_79b9)
    }
}

/// The data of a value that matter to the caches.
#[derive(Clone, Copy, Debug)]
pub(in crate::store) struct SampledValue {
    pub(super) weight: u64,
    pub(super) expires: Option<Tick>,
}

impl SampledValue {
    /// `len` is the length of key and value together.
    pub(in crate::store) fn new(len: usize, expires: Option<Tick>) -> SampledValue {
        let expiry = if expires.is_some() {
            weight::EXPIRY as u64
        } else {
            0
        };
        let weight = weight::of_entry(len).saturating_add(expiry);
        SampledValue { weight, expires }
    }
}

/// The caches, and the entries that they would have.
#[derive(Debug)]
pub(super) struct Miniatures {
    caches: [Miniature; CACHES],
    samples: Samples,
    /// From keys to slots.
    table: HashTable<u16>,
    /// One key in 2^level is sampled.
    level: u32,
    /// The real capacity, in bytes.
    capacity: u64,
    is_lru: bool,
    origin: Tick,
    counts: Counts,
    /// The slot that the next sweep begins with.
    sweep_at: usize,
}

/// Gets, and those of them that missed in each cache. A get of a sampled key counts for the gets of all the
/// keys that it stands for, so the counts are estimates for all keys.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    pub(super) gets: u64,
    pub(super) misses: [u64; CACHES],
}

/// A cache without values.
#[derive(Debug)]
struct Miniature {
    policy: Policy,
    capacity: u64,
    /// The insertions so far, which are the policy's time.
    now: u32,
}

impl Miniature {
    fn is_over(&self, incoming: u64) -> bool {
        self.policy.bytes().saturating_add(incoming) > self.capacity
    }

    fn moment(&self) -> Moment {
        Moment {
            now: self.now,
            entries: self.policy.len(),
            bytes: self.policy.bytes(),
        }
    }
}

impl Miniatures {
    pub(super) fn new(capacity: u64, cost: Cost, origin: Tick) -> Miniatures {
        let mut miniatures = Miniatures {
            caches: std::array::from_fn(|_| Miniature {
                policy: Policy::new(cost),
                capacity: 0,
                now: 0,
            }),
            samples: Samples::new(),
            table: HashTable::with_capacity(SLOTS),
            level: LOWEST_LEVEL,
            capacity,
            is_lru: cost == Cost::Constant,
            origin,
            counts: Counts::default(),
            sweep_at: 0,
        };
        miniatures.fit_capacities();
        miniatures
    }

    pub(super) fn level(&self) -> u32 {
        self.level
    }

    pub(super) fn counts(&self) -> Counts {
        self.counts
    }

    /// The capacity that a cache stands for, in bytes.
    pub(super) fn capacity(&self, cache: usize) -> u64 {
        let quarters = u128::from(self.capacity) << cache;
        u64::try_from(quarters >> 2).unwrap_or(u64::MAX)
    }

    /// The number of keys in the cache that has the real capacity.
    pub(super) fn len(&self) -> u32 {
        self.caches[REAL].policy.len()
    }

    pub(super) fn halve_counts(&mut self) {
        self.counts.gets /= 2;
        for misses in &mut self.counts.misses {
            *misses /= 2;
        }
    }

    /// Counts a get in every cache. With the value of the key, the caches that miss insert it. Without
    /// it, they wait for [`insert`](Self::insert) after the load.
    pub(super) fn get(&mut self, key: SampledKey, value: Option<SampledValue>, clock: &Clock) {
        if key.level < self.level {
            return;
        }
        let gets = 1 << self.level;
        self.counts.gets += gets;
        for cache in 0..CACHES {
            if let Some(index) = self.live_index(cache, key, clock) {
                if self.is_lru {
                    let Miniature { policy, now, .. } = &mut self.caches[cache];
                    policy.promote(&mut self.samples, index, *now);
                } else {
                    self.samples.meta(index).count_hit();
                }
                continue;
            }
            self.counts.misses[cache] += gets;
            if let Some(value) = value {
                self.insert_into(cache, key, value, clock);
            }
        }
    }

    /// Inserts a loaded value into the caches that do not have its key.
    pub(super) fn insert(&mut self, key: SampledKey, value: SampledValue, clock: &Clock) {
        for cache in 0..CACHES {
            if self.live_index(cache, key, clock).is_none() {
                self.insert_into(cache, key, value, clock);
            }
        }
    }

    /// Removes a key from every cache.
    pub(super) fn remove(&mut self, key: SampledKey) {
        for cache in 0..CACHES {
            if let Some(index) = self.index_of(cache, key) {
                self.remove_slot(index);
            }
        }
    }

    pub(super) fn clear(&mut self) {
        self.remove_where(|_| true);
    }

    /// Changes the real capacity, and forgets the counts of the old one.
    pub(super) fn set_capacity(&mut self, capacity: u64) {
        self.capacity = capacity;
        self.counts = Counts::default();
        self.fit_capacities();
    }

    /// A point in time, rounded down, in units since the caches were made. It is below the highest number.
    fn units(&self, at: Tick) -> u32 {
        let units = at.since(self.origin).as_nanos() >> EXPIRY_UNIT_LOG2;
        u32::try_from(units).map_or(u32::MAX - 1, |units| units.min(u32::MAX - 1))
    }

    /// Reads the clock only if the entry can expire.
    fn has_expired(&self, index: u32, clock: &Clock) -> bool {
        let expires = self.samples.slots[index as usize].expires;
        expires != u32::MAX && self.units(clock.now()) >= expires
    }

    fn index_of(&self, cache: usize, key: SampledKey) -> Option<u32> {
        let hash = key.hash_in(cache);
        let has_key = |index: &u16| self.samples.link(u32::from(*index)).hash == hash;
        let found = self.table.find(table_hash(hash), has_key);
        found.copied().map(u32::from)
    }

    /// The slot of a key. If it has expired, it is removed.
    fn live_index(&mut self, cache: usize, key: SampledKey, clock: &Clock) -> Option<u32> {
        let index = self.index_of(cache, key)?;
        if self.has_expired(index, clock) {
            self.remove_slot(index);
            return None;
        }
        Some(index)
    }

    /// Inserts a key as the store would: after the evictions that the policy chooses, or not at all if
    /// the policy does not admit the key.
    fn insert_into(&mut self, cache: usize, key: SampledKey, value: SampledValue, clock: &Clock) {
        self.sweep(clock);
        while self.samples.is_full() && self.level < HIGHEST_LEVEL {
            self.set_level(self.level + 1);
        }
        let hash = key.hash_in(cache);
        let miniature = &mut self.caches[cache];
        let link = SlotLink::new(hash, value.weight);
        let (true, Some(link)) = (value.weight <= miniature.capacity, link) else {
            return;
        };
        if key.level < self.level {
            return;
        }
        miniature.now = miniature.now.wrapping_add(1);
        let moment = miniature.moment();
        let admission = self.caches[cache].policy.admit(hash, value.weight, moment);
        let mut evicts = false;
        while self.caches[cache].is_over(value.weight) {
            evicts = true;
            if !self.evict(cache, moment, admission.limit) {
                return self.caches[cache].policy.refuse(hash, moment);
            }
        }
        let sample = Sample {
            link,
            meta: EntryMeta::default(),
            expires: value.expires.map_or(u32::MAX, |end| self.units(end) + 1),
            cache: cache as u8,
            level: key.level as u8,
        };
        let Some(index) = self.samples.insert(sample) else {
            return;
        };
        let policy = &mut self.caches[cache].policy;
        policy.push(&mut self.samples, index, admission.proven, moment.now);
        let samples = &self.samples;
        self.table
            .insert_unique(table_hash(hash), index as u16, |&index| {
                table_hash(samples.link(index.into()).hash)
            });
        if evicts && cache == CACHES - 1 {
            self.refine();
        }
    }

    /// Evicts an entry of a cache. False if the policy does not find one below the limit.
    fn evict(&mut self, cache: usize, moment: Moment, limit: u64) -> bool {
        let policy = &mut self.caches[cache].policy;
        let choice = policy.evict(&mut self.samples, moment, 0, limit);
        let Choice::Victim(index, _) = choice else {
            return false;
        };
        self.release(index);
        true
    }

    /// Samples one key in 2^level. The keys that are not sampled any more leave the caches.
    fn set_level(&mut self, level: u32) {
        self.level = level;
        self.remove_where(|sample| u32::from(sample.level) < level);
        self.fit_capacities();
    }

    /// Samples more keys if the largest cache is full although there are few entries: the values have
    /// become larger, or the capacity smaller.
    fn refine(&mut self) {
        if self.level > LOWEST_LEVEL && self.table.len() < SLOTS / 8 {
            self.set_level(self.level - 1);
        }
    }

    /// Gives each cache its part of the capacity, and evicts the entries beyond it.
    fn fit_capacities(&mut self) {
        for cache in 0..CACHES {
            self.caches[cache].capacity = self.capacity(cache) >> self.level;
            let moment = self.caches[cache].moment();
            while self.caches[cache].is_over(0) && self.evict(cache, moment, 0) {}
        }
    }

    fn sweep(&mut self, clock: &Clock) {
        let slots = self.samples.slots.len();
        for _ in 0..SWEEP_STEP.min(slots) {
            self.sweep_at = (self.sweep_at + 1) % slots;
            let index = self.sweep_at as u32;
            if self.samples.slots[self.sweep_at].cache != FREE && self.has_expired(index, clock) {
                self.remove_slot(index);
            }
        }
    }

    fn remove_where(&mut self, leaves: impl Fn(&Sample) -> bool) {
        for index in 0..self.samples.slots.len() {
            let sample = &self.samples.slots[index];
            if sample.cache != FREE && leaves(sample) {
                self.remove_slot(index as u32);
            }
        }
    }

    fn remove_slot(&mut self, index: u32) {
        let cache = self.samples.slots[index as usize].cache;
        self.caches[usize::from(cache)]
            .policy
            .remove(&mut self.samples, index);
        self.release(index);
    }

    /// Frees the slot of an entry that is in no queue.
    fn release(&mut self, index: u32) {
        let hash = table_hash(self.samples.link(index).hash);
        let is_it = |&other: &u16| u32::from(other) == index;
        if let Ok(place) = self.table.find_entry(hash, is_it) {
            place.remove();
        }
        self.samples.remove(index);
    }
}

/// The slots of all caches.
#[derive(Debug)]
struct Samples {
    slots: Vec<Sample>,
    /// The first of the free slots, which are linked by `next`.
    free: u32,
}

/// An entry of one of the caches.
#[derive(Debug)]
struct Sample {
    link: SlotLink,
    meta: EntryMeta,
    /// In [units](EXPIRY_UNIT_LOG2) of time, rounded up; the highest number if the entry does not expire.
    expires: u32,
    /// [`FREE`] if the slot is free.
    cache: u8,
    level: u8,
}

const FREE: u8 = u8::MAX;

/// A unit of expiry has 2^25 ns, so that 32 bits are 4.5 years.
const EXPIRY_UNIT_LOG2: u32 = 25;

impl Samples {
    fn new() -> Samples {
        Samples {
            slots: Vec::with_capacity(SLOTS),
            free: NIL,
        }
    }

    fn is_full(&self) -> bool {
        self.free == NIL && self.slots.len() == SLOTS
    }

    /// Puts a sample into a free slot. `None` if there is none.
    fn insert(&mut self, sample: Sample) -> Option<u32> {
        if self.is_full() {
            return None;
        }
        let index = self.free;
        if let Some(slot) = self.slots.get_mut(index as usize) {
            self.free = slot.link.next;
            *slot = sample;
            return Some(index);
        }
        self.slots.push(sample);
        Some(self.slots.len() as u32 - 1)
    }

    fn remove(&mut self, index: u32) {
        let slot = &mut self.slots[index as usize];
        slot.cache = FREE;
        slot.link.next = self.free;
        self.free = index;
    }
}

impl Slots for Samples {
    #[inline]
    fn link(&self, index: u32) -> &SlotLink {
        &self.slots[index as usize].link
    }

    #[inline]
    fn link_mut(&mut self, index: u32) -> &mut SlotLink {
        &mut self.slots[index as usize].link
    }

    #[inline]
    fn meta(&self, index: u32) -> &EntryMeta {
        &self.slots[index as usize].meta
    }

    #[inline]
    fn meta_mut(&mut self, index: u32) -> &mut EntryMeta {
        &mut self.slots[index as usize].meta
    }
}
