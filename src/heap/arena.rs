//! The blocks of one arena: slabs of small blocks, and runs of pages for longer ones.
//!
//! This file computes with numbers only. A block is the id of a segment and an offset in it.

use super::classes::{CLASSES, PAGE, class_of, rounded};
use super::pages::{PAGES, PageMap};
use super::raw::{Mapping, SEGMENT, Vacant, system_page};
use super::release::{Place, Release};
use super::{TableMemory, TableVec};
use crate::sync::Arc;

/// The segments of an arena, and the blocks in them.
pub(super) struct Arena {
    /// Where dropped blocks go.
    release: Arc<Release<Mapping>>,
    /// By id. `None` where a segment was unmapped.
    segments: Vec<Option<Segment>>,
    /// The first slab with free blocks of each class, [`NONE`] if there is none.
    open: [u32; CLASSES.len()],
    pub(super) figures: Figures,
    /// The spare pages that are kept for later blocks, at most.
    pub(super) max_spare: usize,
    /// The page of each segment that is used first.
    start: usize,
}

/// The memory of an arena.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Figures {
    /// The blocks in use.
    pub(super) blocks: usize,
    /// Their bytes, rounded to their class or to pages.
    pub(super) bytes: usize,
    /// The used pages, without the heads of segments.
    pub(super) used_pages: usize,
    /// The resident pages: used ones, spare ones, and the heads of segments.
    pub(super) resident_pages: usize,
}

impl Figures {
    /// The free bytes in slabs.
    pub(super) fn gaps(&self) -> usize {
        self.used_pages * PAGE - self.bytes
    }

    /// The spare pages, and the heads of segments.
    fn spare_pages(&self) -> usize {
        self.resident_pages - self.used_pages
    }
}

struct Segment {
    mapping: Mapping,
    pages: PageMap,
    /// By page.
    spans: TableVec<Span>,
}

/// A slab, or the pages of one long block. The data are those of its first page.
#[derive(Clone, Copy)]
struct Span {
    /// The free blocks of a slab, one bit each.
    free: u128,
    /// The neighbors in the list of slabs with free blocks.
    prev: u32,
    next: u32,
    /// The first page. It is valid in all pages of the span.
    first: u16,
    /// The class of a slab, or [`LONG`].
    class: u16,
    /// The pages of a long block.
    pages: u32,
}

/// The pages between the starts of two arenas: about the golden section of 256 pages, which spreads any number
/// of them evenly over the sets of a TLB.
const START_STEP: usize = 157;

/// The class of a block that has pages of its own.
const LONG: u16 = u16::MAX;

/// The number of no slab. A slab's number is the id of its segment times [`PAGES`], plus its first
/// page.
const NONE: u32 = u32::MAX;

const NO_SPAN: Span = Span {
    free: 0,
    prev: NONE,
    next: NONE,
    first: 0,
    class: LONG,
    pages: 0,
};

impl Arena {
    /// The arenas of a heap have different numbers. Segments begin at multiples of [`SEGMENT`], so pages at the
    /// same place of several segments compete for the same entries of the processor's TLB. So each arena begins
    /// at another place.
    pub(super) fn new(number: usize, max_spare: usize, release: Arc<Release<Mapping>>) -> Arena {
        Arena {
            release,
            segments: Vec::new(),
            open: [NONE; CLASSES.len()],
            figures: Figures::default(),
            max_spare,
            start: number.wrapping_mul(START_STEP) % PAGES,
        }
    }

    /// A block of `size` bytes, header included. `None` if the system has no memory left.
    #[inline]
    pub(super) fn allocate(&mut self, size: usize) -> Option<Vacant> {
        let Some(class) = class_of(size) else {
            return self.allocate_long(size);
        };
        let slab = match self.open[class] {
            NONE => self.new_slab(class)?,
            slab => slab,
        };
        let size = CLASSES[class].size;
        let segment = self.segments[slab as usize / PAGES].as_mut()?;
        let page = slab as usize % PAGES;
        let span = &mut segment.spans[page];
        let index = span.free.trailing_zeros() as usize;
        span.free &= span.free - 1;
        let vacant = segment.mapping.vacant(page * PAGE + index * size, size);
        if span.free == 0 {
            let next = span.next;
            self.open[class] = next;
            self.set_prev(next, NONE);
        }
        self.figures.blocks += 1;
        self.figures.bytes += size;
        Some(vacant)
    }

