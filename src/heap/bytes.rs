//! How shared bytes are made of other bytes and shown.

use std::fmt;

use super::raw::{SharedBytes, Vacant};

impl SharedBytes {
    /// A copy of the parts on malloc, one after the other.
    pub(crate) fn concat<const N: usize>(parts: [&[u8]; N]) -> SharedBytes {
        SharedBytes::zeros(len_of(parts)).with_parts(parts)
    }

    /// Copies the parts into new bytes of their length.
    fn with_parts<const N: usize>(mut self, parts: [&[u8]; N]) -> SharedBytes {
        if let Some(mut bytes) = self.get_mut() {
            for part in parts {
                let (to, rest) = bytes.split_at_mut(part.len());
                to.copy_from_slice(part);
                bytes = rest;
            }
        }
        self
    }
}

/// The length of all parts together.
#[inline]
pub(super) fn len_of<const N: usize>(parts: [&[u8]; N]) -> usize {
    parts.iter().map(|part| part.len()).sum()
}

impl Vacant {
    /// Copies the parts into the block, one after the other.
    #[inline]
    pub(super) fn fill<const N: usize>(self, parts: [&[u8]; N]) -> SharedBytes {
        self.into_bytes(len_of(parts)).with_parts(parts)
    }
}

impl AsRef<[u8]> for SharedBytes {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl From<&[u8]> for SharedBytes {
    fn from(bytes: &[u8]) -> SharedBytes {
        SharedBytes::concat([bytes])
    }
}

impl fmt::Debug for SharedBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}
