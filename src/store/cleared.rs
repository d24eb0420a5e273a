//! The entries that a clear took out of the store. They leave in parts, later.

use super::evicted::{Evicted, RemovalCause};
use super::shard::Shard;
use super::{CachePadded, Store};
use crate::clock::Tick;
use crate::heap::Heap;
use crate::sync::{Arc, RwLock};

/// The former contents of a cleared store. The drop returns their memory to the system.
pub(crate) struct ClearedEntries {
    /// The entries of the last ones have been taken.
    shards: Vec<Shard>,
    /// When the store was cleared.
    now: Tick,
    heap: Arc<Heap>,
}

impl Store {
    /// Removes everything, shard by shard. The values of loads under way are not cached. The work does
    /// not depend on the number of entries: the statistics count all of them as removed until
    /// [`take_cleared`](Self::take_cleared) finds those that had expired.
    pub(crate) fn clear(&self) -> ClearedEntries {
        self.forecaster.observe_clear();
        let clear = |shard: &CachePadded<RwLock<Shard>>| shard.write().clear(self.budget.ledger());
        ClearedEntries {
            now: self.timing.clock.now(),
            shards: self.shards.iter().map(clear).collect(),
            heap: self.heap.clone(),
        }
    }

    /// Takes the next entries of a cleared store, at most [`EVICTED_AT_ONCE`](super::EVICTED_AT_ONCE).
    /// `None` if there are no more. Frees the memory of those that the caller took before and dropped, so
    /// that an allocation never has to free more than that.
    pub(crate) fn take_cleared(&self, cleared: &mut ClearedEntries) -> Option<Vec<Evicted>> {
        self.heap.free_dropped();
        loop {
            let entries = cleared.shards.last_mut()?.take_cleared(cleared.now);
            let shard = &self.shards[cleared.shards.len() - 1];
            if entries.iter().any(|one| one.cause == RemovalCause::Expired) {
                shard.write().count_expired(&entries);
            }
            if !entries.is_empty() {
                return Some(entries);
            }
            cleared.shards.pop();
        }
    }
}

impl Drop for ClearedEntries {
    fn drop(&mut self) {
        self.shards.clear();
        self.heap.release_free_pages();
    }
}
