//! Counts of a group's loads.

use super::Group;
use crate::stats::Stats;
use crate::sync::plain_atomic::AtomicU64;
use crate::threads::counters::ThreadCounters;

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

impl Group {
    /// The counters of the group since it was made.
    pub fn stats(&self) -> Stats {
        let inner = &self.inner;
        let (gets, cache_hits) = inner.store.lookups();
        Stats {
            gets,
            cache_hits,
            peer_loads: inner.counters.sum(|loads| &loads.peer_loads),
            peer_errors: inner.counters.sum(|loads| &loads.peer_errors),
            loads: gets.saturating_sub(cache_hits),
            loads_deduped: inner.counters.sum(|loads| &loads.loads_deduped),
            local_loads: inner.counters.sum(|loads| &loads.local_loads),
            local_load_errs: inner.counters.sum(|loads| &loads.local_load_errs),
            server_requests: inner.counters.sum(|loads| &loads.server_requests),
            refreshes: inner.counters.sum(|loads| &loads.refreshes),
            stale_hits: inner.counters.sum(|loads| &loads.stale_hits),
        }
    }
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
