//! Removes expired entries.

use super::{Group, Inner};
use crate::panics::{FirstPanic, caught};
use crate::store::EVICTED_AT_ONCE;

impl Group {
    /// Drops all entries that have expired, with cause
    /// [`RemovalCause::Expired`](crate::RemovalCause::Expired), and returns their number. Entries that
    /// expire during the call may stay.
    ///
    /// There is no need to call this. Expired entries are never returned, and they leave before any
    /// other entry is evicted or refused for want of room. Insertions and look-ups remove them: one
    /// hit in 256, and one miss in 256, removes up to 64. Concurrent gets wait for the removal of 256
    /// entries at most.
    ///
    /// # Panics
    ///
    /// If the eviction listener panics.
    pub fn purge_expired(&self) -> u64 {
        let inner = &self.inner;
        let now = inner.store.clock().now();
        let mut panic = FirstPanic::default();
        let mut count = 0;
        while let Some(mut expired) = inner.store.purge_expired(now, EVICTED_AT_ONCE) {
            count += expired.len() as u64;
            inner.notify_all(&mut expired, &mut panic);
        }
        panic.resume();
        count
    }
}

impl Inner {
    /// Removes a few expired entries, so that look-ups alone remove them all.
    #[cold]
    pub(super) fn purge_some(&self) {
        if !self.store.may_expire() {
            return;
        }
        if let Some(mut expired) = self.store.purge_unkept(PURGED_BY_LOOKUP) {
            self.notify_and_drop(&mut expired);
        }
    }

    /// Like [`purge_some`](Self::purge_some), on a thread that serves a peer: a panic of the listener does not
    /// keep the value from the peer.
    #[cold]
    pub(super) fn purge_for_peer(&self) {
        caught(|| self.purge_some());
    }
}

/// The most expired entries that a look-up removes.
const PURGED_BY_LOOKUP: usize = 64;
