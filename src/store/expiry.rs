//! The expiry of a shard's entries, and the shards that have expired entries.

use crate::sync::plain_atomic::{AtomicBool, AtomicU64, Ordering};

use crate::clock::Tick;
use crate::heap::{TableMemory, TableVec};

/// The expiry of each slot, in a tree that finds an expired entry without a search through all
/// slots.
///
/// Each word of the tree is the earliest of the [`FAN_OUT`] words below it. The lowest words are the
/// slots. The tree is exact: the removal of an entry raises the words above it at once. So a change
/// costs at most `FAN_OUT` reads a level, and no search is in vain.
#[derive(Debug)]
pub(super) struct Expiries {
    /// By slot; [`Tick::NEVER`] where nothing expires, and up to a multiple of [`FAN_OUT`]. Empty
    /// until the first entry that expires.
    ticks: TableVec<Tick>,
    /// The levels above, the lowest first. Each is filled up with [`Tick::NEVER`], too. The last one
    /// has one block.
    levels: Vec<TableVec<Tick>>,
}

/// The words below one word of the tree: a cache line.
const FAN_OUT: usize = 8;

impl Default for Expiries {
    fn default() -> Expiries {
        Expiries {
            ticks: TableVec::new_in(TableMemory),
            levels: Vec::new(),
        }
    }
}

impl Expiries {
    /// Whether no entry has expired or will expire since the slots were made. Then nothing is stored.
    pub(super) fn is_empty(&self) -> bool {
        self.ticks.is_empty()
    }

    #[inline]
    pub(super) fn get(&self, slot: u32) -> Option<Tick> {
        let end = self.ticks.get(slot as usize).copied();
        end.filter(|&end| end != Tick::NEVER)
    }

    /// Sets the expiry of one of `slots` slots.
    #[inline]
    pub(super) fn set(&mut self, slot: u32, slots: usize, expires: Option<Tick>) {
        if expires.is_some() || !self.is_empty() {
            self.grow(slots);
            self.store(slot, expires.unwrap_or(Tick::NEVER));
        }
    }

    /// Notes that the slot's entry left.
    #[inline]
    pub(super) fn reset(&mut self, slot: u32) {
        if (slot as usize) < self.ticks.len() {
            self.store(slot, Tick::NEVER);
        }
    }

    /// The earliest expiry of all; [`Tick::NEVER`] if nothing expires.
    pub(super) fn earliest(&self) -> Tick {
        self.levels
            .last()
            .map_or(Tick::NEVER, |top| earliest_of(top))
    }

    /// A slot whose entry has expired.
    pub(super) fn expired(&self, now: Tick) -> Option<u32> {
        let mut at = 0;
        for level in self.levels.iter().rev().chain([&self.ticks]) {
            let first = at * FAN_OUT;
            let block = level.get(first..first + FAN_OUT)?;
            at = first + block.iter().position(|&tick| tick <= now)?;
        }
        u32::try_from(at).ok().filter(|_| !self.is_empty())
    }

    /// The bytes of the lowest level, which has almost all words.
    pub(super) fn table_bytes(&self) -> usize {
        size_of_val(&self.ticks[..])
    }

    /// Frees the memory of all slots from `slots` on, in which nothing expires.
    pub(super) fn shrink(&mut self, slots: usize) {
        if slots >= self.ticks.len() {
            return;
        }
        self.ticks.truncate(slots);
        // Freed before the new ones are made. The ticks stay where they are.
        self.levels.clear();
        if self.ticks.iter().any(|&tick| tick != Tick::NEVER) {
            let len = fill_up(&mut self.ticks, slots);
            self.ticks.shrink_to_fit();
            self.add_levels(len);
        } else {
            *self = Expiries::default();
        }
    }

    fn grow(&mut self, slots: usize) {
        if slots <= self.ticks.len() {
            return;
        }
        let mut len = fill_up(&mut self.ticks, slots);
        for level in &mut self.levels {
            len = fill_up(level, len / FAN_OUT);
        }
        self.add_levels(len);
    }

    /// Adds the levels that are missing above the highest, which has `len` words.
    fn add_levels(&mut self, mut len: usize) {
        while len > FAN_OUT || self.levels.is_empty() {
            let below = self.levels.last().unwrap_or(&self.ticks);
            let mut level = TableVec::new_in(TableMemory);
            level.extend(below.chunks(FAN_OUT).map(earliest_of));
            let words = level.len();
            len = fill_up(&mut level, words);
            self.levels.push(level);
        }
    }

    fn store(&mut self, slot: u32, tick: Tick) {
        let mut at = slot as usize;
        let mut new = tick;
        let mut old = std::mem::replace(&mut self.ticks[at], new);
        let mut below = &self.ticks;
        for level in &mut self.levels {
            at /= FAN_OUT;
            let word = level[at];
            if new > word {
                if old != word {
                    return;
                }
                new = earliest_of(&below[at * FAN_OUT..][..FAN_OUT]);
            }
            if new == word {
                return;
            }
            old = std::mem::replace(&mut level[at], new);
            below = level;
        }
    }
}

/// Lengthens a level to at least `words` words and to whole blocks. Returns its length.
fn fill_up(level: &mut TableVec<Tick>, words: usize) -> usize {
    level.resize(
        words.next_multiple_of(FAN_OUT).max(level.len()),
        Tick::NEVER,
    );
    level.len()
}

