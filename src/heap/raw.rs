//! Shared bytes, and the memory that they lie in. No other file of this module has `unsafe` code.
//!
//! A block is a header of 8 bytes (reference count and length) and then the bytes. There are two kinds:
//!
//! - A block of a heap lies in a segment, which is memory that is mapped for the heap. It begins at a
//!   multiple of 16.
//! - A block of malloc begins at a multiple of 16, plus 8. The word in front of it is the whole length.
//!
//! The code relies on these invariants:
//!
//! 1. A [`Vacant`] and a [`SharedBytes`] point to a block that belongs to nothing else. The arena makes
//!    each place vacant once, and again only after the free list has returned it.
//! 2. Memory is zero when it comes from malloc or the system, so all bytes of a block are initialized,
//!    if only with those of an earlier block. Later they are written only through the only reference.
//! 3. The count is the number of `SharedBytes` of the block. The thread that takes it to 0 owns the
//!    block. It frees it, or passes it to the free list, and does not access it afterwards.
//! 4. A segment begins at a multiple of [`SEGMENT`] with a [`SegmentHead`], which does not change until
//!    it is unmapped. A block begins in the first `SEGMENT` bytes. So masking its address finds the head.
//! 5. A segment stays mapped, and its list stays alive, while it has a block in use. While the list is
//!    open, a block in the list counts as in use. Once it is closed, the list counts the blocks.
//!
//! `arena.rs` has to keep 1 and 5, which its tests compare with a naive model. `release.rs` is the list.
#![allow(unsafe_code)]

use std::alloc::{Layout, alloc, alloc_zeroed, dealloc, handle_alloc_error};
use std::mem::ManuallyDrop;
use std::ops::Deref;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicPtr, AtomicU32, Ordering, fence};

use super::classes::rounded;
use super::release::{Place, Release};
use crate::sync::Arc;
use allocator_api2::alloc::{AllocError, Allocator, Global};

/// The alignment of segments, in bytes. Addresses are scarce where a word has 32 bits.
pub(super) const SEGMENT: usize = if usize::BITS == 64 { 4 << 20 } else { 1 << 20 };

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

/// The longest block that glibc keeps in its cache, in bytes.
const SMALL: usize = 1024;

/// The bytes of a cache line.
#[cfg(target_arch = "x86_64")]
const CACHE_LINE: usize = 64;

/// The processor itself fetches the later lines of longer blocks, because they are written in order.
#[cfg(target_arch = "x86_64")]
const PREFETCHED_LINES: usize = 4;

/// The bytes in front of the header of a block of malloc. They tell it from a block of a heap.
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
        // SAFETY: the layout is not empty. The prefix is as long and as aligned as the longest word.
        let block = unsafe {
            let start = match layout.size() {
                // glibc's `calloc` bypasses its cache of small blocks, which costs 300 instructions.
                ..=SMALL => alloc(layout),
                _ => alloc_zeroed(layout),
            };
            let Some(start) = NonNull::new(start) else {
                handle_alloc_error(layout);
            };
            start.cast().write(len);
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

    /// The block for other bytes. `None` if it has another reference, or is one of malloc.
    pub(super) fn into_vacant(self) -> Option<Vacant> {
        if self.is_on_malloc() || self.head().refs.load(Ordering::Acquire) != 1 {
            return None;
        }
        let size = rounded(Self::HEADER + self.len());
        let block = ManuallyDrop::new(self).0.cast();
        Some(Vacant { block, size })
    }

    /// Starts to fetch the first cache lines of the block, and does not wait for them.
    #[inline]
    pub(crate) fn prefetch(&self) {
        #[cfg(target_arch = "x86_64")]
        for line in 0..PREFETCHED_LINES {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            let address = self.0.as_ptr().wrapping_byte_add(line * CACHE_LINE);
            // SAFETY: a prefetch accesses no memory.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) }
        }
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
        // SAFETY: only blocks of malloc are long, and `zeros` wrote the word in front of this one.
        unsafe { self.0.byte_sub(PREFIX).cast().read() }
    }

    /// The head of the segment of a block of a heap (invariant 4).
    fn segment(&self) -> NonNull<SegmentHead> {
        let head = self.0.as_ptr().map_addr(|address| address & !(SEGMENT - 1));
        // SAFETY: no segment begins at address 0.
        unsafe { NonNull::new_unchecked(head.cast()) }
    }

    /// Frees the block after its last reference is gone.
    #[inline(never)]
    fn free(&mut self) {
        if self.is_on_malloc() {
            let layout = Self::layout(self.length());
            // SAFETY: `zeros` allocated it with this layout, and it is not accessed again.
            return unsafe { dealloc(self.0.byte_sub(PREFIX).cast().as_ptr(), layout) };
        }
        // SAFETY: the segment is mapped until the block is in the list (invariant 5).
        let segment = unsafe { self.segment().as_ref() };
        let place = Place {
            segment: segment.id,
            offset: (self.0.addr().get() % SEGMENT) as u32,
        };
        // SAFETY: the thread owns the block (invariant 3), whose header is as long as the link.
        let link = |next| unsafe { self.0.cast::<u64>().write(next) };
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
            // All accesses through other references come before the block is used again.
            fence(Ordering::Acquire);
            self.free();
        }
    }
}

