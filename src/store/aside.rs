//! Blocks of memory that malloc keeps aside, and those that decide what goes back to the system.
//!
//! glibc (malloc/malloc.c) gives memory back from the end of its heap only, so a block there that
//! is in use keeps the whole heap resident. Other allocators need none of this and do not mind.

use std::hint::black_box;

/// Memory that nobody has written to, so that it costs next to nothing.
type Block = Vec<u8>;

/// How many freed blocks of a size a thread keeps aside for its next allocations
/// (`TCACHE_FILL_COUNT`). For glibc they are in use.
const KEPT: usize = 7;

/// Blocks that fill the long gaps of the heap, and one behind the `highest` entry.
///
/// While that one is held, nothing that is freed joins the heap's end; when it is dropped, all of it
/// does at once. glibc gives an end back only if it is longer than twice the longest table or value
/// that it ever mapped and freed (`M_TRIM_THRESHOLD`): what joined bit by bit would leave up to that
/// much behind.
pub(super) fn behind(highest: usize) -> Vec<Block> {
    let mut blocks = Vec::with_capacity(MOST_LONG);
    let mut is_behind = false;
    while !is_behind && blocks.len() < MOST_LONG {
        let block = block(LONG);
        is_behind = address(&block) > highest;
        blocks.push(block);
    }
    by_address(blocks)
}

/// What this thread keeps aside from now on lies as low as it can, if the heap's gaps are not more
/// than `gaps` bytes.
///
/// What it kept before comes back, and is to be dropped, now that there is no room for it aside.
pub(super) fn keep_the_lowest(gaps: usize) -> Vec<Block> {
    let mut rooms = lowest_rooms(gaps);
    // First more of each size go aside than are kept, so that seven are there, and then none is when
    // seven were taken. To take seven of fewer would let glibc fetch more, from where it likes
    // (`tcache_put` in `_int_malloc`). A few are longer than they should be, as some rooms are, and
    // count for another size.
    drop(of_each_size(3 * KEPT));
    let before = of_each_size(KEPT);
    // What is cut off the end of a low block is low. It goes aside, or is the first to be found.
    let mut low = Vec::with_capacity(before.len());
    for room in &mut rooms {
        for size in sizes() {
            room.shrink_to(room.capacity().saturating_sub(size + HEADER));
            low.push(block(size));
        }
    }
    drop(black_box(low));
    before
}

/// Room for one block of each size, `KEPT` times.
///
/// glibc takes the shortest gap that is long enough, wherever it is, and the heap's end last. So
/// all are filled to find the lowest.
fn lowest_rooms(gaps: usize) -> Vec<Block> {
    let count = (gaps / ROOM).clamp(KEPT, MOST_ROOMS);
    let rooms = (0..count).map(|_| block(ROOM));
    let mut rooms = by_address(rooms.collect());
    rooms.truncate(KEPT);
    // Where a gap is a little longer than what was asked for, glibc gives all of it, and what is
    // cut off first would be longer too.
    for room in &mut rooms {
        room.shrink_to(ROOM - 64);
    }
    rooms
}

/// From the lowest to the highest.
fn by_address(mut blocks: Vec<Block>) -> Vec<Block> {
    blocks.sort_unstable_by_key(address);
    // A compiler may leave out allocations that nobody looks at.
    black_box(blocks)
}

/// An empty one where memory is short: all this is of less use then, and does no harm.
fn block(size: usize) -> Block {
    let mut block = Block::new();
    let _ = block.try_reserve_exact(size);
    block
}

fn address(block: &Block) -> usize {
    block.as_ptr().addr()
}

/// The sizes that are kept aside (`TCACHE_MAX_BINS`): up to a kibibyte.
fn sizes() -> impl Iterator<Item = usize> + Clone {
    (0..64).map(|class| 24 + 16 * class)
}

fn of_each_size(count: usize) -> Vec<Block> {
    let mut blocks = Vec::with_capacity(count * sizes().count());
    blocks.extend((0..count).flat_map(|_| sizes().map(block)));
    black_box(blocks)
}

/// A word, in front of each block.
const HEADER: usize = size_of::<usize>();

/// Long enough for glibc to look at the heap's end when one is freed
/// (`FASTBIN_CONSOLIDATION_THRESHOLD`, 64 KiB), too short to be mapped (`M_MMAP_THRESHOLD`,
/// 128 KiB at least).
const LONG: usize = 100 << 10;

/// More than one block of each size takes, which is 34,304 bytes.
const ROOM: usize = 34 << 10;

/// Gaps of up to 25 MiB are filled. More would be of no use where the highest entry is mapped.
const MOST_LONG: usize = 256;

/// Gaps of up to 34 MiB are filled.
const MOST_ROOMS: usize = 1024;

#[cfg(all(test, target_os = "linux", target_env = "gnu", not(larder_loom)))]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_aside_afterwards_lies_where_the_lowest_blocks_lay() {
        let mut entries: Vec<Block> = (0..2000).map(|_| block(2000)).collect();
        entries.sort_unstable_by_key(address);
        // These are kept aside at the other end.
        drop(of_each_size(KEPT));
        let ends = behind(address(&entries[1999]));
        let end = ends.last().map(address);
        assert!(end > entries.last().map(address));

        let limit = address(&entries[500]);
        entries.drain(..500);
        drop(keep_the_lowest(4 << 20));
        assert!(
            of_each_size(KEPT)
                .iter()
                .all(|block| address(block) < limit)
        );
        drop((entries, ends));
    }
}