    /// A slab with all of its blocks free, first in the list of its class, which was empty.
    fn new_slab(&mut self, class: usize) -> Option<u32> {
        let pages = CLASSES[class].pages;
        let slab = self.take_pages(pages)?;
        let (segment, page) = self.place(slab)?;
        for span in &mut segment.spans[page..page + pages] {
            span.first = page as u16;
        }
        segment.spans[page] = Span {
            free: all_free(class),
            first: page as u16,
            class: class as u16,
            ..NO_SPAN
        };
        self.open[class] = slab;
        Some(slab)
    }

    fn allocate_long(&mut self, size: usize) -> Option<Vacant> {
        let size = rounded(size);
        let pages = size / PAGE;
        let run = if pages < PAGES {
            self.take_pages(pages)?
        } else {
            // The segment holds this block only.
            let id = self.add_segment(size.checked_add(PAGE)?)?;
            self.figures.used_pages += pages;
            self.figures.resident_pages += pages;
            id * PAGES as u32 + 1
        };
        let (segment, page) = self.place(run)?;
        segment.spans[page] = Span {
            first: page as u16,
            pages: u32::try_from(pages).ok()?,
            ..NO_SPAN
        };
        let vacant = segment.mapping.vacant(page * PAGE, size);
        self.figures.blocks += 1;
        self.figures.bytes += size;
        Some(vacant)
    }

    /// Uses a run of pages in the first segment that has one.
    fn take_pages(&mut self, count: usize) -> Option<u32> {
        let mut id = 0;
        let (first, resident) = loop {
            if id == self.segments.len() {
                id = self.add_segment(SEGMENT)? as usize;
            }
            let pages = self.segments[id].as_mut().map(|segment| &mut segment.pages);
            let taken = pages.filter(|pages| pages.may_have(count));
            if let Some(taken) = taken.and_then(|pages| pages.take(count)) {
                break taken;
            }
            id += 1;
        };
        self.figures.used_pages += count;
        self.figures.resident_pages += resident;
        Some((id * PAGES + first) as u32)
    }

    /// Maps a segment of at least `len` bytes. One that is longer than [`SEGMENT`] is for one block.
    fn add_segment(&mut self, len: usize) -> Option<u32> {
        let unused = self.segments.iter().position(Option::is_none);
        let id = unused.unwrap_or(self.segments.len());
        if id >= NONE as usize / PAGES {
            return None;
        }
        let mut segment = Segment {
            mapping: Mapping::new(len, &self.release, id as u32)?,
            pages: PageMap::new(system_page() / PAGE, self.start),
            spans: TableVec::new_in(TableMemory),
        };
        let spans = if len > SEGMENT { 2 } else { PAGES };
        segment.spans.resize(spans, NO_SPAN);
        if segment.is_for_one() {
            segment.pages.close();
        }
        self.figures.resident_pages += segment.pages.resident();
        match self.segments.get_mut(id) {
            Some(place) => *place = Some(segment),
            None => self.segments.push(Some(segment)),
        }
        Some(id as u32)
    }

    /// Frees up to `at_most` blocks that came out of the free list, from `next` on. Returns the first of
    /// the others. Segments that are not needed any more are added to `unmapped`, to be dropped
    /// without the lock.
    #[inline]
    pub(super) fn free(
        &mut self,
        mut next: Option<Place>,
        at_most: usize,
        unmapped: &mut Vec<Mapping>,
    ) -> Option<Place> {
        for _ in 0..at_most {
            next = self.free_block(next?, unmapped);
        }
        next
    }

