//! Tells the processor early which memory misses and evictions will access.
//!
//! A store of many entries is larger than the processor's caches. An insertion would wait for the memory of
//! its place in the table, and an eviction for its victim's entry, its slot and its place in the table.

use super::key_hash::{KeyHash, table_hash};
use super::shard::Shard;
use crate::heap::prefetch;
use crate::stats::CacheType;

/// The places of the table that are searched for an entry.
const NEIGHBORS: usize = 4;

impl Shard {
    /// Starts to fetch what the insertion of a key that was missed accesses: its ghost, and its place in the
    /// table.
    ///
    /// The table returns references to entries only, so the place is fetched by way of an entry beside it,
    /// which most often lies in the same cache line. The table searches for a free place from the hash on,
    /// modulo its length.
    #[inline]
    pub(super) fn prefetch_insertion(&self, hash: KeyHash) {
        let short = hash.short();
        self.policies[CacheType::Main as usize].prefetch_ghost(short);
        let first = table_hash(short) as usize;
        let last = self.table.num_buckets().wrapping_sub(1);
        let mut places = (0..NEIGHBORS).map(|n| first.wrapping_add(n) & last);
        if let Some(neighbor) = places.find_map(|place| self.table.get_bucket(place)) {
            prefetch(neighbor);
        }
    }

    /// Starts to fetch what the next eviction from a share accesses, if the victim is in the same queue as the
    /// last one: its slot, its ghost, its place in the table, and its entry. The drop of the entry reads the
    /// reference count, and the next value is written to its block.
    #[inline]
    pub(super) fn prefetch_victim(&self, share: CacheType) {
        let policy = &self.policies[share as usize];
        let Some(hash) = self.slab.prefetch(policy.likely_victim()) else {
            return;
        };
        policy.prefetch_ghost(hash);
        self.table.find(table_hash(hash), |place| {
            prefetch(place);
            false
        });
    }
}
