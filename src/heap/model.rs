//! A heap beside a naive model: the blocks in use, by address. A test and a fuzz target use it.

use std::collections::BTreeMap;

use super::arena::Figures;
use super::classes::{PAGE, rounded};
use super::raw::system_page;
use super::{Heap, SharedBytes};

/// A step of a test. Numbers choose among what there is.
#[derive(Clone, Copy, Debug)]
pub(crate) enum HeapOp {
    Allocate {
        hash: u64,
        len: usize,
    },
    Clone(usize),
    Drop(usize),
    /// A block of another length in place of an older one.
    Resize {
        n: usize,
        len: usize,
    },
    /// Returns free pages to the system, as a trim does.
    Release,
    /// Frees what was dropped, and compares the figures.
    Compare,
}

/// A heap, and what it has to contain.
pub(crate) struct ModelHeap {
    heap: Heap,
    held: Vec<HeldBlock>,
    /// By address.
    blocks: BTreeMap<usize, ModelBlock>,
    /// The sum of the blocks' sizes.
    bytes: usize,
    steps: usize,
}

struct HeldBlock {
    block: SharedBytes,
    hash: u64,
    /// The value of all bytes.
    fill: u8,
}

struct ModelBlock {
    refs: usize,
    /// Header included, and rounded.
    size: usize,
}

impl ModelHeap {
    pub(crate) fn new() -> ModelHeap {
        ModelHeap {
            heap: Heap::new(32 << 20, 4),
            held: Vec::new(),
            blocks: BTreeMap::new(),
            bytes: 0,
            steps: 0,
        }
    }

    /// # Panics
    ///
    /// If the heap differs from the model.
    pub(crate) fn apply(&mut self, op: HeapOp) {
        self.steps += 1;
        let count = self.held.len();
        match op {
            HeapOp::Allocate { hash, len } => self.allocate(hash, len),
            HeapOp::Clone(n) if count > 0 => self.clone_block(n % count),
            HeapOp::Drop(n) if count > 0 => self.drop_block(n % count),
            HeapOp::Resize { n, len } if count > 0 => {
                let hash = self.held[n % count].hash;
                self.allocate(hash, len);
                self.drop_block(n % count);
            }
            HeapOp::Release => {
                self.heap.release_free_pages();
                let (used, resident) = (self.figures().used_pages * PAGE, self.heap.resident());
                // A used page keeps the head of its segment, and what shares a page of the system.
                let most = used * (3 * (system_page() / PAGE) - 1);
                assert!(resident <= most, "{resident} bytes for {used}");
            }
            HeapOp::Compare => self.compare(),
            HeapOp::Clone(_) | HeapOp::Drop(_) | HeapOp::Resize { .. } => {}
        }
    }

    /// Drops all blocks and the heap, in this order or the other.
    pub(crate) fn finish(mut self, drops_heap_first: bool) {
        self.compare();
        if drops_heap_first {
            self.heap = Heap::new(1 << 20, 1);
        }
        while !self.held.is_empty() {
            self.drop_block(0);
        }
        assert!(self.blocks.is_empty());
        if !drops_heap_first {
            self.heap.release_free_pages();
            assert_eq!(self.heap.resident(), 0);
        }
    }

    fn allocate(&mut self, hash: u64, len: usize) {
        let fill = self.steps as u8;
        let value = vec![fill; len];
        let (front, back) = value.split_at(len / 3);
        let block = self.heap.allocate(hash, [front, back]);
        let block = block.expect("there is memory");
        assert!(self.heap.owns(hash, &block));
        let size = rounded(SharedBytes::HEADER + len);
        let at = address(&block);
        let before = self.blocks.range(..=at).next_back();
        assert!(before.is_none_or(|(start, block)| start + block.size <= at));
        let after = self.blocks.range(at..).next();
        assert!(after.is_none_or(|(&start, _)| at + size <= start));
        self.blocks.insert(at, ModelBlock { refs: 1, size });
        self.bytes += size;
        self.held.push(HeldBlock { block, hash, fill });
    }

    fn clone_block(&mut self, n: usize) {
        let HeldBlock { block, hash, fill } = &self.held[n];
        let at = address(block);
        self.blocks.get_mut(&at).expect("it is in use").refs += 1;
        self.held.push(HeldBlock {
            block: block.clone(),
            hash: *hash,
            fill: *fill,
        });
    }

    fn drop_block(&mut self, n: usize) {
        let HeldBlock { block, fill, .. } = self.held.swap_remove(n);
        assert!(block.iter().all(|&byte| byte == fill));
        let at = address(&block);
        let known = self.blocks.get_mut(&at).expect("it is in use");
        known.refs -= 1;
        if known.refs == 0 {
            self.bytes -= known.size;
            self.blocks.remove(&at);
        }
    }

    fn compare(&self) {
        let figures = self.figures();
        assert_eq!(figures.blocks, self.blocks.len());
        assert_eq!(figures.bytes, self.bytes);
        assert!(figures.used_pages * PAGE >= figures.bytes);
        assert!(figures.resident_pages >= figures.used_pages);
    }

    fn figures(&self) -> Figures {
        settled(&self.heap)
    }
}

/// Frees the blocks that were dropped, and returns the sums of all arenas' figures.
pub(super) fn settled(heap: &Heap) -> Figures {
    let mut sum = Figures::default();
    for shared in &heap.arenas {
        heap.collect(shared, false);
        let figures = shared.state.lock().arena.figures;
        sum.blocks += figures.blocks;
        sum.bytes += figures.bytes;
        sum.used_pages += figures.used_pages;
        sum.resident_pages += figures.resident_pages;
    }
    sum
}

fn address(block: &SharedBytes) -> usize {
    block.as_ptr().addr()
}
