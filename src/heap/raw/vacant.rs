//! Blocks that have no bytes yet, and places that keep a block.

use std::mem::ManuallyDrop;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicPtr, AtomicU32, Ordering};

use super::{BlockHead, LONG, PREFIX, SharedBytes};

/// A block in use without a header yet. One that is dropped is never freed.
#[must_use]
pub(in super::super) struct Vacant {
    pub(super) block: NonNull<u8>,
    pub(super) size: usize,
}

// SAFETY: it owns its block.
unsafe impl Send for Vacant {}

impl Vacant {
    /// Makes the block one of `len` bytes, whose values are not specified.
    #[inline]
    pub(in super::super) fn into_bytes(self, len: usize) -> SharedBytes {
        assert!(
            len <= self.size - SharedBytes::HEADER,
            "the block is too short"
        );
        let head = BlockHead {
            refs: AtomicU32::new(1),
            len: u32::try_from(len).unwrap_or(LONG),
        };
        let is_long = head.len == LONG;
        let bytes = SharedBytes(self.block.cast());
        // SAFETY: the block is mapped, aligned, and belongs to this function alone (invariant 1). So does the
        // word in front of a long one, which is the prefix of a block of malloc, or lies in the first page of
        // the block's own segment.
        unsafe {
            bytes.0.write(head);
            if is_long {
                self.block.sub(PREFIX).cast().write(len);
            }
        }
        bytes
    }
}

/// A place for one block that threads exchange without a lock.
#[derive(Default)]
pub(in super::super) struct BlockCell(AtomicPtr<BlockHead>);

impl BlockCell {
    /// Puts in another block, or none, and returns the former one.
    pub(in super::super) fn swap(&self, block: Option<SharedBytes>) -> Option<SharedBytes> {
        let new = block.map_or(ptr::null_mut(), |block| ManuallyDrop::new(block).0.as_ptr());
        // The reference moves into the cell and out of it, so the count does not change (invariant 3).
        NonNull::new(self.0.swap(new, Ordering::AcqRel)).map(SharedBytes)
    }

    /// Takes the block out, if there is one. Most often there is none in a cache that is not full, and the
    /// look costs no locked instruction then.
    #[inline]
    pub(in super::super) fn take(&self) -> Option<SharedBytes> {
        if self.0.load(Ordering::Relaxed).is_null() {
            return None;
        }
        self.swap(None)
    }
}

impl Drop for BlockCell {
    fn drop(&mut self) {
        drop(self.swap(None));
    }
}
