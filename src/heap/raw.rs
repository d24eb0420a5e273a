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
//! 2. The header and the bytes are initialized before the first `SharedBytes` of a block exists. Later
//!    only `fill` writes them, which holds the only reference.
//! 3. The count is the number of `SharedBytes` of the block. The thread that takes it to 0 owns the
//!    block. It frees it, or passes it to the free list, and does not access it afterwards.
//! 4. A segment begins at a multiple of [`SEGMENT`] with a [`SegmentHead`], which never changes. A block
//!    begins in the first `SEGMENT` bytes. So masking the address of a block finds the head.
//! 5. A segment stays mapped, and its free list stays alive, while it has a block in use. While the
//!    list is open, a block in the list counts as in use. Once it is closed, `orphans` counts them.
#![allow(unsafe_code)]

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::cell::UnsafeCell;
use std::fmt;
use std::ops::Deref;
use std::ptr::{self, NonNull};
use std::slice;
use std::sync::atomic::{AtomicU32, fence};

use crate::sync::atomic::{AtomicIsize, AtomicPtr, Ordering};

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

/// The bytes in front of the header of a block of malloc. They tell it from a block of a heap.
const PREFIX: usize = 8;

// SAFETY: the bytes do not change while they are shared, and the count is atomic.
unsafe impl Send for SharedBytes {}
// SAFETY: as above.
unsafe impl Sync for SharedBytes {}

impl SharedBytes {
    /// The size of the header before the bytes, in bytes.
    pub(crate) const HEADER: usize = size_of::<BlockHead>();

    /// `len` zero bytes on malloc, which [`fill`](Self::fill) can overwrite.
    #[cfg(any(test, feature = "http"))]
    pub(crate) fn zeros(len: usize) -> SharedBytes {
        // SAFETY: `bytes` is the start of `len` writable bytes.
        Self::on_malloc(len, |bytes| unsafe { bytes.write_bytes(0, len) })
    }

    /// A copy of the parts on malloc, one after the other.
    pub(crate) fn concat(parts: [&[u8]; 2]) -> SharedBytes {
        Self::on_malloc(parts[0].len() + parts[1].len(), |bytes| copy(parts, bytes))
    }

    /// A new block of malloc. `init` initializes all of its bytes, from the given address on.
    fn on_malloc(len: usize, init: impl FnOnce(*mut u8)) -> SharedBytes {
        let layout = Self::layout(len);
        // SAFETY: the layout is not empty. The prefix is as long and as aligned as the longest word.
        let block = unsafe {
            let start = alloc(layout);
            if start.is_null() {
                handle_alloc_error(layout);
            }
            start.cast::<usize>().write(len);
            NonNull::new_unchecked(start.add(PREFIX))
        };
        Vacant {
            block,
            size: len + Self::HEADER,
        }
        .init(len, init)
    }

    fn layout(len: usize) -> Layout {
        let size = len.checked_add(PREFIX + Self::HEADER);
        let layout = size.and_then(|size| Layout::from_size_align(size, 2 * PREFIX).ok());
        layout.expect("the length of bytes in memory is below isize::MAX")
    }

    /// Lets `fill` write the bytes; `None` if they are shared.
    #[cfg(any(test, feature = "http"))]
    pub(crate) fn fill<R>(&mut self, fill: impl FnOnce(&mut [u8]) -> R) -> Option<R> {
        if self.head().refs.load(Ordering::Acquire) != 1 {
            return None;
        }
        // SAFETY: this is the only reference, and it is borrowed exclusively (invariants 2 and 3).
        let bytes = unsafe { slice::from_raw_parts_mut(self.bytes(), self.len()) };
        Some(fill(bytes))
    }

