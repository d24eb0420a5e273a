//! Where a loaded value is kept, and for how long; and what had to leave for it.

use std::time::Duration;

use super::{Loader, Loading};
use crate::byteview::ByteView;
use crate::clock::Tick;
use crate::stats::CacheType;
use crate::store::{EvictedEntries, NewEntry, PendingEviction};

/// Where a loaded value belongs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Keep {
    /// Ours: in the main share.
    Owned,
    /// A peer's, got from it: in the hot share, if it is admitted.
    Hot,
    /// A peer's, loaded here because the peer did not answer, or took us for the owner: in the main
    /// share, for [`BORROWED_TTL`] at most. The hot share would be too small for all the keys of an
    /// owner that is down, and they would be loaded over and over.
    Borrowed,
}

/// How long a process keeps the value of a key that it does not own but had to load: long enough
/// that a dead owner's keys are not loaded again and again, short enough that the owner's word is
/// soon heard again (the gutter of "Scaling Memcache at Facebook", NSDI '13, section 3.3).
const BORROWED_TTL: Duration = Duration::from_secs(10);

impl Loader {
    /// Puts a loaded value into the share it belongs to, and what had to leave for it into `gone`,
    /// which the caller buries. Returns when it expires. `view` becomes a view of what is kept.
    #[inline]
    pub(super) fn keep(
        &self,
        keep: Keep,
        Loading {
            hash,
            key,
            generation,
        }: Loading<'_>,
        view: &mut ByteView,
        ttl: Option<Duration>,
        gone: &mut EvictedEntries,
    ) -> Option<Tick> {
        let ttl = shorter(ttl, self.time_to_live);
        let (share, ttl) = match keep {
            Keep::Owned => (CacheType::Main, ttl),
            Keep::Hot => (CacheType::Hot, ttl),
            Keep::Borrowed => (CacheType::Main, shorter(ttl, Some(BORROWED_TTL))),
        };
        let expires = ttl.map(|ttl| self.store.clock().now().after(ttl));
        let admitted = keep != Keep::Hot || self.hot_admission.admits(key, view);
        if !admitted || ttl == Some(Duration::ZERO) || self.store.capacity() == 0 {
            return expires;
        }
        view.make_keyed(key);
        let new = NewEntry {
            hash,
            key,
            data: view.allocation(),
            share,
            expires,
            loaded_at: generation,
        };
        *gone = self.store.insert(new);
        expires
    }

    /// Tells the listener what left the store, then drops it; and so on, if more has to leave. No
    /// lock is held here.
    #[inline]
    pub(super) fn bury(&self, gone: EvictedEntries) {
        let mut next = self.bury_some(gone);
        while let Some(unsettled) = next {
            next = self.bury_some(self.store.finish_eviction(unsettled));
        }
    }

    #[inline]
    fn bury_some(&self, gone: EvictedEntries) -> Option<PendingEviction> {
        if let Some(listener) = &self.eviction_listener {
            for departed in gone.iter() {
                listener(departed.entry.key(), departed.entry.value(), departed.cause);
            }
        }
        gone.pending()
    }
}

fn shorter(a: Option<Duration>, b: Option<Duration>) -> Option<Duration> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}
