//! The clocks of the removals that a node has applied, which nodes compare and merge.
//!
//! Each stripe of keys has a clock: a stamp and the time of the stripe's last removal. Each removal adds a
//! hash of its number to the stamp. So two nodes have the same stamp if they applied the same removals to
//! the stripe, in whatever order. (Two different sets have the same sum in one of 4 × 10^9 cases.) The last
//! clock is that of the removals of all keys.
//!
//! The stamps prove that a value is current. The [set of all removals](self::applied) shows whether a node
//! missed some, and the times which values it then has to drop. A removal is in the set only after its
//! entries are dropped and its clock has changed.
//!
//! ```text
//!   mod.rs           the clocks
//!   applied.rs       the set of all removals
//!   fence.rs         refuses values of peers that may be older than a removal
//!   dropped_keys.rs  keys whose values are not taken over from other nodes for now
//! ```

mod applied;
mod dropped_keys;
pub(super) mod fence;

#[cfg(all(test, not(larder_loom)))]
mod tests;

use std::hash::Hasher;
use std::time::Duration;

use fnv::FnvHasher;

use self::applied::{AppliedRemovals, RemovalNumbers};
use self::dropped_keys::DroppedKeys;
use super::LoadKey;
use crate::clock::{Clock, Tick};
use crate::random::{self, mix};
use crate::store::KeyHash;
use crate::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use crate::sync::{Arc, Mutex};

/// The clocks of a group, 8 KiB, and the set of the removals.
pub(super) struct RemovalClocks {
    clocks: Box<[AtomicU64]>,
    applied: Mutex<AppliedRemovals>,
    /// The digest of `applied`, written under its lock.
    digest: AtomicU64,
    /// Several origins, if many removals begin while another one is under way: see [`begin`](Self::begin).
    numbers: Mutex<Vec<RemovalNumbers>>,
    /// The removals that have begun here and are not in `applied` yet.
    under_way: Mutex<Vec<u64>>,
    /// The clocks that the removals in `under_way` have changed. A merge must keep these changes.
    ahead: Mutex<Vec<(u64, KeyStripe)>>,
    /// The floors of the merges under way, whose entries may not be dropped yet.
    merging: Mutex<Vec<Arc<StripeFloors>>>,
    /// The number of removals and merges under way, which change the clocks and the entries one after the
    /// other.
    changes: AtomicUsize,
    /// Whether a clock was ever changed.
    is_used: AtomicBool,
    pub(super) dropped: DroppedKeys,
    /// The keys that were removed lately, and not by a set.
    removed: DroppedKeys,
}

/// The number of clocks. Few under loom, which allocates each.
const CLOCKS: usize = if cfg!(larder_loom) { 2 } else { 1024 };

/// The clock of the removals of all keys.
pub(super) const ALL_KEYS: KeyStripe = KeyStripe(CLOCKS - 1);

/// The keys that share a clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct KeyStripe(usize);

impl KeyStripe {
    /// The stripe of a key: FNV-1a of 64 bits over the key, the same in all processes.
    pub(super) fn of(key: &str) -> KeyStripe {
        let mut hasher = FnvHasher::default();
        hasher.write(key.as_bytes());
        KeyStripe((hasher.finish() % (CLOCKS as u64 - 1)) as usize)
    }

    fn all() -> impl Iterator<Item = KeyStripe> {
        (0..CLOCKS).map(KeyStripe)
    }
}

/// How a removal changes the clocks.
#[derive(Clone, Copy, Debug)]
pub(super) enum Counted {
    /// By the hash of its number.
    Numbered(u64),
    /// By a hash of the key: it came from a Go program, which sends no number, or has one that no node of
    /// larder makes. A node that misses it is not detected.
    Unnumbered,
    /// Not at all.
    Not,
}

impl Counted {
    /// The number that is added to the stamp of a key, or of all keys for the empty one.
    pub(super) fn stamp(self, key: &str) -> Option<u32> {
        let hash = match self {
            Counted::Numbered(number) => mix(number),
            Counted::Unnumbered => {
                let mut hasher = FnvHasher::default();
                hasher.write(key.as_bytes());
                mix(hasher.finish())
            }
            Counted::Not => return None,
        };
        // Not 0, which would not change the stamp.
        Some(hash as u32 | 1)
    }
}

/// One clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct LastRemoval {
    /// The sum of the hashes of all removals; 0 if there was none.
    stamp: u32,
    /// The time of the last one, in milliseconds, rounded up. It wraps around after 49 days. A removal that
    /// was longer ago then looks younger than it is, which is safe.
    at: u32,
}

