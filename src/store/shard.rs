//! One shard: a table, its slots, and the queues that choose victims. Single-threaded; the store
//! locks around it.

use hashbrown::HashTable;

use super::budget::{Ledger, Targets};
use super::graveyard::{Departed, Graveyard};
use super::slab::{Entry, Slab};
use super::{Eviction, Generation, Hash, Hit, NewEntry, RemovalCause, charge, iter, s3fifo};
use crate::clock::{Clock, Tick};
use crate::stats::CacheType;

/// Generations are counted for groups of keys; a neighbour's removal costs a load its place in the
/// cache, nothing more.
const STRIPES: usize = 256;

/// Slots looked at for expiry with each insertion: every slot is seen once in `slots / 8`
/// insertions.
const SWEEP_STEP: usize = 8;

/// Entries that are evicted under one lock: look-ups wait for it.
pub(super) const EVICTED_AT_ONCE: usize = 256;

/// Tables of this many slots are not made smaller.
const MIN_SLOTS: usize = 64;

/// What hits read comes first, and not in the cache line of the lock: a thread that takes the lock
/// takes that line from the one before, which is still reading.
#[derive(Debug)]
#[repr(C, align(64))]
pub(super) struct Shard {
    table: HashTable<u32>,
    slab: Slab,
    shares: Shares,
    eviction: Eviction,
    /// When the slot's entry expires, [`Tick::NEVER`] if it does not. Empty until an entry that
    /// expires comes; then as long as the slab.
    expiries: Vec<Tick>,
    sweep_at: usize,
    /// Removals of keys, by stripe. A load notes its key's before it runs and compares when it
    /// puts its value in; both under the shard's lock.
    generations: Box<[u32; STRIPES]>,
    clears: u32,
}

#[derive(Debug, Default)]
struct Shares {
    main: Share,
    hot: Share,
}

impl Shares {
    fn of(&self, share: CacheType) -> &Share {
        match share {
            CacheType::Main => &self.main,
            CacheType::Hot => &self.hot,
        }
    }

    fn of_mut(&mut self, share: CacheType) -> &mut Share {
        match share {
            CacheType::Main => &mut self.main,
            CacheType::Hot => &mut self.hot,
        }
    }
}

#[derive(Debug, Default)]
struct Share {
    /// Under exact LRU only the main queue is used, in order of use.
    queues: s3fifo::Queues,
    evictions: u64,
}

/// What a shard held: its slots, and the tables that led to them.
#[derive(Debug)]
pub(super) struct Emptied {
    pub(super) slab: Slab,
    _table: HashTable<u32>,
    _expiries: Vec<Tick>,
    _queues: [s3fifo::Queues; 2],
}

impl Shard {
    pub(super) fn new(eviction: Eviction) -> Shard {
        Shard {
            table: HashTable::new(),
            slab: Slab::default(),
            shares: Shares::default(),
            eviction,
            expiries: Vec::new(),
            sweep_at: 0,
            generations: Box::new([0; STRIPES]),
            clears: 0,
        }
    }

