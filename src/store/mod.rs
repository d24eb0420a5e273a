//! The sharded, byte-bounded, expiring store behind a group.
//!
//! ```text
//!   mod.rs          the store: which shard, and which lock
//!   making_room.rs  which shard gives room           kept.rs      values that loads may renew
//!   iter.rs         all entries                      cleared.rs   entries that `clear` took out
//!   shard.rs        one shard: a table from keys to slots
//!   table.rs        from keys to its slots           slab.rs      its slots
//!   policy/         which entry leaves next: queues, and a list of the keys that left lately
//!   entry/          an entry: its hash, weight, etag, generation, and time of load
//!   expiry.rs       which entries have expired       evicted.rs   the entries that left
//!   budget/         the bytes of all shards          options.rs   the options of a store
//!   forecast/       the hit ratio at other capacities, from caches in miniature
//!   timing.rs       the time of look-ups             sampling.rs  one look-up in 256
//! ```
//!
//! Only the first five files lock shards. Three rules hold everywhere: no lock is taken while another is
//! held; no user code runs under a lock; no value is dropped under one.

mod budget;
mod cleared;
mod entry;
mod evicted;
mod expiry;
mod forecast;
mod iter;
mod kept;
mod making_room;
mod options;
mod policy;
mod sampling;
mod shard;
mod slab;
mod table;
#[cfg(all(test, not(larder_loom)))]
mod tests;
mod timing;

use crate::sync::plain_atomic::{AtomicU64, AtomicUsize};
use std::hash::{BuildHasher, Hasher};
use std::time::Duration;

use crossbeam_utils::CachePadded;
use foldhash::quality::SeedableRandomState;

use crate::byteview::ByteView;
use crate::clock::{Clock, Tick};
use crate::heap::Heap;
use crate::stats::{CacheStats, CacheType};
use crate::sync::{Arc, RwLock};
use crate::threads::counters::ThreadCounters;
use budget::Budget;
use entry::load_times::LoadTimes;
use entry::weight;
use expiry::NextExpiries;
use forecast::Forecaster;
use forecast::miniature::SampledValue;
use policy::Cost;
use shard::{Insertion, Room, Shard, Update};
use slab::EntryState;
use timing::Timing;

pub(crate) use shard::EVICTED_AT_ONCE;

pub(crate) use budget::ceilings::CeilingId;
pub(crate) use cleared::ClearedEntries;
pub use entry::Entry;
pub(crate) use entry::etag::MAX_ETAG;
pub(crate) use entry::generations::Generation;
pub(crate) use entry::key_hash::KeyHash;
pub(crate) use entry::weight::check_capacity;
pub(crate) use entry::{Hit, NewBytes, NewEntry, NoView};
pub use evicted::RemovalCause;
pub(crate) use evicted::{Evicted, EvictedEntries, PendingEviction};
pub use forecast::{Forecast, ForecastPoint};
pub(crate) use options::StoreOptions;
pub use policy::Eviction;
pub(crate) use sampling::{SAMPLED_ONE_IN, is_sampled};

/// Entries of two shares under one budget, found by key.
pub(crate) struct Store {
    /// A hash of good quality, because shards, samples and tags take a few bits each. The fast variant filled
    /// some shards five times as much as others.
    hasher: SeedableRandomState,
    /// Padded against false sharing between threads at different shards.
    shards: Box<[CachePadded<RwLock<Shard>>]>,
    budget: Budget,
    /// Holds the keys and values of all entries.
    heap: Arc<Heap>,
    next_expiries: NextExpiries,
    eviction: Eviction,
    timing: Timing,
    lookups: ThreadCounters<LookupCounters>,
    forecaster: Forecaster,
    /// The shard where the last search for a victim in all shards ended.
    cursor: AtomicUsize,
}

/// Counts of look-ups, by their result.
#[derive(Default)]
struct LookupCounters {
    main_hits: AtomicU64,
    hot_hits: AtomicU64,
    misses: AtomicU64,
}

impl Store {
    pub(crate) fn new(options: StoreOptions) -> Store {
        Store::with_hasher(options, SeedableRandomState::random())
    }

    /// A store whose keys are in the same shards in each run.
    #[cfg(test)]
    pub(crate) fn seeded(options: StoreOptions, seed: u64) -> Store {
        let shared = foldhash::SharedSeed::global_fixed();
        Store::with_hasher(options, SeedableRandomState::with_seed(seed, shared))
    }

