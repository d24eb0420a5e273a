//! One shard: a table, its slots, and the policy of each share. A shard does no locking; the store
//! locks it.

use hashbrown::HashTable;

use super::budget::Ledger;
use super::entry::{Entry, NewEntry};
use super::evicted::{Evicted, EvictedEntries, RemovalCause};
use super::generations::{Generation, Generations};
use super::key_hash::{KeyHash, table_hash};
use super::policy::{Eviction, Policy};
use super::slab::{Slab, SlotRef};
use super::weight;
use crate::clock::{Clock, Tick};
use crate::stats::{CacheStats, CacheType};

/// The most expired entries that an insertion removes although it does not need their room.
const SWEPT_AT_ONCE: usize = 8;

/// The most entries evicted under one lock, because look-ups wait for it.
pub(crate) const EVICTED_AT_ONCE: usize = 256;

/// Tables of at most this many slots do not shrink.
const MIN_SLOTS: usize = 64;

#[derive(Debug)]
#[repr(C, align(64))]
pub(super) struct Shard {
    table: HashTable<u32>,
    slab: Slab,
    eviction: Eviction,
    /// Indexed by [`CacheType`], like `removals`.
    policies: [Policy; 2],
    removals: [Removals; 2],
    generations: Generations,
}

/// The entries of a share that left so far, by their [`RemovalCause`].
type Removals = [u64; 4];

/// The state of one operation that changes a shard: its ledger, the clock, and the entries that
/// leave.
#[derive(Debug)]
pub(super) struct Update<'a> {
    pub(super) ledger: Ledger<'a>,
    pub(super) clock: &'a Clock,
    /// The time of the operation, read from the clock once it is needed.
    pub(super) now: Option<Tick>,
    pub(super) evicted: &'a mut EvictedEntries,
}

impl Update<'_> {
    fn now(&mut self) -> Tick {
        *self.now.get_or_insert_with(|| self.clock.now())
    }
}

/// The bytes that an insertion is about to add to a shard.
#[derive(Clone, Copy, Default)]
struct IncomingWeight {
    total: u64,
    hot: u64,
}

impl Shard {
    pub(super) fn new(eviction: Eviction) -> Shard {
        Shard {
            table: HashTable::new(),
            slab: Slab::with_capacity(0),
            eviction,
            policies: [Policy::new(eviction), Policy::new(eviction)],
            removals: Default::default(),
            generations: Generations::new(),
        }
    }

    /// The slot of a key's entry, expired or not.
    #[inline(always)]
    fn index_of(&self, hash: KeyHash, key: &str) -> Option<u32> {
        let short = hash.short();
        let found = self.table.find(table_hash(short), |&index| {
            self.slab.has_key(index, short, key)
        });
        found.copied()
    }