    /// Whether the block lies in a segment of this list's arena.
    pub(super) fn is_of(&self, list: &FreeList) -> bool {
        // SAFETY: the segment is mapped while the block is in use (invariants 4 and 5).
        !self.is_on_malloc() && unsafe { segment_of(self.0).as_ref() }.list == list.0
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
    fn bytes(&self) -> *mut u8 {
        // SAFETY: the bytes, which may be none, follow the header.
        unsafe { self.0.add(1) }.cast().as_ptr()
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
        // SAFETY: only blocks of malloc are long, and `on_malloc` wrote the word in front of this one.
        unsafe { self.0.byte_sub(PREFIX).cast().read() }
    }

    /// Frees the block after its last reference is gone.
    #[inline(never)]
    fn free(&mut self) {
        if self.is_on_malloc() {
            let layout = Self::layout(self.length());
            // SAFETY: `on_malloc` allocated it with this layout, and it is not accessed again.
            unsafe { dealloc(self.0.byte_sub(PREFIX).cast().as_ptr(), layout) }
        } else {
            // SAFETY: the segment is mapped until the block is in the list (invariants 4 and 5).
            unsafe { push(segment_of(self.0).as_ref().list, self.0) }
        }
    }
}

impl Deref for SharedBytes {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        // SAFETY: the bytes are initialized, and do not change while they are borrowed (invariant 2).
        unsafe { slice::from_raw_parts(self.bytes(), self.length()) }
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

impl AsRef<[u8]> for SharedBytes {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl From<&[u8]> for SharedBytes {
    fn from(bytes: &[u8]) -> SharedBytes {
        SharedBytes::concat([bytes, &[]])
    }
}

impl fmt::Debug for SharedBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

/// A block in use whose header and bytes are not initialized yet. One that is dropped is never freed.
#[must_use]
pub(super) struct Vacant {
    block: NonNull<u8>,
    size: usize,
}

// SAFETY: it owns its block.
unsafe impl Send for Vacant {}

impl Vacant {
    /// Copies the parts into the block, one after the other.
    pub(super) fn fill(self, parts: [&[u8]; 2]) -> SharedBytes {
        self.init(parts[0].len() + parts[1].len(), |bytes| copy(parts, bytes))
    }

    /// Makes the block one of `len` bytes. `init` initializes them, from the given address on.
    #[inline]
    fn init(self, len: usize, init: impl FnOnce(*mut u8)) -> SharedBytes {
        assert!(
            len <= self.size - SharedBytes::HEADER,
            "the block is too short"
        );
        let head = BlockHead {
            refs: AtomicU32::new(1),
            len: u32::try_from(len).unwrap_or(LONG),
        };
        let bytes = SharedBytes(self.block.cast());
        // SAFETY: the block is writable, aligned, and long enough, and belongs to this function alone
        // (invariant 1).
        unsafe { bytes.0.write(head) };
        init(bytes.bytes());
        bytes
    }
}

/// Copies the parts to `to`, one after the other. The room at `to` is long enough and unshared.
fn copy(parts: [&[u8]; 2], to: *mut u8) {
    // SAFETY: the callers have checked the length, and no slice points into a new block.
    unsafe {
        to.copy_from_nonoverlapping(parts[0].as_ptr(), parts[0].len());
        let to = to.add(parts[0].len());
        to.copy_from_nonoverlapping(parts[1].as_ptr(), parts[1].len());
    }
}

/// The beginning of a segment.
#[repr(C)]
struct SegmentHead {
    list: NonNull<ListState>,
    id: u32,
}

/// The head of the segment of a block.
fn segment_of(block: NonNull<BlockHead>) -> NonNull<SegmentHead> {
    let head = block.as_ptr().map_addr(|address| address & !(SEGMENT - 1));
    // SAFETY: no segment begins at address 0.
    unsafe { NonNull::new_unchecked(head.cast()) }
}

/// A mapped segment. The drop unmaps it.
pub(super) struct Mapping {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: it owns its memory.
unsafe impl Send for Mapping {}

impl Mapping {
    /// Maps at least `len` bytes. Blocks of this segment are freed to `list`, with this id. `None` if
    /// the system has no memory or no addresses left.
    pub(super) fn new(len: usize, list: &FreeList, id: u32) -> Option<Mapping> {
        let len = len.checked_next_multiple_of(SEGMENT)?;
        let mapping = Mapping {
            start: system::map(len)?,
            len,
        };
        let head = SegmentHead { list: list.0, id };
        // SAFETY: the mapping is new and writable, and its start is aligned to SEGMENT.
        unsafe { mapping.start.cast().write(head) };
        Some(mapping)
    }

