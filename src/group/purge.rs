//! Removes expired entries.

use super::Inner;
use crate::panics::{FirstPanic, caught};
use crate::store::EVICTED_AT_ONCE;

impl Inner {
    /// Removes a few expired entries, so that look-ups alone remove them all.
    #[cold]
    pub(super) fn purge_some(&self) {
        if !self.store.may_expire() {
            return;
        }
        if let Some(expired) = self.store.purge_unkept(PURGED_BY_LOOKUP) {
            self.notify_and_drop(expired);
        }
    }

    /// As [`purge_some`](Self::purge_some), on a thread that serves a peer: a panic of the listener does not
    /// keep the value from the peer.
    #[cold]
    pub(super) fn purge_for_peer(&self) {
        caught(|| self.purge_some());
    }

    pub(super) fn purge_expired(&self) -> u64 {
        let now = self.store.clock().now();
        let mut panic = FirstPanic::default();
        let mut count = 0;
        while let Some(expired) = self.store.purge_expired(now, EVICTED_AT_ONCE) {
            count += expired.len() as u64;
            self.notify_all(expired, &mut panic);
        }
        panic.resume();
        count
    }
}

/// The most expired entries that a look-up removes.
const PURGED_BY_LOOKUP: usize = 64;