impl LastRemoval {
    fn unpack(bits: u64) -> LastRemoval {
        LastRemoval {
            stamp: bits as u32,
            at: (bits >> 32) as u32,
        }
    }

    fn pack(self) -> u64 {
        u64::from(self.at) << 32 | u64::from(self.stamp)
    }

    fn is_none(self) -> bool {
        self == LastRemoval::default()
    }

    /// The milliseconds since the last removal, at most one too many. 0 if it was after `now`: the clock was
    /// read before a removal that came meanwhile.
    fn age(self, now: Tick) -> u32 {
        let age = millis_up(now).wrapping_sub(self.at);
        match age > u32::MAX - MAX_READ_EARLY {
            true => 0,
            false => age,
        }
    }
}

/// How long before the last removal a clock may have been read, in milliseconds. A removal of 49 days ago, less
/// this time, looks new.
const MAX_READ_EARLY: u32 = 3_600_000;

fn millis_up(tick: Tick) -> u32 {
    tick.nanos().div_ceil(1_000_000) as u32
}

impl RemovalClocks {
    pub(super) fn new() -> RemovalClocks {
        RemovalClocks {
            clocks: (0..CLOCKS).map(|_| AtomicU64::new(0)).collect(),
            applied: Mutex::default(),
            digest: AtomicU64::new(0),
            numbers: Mutex::default(),
            under_way: Mutex::default(),
            ahead: Mutex::default(),
            merging: Mutex::default(),
            changes: AtomicUsize::new(0),
            is_used: AtomicBool::new(false),
            dropped: DroppedKeys::new(),
            removed: DroppedKeys::new(),
        }
    }

    /// Whether there was no removal yet.
    pub(super) fn are_unused(&self) -> bool {
        !self.is_used.load(Ordering::Acquire)
    }

    /// The number of a removal that begins here.
    ///
    /// A set notes few runs of an origin. If many removals take long, because they are sets whose owners do not
    /// answer, for example, there is a gap for each. Then the next removals have another origin. Otherwise no
    /// node would note them, and none would find out that it had missed one.
    pub(super) fn begin(&self) -> (u64, Counted) {
        let mut numbers = self.numbers.lock();
        // The gap before their next numbers would never close, here and at the peers.
        numbers.retain(|own| own.last().is_none_or(|last| !self.is_forgotten(last)));
        let place = {
            let applied = self.applied.lock();
            let has_room = |own: &RemovalNumbers| applied.has_room_for(own.following());
            numbers.iter().position(has_room)
        };
        let place = place.unwrap_or_else(|| {
            numbers.push(RemovalNumbers::new());
            numbers.len() - 1
        });
        let number = numbers[place].next();
        self.under_way.lock().push(number);
        (number, Counted::Numbered(number))
    }

    /// Whether the set has left out the origin of this removal, which began here.
    fn is_forgotten(&self, number: u64) -> bool {
        // In this order: a removal that ends meanwhile is in both.
        let is_under_way = self.under_way.lock().contains(&number);
        !is_under_way && !self.applied.lock().has_origin_of(number)
    }

    /// How a removal of a peer is counted. One that was applied already is not counted again.
    pub(super) fn admit(&self, number: Option<u64>) -> Counted {
        match number {
            None => Counted::Unnumbered,
            Some(0) => Counted::Not,
            // No node makes these numbers. Other nodes would refuse a set with the second one.
            Some(number) if matches!(number as u32, 0 | u32::MAX) => Counted::Unnumbered,
            Some(number) if self.applied.lock().contains(number) => Counted::Not,
            Some(number) => {
                self.under_way.lock().push(number);
                Counted::Numbered(number)
            }
        }
    }

    /// Notes that a removal is applied: its entries are dropped, and its clocks changed.
    pub(super) fn finish(&self, counted: Counted) {
        if let Counted::Numbered(number) = counted {
            let mut applied = self.applied.lock();
            applied.insert(number);
            self.digest.store(applied.digest(), Ordering::SeqCst);
            self.is_used.store(true, Ordering::Release);
            drop(applied);
            let mut under_way = self.under_way.lock();
            if let Some(at) = under_way.iter().position(|&other| other == number) {
                under_way.swap_remove(at);
            }
            drop(under_way);
            self.ahead.lock().retain(|(other, _)| *other != number);
        }
    }

