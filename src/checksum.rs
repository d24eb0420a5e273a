//! A checksum of 64 bits that runs at the speed of memory.

/// The checksum of `bytes`, different for each `seed`.
///
/// Each step mixes one word into one of four lanes by operations that can be undone. So two inputs of
/// one length that differ in one word always have different checksums, and others nearly always.
pub(crate) fn checksum(seed: u64, bytes: &[u8]) -> u64 {
    let mut lanes = [seed, !seed, seed.rotate_left(32), bytes.len() as u64];
    let mut chunks = bytes.chunks_exact(32);
    for chunk in &mut chunks {
        for (lane, word) in lanes.iter_mut().zip(chunk.chunks_exact(8)) {
            *lane = step(*lane, word_of(word));
        }
    }
    for (lane, word) in lanes.iter_mut().zip(chunks.remainder().chunks(8)) {
        *lane = step(*lane, word_of(word));
    }
    lanes.into_iter().fold(0, step)
}

/// Up to eight bytes as a number, the missing ones being 0.
fn word_of(bytes: &[u8]) -> u64 {
    let mut word = [0; 8];
    word[..bytes.len()].copy_from_slice(bytes);
    u64::from_le_bytes(word)
}

fn step(lane: u64, word: u64) -> u64 {
    (lane ^ word).wrapping_mul(ODD).rotate_left(29)
}

/// The golden ratio of 2^64; multiplication by an odd number can be undone.
const ODD: u64 = crate::random::GOLDEN_RATIO;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Files of older versions must stay readable.
    #[test]
    fn checksum_does_not_change() {
        let bytes: Vec<u8> = (0..100).collect();
        let found = [
            checksum(0, &[]),
            checksum(1, &bytes),
            checksum(2, &bytes[..37]),
        ];
        assert_eq!(found, GOLDEN, "{found:#x?}");
    }

    const GOLDEN: [u64; 3] = [
        0xd3f7_dfde_b7e9_83eb,
        0x5486_93b3_3bef_44b0,
        0xbbbf_eed1_91ca_58a7,
    ];

    proptest! {
        #[test]
        fn a_changed_bit_a_shift_and_another_seed_are_detected(
            bytes in prop::collection::vec(any::<u8>(), 1..200),
            bit in any::<prop::sample::Index>(),
            seed in any::<u64>(),
        ) {
            let sum = checksum(seed, &bytes);
            let mut changed = bytes.clone();
            let bit = bit.index(bytes.len() * 8);
            changed[bit / 8] ^= 1 << (bit % 8);
            prop_assert_ne!(checksum(seed, &changed), sum);
            prop_assert_ne!(checksum(seed ^ 1, &bytes), sum);
            prop_assert_ne!(checksum(seed, &bytes[1..]), sum);
            changed = bytes.clone();
            changed.push(0);
            prop_assert_ne!(checksum(seed, &changed), sum);
        }
    }
}