    fn with_hasher(options: StoreOptions, hasher: SeedableRandomState) -> Store {
        let shards = options.shards();
        let heap = Arc::new(Heap::new(options.capacity, shards));
        let cost = match options.eviction {
            Eviction::Lru => Cost::Constant,
            Eviction::Tide if options.favor_objects => Cost::Weight,
            Eviction::Tide => Cost::SquareRoot,
        };
        let load_times = LoadTimes::new(options.clock.now());
        Store {
            hasher,
            shards: (0..shards)
                .map(|_| CachePadded::new(RwLock::new(Shard::new(cost, load_times))))
                .collect(),
            budget: Budget::new(
                options.capacity,
                options.hot_fraction,
                shards,
                heap.excess(),
            ),
            heap,
            forecaster: Forecaster::new(
                options.capacity,
                options.forecast.then_some(cost),
                &options.clock,
            ),
            next_expiries: NextExpiries::new(shards),
            eviction: options.eviction,
            timing: Timing::new(options.clock, options.retention),
            lookups: ThreadCounters::new(),
            cursor: AtomicUsize::new(0),
        }
    }

    #[inline]
    pub(crate) fn hash(&self, key: &str) -> KeyHash {
        let mut hasher = self.hasher.build_hasher();
        hasher.write(key.as_bytes());
        KeyHash::new(hasher.finish())
    }

    pub(crate) fn clock(&self) -> &Clock {
        &self.timing.clock
    }

    /// The capacity now, which a temporary limit may lower.
    pub(crate) fn capacity(&self) -> u64 {
        self.budget.capacity()
    }

    /// Drops entries that left, and keeps memory of theirs for the next entry of this thread.
    #[inline]
    pub(crate) fn recycle(&self, evicted: &mut EvictedEntries) {
        if let Some(bytes) = evicted.take_first() {
            self.heap.recycle(bytes);
        }
    }

    /// Returns all memory that holds no entry to the system. Entries that left and are still held are
    /// not waited for.
    pub(crate) fn release_free_pages(&self) {
        for shard in &self.shards {
            shard.write().table.release_slots();
        }
        self.heap.release_free_pages();
    }

    pub(crate) fn full_capacity(&self) -> u64 {
        self.budget.full_capacity()
    }

    /// The bytes that count against the capacity.
    pub(crate) fn used(&self) -> u64 {
        self.budget.used()
    }

    /// Whether an entry whose key and value have this length together evicts no other. A part of the
    /// capacity stays free, for pages that the entry fills in part only.
    pub(crate) fn has_room(&self, len: usize) -> bool {
        let spare = self.capacity() / 64;
        let weight = weight::of_entry(len).saturating_add(spare);
        self.budget.has_room(weight)
    }

    /// The used bytes, and the free room that no entry can have.
    pub(crate) fn occupied(&self) -> u64 {
        self.budget.occupied()
    }

    /// The bytes of memory that the store takes: the pages of its entries, and its tables.
    pub(crate) fn resident(&self) -> u64 {
        let tables = self.shards.iter().map(|shard| shard.read().table_bytes());
        (self.heap.resident() + tables.sum::<usize>()) as u64
    }

    /// Adds a temporary limit in bytes. The caller evicts with
    /// [`evict_to_capacity`](Self::evict_to_capacity).
    pub(crate) fn add_ceiling(&self, bytes: u64) -> CeilingId {
        self.budget.ceilings.add(bytes)
    }

    /// Changes a temporary limit, or removes it.
    pub(crate) fn set_ceiling(&self, id: CeilingId, bytes: Option<u64>) {
        self.budget.ceilings.set(id, bytes);
    }

    /// The live entry of a key, counted as a hit and as a use. If there is none, nothing is counted
    /// (see [`count_miss`](Self::count_miss)), and the generation is the one that
    /// [`peek`](Self::peek) would return. In this case `at_miss` runs under the shard's lock, so no
    /// entry is inserted between the look-up and its call. It must take no lock.
    ///
    /// One hit in [`SAMPLED_ONE_IN`] of a thread calls `at_sampled`, which removes expired entries. A hit
    /// holds the shared lock, so it removes none itself.
    pub(crate) fn get<M>(
        &self,
        hash: KeyHash,
        key: &str,
        at_miss: impl FnOnce() -> M,
        at_sampled: impl FnOnce(),
    ) -> Result<Hit, (Generation, M)> {
        self.get_if(hash, key, |_| true, at_miss, at_sampled)
    }

