//! The table of a shard: which slot has the entry of a key.
//!
//! A store of many entries is larger than the processor's caches, so look-ups, insertions and evictions would
//! wait for one cache line after the other. So some are prefetched. hashbrown stores the places of a table
//! before its tags, the first place last. The table does not return their address, so it is computed from that
//! of an entry. If it is wrong, only the prefetches are in vain.

use hashbrown::HashTable;

use super::entry::key_hash::{KeyHash, table_hash};
use super::entry::load_times::LoadTimes;
use super::entry::{Entry, NewEntry};
use super::slab::{Slab, SlotRef};
use super::timing::Timing;
use crate::heap::{TableMemory, prefetch_address};

/// Tables of at most this many slots do not shrink.
const MIN_SLOTS: usize = 64;

/// The bytes of a place.
const PLACE: usize = size_of::<u32>();

/// The slots of a shard, and the index of each by the hash of its key. It begins with what a hit reads.
#[derive(Debug)]
#[repr(C)]
pub(super) struct SlotTable {
    places: HashTable<u32, TableMemory>,
    /// Where the places end and their tags begin.
    places_end: usize,
    pub(super) slab: Slab,
}

impl SlotTable {
    pub(super) fn new(load_times: LoadTimes) -> SlotTable {
        SlotTable {
            places: HashTable::new_in(TableMemory),
            places_end: 0,
            slab: Slab::new(load_times),
        }
    }

    /// The number of entries.
    pub(super) fn len(&self) -> usize {
        self.places.len()
    }

    /// The live entry of a key, and whether it is [due](super::Hit::is_due).
    #[inline(always)]
    pub(super) fn find(
        &self,
        hash: KeyHash,
        key: &str,
        timing: &Timing,
    ) -> Option<(SlotRef<'_>, bool)> {
        self.prefetch(hash.short());
        let slot = self.slot_of(hash, key)?;
        // The clock is read only if the entry can expire.
        let is_due = match slot.expires() {
            Some(end) => timing.is_due(end)?,
            None => false,
        };
        Some((slot, is_due))
    }

    /// The entry of a key, expired or not.
    #[inline(always)]
    pub(super) fn slot_of(&self, hash: KeyHash, key: &str) -> Option<SlotRef<'_>> {
        let short = hash.short();
        let is_it = |&index: &u32| self.slab.has_key(index, short, key);
        let index = *self.places.find(table_hash(short), is_it)?;
        self.slab.slot(index)
    }

    pub(super) fn index_of(&self, hash: KeyHash, key: &str) -> Option<u32> {
        self.slot_of(hash, key).map(|slot| slot.index)
    }

    /// The slot of an entry with this short hash.
    pub(super) fn index_of_short(&self, short: u32) -> Option<u32> {
        let is_it = |&index: &u32| self.slab.hash(index) == short;
        self.places.find(table_hash(short), is_it).copied()
    }

    /// Starts to fetch the tag and the place of a key, or those where it would be inserted. The look-up that
    /// follows reads the tag first, and only then knows the address of the place. So both are fetched at the
    /// same time.
    #[inline(always)]
    pub(super) fn prefetch(&self, short: u32) {
        let last = self.places.num_buckets().wrapping_sub(1);
        let place = table_hash(short) as usize & last;
        prefetch_address(self.places_end.wrapping_sub((place + 1) * PLACE));
        prefetch_address(self.places_end.wrapping_add(place));
    }

    /// Like [`Slab::insert`].
    pub(super) fn insert(&mut self, new: &NewEntry<'_>, weight: u64) -> Option<u32> {
        let index = self.slab.insert(new, weight)?;
        let slab = &self.slab;
        let hash = |&index: &u32| table_hash(slab.hash(index));
        let place = table_hash(new.hash.short());
        let place = self.places.insert_unique(place, index, hash);
        let (address, place) = (std::ptr::from_ref(place.get()).addr(), place.bucket_index());
        self.places_end = address.wrapping_add((place + 1) * PLACE);
        Some(index)
    }

    /// Like [`Slab::remove`].
    pub(super) fn remove(&mut self, index: u32) -> Option<Entry> {
        let hash = table_hash(self.slab.hash(index));
        if let Ok(place) = self.places.find_entry(hash, |&other| other == index) {
            place.remove();
        }
        self.slab.remove(index)
    }

    /// The number of slots that are too many for the entries.
    pub(super) fn excess(&self) -> usize {
        let most = 2 * self.len() + MIN_SLOTS;
        self.slab.len().saturating_sub(most)
    }

    /// Like [`Slab::remove_last_slot`]. Returns the index that an entry has moved to.
    pub(super) fn remove_last_slot(&mut self) -> Option<u32> {
        let (from, to) = self.slab.remove_last_slot()?;
        let hash = table_hash(self.slab.hash(to));
        if let Some(index) = self.places.find_mut(hash, |&index| index == from) {
            *index = to;
        }
        Some(to)
    }

    /// Frees memory of removed slots and places, if it is much.
    pub(super) fn shrink(&mut self) {
        self.slab.shrink(2 * self.slab.len());
        if self.places.capacity() / 4 > self.len() + MIN_SLOTS {
            let slab = &self.slab;
            let hash = |&index: &u32| table_hash(slab.hash(index));
            self.places.shrink_to(2 * self.places.len(), hash);
        }
    }

    /// Frees the memory of removed slots, but for an eighth.
    pub(super) fn release_slots(&mut self) {
        let len = self.slab.len();
        self.slab.shrink(len + len / 8 + MIN_SLOTS);
    }

    /// The bytes of memory of slots and places.
    pub(super) fn bytes(&self) -> usize {
        self.places.allocation_size() + self.slab.table_bytes()
    }

    /// The sum of all entries' weights, after checking that every entry can be found.
    #[cfg(all(test, not(larder_loom)))]
    pub(super) fn audit(&self) -> u64 {
        let live: Vec<u32> = self
            .slab
            .entries(0..self.slab.len() as u32)
            .map(|(index, _)| index)
            .collect();
        for &index in &live {
            let hash = table_hash(self.slab.hash(index));
            assert!(self.places.find(hash, |&other| other == index).is_some());
        }
        assert_eq!(self.len(), live.len());
        live.iter().map(|&index| self.slab.weight(index)).sum()
    }
}
