//! An immutable view of shared bytes.

use std::borrow::Borrow;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::num::NonZeroUsize;
use std::ops::{Bound, Deref, RangeBounds};
use std::str::Utf8Error;

use crate::heap::SharedBytes;
use crate::sync::Arc;

/// A cached value: bytes that never change, shared by all callers that got them.
///
/// Cloning and slicing copy no bytes and only add a reference. So it costs little to keep a view, to
/// send it to another thread, or to slice it. A view dereferences to `[u8]`.
///
/// A view keeps its whole allocation alive: the value, with the key and the etag of its entry. It
/// stays alive even after the cache has evicted the entry and no longer counts its bytes. To keep a
/// small slice of a large value for a long time, copy the slice with [`to_vec`](slice::to_vec).
#[derive(Clone)]
pub struct ByteView {
    /// `None` in an empty view that [`new`](ByteView::new) made.
    data: Option<SharedBytes>,
    start: usize,
    /// Twice the end plus one. It is never zero, so that a `Result` of a view is no larger than the view.
    odd_end: NonZeroUsize,
}

impl ByteView {
    /// The empty view. It does not allocate.
    pub const fn new() -> Self {
        ByteView {
            data: None,
            start: 0,
            odd_end: NonZeroUsize::MIN,
        }
    }

    /// The window `start..end` of `data`.
    pub(crate) fn window(data: SharedBytes, start: usize, end: usize) -> Self {
        debug_assert!(start <= end && end <= data.len());
        ByteView {
            data: Some(data),
            start,
            odd_end: NonZeroUsize::MIN | (end << 1),
        }
    }

    #[inline]
    fn end(&self) -> usize {
        self.odd_end.get() >> 1
    }

    /// Whether the allocation has the layout of an entry: this key, the bytes of the view, and a rest
    /// that `rest_fits` accepts.
    #[inline]
    pub(crate) fn is_keyed(&self, key: &str, rest_fits: impl FnOnce(&[u8]) -> bool) -> bool {
        let Some(data) = &self.data else {
            return false;
        };
        self.start == key.len()
            && data.starts_with(key.as_bytes())
            && rest_fits(&data[self.end()..])
    }

    /// The whole allocation: key, value and etag, if the view [is keyed](Self::is_keyed).
    pub(crate) fn allocation(&self) -> Option<&SharedBytes> {
        self.data.as_ref()
    }

    /// The number of bytes.
    #[inline]
    pub fn len(&self) -> usize {
        self.end() - self.start
    }

    /// Whether there are no bytes.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.start == self.end()
    }

    /// The bytes. Dereferencing returns the same slice.
    #[inline]
    pub fn as_bytes(&self) -> &[u8] {
        match &self.data {
            Some(data) => &data[self.start..self.end()],
            None => &[],
        }
    }

    /// The byte at `index`, or `None` past the end.
    pub fn at(&self, index: usize) -> Option<u8> {
        self.as_bytes().get(index).copied()
    }

    /// The bytes as text.
    ///
    /// # Errors
    ///
    /// If they are not UTF-8.
    pub fn to_str(&self) -> Result<&str, Utf8Error> {
        std::str::from_utf8(self.as_bytes())
    }

    /// A view of a range of the bytes. Shares the allocation.
    ///
    /// # Panics
    ///
    /// If the range is not within the view.
    #[must_use]
    pub fn slice(&self, range: impl RangeBounds<usize>) -> ByteView {
        let from = match range.start_bound() {
            Bound::Included(&n) => n,
            Bound::Excluded(&n) => n.checked_add(1).expect("start of the range overflows"),
            Bound::Unbounded => 0,
        };
        let to = match range.end_bound() {
            Bound::Included(&n) => n.checked_add(1).expect("end of the range overflows"),
            Bound::Excluded(&n) => n,
            Bound::Unbounded => self.len(),
        };
        assert!(
            from <= to && to <= self.len(),
            "range {from}..{to} is outside a view of {} bytes",
            self.len()
        );
        ByteView {
            data: self.data.clone(),
            start: self.start + from,
            odd_end: NonZeroUsize::MIN | ((self.start + to) << 1),
        }
    }

    /// A view of all bytes from index `from` on. Shares the allocation.
    ///
    /// # Panics
    ///
    /// If `from` is greater than the length.
    #[must_use]
    pub fn slice_from(&self, from: usize) -> ByteView {
        self.slice(from..)
    }

    /// Copies bytes from the start into `dest`, as many as fit, and returns their number.
    pub fn copy_to(&self, dest: &mut [u8]) -> usize {
        let n = self.len().min(dest.len());
        dest[..n].copy_from_slice(&self.as_bytes()[..n]);
        n
    }

    /// Writes all bytes to `out`.
    ///
    /// # Errors
    ///
    /// The errors of `out`.
    pub fn write_to(&self, out: &mut (impl Write + ?Sized)) -> io::Result<()> {
        out.write_all(self.as_bytes())
    }

    /// A reader of the bytes, with its own position.
    pub fn reader(&self) -> Reader {
        Reader {
            view: self.clone(),
            position: 0,
        }
    }
}

