//! Remembers keys that left the small queue recently, by fingerprints of four bytes.

/// A direct-mapped table of (tag, time) pairs.
///
/// Time is counted in insertions. With n entries in the share, a key is remembered until n more keys
/// were inserted, as in a FIFO ghost queue of that length (S3-FIFO, SOSP '23, section 4.1). A key is
/// remembered for at least [`SMALLEST`] insertions, even if the share is empty, because large entries
/// enter a share only through the ghost. In a table of up to 65,536 cells the tag has 16 bits that do
/// not choose the place. Then one look-up in 65,536 finds a key that was not inserted. The
/// only effect is that the key enters the main queue early.
#[derive(Debug, Default)]
pub(super) struct Ghost {
    /// The tag in the upper half, the time in units of `1 << shift` in the lower. The length is a
    /// power of two, or zero before the first insertion.
    cells: Vec<u32>,
    shift: u32,
    /// Insertions so far. Starts at the table's length, so that empty cells are too old to match.
    time: u32,
}

/// A cell's time has 16 bits. A table's length in the same units has at most 14. So the time wraps
/// around only after four times as many insertions as the table has cells.
const UNIT_BITS: u32 = 14;

/// The length of the shortest table, and the least number of insertions that a key is remembered for.
const SMALLEST: usize = 16;

impl Ghost {
    /// Remembers a key. The share holds about `resident` entries.
    #[inline]
    pub(super) fn insert(&mut self, hash: u32, resident: u32) {
        if self.cells.len() < (resident as usize).max(SMALLEST) {
            self.fit(resident);
        }
        self.time = self.time.wrapping_add(1);
        let cell = (hash & 0xffff_0000) | self.units(self.time);
        let at = self.place(hash);
        self.cells[at] = cell;
    }

    /// Whether the key was inserted less than `resident` insertions ago, or less than [`SMALLEST`].
    pub(super) fn contains(&self, hash: u32, resident: u32) -> bool {
        if self.cells.is_empty() {
            return false;
        }
        let cell = self.cells[self.place(hash)];
        let age = self.units(self.time).wrapping_sub(cell) & 0xffff;
        cell & 0xffff_0000 == hash & 0xffff_0000
            && u64::from(age) << self.shift < u64::from(resident).max(SMALLEST as u64)
    }

    /// Frees the table if it is far longer than `resident` entries need.
    pub(super) fn shrink(&mut self, resident: u32) {
        if self.cells.len() > 4 * length_for(resident) {
            *self = Ghost::default();
        }
    }

    fn place(&self, hash: u32) -> usize {
        hash as usize & (self.cells.len() - 1)
    }

    fn units(&self, time: u32) -> u32 {
        (time >> self.shift) & 0xffff
    }

    /// Grows the table to at least `resident` cells.
    ///
    /// When the table doubles, each cell has two possible places. The bit of the hash that chooses
    /// between them was not stored, so both get a copy. The wrong copy expires.
    #[cold]
    fn fit(&mut self, resident: u32) {
        let wanted = length_for(resident);
        if self.cells.is_empty() {
            self.cells = vec![0; wanted];
            self.shift = shift_of(wanted);
            self.time = u32::try_from(wanted).unwrap_or(u32::MAX);
        }
        while self.cells.len() < wanted {
            let shift = shift_of(self.cells.len() * 2);
            if shift != self.shift {
                let (time, old) = (self.time, self.shift);
                for cell in &mut self.cells {
                    *cell = (*cell & 0xffff_0000) | rescaled(*cell, time, old, shift);
                }
                self.shift = shift;
            }
            self.cells.extend_from_within(..);
        }
    }
}

fn length_for(resident: u32) -> usize {
    (resident as usize).max(SMALLEST).next_power_of_two()
}

/// Converts a cell's time from units of `1 << old` to units of `1 << new`, by way of its age.
fn rescaled(cell: u32, time: u32, old: u32, new: u32) -> u32 {
    let age = ((time >> old).wrapping_sub(cell) & 0xffff) << old;
    (time.wrapping_sub(age) >> new) & 0xffff
}

fn shift_of(len: usize) -> u32 {
    len.trailing_zeros().saturating_sub(UNIT_BITS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::{GOLDEN_RATIO, mix};

    fn hash(n: u32) -> u32 {
        mix((u64::from(n) + 1).wrapping_mul(GOLDEN_RATIO)) as u32
    }

    #[test]
    fn empty_ghost_remembers_nothing() {
        let mut ghost = Ghost::default();
        assert!(!ghost.contains(0, 10));
        ghost.insert(hash(1), 10);
        assert!(!(2..2000).any(|n| ghost.contains(hash(n), 10)));
        assert!(!ghost.contains(0, 10), "an empty cell matches no key");
    }

    #[test]
    fn key_is_forgotten_after_as_many_insertions_as_entries() {
        let mut ghost = Ghost::default();
        ghost.insert(hash(0), 100);
        let mut forgotten_at = None;
        for n in 1..200 {
            if !ghost.contains(hash(0), 100) {
                forgotten_at.get_or_insert(n - 1);
            }
            if hash(n) & 127 != hash(0) & 127 {
                ghost.insert(hash(n), 100);
            }
        }
        let at = forgotten_at.expect("it is forgotten");
        assert!((99..=103).contains(&at), "forgotten after {at}");
    }

    #[test]
    fn remembered_keys_survive_growth() {
        let mut ghost = Ghost::default();
        let keys: Vec<u32> = (0..4).map(hash).collect();
        for &key in &keys {
            ghost.insert(key, 1000);
        }
        ghost.insert(hash(99), 300_000);
        for &key in &keys {
            assert!(ghost.contains(key, 300_000));
        }
    }

    #[test]
    fn most_keys_of_a_full_window_are_remembered() {
        let mut ghost = Ghost::default();
        let resident = 1 << 16;
        for n in 0..resident {
            ghost.insert(hash(n), resident);
        }
        let remembered = (0..resident)
            .filter(|&n| ghost.contains(hash(n), resident))
            .count();
        // A direct-mapped table that is exactly full loses some to collisions: 1/e at worst.
        assert!(remembered > 40_000, "{remembered} of {resident}");
    }
}
