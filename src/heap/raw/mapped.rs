//! Memory of the system: segments for blocks, and tables.

use std::alloc::Layout;
use std::ptr::{self, NonNull};

use super::{PREFIX, SEGMENT, SharedBytes, Vacant, system};
use crate::heap::release::Release;
use crate::sync::Arc;
use allocator_api2::alloc::{AllocError, Allocator, Global};

/// The beginning of a segment.
pub(super) struct SegmentHead {
    pub(super) release: Arc<Release<Mapping>>,
    pub(super) id: u32,
}

/// A mapped segment. The drop unmaps it.
pub(in super::super) struct Mapping {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: it owns its memory.
unsafe impl Send for Mapping {}

impl Mapping {
    /// Maps at least `len` bytes. Blocks of this segment are released there, with this id. `None` if the
    /// system has no memory or no addresses left.
    pub(in super::super) fn new(
        len: usize,
        release: &Arc<Release<Mapping>>,
        id: u32,
    ) -> Option<Mapping> {
        let len = len.checked_next_multiple_of(SEGMENT)?;
        let start = system::map_segment(len)?;
        let release = release.clone();
        // SAFETY: the mapping is new and writable, and its start is aligned to SEGMENT.
        unsafe { start.cast().write(SegmentHead { release, id }) };
        Some(Mapping { start, len })
    }

    /// The address of this range, which begins after the segment's head.
    fn at(&self, offset: usize, len: usize) -> NonNull<u8> {
        assert!(offset >= size_of::<SegmentHead>() && offset < SEGMENT && len <= self.len - offset);
        // SAFETY: the offset is within the mapping.
        unsafe { self.start.add(offset) }
    }

    /// The block of `size` bytes at this offset. It must not be in use (invariant 1).
    pub(in super::super) fn vacant(&self, offset: usize, size: usize) -> Vacant {
        assert!(offset % (2 * PREFIX) == 0 && size >= SharedBytes::HEADER);
        let block = self.at(offset, size);
        Vacant { block, size }
    }

    /// The link of the block at this offset, which came out of the free list and is not freed yet.
    pub(in super::super) fn link(&self, offset: usize) -> u64 {
        // SAFETY: `push` wrote it, and the list's `Acquire` is before this read (invariant 5).
        unsafe { self.at(offset, SharedBytes::HEADER).cast().read() }
    }

    /// Returns the pages of this range to the system. No block in use may lie in it, and it consists
    /// of whole pages.
    pub(in super::super) fn decommit(&self, offset: usize, len: usize) {
        system::decommit(self.at(offset, len), len);
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: `new` wrote the head, and no block is in use (invariant 5).
        unsafe { ptr::drop_in_place(self.start.cast::<SegmentHead>().as_ptr()) };
        system::unmap(self.start, self.len);
    }
}

/// The memory of tables. Large ones are mapped one by one. malloc would take them from the arena of the
/// thread that lets them grow, and would keep what is free at the end of each arena.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct TableMemory;

// SAFETY: both allocators return memory of the layout that lives until it is deallocated. The size of
// the layout chooses between them, and is the same in both calls. Mapped memory begins at a page, which
// no alignment here exceeds.
unsafe impl Allocator for TableMemory {
    fn allocate(&self, layout: Layout) -> Result<NonNull<[u8]>, AllocError> {
        if layout.size() < system::MIN_TABLE {
            return Global.allocate(layout);
        }
        let start = system::map(layout.size()).ok_or(AllocError)?;
        Ok(NonNull::slice_from_raw_parts(start, layout.size()))
    }

    /// Mapped memory moves by its page tables: no byte is copied, and the old pages need no second copy
    /// meanwhile.
    unsafe fn grow(
        &self,
        start: NonNull<u8>,
        old: Layout,
        new: Layout,
    ) -> Result<NonNull<[u8]>, AllocError> {
        if old.size() >= system::MIN_TABLE {
            // SAFETY: the caller owns this mapping of `old.size()` bytes.
            if let Some(start) = unsafe { system::grow(start, old.size(), new.size()) } {
                return Ok(NonNull::slice_from_raw_parts(start, new.size()));
            }
        }
        let moved = self.allocate(new)?;
        // SAFETY: both are as long as `old` at least, and they do not overlap. The caller gives `start`
        // away.
        unsafe {
            start
                .as_ptr()
                .copy_to_nonoverlapping(moved.as_ptr().cast(), old.size());
            self.deallocate(start, old);
        }
        Ok(moved)
    }

    /// Mapped memory loses its end: no byte is copied, and no second memory is needed, of which there may be
    /// none when a store has to give memory back.
    unsafe fn shrink(
        &self,
        start: NonNull<u8>,
        old: Layout,
        new: Layout,
    ) -> Result<NonNull<[u8]>, AllocError> {
        if new.size() >= system::MIN_TABLE {
            // SAFETY: the caller owns this mapping of `old.size()` bytes, and gives its end away.
            unsafe { system::cut(start, old.size(), new.size()) };
            return Ok(NonNull::slice_from_raw_parts(start, new.size()));
        }
        let moved = self.allocate(new)?;
        // SAFETY: both are as long as `new` at least, and they do not overlap. The caller gives `start` away.
        unsafe {
            start
                .as_ptr()
                .copy_to_nonoverlapping(moved.as_ptr().cast(), new.size());
            self.deallocate(start, old);
        }
        Ok(moved)
    }

    unsafe fn deallocate(&self, start: NonNull<u8>, layout: Layout) {
        if layout.size() < system::MIN_TABLE {
            // SAFETY: as the caller's.
            return unsafe { Global.deallocate(start, layout) };
        }
        system::unmap(start, layout.size());
    }
}

/// The bytes of a page of the system.
pub(in super::super) fn system_page() -> usize {
    system::page()
}
