//! Bytes that are shared and never change, by a pointer of one word.

use std::fmt;
use std::ops::Deref;

use triomphe::{Arc, ThinArc};

/// Like std's `Arc<[u8]>`, but the length stands with the bytes, so that the pointer is one word.
///
/// Hits read the pointer, then the entry. Of pointers half as large twice as many stay in the
/// processor's caches.
#[derive(Clone)]
pub(crate) struct SharedBytes(ThinArc<(), u8>);

impl SharedBytes {
    /// The bytes of the allocation before those of the value: the count of references and the
    /// length.
    pub(crate) const HEADER: usize = 2 * size_of::<usize>();

    /// So many zeros, to be [filled](Self::fill).
    pub(crate) fn zeros(len: usize) -> SharedBytes {
        SharedBytes(ThinArc::from_header_and_iter(
            (),
            std::iter::repeat_n(0, len),
        ))
    }

    /// Where they are. Reads nothing there, as the address of the first byte would: the length
    /// comes with it.
    pub(crate) fn address(&self) -> usize {
        self.0.as_ptr().addr()
    }

    /// Lets `fill` write the bytes, if nobody else has them.
    pub(crate) fn fill<R>(&mut self, fill: impl FnOnce(&mut [u8]) -> R) -> Option<R> {
        self.0
            .with_arc_mut(|arc| Arc::get_mut(arc).map(|bytes| fill(bytes.slice_mut())))
    }
}

impl Deref for SharedBytes {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        &self.0.slice
    }
}

impl AsRef<[u8]> for SharedBytes {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl From<&[u8]> for SharedBytes {
    #[inline]
    fn from(bytes: &[u8]) -> SharedBytes {
        SharedBytes(ThinArc::from_header_and_slice((), bytes))
    }
}

impl fmt::Debug for SharedBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pointer_is_one_word_whether_there_are_bytes_or_not() {
        assert_eq!(size_of::<Option<SharedBytes>>(), size_of::<usize>());
    }

    #[test]
    fn only_bytes_that_nobody_shares_are_filled() {
        let mut bytes = SharedBytes::zeros(3);
        assert_eq!(bytes.fill(|room| room.copy_from_slice(b"one")), Some(()));
        let other = bytes.clone();
        assert_eq!(bytes.fill(|room| room.copy_from_slice(b"two")), None);
        assert_eq!((&*bytes, &*other), (&b"one"[..], &b"one"[..]));
    }

    #[test]
    fn no_bytes_are_bytes_too() {
        assert!(SharedBytes::zeros(0).is_empty());
        assert!(SharedBytes::from(&[][..]).is_empty());
    }
}
