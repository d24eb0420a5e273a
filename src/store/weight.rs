//! The weight of an entry: the bytes of memory that it takes, with the allocator's rounding and its
//! place in the tables.

use crate::clock::Tick;
use crate::error::{Error, ErrorKind, Result};
use crate::heap::{SharedBytes, classes};

/// The bytes of a slot: a pointer, the entry's meta data, and its links. `slab.rs` asserts it.
pub(super) const SLOT: usize = size_of::<usize>() + 4 + 16;

/// An entry's place in the shard's tables: its slot, its index in the hash table (4 bytes and a
/// control byte, at a load between 7/16 and 7/8), and its word in the ghost table.
const TABLES: usize = SLOT + 8 + 6;

/// The weight of an entry whose key and value are `len` bytes together.
#[inline]
pub(super) fn of_entry(len: usize) -> u64 {
    (of_block(len) as u64).saturating_add(TABLES as u64)
}

/// The bytes of memory of a `SharedBytes` of this length.
#[inline]
pub(super) fn of_block(len: usize) -> usize {
    classes::rounded(len.saturating_add(SharedBytes::HEADER))
}

/// What an entry weighs more in a shard with entries that expire, where each slot has an expiry.
pub(super) const EXPIRY: u64 = size_of::<Tick>() as u64;

/// A weight in 32 bits, in units of [`GRANULE`]. `None` from 2^32 granules on, which are 32 GiB.
#[inline]
pub(super) fn packed(weight: u64) -> Option<u32> {
    u32::try_from(weight.saturating_sub(TABLES as u64) / GRANULE).ok()
}

/// The weight that was packed.
#[inline]
pub(super) fn unpacked(granules: u32) -> u64 {
    u64::from(granules) * GRANULE + TABLES as u64
}

/// The size of every block and of an expiry, in bytes, is a multiple of this.
const GRANULE: u64 = 8;

/// Checks a capacity: 0, or room for an empty key and value at least.
pub(crate) fn check_capacity(bytes: u64) -> Result<()> {
    let smallest = of_entry(0);
    if bytes == 0 || bytes >= smallest {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::CapacityTooSmall,
        format!(
            "a capacity of {bytes} bytes is too small; the smallest entry takes {smallest}; use 0 \
             to switch caching off"
        ),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weight_survives_packing() {
        let lens = (0..5000).chain((0..).map(|n| n * 1021).take_while(|&len| len < 1 << 24));
        for weight in lens
            .map(of_entry)
            .flat_map(|weight| [weight, weight + EXPIRY])
        {
            assert_eq!(packed(weight).map(unpacked), Some(weight));
        }
        assert_eq!(packed(u64::MAX), None);
    }

    #[test]
    fn weight_saturates() {
        assert!(of_entry(usize::MAX) >= usize::MAX as u64);
    }
}
