//! What is cached, one shard after the other.

use std::fmt;

use super::{Shards, shard::Shard};
use crate::byteview::ByteView;
use crate::clock::Clock;
use crate::shared_bytes::SharedBytes;
use crate::stats::CacheType;
use crate::sync::{Padded, RwLock};

/// A cached entry, as [`Group::iter`](crate::Group::iter) finds it. It keeps key and value alive,
/// also when the cache has let go of them.
#[derive(Clone)]
pub struct Entry {
    /// Key and value, side by side.
    data: SharedBytes,
    key_len: usize,
    share: CacheType,
}

impl Entry {
    pub(super) fn new((data, key_len): (SharedBytes, usize), share: CacheType) -> Entry {
        Entry {
            data,
            key_len,
            share,
        }
    }

    /// The key.
    pub fn key(&self) -> &str {
        // It went in as a `&str`.
        std::str::from_utf8(&self.data[..self.key_len]).unwrap_or_default()
    }

    /// The value. Copies no byte.
    pub fn value(&self) -> ByteView {
        ByteView::window(self.data.clone(), self.key_len, self.data.len())
    }

    /// The share it is in: the main one if this process owns the key, else the hot one.
    pub fn cache_type(&self) -> CacheType {
        self.share
    }
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entry")
            .field("key", &self.key())
            .field("len", &(self.data.len() - self.key_len))
            .field("cache_type", &self.share)
            .finish()
    }
}

/// The entries of a store: see [`Group::iter`](crate::Group::iter).
pub(crate) struct Iter<'a> {
    shards: std::slice::Iter<'a, Padded<RwLock<Shard>>>,
    clock: &'a Clock,
    /// What is left of the shard looked at last.
    entries: std::vec::IntoIter<Entry>,
}

impl<'a> Iter<'a> {
    pub(super) fn new(shards: &'a Shards, clock: &'a Clock) -> Iter<'a> {
        Iter {
            shards: shards.iter(),
            clock,
            entries: Vec::new().into_iter(),
        }
    }
}

impl Iterator for Iter<'_> {
    type Item = Entry;

    fn next(&mut self) -> Option<Entry> {
        loop {
            if let Some(entry) = self.entries.next() {
                return Some(entry);
            }
            // No lock is held while the caller looks at an entry: it may call back into the group.
            let shard = self.shards.next()?.0.read();
            self.entries = Shard::snapshot(&shard, self.clock).into_iter();
        }
    }
}
