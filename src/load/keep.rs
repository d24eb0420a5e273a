//! Where a loaded value is kept, and for how long; and what had to leave for it.

use std::time::Duration;

use super::{Loader, Loading};
use crate::byteview::ByteView;
use crate::clock::Tick;
use crate::nesting;
use crate::panics::FirstPanic;
use crate::stats::CacheType;
use crate::store::{Graveyard, NewEntry, Unsettled};

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
        gone: &mut Graveyard,
    ) -> Option<Tick> {
        let ttl = shorter(ttl, self.time_to_live);
        let (share, ttl) = match keep {
            Keep::Owned => (CacheType::Main, ttl),
            Keep::Hot => (CacheType::Hot, ttl),
            Keep::Borrowed => (CacheType::Main, shorter(ttl, Some(BORROWED_TTL))),
        };
        let expires = ttl.map(|ttl| self.store.clock().now().after(ttl));
        let admitted = keep != Keep::Hot || self.hot_admission.admits(key, view);
        let may_keep = self.eviction_listener.is_none() || nesting::may_keep();
        if !(admitted && may_keep) || ttl == Some(Duration::ZERO) || self.store.capacity() == 0 {
            return expires;
        }
        view.make_keyed(key);
        let new = NewEntry {
            hash,
            key,
            data: view.allocation(),
            share,
            expires,
        };
        self.store.insert(new, Some(generation), gone);
        expires
    }

    /// Notifies the listener of what left the store, then drops it; and so on, if more has to
    /// leave. No lock is held here. A panic of the listener goes on when all is done.
    #[inline]
    pub(super) fn bury(&self, gone: Graveyard) {
        let mut panic = FirstPanic::default();
        self.bury_all(gone, &mut panic);
        panic.resume();
    }

    #[inline]
    pub(super) fn bury_all(&self, gone: Graveyard, panic: &mut FirstPanic) {
        let mut next = self.bury_some(gone, panic);
        while let Some(unsettled) = next {
            next = self.bury_some(self.store.settle(unsettled), panic);
        }
    }

    #[inline]
    fn bury_some(&self, gone: Graveyard, panic: &mut FirstPanic) -> Option<Unsettled> {
        gone.fetch();
        let unsettled = gone.unsettled();
        if let Some(listener) = self.eviction_listener.as_ref().filter(|_| !gone.is_empty()) {
            let listener = listener.clone();
            nesting::run_or_queue(panic, move |panic| {
                for departed in gone.iter() {
                    panic.catch(|| listener(departed.key(), departed.value(), departed.cause));
                }
            });
        }
        unsettled
    }
}

fn shorter(a: Option<Duration>, b: Option<Duration>) -> Option<Duration> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}
