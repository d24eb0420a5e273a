//! Blocks that threads drop while their arena is used, collected and dropped.

use loom::model;

use crate::heap::release::{FreeList, Place};
use crate::sync::Arc;
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::thread;

/// An arena whose blocks have no memory.
#[derive(Default)]
struct BareArena {
    list: FreeList,
    /// The links of the blocks, by offset.
    links: [AtomicU64; BLOCKS as usize + 1],
    /// Advanced before each drop of a block. The ordering is relaxed, so that a thread sees the advance only if
    /// the list orders the drop before it.
    dropped: [AtomicU64; BLOCKS as usize + 1],
}

const BLOCKS: u32 = 3;

impl BareArena {
    /// Drops a block. True if the segments can be unmapped.
    fn drop_block(&self, offset: u32) -> bool {
        self.dropped[offset as usize].store(1, Ordering::Relaxed);
        let link = |next| self.links[offset as usize].store(next, Ordering::Relaxed);
        self.list.push(Place { segment: 0, offset }, link)
    }

    /// Frees all blocks of a list. Returns their number.
    fn free(&self, mut next: Option<Place>) -> usize {
        let mut freed = 0;
        while let Some(place) = next {
            let offset = place.offset as usize;
            assert_eq!(self.dropped[offset].swap(2, Ordering::Relaxed), 1);
            next = Place::from_bits(self.links[offset].load(Ordering::Relaxed));
            freed += 1;
        }
        freed
    }

    /// The thread that unmaps the segments sees that all blocks were dropped before.
    fn unmap(&self) {
        for dropped in &self.dropped[1..] {
            assert_ne!(dropped.load(Ordering::Relaxed), 0);
        }
    }
}

/// Every block is freed once by the arena, or counted once after it was dropped. One thread unmaps the
/// segments, after all drops.
fn arena_is_dropped_while_blocks_are_dropped(collects: bool) {
    model(move || {
        let arena = Arc::new(BareArena::default());
        let threads: Vec<_> = [&[1, 2][..], &[3]]
            .into_iter()
            .map(|blocks| {
                let arena = arena.clone();
                let drop_blocks = move || {
                    let lasts = blocks.iter().filter(|&&block| arena.drop_block(block));
                    let unmaps = lasts.count();
                    (0..unmaps).for_each(|_| arena.unmap());
                    unmaps
                };
                thread::spawn(drop_blocks)
            })
            .collect();
        let mut in_use = BLOCKS as usize;
        if collects {
            in_use -= arena.free(arena.list.take());
        }
        in_use -= arena.free(arena.list.close());
        let mut unmaps = 0;
        if arena.list.settle(in_use) {
            arena.unmap();
            unmaps += 1;
        }
        unmaps += threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .sum::<usize>();
        assert_eq!(unmaps, 1);
    });
}

#[test]
fn segments_are_unmapped_once_after_all_drops() {
    arena_is_dropped_while_blocks_are_dropped(false);
}

#[test]
fn collected_blocks_are_not_counted_again() {
    arena_is_dropped_while_blocks_are_dropped(true);
}
