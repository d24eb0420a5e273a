//! Shared bytes in blocks of a heap or of malloc. This module has all `unsafe` code of the heap.
//!
//! ```text
//!   raw.rs             shared bytes
//!   raw/vacant.rs      blocks without bytes yet
//!   raw/mapped.rs      memory for segments and tables
//!   raw/system.rs      maps that memory on Unix
//!   raw/std_memory.rs  allocates it elsewhere, and under Miri
//!   raw/prefetch.rs    hints to the processor
//! ```
//!
//! A block is a header of 8 bytes (reference count and length) and then the bytes. There are two kinds:
//!
//! - A block of a heap lies in a segment, which is memory that is mapped for the heap. It begins at a
//!   multiple of 16.
//! - A block of malloc begins at a multiple of 16, plus 8.
//!
//! A length of 4 GiB or more does not fit in the header. The word in front of such a block has it.
//!
//! The code of these files relies on these invariants:
//!
//! 1. A block in use belongs either to one [`Vacant`] or to the [`SharedBytes`] that point to it. The arena
//!    makes each place vacant once, and again only after the free list has returned it.
//! 2. All bytes of a block are initialized, perhaps with those of an earlier block, because memory is zero
//!    when it comes from malloc or the system. They are written only through the block's only reference.
//! 3. The count is the number of `SharedBytes` of the block. The thread that takes it to 0 owns the
//!    block. It frees it, or passes it to the free list, and does not access it afterwards.
//! 4. A segment begins at a multiple of [`SEGMENT`] with a [`SegmentHead`], which does not change until
//!    it is unmapped. A block begins in the first `SEGMENT` bytes. So masking its address finds the head.
//! 5. A segment stays mapped, and its arena's free list stays alive, while the segment has a block in use.
//!    While the list is open, a block in it counts as in use. A closed list counts the blocks in use instead
//!    of taking them.
//!
//! `arena.rs` has to keep 1 and 5, which its tests compare with a naive model. `release.rs` is the list.
#![allow(unsafe_code)]

mod mapped;
mod prefetch;
#[cfg(all(unix, not(miri)))]
mod system;
#[cfg(not(all(unix, not(miri))))]
#[path = "raw/std_memory.rs"]
mod system;
mod vacant;

use std::alloc::{Layout, alloc, alloc_zeroed, dealloc, handle_alloc_error};
use std::mem::ManuallyDrop;
use std::ops::Deref;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

use super::classes::rounded;
use super::release::{Place, Release};
use crate::sync::Arc;
use mapped::SegmentHead;

pub(crate) use mapped::TableMemory;
pub(super) use mapped::{Mapping, system_page};
pub(crate) use prefetch::{prefetch, prefetch_address};
pub(super) use vacant::{BlockCell, Vacant};

/// Like std's `Arc<[u8]>`, but the length is stored with the bytes, so the pointer is one word.
///
/// A hit reads the pointer and then the entry. Pointers of half the size let twice as many fit into
/// the processor's caches.
pub(crate) struct SharedBytes(NonNull<BlockHead>);

#[repr(C, align(8))]
struct BlockHead {
    refs: AtomicU32,
    /// [`LONG`] if the length does not fit. Then the word in front of the block has it.
    len: u32,
}

const LONG: u32 = u32::MAX;

/// The alignment of segments, in bytes. Addresses are scarce where a word has 32 bits.
pub(super) const SEGMENT: usize = if usize::BITS == 64 { 4 << 20 } else { 1 << 20 };

/// The longest block that glibc keeps in its cache, in bytes.
const SMALL: usize = 1024;

/// The bytes in front of the header of a block of malloc. They make its address an odd multiple of 8, which
/// tells it from a block of a heap.
const PREFIX: usize = 8;

// SAFETY: the bytes do not change while they are shared, and the count is atomic.
unsafe impl Send for SharedBytes {}
// SAFETY: as above.
unsafe impl Sync for SharedBytes {}

impl SharedBytes {
    /// The size of the header before the bytes, in bytes.
    pub(crate) const HEADER: usize = size_of::<BlockHead>();

    /// `len` zero bytes on malloc.
    pub(crate) fn zeros(len: usize) -> SharedBytes {
        let layout = Self::layout(len);
        // SAFETY: the layout is not empty, and the prefix lies in it.
        let block = unsafe {
            let start = match layout.size() {
                // glibc's `calloc` bypasses its cache of small blocks, which costs 300 instructions.
                ..=SMALL => alloc(layout),
                _ => alloc_zeroed(layout),
            };
            let Some(start) = NonNull::new(start) else {
                handle_alloc_error(layout);
            };
            let block = start.add(PREFIX);
            if layout.size() <= SMALL {
                // Not from `start` on: the compiler would make a `calloc` of it.
                block.write_bytes(0, layout.size() - PREFIX);
            }
            block
        };
        let size = Self::HEADER + len;
        Vacant { block, size }.into_bytes(len)
    }

