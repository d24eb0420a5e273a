//! What a cleared store held, and how its memory gets back to the system.

use super::aside;
use super::iter::Entry;
use super::shard::Emptied;

/// All entries of a store that was cleared.
///
/// Dropping them as they come would leave the resident set almost as it was: see
/// [`aside`](super::aside). So the lowest entries go first. They make room for the blocks that this
/// thread keeps aside, which may be anywhere, and after that no block of the rest is kept.
/// What other threads have aside stays where it is.
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
        let slots = self.shards.iter().flat_map(|shard| shard.slab.iter());
        slots.map(|(_, entry)| entry.detached())
    }
}

impl Drop for Cleared {
    fn drop(&mut self) {
        if self.bytes < WORTH_IT {
            return;
        }
        let mut shards = std::mem::take(&mut self.shards);
        for shard in &mut shards {
            shard.slab.sort_by_address();
        }
        let highest = shards.iter().filter_map(|shard| shard.slab.highest()).max();
        let mut ends = aside::behind(highest.unwrap_or_default());
        drop_lowest(&mut shards);
        let gaps = 2 * ROOM + usize::try_from(self.bytes / 4).unwrap_or(usize::MAX / 2);
        drop(aside::keep_the_lowest(gaps));
        drop(shards);
        // The one behind all others goes last, and everything joins the heap's end with it.
        let end = ends.pop();
        drop(ends);
        drop(end);
    }
}

/// Drops the entries at the lowest addresses, to make room there.
fn drop_lowest(shards: &mut [Emptied]) {
    let lowest = shards.iter().filter_map(|shard| shard.slab.lowest()).min();
    let (mut limit, mut span, mut dropped) = (lowest.unwrap_or(usize::MAX), ROOM, 0);
    while dropped < ROOM && limit < usize::MAX {
        limit = limit.saturating_add(span);
        span = span.saturating_mul(2);
        let bytes = shards.iter_mut().map(|shard| shard.slab.drop_below(limit));
        dropped += bytes.sum::<usize>();
    }
}

/// Fewer bytes leave less behind than they are worth.
const WORTH_IT: u64 = 2 << 20;

/// Twelve times what is kept aside: there may be tables and other blocks between the entries.
const ROOM: usize = 3 << 20;