    /// The live entry of a key.
    #[inline(always)]
    pub(super) fn find(&self, hash: KeyHash, key: &str, clock: &Clock) -> Option<SlotRef<'_>> {
        let slot = self.slab.slot(self.index_of(hash, key)?)?;
        (!slot.has_expired(clock)).then_some(slot)
    }

    /// All live entries.
    pub(super) fn snapshot(&self, clock: &Clock) -> Vec<Entry> {
        let mut entries = Vec::with_capacity(self.len());
        let now = clock.now();
        let live = |index| self.slab.expiry(index).is_none_or(|end| end > now);
        let live = self.slab.iter().filter(|(index, _)| live(*index));
        entries.extend(live.map(|(_, entry)| entry));
        entries
    }

    /// Moves a key's entry to the front, under exact LRU.
    pub(super) fn promote(&mut self, hash: KeyHash, key: &str) {
        if let Some(index) = self.index_of(hash, key) {
            let share = self.slab.meta(index).share();
            self.policies[share as usize].promote(&mut self.slab, index);
        }
    }

    pub(super) fn generation(&self, hash: KeyHash) -> Generation {
        self.generations.of(hash)
    }

    /// Inserts an entry and makes room for it: first from expired entries, and then as
    /// [`make_room`](Self::make_room) does. Inserts nothing
    /// if the key was removed since its load began, or if the policy does not admit the entry. In the
    /// second case an older entry of the key is removed all the same.
    pub(super) fn insert(&mut self, new: &NewEntry<'_>, update: &mut Update<'_>) {
        if new.loaded_at != self.generation(new.hash) {
            return;
        }
        let mut weight = weight::of_entry(new.data.len());
        if new.expires.is_some() || !self.slab.expiries().is_empty() {
            weight += weight::EXPIRY as u64;
        }
        let before = update.evicted.len();
        self.remove_expired(update, |update| {
            let removed = update.evicted.len() - before;
            let needed = !update.ledger.has_room(weight) && removed < EVICTED_AT_ONCE;
            needed || removed < SWEPT_AT_ONCE
        });

        // A replacement is a removal and an insertion, which keeps every weight exact. The new entry
        // keeps the hits of the old one, and its place in the main queue if it was there.
        let (mut proven, mut freq) = (false, 0);
        if let Some(index) = self.index_of(new.hash, new.key) {
            let meta = self.slab.meta(index);
            (proven, freq) = (meta.in_main_queue(), meta.freq());
            self.remove_slot(index, RemovalCause::Replaced, update);
        }

        if !self.admits(new, weight, proven, &update.ledger) {
            return;
        }
        update.ledger.take(weight);
        let hot = if new.share == CacheType::Hot {
            weight
        } else {
            0
        };
        let incoming = IncomingWeight { total: weight, hot };
        self.make_room(new.hash, incoming, None, update);
        let Some(index) = self.slab.insert(new, weight) else {
            update.ledger.release(weight);
            return;
        };
        self.slab.meta_mut(index).set_freq(freq);
        self.policies[new.share as usize].push(&mut self.slab, index, proven);
        let slab = &self.slab;
        self.table
            .insert_unique(table_hash(new.hash.short()), index, |&index| {
                table_hash(slab.hash(index))
            });
    }

    /// Whether an entry of this weight is cached. An entry that is too large to be always admitted is
    /// cached on its second request, in place of an entry of the main queue, or while there is unused
    /// room.
    fn admits(
        &mut self,
        new: &NewEntry<'_>,
        weight: u64,
        proven: bool,
        ledger: &Ledger<'_>,
    ) -> bool {
        if weight > ledger.capacity() || !Slab::can_hold(new.key.len(), weight) {
            return false;
        }
        let policy = &mut self.policies[new.share as usize];
        policy.admits(weight, ledger.limits.of(new.share))
            || proven
            || ledger.has_room(weight)
            || policy.is_second_request(new.hash.short())
    }

    /// Evicts more entries for an insertion that left the store over its capacity: up to
    /// [`EVICTED_AT_ONCE`], but not the inserted one.
    pub(super) fn finish_eviction(&mut self, hash: KeyHash, update: &mut Update<'_>) {
        // The inserted entry may have left meanwhile. Sparing another entry with its hash does no
        // harm.
        let short = hash.short();
        let inserted = |index: &u32| self.slab.hash(*index) == short;
        let spared = self.table.find(table_hash(short), inserted).copied();
        self.make_room(hash, IncomingWeight::default(), spared, update);
    }

    /// Evicts while the store is over its capacity and this shard is over its own part. Stops after
    /// [`EVICTED_AT_ONCE`] entries, and then marks the eviction for `hash` as pending.
    fn make_room(
        &mut self,
        hash: KeyHash,
        incoming: IncomingWeight,
        spared: Option<u32>,
        update: &mut Update<'_>,
    ) {
        let total = update.ledger.limits.total;
        while update.ledger.is_over() && self.bytes() + incoming.total > total {
            if update.evicted.len() >= EVICTED_AT_ONCE {
                update.evicted.set_pending(hash);
                break;
            }
            if !self.evict(incoming.hot, spared, update) {
                break;
            }
        }
        self.fit_tables();
    }

    /// Evicts one entry. False if there is none.
    pub(super) fn evict_one(&mut self, update: &mut Update<'_>) -> bool {
        self.evict(0, None, update)
    }

    /// Evicts one entry other than `spared`: from the hot share if it is over its part with
    /// `incoming_hot` more bytes, else from the main one. False if there is none.
    fn evict(&mut self, incoming_hot: u64, spared: Option<u32>, update: &mut Update<'_>) -> bool {
        let limits = update.ledger.limits;
        let hot_bytes = self.policies[CacheType::Hot as usize].bytes();
        let mut order = [CacheType::Main, CacheType::Hot];
        if hot_bytes + incoming_hot > limits.hot {
            order.reverse();
        }
        for share in order {
            let policy = &mut self.policies[share as usize];
            if let Some(index) = policy.evict(&mut self.slab, limits.of(share), spared) {
                self.release(index, RemovalCause::Size, update);
                return true;
            }
        }
        false
    }

    /// Removes a key, and keeps the values of its loads under way from being cached.
    pub(super) fn remove(&mut self, hash: KeyHash, key: &str, update: &mut Update<'_>) {
        self.generations.advance(hash);
        if let Some(index) = self.index_of(hash, key) {
            self.remove_slot(index, RemovalCause::Explicit, update);
        }
    }

    /// Removes everything, and keeps the values of loads under way from being cached. Returns the old
    /// contents with their tables, to be dropped without the lock.
    pub(super) fn clear(&mut self, mut ledger: Ledger<'_>, now: Tick) -> Shard {
        ledger.release(self.bytes());
        for share in [CacheType::Main, CacheType::Hot] {
            let count = u64::from(self.policies[share as usize].len());
            self.removals[share as usize][RemovalCause::Explicit as usize] += count;
        }
        for index in self.slab.expiries().all_expired(now) {
            let removals = &mut self.removals[self.slab.meta(index).share() as usize];
            removals[RemovalCause::Explicit as usize] -= 1;
            removals[RemovalCause::Expired as usize] += 1;
        }
        let mut empty = Shard::new(self.eviction);
        empty.removals = self.removals;
        std::mem::swap(&mut empty.generations, &mut self.generations);
        empty.generations.advance_all();
        std::mem::replace(self, empty)
    }

    /// The entries of a shard that was cleared at this time.
    pub(super) fn cleared(&self, now: Tick) -> impl Iterator<Item = Evicted> {
        self.slab.iter().map(move |(index, entry)| Evicted {
            entry,
            cause: self.cause(index, RemovalCause::Explicit, now),
        })
    }

    /// Shrinks the tables if they are much larger than their contents.
    ///
    /// The memory of free slots is in no entry's weight. Without this, the tables would stay large
    /// when a few large entries replace many small ones. For each entry that is moved, another one
    /// has left before. So an insertion costs one or two moves on average.
    pub(super) fn fit_tables(&mut self) {
        let live = self.len();
        if live >= self.slab.len() / 2 || self.slab.len() <= MIN_SLOTS {
            return;
        }
        let mut slab = Slab::with_capacity(live + 1);
        self.table = HashTable::with_capacity(live + 1);
        for policy in &mut self.policies {
            policy.move_to(&mut self.slab, &mut slab, |slab, index| {
                // The table has room for all entries, so it never needs their hashes again.
                let hash = table_hash(slab.hash(index));
                self.table.insert_unique(hash, index, |_| 0);
            });
        }
        self.slab = slab;
    }

    /// Removes expired entries while `more` returns true.
    pub(super) fn remove_expired(
        &mut self,
        update: &mut Update<'_>,
        more: impl Fn(&Update<'_>) -> bool,
    ) {
        if self.next_expiry() == Tick::NEVER {
            return;
        }
        let now = update.now();
        while let Some(index) = self.slab.expiries().expired(now).filter(|_| more(update)) {
            self.remove_slot(index, RemovalCause::Expired, update);
        }
    }

    /// The time when the first entry expires; [`Tick::NEVER`] if none does.
    pub(super) fn next_expiry(&self) -> Tick {
        self.slab.expiries().earliest()
    }

    /// The sum of all entries' weights, after checking that every entry can be found.
    #[cfg(all(test, not(larder_loom)))]
    pub(super) fn audit(&self) -> u64 {
        let live: Vec<u32> = self.slab.iter().map(|(index, _)| index).collect();
        for &index in &live {
            let hash = table_hash(self.slab.hash(index));
            assert!(self.table.find(hash, |&other| other == index).is_some());
        }
        assert_eq!(self.table.len(), live.len());
        live.iter().map(|&index| self.slab.weight(index)).sum()
    }

    #[cfg(all(test, not(larder_loom)))]
    pub(super) fn slots(&self) -> usize {
        self.slab.len()
    }

    pub(super) fn bytes(&self) -> u64 {
        self.policies.iter().map(Policy::bytes).sum()
    }

    pub(super) fn len(&self) -> usize {
        self.table.len()
    }

    /// Adds the contents of a share, and the entries that left it, to `stats`.
    pub(super) fn add_usage(&self, share: CacheType, stats: &mut CacheStats) {
        let policy = &self.policies[share as usize];
        stats.bytes += policy.bytes();
        stats.items += u64::from(policy.len());
        let removals = &self.removals[share as usize];
        stats.evictions += removals[RemovalCause::Size as usize];
        stats.expired += removals[RemovalCause::Expired as usize];
        stats.removed += removals[RemovalCause::Explicit as usize];
        stats.replaced += removals[RemovalCause::Replaced as usize];
    }

    /// Removes a slot's entry.
    fn remove_slot(&mut self, index: u32, cause: RemovalCause, update: &mut Update<'_>) {
        let share = self.slab.meta(index).share();
        self.policies[share as usize].remove(&mut self.slab, index);
        self.release(index, cause, update);
    }

    /// Removes an entry that is in no queue from the table and the slab. It leaves with this cause,
    /// or as expired if its time to live is over.
    fn release(&mut self, index: u32, cause: RemovalCause, update: &mut Update<'_>) {
        update.ledger.release(self.slab.weight(index));
        let cause = match self.slab.expiry(index) {
            Some(_) => self.cause(index, cause, update.now()),
            None => cause,
        };
        let hash = table_hash(self.slab.hash(index));
        if let Ok(place) = self.table.find_entry(hash, |&other| other == index) {
            place.remove();
        }
        if let Some(entry) = self.slab.remove(index) {
            self.removals[entry.cache_type() as usize][cause as usize] += 1;
            update.evicted.push(entry, cause);
        }
    }

    /// The cause with which a slot's entry leaves at this time.
    fn cause(&self, index: u32, cause: RemovalCause, now: Tick) -> RemovalCause {
        match self.slab.expiry(index) {
            Some(end) if end <= now => RemovalCause::Expired,
            _ => cause,
        }
    }
}