    fn layout(len: usize) -> Layout {
        let size = len.checked_add(PREFIX + Self::HEADER);
        let layout = size.and_then(|size| Layout::from_size_align(size, 2 * PREFIX).ok());
        layout.expect("the length of bytes in memory is below isize::MAX")
    }

    /// The bytes for writing; `None` if they are shared.
    pub(crate) fn get_mut(&mut self) -> Option<&mut [u8]> {
        let is_shared = self.head().refs.load(Ordering::Acquire) != 1;
        // SAFETY: this is the only reference, and it is borrowed exclusively (invariants 2 and 3).
        (!is_shared).then(|| unsafe { self.slice().as_mut() })
    }

    /// Gives up these bytes, so that their block can be used for others. `None` if the block does not have this
    /// size, has another reference, or is one of malloc.
    #[inline]
    pub(super) fn into_vacant(self, size: usize) -> Option<Vacant> {
        if self.is_on_malloc()
            || rounded(Self::HEADER + self.len()) != size
            || self.head().refs.load(Ordering::Acquire) != 1
        {
            return None;
        }
        let block = ManuallyDrop::new(self).0.cast();
        Some(Vacant { block, size })
    }

    /// Starts to fetch the first cache lines of the block, and does not wait for them.
    #[inline]
    pub(crate) fn prefetch(&self) {
        prefetch::first_lines(self.0.as_ptr());
    }

    /// Whether the block lies in a segment of this arena.
    pub(super) fn is_of(&self, release: &Arc<Release<Mapping>>) -> bool {
        // SAFETY: the block is in use (invariant 5).
        !self.is_on_malloc() && unsafe { Arc::ptr_eq(&self.segment().as_ref().release, release) }
    }

    fn is_on_malloc(&self) -> bool {
        self.0.addr().get() & PREFIX != 0
    }

    #[inline]
    fn head(&self) -> &BlockHead {
        // SAFETY: the block lives as long as this reference to it (invariant 3).
        unsafe { self.0.as_ref() }
    }

    #[inline]
    fn slice(&self) -> NonNull<[u8]> {
        // SAFETY: the bytes, which may be none, follow the header.
        NonNull::slice_from_raw_parts(unsafe { self.0.add(1) }.cast(), self.length())
    }

    #[inline]
    fn length(&self) -> usize {
        match self.head().len {
            LONG => self.long_length(),
            len => len as usize,
        }
    }

    #[cold]
    fn long_length(&self) -> usize {
        // SAFETY: `into_bytes` wrote the word in front of this block.
        unsafe { self.0.byte_sub(PREFIX).cast().read() }
    }

    /// The head of the segment of a block of a heap (invariant 4).
    fn segment(&self) -> NonNull<SegmentHead> {
        let head = self.0.as_ptr().map_addr(|address| address & !(SEGMENT - 1));
        // SAFETY: no segment begins at address 0.
        unsafe { NonNull::new_unchecked(head.cast()) }
    }

    /// Frees the block after its last reference is gone.
    ///
    /// Takes the reference by value: if the drop of a view passed its address, a view would have to be in
    /// memory, and callers would copy the result of a get in pieces of other sizes than it was written in,
    /// which stalls (no store forwarding).
    #[inline(never)]
    fn free(block: ManuallyDrop<SharedBytes>) {
        if block.is_on_malloc() {
            let layout = Self::layout(block.length());
            // SAFETY: `zeros` allocated it with this layout, and it is not accessed again.
            return unsafe { dealloc(block.0.byte_sub(PREFIX).cast().as_ptr(), layout) };
        }
        // SAFETY: the segment is mapped until the block is in the list (invariant 5).
        let segment = unsafe { block.segment().as_ref() };
        let place = Place {
            segment: segment.id,
            offset: (block.0.addr().get() % SEGMENT) as u32,
        };
        // SAFETY: the thread owns the block (invariant 3), whose header is as long as the link.
        let link = |next| unsafe { block.0.cast::<u64>().write(next) };
        if segment.release.freed.push(place, link) {
            // It was the last block of a dropped arena, so no other thread unmaps the segment.
            let release = segment.release.clone();
            drop(release.take_orphaned());
        }
    }
}

impl Deref for SharedBytes {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        // SAFETY: the bytes do not change while they are borrowed (invariant 2).
        unsafe { self.slice().as_ref() }
    }
}

impl Clone for SharedBytes {
    #[inline]
    fn clone(&self) -> SharedBytes {
        // A new reference comes from an existing one, so there is nothing to synchronize with.
        if self.head().refs.fetch_add(1, Ordering::Relaxed) > u32::MAX / 2 {
            std::process::abort();
        }
        SharedBytes(self.0)
    }
}

impl Drop for SharedBytes {
    #[inline]
    fn drop(&mut self) {
        if self.head().refs.fetch_sub(1, Ordering::Release) == 1 {
            // All accesses through other references come before the block is used again. A fence would do
            // as well, but ThreadSanitizer does not follow fences.
            self.head().refs.load(Ordering::Acquire);
            SharedBytes::free(ManuallyDrop::new(SharedBytes(self.0)));
        }
    }
}
