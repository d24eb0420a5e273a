//! One shard: a table, its slots, and the policy of each share. A shard does no locking; the store
//! locks it.

use std::ops::Range;
use std::time::Duration;

use super::budget::demand::Demand;
use super::budget::{Ledger, Progress};
use super::entry::generations::{Generation, Generations};
use super::entry::key_hash::KeyHash;
use super::entry::load_times::LoadTimes;
use super::entry::weight;
use super::entry::{Entry, NewBytes, NewEntry};
use super::evicted::{Evicted, EvictedEntries, RemovalCause};
use super::policy::{Choice, Cost, Moment, Policy};
use super::slab::{Slab, Slots};
use super::table::SlotTable;
use crate::clock::{Clock, Tick};
use crate::stats::{CacheStats, CacheType};

/// The most expired entries that an insertion removes although it does not need their room.
const SWEPT_AT_ONCE: usize = 8;

/// The most entries evicted under one lock, because look-ups wait for it.
pub(crate) const EVICTED_AT_ONCE: usize = 256;

/// The most entries whose keys are read under one lock.
const SEARCHED_AT_ONCE: u32 = 1024;

/// The most slots that are removed under one lock.
const REMOVED_SLOTS_AT_ONCE: usize = 2 * EVICTED_AT_ONCE;

#[derive(Debug)]
#[repr(C, align(64))]
pub(super) struct Shard {
    pub(super) table: SlotTable,
    cost: Cost,
    /// Indexed by [`CacheType`], like `removals`.
    pub(super) policies: [Policy; 2],
    removals: [Removals; 2],
    progress: Progress,
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
    /// How long entries are kept after their expiry, while there is room.
    pub(super) retention: Duration,
    pub(super) evicted: &'a mut EvictedEntries,
}

impl Update<'_> {
    fn now(&mut self) -> Tick {
        *self.now.get_or_insert_with(|| self.clock.now())
    }
}

/// The result of an insertion.
#[derive(Clone, Copy, Debug)]
pub(super) struct Insertion {
    pub(super) room: Room,
    /// See [`Demand::limit`].
    pub(super) limit: u64,
}

impl Insertion {
    const ENDED: Insertion = Insertion {
        room: Room::Made,
        limit: 0,
    };
}

/// An entry that another one of its key replaces; all zero if there is none.
#[derive(Clone, Copy, Debug, Default)]
struct Replaced {
    weight: u64,
    in_main: bool,
    freq: u8,
}

/// How far a shard met a [`Demand`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Room {
    /// The store is within its capacity.
    Made,
    /// [`EVICTED_AT_ONCE`] entries have left, and more have to leave.
    Pending,
    /// The new entry is not worth its room.
    Refused,
    /// The best victim of this share has a score below the floor. `None` if the share is empty.
    Below(CacheType, Option<u64>),
}

impl Shard {
    pub(super) fn new(cost: Cost, load_times: LoadTimes) -> Shard {
        Shard {
            table: SlotTable::new(load_times),
            cost,
            policies: [Policy::new(cost), Policy::new(cost)],
            removals: Default::default(),
            progress: Progress::default(),
            generations: Generations::new(),
        }
    }

    /// The live entries in the [last slots](Self::last_slots) before `end`, and the first of these slots.
    pub(super) fn last_entries(&self, end: u32, clock: &Clock) -> (Vec<Entry>, u32) {
        let now = clock.now();
        let live = |index| self.table.slab.expiry(index).is_none_or(|end| end > now);
        let slots = self.last_slots(end);
        let entries = self.table.slab.entries(slots.clone());
        let live = entries.filter(|(index, _)| live(*index));
        (live.map(|(_, entry)| entry).collect(), slots.start)
    }

    /// At most [`SEARCHED_AT_ONCE`] slots before `end`, the last ones. So all slots are visited from the last to
    /// the first. Entries move to slots before their own only, so none is left out between two calls.
    fn last_slots(&self, end: u32) -> Range<u32> {
        let end = end.min(u32::try_from(self.table.slab.len()).unwrap_or(u32::MAX));
        end.saturating_sub(SEARCHED_AT_ONCE)..end
    }

    /// Moves a key's entry to the front, under exact LRU.
    pub(super) fn promote(&mut self, hash: KeyHash, key: &str, ledger: &Ledger<'_>) {
        let now = self.moment(ledger).now;
        if let Some(index) = self.table.index_of(hash, key) {
            let share = self.table.slab.meta(index).share();
            self.policies[share as usize].promote(&mut self.table.slab, index, now);
        }
    }

    pub(super) fn generation(&self, hash: KeyHash) -> Generation {
        self.generations.of(hash)
    }

