//! Which entry leaves next: size-aware S3-FIFO, or exact LRU.
//!
//! S3-FIFO has a small queue that new entries pass through, a main queue for entries that were used
//! again, and a ghost that remembers the keys that left too early. It is from "FIFO Queues are All
//! You Need for Cache Eviction" (Yang et al., SOSP '23), with one change: an entry many times larger
//! than the mean needs more hits to stay, because it takes the room of many.

use super::ghost::Ghost;
use super::slab::{List, Slab};

/// How the cache chooses the entries to evict.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Eviction {
    /// Size-aware S3-FIFO (Yang et al., SOSP '23). It has better hit ratios than LRU on most
    /// workloads, a scan does not flush it, and a hit takes only a shared lock.
    #[default]
    S3Fifo,
    /// Exact least-recently-used, as golang/groupcache. A hit takes the shard's exclusive lock.
    Lru,
}

/// The queues of one share of a shard.
#[derive(Debug)]
pub(super) struct Policy {
    eviction: Eviction,
    small: List,
    /// Under LRU the only queue, in order of use.
    main: List,
    ghost: Ghost,
}

/// The most entries that a search for one victim moves instead of evicting. This bounds the time
/// under the lock. After that, the next tail is evicted, whatever its hits.
const MAX_MOVES: u32 = 32;

impl Policy {
    pub(super) fn new(eviction: Eviction) -> Policy {
        Policy {
            eviction,
            small: List::default(),
            main: List::default(),
            ghost: Ghost::default(),
        }
    }

    pub(super) fn bytes(&self) -> u64 {
        self.small.bytes + self.main.bytes
    }

    pub(super) fn len(&self) -> u32 {
        self.small.len + self.main.len
    }

    /// Whether an entry of this weight is always admitted. `target` is the share's part of the
    /// capacity, in bytes.
    ///
    /// Under S3-FIFO an entry larger than the small queue would evict all other new entries.
    pub(super) fn admits(&self, weight: u64, target: u64) -> bool {
        self.eviction == Eviction::Lru || weight <= small_part(target)
    }

    /// Whether the ghost remembers a key, so that this is its second request. If not, the ghost
    /// remembers it from now on.
    pub(super) fn is_second_request(&mut self, hash: u32) -> bool {
        let len = self.len();
        let remembered = self.ghost.contains(hash, len);
        if !remembered {
            self.ghost.insert(hash, len);
        }
        remembered
    }

    /// Adds an entry: to the main queue if it is `proven` or the ghost remembers its key.
    pub(super) fn push(&mut self, slab: &mut Slab, index: u32, proven: bool) {
        let in_main = proven
            || self.eviction == Eviction::Lru
            || self.ghost.contains(slab.hash(index), self.len());
        slab.meta_mut(index).set_in_main_queue(in_main);
        slab.push_head(self.queue_of(in_main), index);
    }

    pub(super) fn remove(&mut self, slab: &mut Slab, index: u32) {
        let in_main = slab.meta(index).in_main_queue();
        slab.unlink(self.queue_of(in_main), index);
    }

    fn queue_of(&mut self, in_main: bool) -> &mut List {
        if in_main {
            &mut self.main
        } else {
            &mut self.small
        }
    }

    /// Moves an entry to the front, under LRU.
    pub(super) fn promote(&mut self, slab: &mut Slab, index: u32) {
        slab.unlink(&mut self.main, index);
        slab.push_head(&mut self.main, index);
    }

    /// Chooses a victim other than `spared`, and removes it from its queue.
    pub(super) fn evict(
        &mut self,
        slab: &mut Slab,
        target: u64,
        spared: Option<u32>,
    ) -> Option<u32> {
        let is_victim = |&tail: &u32| Some(tail) != spared;
        if self.eviction == Eviction::Lru {
            let index = self.main.tail().filter(is_victim)?;
            slab.unlink(&mut self.main, index);
            return Some(index);
        }
        let mut moves = 0;
        loop {
            let (bytes, len) = (self.bytes(), self.len());
            // If the spared entry is the tail of the main queue, the victim comes from the small
            // queue.
            let oldest = self.main.tail().filter(is_victim);
            let from_small = self.small.bytes > small_part(target) || oldest.is_none();
            let queue = self.queue_of(!from_small);
            let index = queue.tail().filter(is_victim)?;
            let needed = hits_to_stay(slab.weight(index), bytes, len);
            let freq = slab.meta(index).freq();
            slab.unlink(queue, index);
            if freq < needed || moves == MAX_MOVES {
                if from_small {
                    self.ghost.insert(slab.hash(index), self.len());
                }
                return Some(index);
            }
            moves += 1;
            let meta = slab.meta_mut(index);
            meta.set_freq(if from_small { 0 } else { freq - needed });
            meta.set_in_main_queue(true);
            slab.push_head(&mut self.main, index);
        }
    }

    /// Moves all entries into another slab and calls `moved` with the new slot of each. The ghost
    /// shrinks if it is far too long.
    pub(super) fn move_to(
        &mut self,
        from: &mut Slab,
        to: &mut Slab,
        mut moved: impl FnMut(&Slab, u32),
    ) {
        from.move_list(&mut self.small, to, &mut moved);
        from.move_list(&mut self.main, to, &mut moved);
        self.ghost.shrink(self.len());
    }
}

/// The small queue's part of the share: 20 %.
fn small_part(target: u64) -> u64 {
    target / 5
}

/// The hits that keep an entry of this weight: one, and one more for each doubling beyond the mean
/// of `bytes` in `count` entries.
#[inline]
fn hits_to_stay(weight: u64, bytes: u64, count: u32) -> u8 {
    let mean = (bytes / u64::from(count.max(1))).max(1);
    let doublings = (weight / mean).max(1).ilog2();
    1 + doublings as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn larger_entries_need_more_hits() {
        let needed = [
            (50, 1),
            (100, 1),
            (199, 1),
            (200, 2),
            (399, 2),
            (400, 3),
            (6400, 7),
        ];
        for (weight, hits) in needed {
            assert_eq!(hits_to_stay(weight, 1000, 10), hits, "weight {weight}");
        }
        assert_eq!(hits_to_stay(u64::MAX, 0, 0), 64);
    }
}
