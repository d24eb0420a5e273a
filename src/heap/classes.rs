//! The sizes of blocks: the classes of small blocks, and whole pages for the others.

/// The unit in which an arena divides a segment, in bytes. The system's pages are multiples of it.
pub(super) const PAGE: usize = 4096;

/// The longest block that shares its pages with others, in bytes.
pub(super) const MAX_SMALL: usize = 32 << 10;

/// The bytes that a block of `size` bytes takes, header included.
#[inline]
pub(crate) fn rounded(size: usize) -> usize {
    match class_of(size) {
        Some(class) => CLASSES[class].size,
        None => size.checked_next_multiple_of(PAGE).unwrap_or(usize::MAX),
    }
}

/// The class of a block of `size` bytes; `None` if it has pages of its own.
#[inline]
pub(super) fn class_of(size: usize) -> Option<usize> {
    let steps = size.div_ceil(STEP);
    CLASS_OF_STEPS.get(steps).map(|&class| usize::from(class))
}

/// Blocks of one size, in slabs of a few pages.
#[derive(Clone, Copy)]
pub(super) struct Class {
    /// The bytes of a block, a multiple of [`STEP`].
    pub(super) size: usize,
    /// The pages of a slab.
    pub(super) pages: usize,
    /// The blocks of a slab, at most 128.
    pub(super) blocks: u32,
}

pub(super) const CLASSES: [Class; SLABS.len()] = {
    let mut classes = [Class {
        size: 0,
        pages: 0,
        blocks: 0,
    }; SLABS.len()];
    let mut class = 0;
    while class < SLABS.len() {
        let (pages, blocks) = SLABS[class];
        let size = pages * PAGE / blocks / STEP * STEP;
        classes[class] = Class {
            size,
            pages,
            blocks: blocks as u32,
        };
        class += 1;
    }
    classes
};

/// Every size of a class is a multiple of this, in bytes.
const STEP: usize = 16;

/// The class of each size of a small block, in steps.
const CLASS_OF_STEPS: [u8; MAX_SMALL / STEP + 1] = {
    let mut of_steps = [0; MAX_SMALL / STEP + 1];
    let (mut steps, mut class) = (0, 0);
    while steps < of_steps.len() {
        if steps * STEP > CLASSES[class].size {
            class += 1;
        }
        of_steps[steps] = class as u8;
        steps += 1;
    }
    of_steps
};

/// The pages of a slab, and the blocks that they are divided into, by class. The sizes are steps of 16
/// bytes up to 256, and then about eight for each doubling. At most 1/28 of a slab is left over at its
/// end.
const SLABS: [(usize, usize); 71] = [
    (1, 128),
    (1, 85),
    (1, 64),
    (1, 51),
    (3, 128),
    (2, 73),
    (1, 32),
    (1, 28),
    (2, 51),
    (1, 23),
    (3, 64),
    (2, 39),
    (4, 73),
    (1, 17),
    (1, 16),
    (1, 14),
    (2, 25),
    (2, 23),
    (2, 21),
    (2, 19),
    (1, 9),
    (2, 17),
    (1, 8),
    (1, 7),
    (3, 19),
    (4, 23),
    (3, 16),
    (6, 29),
    (2, 9),
    (4, 17),
    (1, 4),
    (2, 7),
    (5, 16),
    (9, 26),
    (3, 8),
    (9, 22),
    (4, 9),
    (8, 17),
    (1, 2),
    (4, 7),
    (5, 8),
    (9, 13),
    (3, 4),
    (9, 11),
    (7, 8),
    (15, 16),
    (1, 1),
    (9, 8),
    (5, 4),
    (11, 8),
    (3, 2),
    (5, 3),
    (7, 4),
    (15, 8),
    (2, 1),
    (9, 4),
    (5, 2),
    (11, 4),
    (3, 1),
    (13, 4),
    (7, 2),
    (15, 4),
    (4, 1),
    (9, 2),
    (5, 1),
    (11, 2),
    (6, 1),
    (13, 2),
    (7, 1),
    (15, 2),
    (8, 1),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_adds_at_most_an_eighth_from_128_bytes_on() {
        let mut last = 0;
        for size in 0..200_000 {
            let rounded = rounded(size);
            assert!(
                rounded >= size && rounded >= last && rounded % STEP == 0,
                "{size}"
            );
            assert!(
                rounded <= size.max(128) + size.max(128) / 7,
                "{size}: {rounded}"
            );
            last = rounded;
        }
        assert_eq!(rounded(usize::MAX), usize::MAX);
    }

    #[test]
    fn slabs_are_used_almost_whole() {
        for class in CLASSES {
            let (used, whole) = (class.size * class.blocks as usize, class.pages * PAGE);
            assert!(
                used <= whole && whole - used <= whole / 28,
                "{} bytes",
                class.size
            );
            assert!(class.blocks <= 128);
        }
    }
}
