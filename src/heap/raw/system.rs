//! Memory that the system maps.

use std::ptr::{self, NonNull};

use super::SEGMENT;

/// Tables of at least so many bytes are mapped.
pub(super) const MIN_TABLE: usize = 8 << 10;

/// The bytes of a page.
pub(super) fn page() -> usize {
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

/// Makes a mapping of `old` bytes longer, at another address if need be. `None` if that cannot be done;
/// then nothing has changed.
///
/// # Safety
///
/// The caller owns the mapping, and uses its old address no more.
#[cfg(target_os = "linux")]
pub(super) unsafe fn grow(start: NonNull<u8>, old: usize, new: usize) -> Option<NonNull<u8>> {
    // SAFETY: as the caller's. The new mapping replaces no other.
    let moved = unsafe { libc::mremap(start.as_ptr().cast(), old, new, libc::MREMAP_MAYMOVE) };
    NonNull::new(moved.cast()).filter(|_| moved != libc::MAP_FAILED)
}

#[cfg(not(target_os = "linux"))]
pub(super) unsafe fn grow(_: NonNull<u8>, _: usize, _: usize) -> Option<NonNull<u8>> {
    None
}

/// Makes a mapping of `old` bytes shorter.
///
/// # Safety
///
/// The caller owns the mapping, and no longer uses what is past its new end.
pub(super) unsafe fn cut(start: NonNull<u8>, old: usize, new: usize) {
    let page = page();
    let (old, new) = (old.next_multiple_of(page), new.next_multiple_of(page));
    // SAFETY: the new end lies in the mapping.
    unmap(unsafe { start.add(new) }, old - new);
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
