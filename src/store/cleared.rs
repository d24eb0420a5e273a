//! What a cleared store held, and how its memory gets back to the system.

use std::hint::black_box;

use super::entries::{Cell, Entries};
use super::iter::Entry;

/// All entries of a store that was cleared.
///
/// Dropping them one by one as they come would leave the resident set almost as it was. glibc gives
/// memory back from the end of its heap only, and keeps freed blocks aside for the thread's next
/// allocations, seven of each size: one of those near the end holds everything before it. So this
/// thread's are taken first, and the entries are dropped from the lowest address to the highest.
/// Then, a few times over, more blocks are taken than stay aside, and all are given back from the
/// lowest to the highest, so that those that stay are ever lower. It takes about half a millisecond;
/// other allocators do not need it and do not mind. What other threads have aside stays where it
/// is.
#[derive(Debug)]
pub(crate) struct Cleared {
    shards: Vec<Entries>,
    /// What the entries were charged.
    bytes: u64,
}

impl Cleared {
    pub(super) fn new(shards: Vec<Entries>, bytes: u64) -> Cleared {
        Cleared { shards, bytes }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = Entry> {
        self.shards
            .iter()
            .flat_map(Entries::iter)
            .map(Cell::detached)
    }
}

impl Drop for Cleared {
    fn drop(&mut self) {
        if self.bytes < WORTH_IT {
            return;
        }
        let mut held = blocks_of_each_size(KEPT_ASIDE);
        for entries in &mut self.shards {
            entries.drop_in_order();
        }
        for _ in 0..ROUNDS {
            held.extend(blocks_of_each_size(3 * KEPT_ASIDE));
            held.sort_unstable_by_key(|block| block.as_ptr().addr());
            held.clear();
            // The smallest are joined with their neighbours only when a large block is wanted, and
            // the heap's end is looked at when one is freed (`FASTBIN_CONSOLIDATION_THRESHOLD`).
            drop(black_box(Vec::<u8>::with_capacity(100 << 10)));
        }
    }
}

/// What fewer bytes leave behind is no more than what five rounds do.
const WORTH_IT: u64 = 1 << 20;

/// glibc's `TCACHE_FILL_COUNT` (malloc/malloc.c).
const KEPT_ASIDE: usize = 7;

/// After five, a heap of 64 MiB of entries of 10 B to 64 KiB was back to 1 to 5 MiB in most runs of
/// `cargo bench --bench memory`.
const ROUNDS: usize = 5;

/// Blocks of each size that glibc keeps aside (`TCACHE_MAX_BINS`: up to a kibibyte).
fn blocks_of_each_size(count: usize) -> Vec<Vec<u8>> {
    let sizes = (0..64).map(|class| 24 + 16 * class);
    let blocks = sizes.flat_map(|size| (0..count).map(move |_| Vec::with_capacity(size)));
    // A compiler may leave out allocations that nobody looks at.
    black_box(blocks.collect())
}