impl Deref for ByteView {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        self.as_bytes()
    }
}

impl AsRef<[u8]> for ByteView {
    fn as_ref(&self) -> &[u8] {
        self.as_bytes()
    }
}

impl Borrow<[u8]> for ByteView {
    fn borrow(&self) -> &[u8] {
        self.as_bytes()
    }
}

impl Default for ByteView {
    fn default() -> Self {
        ByteView::new()
    }
}

/// Copies the bytes, because the layout of a view differs from that of an `Arc`.
impl From<Arc<[u8]>> for ByteView {
    fn from(data: Arc<[u8]>) -> Self {
        ByteView::from(&*data)
    }
}

impl From<SharedBytes> for ByteView {
    fn from(data: SharedBytes) -> Self {
        let end = data.len();
        ByteView::window(data, 0, end)
    }
}

impl From<&[u8]> for ByteView {
    fn from(bytes: &[u8]) -> Self {
        SharedBytes::from(bytes).into()
    }
}

impl<const N: usize> From<&[u8; N]> for ByteView {
    fn from(bytes: &[u8; N]) -> Self {
        bytes[..].into()
    }
}

impl From<&str> for ByteView {
    fn from(text: &str) -> Self {
        text.as_bytes().into()
    }
}

impl From<Vec<u8>> for ByteView {
    fn from(bytes: Vec<u8>) -> Self {
        bytes[..].into()
    }
}

impl From<String> for ByteView {
    fn from(text: String) -> Self {
        text.as_bytes().into()
    }
}

impl Eq for ByteView {}

impl Hash for ByteView {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_bytes().hash(state);
    }
}

macro_rules! equal_by_bytes {
    ($($other:ty),*) => {$(
        impl PartialEq<$other> for ByteView {
            fn eq(&self, other: &$other) -> bool {
                let other: &[u8] = other.as_ref();
                self.as_bytes() == other
            }
        }
    )*};
}

equal_by_bytes!(ByteView, [u8], &[u8], Vec<u8>, str, &str, String);

impl<const N: usize> PartialEq<[u8; N]> for ByteView {
    fn eq(&self, other: &[u8; N]) -> bool {
        self.as_bytes() == other
    }
}

impl<const N: usize> PartialEq<&[u8; N]> for ByteView {
    fn eq(&self, other: &&[u8; N]) -> bool {
        self.as_bytes() == *other
    }
}

/// Writes the bytes as a byte-string literal. A longer view is cut after 64 bytes, and its length
/// follows.
impl fmt::Debug for ByteView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 64;
        let head = &self.as_bytes()[..self.len().min(SHOWN)];
        write!(f, "b\"{}\"", head.escape_ascii())?;
        if self.len() > SHOWN {
            write!(f, "… ({} bytes)", self.len())?;
        }
        Ok(())
    }
}

/// A reader of a [`ByteView`]. [`Seek`] moves its position.
#[derive(Clone, Debug)]
pub struct Reader {
    view: ByteView,
    position: u64,
}

impl Reader {
    fn rest(&self) -> &[u8] {
        let from = usize::try_from(self.position).unwrap_or(usize::MAX);
        self.view.get(from..).unwrap_or_default()
    }
}