    /// The block of `size` bytes at this offset. It must not be in use (invariant 1).
    pub(super) fn vacant(&self, offset: usize, size: usize) -> Vacant {
        assert!(offset >= size_of::<SegmentHead>() && offset < SEGMENT);
        assert!(
            offset % (2 * PREFIX) == 0 && size >= SharedBytes::HEADER && size <= self.len - offset
        );
        // SAFETY: the offset is within the mapping.
        let block = unsafe { self.start.add(offset) };
        Vacant { block, size }
    }

    /// Returns the pages of this range to the system. No block in use may lie in it. The range
    /// consists of whole pages, and does not include the segment's head.
    pub(super) fn decommit(&self, offset: usize, len: usize) {
        assert!(
            offset >= size_of::<SegmentHead>() && offset < self.len && len <= self.len - offset
        );
        // SAFETY: the range is within the mapping.
        system::decommit(unsafe { self.start.add(offset) }, len);
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        system::unmap(self.start, self.len);
    }
}

/// The blocks that are to be freed in an arena: a stack that any thread can push to.
///
/// A push is the last access of a thread to the arena. So the arena can be dropped while other
/// threads hold blocks of it: the drop closes the list, and from then on the blocks are counted
/// instead of pushed. The last one unmaps the segments.
pub(super) struct FreeList(NonNull<ListState>);

struct ListState {
    /// The block that was pushed last. Its header is replaced by the pointer to the next one.
    head: AtomicPtr<BlockHead>,
    /// The blocks in use after the list was closed. Until then it is 0 minus those dropped since.
    orphans: AtomicIsize,
    /// The segments of the orphans. Written before their number is added to `orphans`.
    segments: UnsafeCell<Vec<Mapping>>,
}

/// The head of a closed list.
const CLOSED: *mut BlockHead = ptr::without_provenance_mut(1);

// SAFETY: threads share the state through its atomics.
unsafe impl Send for FreeList {}
// SAFETY: as above.
unsafe impl Sync for FreeList {}

impl FreeList {
    pub(super) fn new() -> FreeList {
        let state = Box::new(ListState {
            head: AtomicPtr::new(ptr::null_mut()),
            orphans: AtomicIsize::new(0),
            segments: UnsafeCell::default(),
        });
        FreeList(NonNull::from(Box::leak(state)))
    }

    fn state(&self) -> &ListState {
        // SAFETY: it is alive until `close` (invariant 5).
        unsafe { self.0.as_ref() }
    }

    /// Takes all blocks out of the list. Each is given by the id of its segment and its offset in it.
    #[inline]
    pub(super) fn take(&self) -> Freed {
        let head = &self.state().head;
        // Most often the list is empty, and reading does not take the cache line from other cores.
        if head.load(Ordering::Relaxed).is_null() {
            return Freed(ptr::null_mut());
        }
        Freed(head.swap(ptr::null_mut(), Ordering::Acquire))
    }

    /// Takes the last blocks out of the list, and closes it. Then [`settle`](Self::settle) follows.
    pub(super) fn close(&self) -> Freed {
        Freed(self.state().head.swap(CLOSED, Ordering::AcqRel))
    }

