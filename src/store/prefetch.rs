//! Tells the processor early which memory look-ups, insertions and evictions will access. A store of many
//! entries is larger than the processor's caches, so they would wait for one cache line after the other.
//!
//! hashbrown stores the places of a table before its tags, the first place last. The table does not return
//! their address, so it is computed from that of an entry. If it is wrong, only the prefetches are in vain.

use super::key_hash::table_hash;
use super::shard::Shard;
use crate::heap::prefetch_address;
use crate::stats::CacheType;

/// The bytes of a place.
const PLACE: usize = size_of::<u32>();

impl Shard {
    /// Computes where the places of the table end and its tags begin, after the insertion at a place with this
    /// address.
    #[inline]
    pub(super) fn note_place(&mut self, address: usize, place: usize) {
        self.places_end = address.wrapping_add((place + 1) * PLACE);
    }

    /// Starts to fetch the tag and the place of a key, or those where it would be inserted. The look-up that
    /// follows reads the tag first, and only then knows the address of the place. So both are fetched at the
    /// same time.
    #[inline(always)]
    pub(super) fn prefetch_place(&self, short: u32) {
        let last = self.table.num_buckets().wrapping_sub(1);
        let place = table_hash(short) as usize & last;
        prefetch_address(self.places_end.wrapping_sub((place + 1) * PLACE));
        prefetch_address(self.places_end.wrapping_add(place));
    }

    /// Starts to fetch what the insertion of a missed key accesses besides its place: its ghost.
    #[inline]
    pub(super) fn prefetch_ghost(&self, short: u32) {
        self.policies[CacheType::Main as usize].prefetch_ghost(short);
    }

    /// Starts to fetch what the next eviction from a share accesses, if the victim is in the same queue as the
    /// last one: its slot, its ghost, its tag and its place in the table, and its entry. The drop of the entry
    /// reads the reference count, and the next value is written to its block.
    #[inline]
    pub(super) fn prefetch_victim(&self, share: CacheType) {
        let policy = &self.policies[share as usize];
        let Some(short) = self.slab.prefetch(policy.likely_victim()) else {
            return;
        };
        policy.prefetch_ghost(short);
        self.prefetch_place(short);
    }
}