    /// Like [`get`](Self::get), but an entry that `is_wanted` refuses is as good as none. This runs under the
    /// shard's lock, too. Not inlined: with more copies of the search in the table, the compiler would call it
    /// from [`get_view`](Self::get_view) instead of inlining it there.
    pub(crate) fn get_if<M>(
        &self,
        hash: KeyHash,
        key: &str,
        is_wanted: impl FnOnce(&Hit) -> bool,
        at_miss: impl FnOnce() -> M,
        at_sampled: impl FnOnce(),
    ) -> Result<Hit, (Generation, M)> {
        let shard = self.shard(hash).read();
        let Some((slot, is_due)) = shard.table.find(hash, key, &self.timing) else {
            shard.prefetch_ghost(hash.short());
            return Err((shard.generation(hash), at_miss()));
        };
        let hit = slot.hit(is_due);
        if !is_wanted(&hit) {
            return Err((shard.generation(hash), at_miss()));
        }
        let state = slot.meta.count_hit();
        drop(shard);
        self.count_hit(hash, key, state, at_sampled);
        Ok(hit)
    }

    /// The view of a live entry that is not [due](Hit::is_due). Otherwise as [`get`](Self::get).
    #[inline(always)]
    pub(crate) fn get_view<M>(
        &self,
        hash: KeyHash,
        key: &str,
        at_miss: impl FnOnce() -> M,
        at_sampled: impl FnOnce(),
    ) -> Result<ByteView, NoView<M>> {
        let shard = self.shard(hash).read();
        let Some((slot, is_due)) = shard.table.find(hash, key, &self.timing) else {
            shard.prefetch_ghost(hash.short());
            return Err(NoView::Missed((shard.generation(hash), at_miss())));
        };
        let state = slot.meta.count_hit();
        let (data, start) = (slot.data.clone(), usize::from(slot.meta.key_len));
        drop(shard);
        self.count_hit(hash, key, state, at_sampled);
        if is_due {
            return Err(NoView::Due);
        }
        // The view is built last. If it were built earlier and then moved, it would be loaded in pieces
        // of other sizes than it was stored in, which stalls (no store forwarding).
        let end = data.len() - state.trailer_len(&data);
        Ok(ByteView::window(data, start, end))
    }

    #[inline(always)]
    fn count_hit(&self, hash: KeyHash, key: &str, state: EntryState, at_sampled: impl FnOnce()) {
        let hits = self.lookups.add(|lookups| match state.share() {
            CacheType::Main => &lookups.main_hits,
            CacheType::Hot => &lookups.hot_hits,
        });
        if is_sampled(hits) {
            at_sampled();
        }
        if self.eviction == Eviction::Lru || self.forecaster.samples(hash) {
            self.observe_hit(hash, key);
        }
    }

    /// Moves the entry of a hit to the front under exact LRU, and shows the forecast a hit of a sampled key.
    /// The entry may have left since the hit. Then this does nothing.
    #[cold]
    fn observe_hit(&self, hash: KeyHash, key: &str) {
        if self.eviction == Eviction::Lru {
            let ledger = self.budget.ledger();
            self.shard(hash).write().promote(hash, key, &ledger);
        }
        if self.forecaster.samples(hash) {
            let shard = self.shard(hash).read();
            let slot = shard.table.slot_of(hash, key);
            let value = slot.map(|slot| SampledValue::new(slot.data.len(), slot.expires()));
            drop(shard);
            if value.is_some() {
                self.observe_get(hash, value);
            }
        }
    }

    /// Counts a look-up that found nothing. True if the caller should remove expired entries.
    pub(crate) fn count_miss(&self, hash: KeyHash) -> bool {
        let misses = self.lookups.add(|lookups| &lookups.misses);
        if self.forecaster.samples(hash) {
            self.observe_get(hash, None);
        }
        is_sampled(misses)
    }

    #[cold]
    fn observe_get(&self, hash: KeyHash, value: Option<SampledValue>) {
        let (forecaster, clock) = (&self.forecaster, &self.timing.clock);
        forecaster.observe_get(hash, value, clock, || self.lookups());
    }

    /// The hit ratio at other capacities. `None` if forecasts are off or there is too little to go by.
    pub(crate) fn forecast(&self) -> Option<Forecast> {
        self.forecaster.forecast(self.lookups())
    }

