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

/// The smallest shard by default, in bytes. Smaller shards choose worse victims.
const MIN_SHARD_BYTES: u64 = 1 << 20;

/// Eight shards a core, as long as each keeps one mebibyte.
fn default_shards(capacity: u64) -> usize {
    let cores = cores().unwrap_or(CORES_IF_UNKNOWN);
    let wanted = (8 * cores).next_power_of_two().min(64);
    let room = usize::try_from(capacity / MIN_SHARD_BYTES)
        .unwrap_or(usize::MAX)
        .max(1);
    // The largest power of two that fits.
    wanted.min(1 << room.ilog2())
}

const CORES_IF_UNKNOWN: usize = 4;

/// The cores that may run threads of this process. The standard library's count also has the limits of
/// cgroups. They bound the time of the threads, but not how many run at once, and their code has 15 kB.
#[cfg(target_os = "linux")]
fn cores() -> Option<usize> {
    allowed_cores(&std::fs::read_to_string("/proc/self/status").ok()?)
}

#[cfg(not(target_os = "linux"))]
fn cores() -> Option<usize> {
    std::thread::available_parallelism().ok().map(usize::from)
}

/// The number of bits in the mask of cores: hexadecimal digits, with a comma between words.
#[cfg(target_os = "linux")]
fn allowed_cores(status: &str) -> Option<usize> {
    let mut lines = status.lines();
    let mask = lines.find_map(|line| line.strip_prefix("Cpus_allowed:"))?;
    let digits = mask.chars().filter_map(|digit| digit.to_digit(16));
    Some(digits.map(|digit| digit.count_ones() as usize).sum())
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn cores_are_those_that_the_system_allows() {
        let status =
            "Threads:\t1\nCpus_allowed:\tf,00000000,00000013\nCpus_allowed_list:\t0-1,4,64-67\n";
        assert_eq!(allowed_cores(status), Some(7));
        assert_eq!(allowed_cores("Threads:\t1\n"), None);
        // A limit of a cgroup makes the standard library's count smaller.
        let counted = std::thread::available_parallelism().expect("a count").get();
        assert!(cores().expect("a mask") >= counted);
    }
}
