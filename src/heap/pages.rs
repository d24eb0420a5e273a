//! The pages of one segment: which are used, and which are resident.

use super::classes::PAGE;
use super::raw::SEGMENT;

/// The pages of a segment. The first one holds the segment's head.
pub(super) const PAGES: usize = SEGMENT / PAGE;

/// A set of pages.
type Bits = [u64; PAGES / 64];

/// Pages in runs. A page is resident once it was used, and until it is forgotten. A resident page that
/// is not used is a spare one.
#[derive(Clone, Debug)]
pub(super) struct PageMap {
    used: Bits,
    resident: Bits,
    /// No run of free pages is longer than this.
    longest: usize,
    /// The pages that the system adds or returns together: one, or more where its pages are larger.
    unit: usize,
    /// The page from which on [`take`](Self::take) searches first.
    start: usize,
}

impl PageMap {
    /// Only the first page is used.
    pub(super) fn new(unit: usize, start: usize) -> PageMap {
        let mut map = PageMap {
            used: [0; PAGES / 64],
            resident: [0; PAGES / 64],
            longest: PAGES - 1,
            unit,
            start: start / unit * unit,
        };
        map.used[0] = 1;
        set(&mut map.resident, 0, unit, true);
        map
    }

    /// Lets [`take`](Self::take) find no page.
    pub(super) fn close(&mut self) {
        self.longest = 0;
    }

    /// Whether a run of `count` pages may be free.
    pub(super) fn may_have(&self, count: usize) -> bool {
        count <= self.longest
    }

    /// Whether no page is used but the first.
    pub(super) fn is_unused(&self) -> bool {
        self.used[0] == 1 && self.used[1..].iter().all(|&word| word == 0)
    }

    /// Uses the first free run of `count` pages from the start page on, or from the first page on if there is
    /// none. Returns its first page, and how many pages become resident.
    pub(super) fn take(&mut self, count: usize) -> Option<(usize, usize)> {
        let taken = self.take_from(self.start, count);
        taken.or_else(|| {
            let taken = self.take_from(0, count);
            if taken.is_none() {
                self.longest = count - 1;
            }
            taken
        })
    }

    fn take_from(&mut self, mut from: usize, count: usize) -> Option<(usize, usize)> {
        loop {
            let first = next(&self.used, from, false);
            if first + count > PAGES {
                return None;
            }
            let end = next(&self.used, first, true);
            if end - first >= count {
                set(&mut self.used, first, count, true);
                let (from, to) = (self.floor(first), self.ceil(first + count));
                let before = ones(&self.resident);
                set(&mut self.resident, from, to - from, true);
                return Some((first, ones(&self.resident) - before));
            }
            from = end;
        }
    }

    /// Frees a run of used pages, which become spare.
    pub(super) fn free(&mut self, first: usize, count: usize) {
        set(&mut self.used, first, count, false);
        self.longest = PAGES - 1;
    }

    /// The resident pages.
    pub(super) fn resident(&self) -> usize {
        ones(&self.resident)
    }

    /// The next run of spare pages that the system can return, from `from` on: its first page and its
    /// length. The pages are no longer resident.
    pub(super) fn forget_spare(&mut self, mut from: usize) -> Option<(usize, usize)> {
        loop {
            let first = next(&self.resident, from, true);
            if first == PAGES {
                return None;
            }
            let end = next(&self.resident, first, false);
            let spare = next(&self.used, first, false).min(end);
            let after = next(&self.used, spare, true).min(end);
            let (low, high) = (self.ceil(spare), self.floor(after));
            if low < high {
                set(&mut self.resident, low, high - low, false);
                return Some((low, high - low));
            }
            from = after;
        }
    }

    fn floor(&self, page: usize) -> usize {
        page / self.unit * self.unit
    }

    fn ceil(&self, page: usize) -> usize {
        page.next_multiple_of(self.unit)
    }
}

fn ones(bits: &Bits) -> usize {
    bits.iter().map(|word| word.count_ones() as usize).sum()
}

/// The first page from `from` on that is in the set or not, as asked; `PAGES` if there is none.
fn next(bits: &Bits, from: usize, wanted: bool) -> usize {
    let flip = if wanted { 0 } else { u64::MAX };
    let mut mask = u64::MAX << (from % 64);
    for (index, word) in bits.iter().enumerate().skip(from / 64) {
        let found = (word ^ flip) & mask;
        if found != 0 {
            return index * 64 + found.trailing_zeros() as usize;
        }
        mask = u64::MAX;
    }
    PAGES
}

fn set(bits: &mut Bits, first: usize, count: usize, value: bool) {
    let mut at = first;
    while at < first + count {
        let end = (first + count).min((at / 64 + 1) * 64);
        let mask = u64::MAX >> (64 - (end - at)) << (at % 64);
        if value {
            bits[at / 64] |= mask;
        } else {
            bits[at / 64] &= !mask;
        }
        at = end;
    }
}
