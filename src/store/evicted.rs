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

/// The entries that left in one operation.
#[derive(Debug, Default)]
pub(crate) struct EvictedEntries {
    entries: Vec<Evicted>,
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
        self.entries.push(Evicted { entry, cause });
    }

    #[cfg(all(test, not(larder_loom)))]
    pub(super) fn append(&mut self, more: EvictedEntries) {
        self.entries.extend(more.entries);
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Evicted> {
        self.entries.iter()
    }

    pub(super) fn set_pending(&mut self, hash: KeyHash) {
        self.pending = Some(PendingEviction { hash });
    }

    /// The insertion that these entries left for, if more have to leave once these are dropped.
    pub(crate) fn pending(&self) -> Option<PendingEviction> {
        self.pending
    }
}