/// A block in use without a header yet. One that is dropped is never freed.
#[must_use]
pub(super) struct Vacant {
    block: NonNull<u8>,
    size: usize,
}

// SAFETY: it owns its block.
unsafe impl Send for Vacant {}

impl Vacant {
    /// Makes the block one of `len` bytes, whose values are not specified.
    #[inline]
    pub(super) fn into_bytes(self, len: usize) -> SharedBytes {
        assert!(
            len <= self.size - SharedBytes::HEADER,
            "the block is too short"
        );
        let head = BlockHead {
            refs: AtomicU32::new(1),
            len: u32::try_from(len).unwrap_or(LONG),
        };
        let bytes = SharedBytes(self.block.cast());
        // SAFETY: the block is mapped, aligned, and belongs to this function alone (invariant 1).
        unsafe { bytes.0.write(head) };
        bytes
    }
}

/// A place for one block that threads exchange without a lock.
#[derive(Default)]
pub(super) struct BlockCell(AtomicPtr<BlockHead>);

impl BlockCell {
    /// Puts in another block, or none, and returns the former one.
    pub(super) fn swap(&self, block: Option<SharedBytes>) -> Option<SharedBytes> {
        let new = block.map_or(ptr::null_mut(), |block| ManuallyDrop::new(block).0.as_ptr());
        // The reference moves into the cell and out of it, so the count does not change (invariant 3).
        NonNull::new(self.0.swap(new, Ordering::AcqRel)).map(SharedBytes)
    }
}

impl Drop for BlockCell {
    fn drop(&mut self) {
        drop(self.swap(None));
    }
}

/// The beginning of a segment.
struct SegmentHead {
    release: Arc<Release<Mapping>>,
    id: u32,
}

/// A mapped segment. The drop unmaps it.
pub(super) struct Mapping {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: it owns its memory.
unsafe impl Send for Mapping {}

impl Mapping {
    /// Maps at least `len` bytes. Blocks of this segment are released there, with this id. `None` if the
    /// system has no memory or no addresses left.
    pub(super) fn new(len: usize, release: &Arc<Release<Mapping>>, id: u32) -> Option<Mapping> {
        let len = len.checked_next_multiple_of(SEGMENT)?;
        let start = system::map_segment(len)?;
        let release = release.clone();
        // SAFETY: the mapping is new and writable, and its start is aligned to SEGMENT.
        unsafe { start.cast().write(SegmentHead { release, id }) };
        Some(Mapping { start, len })
    }

    /// The address of this range, which begins behind the segment's head.
    fn at(&self, offset: usize, len: usize) -> NonNull<u8> {
        assert!(offset >= size_of::<SegmentHead>() && offset < SEGMENT && len <= self.len - offset);
        // SAFETY: the offset is within the mapping.
        unsafe { self.start.add(offset) }
    }

