//! Counters: what a group did, what its shares hold.

use std::fmt;
use std::sync::atomic::{AtomicI64, Ordering};

/// A counter that any number of threads add to.
///
/// It orders nothing: a reading can lag behind other memory, never behind itself.
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

/// What a group has done since it was made. Each number only grows.
///
/// The numbers are read one after the other while others count on, so sums across them can be off
/// by the calls under way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Gets, those of peers included.
    pub gets: u64,
    /// Gets answered from the main or the hot share.
    pub cache_hits: u64,
    /// Loads answered by a peer.
    pub peer_loads: u64,
    /// Exchanges with a peer that failed: not reached, too late, not understood. A peer that
    /// answers "not found", or that its getter failed, has answered.
    pub peer_errors: u64,
    /// Gets that found nothing cached: `gets - cache_hits`.
    pub loads: u64,
    /// Loads left after those of the same key at the same time were merged: flights led here.
    pub loads_deduped: u64,
    /// Runs of the getter that set a value.
    pub local_loads: u64,
    /// Runs of the getter that failed; "not found" counts here.
    pub local_load_errs: u64,
    /// Gets that came from peers.
    pub server_requests: u64,
}

/// The two shares of a group's cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CacheType {
    /// Keys that this process owns.
    Main,
    /// Copies of keys that other processes own, asked for here.
    Hot,
}

/// What one share of a group's cache holds and has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CacheStats {
    /// Bytes charged now: keys, values, and what the allocator and the tables take for them.
    pub bytes: u64,
    /// Entries now.
    pub items: u64,
    /// Look-ups. Every get looks into main; those that miss there look into hot.
    pub gets: u64,
    /// Look-ups that found a live entry.
    pub hits: u64,
    /// Entries pushed out to make room. Expiry, removal and replacement are not counted.
    pub evictions: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_atomic_int_counts_from_all_threads() {
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