/// The earliest of one block.
#[inline]
fn earliest_of(block: &[Tick]) -> Tick {
    // With the length known, the compiler unrolls the loop.
    let block: Option<&[Tick; FAN_OUT]> = block.first_chunk();
    let earliest = block.and_then(|block| block.iter().copied().min());
    earliest.unwrap_or(Tick::NEVER)
}

/// A time for each shard before which none of its entries expires. It shows without a lock which
/// shards may have expired entries.
///
/// Only a thread that holds the shard's exclusive lock changes the shard's time.
#[derive(Debug)]
pub(super) struct NextExpiries {
    shards: Box<[AtomicU64]>,
    /// Whether an entry that expires was ever inserted.
    any: AtomicBool,
}

impl NextExpiries {
    pub(super) fn new(shards: usize) -> NextExpiries {
        let never = || AtomicU64::new(Tick::NEVER.nanos());
        NextExpiries {
            shards: (0..shards).map(|_| never()).collect(),
            any: AtomicBool::new(false),
        }
    }

    /// Whether a shard may have entries that expire. If not, no clock need be read.
    pub(super) fn any(&self) -> bool {
        self.any.load(Ordering::Relaxed)
    }

    /// The shards that may have expired entries. The last entry to expire may have left already.
    pub(super) fn due(&self, now: Tick) -> impl Iterator<Item = usize> {
        let next = self.shards.iter().map(|next| next.load(Ordering::Relaxed));
        let due = next
            .enumerate()
            .filter(move |&(_, next)| next <= now.nanos());
        due.map(|(shard, _)| shard)
    }

    /// Notes that an entry of the shard expires at this time.
    pub(super) fn lower(&self, shard: usize, tick: Tick) {
        if tick.nanos() < self.shards[shard].load(Ordering::Relaxed) {
            self.set(shard, tick);
        }
        if !self.any() {
            self.any.store(true, Ordering::Relaxed);
        }
    }

    pub(super) fn set(&self, shard: usize, tick: Tick) {
        self.shards[shard].store(tick.nanos(), Ordering::Relaxed);
    }
}

#[cfg(all(test, not(larder_loom)))]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::clock::Clock;
    use std::time::Duration;

    fn tick(nanos: u64) -> Tick {
        Clock::manual().now().after(Duration::from_nanos(nanos))
    }

    proptest! {
        /// The tree finds the earliest expiry and the expired slots that a plain list has.
        #[test]
        fn agrees_with_a_plain_list(
            ops in proptest::collection::vec((0..1500_u32, proptest::option::of(0..100_u64)), 1..200),
        ) {
            let mut tree = Expiries::default();
            let mut list: Vec<Option<u64>> = Vec::new();
            for (slot, nanos) in ops {
                let at = slot as usize;
                list.resize(list.len().max(at + 1), None);
                list[at] = nanos;
                match nanos {
                    Some(nanos) => tree.set(slot, list.len(), Some(tick(nanos))),
                    None => tree.reset(slot),
                }
                let earliest = list.iter().flatten().min();
                prop_assert_eq!(tree.earliest(), earliest.map_or(Tick::NEVER, |&n| tick(n)));
                prop_assert_eq!(tree.get(slot), nanos.map(tick));
                for now in [0, 50, 99] {
                    let is_expired = |at: u32| list[at as usize].is_some_and(|end| end <= now);
                    let expired: Vec<u32> = (0..list.len() as u32).filter(|&at| is_expired(at)).collect();
                    let found = tree.expired(tick(now));
                    prop_assert_eq!(found.is_some(), !expired.is_empty());
                    prop_assert!(found.is_none_or(is_expired));
                }
            }
            let used = list.iter().rposition(Option::is_some).map_or(0, |last| last + 1);
            let before = tree.ticks.as_ptr();
            tree.shrink(used);
            list.truncate(used);
            let has_mapping = cfg!(unix) && tree.ticks.len() * size_of::<Tick>() >= 8 << 10;
            prop_assert!(!has_mapping || tree.ticks.as_ptr() == before, "it is copied");
            let earliest = list.iter().flatten().min();
            prop_assert_eq!(tree.earliest(), earliest.map_or(Tick::NEVER, |&n| tick(n)));
            for slot in 0..1700 {
                let nanos = list.get(slot as usize).copied().flatten();
                prop_assert_eq!(tree.get(slot), nanos.map(tick));
            }
            tree.set(1650, 1651, Some(tick(1000)));
            prop_assert_eq!(tree.get(1650), Some(tick(1000)));
        }
    }

    #[test]
    fn slots_without_expiry_take_no_memory() {
        let mut tree = Expiries::default();
        tree.set(70_000, 70_001, None);
        assert!(tree.is_empty());
        assert_eq!(tree.earliest(), Tick::NEVER);
    }

    /// The charge of an entry that expires covers its part of the tree.
    #[test]
    fn weight_covers_the_tree() {
        let mut tree = Expiries::default();
        let slots = 100_000;
        tree.set(slots - 1, slots as usize, Some(tick(1)));
        let words: usize = tree.levels.iter().map(TableVec::len).sum();
        let bytes = (tree.ticks.len() + words) * size_of::<Tick>();
        let charged = crate::store::entry::weight::EXPIRY * slots as usize;
        assert!(
            (bytes..bytes + bytes / 10).contains(&charged),
            "{bytes} of {charged}"
        );
    }
}
