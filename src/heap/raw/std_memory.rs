//! Memory of std's allocator, where pages cannot be returned one by one.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr::NonNull;

use super::SEGMENT;

/// No table is mapped.
pub(super) const MIN_TABLE: usize = usize::MAX;

pub(super) fn page() -> usize {
    4096
}

pub(super) use map_segment as map;

pub(super) unsafe fn grow(_: NonNull<u8>, _: usize, _: usize) -> Option<NonNull<u8>> {
    None
}

pub(super) unsafe fn cut(_: NonNull<u8>, _: usize, _: usize) {}

pub(super) fn map_segment(len: usize) -> Option<NonNull<u8>> {
    let layout = Layout::from_size_align(len, SEGMENT).ok()?;
    // SAFETY: the layout is not empty.
    NonNull::new(unsafe { alloc_zeroed(layout) })
}

pub(super) fn unmap(start: NonNull<u8>, len: usize) {
    if let Ok(layout) = Layout::from_size_align(len, SEGMENT) {
        // SAFETY: `map_segment` allocated it with this layout, and it is not accessed again.
        unsafe { dealloc(start.as_ptr(), layout) }
    }
}

pub(super) fn decommit(_: NonNull<u8>, _: usize) {}
