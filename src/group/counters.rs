//! Counts of a group's loads.

use crate::sync::plain_atomic::AtomicU64;

use crate::thread_counters::ThreadCounters;

pub(super) type LoadCounters = ThreadCounters<Loads>;

#[derive(Default)]
pub(super) struct Loads {
    pub(super) peer_loads: AtomicU64,
    pub(super) peer_errors: AtomicU64,
    pub(super) loads_deduped: AtomicU64,
    pub(super) local_loads: AtomicU64,
    pub(super) local_load_errs: AtomicU64,
    pub(super) server_requests: AtomicU64,
    pub(super) refreshes: AtomicU64,
    pub(super) stale_hits: AtomicU64,
}

/// Counts a run of the getter when it is dropped, so that a panic counts as a failure.
pub(super) struct GetterRun<'a> {
    counters: &'a LoadCounters,
    pub(super) has_loaded: bool,
}

impl<'a> GetterRun<'a> {
    pub(super) fn new(counters: &'a LoadCounters) -> Self {
        GetterRun {
            counters,
            has_loaded: false,
        }
    }
}

impl Drop for GetterRun<'_> {
    fn drop(&mut self) {
        let has_loaded = self.has_loaded;
        self.counters.add(|loads| match has_loaded {
            true => &loads.local_loads,
            false => &loads.local_load_errs,
        });
    }
}