    /// Inserts an entry. Room for it comes from expired entries first, and then from entries of this
    /// shard that are among the oldest of all shards. The caller evicts the others.
    ///
    /// Inserts nothing if the key was removed since its load began, or if the policy refuses the entry.
    /// In the second case an older entry of the key is removed all the same.
    #[inline]
    pub(super) fn insert(&mut self, new: &NewEntry<'_>, update: &mut Update<'_>) -> Insertion {
        if new.loaded_at != self.generation(new.hash)
            || (new.is_forgotten)()
            || new.is_renewal && self.renew(new)
        {
            return Insertion::ENDED;
        }
        self.put(new, update)
    }

    /// Like [`insert`](Self::insert), for a value that does not come from a load. The values of loads
    /// under way are not cached. If this one is not kept, the old one is removed all the same.
    pub(super) fn set(
        &mut self,
        new: &NewEntry<'_>,
        is_kept: bool,
        update: &mut Update<'_>,
    ) -> Insertion {
        self.generations.advance(new.hash);
        if !is_kept {
            self.replace(new, update);
            return Insertion::ENDED;
        }
        self.put(new, update)
    }

    #[inline]
    fn put(&mut self, new: &NewEntry<'_>, update: &mut Update<'_>) -> Insertion {
        let mut weight = weight::of_entry(new.data.len());
        let may_expire = !self.table.slab.expiries().is_empty();
        if new.expires.is_some() || may_expire {
            weight += weight::EXPIRY as u64;
        }
        if may_expire {
            let most = update.evicted.len() + EVICTED_AT_ONCE;
            self.remove_expired(update, |update| {
                !update.ledger.has_room(weight) && update.evicted.len() < most
            });
            let most = update.evicted.len() + SWEPT_AT_ONCE;
            self.remove_unkept(update, |update| update.evicted.len() < most);
        }
        let replaced = self.replace(new, update);
        let is_possible =
            weight <= update.ledger.budget.capacity() && matches!(new.data, NewBytes::Keyed(_));
        if !is_possible || !Slab::can_hold(new.key.len(), weight) {
            return Insertion::ENDED;
        }
        let moment = update.ledger.miss(&mut self.progress, self.table.len());
        let policy = &mut self.policies[new.share as usize];
        let mut admission = policy.admit(new.hash.short(), weight, moment);
        admission.proven |= replaced.in_main;
        if weight / 2 <= replaced.weight {
            admission.limit = 0;
        }
        update.ledger.take(new.share, weight);
        let room = if update.ledger.is_over() {
            let demand = Demand::new(update.ledger.budget, admission.limit);
            self.evict_while_over(&demand, moment, update)
        } else {
            Room::Made
        };
        self.fit_tables();
        if room == Room::Refused {
            update.ledger.release(new.share, weight);
            self.policies[new.share as usize].refuse(new.hash.short(), moment);
            return Insertion::ENDED;
        }
        let Some(index) = self.table.insert(new, weight) else {
            update.ledger.release(new.share, weight);
            return Insertion::ENDED;
        };
        self.table.slab.meta_mut(index).set_freq(replaced.freq);
        let policy = &mut self.policies[new.share as usize];
        policy.push(&mut self.table.slab, index, admission.proven, moment.now);
        Insertion {
            room,
            limit: admission.limit,
        }
    }

    /// Removes the older entry of a key that is about to be inserted.
    ///
    /// A replacement is a removal and an insertion, which keeps every weight exact. The new entry
    /// keeps the hits of the old one, and its place in the main queue if it was there.
    fn replace(&mut self, new: &NewEntry<'_>, update: &mut Update<'_>) -> Replaced {
        let Some(index) = self.table.index_of(new.hash, new.key) else {
            return Replaced::default();
        };
        let meta = self.table.slab.meta(index);
        let replaced = Replaced {
            weight: self.table.slab.weight(index),
            in_main: meta.in_main_queue(),
            freq: meta.freq(),
        };
        self.remove_slot(index, RemovalCause::Replaced, update);
        replaced
    }

    /// Evicts while the store is over its capacity, as far as `demand` allows and at most
    /// [`EVICTED_AT_ONCE`] entries.
    pub(super) fn make_room(&mut self, demand: &Demand, update: &mut Update<'_>) -> Room {
        // The spared entry is in no queue meanwhile. It may have left the shard before; then another
        // entry with its hash is spared, which does no harm.
        let spared = demand
            .spared
            .and_then(|short| self.table.index_of_short(short));
        if let Some(index) = spared {
            let share = self.table.slab.meta(index).share();
            self.policies[share as usize].remove(&mut self.table.slab, index);
        }
        let moment = self.moment(&update.ledger);
        let room = self.evict_while_over(demand, moment, update);
        if let Some(index) = spared {
            let meta = self.table.slab.meta(index);
            let (share, in_main) = (meta.share(), meta.in_main_queue());
            self.policies[share as usize].push(&mut self.table.slab, index, in_main, moment.now);
        }
        self.fit_tables();
        room
    }

