//! The entries in the payload of a block.

use super::bytes::{FieldReader, push_long};

/// An entry of a dump.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DumpedEntry<'a> {
    pub(crate) key: &'a str,
    pub(crate) value: &'a [u8],
    /// The time from the start of its load to the dump, in nanoseconds; `None` if it is not known.
    pub(crate) age: Option<u64>,
    /// The time from the dump to its expiry, in nanoseconds; `None` if it does not expire.
    pub(crate) ttl: Option<u64>,
}

impl<'a> DumpedEntry<'a> {
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.age.unwrap_or(NONE).to_le_bytes());
        out.extend_from_slice(&self.ttl.unwrap_or(NONE).to_le_bytes());
        push_long(out, self.key.as_bytes());
        push_long(out, self.value);
    }

    /// The length of its encoding.
    pub(crate) fn encoded_len(&self) -> usize {
        2 * 8 + 2 * 4 + self.key.len() + self.value.len()
    }

    /// Takes an entry from the start of `payload`; `None` if it does not begin with one.
    pub(crate) fn take(payload: &mut &'a [u8]) -> Option<DumpedEntry<'a>> {
        let mut fields = FieldReader(payload);
        let some = |nanos: u64| (nanos != NONE).then_some(nanos);
        let (age, ttl) = (some(fields.u64()?), some(fields.u64()?));
        let (key, value) = (fields.text()?, fields.long()?);
        *payload = fields.0;
        Some(DumpedEntry {
            key,
            value,
            age,
            ttl,
        })
    }
}

const NONE: u64 = u64::MAX;