    /// The live entry of a key. Counts nothing. If there is none, returns the generation for an
    /// [`insert`](Self::insert) of a load that begins now.
    ///
    /// A removal advances the key's generation under the shard's lock, and an insertion compares it
    /// under that lock. So a value whose load began before a removal is either inserted before the
    /// removal, which removes it, or refused after it.
    pub(crate) fn peek(&self, hash: KeyHash, key: &str) -> Result<Hit, Generation> {
        let (found, generation) = self.look(hash, key);
        found.ok_or(generation)
    }

    /// Like [`peek`](Self::peek), with the generation also if there is an entry.
    pub(crate) fn look(&self, hash: KeyHash, key: &str) -> (Option<Hit>, Generation) {
        let shard = self.shard(hash).read();
        let found = shard.table.find(hash, key, &self.timing);
        let found = found.map(|(slot, is_due)| slot.hit(is_due));
        (found, shard.generation(hash))
    }

    /// Look-ups find entries [due](Hit::is_due) that expire within this time. It never becomes shorter.
    pub(crate) fn raise_margin(&self, margin: Duration) {
        self.timing.raise_margin(margin);
    }

    /// Inserts an entry in place of an older one of its key, and evicts to make room.
    ///
    /// Inserts nothing if the key was removed since the load began, or if the policy does not admit
    /// the entry. The caller reports and drops the entries that left, and then [finishes the
    /// eviction](Self::finish_eviction). So a value that replaces thousands of entries is in the
    /// store before all of them have left.
    pub(crate) fn insert(&self, new: NewEntry<'_>, evicted: &mut EvictedEntries) {
        self.insert_into(new, evicted, Shard::insert);
    }

    /// Like [`insert`](Self::insert), for a value that replaces all others of its key: those of loads
    /// under way are not cached. `at_removal` runs under the shard's lock; it must take no lock. It decides
    /// whether the value is cached.
    pub(crate) fn set(
        &self,
        new: NewEntry<'_>,
        evicted: &mut EvictedEntries,
        at_removal: impl FnOnce() -> bool,
    ) {
        self.insert_into(new, evicted, |shard, new, update| {
            let is_kept = at_removal();
            shard.set(new, is_kept, update)
        });
    }

    #[inline]
    fn insert_into(
        &self,
        new: NewEntry<'_>,
        evicted: &mut EvictedEntries,
        insert: impl FnOnce(&mut Shard, &NewEntry<'_>, &mut Update<'_>) -> Insertion,
    ) {
        if self.forecaster.samples(new.hash) {
            let value = SampledValue::new(new.data.len(), new.expires);
            self.forecaster
                .observe_load(new.hash, value, &self.timing.clock);
        }
        if self.next_expiries.any() {
            self.make_room_from_expired(new.data.len(), evicted);
        }
        let home = new.hash.shard(self.shards.len());
        let mut shard = self.shards[home].write();
        let Insertion { room, limit } = insert(&mut shard, &new, &mut self.update(evicted));
        if let Some(end) = new.expires {
            self.next_expiries.lower(home, end);
        }
        drop(shard);
        let hash = new.hash;
        let inserted = PendingEviction { hash, limit };
        if room == Room::Pending {
            evicted.set_pending(Some(inserted));
        } else if self.budget.is_over() {
            self.make_room(Some(inserted), evicted);
        }
    }

    /// Removes up to `at_most` entries that had expired by `now`; `None` once there is none.
    pub(crate) fn purge_expired(&self, now: Tick, at_most: usize) -> Option<EvictedEntries> {
        let mut evicted = EvictedEntries::default();
        self.remove_expired(now, &mut evicted, |update| update.evicted.len() < at_most);
        (!evicted.is_empty()).then_some(evicted)
    }

    /// Like [`purge_expired`](Self::purge_expired), but entries that are kept for loads stay.
    pub(crate) fn purge_unkept(&self, at_most: usize) -> Option<EvictedEntries> {
        let now = self.timing.clock.now();
        self.purge_expired(now.before(self.timing.retention)?, at_most)
    }

    /// Whether an entry may expire.
    pub(crate) fn may_expire(&self) -> bool {
        self.next_expiries.any()
    }

    /// Evicts more entries for an insertion whose first victims were dropped.
    ///
    /// It evicts a limited number, so that look-ups wait for no more than that. Concurrent insertions
    /// find the store over its capacity, and evict for themselves and for this one. So the store
    /// shrinks even if this is never called.
    pub(crate) fn finish_eviction(&self, pending: PendingEviction) -> EvictedEntries {
        let mut evicted = self.expired_while_over().unwrap_or_default();
        self.make_room(Some(pending), &mut evicted);
        evicted
    }

