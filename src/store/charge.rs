//! What an entry really costs: the allocator's rounding and the tables' share, not the payload alone.

use crate::error::{Error, ErrorKind, Result};
use crate::shared_bytes::SharedBytes;

/// An entry's place in the shard's tables: its slot, its index in the hash table (4 bytes and a
/// control byte, at a load between 7/16 and 7/8), and its word in the ghost table.
const TABLES: usize = super::slab::SLOT + 8 + 6;

/// The bytes charged for an entry whose key and value are `len` bytes together.
#[inline]
pub(crate) fn entry(len: usize) -> u64 {
    (block(len) as u64).saturating_add(TABLES as u64)
}

/// The bytes of memory of a `SharedBytes` of so many.
#[inline]
pub(super) fn block(len: usize) -> usize {
    allocated(len.saturating_add(SharedBytes::HEADER))
}

/// A charge in 32 bits. `None` for one that is over 2^32 granules: 64 GiB, half of it where a word
/// has 32 bits.
#[inline]
pub(crate) fn packed(charge: u64) -> Option<u32> {
    u32::try_from(charge.saturating_sub(TABLES as u64) / GRANULE).ok()
}

/// The charge that was packed.
#[inline]
pub(crate) fn unpacked(units: u32) -> u64 {
    u64::from(units) * GRANULE + TABLES as u64
}

/// What every block's size is a multiple of.
const GRANULE: u64 = 2 * size_of::<usize>() as u64;

/// Checks a capacity: 0, or room for an empty key and value at least.
pub(crate) fn check_capacity(bytes: u64) -> Result<()> {
    if bytes == 0 || bytes >= entry(0) {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::CapacityTooSmall,
        format!(
            "a capacity of {bytes} bytes holds no entry; the smallest takes {}; use 0 to switch \
             caching off",
            entry(0)
        ),
    ))
}

/// What malloc takes for `size` bytes.
///
/// These are glibc's rules (malloc/malloc.c, `request2size` and `sysmalloc_mmap`): a one-word
/// header, rounding to two words, four words at least; from 128 KiB on, pages of its own. Between
/// a kibibyte and that, blocks are split and joined as sizes come and go, and the gaps between them
/// take an eighth more, if sizes are mixed (`cargo bench --bench memory`, case `mix`: with a tenth
/// the resident set was up to 1.16 times the capacity). musl and jemalloc round by size classes that
/// take no less than this for small sizes and differ by less than an eighth.
#[inline]
fn allocated(size: usize) -> usize {
    const WORD: usize = size_of::<usize>();
    const MMAP_THRESHOLD: usize = 128 * 1024;
    const PAGE: usize = 4096;
    const KIBIBYTE: usize = 1024;
    // With constants to round to, none of this divides.
    if size <= KIBIBYTE {
        (size + WORD).max(4 * WORD).next_multiple_of(2 * WORD)
    } else if size < MMAP_THRESHOLD {
        (size + size / 8).next_multiple_of(2 * WORD)
    } else {
        let size = size.saturating_add(2 * WORD);
        size.checked_next_multiple_of(PAGE).unwrap_or(usize::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_pointer_width = "64")]
    #[test]
    fn small_requests_are_rounded_as_glibc_does() {
        // A request of n bytes takes a chunk of n + 8, rounded up to 16, at least 32.
        for (request, chunk) in [
            (0, 32),
            (24, 32),
            (25, 48),
            (132, 144),
            (136, 144),
            (137, 160),
        ] {
            assert_eq!(allocated(request), chunk, "request of {request}");
        }
        assert_eq!(allocated(128 * 1024), 132 * 1024);
    }

    #[test]
    fn a_larger_block_of_the_heap_is_charged_no_less() {
        for request in 0..128 * 1024 - 2 {
            let (this, next) = (allocated(request), allocated(request + 1));
            assert!(this >= request && next >= this, "request of {request}");
        }
        // The gaps between blocks over a kibibyte.
        assert!(allocated(10_240) >= 11_520);
    }

    #[test]
    fn a_charge_is_the_same_after_packing() {
        let lens = (0..5000).chain((0..).map(|n| n * 1021).take_while(|&len| len < 1 << 24));
        for charge in lens.map(entry) {
            assert_eq!(packed(charge).map(unpacked), Some(charge));
        }
        assert_eq!(packed(u64::MAX), None);
    }

    #[test]
    fn a_charge_never_overflows() {
        assert!(entry(usize::MAX) >= usize::MAX as u64);
    }
}