    /// The block of `size` bytes at this offset. It must not be in use (invariant 1).
    pub(super) fn vacant(&self, offset: usize, size: usize) -> Vacant {
        assert!(offset % (2 * PREFIX) == 0 && size >= SharedBytes::HEADER);
        let block = self.at(offset, size);
        Vacant { block, size }
    }

    /// The link of the block at this offset, which came out of the free list and is not freed yet.
    pub(super) fn link(&self, offset: usize) -> u64 {
        // SAFETY: `push` wrote it, and the list's `Acquire` is before this read (invariant 5).
        unsafe { self.at(offset, SharedBytes::HEADER).cast().read() }
    }

    /// Returns the pages of this range to the system. No block in use may lie in it, and it consists
    /// of whole pages.
    pub(super) fn decommit(&self, offset: usize, len: usize) {
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

    unsafe fn deallocate(&self, start: NonNull<u8>, layout: Layout) {
        if layout.size() < system::MIN_TABLE {
            // SAFETY: as the caller's.
            return unsafe { Global.deallocate(start, layout) };
        }
        system::unmap(start, layout.size());
    }
}

/// Memory of the system.
#[cfg(all(unix, not(miri)))]
mod system {
    use super::{NonNull, SEGMENT, ptr};

    /// Tables of at least so many bytes are mapped.
    pub(super) const MIN_TABLE: usize = 8 << 10;

    /// The bytes of a page.
    pub(in super::super) fn page() -> usize {
        // SAFETY: it only reads a number.
        let bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
        usize::try_from(bytes).unwrap_or(4096)
    }

    /// Maps `len` bytes.
    pub(super) fn map(len: usize) -> Option<NonNull<u8>> {
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let kind = libc::MAP_PRIVATE | libc::MAP_ANON;
        // SAFETY: the new mapping replaces none.
        let start = unsafe { libc::mmap(ptr::null_mut(), len, access, kind, -1, 0) };
        NonNull::new(start.cast()).filter(|_| start != libc::MAP_FAILED)
    }

    /// Maps `len` bytes at a multiple of `SEGMENT`.
    pub(super) fn map_segment(len: usize) -> Option<NonNull<u8>> {
        let start = map(len.checked_add(SEGMENT)?)?;
        let before = start.addr().get().wrapping_neg() % SEGMENT;
        // SAFETY: both ends and the part between them lie in the mapping.
        let (aligned, after) = unsafe { (start.add(before), start.add(before + len)) };
        unmap(start, before);
        unmap(after, SEGMENT - before);
        // With huge pages, a segment of which little is used would be resident as a whole.
        #[cfg(target_os = "linux")]
        // SAFETY: the advice does not change the contents.
        unsafe {
            libc::madvise(aligned.as_ptr().cast(), len, libc::MADV_NOHUGEPAGE);
        }
        Some(aligned)
    }

    pub(super) fn unmap(start: NonNull<u8>, len: usize) {
        if len > 0 {
            // SAFETY: the callers own this part of a mapping, and do not access it again.
            unsafe { libc::munmap(start.as_ptr().cast(), len) };
        }
    }

    pub(super) fn decommit(start: NonNull<u8>, len: usize) {
        // SAFETY: the caller's range is mapped, and nothing in it is in use.
        unsafe { libc::madvise(start.as_ptr().cast(), len, libc::MADV_DONTNEED) };
    }
}

/// Memory of std's allocator, where pages cannot be returned one by one.
#[cfg(not(all(unix, not(miri))))]
mod system {
    use super::{Layout, NonNull, SEGMENT, alloc_zeroed, dealloc};

    /// No table is mapped.
    pub(super) const MIN_TABLE: usize = usize::MAX;

    pub(in super::super) fn page() -> usize {
        4096
    }

    pub(super) use map_segment as map;

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
}

pub(super) use system::page as system_page;
