//! Chooses one look-up in 256, in irregular steps.

/// One look-up in so many of a thread is sampled.
pub(crate) const SAMPLED_ONE_IN: u64 = 1 << SHIFT;

/// Whether the look-up with this number is sampled.
///
/// With equal steps, a loop over 256 keys would be sampled at one key for ever. The fractional parts of the
/// squares of all numbers times an irrational one are even, and so are those of each key of a loop.
#[inline]
pub(crate) fn is_sampled(number: u64) -> bool {
    number.wrapping_mul(number).wrapping_mul(GOLDEN) < 1 << (u64::BITS - SHIFT)
}

const SHIFT: u32 = 8;

/// 2^64 divided by the golden ratio, as an odd number.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

#[cfg(test)]
mod tests {
    use super::*;

    fn sampled_below(end: u64) -> Vec<u64> {
        (1..end).filter(|&number| is_sampled(number)).collect()
    }

    #[test]
    fn one_look_up_in_256_is_sampled() {
        let sampled = sampled_below(8_000_000);
        let (count, expected) = (sampled.len() as u64, 8_000_000 / SAMPLED_ONE_IN);
        assert!(
            count.abs_diff(expected) < expected / 50,
            "{count} of {expected}"
        );
        let longest = sampled.windows(2).map(|pair| pair[1] - pair[0]).max();
        assert!(longest < Some(20 * SAMPLED_ONE_IN), "{longest:?}");
    }

    #[test]
    fn each_key_of_a_loop_is_sampled() {
        let sampled = sampled_below(8_000_000);
        for keys in (1..=300).chain([512, 610]) {
            let mut samples = vec![0; keys];
            sampled
                .iter()
                .for_each(|n| samples[*n as usize % keys] += 1);
            let expected = sampled.len() / keys;
            let (least, most) = (samples.iter().min(), samples.iter().max());
            let is_even = least >= Some(&(expected / 3)) && most <= Some(&(expected * 2));
            assert!(is_even, "{keys} keys: {least:?} to {most:?} of {expected}");
        }
    }
}
