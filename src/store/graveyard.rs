//! Entries on their way out: collected under a shard's lock, dropped and reported outside it.

use std::hint::black_box;

use super::Hash;
use crate::byteview::ByteView;
use crate::shared_bytes::SharedBytes;

/// Why an entry left the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
// A word, as `ErrorKind`.
#[repr(usize)]
pub enum RemovalCause {
    /// Its time to live was over, whatever took it out then.
    Expired,
    /// It was removed, or the cache was cleared.
    Explicit,
    /// Another value of the same key took its place.
    Replaced,
    /// It was evicted to make room.
    Size,
}

/// An entry that left its shard.
#[derive(Debug)]
pub(crate) struct Departed {
    key_len: usize,
    data: SharedBytes,
    pub(crate) cause: RemovalCause,
}

impl Departed {
    pub(super) fn of((key_len, data): (usize, SharedBytes), cause: RemovalCause) -> Departed {
        Departed {
            key_len,
            data,
            cause,
        }
    }

    /// The key; it went in as a `&str`.
    pub(crate) fn key(&self) -> &str {
        std::str::from_utf8(&self.data[..self.key_len]).unwrap_or_default()
    }

    pub(crate) fn value(&self) -> ByteView {
        ByteView::window(self.data.clone(), self.key_len, self.data.len())
    }
}

/// The entries that one operation took out. Holds one without allocating, which is what most
/// insertions evict.
#[derive(Debug, Default)]
pub(crate) struct Graveyard {
    first: Option<Departed>,
    rest: Vec<Departed>,
    unsettled: Option<Unsettled>,
}

/// An insertion that has left the store over its capacity: see `Store::settle`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Unsettled {
    /// Of the key that went in.
    pub(super) hash: Hash,
}

impl Graveyard {
    pub(super) fn push(&mut self, departed: Departed) {
        if self.first.is_none() {
            self.first = Some(departed);
        } else {
            self.rest.push(departed);
        }
    }

    #[cfg(all(test, not(larder_loom)))]
    pub(super) fn append(&mut self, more: Graveyard) {
        let Graveyard { first, rest, .. } = more;
        first.into_iter().chain(rest).for_each(|one| self.push(one));
    }

    /// Reads the entry that is about to be dropped, so that the processor fetches its cache lines
    /// all at once.
    ///
    /// An entry that is evicted was not asked for lately, and is in no cache. To drop it is to wait
    /// for its first line, the count of references. Malloc then gives its block to the next value,
    /// and whoever writes that waits for the other lines, at the next lock: a processor that takes a
    /// lock first finishes what it is writing. Read together, they take the time of one.
    #[inline]
    pub(crate) fn fetch(&self) {
        let Some(Departed { data, .. }) = &self.first else {
            return;
        };
        for line in 1..=LINES {
            // Past the end there is nothing to be read; how long it is the first line will tell.
            black_box(data.get(line * LINE - SharedBytes::HEADER).copied());
        }
    }

    pub(super) fn set_unsettled(&mut self, hash: Hash) {
        self.unsettled = Some(Unsettled { hash });
    }

    /// The insertion that these entries left for, if more have to, once these are buried.
    pub(crate) fn unsettled(&self) -> Option<Unsettled> {
        self.unsettled
    }

    pub(super) fn len(&self) -> usize {
        usize::from(self.first.is_some()) + self.rest.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.first.is_none()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Departed> {
        self.first.iter().chain(&self.rest)
    }
}

/// The bytes of a cache line.
const LINE: usize = 64;

/// Lines that are fetched after the first. The processor sees for itself that a longer block is
/// written in order.
const LINES: usize = 3;