    fn evict_while_over(
        &mut self,
        demand: &Demand,
        moment: Moment,
        update: &mut Update<'_>,
    ) -> Room {
        while update.ledger.is_over() {
            if update.evicted.len() >= EVICTED_AT_ONCE {
                return Room::Pending;
            }
            let share = demand.share.unwrap_or(update.ledger.giving_share());
            let floor = demand.floors[share as usize];
            let policy = &mut self.policies[share as usize];
            match policy.evict(&mut self.table.slab, moment, floor, demand.limit) {
                Choice::Victim(index, score) => {
                    update.ledger.budget.note_victim(share, score);
                    self.prefetch_victim(share);
                    self.release(index, RemovalCause::Size, update);
                }
                Choice::Below(score) => return Room::Below(share, Some(score)),
                Choice::Empty => return Room::Below(share, None),
                Choice::Refused => return Room::Refused,
            }
        }
        Room::Made
    }

    /// Starts to fetch what the insertion of a missed key accesses besides its place in the table: its ghost.
    #[inline]
    pub(super) fn prefetch_ghost(&self, short: u32) {
        self.policies[CacheType::Main as usize].prefetch_ghost(short);
    }

    /// Starts to fetch what the next eviction from a share accesses, if the victim is in the same queue as the
    /// last one: its slot, its ghost, its tag and its place in the table, and its entry. The drop of the entry
    /// reads the reference count, and the next value is written to its block.
    #[inline]
    fn prefetch_victim(&self, share: CacheType) {
        let policy = &self.policies[share as usize];
        if let Some(short) = self.table.slab.prefetch(policy.likely_victim()) {
            policy.prefetch_ghost(short);
            self.table.prefetch(short);
        }
    }

    /// The state of the store now.
    fn moment(&self, ledger: &Ledger<'_>) -> Moment {
        ledger.moment(&self.progress, self.table.len())
    }

    /// Evicts an entry that was inserted but turned out not to be worth its room. False if it has left
    /// meanwhile.
    pub(super) fn take_back(&mut self, hash: KeyHash, update: &mut Update<'_>) -> bool {
        let short = hash.short();
        let Some(index) = self.table.index_of_short(short) else {
            return false;
        };
        let moment = self.moment(&update.ledger);
        let share = self.table.slab.meta(index).share();
        let policy = &mut self.policies[share as usize];
        policy.remove(&mut self.table.slab, index);
        policy.refuse(short, moment);
        self.release(index, RemovalCause::Size, update);
        true
    }

    /// Removes a key, and keeps the values of its loads under way from being cached.
    pub(super) fn remove(&mut self, hash: KeyHash, key: &str, update: &mut Update<'_>) {
        self.generations.advance(hash);
        self.remove_entry(hash, key, update);
    }

    /// Removes the entry of a key, if there is one. Values of loads under way are cached.
    pub(super) fn remove_entry(&mut self, hash: KeyHash, key: &str, update: &mut Update<'_>) {
        if let Some(index) = self.table.index_of(hash, key) {
            self.remove_slot(index, RemovalCause::Explicit, update);
        }
    }

    /// Keeps the values of all loads under way from being cached.
    pub(super) fn refuse_loads(&mut self) {
        self.generations.advance_all();
    }

    /// Removes the entries for which `is_old` returns true, of the [last slots](Self::last_slots) before `end`.
    /// Returns the first of these slots.
    pub(super) fn remove_older(
        &mut self,
        end: u32,
        is_old: &dyn Fn(&str, Option<Tick>) -> bool,
        update: &mut Update<'_>,
    ) -> u32 {
        let slots = self.last_slots(end);
        let first = slots.start;
        for index in slots.rev() {
            let slot = self.table.slab.slot(index);
            if slot.is_some_and(|slot| is_old(slot.key(), slot.begun().tick())) {
                self.remove_slot(index, RemovalCause::Explicit, update);
            }
        }
        first
    }