    /// All removals that this node knows: those that are applied, and those under way. `None` if the set cannot
    /// hold all of them.
    pub(super) fn known(&self) -> Option<Vec<u8>> {
        // In this order: a removal that ends meanwhile is in both.
        let under_way = self.under_way.lock().clone();
        let mut known = self.applied.lock().clone();
        for number in under_way {
            known.insert(number);
        }
        (!known.is_incomplete()).then(|| known.encode())
    }

    /// Whether this node has applied all removals that a peer knows.
    pub(super) fn has_applied(&self, known: &[u8]) -> bool {
        let known = AppliedRemovals::decode(known);
        known.is_some_and(|known| self.applied.lock().contains_all(&known))
    }

    /// Changes the clock of a removal of this key, or of all keys for the empty one.
    pub(super) fn advance(&self, stripe: KeyStripe, key: &str, counted: Counted, clock: &Clock) {
        let Some(stamp) = counted.stamp(key) else {
            return;
        };
        if let Counted::Numbered(number) = counted {
            self.ahead.lock().push((number, stripe));
        }
        // The time is read after the old clock, so that of two removals the second has the later time.
        self.change(stripe, |old| LastRemoval {
            stamp: old.stamp.wrapping_add(stamp),
            at: millis_up(clock.now()),
        });
    }

    fn change(&self, stripe: KeyStripe, new: impl Fn(LastRemoval) -> LastRemoval) {
        self.is_used.store(true, Ordering::Release);
        let clock = &self.clocks[stripe.0];
        let mut before = clock.load(Ordering::SeqCst);
        loop {
            let after = new(LastRemoval::unpack(before)).pack();
            match clock.compare_exchange(before, after, Ordering::SeqCst, Ordering::SeqCst) {
                Ok(_) => return,
                Err(now) => before = now,
            }
        }
    }

    fn last(&self, stripe: KeyStripe) -> LastRemoval {
        LastRemoval::unpack(self.clocks[stripe.0].load(Ordering::SeqCst))
    }

    /// Begins a change of clocks and entries. Until the guard is dropped, answers have no stamp.
    pub(super) fn begin_change(&self) -> ChangeGuard<'_> {
        self.changes.fetch_add(1, Ordering::SeqCst);
        ChangeGuard(self)
    }

    /// The removals that this node has applied, for the answer to a peer that asks for `key`. Read
    /// before the value is looked up, so that the value is not older than any of them. `None` if there
    /// was none.
    ///
    /// While a change is under way, there is no stamp, because it is not certain. The digest is: it is that of
    /// removals whose entries are dropped.
    pub(super) fn mark(&self, key: &str) -> Option<RemovalMark> {
        if self.are_unused() {
            return None;
        }
        let stamp = self.stamp(KeyStripe::of(key));
        let digest = (self.digest.load(Ordering::SeqCst) >> 32) as u32;
        // After the stamp: a clear or a merge that is in the stamp has ended, if none is under way now.
        let is_unchanging = self.changes.load(Ordering::SeqCst) == 0;
        let stamp = if is_unchanging { stamp } else { 0 };
        Some(RemovalMark { digest, stamp })
    }

    /// Whether a node with this mark has applied the same removals to the keys of a stripe.
    pub(super) fn has_same(&self, stripe: KeyStripe, mark: Option<RemovalMark>) -> bool {
        mark.unwrap_or_default().stamp == self.stamp(stripe)
    }

    /// Whether a node with this mark has applied the same removals to all keys.
    pub(super) fn has_same_digest(&self, mark: Option<RemovalMark>) -> bool {
        mark.unwrap_or_default().digest == (self.digest.load(Ordering::SeqCst) >> 32) as u32
    }

    /// The time since the last removal of the stripe or of all keys, rounded down; `None` if there was
    /// none.
    pub(super) fn since_removal(&self, stripe: KeyStripe, now: Tick) -> Option<Duration> {
        let removals = [stripe, ALL_KEYS].map(|stripe| self.last(stripe));
        let removals = removals.into_iter().filter(|last| !last.is_none());
        let age = removals.map(|last| last.age(now).saturating_sub(1)).min()?;
        Some(Duration::from_millis(age.into()))
    }

    /// The stamp of a key for a set that begins now.
    pub(super) fn stamp_of(&self, key: &str) -> u64 {
        self.stamp(KeyStripe::of(key)).into()
    }

    /// Notes the removal of a key, before it is dropped.
    pub(super) fn note_removed(&self, hash: KeyHash, clock: &Clock) {
        self.removed.note(hash, clock.now());
    }

    /// Notes the removal of all keys.
    pub(super) fn note_all_removed(&self, clock: &Clock) {
        self.removed.note_all(clock.now());
    }

    /// Whether a key may have been removed since a set of it began with this stamp. Two sets do not matter:
    /// the owner orders them.
    pub(super) fn may_be_outdated(&self, key: &LoadKey<'_>, stamp: u64, clock: &Clock) -> bool {
        stamp != self.stamp_of(key.key) && self.removed.may_contain(key.hash, clock)
    }

    fn stamp(&self, stripe: KeyStripe) -> u32 {
        let [own, all] = [stripe, ALL_KEYS].map(|stripe| self.last(stripe).stamp);
        own.wrapping_add(all.rotate_left(16))
    }
}

