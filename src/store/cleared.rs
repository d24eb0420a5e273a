//! What a cleared store held, and how its memory gets back to the system.

use std::cmp::Reverse;

use super::entries::{Cell, Entries};
use super::iter::Entry;
use super::shard::Emptied;
use super::{aside, charge};
use crate::shared_bytes::SharedBytes;

/// All entries of a store that was cleared.
///
/// Dropping them as they come would leave the resident set almost as it was: see
/// [`aside`](super::aside). So the lowest entries go first. They make room for the blocks that this
/// thread keeps aside, which may be anywhere, and after that no block of the rest is kept. It takes
/// less than a millisecond. What other threads have aside stays where it is.
#[derive(Debug)]
pub(crate) struct Cleared {
    shards: Vec<Emptied>,
    /// What the entries were charged.
    bytes: u64,
}

impl Cleared {
    pub(super) fn new(shards: Vec<Emptied>, bytes: u64) -> Cleared {
        Cleared { shards, bytes }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = Entry> {
        let cells = self.shards.iter().flat_map(|shard| shard.entries.iter());
        cells.map(Cell::detached)
    }
}

impl Drop for Cleared {
    fn drop(&mut self) {
        if self.bytes < WORTH_IT {
            return;
        }
        let mut shards = std::mem::take(&mut self.shards);
        let entries = shards
            .iter_mut()
            .map(|shard| Sorted::new(&mut shard.entries));
        let mut entries: Vec<Sorted> = entries.collect();
        let highest = entries.iter().filter_map(Sorted::highest).max();
        let mut ends = aside::behind(highest.unwrap_or_default());
        drop_lowest(&mut entries);
        let gaps = 2 * ROOM + usize::try_from(self.bytes / 4).unwrap_or(usize::MAX / 2);
        drop(aside::keep_the_lowest(gaps));
        drop((entries, shards));
        // The one behind all others goes last, and everything joins the heap's end with it.
        let end = ends.pop();
        drop(ends);
        drop(end);
    }
}

/// The entries of a shard, from the highest address to the lowest.
struct Sorted(Vec<SharedBytes>);

impl Sorted {
    fn new(entries: &mut Entries) -> Sorted {
        let mut all: Vec<SharedBytes> = entries.drain().collect();
        all.sort_unstable_by_key(|entry| Reverse(entry.address()));
        Sorted(all)
    }

    fn lowest(&self) -> Option<usize> {
        self.0.last().map(SharedBytes::address)
    }

    fn highest(&self) -> Option<usize> {
        self.0.first().map(SharedBytes::address)
    }

    /// Drops the entries below `limit`, and tells how many bytes these were.
    fn drop_below(&mut self, limit: usize) -> usize {
        let kept = self.0.partition_point(|entry| entry.address() >= limit);
        let dropped = self.0.drain(kept..);
        dropped.map(|entry| charge::block(entry.len())).sum()
    }
}

/// Drops the entries at the lowest addresses, to make room there.
fn drop_lowest(entries: &mut [Sorted]) {
    let lowest = entries.iter().filter_map(Sorted::lowest).min();
    let (mut limit, mut span, mut dropped) = (lowest.unwrap_or(usize::MAX), ROOM, 0);
    while dropped < ROOM && limit < usize::MAX {
        limit = limit.saturating_add(span);
        span = span.saturating_mul(2);
        let bytes = entries.iter_mut().map(|entries| entries.drop_below(limit));
        dropped += bytes.sum::<usize>();
    }
}

/// Fewer bytes leave less behind than they are worth.
const WORTH_IT: u64 = 2 << 20;

/// Twelve times what is kept aside: there may be tables and other blocks between the entries.
const ROOM: usize = 3 << 20;
