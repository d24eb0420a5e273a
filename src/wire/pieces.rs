//! A body in pieces, so that a cached value is sent from where it lies.

use crate::byteview::ByteView;

/// The bytes of a body, of which long values are borrowed from the cache and not copied.
#[derive(Clone, Debug, Default)]
pub(crate) struct PiecewiseBody {
    /// All bytes but those of the shared values.
    copied: Vec<u8>,
    /// The shared values, each with its place in `copied`.
    shared: Vec<(usize, ByteView)>,
}

impl PiecewiseBody {
    /// The end of the bytes that are copied, to append to.
    pub(crate) fn out(&mut self) -> &mut Vec<u8> {
        &mut self.copied
    }

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

impl From<Vec<u8>> for PiecewiseBody {
    fn from(copied: Vec<u8>) -> Self {
        PiecewiseBody {
            copied,
            shared: Vec::new(),
        }
    }
}

/// The value as it is, whatever its length.
impl From<ByteView> for PiecewiseBody {
    fn from(value: ByteView) -> Self {
        PiecewiseBody {
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
        let mut body = PiecewiseBody::default();
        body.push_value("short".into());
        body.push_value(long.clone());
        body.out().extend_from_slice(b"between");
        body.push_value(long.clone());
        let pieces: Vec<&[u8]> = body.iter().collect();
        assert_eq!(pieces, [b"short", &long[..], b"between", &long[..]]);
        assert_eq!(pieces[1].as_ptr(), long.as_ptr());
        assert_eq!(body.len(), 5 + 7 + 2 * long.len());
    }

    #[test]
    fn an_empty_body_has_no_piece() {
        for body in [
            PiecewiseBody::default(),
            Vec::new().into(),
            ByteView::default().into(),
        ] {
            assert_eq!((body.iter().count(), body.len()), (0, 0));
        }
    }
}