/// Guard of a change under way: see [`RemovalClocks::begin_change`].
pub(super) struct ChangeGuard<'c>(&'c RemovalClocks);

impl Drop for ChangeGuard<'_> {
    fn drop(&mut self) {
        self.0.changes.fetch_sub(1, Ordering::SeqCst);
    }
}

/// The removals that a node has applied: to all keys, and to the stripe of one key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct RemovalMark {
    digest: u32,
    stamp: u32,
}

impl RemovalMark {
    pub(super) fn from_bits(bits: u64) -> RemovalMark {
        RemovalMark {
            digest: (bits >> 32) as u32,
            stamp: bits as u32,
        }
    }

    pub(super) fn to_bits(self) -> u64 {
        u64::from(self.digest) << 32 | u64::from(self.stamp)
    }
}

/// A time for each stripe: values whose load began earlier are dropped.
struct StripeFloors(Box<[Option<Tick>]>);

impl StripeFloors {
    fn is_older(&self, key: &str, begun: Option<Tick>) -> bool {
        let floor = self.0[KeyStripe::of(key).0].max(self.0[ALL_KEYS.0]);
        // An equal time is no proof: the clock may not have moved between load and removal.
        floor.is_some_and(|floor| begun.is_none_or(|begun| begun <= floor))
    }
}

/// The floors of a merge, and those of the merges that were under way when it began.
pub(super) struct Floors {
    own: Arc<StripeFloors>,
    all: Vec<Arc<StripeFloors>>,
}

impl Floors {
    /// Whether a value is dropped: its load began before the floor of its key, or at an unknown time.
    pub(super) fn is_older(&self, key: &str, begun: Option<Tick>) -> bool {
        self.all.iter().any(|floors| floors.is_older(key, begun))
    }
}

/// The removals of a node, as it sends them.
#[derive(Clone)]
pub(super) struct Table {
    clocks: Vec<(u32, u32)>,
    applied: AppliedRemovals,
}

/// The bytes of a clock in a table: the stamp, and the milliseconds since the last removal, rounded down.
const ENCODED: usize = 8;

/// The age of a clock without a removal.
const NONE: u32 = u32::MAX;

impl Table {
    /// Reads what [`encode`](Self::encode) wrote; `None` if it is malformed.
    pub(super) fn decode(clocks: &[u8], applied: &[u8]) -> Option<Table> {
        if clocks.len() != ENCODED * CLOCKS {
            return None;
        }
        let number = |bytes: &[u8]| bytes.try_into().map_or(0, u32::from_le_bytes);
        let clocks = clocks.chunks_exact(ENCODED).map(|encoded| {
            let (stamp, age) = encoded.split_at(4);
            (number(stamp), number(age))
        });
        Some(Table {
            clocks: clocks.collect(),
            applied: AppliedRemovals::decode(applied)?,
        })
    }

    /// The same removals, each made longer ago by this time.
    pub(super) fn older_by(self, by: Duration) -> Table {
        let by = u32::try_from(by.as_millis()).unwrap_or(NONE);
        self.with_ages(|age| age.saturating_add(by).min(NONE - 1))
    }

    /// The same removals, as if they were made now.
    pub(super) fn made_now(self) -> Table {
        self.with_ages(|_| 0)
    }

    fn with_ages(mut self, change: impl Fn(u32) -> u32) -> Table {
        for (_, age) in &mut self.clocks {
            if *age != NONE {
                *age = change(*age);
            }
        }
        self
    }

    /// The clocks and the set.
    pub(super) fn encode(&self) -> (Vec<u8>, Vec<u8>) {
        let clocks = self.clocks.iter().flat_map(|(stamp, age)| [*stamp, *age]);
        (
            clocks.flat_map(u32::to_le_bytes).collect(),
            self.applied.encode(),
        )
    }
}

