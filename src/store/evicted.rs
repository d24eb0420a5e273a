//! Entries that left a shard: collected under its lock, reported and dropped outside it.

use super::entry::Entry;
use super::entry::key_hash::KeyHash;
use crate::heap::SharedBytes;

/// Why an entry left the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RemovalCause {
    /// Its time to live was over. Any operation may have removed it then, for whatever reason.
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
pub(crate) struct Evicted {
    pub(crate) entry: Entry,
    pub(crate) cause: RemovalCause,
}

/// The entries that left in one operation. Most insertions evict one entry, so the first one needs no
/// allocation.
#[derive(Debug, Default)]
pub(crate) struct EvictedEntries {
    first: Option<Evicted>,
    rest: Vec<Evicted>,
    pending: Option<PendingEviction>,
}

/// An insertion that left the store over its capacity: see `Store::finish_eviction`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PendingEviction {
    /// The hash of the key that was inserted.
    pub(super) hash: KeyHash,
    /// If an entry with a lower score than this would have to leave, the inserted entry is evicted instead.
    pub(super) limit: u64,
}

impl EvictedEntries {
    #[inline]
    pub(super) fn push(&mut self, entry: Entry, cause: RemovalCause) {
        let evicted = Evicted { entry, cause };
        if self.first.is_none() {
            self.first = Some(evicted);
        } else {
            self.rest.push(evicted);
        }
    }

    #[cfg(all(test, not(larder_loom)))]
    pub(super) fn append(&mut self, more: EvictedEntries) {
        for one in more.first.into_iter().chain(more.rest) {
            self.push(one.entry, one.cause);
        }
    }

    pub(crate) fn len(&self) -> usize {
        usize::from(self.first.is_some()) + self.rest.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.first.is_none()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Evicted> {
        self.first.iter().chain(&self.rest)
    }

    /// Takes the bytes of the first entry, and drops the others.
    pub(super) fn take_first(&mut self) -> Option<SharedBytes> {
        self.rest.clear();
        self.first.take().map(|evicted| evicted.entry.into_bytes())
    }

    pub(super) fn set_pending(&mut self, pending: Option<PendingEviction>) {
        self.pending = pending;
    }

    /// The insertion that evicted these entries, if it has to evict more once these are dropped.
    pub(crate) fn pending(&self) -> Option<PendingEviction> {
        self.pending
    }
}
