//! How shared bytes are made of other bytes and shown.

use std::fmt;

use super::raw::{SharedBytes, Vacant};

impl SharedBytes {
    /// A copy of the parts on malloc, one after the other.
    pub(crate) fn concat(parts: [&[u8]; 2]) -> SharedBytes {
        SharedBytes::zeros(parts[0].len() + parts[1].len()).with_parts(parts)
    }

    /// Copies the parts into new bytes of their length.
    fn with_parts(mut self, [front, back]: [&[u8]; 2]) -> SharedBytes {
        if let Some(bytes) = self.get_mut() {
            let (to_front, to_back) = bytes.split_at_mut(front.len());
            to_front.copy_from_slice(front);
            to_back.copy_from_slice(back);
        }
        self
    }
}

impl Vacant {
    /// Copies the parts into the block, one after the other.
    pub(super) fn fill(self, parts: [&[u8]; 2]) -> SharedBytes {
        let len = parts[0].len() + parts[1].len();
        self.into_bytes(len).with_parts(parts)
    }
}

impl AsRef<[u8]> for SharedBytes {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl From<&[u8]> for SharedBytes {
    fn from(bytes: &[u8]) -> SharedBytes {
        SharedBytes::concat([bytes, &[]])
    }
}

impl fmt::Debug for SharedBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}
