//! Tells the processor which memory is needed soon.

/// The bytes of a cache line.
const CACHE_LINE: usize = 64;

/// How many lines of a block are fetched. The processor itself fetches the later lines of longer blocks,
/// because they are written in order.
const PREFETCHED_LINES: usize = 4;

/// Starts to fetch the cache line where `target` begins, and does not wait for it.
#[inline]
pub(crate) fn prefetch<T>(target: &T) {
    prefetch_address(std::ptr::from_ref(target).addr());
}

/// Like [`prefetch`], for the first cache lines of a block.
#[inline]
pub(super) fn first_lines<T>(block: *const T) {
    for line in 0..PREFETCHED_LINES {
        prefetch_address(block.addr().wrapping_add(line * CACHE_LINE));
    }
}

/// Like [`prefetch`], for an address that need not be valid.
#[inline(always)]
pub(crate) fn prefetch_address(address: usize) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a prefetch accesses no memory.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(std::ptr::without_provenance(address)) }
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: a prefetch accesses no memory.
    unsafe {
        std::arch::asm!("prfm pldl1keep, [{}]", in(reg) address, options(nomem, nostack, preserves_flags));
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let _ = address;
}
