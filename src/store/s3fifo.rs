//! Size-aware S3-FIFO: a small queue that newcomers pass through, a main queue for what is asked
//! for again, and a ghost of what left too early.
//!
//! After "FIFO Queues are All You Need for Cache Eviction" (Yang et al., SOSP '23), with one
//! change: an entry many times larger than the mean needs more hits to stay, because it takes the
//! place of many.

use super::ghost::Ghost;
use super::slab::{List, Slab};

/// The queues of one share of a shard.
#[derive(Debug, Default)]
pub(crate) struct Queues {
    pub(crate) small: List,
    pub(crate) main: List,
    ghost: Ghost,
}

/// The small queue's part of the share: 20 %.
pub(crate) fn small_part(target: u64) -> u64 {
    target / 5
}

/// Entries moved on, instead of evicted, in search of one victim. Bounds the time under the lock;
/// past it the next tail goes, whatever its hits.
const MAX_MOVES: u32 = 32;

impl Queues {
    pub(crate) fn bytes(&self) -> u64 {
        self.small.bytes + self.main.bytes
    }

    pub(crate) fn len(&self) -> u32 {
        self.small.len + self.main.len
    }

    /// Whether the key left the small queue lately.
    pub(crate) fn remembers(&self, hash: u32) -> bool {
        self.ghost.contains(hash, self.len())
    }

    /// Notes that the key was asked for and is not kept.
    pub(crate) fn remember(&mut self, hash: u32) {
        self.ghost.insert(hash, self.len());
    }

    /// Gives back the memory of a ghost that has become far too long.
    pub(crate) fn shrink_ghost(&mut self) {
        self.ghost.shrink(self.len());
    }

    /// Puts an entry in: into the main queue if it is told to or the ghost remembers the key.
    pub(crate) fn push(&mut self, slab: &mut Slab, index: u32, to_main: bool) {
        let in_main = to_main || self.remembers(slab.hash(index));
        slab.mark_mut(index).set_in_main_queue(in_main);
        let queue = if in_main {
            &mut self.main
        } else {
            &mut self.small
        };
        slab.push_head(queue, index);
    }

    pub(crate) fn unlink(&mut self, slab: &mut Slab, index: u32) {
        let queue = if slab.mark(index).in_main_queue() {
            &mut self.main
        } else {
            &mut self.small
        };
        slab.unlink(queue, index);
    }

    /// Takes the tail of the main queue out, unless it is to be spared: the victim of exact LRU.
    pub(crate) fn evict_oldest(&mut self, slab: &mut Slab, spared: Option<u32>) -> Option<u32> {
        let index = self.main.tail().filter(|&tail| Some(tail) != spared)?;
        slab.unlink(&mut self.main, index);
        Some(index)
    }

    /// Chooses a victim, which is not the spared one, and takes it out of its queue.
    pub(crate) fn evict(
        &mut self,
        slab: &mut Slab,
        small_target: u64,
        spared: Option<u32>,
    ) -> Option<u32> {
        let mut moves = 0;
        loop {
            let (bytes, len) = (self.bytes(), self.len());
            // The spared one is the tail if it is alone.
            let oldest = self.main.tail().filter(|&tail| Some(tail) != spared);
            let from_small = self.small.bytes > small_target || oldest.is_none();
            let queue = if from_small {
                &mut self.small
            } else {
                &mut self.main
            };
            let index = queue.tail().filter(|&tail| Some(tail) != spared)?;
            let needed = hits_to_stay(slab.weight(index), bytes, len);
            let freq = slab.mark(index).freq();
            slab.unlink(queue, index);
            if freq < needed || moves == MAX_MOVES {
                if from_small {
                    self.remember(slab.hash(index));
                }
                return Some(index);
            }
            moves += 1;
            let mark = slab.mark_mut(index);
            mark.set_freq(if from_small { 0 } else { freq - needed });
            mark.set_in_main_queue(true);
            slab.push_head(&mut self.main, index);
        }
    }
}

/// The hits that keep an entry of this weight: one, and one more for each doubling beyond the mean
/// of `bytes` in `count` entries.
#[inline]
fn hits_to_stay(weight: u64, bytes: u64, count: u32) -> u8 {
    let count = u64::from(count.max(1));
    // Most are below twice the mean, which two multiplications tell.
    if weight.saturating_mul(count) < bytes.saturating_mul(2) {
        return 1;
    }
    let mean = (bytes / count).max(1);
    match (weight / mean).checked_ilog2() {
        None | Some(0) => 1,
        Some(log) => u8::try_from(log + 1).unwrap_or(u8::MAX),
    }
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
