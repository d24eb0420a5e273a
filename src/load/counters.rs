//! What a group's loads have done, counted.

use std::sync::atomic::{AtomicU64, Ordering};

#[derive(Default)]
pub(super) struct Counters {
    pub(super) peer_loads: AtomicU64,
    pub(super) peer_errors: AtomicU64,
    pub(super) loads_deduped: AtomicU64,
    pub(super) local_loads: AtomicU64,
    pub(super) local_load_errs: AtomicU64,
    pub(super) server_requests: AtomicU64,
}

pub(super) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// Counts when it is dropped, so that a panic is counted too.
pub(super) struct CountAtEnd<'a>(pub(super) &'a AtomicU64);

impl Drop for CountAtEnd<'_> {
    fn drop(&mut self) {
        count(self.0);
    }
}
