//! Blocks that threads keep for their next entries.

use crossbeam_utils::CachePadded;

use super::classes::rounded;
use super::raw::{BlockCell, SharedBytes, Vacant};
use crate::threads::counters::thread_number;

/// For each thread the block of an entry that left.
///
/// In a full cache each new entry evicts another one, often of about the same size. The thread that
/// dropped the one takes its block for the next, without the lock of an arena, and while the block is in
/// its processor's cache.
pub(super) struct Spares(Box<[CachePadded<BlockCell>; CELLS]>);

/// Threads with the same number modulo this share a cell.
const CELLS: usize = 32;

/// The longest block that is kept, header included, in bytes.
const MAX_SPARE_BLOCK: usize = 2048;

impl Spares {
    pub(super) fn new() -> Spares {
        Spares(Box::new(std::array::from_fn(|_| CachePadded::default())))
    }

    /// Keeps the block of an entry that left if no other reference does.
    pub(super) fn keep(&self, block: SharedBytes) {
        if SharedBytes::HEADER + block.len() <= MAX_SPARE_BLOCK {
            drop(self.cell().swap(Some(block)));
        }
    }

    /// The thread's block, if it is one for `size` bytes, header included.
    #[inline]
    pub(super) fn take(&self, size: usize) -> Option<Vacant> {
        if size > MAX_SPARE_BLOCK {
            return None;
        }
        self.cell().take()?.into_vacant(rounded(size))
    }

    /// Drops the blocks of all threads.
    pub(super) fn clear(&self) {
        for cell in self.0.iter() {
            drop(cell.take());
        }
    }

    #[inline]
    fn cell(&self) -> &BlockCell {
        &self.0[thread_number() % CELLS]
    }
}
