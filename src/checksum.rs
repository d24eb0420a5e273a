//! A checksum of 64 bits that runs at the speed of memory.

/// The checksum of `bytes`, different for each `seed`. Two inputs have the same one by accident in one of
/// 10^19 cases, whatever few bytes they differ in.
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
pub(crate) fn word_of(bytes: &[u8]) -> u64 {
    let mut word = [0; 8];
    word[..bytes.len()].copy_from_slice(bytes);
    u64::from_le_bytes(word)
}

/// Mixes a word into a lane: the halves of a product of 128 bits, combined by xor.
///
/// The upper half spreads the upper bits of the word, and the lower half the lower ones. With the lower half
/// alone, the last byte of a word changes one byte of the lane, which three bits of one digit and five of
/// another can undo.
#[inline(always)]
pub(crate) fn step(lane: u64, word: u64) -> u64 {
    let product = u128::from(lane ^ word) * u128::from(ODD);
    product as u64 ^ (product >> 64) as u64
}

/// The golden ratio of 2^64.
const ODD: u64 = crate::random::GOLDEN_RATIO;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Another program computed these. Files of older versions must stay readable.
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

    const GOLDEN: [u64; 3] = [u64::MAX, 0xe285_e1c7_1b09_c4d6, 0xad18_e73c_0574_437d];

    #[test]
    fn texts_that_differ_in_a_few_digits_have_different_checksums() {
        let mut text = [b'0'; 72];
        let mut sums = vec![checksum(7, &text)];
        for first in 0..text.len() {
            for second in first + 1..text.len() {
                for digits in 1..100_u8 {
                    (text[first], text[second]) = (b'0' + digits / 10, b'0' + digits % 10);
                    sums.push(checksum(7, &text));
                }
                (text[first], text[second]) = (b'0', b'0');
            }
        }
        sums.sort_unstable();
        sums.dedup();
        // These are the text of zeros, and the texts in which one or two digits are not 0.
        assert_eq!(sums.len(), 1 + 72 * 9 + 72 * 71 / 2 * 81);
    }

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
