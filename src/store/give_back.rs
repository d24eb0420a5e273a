//! Works around glibc's thread cache and trim threshold, so that `clear` returns memory to the
//! system.
//!
//! glibc (malloc/malloc.c) returns memory from the end of its heap only, so one block in use near
//! the end keeps the whole heap resident. Other allocators need none of this, and it does no harm
//! there.

use std::cmp::Reverse;
use std::hint::black_box;

use super::weight;
use crate::shared_bytes::SharedBytes;

/// Drops the entries of a cleared store, which had this weight together, so that glibc returns
/// their memory.
///
/// Dropping them in any order leaves the resident set almost as it was. The thread cache keeps
/// seven freed blocks of each size, wherever they lie, and counts them as in use. And memory that
/// joins the heap's end bit by bit is returned only where it is longer than the trim threshold,
/// which is twice the longest table or value that was ever mapped and freed.
///
/// So the lowest entries are dropped first, and the thread cache is filled from the room that they
/// leave. No block of the others is kept after that. They are dropped while one more block is held
/// behind them all; with that one they join the heap's end at once. Blocks in other threads' caches
/// stay where they are.
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

/// Memory that is not written to, so that it costs next to nothing.
type Block = Vec<u8>;

/// Long blocks that fill the gaps of the heap up to `highest`, and one behind it. By address.
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

/// Replaces the blocks in this thread's cache by the lowest that there are, if the heap's gaps are
/// at most `gaps` bytes together.
fn cache_lowest_blocks(gaps: usize) {
    let mut rooms = lowest_rooms(gaps);
    // First free more blocks of each size than the cache holds, so that it is full, then take as
    // many as it holds, so that it is empty. With fewer than seven there, glibc would fetch more
    // from anywhere (`tcache_put` in `_int_malloc`). A few blocks are longer than requested, as some
    // gaps are, and count for another size.
    drop(of_each_size(3 * CACHED));
    let before = of_each_size(CACHED);
    // A block that is cut off the end of a low one is low. It goes to the cache, or is the first
    // that the allocator finds.
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

/// Room for one block of each size, as many times as the cache holds one.
///
/// glibc takes the shortest gap that is long enough, wherever it is, and the heap's end last. So
/// all gaps are filled to find the lowest.
fn lowest_rooms(gaps: usize) -> Vec<Block> {
    let count = (gaps / ROOM).clamp(CACHED, MAX_ROOMS);
    let rooms = (0..count).map(|_| block(ROOM));
    let mut rooms = by_address(rooms.collect());
    rooms.truncate(CACHED);
    // glibc gives all of a gap that is a little longer than requested. Then the first block that is
    // cut off would be too long.
    for room in &mut rooms {
        room.shrink_to(ROOM - 64);
    }
    rooms
}

/// From the lowest to the highest.
fn by_address(mut blocks: Vec<Block>) -> Vec<Block> {
    blocks.sort_unstable_by_key(address);
    // A compiler may omit allocations that are not used.
    black_box(blocks)
}

/// An unused block, or an empty one where memory is short.
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

/// Fewer bytes are not worth the work.
const WORTH_IT: u64 = 2 << 20;

/// Twelve times what the thread cache holds: there may be tables and other blocks between the
/// entries.
const ROOM_FOR_CACHE: usize = 3 << 20;

/// The freed blocks of one size that a thread's cache keeps (`TCACHE_FILL_COUNT`).
const CACHED: usize = 7;

/// A word in front of each block.
const HEADER: usize = size_of::<usize>();

/// Long enough that glibc examines the heap's end when one is freed
/// (`FASTBIN_CONSOLIDATION_THRESHOLD`, 64 KiB), too short to be mapped (`M_MMAP_THRESHOLD`,
/// 128 KiB at least).
const FILLER: usize = 100 << 10;

/// Longer than one block of each size together, which is 34,304 bytes.
const ROOM: usize = 34 << 10;

/// Gaps of up to 25 MiB are filled. More would be of no use where the highest entry is mapped.
const MAX_FILLERS: usize = 256;

/// Gaps of up to 34 MiB are filled.
const MAX_ROOMS: usize = 1024;

#[cfg(all(test, target_os = "linux", target_env = "gnu", not(larder_loom)))]
mod tests {
    use super::*;

    #[test]
    fn thread_cache_holds_lowest_blocks_afterwards() {
        let mut entries: Vec<Block> = (0..2000).map(|_| block(2000)).collect();
        entries.sort_unstable_by_key(address);
        // The thread cache keeps these, at the other end.
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
