//! Tests the heap against naive models. Miri runs them too: `cargo +nightly miri test --lib heap::`.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::model::{HeapOp, ModelHeap, settled};
use super::pages::{PAGES, PageMap};
use super::raw::SEGMENT;
use super::*;
use crate::sync::thread;

/// Miri is a thousand times slower.
const CASES: u32 = if cfg!(miri) { 4 } else { 64 };
const MAX_OPS: usize = if cfg!(miri) { 30 } else { 300 };

fn heap() -> Heap {
    Heap::new(32 << 20, 4)
}

/// A block of `len` bytes, all equal to `fill`.
fn block(heap: &Heap, hash: u64, len: usize, fill: u8) -> SharedBytes {
    let value = vec![fill; len];
    let (front, back) = value.split_at(len / 3);
    heap.allocate(hash, [front, back]).expect("there is memory")
}

fn len() -> impl Strategy<Value = usize> {
    prop_oneof![
        20 => 0..300_usize,
        10 => 300..5000_usize,
        5 => 5000..70_000_usize,
        1 => Just((4 << 20) - 5000),
        1 => Just(5 << 20),
    ]
    .prop_map(|len| if cfg!(miri) { len % 40_000 } else { len })
}

fn ops() -> impl Strategy<Value = Vec<HeapOp>> {
    let op = prop_oneof![
        6 => (0..8_u64, len()).prop_map(|(hash, len)| HeapOp::Allocate { hash, len }),
        4 => any::<usize>().prop_map(HeapOp::Drop),
        1 => any::<usize>().prop_map(HeapOp::Clone),
        1 => (any::<usize>(), len()).prop_map(|(n, len)| HeapOp::Resize { n, len }),
        1 => Just(HeapOp::Release),
        1 => Just(HeapOp::Compare),
    ];
    proptest::collection::vec(op, 1..MAX_OPS)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: CASES, failure_persistence: None, ..ProptestConfig::default() })]

    /// Blocks keep their bytes until the last reference is gone and do not overlap, and the figures are
    /// those of the blocks in use.
    #[test]
    fn heap_equals_a_list_of_blocks(ops in ops(), drops_heap_first in any::<bool>()) {
        let mut heap = ModelHeap::new();
        for op in ops {
            heap.apply(op);
        }
        heap.finish(drops_heap_first);
    }

    /// The map has the same runs of pages as a set of numbers, and forgets only spare pages.
    #[test]
    fn page_map_is_a_set_of_pages(
        ops in proptest::collection::vec((any::<bool>(), 1..80_usize, any::<prop::sample::Index>()), 1..100),
        unit in prop_oneof![Just(1_usize), Just(4), Just(16)],
        start in 0..PAGES,
    ) {
        let mut map = PageMap::new(unit, start);
        let start = start / unit * unit;
        let (mut used, mut resident) = (vec![false; PAGES], vec![false; PAGES]);
        used[0] = true;
        resident[..unit].fill(true);
        let mut runs: Vec<(usize, usize)> = Vec::new();
        for (takes, count, pick) in ops {
            if takes || runs.is_empty() {
                let is_free = |&n: &usize| !used[n..n + count].contains(&true);
                let first = (start..=PAGES - count).find(is_free);
                let first = first.or_else(|| (0..=PAGES - count).find(is_free));
                let before = resident.iter().filter(|&&bit| bit).count();
                if let Some(first) = first {
                    used[first..first + count].fill(true);
                    let end = (first + count).next_multiple_of(unit);
                    resident[first / unit * unit..end].fill(true);
                    runs.push((first, count));
                }
                let added = resident.iter().filter(|&&bit| bit).count() - before;
                let taken = if map.may_have(count) { map.take(count) } else { None };
                prop_assert_eq!(taken, first.map(|first| (first, added)));
            } else {
                let (first, count) = runs.swap_remove(pick.index(runs.len()));
                used[first..first + count].fill(false);
                map.free(first, count);
            }
            prop_assert_eq!(map.is_unused(), runs.is_empty());
            if count % 7 == 0 {
                let mut from = 0;
                while let Some((first, count)) = map.forget_spare(from) {
                    prop_assert!(!used[first..first + count].contains(&true));
                    prop_assert!(!resident[first..first + count].contains(&false));
                    prop_assert!(first % unit == 0 && count % unit == 0);
                    resident[first..first + count].fill(false);
                    from = first + count;
                }
                let whole = |at: &usize| (*at..at + unit).all(|n| resident[n] && !used[n]);
                prop_assert_eq!((0..PAGES).step_by(unit).find(whole), None, "spare pages are left");
            }
            prop_assert_eq!(map.resident(), resident.iter().filter(|&&bit| bit).count());
        }
    }
}

