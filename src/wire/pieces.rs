//! The body of a response in pieces, so that a cached value is sent without a copy.

use crate::byteview::ByteView;

/// The body of a [`Response`](crate::http::Response). A [`ByteView`] is sent without a copy.
#[derive(Clone, Debug, Default)]
pub struct Body {
    /// All bytes but those of the shared values.
    pub(super) copied: Vec<u8>,
    /// The shared values, each with its place in `copied`.
    shared: Vec<(usize, ByteView)>,
}

impl Body {
    /// Appends a value, without a copy if it is longer than [`SHORT`].
    pub(crate) fn push_value(&mut self, value: ByteView) {
        if value.len() <= SHORT {
            self.copied.extend_from_slice(&value);
        } else {
            self.shared.push((self.copied.len(), value));
        }
    }

    pub(crate) fn len(&self) -> usize {
        let shared = self.shared.iter().map(|(_, value)| value.len());
        self.copied.len() + shared.sum::<usize>()
    }

    /// The pieces, in order; none of them is empty.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let mut from = 0;
        let pairs = self.shared.iter().flat_map(move |(at, value)| {
            let copied = &self.copied[from..*at];
            from = *at;
            [copied, value.as_bytes()]
        });
        let last = self.shared.last().map_or(0, |(at, _)| *at);
        let pieces = pairs.chain([&self.copied[last..]]);
        pieces.filter(|piece| !piece.is_empty())
    }
}

macro_rules! body_from {
    ($($bytes:ty),*) => {$(
        impl From<$bytes> for Body {
            fn from(bytes: $bytes) -> Self {
                Body {
                    copied: bytes.into(),
                    shared: Vec::new(),
                }
            }
        }
    )*};
}

body_from!(Vec<u8>, String, &[u8], &str);

impl From<ByteView> for Body {
    fn from(value: ByteView) -> Self {
        Body {
            copied: Vec::new(),
            shared: vec![(0, value)],
        }
    }
}

/// The longest value that is copied. A piece of its own costs the kernel about as much as 1 KiB of
/// copying.
pub(super) const SHORT: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_values_are_shared_and_short_ones_copied() {
        let long = ByteView::from(vec![7; SHORT + 1]);
        let mut body = Body::default();
        body.push_value("short".into());
        body.push_value(long.clone());
        body.copied.extend_from_slice(b"between");
        body.push_value(long.clone());
        let pieces: Vec<&[u8]> = body.iter().collect();
        assert_eq!(pieces, [b"short", &long[..], b"between", &long[..]]);
        assert_eq!(pieces[1].as_ptr(), long.as_ptr());
        assert_eq!(body.len(), 5 + 7 + 2 * long.len());
    }

    #[test]
    fn empty_body_has_no_piece() {
        for body in [Body::default(), "".into(), ByteView::default().into()] {
            assert_eq!((body.iter().count(), body.len()), (0, 0));
        }
    }
}
