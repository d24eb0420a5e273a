//! The removals that a node has applied, as a small table that nodes compare and merge.
//!
//! Each stripe of keys has a clock: a stamp and the time of the stripe's last removal. Every removal has
//! a random number, which is added to the stamp. So two nodes have the same stamp if they applied the
//! same removals, in whatever order. (Two different sets have the same sum in one of 4 × 10^9 cases.)
//! The last clock is that of the removals of all keys.

use std::hash::Hasher;
use std::time::Duration;

use fnv::FnvHasher;

use crate::clock::{Clock, Tick};
use crate::random::{GOLDEN_RATIO, mix};
use crate::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// The clocks of a group. 8 KiB.
pub(super) struct RemovalClocks {
    clocks: Box<[AtomicU64]>,
    /// The sum of a hash of each clock's stamp; 0 if there was no removal.
    digest: AtomicU64,
    /// The clears and merges under way. They change the clocks before the entries.
    unsettled: AtomicUsize,
}

/// The number of clocks. Few under loom, which allocates each.
const CLOCKS: usize = if cfg!(larder_loom) { 2 } else { 1024 };

/// The clock of the removals of all keys.
pub(super) const ALL_KEYS: Stripe = Stripe(CLOCKS - 1);

/// The keys that share a clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stripe(usize);

impl Stripe {
    /// The stripe of a key: FNV-1a of 64 bits over the key, the same in all processes.
    pub(super) fn of(key: &str) -> Stripe {
        let mut hasher = FnvHasher::default();
        hasher.write(key.as_bytes());
        Stripe((hasher.finish() % (CLOCKS as u64 - 1)) as usize)
    }

    fn all() -> impl Iterator<Item = Stripe> {
        (0..CLOCKS).map(Stripe)
    }
}

/// One clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct LastRemoval {
    /// The sum of the numbers of all removals; 0 if there was none.
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

    /// The milliseconds since the last removal, at most one too many.
    fn age(self, now: Tick) -> u32 {
        millis_up(now).wrapping_sub(self.at)
    }
}

fn millis_up(tick: Tick) -> u32 {
    tick.nanos().div_ceil(1_000_000) as u32
}

impl RemovalClocks {
    pub(super) fn new() -> RemovalClocks {
        RemovalClocks {
            clocks: (0..CLOCKS).map(|_| AtomicU64::new(0)).collect(),
            digest: AtomicU64::new(0),
            unsettled: AtomicUsize::new(0),
        }
    }

    /// Whether there was no removal yet.
    pub(super) fn are_unused(&self) -> bool {
        self.digest.load(Ordering::Acquire) == 0
    }

    /// Notes a removal.
    pub(super) fn advance(&self, stripe: Stripe, removal_id: u32, clock: &Clock) {
        // The time is read after the old clock, so that of two removals the second has the later time.
        self.change(stripe, |old| LastRemoval {
            stamp: old.stamp.wrapping_add(removal_id),
            at: millis_up(clock.now()),
        });
    }

    fn change(&self, stripe: Stripe, new: impl Fn(LastRemoval) -> LastRemoval) {
        let clock = &self.clocks[stripe.0];
        let mut before = clock.load(Ordering::SeqCst);
        let after = loop {
            let after = new(LastRemoval::unpack(before)).pack();
            match clock.compare_exchange(before, after, Ordering::SeqCst, Ordering::SeqCst) {
                Ok(_) => break after,
                Err(now) => before = now,
            }
        };
        let hash = |bits| hash_of(stripe, LastRemoval::unpack(bits).stamp);
        let difference = hash(after).wrapping_sub(hash(before));
        self.digest.fetch_add(difference, Ordering::SeqCst);
    }

    fn last(&self, stripe: Stripe) -> LastRemoval {
        LastRemoval::unpack(self.clocks[stripe.0].load(Ordering::SeqCst))
    }

    /// Marks the clocks as ahead of the entries until the guard is dropped.
    pub(super) fn unsettle(&self) -> Unsettled<'_> {
        self.unsettled.fetch_add(1, Ordering::SeqCst);
        Unsettled(self)
    }

    /// The removals that this node has applied, for the answer to a peer that asks for `key`. Read
    /// before the value is looked up, so that the value is not older than any of them. `None` if there
    /// was none, or while that is not certain.
    pub(super) fn mark(&self, key: &str) -> Option<RemovalMark> {
        if self.are_unused() {
            return None;
        }
        let stamp = self.stamp(Stripe::of(key));
        let digest = self.digest();
        // After the stamp: a clear or a merge that is in the stamp has ended, if none is under way now.
        let is_settled = self.unsettled.load(Ordering::SeqCst) == 0;
        is_settled.then_some(RemovalMark { digest, stamp })
    }

    /// Whether a node with this mark has applied the same removals to the keys of a stripe.
    pub(super) fn has_same(&self, stripe: Stripe, mark: Option<RemovalMark>) -> bool {
        mark.unwrap_or_default().stamp == self.stamp(stripe)
    }

    /// Whether a node with this mark has applied the same removals to all keys.
    pub(super) fn has_same_digest(&self, mark: Option<RemovalMark>) -> bool {
        mark.unwrap_or_default().digest == self.digest()
    }

    /// The time since the last removal of the stripe or of all keys, rounded down; `None` if there was
    /// none.
    pub(super) fn since_removal(&self, stripe: Stripe, now: Tick) -> Option<Duration> {
        let removals = [stripe, ALL_KEYS].map(|stripe| self.last(stripe));
        let removals = removals.into_iter().filter(|last| !last.is_none());
        let age = removals.map(|last| last.age(now).saturating_sub(1)).min()?;
        Some(Duration::from_millis(age.into()))
    }

    fn stamp(&self, stripe: Stripe) -> u32 {
        let [own, all] = [stripe, ALL_KEYS].map(|stripe| self.last(stripe).stamp);
        own.wrapping_add(all.rotate_left(16))
    }

    pub(super) fn digest(&self) -> u32 {
        (self.digest.load(Ordering::SeqCst) >> 32) as u32
    }
}

