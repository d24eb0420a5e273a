//! The memory of a store's entries. A store owns it, so that its limit holds whatever threads fill it.
//!
//! ```text
//!   mod.rs      the heap of a store: several arenas, each with its lock
//!   arena.rs    the blocks of an arena      classes.rs   their sizes
//!   pages.rs    the pages of a segment      release.rs   the way of dropped blocks back
//!   bytes.rs    copies into blocks          raw.rs, raw/  shared bytes, mapped memory; all `unsafe` code
//!   spares.rs   blocks that threads keep for their next entries
//!   model.rs    a naive heap, with which tests compare this one
//! ```
//!
//! malloc keeps an arena for each thread. A block is allocated by the thread that loads an entry, and
//! freed by the thread that evicts it. So every arena keeps gaps, and a process takes two or three
//! times the memory of its entries (docs/memory.md).

mod arena;
mod bytes;
pub(crate) mod classes;
#[cfg(any(all(test, not(larder_loom)), larder_fuzz))]
pub(crate) mod model;
mod pages;
mod raw;
pub(crate) mod release;
mod spares;
#[cfg(all(test, not(larder_loom)))]
mod tests;

use crate::sync::plain_atomic::{AtomicU64, AtomicUsize, Ordering};

use crossbeam_utils::CachePadded;

use crate::sync::{Arc, Mutex};
use arena::Arena;
use classes::PAGE;
use raw::{Mapping, Vacant};
use release::Release;
use spares::Spares;

pub(crate) use raw::{SharedBytes, TableMemory, prefetch, prefetch_address};

/// A vector whose memory goes back to the system as soon as it is freed.
pub(crate) type TableVec<T> = allocator_api2::vec::Vec<T, TableMemory>;

/// Blocks for the entries of a store.
///
/// Blocks of up to [`MAX_SPREAD`] bytes lie in several arenas, so that threads seldom wait for each
/// other. A longer block takes longer to fill than to allocate, so all of these are in one arena.
pub(crate) struct Heap {
    spares: Spares,
    /// The last one is for long blocks.
    arenas: Box<[CachePadded<SharedArena>]>,
    /// See [`excess`](Self::excess).
    excess: Arc<CachePadded<AtomicU64>>,
    /// The arena that is collected next.
    next_collected: AtomicUsize,
    /// The gaps of an arena that count for nothing, in bytes.
    allowed_gaps: usize,
}

/// An arena that several threads use.
struct SharedArena {
    /// Has the blocks that were dropped since the last allocation. A drop takes no lock.
    release: Arc<Release<Mapping>>,
    state: Mutex<ArenaState>,
}

struct ArenaState {
    arena: Arena,
    /// This arena's part of the heap's excess.
    excess: u64,
}

impl Heap {
    /// A heap for a store of this capacity in bytes, with so many shards.
    pub(crate) fn new(capacity: u64, shards: usize) -> Heap {
        let capacity = usize::try_from(capacity).unwrap_or(usize::MAX);
        let spread = (capacity / MIN_ARENA).clamp(1, shards.max(1));
        let spread = 1 << spread.ilog2();
        let arena = |n| {
            let spare = if n == spread {
                capacity / 32
            } else {
                capacity / 128 / spread
            };
            CachePadded::new(SharedArena::new(n, spare.max(MIN_SPARE) / PAGE))
        };
        Heap {
            spares: Spares::new(),
            arenas: (0..=spread).map(arena).collect(),
            excess: Arc::default(),
            next_collected: AtomicUsize::new(0),
            allowed_gaps: (MIN_GAPS + capacity / 64) / (spread + 1),
        }
    }

    /// A block with the parts, one after the other. `None` if the system has no memory left.
    #[inline]
    pub(crate) fn allocate<const N: usize>(
        &self,
        hash: u64,
        parts: [&[u8]; N],
    ) -> Option<SharedBytes> {
        let size = SharedBytes::HEADER + bytes::len_of(parts);
        let spare = self.spares.take(size);
        let vacant = spare.or_else(|| self.allocate_in_arena(hash, size));
        // The parts are copied without a lock.
        vacant.map(|vacant| vacant.fill(parts))
    }

    fn allocate_in_arena(&self, hash: u64, size: usize) -> Option<Vacant> {
        let shared = self.arena(hash, size);
        let mut unmapped = Vec::new();
        let mut state = shared.state.lock();
        let freed = shared.release.freed.take();
        state.arena.free(freed, usize::MAX, &mut unmapped);
        let resident = state.arena.figures.resident_pages;
        let vacant = state.arena.allocate(size);
        let has_grown = state.arena.figures.resident_pages > resident;
        self.note_excess(&mut state);
        drop(state);
        drop(unmapped);
        if has_grown {
            self.collect_another();
        }
        vacant
    }

