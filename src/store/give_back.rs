//! Works around glibc's thread cache and trim threshold, so that `clear` returns memory to the
//! system.
//!
//! glibc (malloc/malloc.c) returns memory from the end of its heap only, so one block in use near the
//! end keeps the whole heap resident. Other allocators do not need this module, and it does no harm
//! with them.

use std::cmp::Reverse;
use std::hint::black_box;

use super::weight;
use crate::shared_bytes::SharedBytes;

/// Drops the entries of a cleared store so that glibc returns their memory. `weight` is the sum of
/// their weights.
///
/// If they are dropped in an arbitrary order, almost all memory stays resident, for two reasons. The
/// thread cache keeps seven freed blocks of each size, wherever they are, and glibc counts them as in
/// use. And memory that joins the end of the heap in small pieces is returned only where it is longer
/// than the trim threshold. This threshold is twice the longest table or value that was ever mapped
/// and freed.
///
/// So the lowest entries are dropped first, and the thread cache is filled with blocks from their
/// room. After that, the cache keeps no block of the other entries. While those are dropped, one more
/// block is held behind them all. When it is freed, they join the end of the heap together with it,
/// in one piece. Blocks in other threads' caches stay where they are.
pub(super) fn give_back(mut entries: Vec<SharedBytes>, weight: u64) {
    if weight < WORTH_IT {
        return;
    }
    entries.sort_unstable_by_key(|entry| Reverse(entry.address()));
    let mut fillers = fill_up_to(entries.first().map_or(0, SharedBytes::address));
    let mut dropped = 0;
    while let Some(lowest) = entries.pop().filter(|_| dropped < ROOM_FOR_CACHE) {
        dropped += weight::of_block(lowest.len());
    }
    let gaps = 2 * ROOM_FOR_CACHE + usize::try_from(weight / 4).unwrap_or(usize::MAX / 2);
    cache_lowest_blocks(gaps);
    drop(entries);
    let last = fillers.pop();
    drop(fillers);
    drop(last);
}

/// Memory that is never written to, so it adds almost nothing to the resident set.
type Block = Vec<u8>;

/// Long blocks that fill the gaps of the heap up to `highest`, and one behind it. Sorted by address.
fn fill_up_to(highest: usize) -> Vec<Block> {
    let mut blocks = Vec::with_capacity(MAX_FILLERS);
    let mut is_behind = false;
    while !is_behind && blocks.len() < MAX_FILLERS {
        let block = block(FILLER);
        is_behind = address(&block) > highest;
        blocks.push(block);
    }
    by_address(blocks)
}

/// Replaces the blocks in this thread's cache by the lowest ones of the heap, if the heap's gaps have
/// at most `gaps` bytes in total.
fn cache_lowest_blocks(gaps: usize) {
    let mut rooms = lowest_rooms(gaps);
    // First free more blocks of each size than the cache holds, so that it is full. Then take as many
    // as it holds, so that it is empty. If the cache had fewer than seven, glibc would add others
    // from anywhere (`tcache_put` in `_int_malloc`). Some blocks are longer than requested, because
    // their gaps were, and count for another size.
    drop(of_each_size(3 * CACHED));
    let before = of_each_size(CACHED);
    // `shrink_to` frees the end of a low block. This piece is low, too. It goes to the cache, or is
    // the first one that the allocator finds for the next request.
    let mut low = Vec::with_capacity(before.len());
    for room in &mut rooms {
        for size in sizes() {
            room.shrink_to(room.capacity().saturating_sub(size + HEADER));
            low.push(block(size));
        }
    }
    drop(black_box(low));
    drop(before);
}

/// The lowest blocks of [`ROOM`] bytes, [`CACHED`] of them. Each has room for one block of each size.
///
/// glibc takes the shortest gap that is long enough, wherever it is, and the end of the heap last. So
/// all gaps are filled to find the lowest.
fn lowest_rooms(gaps: usize) -> Vec<Block> {
    let count = (gaps / ROOM).clamp(CACHED, MAX_ROOMS);
    let rooms = (0..count).map(|_| block(ROOM));
    let mut rooms = by_address(rooms.collect());
    rooms.truncate(CACHED);
    // If a gap is a little longer than requested, glibc gives out all of it. Without this, the first
    // piece that is cut off would be too long.
    for room in &mut rooms {
        room.shrink_to(ROOM - 64);
    }
    rooms
}

/// Sorts by address, the lowest first.
fn by_address(mut blocks: Vec<Block>) -> Vec<Block> {
    blocks.sort_unstable_by_key(address);
    // Without `black_box`, a compiler may omit allocations that are not used.
    black_box(blocks)
}

/// An unused block of this size, or an empty one if the allocation fails.
fn block(size: usize) -> Block {
    let mut block = Block::new();
    let _ = block.try_reserve_exact(size);
    block
}

fn address(block: &Block) -> usize {
    block.as_ptr().addr()
}

/// The sizes that the thread cache keeps (`TCACHE_MAX_BINS`): up to a kibibyte.
fn sizes() -> impl Iterator<Item = usize> + Clone {
    (0..64).map(|class| 24 + 16 * class)
}

fn of_each_size(count: usize) -> Vec<Block> {
    let mut blocks = Vec::with_capacity(count * sizes().count());
    blocks.extend((0..count).flat_map(|_| sizes().map(block)));
    black_box(blocks)
}

/// The least weight, in bytes, for which the work is worth it.
const WORTH_IT: u64 = 2 << 20;

/// The bytes of entries that are dropped first: twelve times what the thread cache holds, because
/// tables and other blocks may lie between the entries.
const ROOM_FOR_CACHE: usize = 3 << 20;

/// The number of freed blocks of one size that a thread's cache keeps (`TCACHE_FILL_COUNT`).
const CACHED: usize = 7;

/// The bytes of glibc's header in front of each block: one word.
const HEADER: usize = size_of::<usize>();

/// The bytes of a filler. It is so long that glibc examines the end of the heap when one is freed
/// (`FASTBIN_CONSOLIDATION_THRESHOLD`, 64 KiB). It is too short to be mapped (`M_MMAP_THRESHOLD`, 128
/// KiB at least).
const FILLER: usize = 100 << 10;

/// The bytes of a room. One block of each size together takes less: 34,304 bytes.
const ROOM: usize = 34 << 10;

/// The most fillers, which fill gaps of up to 25 MiB. If the highest entry is mapped, no filler gets
/// behind it, and the search ends here.
const MAX_FILLERS: usize = 256;

/// The most rooms, which fill gaps of up to 34 MiB.
const MAX_ROOMS: usize = 1024;

#[cfg(all(test, target_os = "linux", target_env = "gnu", not(larder_loom)))]
mod tests {
    use super::*;

    #[test]
    fn thread_cache_holds_lowest_blocks_afterwards() {
        let mut entries: Vec<Block> = (0..2000).map(|_| block(2000)).collect();
        entries.sort_unstable_by_key(address);
        // Fills the thread cache with blocks from behind the entries.
        drop(of_each_size(CACHED));
        let ends = fill_up_to(address(&entries[1999]));
        let end = ends.last().map(address);
        assert!(end > entries.last().map(address));

        let limit = address(&entries[500]);
        entries.drain(..500);
        cache_lowest_blocks(4 << 20);
        assert!(
            of_each_size(CACHED)
                .iter()
                .all(|block| address(block) < limit)
        );
        drop((entries, ends));
    }
}
