//! An entry's etag: it follows the value, and its length follows in two bytes.

use crate::byteview::ByteView;
use crate::heap::SharedBytes;

/// The longest etag that is kept, in bytes.
pub(crate) const MAX_ETAG: usize = 1024;

/// The bytes after the value of an entry with this etag.
pub(in crate::store) fn trailer_of(etag: &str) -> usize {
    etag.len() + LEN_BYTES
}

/// The length of the trailer of an entry that has an etag.
pub(in crate::store) fn trailer_len(data: &[u8]) -> usize {
    let len = data.last_chunk().map_or(0, |len| u16::from_le_bytes(*len));
    (usize::from(len) + LEN_BYTES).min(data.len())
}

/// Whether these are the bytes after the value of an entry with this etag.
pub(in crate::store) fn is_trailer(rest: &[u8], etag: Option<&str>) -> bool {
    match etag {
        None => rest.is_empty(),
        Some(etag) => {
            rest.len() == trailer_of(etag)
                && rest.starts_with(etag.as_bytes())
                && trailer_len(rest) == rest.len()
        }
    }
}

/// The etag of an entry that has one.
pub(in crate::store) fn etag_of(data: &SharedBytes) -> ByteView {
    let (start, end) = (data.len() - trailer_len(data), data.len() - LEN_BYTES);
    ByteView::window(data.clone(), start, end)
}

/// The two bytes of the length, which follow the etag.
const LEN_BYTES: usize = size_of::<u16>();