    /// Changes the capacity. The caller evicts with
    /// [`evict_to_capacity`](Self::evict_to_capacity).
    pub(crate) fn set_capacity(&self, capacity: u64) {
        self.budget.set_capacity(capacity);
        self.forecaster.set_capacity(capacity, self.lookups());
    }

    /// Evicts some entries while the store is over its capacity, the expired ones first; `None` once
    /// it is not. The number is limited so that look-ups do not wait for all evictions, and so that the
    /// caller can drop these entries before more are evicted.
    pub(crate) fn evict_to_capacity(&self) -> Option<EvictedEntries> {
        if let Some(expired) = self.expired_while_over() {
            return Some(expired);
        }
        let mut evicted = EvictedEntries::default();
        self.make_room(None, &mut evicted);
        (!evicted.is_empty()).then_some(evicted)
    }

    /// Removes a key with cause [`RemovalCause::Explicit`], or [`RemovalCause::Expired`] if it had
    /// expired. The value of a load that is under way is not cached.
    ///
    /// `at_removal` runs under the shard's lock. So a look-up that begins after its effects are visible
    /// does not find the entry. It must take no lock.
    pub(crate) fn remove(
        &self,
        hash: KeyHash,
        key: &str,
        at_removal: impl FnOnce(),
    ) -> EvictedEntries {
        if self.forecaster.samples(hash) {
            self.forecaster.observe_removal(hash);
        }
        let mut evicted = EvictedEntries::default();
        let mut shard = self.shard(hash).write();
        at_removal();
        shard.remove(hash, key, &mut self.update(&mut evicted));
        drop(shard);
        evicted
    }

    /// Removes the entries for whose key and time of load `is_old` returns true, and keeps the values of
    /// loads under way from being cached. Passes the entries to `removed`, some at a time, with no lock
    /// held. `is_old` must take no lock.
    pub(crate) fn remove_older(
        &self,
        is_old: &dyn Fn(&str, Option<Tick>) -> bool,
        mut removed: impl FnMut(EvictedEntries),
    ) {
        for shard in &self.shards {
            let mut from = u32::MAX;
            shard.write().refuse_loads();
            while from > 0 {
                let mut evicted = EvictedEntries::default();
                let mut shard = shard.write();
                from = shard.remove_older(from, is_old, &mut self.update(&mut evicted));
                drop(shard);
                removed(evicted);
            }
        }
    }

    /// Removes the entry of a key whose load found nothing. Like [`insert`](Self::insert), does nothing if the
    /// key was removed since the load began. The values of loads under way are cached.
    pub(crate) fn remove_unless_changed(
        &self,
        hash: KeyHash,
        key: &str,
        loaded_at: Generation,
        is_forgotten: &dyn Fn() -> bool,
    ) -> EvictedEntries {
        let mut evicted = EvictedEntries::default();
        let mut shard = self.shard(hash).write();
        if shard.generation(hash) == loaded_at && !is_forgotten() {
            shard.remove_entry(hash, key, &mut self.update(&mut evicted));
        }
        drop(shard);
        evicted
    }

    /// The number of look-ups, and of those that found an entry.
    pub(crate) fn lookups(&self) -> (u64, u64) {
        let [main_hits, hot_hits, misses] = self.lookup_counts();
        let hits = main_hits + hot_hits;
        (hits + misses, hits)
    }

    fn lookup_counts(&self) -> [u64; 3] {
        [
            self.lookups.sum(|lookups| &lookups.main_hits),
            self.lookups.sum(|lookups| &lookups.hot_hits),
            self.lookups.sum(|lookups| &lookups.misses),
        ]
    }

    pub(crate) fn stats(&self, share: CacheType) -> CacheStats {
        let mut stats = CacheStats::default();
        for shard in &self.shards {
            shard.read().add_usage(share, &mut stats);
        }
        let [main_hits, hot_hits, misses] = self.lookup_counts();
        (stats.gets, stats.hits) = match share {
            CacheType::Main => (main_hits + hot_hits + misses, main_hits),
            CacheType::Hot => (hot_hits + misses, hot_hits),
        };
        stats
    }

    fn update<'a>(&'a self, evicted: &'a mut EvictedEntries) -> Update<'a> {
        Update {
            ledger: self.budget.ledger(),
            clock: &self.timing.clock,
            now: None,
            retention: self.timing.retention,
            evicted,
        }
    }

    #[inline]
    fn shard(&self, hash: KeyHash) -> &RwLock<Shard> {
        &self.shards[hash.shard(self.shards.len())]
    }
}
