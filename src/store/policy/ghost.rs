//! Remembers keys that were evicted lately, by fingerprints of four bytes.

use crate::heap::{TableMemory, TableVec, prefetch};

/// A direct-mapped table of keys that left, each with its queue and the time of its departure.
///
/// Time is the policy's own: it counts misses. In a table of up to 65,536 cells the tag has 15 bits
/// that do not choose the place. Then one look-up in 32,768 finds a key that was not inserted. The only
/// effect is that the key enters the main queue early.
#[derive(Debug)]
pub(super) struct Ghost {
    /// The tag in the upper 15 bits, then the bit [`WAS_MAIN`], and the time in units of `1 << shift` in
    /// the lower 16. Zero if empty. The length is a power of two, or zero before the first insertion.
    cells: TableVec<u32>,
    shift: u32,
}

/// A departure that the ghost remembers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Departure {
    /// The misses since then.
    pub(super) age: u32,
    /// Whether the key left the main queue, not the small one.
    pub(super) was_main: bool,
}

const TAG: u32 = 0xfffe_0000;
const WAS_MAIN: u32 = 0x1_0000;
const TIME: u32 = 0xffff;

/// A cell's time has 16 bits, and as many misses as there are entries take at most 2^13 units. So the
/// time wraps around only after at least eight times as many misses.
const UNIT_BITS: u32 = 13;

/// The length of the shortest table.
const SMALLEST: usize = 16;

impl Default for Ghost {
    fn default() -> Ghost {
        Ghost {
            cells: TableVec::new_in(TableMemory),
            shift: 0,
        }
    }
}

impl Ghost {
    /// Remembers a key that leaves at the time `now` a share of about `resident` entries. `span` is the
    /// number of entries that share the clock.
    #[inline]
    pub(super) fn insert(&mut self, hash: u32, was_main: bool, now: u32, resident: u32, span: u32) {
        if self.cells.len() < (resident as usize).max(SMALLEST) || span >> self.shift > MAX_UNITS {
            self.fit(now, resident, span);
        }
        let flag = if was_main { WAS_MAIN } else { 0 };
        let at = self.place(hash);
        self.cells[at] = (hash & TAG) | flag | self.units(now);
    }

    /// Forgets a key, and returns its departure if it was remembered.
    pub(super) fn take(&mut self, hash: u32, now: u32) -> Option<Departure> {
        let at = self.place(hash);
        let cell = *self.cells.get(at)?;
        if cell == 0 || cell & TAG != hash & TAG {
            return None;
        }
        self.cells[at] = 0;
        let units = self.units(now).wrapping_sub(cell) & TIME;
        Some(Departure {
            age: u32::try_from(u64::from(units) << self.shift).unwrap_or(u32::MAX),
            was_main: cell & WAS_MAIN != 0,
        })
    }

    /// Starts to fetch the cell of a key.
    #[inline]
    pub(super) fn prefetch(&self, hash: u32) {
        if let Some(cell) = self.cells.get(self.place(hash)) {
            prefetch(cell);
        }
    }

    pub(super) fn table_bytes(&self) -> usize {
        size_of_val(&self.cells[..])
    }

    /// Frees the table if it is far longer than `resident` entries need.
    pub(super) fn shrink(&mut self, resident: u32) {
        if self.cells.len() > 4 * length_for(resident) {
            *self = Ghost::default();
        }
    }

    fn place(&self, hash: u32) -> usize {
        hash as usize & self.cells.len().wrapping_sub(1)
    }

    fn units(&self, time: u32) -> u32 {
        (time >> self.shift) & TIME
    }

    /// Grows the table to at least `resident` cells, and the unit of time for `span`.
    ///
    /// When the table doubles, each cell has two possible places. The bit of the hash that chooses
    /// between them was not stored, so both get a copy. The wrong copy expires.
    #[cold]
    fn fit(&mut self, now: u32, resident: u32, span: u32) {
        let wanted = length_for(resident);
        if self.cells.is_empty() {
            self.cells.resize(wanted, 0);
        }
        while self.cells.len() < wanted {
            self.cells.extend_from_within(..);
        }
        let (old, new) = (self.shift, shift_of(span).max(self.shift));
        if new != old {
            for cell in self.cells.iter_mut().filter(|cell| **cell != 0) {
                *cell = (*cell & !TIME) | rescaled(*cell, now, old, new);
            }
            self.shift = new;
        }
    }
}

/// The units that as many misses as there are entries take at most.
const MAX_UNITS: u32 = 1 << UNIT_BITS;

fn length_for(resident: u32) -> usize {
    (resident as usize).max(SMALLEST).next_power_of_two()
}

/// Converts a cell's time from units of `1 << old` to units of `1 << new`, by way of its age.
fn rescaled(cell: u32, now: u32, old: u32, new: u32) -> u32 {
    let age = ((now >> old).wrapping_sub(cell) & TIME) << old;
    (now.wrapping_sub(age) >> new) & TIME
}

fn shift_of(span: u32) -> u32 {
    let log2 = u32::BITS - span.leading_zeros();
    log2.saturating_sub(UNIT_BITS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::{GOLDEN_RATIO, mix};

    fn hash(n: u32) -> u32 {
        mix((u64::from(n) + 1).wrapping_mul(GOLDEN_RATIO)) as u32
    }

    /// Inserts keys at the times of their numbers.
    fn fill(ghost: &mut Ghost, keys: std::ops::Range<u32>, resident: u32) {
        for n in keys {
            ghost.insert(hash(n), n % 3 == 0, n, resident, resident);
        }
    }

    #[test]
    fn empty_ghost_remembers_nothing() {
        let mut ghost = Ghost::default();
        assert_eq!(ghost.take(0, 10), None);
        ghost.insert(hash(1), false, 0, 10, 10);
        assert!((2..2000).all(|n| ghost.take(hash(n), 10).is_none()));
        assert_eq!(ghost.take(0, 10), None, "an empty cell matches no key");
    }

    #[test]
    fn departure_has_its_queue_and_age_and_is_taken_once() {
        let mut ghost = Ghost::default();
        for (was_main, now) in [(false, 7), (true, u32::MAX - 3)] {
            ghost.insert(hash(0), was_main, now, 100, 100);
            let departure = Departure { age: 40, was_main };
            assert_eq!(ghost.take(hash(0), now.wrapping_add(40)), Some(departure));
            assert_eq!(ghost.take(hash(0), now.wrapping_add(41)), None);
        }
    }

    #[test]
    fn remembered_keys_survive_growth() {
        let mut ghost = Ghost::default();
        fill(&mut ghost, 0..4, 1000);
        ghost.insert(hash(99), false, 50_000, 300_000, 1 << 30);
        for n in 0..4 {
            let departure = ghost.take(hash(n), 60_000).expect("it is remembered");
            let unit = 1 << ghost.shift;
            assert!(departure.age.abs_diff(60_000) <= 2 * unit, "{departure:?}");
            assert_eq!(departure.was_main, n % 3 == 0);
        }
    }

    #[test]
    fn most_keys_of_a_full_window_are_remembered() {
        let mut ghost = Ghost::default();
        let resident = 1 << 16;
        fill(&mut ghost, 0..resident, resident);
        let remembered = (0..resident)
            .filter(|&n| ghost.take(hash(n), resident).is_some())
            .count();
        // A direct-mapped table that is exactly full loses some to collisions: 1/e at worst.
        assert!(remembered > 40_000, "{remembered} of {resident}");
    }
}
