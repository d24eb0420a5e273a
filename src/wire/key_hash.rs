//! The hash with which an answer says which key it answers.

use std::hash::Hasher;

use fnv::FnvHasher;

/// The hash of a key and its group, which an answer carries so that its receiver detects an answer
/// to another request: a proxy changed the path, or an answer came late or twice.
///
/// It is FNV-1a of 64 bits, over the group, a byte that no text contains, and the key. It depends on
/// the bytes alone, so it is the same in all processes, versions and machines. Two keys of one program
/// have the same hash by accident in one of 10^19 cases. It is no protection against a server that
/// lies. It costs about four instructions a byte; hashes that are faster for long keys cost more for
/// keys of a few dozen bytes.
pub(crate) fn key_hash(group: &str, key: &str) -> u64 {
    let mut hasher = FnvHasher::default();
    hasher.write(group.as_bytes());
    hasher.write_u8(BETWEEN);
    hasher.write(key.as_bytes());
    hasher.finish()
}

/// The header with the hash of an answer that is an error, in 16 hexadecimal digits. Other answers
/// carry the hash in their bodies.
pub(crate) const KEY_HEADER: &str = "larder-key";

/// The value of [`KEY_HEADER`].
pub(crate) fn key_header(hash: u64) -> String {
    format!("{hash:016x}")
}

/// Not a byte of UTF-8.
const BETWEEN: u8 = 0xff;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hash_is_fnv_1a_of_group_separator_and_key() {
        // Computed by another program. A change would make mixed clusters refuse all answers.
        for (group, key, want) in [
            ("", "", 0xaf64_724c_8602_eb6e),
            ("colors", "red", 0xf044_9ab2_949c_a929),
            ("colors", "a//b", 0x07a3_1a06_4d6e_7ff7),
            ("colors", "a/b", 0x7fc4_8db2_54eb_d728),
        ] {
            assert_eq!(key_hash(group, key), want, "{group} {key}");
        }
        assert_ne!(key_hash("a", "bc"), key_hash("ab", "c"));
    }
}