    /// Keeps the segments until `in_use` blocks are dropped, those after `close` included.
    pub(super) fn settle(&self, in_use: usize, segments: Vec<Mapping>) {
        // SAFETY: other threads access the field only after the addition below.
        unsafe { *self.state().segments.get() = segments };
        let in_use = in_use as isize;
        if self.state().orphans.fetch_add(in_use, Ordering::AcqRel) + in_use == 0 {
            // SAFETY: no block is in use, and the owner of the list calls nothing after this.
            unsafe { drop(Box::from_raw(self.0.as_ptr())) }
        }
    }
}

/// Adds a block to the list, or counts it if the list is closed.
///
/// # Safety
///
/// The thread owns the block (invariant 3), which lies in a segment of this list.
unsafe fn push(list: NonNull<ListState>, block: NonNull<BlockHead>) {
    // SAFETY: the list is alive until the block is in it, or counted (invariant 5).
    let state = unsafe { list.as_ref() };
    let mut head = state.head.load(Ordering::Relaxed);
    while head != CLOSED {
        // SAFETY: the thread owns the block, whose header is as long and as aligned as a pointer.
        unsafe { block.cast().write(head) };
        let swapped = state.head.compare_exchange_weak(
            head,
            block.as_ptr(),
            Ordering::Release,
            Ordering::Relaxed,
        );
        match swapped {
            Ok(_) => return,
            Err(other) => head = other,
        }
    }
    if state.orphans.fetch_sub(1, Ordering::AcqRel) == 1 {
        // SAFETY: it was the last block, and the list is settled, because the number was positive.
        unsafe { drop(Box::from_raw(list.as_ptr())) }
    }
}

/// Blocks that left the list. They must be freed.
#[must_use]
pub(super) struct Freed(*mut BlockHead);

// SAFETY: it owns its blocks.
unsafe impl Send for Freed {}

impl Iterator for Freed {
    type Item = (u32, usize);

    fn next(&mut self) -> Option<(u32, usize)> {
        let block = NonNull::new(self.0)?;
        // SAFETY: `push` wrote the next pointer, and the `Acquire` in `take` or `close` reads it. The
        // block counts as in use until the caller has freed it, so its segment is mapped.
        unsafe {
            self.0 = block.cast().read();
            let head = segment_of(block);
            Some((head.as_ref().id, block.addr().get() - head.addr().get()))
        }
    }
}

/// Memory of the system.
#[cfg(all(unix, not(miri)))]
mod system {
    use super::{NonNull, SEGMENT, ptr};

    /// The bytes of a page.
    pub(in super::super) fn page() -> usize {
        // SAFETY: it only reads a number.
        let bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
        usize::try_from(bytes).unwrap_or(4096)
    }

    /// Maps `len` bytes at a multiple of `SEGMENT`.
    pub(super) fn map(len: usize) -> Option<NonNull<u8>> {
        let whole = len.checked_add(SEGMENT)?;
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let kind = libc::MAP_PRIVATE | libc::MAP_ANON;
        // SAFETY: the new mapping replaces none.
        let start = unsafe { libc::mmap(ptr::null_mut(), whole, access, kind, -1, 0) };
        if start == libc::MAP_FAILED {
            return None;
        }
        let start: NonNull<u8> = NonNull::new(start.cast())?;
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
    use super::{Layout, NonNull, SEGMENT, alloc, dealloc};

    pub(in super::super) fn page() -> usize {
        4096
    }

    pub(super) fn map(len: usize) -> Option<NonNull<u8>> {
        let layout = Layout::from_size_align(len, SEGMENT).ok()?;
        // SAFETY: the layout is not empty.
        NonNull::new(unsafe { alloc(layout) })
    }

    pub(super) fn unmap(start: NonNull<u8>, len: usize) {
        if let Ok(layout) = Layout::from_size_align(len, SEGMENT) {
            // SAFETY: `map` allocated it with this layout, and it is not accessed again.
            unsafe { dealloc(start.as_ptr(), layout) }
        }
    }

    pub(super) fn decommit(_: NonNull<u8>, _: usize) {}
}

pub(super) use system::page as system_page;

/// Returns the free memory of malloc to the system, where malloc keeps it.
pub(super) fn trim_malloc() {
    #[cfg(all(target_os = "linux", target_env = "gnu", not(miri)))]
    // SAFETY: it takes malloc's own locks, and moves no block that is in use.
    unsafe {
        libc::malloc_trim(0);
    }
}