impl Read for Reader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.rest().read(buf)?;
        self.position += n as u64;
        Ok(n)
    }
}

impl Seek for Reader {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let target = match to {
            SeekFrom::Start(n) => Some(n),
            SeekFrom::End(n) => (self.view.len() as u64).checked_add_signed(n),
            SeekFrom::Current(n) => self.position.checked_add_signed(n),
        };
        self.position = target.ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::InvalidInput,
                "seek to a negative or overflowing position",
            )
        })?;
        Ok(self.position)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_view_has_no_allocation_and_equals_others() {
        const EMPTY: ByteView = ByteView::new();
        assert!(EMPTY.is_empty() && EMPTY.allocation().is_none());
        assert_eq!(EMPTY, ByteView::from(""));
        assert_eq!(EMPTY, ByteView::default());
        assert_eq!(EMPTY, "");
        assert_eq!(EMPTY.slice(..), EMPTY);
        assert_eq!(EMPTY.at(0), None);
    }

    #[test]
    fn slices_share_the_allocation() {
        let view = ByteView::from("hello, world");
        let word = view.slice(7..12);
        assert_eq!(word, "world");
        assert_eq!(view.slice_from(7), word);
        assert_eq!(view.slice(..=4), "hello");
        let data = |view: &ByteView| view.allocation().expect("it has bytes").as_ptr();
        assert_eq!(data(&view), data(&word.slice(1..2)));
    }

    #[test]
    #[should_panic(expected = "range 3..5 is outside a view of 4 bytes")]
    fn slice_outside_the_view_panics() {
        let _ = ByteView::from("abcdef").slice(1..5).slice(3..5);
    }

    #[test]
    fn view_is_keyed_if_its_key_precedes_it_and_the_rest_fits() {
        let whole = ByteView::from("keyvalue");
        let is_keyed = |view: ByteView, key| view.is_keyed(key, <[u8]>::is_empty);
        assert!(is_keyed(whole.slice(3..), "key"));
        assert!(is_keyed(whole.clone(), ""));
        assert!(!is_keyed(whole.slice(3..), "kez"));
        assert!(!is_keyed(whole.slice(3..6), "key"));
        assert!(!is_keyed(whole.slice(..0), ""));
        assert!(whole.slice(3..6).is_keyed("key", |rest| rest == b"ue"));
    }

    #[test]
    fn at_stays_within_the_view() {
        let view = ByteView::from("abc").slice(1..2);
        assert_eq!(view.at(0), Some(b'b'));
        assert_eq!(view.at(1), None);
    }

    #[test]
    fn copy_to_copies_what_fits() {
        let view = ByteView::from("abcd");
        let mut short = [0; 2];
        let mut long = [b'.'; 6];
        assert_eq!(view.copy_to(&mut short), 2);
        assert_eq!(view.copy_to(&mut long), 4);
        assert_eq!((&short, &long), (b"ab", b"abcd.."));
    }

    #[test]
    fn equality_is_by_bytes() {
        let view = ByteView::from("xaby").slice(1..3);
        assert_eq!(view, ByteView::from("ab"));
        assert_eq!(view, "ab");
        assert_eq!(view, b"ab");
        assert_eq!(view, vec![b'a', b'b']);
        assert_ne!(view, "abc");
    }

    #[test]
    fn reader_reads_and_seeks() {
        let mut reader = ByteView::from("0123456789").slice(2..8).reader();
        let mut buf = [0; 4];
        reader.read_exact(&mut buf).unwrap();
        assert_eq!(&buf, b"2345");
        assert_eq!(reader.seek(SeekFrom::End(-1)).unwrap(), 5);
        let mut rest = String::new();
        reader.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "7");
        assert!(reader.seek(SeekFrom::Current(-7)).is_err());
        assert_eq!(reader.seek(SeekFrom::Start(u64::MAX)).unwrap(), u64::MAX);
        assert_eq!(reader.read(&mut buf).unwrap(), 0);
    }

    #[test]
    fn write_to_writes_all() {
        let mut out = Vec::new();
        ByteView::from("abc")
            .slice_from(1)
            .write_to(&mut out)
            .unwrap();
        assert_eq!(out, b"bc");
    }
}
