//! Shared, immutable bytes behind a pointer of one word.

use std::fmt;
use std::ops::Deref;

use triomphe::{Arc, ThinArc};

/// Like std's `Arc<[u8]>`, but the length is stored with the bytes, so the pointer is one word.
///
/// A hit reads the pointer and then the entry. Pointers of half the size let twice as many fit into
/// the processor's caches.
#[derive(Clone)]
pub(crate) struct SharedBytes(ThinArc<(), u8>);

impl SharedBytes {
    /// The size of the header before the bytes, in bytes. It holds the reference count and the
    /// length.
    pub(crate) const HEADER: usize = 2 * size_of::<usize>();

    /// `len` zero bytes, which [`fill`](Self::fill) can overwrite.
    pub(crate) fn zeros(len: usize) -> SharedBytes {
        SharedBytes(ThinArc::from_header_and_iter(
            (),
            std::iter::repeat_n(0, len),
        ))
    }

    /// The address of the allocation. Does not read the allocation, unlike `as_ptr` of the slice.
    pub(crate) fn address(&self) -> usize {
        self.0.as_ptr().addr()
    }

    /// Lets `fill` write the bytes; `None` if they are shared.
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
    fn pointer_takes_one_word_also_in_an_option() {
        assert_eq!(size_of::<Option<SharedBytes>>(), size_of::<usize>());
    }

    #[test]
    fn only_unshared_bytes_are_filled() {
        let mut bytes = SharedBytes::zeros(3);
        assert_eq!(bytes.fill(|room| room.copy_from_slice(b"one")), Some(()));
        let other = bytes.clone();
        assert_eq!(bytes.fill(|room| room.copy_from_slice(b"two")), None);
        assert_eq!((&*bytes, &*other), (&b"one"[..], &b"one"[..]));
    }

    #[test]
    fn empty_bytes_are_allowed() {
        assert!(SharedBytes::zeros(0).is_empty());
        assert!(SharedBytes::from(&[][..]).is_empty());
    }
}
