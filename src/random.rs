//! Random numbers, and the mixing function that they and the hashes share.

use std::hash::{BuildHasher, Hasher, RandomState};

/// A number in 0..1, for decisions that need no secrecy.
pub(crate) fn unit() -> f64 {
    // A double has 53 bits of precision, so use the upper 53 bits.
    (bits() >> 11) as f64 / (1_u64 << 53) as f64
}

/// 64 random bits, as for [`unit`]. Each `RandomState` has other keys, which std counts up from random ones
/// in each thread.
pub(crate) fn bits() -> u64 {
    RandomState::new().hash_one(0_u64)
}

/// The finalizer of SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number
/// generators", 2014): every bit of the input changes about half of the output's bits.
pub(crate) fn mix(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

/// A hash of 64 bits that never changes: FNV-1a followed by [`mix`]. Ports and numbered keys differ in
/// the last byte, and FNV-1a alone barely carries that difference to the high bits.
pub(crate) fn spread(bytes: &[u8]) -> u64 {
    let mut hasher = fnv::FnvHasher::default();
    hasher.write(bytes);
    mix(hasher.finish())
}

/// The step of SplitMix64: 2^64 divided by the golden ratio, rounded to an odd number.
pub(crate) const GOLDEN_RATIO: u64 = 0x9e37_79b9_7f4a_7c15;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_spread_over_the_unit_interval() {
        let numbers: Vec<f64> = (0..10_000).map(|_| unit()).collect();
        assert!(numbers.iter().all(|n| (0.0..1.0).contains(n)));
        let mean = numbers.iter().sum::<f64>() / 10_000.0;
        assert!((0.48..0.52).contains(&mean), "mean {mean}");
    }

    #[test]
    fn mix_is_a_step_of_splitmix64() {
        // The generator's first output for the seed 0.
        assert_eq!(mix(GOLDEN_RATIO), 0xe220_a839_7b1d_cdaf);
    }
}