/// Segments begin at multiples of their size, so the same pages of several segments would compete for the
/// same entries of the TLB.
#[cfg_attr(miri, ignore = "without mappings, segments begin anywhere")]
#[test]
fn arenas_use_different_pages_of_their_segments_first() {
    let heap = Heap::new(128 << 20, 16);
    let first_page = |hash| block(&heap, hash, 100, 0).as_ptr().addr() % SEGMENT / PAGE;
    let pages: BTreeSet<usize> = (0..16).map(first_page).collect();
    assert_eq!(pages.len(), 16);
    // A TLB may tell 256 neighbors apart. Each eighth of them is used.
    let sets: BTreeSet<usize> = pages.iter().map(|page| page % 256 / 32).collect();
    assert_eq!(sets.len(), 8, "{pages:?}");
}

#[test]
fn pointer_takes_one_word_also_in_an_option() {
    assert_eq!(size_of::<Option<SharedBytes>>(), size_of::<usize>());
}

#[test]
fn only_unshared_bytes_are_written() {
    let heap = heap();
    for mut bytes in [SharedBytes::zeros(3), block(&heap, 0, 3, 1)] {
        bytes.get_mut().expect("unshared").copy_from_slice(b"one");
        let other = bytes.clone();
        assert_eq!(bytes.get_mut(), None);
        assert_eq!((&*bytes, &*other), (&b"one"[..], &b"one"[..]));
    }
}

#[test]
fn empty_bytes_are_allowed() {
    assert!(SharedBytes::zeros(0).is_empty());
    assert!(SharedBytes::from(&[][..]).is_empty());
    assert!(block(&heap(), 0, 0, 0).is_empty());
}

/// A length from 4 GiB on does not fit in the header. Only the pages that are written take memory.
#[cfg(all(target_pointer_width = "64", not(miri)))]
#[test]
fn block_of_4_gib_and_more_has_its_length() {
    let heap = heap();
    let long = heap.arenas.last().expect("an arena for long blocks");
    for len in [(1 << 32) - 2, (1 << 32) - 1, (1 << 32) + 5] {
        let vacant = long.state.lock().arena.allocate(SharedBytes::HEADER + len);
        let Some(vacant) = vacant else {
            eprintln!("the system has no {len} bytes");
            return;
        };
        let bytes = vacant.into_bytes(len);
        assert_eq!(bytes.len(), len);
        assert_eq!((bytes[0], bytes[len - 1]), (0, 0));
        drop(bytes);
        heap.release_free_pages();
        assert_eq!(heap.resident(), 0);
    }
}

#[test]
fn thread_uses_the_block_of_an_entry_that_left_for_the_next_of_its_size() {
    let heap = heap();
    let first = block(&heap, 1, 100, 1);
    let address = first.as_ptr();
    heap.recycle(first);
    let next = block(&heap, 2, 102, 2);
    assert_eq!(next.as_ptr(), address);
    assert!(heap.owns(2, &next), "whatever arena the hash chooses");
    let held = next.clone();
    heap.recycle(next);
    let other = block(&heap, 3, 100, 3);
    assert_ne!(other.as_ptr(), address, "the block is still in use");
    assert!(held.iter().all(|&byte| byte == 2));
    heap.recycle(other);
    let longer = block(&heap, 3, 300, 4);
    assert!(longer.len() == 300 && longer.iter().all(|&byte| byte == 4));
    heap.recycle(longer);
    drop(held);
    heap.release_free_pages();
    assert_eq!(heap.resident(), 0, "no spare block is kept");
}

#[test]
fn only_a_block_of_this_heap_is_owned() {
    let (heap, other) = (heap(), heap());
    assert!(heap.owns(1, &block(&heap, 1, 50, 0)));
    assert!(!heap.owns(1, &block(&other, 1, 50, 0)));
    assert!(!heap.owns(1, &SharedBytes::zeros(50)));
}

#[test]
fn blocks_outlive_their_heap() {
    let long = if cfg!(miri) { 5000 } else { 5 << 20 };
    for lens in [&[10, 3000, 70_000][..], &[long], &[40]] {
        let heap = heap();
        let blocks: Vec<_> = lens.iter().map(|&len| block(&heap, 3, len, 7)).collect();
        drop(block(&heap, 3, 100, 0));
        drop(heap);
        let threads = blocks
            .into_iter()
            .map(|block| thread::spawn(move || assert!(block.iter().all(|&byte| byte == 7))));
        for thread in threads.collect::<Vec<_>>() {
            thread.join().expect("the bytes are unchanged");
        }
    }
}

