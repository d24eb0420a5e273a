//! The forms of an entry: to be inserted, found by a look-up, and returned to users.
//!
//! ```text
//!   mod.rs          the forms              key_hash.rs    the hash of its key
//!   weight.rs       the memory it takes    etag.rs        its etag, which lies behind the value
//!   load_times.rs   when its load began    generations.rs detects removals since then
//! ```

pub(super) mod etag;
pub(super) mod generations;
pub(super) mod key_hash;
pub(super) mod load_times;
pub(super) mod weight;

use std::fmt;

use self::generations::Generation;
use self::key_hash::KeyHash;
use self::load_times::LoadTime;
use crate::byteview::ByteView;
use crate::clock::Tick;
use crate::heap::SharedBytes;
use crate::stats::CacheType;

/// A cached entry, as [`Group::iter`](crate::Group::iter) returns it. It keeps key and value alive,
/// even after the cache has dropped them.
#[derive(Clone)]
pub struct Entry {
    /// Key, value and etag, side by side.
    data: SharedBytes,
    key_len: u16,
    /// The bytes of the etag and its length.
    trailer_len: u16,
    share: CacheType,
}

impl Entry {
    pub(super) fn new(
        data: SharedBytes,
        key_len: u16,
        trailer_len: u16,
        share: CacheType,
    ) -> Entry {
        Entry {
            data,
            key_len,
            trailer_len,
            share,
        }
    }

    pub(super) fn into_bytes(self) -> SharedBytes {
        self.data
    }

    /// The key.
    pub fn key(&self) -> &str {
        // The key was inserted as a `&str`, so it is UTF-8.
        std::str::from_utf8(&self.data[..usize::from(self.key_len)]).unwrap_or_default()
    }

    /// The value. Copies no byte.
    pub fn value(&self) -> ByteView {
        let end = self.data.len() - usize::from(self.trailer_len);
        ByteView::window(self.data.clone(), usize::from(self.key_len), end)
    }

    /// The share that holds it.
    pub fn cache_type(&self) -> CacheType {
        self.share
    }
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entry")
            .field("key", &self.key())
            .field("len", &self.value().len())
            .field("cache_type", &self.share)
            .finish()
    }
}

/// Why [`Store::get_view`](super::Store::get_view) returns no view.
pub(crate) enum NoView<M> {
    /// There is no live entry. The generation is for an insertion.
    Missed((Generation, M)),
    /// The entry is [due](Hit::is_due). It is counted as a hit.
    Due,
}

/// A live entry that a look-up found.
#[derive(Clone, Debug)]
pub(crate) struct Hit {
    pub(crate) view: ByteView,
    pub(crate) expires: Option<Tick>,
    /// See [`NewEntry::begun`].
    pub(crate) begun: LoadTime,
    pub(crate) share: CacheType,
    /// See [`NewEntry::is_shortened`].
    pub(crate) is_shortened: bool,
    /// Whether it expires within the margin of `Store::raise_margin`.
    pub(crate) is_due: bool,
}

/// The bytes of an entry to be inserted.
#[derive(Clone, Copy)]
pub(crate) enum NewBytes<'a> {
    /// Key, value and etag, side by side, as `Store::keyed` makes them. Borrowed, so that a value that is not
    /// inserted is not dropped under the lock.
    Keyed(&'a SharedBytes),
    /// The three are longer together than any entry may be: this long. Nothing is inserted, but an older
    /// entry of the key is removed.
    TooLarge(usize),
}

impl NewBytes<'_> {
    #[inline]
    pub(super) fn len(self) -> usize {
        match self {
            NewBytes::Keyed(data) => data.len(),
            NewBytes::TooLarge(len) => len,
        }
    }
}

impl<'a> From<&'a SharedBytes> for NewBytes<'a> {
    fn from(data: &'a SharedBytes) -> NewBytes<'a> {
        NewBytes::Keyed(data)
    }
}

/// An entry to be inserted.
pub(crate) struct NewEntry<'a> {
    pub(crate) hash: KeyHash,
    pub(crate) key: &'a str,
    pub(crate) data: NewBytes<'a>,
    pub(crate) has_etag: bool,
    /// Whether the value may be that of the entry in the store, which then only gets new times.
    pub(crate) is_renewal: bool,
    pub(crate) share: CacheType,
    pub(crate) expires: Option<Tick>,
    /// Whether it only expires because another process owns the key. That process may keep the value as
    /// long as the options of the group allow.
    pub(crate) is_shortened: bool,
    /// A time at or before the start of the value's load, in whatever process that was. `None` if it is
    /// not known, or too long ago to be kept.
    pub(crate) begun: Option<Tick>,
    /// The generation when the load of the value began.
    pub(crate) loaded_at: Generation,
    /// Called under the shard's lock. If it returns true, nothing is inserted. It must take no lock.
    pub(crate) is_forgotten: &'a dyn Fn() -> bool,
}