fn hash_of(stripe: Stripe, stamp: u32) -> u64 {
    match stamp {
        0 => 0,
        _ => mix((stripe.0 as u64) << 32 | u64::from(stamp)).wrapping_mul(GOLDEN_RATIO) | 1,
    }
}

/// See [`RemovalClocks::unsettle`].
pub(super) struct Unsettled<'c>(&'c RemovalClocks);

impl Drop for Unsettled<'_> {
    fn drop(&mut self) {
        self.0.unsettled.fetch_sub(1, Ordering::SeqCst);
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

/// The times before which the loads of values began that are dropped, by stripe.
pub(super) struct Floors(Box<[Option<Tick>]>);

impl Floors {
    /// Whether a value is dropped: its load began, at the latest, before the floor of its key.
    pub(super) fn is_older(&self, key: &str, begun: Option<Tick>) -> bool {
        let floor = self.0[Stripe::of(key).0].max(self.0[ALL_KEYS.0]);
        floor.is_some_and(|floor| begun.is_none_or(|begun| begun < floor))
    }
}

/// A clock in a table: the stamp, and the milliseconds since the last removal, rounded down. Both are in 4
/// bytes, the lowest first.
const ENCODED: usize = 8;

/// The age of a removal that the receiver knows, or of none.
const KNOWN: u32 = u32::MAX;

/// How long after its last removal a stripe's stamp is exchanged. Before, the removal may still be under
/// way to one of the two nodes, which would add it to the other's stamp.
const SETTLED: u32 = 2000;

impl RemovalClocks {
    pub(super) fn full_digest(&self) -> u64 {
        self.digest.load(Ordering::SeqCst)
    }

    /// The table for a peer whose removals, and this node's, were equal at `equal_at`. The ages of removals
    /// before that time are left out.
    pub(super) fn encode(&self, now: Tick, equal_at: Option<Tick>) -> Vec<u8> {
        let equal_age = equal_at.map(|at| now.since(at).as_millis() + 2);
        let mut table = Vec::with_capacity(ENCODED * CLOCKS);
        for stripe in Stripe::all() {
            let last = self.last(stripe);
            let age = last.age(now).saturating_sub(1);
            let is_known = equal_age.is_some_and(|equal| u128::from(age) > equal);
            let age = if last.is_none() || is_known { KNOWN } else { age };
            table.extend_from_slice(&last.stamp.to_le_bytes());
            table.extend_from_slice(&age.to_le_bytes());
        }
        table
    }

    /// Merges a peer's table, which was received at this time and after `equal_at`. Returns the times of
    /// the removals that this node may have missed; `None` if there is none, or the table has another
    /// length.
    ///
    /// Where the stamps differ, both nodes take the greater one, once no removal is under way any more.
    pub(super) fn merge(
        &self,
        table: &[u8],
        received: Tick,
        equal_at: Option<Tick>,
    ) -> Option<Floors> {
        if table.len() != ENCODED * CLOCKS {
            return None;
        }
        let mut floors = Floors(vec![None; CLOCKS].into());
        for (stripe, encoded) in Stripe::all().zip(table.chunks_exact(ENCODED)) {
            let (stamp, age) = encoded.split_at(4);
            let number = |bytes: &[u8]| bytes.try_into().map_or(0, u32::from_le_bytes);
            let (stamp, age) = (number(stamp), number(age));
            if stamp == self.last(stripe).stamp {
                continue;
            }
            let removed = match age {
                KNOWN => None,
                age => Some(received.before(Duration::from_millis(age.into())).unwrap_or(received)),
            };
            floors.0[stripe.0] = removed.filter(|removed| equal_at.is_none_or(|at| at <= *removed));
            self.change(stripe, |own| {
                let is_settled = age >= SETTLED && (own.is_none() || own.age(received) >= SETTLED);
                let theirs_is_younger = own.is_none() || age < own.age(received);
                LastRemoval {
                    stamp: if is_settled { own.stamp.max(stamp) } else { own.stamp },
                    at: match removed {
                        Some(removed) if theirs_is_younger => millis_up(removed),
                        _ => own.at,
                    },
                }
            });
        }
        floors.0.iter().any(Option::is_some).then_some(floors)
    }
}
