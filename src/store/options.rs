//! The options of a store.

use std::time::Duration;

use super::policy::Eviction;
use crate::clock::Clock;

/// The options of a store.
#[derive(Clone, Debug)]
pub(crate) struct StoreOptions {
    /// In bytes; 0 keeps nothing.
    pub(crate) capacity: u64,
    pub(crate) eviction: Eviction,
    /// Under Tide, whether hits count by objects alone, and not by bytes at all.
    pub(crate) favor_objects: bool,
    /// The hot share's part of the capacity, 0 to 1.
    pub(crate) hot_fraction: f64,
    /// Rounded up to a power of two. `None` chooses by capacity and cores.
    pub(crate) shards: Option<usize>,
    /// How long an entry is kept after its expiry, while there is room.
    pub(crate) retention: Duration,
    /// Whether to forecast the hit ratio at other capacities.
    pub(crate) forecast: bool,
    pub(crate) clock: Clock,
}

impl StoreOptions {
    /// The number of shards, a power of two.
    pub(super) fn shards(&self) -> usize {
        self.shards
            .unwrap_or_else(|| default_shards(self.capacity))
            .clamp(1, MAX_SHARDS)
            .next_power_of_two()
    }
}

const MAX_SHARDS: usize = 256;

/// The smallest shard by default, in bytes. Smaller shards choose worse victims, and large values
/// exceed their part.
const MIN_SHARD_BYTES: u64 = 2 << 20;

/// Four shards a core, as long as each keeps two mebibytes.
fn default_shards(capacity: u64) -> usize {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let wanted = (4 * cores).next_power_of_two().min(64);
    let room = usize::try_from(capacity / MIN_SHARD_BYTES)
        .unwrap_or(usize::MAX)
        .max(1);
    // The largest power of two that fits.
    wanted.min(1 << room.ilog2())
}
