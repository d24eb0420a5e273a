//! Entries that left a shard: collected under its lock, reported and dropped outside it.

use super::entry::Entry;
use super::key_hash::KeyHash;

/// Why an entry left the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RemovalCause {
    /// Its time to live was over, whichever operation removed it then.
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

/// The entries that left in one operation. Holds one without an allocation, which is what most
/// insertions evict.
#[derive(Debug, Default)]
pub(crate) struct EvictedEntries {
    first: Option<Evicted>,
    rest: Vec<Evicted>,
    pending: Option<PendingEviction>,
}

/// An insertion that left the store over its capacity: see `Store::finish_eviction`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PendingEviction {
    /// Of the key that was inserted.
    pub(super) hash: KeyHash,
}

impl EvictedEntries {
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

    pub(super) fn len(&self) -> usize {
        usize::from(self.first.is_some()) + self.rest.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.first.is_none()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Evicted> {
        self.first.iter().chain(&self.rest)
    }

    pub(super) fn set_pending(&mut self, hash: KeyHash) {
        self.pending = Some(PendingEviction { hash });
    }

    /// The insertion that these entries left for, if more have to leave once these are dropped.
    pub(crate) fn pending(&self) -> Option<PendingEviction> {
        self.pending
    }
}
