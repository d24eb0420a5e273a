//! The demands of an operation that needs room in a shard.

use super::Budget;
use crate::stats::CacheType;

/// The demands of an operation that needs room in a shard.
#[derive(Clone, Copy, Debug)]
pub(in crate::store) struct Demand {
    /// The least score of a victim, by share.
    pub(in crate::store) floors: [u64; 2],
    /// If an entry with a lower score than this would have to leave, the new entry is refused instead.
    pub(in crate::store) limit: u64,
    /// The share that gives room. `None` chooses by the parts of the capacity that the shares hold.
    pub(in crate::store) share: Option<CacheType>,
    /// The short hash of the new entry, if it is in the shard already. It does not leave.
    pub(in crate::store) spared: Option<u32>,
}

impl Demand {
    /// Victims are entries that are among the oldest of all shards, as far as is known.
    ///
    /// If the limit is above the scores of all known victims, a shard's own entries decide.
    pub(in crate::store) fn new(budget: &Budget, limit: u64) -> Demand {
        let floor = |share| {
            let level = budget.level(share);
            let floor = tolerated(level);
            if limit <= level {
                floor.max(limit)
            } else {
                floor
            }
        };
        Demand {
            floors: [CacheType::Main, CacheType::Hot].map(floor),
            limit,
            share: None,
            spared: None,
        }
    }

    /// All shards are searched before the first victim leaves, and none is refused. This is for a
    /// thread that makes the store smaller. It is slower, but does not depend on earlier operations.
    pub(in crate::store) fn of_oldest(budget: &Budget) -> Demand {
        let floor = if budget.is_sharded() { u64::MAX } else { 0 };
        Demand {
            floors: [floor; 2],
            limit: 0,
            share: None,
            spared: None,
        }
    }
}

/// The least score that counts as no worse than `score`. With less tolerance, operations would search
/// other shards more often, for victims that are hardly better.
pub(in crate::store) fn tolerated(score: u64) -> u64 {
    score - score / 4
}
