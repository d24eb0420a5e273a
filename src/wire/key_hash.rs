//! The hash with which an answer says which key it answers.

use crate::checksum::{step, word_of};

/// The hash of a key and its group, which an answer carries so that its receiver detects an answer
/// to another request: a proxy changed the path, or an answer came late or twice.
///
/// It depends on the bytes alone, so it is the same in all processes, versions and machines. The file
/// `groupcache.proto` defines it. Two keys of one program have the same hash by accident in one of 10^19
/// cases. It is no protection against a server that lies. It costs about 30 instructions, and 7 for every
/// 8 bytes.
pub(crate) fn key_hash(group: &str, key: &str) -> u64 {
    absorb(absorb(0, group.as_bytes()), key.as_bytes())
}

/// Mixes a text into a hash: its length, its whole words, and its last word, which may overlap the one
/// before. So a text of eight bytes or more needs no word that is filled up, which would cost most.
#[inline(always)]
fn absorb(hash: u64, text: &[u8]) -> u64 {
    let hash = step(hash, text.len() as u64);
    let Some(last) = text.last_chunk() else {
        let bytes = text.iter().rev();
        return step(
            hash,
            bytes.fold(0, |word, &byte| word << 8 | u64::from(byte)),
        );
    };
    let words = text.chunks_exact(8).map(word_of);
    step(words.fold(hash, step), u64::from_le_bytes(*last))
}

/// The header with the hash of an answer that is an error, in 16 hexadecimal digits. Other answers
/// carry the hash in their bodies.
pub(crate) const KEY_HEADER: &str = "larder-key";

/// The value of [`KEY_HEADER`].
pub(crate) fn key_header(hash: u64) -> String {
    format!("{hash:016x}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn hash_of_group_and_key_does_not_change() {
        // Computed by another program. A change would make mixed clusters refuse all answers.
        for (group, key, want) in [
            ("", "", 0),
            ("colors", "red", 0x8e08_c309_1e0d_3193),
            ("colors", "a//b", 0xc8ef_e0f9_e7a4_f3ab),
            ("colors", "a/b", 0x98a4_eb22_d39c_083c),
            ("colors", "eightlet", 0xbc9b_b45e_e421_38a1),
            ("colors", LONG, 0x780d_22f4_e611_f530),
        ] {
            assert_eq!(key_hash(group, key), want, "{group} {key}");
        }
        assert_ne!(key_hash("a", "bc"), key_hash("ab", "c"));
    }

    const LONG: &str = "a key of twenty-seven bytes";

    #[test]
    fn keys_that_differ_in_a_few_bytes_have_different_hashes() {
        let numbers = (0..10_000).flat_map(|n| [n.to_string(), format!("user:{n:06}:settings")]);
        let repeated = (0..100).flat_map(|n| ["x".repeat(n), "\0".repeat(n)]);
        let mut keys: BTreeSet<String> = numbers.chain(repeated).collect();
        let text = "0000-0000-0000-0000-0000";
        for (first, second) in (0..text.len()).flat_map(|n| (0..n).map(move |m| (m, n))) {
            for (one, other) in (0..10).flat_map(|n| (0..10).map(move |m| (m, n))) {
                let (start, end) = (&text[..first], &text[second + 1..]);
                let middle = &text[first + 1..second];
                keys.insert(format!("{start}{one}{middle}{other}{end}"));
            }
        }
        let hashes: BTreeSet<u64> = keys.iter().map(|key| key_hash("g", key)).collect();
        assert_eq!(hashes.len(), keys.len());
    }
}
