//! What look-ups found, counted.

use std::sync::atomic::AtomicU64;

use crate::stats::CacheType;
use crate::thread_counters::ThreadCounters;

pub(super) struct Counters(ThreadCounters<Lookups>);

#[derive(Default)]
struct Lookups {
    main_hits: AtomicU64,
    hot_hits: AtomicU64,
    misses: AtomicU64,
}

/// The sums over all threads.
#[derive(Clone, Copy, Debug)]
pub(super) struct Counts {
    pub(super) main_hits: u64,
    pub(super) hot_hits: u64,
    pub(super) misses: u64,
}

impl Counters {
    pub(super) fn new() -> Counters {
        Counters(ThreadCounters::new())
    }

    #[inline]
    pub(super) fn count_hit(&self, share: CacheType) {
        self.0.add(|lookups| match share {
            CacheType::Main => &lookups.main_hits,
            CacheType::Hot => &lookups.hot_hits,
        });
    }

    #[inline]
    pub(super) fn count_miss(&self) {
        self.0.add(|lookups| &lookups.misses);
    }

    pub(super) fn read(&self) -> Counts {
        Counts {
            main_hits: self.0.sum(|lookups| &lookups.main_hits),
            hot_hits: self.0.sum(|lookups| &lookups.hot_hits),
            misses: self.0.sum(|lookups| &lookups.misses),
        }
    }
}