    /// Keeps the block of an entry that left for a new one of this thread.
    pub(crate) fn recycle(&self, block: SharedBytes) {
        self.spares.keep(block);
    }

    /// Whether the block is one that [`allocate`](Self::allocate) made. It lies most often in the arena of
    /// this hash.
    pub(crate) fn owns(&self, hash: u64, block: &SharedBytes) -> bool {
        let size = SharedBytes::HEADER + block.len();
        let is_in = |shared: &SharedArena| block.is_of(&shared.release);
        is_in(self.arena(hash, size)) || self.arenas.iter().any(|shared| is_in(shared))
    }

    fn arena(&self, hash: u64, size: usize) -> &SharedArena {
        let spread = self.arenas.len() - 1;
        if size > MAX_SPREAD {
            &self.arenas[spread]
        } else {
            &self.arenas[(hash as usize) & (spread - 1)]
        }
    }

    /// The bytes of the free blocks in slabs, beyond what is allowed. They are as good as used,
    /// because blocks of other sizes cannot have them.
    pub(crate) fn excess(&self) -> Arc<CachePadded<AtomicU64>> {
        self.excess.clone()
    }

    fn note_excess(&self, state: &mut ArenaState) {
        let gaps = state.arena.figures.gaps();
        let excess = gaps.saturating_sub(self.allowed_gaps) as u64;
        if excess.abs_diff(state.excess) >= NOTED || excess == 0 && state.excess != 0 {
            let change = excess.wrapping_sub(state.excess);
            self.excess.fetch_add(change, Ordering::Relaxed);
            state.excess = excess;
        }
    }

    /// Frees the dropped blocks of one arena. Their room would stay taken while all new entries go to
    /// another arena, for example because they are longer.
    #[cold]
    fn collect_another(&self) {
        let next = self.next_collected.fetch_add(1, Ordering::Relaxed);
        self.collect(&self.arenas[next % self.arenas.len()], false);
    }

    /// Frees the blocks that were dropped before.
    pub(crate) fn free_dropped(&self) {
        for shared in &self.arenas {
            self.collect(shared, false);
        }
    }

    /// Returns all pages that hold no block to the system. Does not wait for blocks that are in use.
    pub(crate) fn release_free_pages(&self) {
        self.spares.clear();
        for shared in &self.arenas {
            self.collect(shared, true);
        }
    }

    /// Frees the dropped blocks of an arena. With `release`, the arena keeps no spare pages.
    fn collect(&self, shared: &SharedArena, release: bool) {
        let mut freed = shared.release.freed.take();
        let mut unmapped = Vec::new();
        while freed.is_some() {
            let mut state = shared.state.lock();
            // Only a limited number at once, because allocations wait for the lock.
            freed = state.arena.free(freed, COLLECTED_AT_ONCE, &mut unmapped);
            self.note_excess(&mut state);
            drop(state);
            unmapped.clear();
        }
        if release {
            shared.state.lock().arena.release(&mut unmapped);
        }
    }

    /// The resident bytes.
    pub(crate) fn resident(&self) -> usize {
        let pages =
            |shared: &CachePadded<SharedArena>| shared.state.lock().arena.figures.resident_pages;
        self.arenas.iter().map(pages).sum::<usize>() * PAGE
    }
}

impl SharedArena {
    fn new(number: usize, max_spare: usize) -> SharedArena {
        let release = Arc::<Release<Mapping>>::default();
        SharedArena {
            release: release.clone(),
            state: Mutex::new(ArenaState {
                arena: Arena::new(number, max_spare, release),
                excess: 0,
            }),
        }
    }
}

/// Keeps the segments of blocks in use until these are dropped.
impl Drop for SharedArena {
    fn drop(&mut self) {
        let mut unmapped = Vec::new();
        let mut state = self.state.lock();
        let arena = &mut state.arena;
        arena.free(self.release.freed.close(), usize::MAX, &mut unmapped);
        arena.release(&mut unmapped);
        let (in_use, segments) = (arena.figures.blocks, arena.take_segments());
        drop(state);
        self.release.settle(in_use, segments);
    }
}

/// The longest block that is not in the arena for long blocks, header included, in bytes.
const MAX_SPREAD: usize = 2048;

/// The least capacity of a store for each arena, in bytes.
const MIN_ARENA: usize = 8 << 20;

/// The least spare memory that an arena keeps, in bytes.
const MIN_SPARE: usize = 64 << 10;

/// The gaps that are allowed even in a small store, in bytes. Without them, a store of few entries of many
/// sizes could use half of its capacity.
const MIN_GAPS: usize = 2 << 20;

/// The blocks that are freed at once, at most, when none is allocated.
const COLLECTED_AT_ONCE: usize = 256;

/// A change of the excess is noted from this many bytes on.
const NOTED: u64 = 16 << 10;