impl RemovalClocks {
    /// The set is read first, so that the clocks have all its removals.
    pub(super) fn table(&self, clock: &Clock) -> Table {
        let applied = self.applied.lock().clone();
        let now = clock.now();
        let encoded = |last: LastRemoval| match last.is_none() {
            true => (0, NONE),
            false => (last.stamp, last.age(now).saturating_sub(1)),
        };
        Table {
            clocks: KeyStripe::all()
                .map(|stripe| encoded(self.last(stripe)))
                .collect(),
            applied,
        }
    }

    /// Whether the clock of a key, or that of all keys, has another stamp in this table.
    pub(super) fn differ_from(&self, table: &Table, key: &str) -> bool {
        let is_other = |stripe: KeyStripe| self.last(stripe).stamp != table.clocks[stripe.0].0;
        is_other(KeyStripe::of(key)) || is_other(ALL_KEYS)
    }

    /// Merges a peer's clocks, which were received at this time, into those of this node. Returns the times
    /// of the removals that this node may have missed; `None` if it missed none. The caller drops the older
    /// values, and then calls [`finish_merge`](Self::finish_merge).
    ///
    /// Where the stamps differ, this node takes the peer's if the peer has applied all that this node has.
    /// Otherwise both take a new one, which depends on the union of their sets. A node that applied all of
    /// them one by one has a different stamp. Then the ages decide: a value of this stripe is current if its
    /// load began after the last removal.
    pub(super) fn merge(&self, table: &Table, received: Tick, clock: &Clock) -> Option<Floors> {
        let (own, ahead, union) = {
            let applied = self.applied.lock();
            if applied.contains_all(&table.applied) {
                return None;
            }
            let own: Vec<u32> = KeyStripe::all()
                .map(|stripe| self.last(stripe).stamp)
                .collect();
            // Read after the stamps. Its removals are in the stamps, and not in the set.
            let ahead = self.ahead.lock().clone();
            let mut union = applied.clone();
            union.add_all(&table.applied);
            (own, ahead, union)
        };
        let has_all = table.applied.contains_all(&union);
        let floor = |(stripe, &(theirs, age)): (KeyStripe, &(u32, u32))| {
            let removed = || {
                let removed = received.before(Duration::from_millis(age.into()));
                removed.unwrap_or(received)
            };
            (theirs != own[stripe.0] && age != NONE).then(removed)
        };
        let floors = KeyStripe::all().zip(&table.clocks).map(floor).collect();
        // Before the clocks change, and after the stamps were read: another merge that sees the new stamps has
        // these floors.
        let floors = self.begin_merge(StripeFloors(floors));
        for (stripe, &(theirs, _)) in KeyStripe::all().zip(&table.clocks) {
            let before = own[stripe.0];
            if theirs == before {
                continue;
            }
            let removed = floors.own.0[stripe.0];
            let new = match has_all {
                true => theirs,
                false => mix(union.digest() ^ stripe.0 as u64) as u32 | 1,
            };
            let is_ahead = ahead.iter().any(|(_, ahead)| *ahead == stripe);
            self.change(stripe, |own| {
                // The new one lacks a removal that is under way, or that changed it meanwhile. Then it has to
                // differ from all others.
                let stamp = if own.stamp == before && !is_ahead {
                    new
                } else {
                    random::bits() as u32 | 1
                };
                // Read after the old clock, so that it is not earlier than that clock's time.
                let now = clock.now();
                let at = removed.map(millis_up).filter(|&at| {
                    own.is_none() || LastRemoval { stamp, at }.age(now) < own.age(now)
                });
                LastRemoval {
                    stamp,
                    at: at.unwrap_or(own.at),
                }
            });
        }
        Some(floors)
    }

    /// Two merges at the same time may have the same removals. The second one finds the stamps of the first
    /// one, whose entries may not be dropped yet. As it says at its end that all of them are, it drops them,
    /// too.
    fn begin_merge(&self, floors: StripeFloors) -> Floors {
        let own = Arc::new(floors);
        let mut merging = self.merging.lock();
        merging.push(own.clone());
        Floors {
            own,
            all: merging.clone(),
        }
    }

    /// Notes that this node has applied the removals of a table.
    pub(super) fn finish_merge(&self, table: &Table, floors: &Floors) {
        let mut applied = self.applied.lock();
        applied.add_all(&table.applied);
        self.digest.store(applied.digest(), Ordering::SeqCst);
        // Also if no clock has changed: the digest has.
        self.is_used.store(true, Ordering::Release);
        drop(applied);
        let mut merging = self.merging.lock();
        merging.retain(|other| !Arc::ptr_eq(other, &floors.own));
    }
}
