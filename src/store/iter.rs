//! All entries of a store.

use std::iter;

use super::Store;
use super::entry::Entry;
use super::shard::Shard;
use crate::clock::Clock;
use crate::sync::RwLock;

impl Store {
    /// All live entries. Counts nothing. No lock is held between two calls of `next`.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Entry> {
        let shards = self.shards.iter();
        shards.flat_map(|shard| entries(shard, &self.timing.clock))
    }
}

/// All live entries of a shard, which is locked for few of them at a time.
fn entries(shard: &RwLock<Shard>, clock: &Clock) -> impl Iterator<Item = Entry> {
    let mut end = u32::MAX;
    let next = move || {
        (end > 0).then(|| {
            let (entries, first) = shard.read().last_entries(end, clock);
            end = first;
            entries
        })
    };
    iter::from_fn(next).flatten()
}
