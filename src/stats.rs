//! The counters of a group and of the two shares of its cache.

use crate::sync::plain_atomic::{AtomicI64, Ordering};
use std::fmt;

/// A counter for any number of threads.
///
/// All accesses are relaxed: they order no other memory accesses.
#[derive(Debug, Default)]
pub struct AtomicInt(AtomicI64);

impl AtomicInt {
    /// A counter at zero.
    pub const fn new() -> Self {
        AtomicInt(AtomicI64::new(0))
    }

    /// Adds `n`, which may be negative; wraps around on overflow.
    #[inline]
    pub fn add(&self, n: i64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// Sets the counter.
    pub fn store(&self, n: i64) {
        self.0.store(n, Ordering::Relaxed);
    }

    /// The value now.
    #[inline]
    pub fn get(&self) -> i64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl fmt::Display for AtomicInt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.get().fmt(f)
    }
}

/// The counters of a group since it was made. Each number only grows.
///
/// The numbers are read one after the other while other threads count. So they may disagree with each
/// other by the calls under way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Gets, those of peers included.
    pub gets: u64,
    /// Gets that found a value in the main or the hot share. They include gets that then loaded a newer value,
    /// because that one was past its time to live or did not fit the [options](crate::GetOptions) of the get.
    pub cache_hits: u64,
    /// Loads answered by a peer.
    pub peer_loads: u64,
    /// Failed exchanges with peers: the peer was not reached, was too late, has no such group, or its
    /// response was not valid. An error of the peer's getter, "not found" included, does not count.
    pub peer_errors: u64,
    /// Gets that found nothing cached: `gets - cache_hits`.
    pub loads: u64,
    /// Loads that ran. Concurrent loads of one key are merged into one.
    pub loads_deduped: u64,
    /// Runs of the getter that set or renewed a value. A call of a bulk getter counts once for each key.
    pub local_loads: u64,
    /// Runs of the getter that failed; "not found" counts here.
    pub local_load_errs: u64,
    /// Gets by peers.
    pub server_requests: u64,
    /// Loads in the background, during which gets received the old value: see
    /// [`GroupBuilder::refresh_at`](crate::GroupBuilder::refresh_at) and
    /// [`stale_while_revalidate`](crate::GroupBuilder::stale_while_revalidate).
    pub refreshes: u64,
    /// Gets answered with an old value because the load of a newer one failed or took too long. They
    /// count as cache hits, too.
    pub stale_hits: u64,
}

/// The two shares of a group's cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CacheType {
    /// Keys that this process owns, and for 10 s others that it loaded in place of their owners.
    Main,
    /// Copies of keys that other processes own.
    Hot,
}

impl CacheType {
    pub(crate) fn other(self) -> CacheType {
        match self {
            CacheType::Main => CacheType::Hot,
            CacheType::Hot => CacheType::Main,
        }
    }
}

/// The contents and the counters of one share of a group's cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CacheStats {
    /// Current weight in bytes: keys, values, and what the allocator and the tables take for them.
    pub bytes: u64,
    /// Entries now.
    pub items: u64,
    /// Look-ups. Every get counts in main, and if it misses there, also in hot.
    pub gets: u64,
    /// Look-ups that found a live entry.
    pub hits: u64,
    /// Entries evicted to make room. Expiry, removal and replacement do not count.
    pub evictions: u64,
    /// Entries that left after they had expired, for whatever reason they left.
    pub expired: u64,
    /// Entries removed before they expired: by key, or because the cache was cleared.
    pub removed: u64,
    /// Entries replaced by another value of their key before they expired.
    pub replaced: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn atomic_int_counts_all_threads() {
        let n = AtomicInt::new();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..1000).for_each(|_| n.add(1)));
            }
        });
        n.add(-1000);
        assert_eq!(n.get(), 3000);
        assert_eq!(n.to_string(), "3000");
    }
}
