//! The hash of a key, and the parts of it that the store uses.

/// A key's hash, seeded per process.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KeyHash(u64);

impl KeyHash {
    pub(in crate::store) fn new(hash: u64) -> KeyHash {
        KeyHash(hash)
    }

    /// The hash as a number, for other maps of this process.
    pub(crate) fn get(self) -> u64 {
        self.0
    }

    /// The half that a slot stores. The table and the ghost use it as their hash.
    #[inline]
    pub(in crate::store) fn short(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// The shard, chosen by bits that are not in the short hash. `shards` is a power of two.
    #[inline]
    pub(in crate::store) fn shard(self, shards: usize) -> usize {
        self.0 as usize & (shards - 1)
    }

    /// The bits that choose the sample for a forecast: 24 that are neither in the short hash nor choose
    /// the shard.
    pub(in crate::store) fn sample_bits(self) -> u32 {
        self.0 as u32 >> SAMPLE_SHIFT
    }

    /// The mask of the bits that are zero in the hashes of a sample of one key in 2^level.
    pub(in crate::store) fn sample_mask(level: u32) -> u64 {
        ((1 << level) - 1) << SAMPLE_SHIFT
    }

    /// The stripe of the generation counters.
    pub(super) fn stripe(self, stripes: usize) -> usize {
        (self.0 >> 16) as usize % stripes
    }
}

const SAMPLE_SHIFT: u32 = 8;

/// A short hash, widened for the table. The table takes the place from the low bits and the tag from
/// the high ones, so both halves hold the short hash.
#[inline]
pub(in crate::store) fn table_hash(short: u32) -> u64 {
    u64::from(short) << 32 | u64::from(short)
}