    /// Frees one block. Returns the next one in the list.
    fn free_block(&mut self, block: Place, unmapped: &mut Vec<Mapping>) -> Option<Place> {
        let (id, offset) = (block.segment, block.offset as usize);
        let Some(segment) = self.segments.get_mut(id as usize).and_then(Option::as_mut) else {
            debug_assert!(false, "no segment {id}");
            return None;
        };
        let listed = Place::from_bits(segment.mapping.link(offset));
        let first = usize::from(segment.spans[offset / PAGE].first);
        let span = &mut segment.spans[first];
        let slab = id * PAGES as u32 + first as u32;
        self.figures.blocks -= 1;
        if span.class == LONG {
            let pages = span.pages as usize;
            self.figures.bytes -= pages * PAGE;
            self.free_pages(slab, pages, unmapped);
            return listed;
        }
        let class = usize::from(span.class);
        let size = CLASSES[class].size;
        let bit = 1 << ((offset - first * PAGE) / size);
        debug_assert!(span.free & bit == 0, "a block is freed twice");
        let was_full = span.free == 0;
        span.free |= bit;
        self.figures.bytes -= size;
        if span.free == all_free(class) {
            if !was_full {
                self.unlink(slab, class);
            }
            self.free_pages(slab, CLASSES[class].pages, unmapped);
        } else if was_full {
            // The slab that was full last comes first. So new blocks go to slabs that are almost full,
            // and those with few blocks can become empty.
            let next = self.open[class];
            (span.prev, span.next) = (NONE, next);
            self.open[class] = slab;
            self.set_prev(next, slab);
        }
        listed
    }

    fn free_pages(&mut self, run: u32, count: usize, unmapped: &mut Vec<Mapping>) {
        let id = run as usize / PAGES;
        let Some(segment) = self.segments[id].as_mut() else {
            return;
        };
        self.figures.used_pages -= count;
        if segment.is_for_one() {
            self.figures.resident_pages -= count;
            self.unmap(id, unmapped);
            return;
        }
        segment.pages.free(run as usize % PAGES, count);
        // A value as long as this one may come next.
        if self.figures.spare_pages() > self.max_spare.max(count) {
            self.release(unmapped);
        }
    }

    /// Returns all spare pages to the system.
    pub(super) fn release(&mut self, unmapped: &mut Vec<Mapping>) {
        for id in 0..self.segments.len() {
            let segment = self.segments[id].as_mut();
            // A segment for one block is unmapped when that block is freed.
            let Some(segment) = segment.filter(|segment| !segment.is_for_one()) else {
                continue;
            };
            if segment.pages.is_unused() {
                self.unmap(id, unmapped);
                continue;
            }
            let mut from = 0;
            while let Some((first, count)) = segment.pages.forget_spare(from) {
                segment.mapping.decommit(first * PAGE, count * PAGE);
                self.figures.resident_pages -= count;
                from = first + count;
            }
        }
        while let Some(None) = self.segments.last() {
            self.segments.pop();
        }
    }

    fn unmap(&mut self, id: usize, unmapped: &mut Vec<Mapping>) {
        if let Some(segment) = self.segments[id].take() {
            self.figures.resident_pages -= segment.pages.resident();
            unmapped.push(segment.mapping);
        }
    }

    /// All segments, for the drop of the arena.
    pub(super) fn take_segments(&mut self) -> Vec<Mapping> {
        let segments = std::mem::take(&mut self.segments);
        let segments = segments.into_iter().flatten();
        segments.map(|segment| segment.mapping).collect()
    }

    /// The segment of a span, and the span's first page.
    fn place(&mut self, span: u32) -> Option<(&mut Segment, usize)> {
        let segment = self.segments.get_mut(span as usize / PAGES)?.as_mut()?;
        Some((segment, span as usize % PAGES))
    }

    fn unlink(&mut self, slab: u32, class: usize) {
        let Some((segment, page)) = self.place(slab) else {
            return;
        };
        let Span { prev, next, .. } = segment.spans[page];
        self.set_prev(next, prev);
        match self.place(prev) {
            Some((segment, page)) => segment.spans[page].next = next,
            None => self.open[class] = next,
        }
    }

    fn set_prev(&mut self, slab: u32, prev: u32) {
        if let Some((segment, page)) = self.place(slab) {
            segment.spans[page].prev = prev;
        }
    }
}

impl Segment {
    /// Whether the segment is for one block, which is too long for a run of pages.
    fn is_for_one(&self) -> bool {
        self.spans.len() < PAGES
    }
}

/// The free blocks of a slab that has no other.
fn all_free(class: usize) -> u128 {
    u128::MAX >> (u128::BITS - CLASSES[class].blocks)
}