    /// The live entry of a key.
    #[inline(always)]
    pub(super) fn find(&self, hash: Hash, key: &str, clock: &Clock) -> Option<Entry<'_>> {
        let (_, entry) = self.live(hash, key, clock)?;
        Some(entry)
    }

    /// The live entry of a key, with what a peer must know of it.
    pub(super) fn find_hit(
        &self,
        hash: Hash,
        key: &str,
        clock: &Clock,
    ) -> Option<(Hit, Entry<'_>)> {
        let (index, entry) = self.live(hash, key, clock)?;
        let hit = Hit {
            view: entry.view(),
            share: entry.mark.share(),
            expires: self.expiry(index),
        };
        Some((hit, entry))
    }

    #[inline(always)]
    fn live(&self, hash: Hash, key: &str, clock: &Clock) -> Option<(u32, Entry<'_>)> {
        let index = self.index_of(hash, key)?;
        let entry = self.slab.entry(index)?;
        // The clock is read only for entries that expire.
        if entry.mark.expires() && self.has_expired(index, clock) {
            return None;
        }
        Some((index, entry))
    }

    /// All live entries.
    pub(super) fn snapshot(&self, clock: &Clock) -> Vec<iter::Entry> {
        let slots = self.slab.iter();
        let live = slots.filter(|(index, _)| !self.has_expired(*index, clock));
        let mut entries = Vec::with_capacity(self.len());
        entries.extend(live.map(|(_, entry)| entry.detached()));
        entries
    }

    fn has_expired(&self, index: u32, clock: &Clock) -> bool {
        self.expiry(index).is_some_and(|end| end <= clock.now())
    }

    /// `cause`, unless the entry's time was over before.
    fn cause(&self, index: u32, clock: &Clock, cause: RemovalCause) -> RemovalCause {
        if self.has_expired(index, clock) {
            RemovalCause::Expired
        } else {
            cause
        }
    }

    /// Moves a key's entry to the front, under exact LRU.
    pub(super) fn promote(&mut self, hash: Hash, key: &str) {
        if let Some(index) = self.index_of(hash, key) {
            let share = self.shares.of_mut(self.slab.mark(index).share());
            self.slab.move_to_head(&mut share.queues.main, index);
        }
    }

    pub(super) fn generation(&self, hash: Hash) -> Generation {
        Generation {
            stripe: self.generations[hash.stripe(STRIPES)],
            clears: self.clears,
        }
    }

    /// Puts an entry in and makes room for it, down to the shard's own part of the budget, or by so
    /// many entries as are evicted under one lock: then it returns true.
    /// Not if its key was removed since `loaded_at`, or if the policy declines.
    pub(super) fn insert(
        &mut self,
        new: &NewEntry<'_>,
        loaded_at: Option<Generation>,
        (ledger, targets): (&mut Ledger<'_>, Targets),
        clock: &Clock,
        gone: &mut Graveyard,
    ) -> bool {
        if loaded_at.is_some_and(|then| then != self.generation(new.hash)) {
            return false;
        }
        let weight = charge::entry(new.data.len());
        self.sweep(ledger, clock, gone);

        // Replacing is taking out and putting in, which keeps every charge exact. The entry keeps
        // its hits and its place among the entries that have proved themselves.
        let mut earned = (false, 0);
        if let Some(index) = self.index_of(new.hash, new.key) {
            let mark = self.slab.mark(index);
            earned = (mark.in_main_queue(), mark.freq());
            let cause = self.cause(index, clock, RemovalCause::Replaced);
            self.depart(index, cause, ledger, gone);
        }

        if !self.admits(new, weight, earned.0, ledger, targets) {
            return false;
        }
        ledger.take(weight);
        let hot = match new.share {
            CacheType::Hot => weight,
            CacheType::Main => 0,
        };
        let mut stopped = false;
        while ledger.is_over() && self.bytes() + weight > targets.total {
            stopped = gone.len() >= EVICTED_AT_ONCE;
            if stopped || !self.evict_one(hot, ledger, targets, gone) {
                break;
            }
        }
        self.fit_tables();
        if !self.put(new, weight, earned) {
            ledger.release(weight);
        }
        stopped
    }

    /// Puts an entry into the tables and its queue. False if there is no slot left.
    fn put(&mut self, new: &NewEntry<'_>, weight: u64, earned: (bool, u8)) -> bool {
        let data = (new.data.clone(), weight);
        let slot = self
            .slab
            .insert(new.hash.table(), new.key.len(), data, new.share);
        let Some(index) = slot else {
            return false;
        };
        self.set_expiry(index, new.expires);
        self.enqueue(index, earned);
        let slab = &self.slab;
        self.table
            .insert_unique(new.hash.spread(), index, |&i| Hash::spread_of(slab.hash(i)));
        true
    }

    /// Whether the policy keeps an entry of this weight.
    ///
    /// Under S3-FIFO an entry larger than the small queue would push all newcomers out, so it is
    /// kept only on its second request, or while there is room that nobody uses.
    fn admits(
        &mut self,
        new: &NewEntry<'_>,
        weight: u64,
        proved: bool,
        ledger: &mut Ledger<'_>,
        targets: Targets,
    ) -> bool {
        if weight > ledger.capacity() || !Slab::holds(new.key.len(), weight) {
            return false;
        }
        let small = s3fifo::small_part(targets.of(new.share));
        if self.eviction == Eviction::Lru || weight <= small || proved || ledger.has_room(weight) {
            return true;
        }
        let queues = &mut self.shares.of_mut(new.share).queues;
        let hash = new.hash.table();
        let remembered = queues.remembers(hash);
        if !remembered {
            queues.remember(hash);
        }
        remembered
    }

    fn enqueue(&mut self, index: u32, (proved, hits): (bool, u8)) {
        let mark = self.slab.mark_mut(index);
        mark.set_freq(hits);
        let share = self.shares.of_mut(mark.share());
        let to_main = proved || self.eviction == Eviction::Lru;
        share.queues.push(&mut self.slab, index, to_main);
    }

    /// Evicts one entry: from the hot share if it is over its part (with `coming` more bytes in
    /// it), else from the main one. False if there is nothing left.
    pub(super) fn evict_one(
        &mut self,
        coming: u64,
        ledger: &mut Ledger<'_>,
        targets: Targets,
        gone: &mut Graveyard,
    ) -> bool {
        self.evict_other(None, coming, ledger, targets, gone)
    }

    /// The same, of the entries that are not to be spared.
    fn evict_other(
        &mut self,
        spared: Option<u32>,
        coming: u64,
        ledger: &mut Ledger<'_>,
        targets: Targets,
        gone: &mut Graveyard,
    ) -> bool {
        let from_hot = self.shares.hot.queues.bytes() + coming > targets.hot;
        let (first, second) = if from_hot {
            (CacheType::Hot, CacheType::Main)
        } else {
            (CacheType::Main, CacheType::Hot)
        };
        self.evict_from(first, spared, ledger, targets, gone)
            || self.evict_from(second, spared, ledger, targets, gone)
    }

    /// Goes on with an insertion that was told to stop: evicts so many more entries as are evicted
    /// under one lock, but not the one that went in. Returns true if that is not enough.
    pub(super) fn settle(
        &mut self,
        hash: Hash,
        ledger: &mut Ledger<'_>,
        targets: Targets,
        gone: &mut Graveyard,
    ) -> bool {
        // It may have left by now. If another with its hash is spared instead, no harm is done.
        let same = |index: &u32| self.slab.hash(*index) == hash.table();
        let spared = self.table.find(hash.spread(), same).copied();
        let mut stopped = false;
        while ledger.is_over() && self.bytes() > targets.total {
            stopped = gone.len() >= EVICTED_AT_ONCE;
            if stopped || !self.evict_other(spared, 0, ledger, targets, gone) {
                break;
            }
        }
        self.fit_tables();
        stopped
    }

    #[inline]
    fn evict_from(
        &mut self,
        share: CacheType,
        spared: Option<u32>,
        ledger: &mut Ledger<'_>,
        targets: Targets,
        gone: &mut Graveyard,
    ) -> bool {
        let (slab, eviction) = (&mut self.slab, self.eviction);
        let owner = self.shares.of_mut(share);
        let victim = match eviction {
            Eviction::S3Fifo => {
                let small = s3fifo::small_part(targets.of(share));
                owner.queues.evict(slab, small, spared)
            }
            Eviction::Lru => owner.queues.evict_oldest(slab, spared),
        };
        let Some(index) = victim else {
            return false;
        };
        owner.evictions += 1;
        self.release(index, RemovalCause::Size, ledger, gone);
        true
    }

    /// Takes a key out and counts its generation on, so that a load under way cannot put an older
    /// value in.
    pub(super) fn remove(
        &mut self,
        hash: Hash,
        key: &str,
        ledger: &mut Ledger<'_>,
        clock: &Clock,
        gone: &mut Graveyard,
    ) {
        let generation = &mut self.generations[hash.stripe(STRIPES)];
        *generation = generation.wrapping_add(1);
        if let Some(index) = self.index_of(hash, key) {
            let cause = self.cause(index, clock, RemovalCause::Explicit);
            self.depart(index, cause, ledger, gone);
        }
    }

    /// Takes everything out, and lets no load under way put anything in. The tables go too: an
    /// emptied cache gives its memory back.
    pub(super) fn clear(&mut self, ledger: &mut Ledger<'_>) -> Emptied {
        self.clears = self.clears.wrapping_add(1);
        ledger.release(self.bytes());
        self.sweep_at = 0;
        Emptied {
            slab: std::mem::take(&mut self.slab),
            _table: std::mem::take(&mut self.table),
            _expiries: std::mem::take(&mut self.expiries),
            _queues: [
                std::mem::take(&mut self.shares.main.queues),
                std::mem::take(&mut self.shares.hot.queues),
            ],
        }
    }

    /// Makes the tables smaller if they are much larger than what is in them.
    #[inline]
    pub(super) fn fit_tables(&mut self) {
        // One comparison for most: few shards stay small.
        if self.len() < self.slab.len() / 2 && self.slab.len() > MIN_SLOTS {
            self.compact();
        }
    }

    /// Moves the entries together, into tables of their number.
    ///
    /// The memory of a free slot is charged to nobody. Without this, tables that once held many
    /// small entries would stay beside the few large ones that took their place. Each entry moved
    /// stands for one that left, so an insertion pays for a move or two in the long run.
    fn compact(&mut self) {
        let live = self.len();
        let mut slab = Slab::with_capacity(live + 1);
        let mut table = HashTable::with_capacity(live + 1);
        let mut expiries = Vec::new();
        let Shares { main, hot } = &mut self.shares;
        let (main, hot) = (&mut main.queues, &mut hot.queues);
        for queue in [
            &mut main.small,
            &mut main.main,
            &mut hot.small,
            &mut hot.main,
        ] {
            self.slab.move_list(queue, &mut slab, |old, new, hash| {
                // There is room for all: nothing is hashed again.
                table.insert_unique(Hash::spread_of(hash), new, |_| 0);
                if let Some(&end) = self.expiries.get(old as usize) {
                    expiries.resize(new as usize, Tick::NEVER);
                    expiries.push(end);
                }
            });
        }
        main.shrink_ghost();
        hot.shrink_ghost();
        self.slab = slab;
        self.table = table;
        self.expiries = expiries;
        self.sweep_at = 0;
    }

    /// Takes out what has expired among the next few slots.
    fn sweep(&mut self, ledger: &mut Ledger<'_>, clock: &Clock, gone: &mut Graveyard) {
        if self.expiries.is_empty() {
            return;
        }
        let now = clock.now();
        for _ in 0..SWEEP_STEP.min(self.expiries.len()) {
            let at = self.sweep_at;
            self.sweep_at = (at + 1) % self.expiries.len();
            let index = at as u32;
            if self.expiry(index).is_some_and(|end| end <= now) {
                self.depart(index, RemovalCause::Expired, ledger, gone);
            }
        }
    }

    /// The sum of all entries' charges, after checking that every entry can be found.
    #[cfg(all(test, not(larder_loom)))]
    pub(super) fn audit(&self) -> u64 {
        let mut sum = 0;
        let mut live = 0;
        for (index, _) in self.slab.iter() {
            let place = Hash::spread_of(self.slab.hash(index));
            assert!(self.table.find(place, |&other| other == index).is_some());
            sum += self.slab.weight(index);
            live += 1;
        }
        assert_eq!(self.table.len(), live);
        sum
    }

    #[cfg(all(test, not(larder_loom)))]
    pub(super) fn slots(&self) -> usize {
        self.slab.len()
    }

    pub(super) fn bytes(&self) -> u64 {
        self.shares.main.queues.bytes() + self.shares.hot.queues.bytes()
    }

    pub(super) fn len(&self) -> usize {
        self.table.len()
    }

    /// Bytes, entries and evictions of a share.
    pub(super) fn usage(&self, share: CacheType) -> (u64, u64, u64) {
        let share = self.shares.of(share);
        (
            share.queues.bytes(),
            share.queues.len().into(),
            share.evictions,
        )
    }

    #[inline(always)]
    fn index_of(&self, hash: Hash, key: &str) -> Option<u32> {
        let (half, key) = (hash.table(), key.as_bytes());
        let found = self
            .table
            .find(hash.spread(), |&index| self.slab.has_key(index, half, key));
        found.copied()
    }

    fn expiry(&self, index: u32) -> Option<Tick> {
        let end = self.expiries.get(index as usize).copied();
        end.filter(|&end| end != Tick::NEVER)
    }

    fn set_expiry(&mut self, index: u32, expires: Option<Tick>) {
        self.slab.mark_mut(index).set_expires(expires.is_some());
        if expires.is_some() || !self.expiries.is_empty() {
            self.expiries.resize(self.slab.len(), Tick::NEVER);
            self.expiries[index as usize] = expires.unwrap_or(Tick::NEVER);
        }
    }

    /// Takes an entry out of its queue, then out of everything else.
    fn depart(
        &mut self,
        index: u32,
        cause: RemovalCause,
        ledger: &mut Ledger<'_>,
        gone: &mut Graveyard,
    ) {
        let share = self.shares.of_mut(self.slab.mark(index).share());
        share.queues.unlink(&mut self.slab, index);
        self.release(index, cause, ledger, gone);
    }

    /// Takes an entry that is in no queue out of the table and the slab.
    fn release(
        &mut self,
        index: u32,
        cause: RemovalCause,
        ledger: &mut Ledger<'_>,
        gone: &mut Graveyard,
    ) {
        ledger.release(self.slab.weight(index));
        let place = Hash::spread_of(self.slab.hash(index));
        if let Ok(entry) = self.table.find_entry(place, |&other| other == index) {
            entry.remove();
        }
        self.set_expiry(index, None);
        if let Some(slot) = self.slab.remove(index) {
            gone.push(Departed::of(slot, cause));
        }
    }
}