    /// Removes everything, and keeps the values of loads under way from being cached. Returns the old
    /// contents with their tables, to be dropped without the lock.
    pub(super) fn clear(&mut self, mut ledger: Ledger<'_>) -> Shard {
        for share in [CacheType::Main, CacheType::Hot] {
            let policy = &self.policies[share as usize];
            ledger.release(share, policy.bytes());
            let removals = &mut self.removals[share as usize];
            removals[RemovalCause::Explicit as usize] += u64::from(policy.len());
        }
        let mut empty = Shard::new(self.cost, self.table.slab.load_times());
        empty.removals = self.removals;
        std::mem::swap(&mut empty.generations, &mut self.generations);
        std::mem::swap(&mut empty.progress, &mut self.progress);
        ledger.budget.add(&mut empty.progress, 0);
        empty.generations.advance_all();
        std::mem::replace(self, empty)
    }

    /// Takes the entries of the last slots, at most [`EVICTED_AT_ONCE`], out of a shard that was cleared at
    /// this time.
    pub(super) fn take_cleared(&mut self, now: Tick) -> Vec<Evicted> {
        let mut entries = Vec::new();
        while entries.len() < EVICTED_AT_ONCE {
            let Some((index, entry)) = self.table.slab.take_last() else {
                break;
            };
            let cause = self.cause(index, RemovalCause::Explicit, now);
            entries.push(Evicted { entry, cause });
        }
        entries
    }

    /// Corrects the causes of entries that were cleared and counted as explicitly removed.
    pub(super) fn count_expired(&mut self, entries: &[Evicted]) {
        for one in entries {
            let removals = &mut self.removals[one.entry.cache_type() as usize];
            removals[RemovalCause::Explicit as usize] -= 1;
            removals[one.cause as usize] += 1;
        }
    }

    /// Shrinks the tables if they are much larger than their contents, by some slots at a time.
    ///
    /// The memory of free slots is in no entry's weight. Without this, the tables would stay large
    /// when a few large entries replace many small ones.
    pub(super) fn fit_tables(&mut self) {
        let excess = self.table.excess();
        if excess == 0 {
            return;
        }
        for _ in 0..excess.min(REMOVED_SLOTS_AT_ONCE) {
            if let Some(moved) = self.table.remove_last_slot() {
                let share = self.table.slab.meta(moved).share();
                self.policies[share as usize].moved(&mut self.table.slab, moved);
            }
        }
        self.table.shrink();
        for policy in &mut self.policies {
            policy.shrink();
        }
    }

    /// The bytes of memory of the tables.
    pub(super) fn table_bytes(&self) -> usize {
        let policies = self.policies.iter().map(Policy::table_bytes);
        self.table.bytes() + policies.sum::<usize>()
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
        self.remove_expired_by(now, update, more);
    }

    /// Removes entries that have expired and are not kept any longer, while `more` returns true.
    fn remove_unkept(&mut self, update: &mut Update<'_>, more: impl Fn(&Update<'_>) -> bool) {
        if self.next_expiry() == Tick::NEVER {
            return;
        }
        if let Some(then) = update.now().before(update.retention) {
            self.remove_expired_by(then, update, more);
        }
    }

    fn remove_expired_by(
        &mut self,
        then: Tick,
        update: &mut Update<'_>,
        more: impl Fn(&Update<'_>) -> bool,
    ) {
        while more(update) {
            let Some(index) = self.table.slab.expiries().expired(then) else {
                return;
            };
            self.remove_slot(index, RemovalCause::Expired, update);
        }
    }

    /// The time when the first entry expires; [`Tick::NEVER`] if none does.
    pub(super) fn next_expiry(&self) -> Tick {
        self.table.slab.expiries().earliest()
    }

    #[cfg(all(test, not(larder_loom)))]
    pub(super) fn slots(&self) -> usize {
        self.table.slab.len()
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
        let share = self.table.slab.meta(index).share();
        self.policies[share as usize].remove(&mut self.table.slab, index);
        self.release(index, cause, update);
    }

    /// Removes an entry that is in no queue from the table and the slab. It leaves with this cause,
    /// or as expired if its time to live is over.
    fn release(&mut self, index: u32, cause: RemovalCause, update: &mut Update<'_>) {
        let share = self.table.slab.meta(index).share();
        update.ledger.release(share, self.table.slab.weight(index));
        let cause = match self.table.slab.expiry(index) {
            Some(_) => self.cause(index, cause, update.now()),
            None => cause,
        };
        if let Some(entry) = self.table.remove(index) {
            self.removals[share as usize][cause as usize] += 1;
            update.evicted.push(entry, cause);
        }
    }

    /// The cause with which a slot's entry leaves at this time.
    fn cause(&self, index: u32, cause: RemovalCause, now: Tick) -> RemovalCause {
        match self.table.slab.expiry(index) {
            Some(end) if end <= now => RemovalCause::Expired,
            _ => cause,
        }
    }
}
