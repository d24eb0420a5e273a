//! The weight of an entry: the bytes of memory that it takes, with the allocator's rounding and its
//! place in the tables.

use crate::error::{Error, ErrorKind, Result};
use crate::heap::{SharedBytes, classes};

/// The bytes of a slot: a pointer, the entry's meta data, and its cold data. `slab.rs` asserts it.
pub(in crate::store) const SLOT: usize = size_of::<usize>() + 4 + 24;

/// An entry's place in the shard's tables: its slot, its index in the hash table (4 bytes and a
/// control byte, at a load between 7/16 and 7/8), and its word in the ghost table.
const TABLES: usize = SLOT + 8 + 6;

/// The expiry of a slot: 8 bytes, and its part of the tree above (a 7th). Charged for each entry
/// that is inserted once an entry of its shard expires, because from then on every slot has it.
/// (`expiry.rs` tests it.)
pub(in crate::store) const EXPIRY: usize = 10;

/// The weight of an entry whose key and value are `len` bytes together.
#[inline]
pub(in crate::store) fn of_entry(len: usize) -> u64 {
    (of_block(len) as u64).saturating_add(TABLES as u64)
}

/// The bytes of memory of a `SharedBytes` of this length.
#[inline]
pub(super) fn of_block(len: usize) -> usize {
    classes::rounded(len.saturating_add(SharedBytes::HEADER))
}

/// A weight in 32 bits: in units of [`GRANULE`], with a bit for [`EXPIRY`]. `None` from 2^31 granules
/// on: 32 GiB, or 16 GiB where a word has 32 bits.
#[inline]
pub(in crate::store) fn packed(weight: u64) -> Option<u32> {
    let block = weight.saturating_sub(TABLES as u64);
    // A block is a whole number of granules, but EXPIRY is not.
    let expiry = block % GRANULE != 0;
    let granules = block.saturating_sub(u64::from(expiry) * EXPIRY as u64) / GRANULE;
    let granules = u32::try_from(granules).ok().filter(|&n| n < WITH_EXPIRY)?;
    Some(granules | if expiry { WITH_EXPIRY } else { 0 })
}

/// The weight that was packed.
#[inline]
pub(in crate::store) fn unpacked(packed: u32) -> u64 {
    let expiry = u64::from(packed / WITH_EXPIRY) * EXPIRY as u64;
    u64::from(packed % WITH_EXPIRY) * GRANULE + expiry + TABLES as u64
}

/// The bit of a packed weight that includes [`EXPIRY`].
const WITH_EXPIRY: u32 = 1 << 31;

/// The size of every block, in bytes, is a multiple of this.
const GRANULE: u64 = 2 * size_of::<usize>() as u64;

/// Checks a capacity: 0, or room for an empty key and value at least. It fits in the address space.
pub(crate) fn check_capacity(bytes: u64) -> Result<()> {
    if usize::try_from(bytes).is_err() {
        let most = usize::MAX;
        let message =
            format!("a capacity of {bytes} bytes is over the {most} of the address space");
        return Err(Error::new(ErrorKind::InvalidOption, message));
    }
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
        for weight in lens.map(of_entry) {
            for weight in [weight, weight + EXPIRY as u64] {
                assert_eq!(packed(weight).map(unpacked), Some(weight));
            }
        }
        assert_eq!(packed(u64::MAX), None);
    }

    #[test]
    fn weight_saturates() {
        assert!(of_entry(usize::MAX) >= usize::MAX as u64);
    }
}