#[test]
fn threads_drop_blocks_while_their_heap_is_dropped() {
    let rounds = if cfg!(miri) { 3 } else { 300 };
    for _ in 0..rounds {
        let heap = heap();
        let blocks: Vec<_> = (0..40).map(|n| block(&heap, n, 100, n as u8)).collect();
        let [front, back] = [&blocks[..20], &blocks[20..]].map(<[SharedBytes]>::to_vec);
        drop(blocks);
        let threads = [front, back].map(|blocks| thread::spawn(move || drop(blocks)));
        drop(heap);
        for thread in threads {
            thread.join().expect("no panic");
        }
    }
}

#[test]
fn threads_allocate_and_drop_blocks_of_each_other() {
    let (threads, count) = if cfg!(miri) { (2, 40) } else { (4, 5000) };
    let heap = heap();
    let (to, from) = crossbeam_channel::bounded::<(SharedBytes, u8)>(100);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            let (heap, to, from) = (&heap, to.clone(), from.clone());
            scope.spawn(move || {
                for n in 0..count {
                    let new = block(heap, n, (n as usize * 37) % 3000, n as u8);
                    if let Err(full) = to.try_send((new, n as u8)) {
                        drop(full);
                    }
                    if let Ok((old, fill)) = from.try_recv() {
                        assert!(old.iter().all(|&byte| byte == fill));
                    }
                }
            });
        }
    });
    drop((to, from));
    assert_eq!(settled(&heap).blocks, 0);
}

/// All entries of a store are small, and then all are long. The room of the small ones must not stay
/// taken until another small one comes.
#[cfg_attr(miri, ignore = "slow, because it needs many blocks")]
#[test]
fn growth_of_one_arena_collects_the_others() {
    let heap = heap();
    // Both take about the same memory.
    let small: Vec<_> = (0..20_000).map(|n| block(&heap, n, 100, 0)).collect();
    let before = heap.resident();
    drop(small);
    let long: Vec<_> = (0..40).map(|n| block(&heap, n, 50_000, 0)).collect();
    let figures: Vec<_> = heap
        .arenas
        .iter()
        .map(|shared| shared.state.lock().arena.figures)
        .collect();
    assert!(
        figures[..figures.len() - 1]
            .iter()
            .all(|figures| figures.blocks == 0)
    );
    assert!(
        heap.resident() < before + 100_000,
        "{} after {before}",
        heap.resident()
    );
    drop(long);
}

#[cfg_attr(miri, ignore = "slow, because it needs many blocks")]
#[test]
fn gaps_of_half_empty_slabs_count_as_excess() {
    let heap = heap();
    let count = 100_000;
    let mut blocks: Vec<_> = (0..count).map(|_| block(&heap, 0, 100, 0)).collect();
    assert_eq!(heap.excess().load(Ordering::Relaxed), 0);
    let mut n = 0;
    blocks.retain(|_| {
        n += 1;
        n % 10 == 0
    });
    settled(&heap);
    let excess = heap.excess().load(Ordering::Relaxed);
    let free = count * 9 / 10 * classes::rounded(SharedBytes::HEADER + 100) as u64;
    // The blocks left over at the ends of the last slabs are free, too, so it is not exact.
    let allowed = heap.allowed_gaps as u64 + NOTED;
    assert!(excess + allowed >= free, "{excess} of {free} free bytes");
    drop(blocks);
    settled(&heap);
    assert_eq!(heap.excess().load(Ordering::Relaxed), 0);
}

/// Small tables lie on malloc, and larger ones in mappings, which grow at other addresses.
#[test]
fn table_keeps_its_contents_while_it_grows_and_shrinks() {
    let mut table = super::TableVec::new_in(super::TableMemory);
    let numbers = 0..300_000_u64;
    numbers.clone().for_each(|number| table.push(number));
    assert!(numbers.eq(table.iter().copied()));
    for len in [100_000, 5000, 1024, 1000, 10] {
        table.truncate(len);
        let before = table.as_ptr();
        table.shrink_to_fit();
        assert!((0..len as u64).eq(table.iter().copied()));
        let is_mapped = cfg!(all(unix, not(miri))) && len >= 1024;
        assert!(
            !is_mapped || table.as_ptr() == before,
            "no second table is mapped"
        );
    }
    table.extend(10..5000);
    assert!((0..5000).eq(table.iter().copied()));
}
