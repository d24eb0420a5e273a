//! The way of dropped blocks back to their arena: a stack that any thread can push to.
//!
//! A push is the last access of a thread to the arena. So the arena can be dropped while other threads
//! hold blocks of it: the drop closes the list, and from then on the blocks are counted instead of
//! pushed. The thread that drops the last one unmaps the segments.

use crate::sync::Mutex;
use crate::sync::atomic::{AtomicI64, AtomicU64, Ordering};

/// A block, by the id of its segment and its offset there. The offset is never 0, because a segment
/// begins with its head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) segment: u32,
    pub(crate) offset: u32,
}

impl Place {
    /// As one number, which is not 0.
    fn bits(self) -> u64 {
        u64::from(self.segment) << 32 | u64::from(self.offset)
    }

    /// The place that a number stands for; `None` for 0.
    pub(crate) fn from_bits(bits: u64) -> Option<Place> {
        (bits != 0).then_some(Place {
            segment: (bits >> 32) as u32,
            offset: bits as u32,
        })
    }
}

/// The blocks that are to be freed in an arena.
#[derive(Debug, Default)]
pub(crate) struct FreeList {
    /// The block that was pushed last. Its link is the number of the next one.
    head: AtomicU64,
    /// The blocks in use, once [`settle`](Self::settle) has added their number to a closed list. Before that,
    /// minus the number of blocks that were dropped since the list was closed.
    orphans: AtomicI64,
}

/// The head of a closed list.
const CLOSED: u64 = u64::MAX;

/// Another thread may deallocate the list while `push` returns. Rust allows that for a parameter that
/// consists of atomics only.
#[cfg(not(larder_loom))]
const _: () = assert!(size_of::<FreeList>() == 16);

impl FreeList {
    /// Adds a block to the list, or counts it if the list is closed. `link` stores the block's link,
    /// and is called again if another thread was faster. True if it was the last block of a closed list.
    pub(crate) fn push(&self, block: Place, link: impl Fn(u64)) -> bool {
        let mut head = self.head.load(Ordering::Relaxed);
        while head != CLOSED {
            link(head);
            let (new, release) = (block.bits(), Ordering::Release);
            match (self.head).compare_exchange_weak(head, new, release, Ordering::Relaxed) {
                Ok(_) => return false,
                Err(other) => head = other,
            }
        }
        self.orphans.fetch_sub(1, Ordering::AcqRel) == 1
    }

    /// Takes all blocks out of the list. Returns the first; each has the link to the next.
    #[inline]
    pub(crate) fn take(&self) -> Option<Place> {
        // Most often the list is empty, and reading does not take the cache line from other cores.
        match self.head.load(Ordering::Relaxed) {
            0 => None,
            _ => Place::from_bits(self.head.swap(0, Ordering::Acquire)),
        }
    }

    /// Takes the last blocks out of the list, and closes it. Then [`settle`](Self::settle) follows.
    pub(crate) fn close(&self) -> Option<Place> {
        Place::from_bits(self.head.swap(CLOSED, Ordering::AcqRel))
    }

    /// Adds the blocks in use, those that were dropped after `close` included. True if there is none.
    pub(crate) fn settle(&self, in_use: usize) -> bool {
        let in_use = in_use as i64;
        self.orphans.fetch_add(in_use, Ordering::AcqRel) + in_use == 0
    }
}

/// The part of an arena that its blocks can reach: the list, and the segments of an arena that was
/// dropped.
#[derive(Debug)]
pub(super) struct Release<S> {
    pub(super) freed: FreeList,
    orphaned: Mutex<Vec<S>>,
}

impl<S> Default for Release<S> {
    fn default() -> Release<S> {
        Release {
            freed: FreeList::default(),
            orphaned: Mutex::new(Vec::new()),
        }
    }
}

impl<S> Release<S> {
    /// Keeps the segments of a closed list until `in_use` blocks are dropped, those after the closing
    /// included.
    pub(super) fn settle(&self, in_use: usize, segments: Vec<S>) {
        *self.orphaned.lock() = segments;
        if self.freed.settle(in_use) {
            drop(self.take_orphaned());
        }
    }

    /// The segments of a closed list whose last block was dropped.
    pub(super) fn take_orphaned(&self) -> Vec<S> {
        std::mem::take(&mut *self.orphaned.lock())
    }
}
