//! Puts loaded values into the store: chooses the share and the time to live, and handles the evicted
//! entries.

use std::fmt;
use std::time::Duration;

use crate::byteview::ByteView;
use crate::clock::Tick;
use crate::getter::old_value::OldValue;
use crate::group::lifetime::Lifetime;
use crate::group::{Inner, LoadBegin, LoadKey};
use crate::panics::FirstPanic;
use crate::stats::CacheType;
use crate::store::{Evicted, EvictedEntries, NewBytes, NewEntry};
use crate::sync::Arc;
use crate::threads::nesting;

/// Where a loaded value belongs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(in crate::group) enum Placement {
    /// The value of a key that this process owns. It goes to the main share.
    Main,
    /// A value as in `Main` that is loaded before a caller asks for it. It is kept only if there is room.
    Warm,
    /// A value received from a peer. It goes to the hot share, if it is admitted.
    Hot,
    /// The value of a peer's key, loaded here because the peer did not answer. It goes to the main share,
    /// for [`FALLBACK_TTL`] at most. The hot share is too small for all keys of an owner that is down, so
    /// they would be loaded again and again.
    Fallback,
    /// The value of a peer's key, loaded here because another peer asked for it: the list of that peer
    /// differs, or the owner does not answer that peer. Kept like [`Fallback`](Self::Fallback).
    Misdirected,
}

impl Placement {
    /// Whether another process owns the key, and the getter runs here in its place.
    pub(in crate::group) fn is_for_another(self) -> bool {
        matches!(self, Placement::Fallback | Placement::Misdirected)
    }
}

/// How long a process keeps a value that it had to load although another process owns the key. This
/// is long enough that the keys of an owner that is down are not loaded again and again. It is short
/// enough that the owner is soon asked again (the gutter of "Scaling Memcache at Facebook", NSDI '13,
/// section 3.3).
const FALLBACK_TTL: Duration = Duration::from_secs(10);

/// Which copies of other processes' values are kept in the hot share.
#[derive(Clone, Default)]
#[non_exhaustive]
pub enum HotAdmission {
    /// All of them; eviction drops those that are not used.
    #[default]
    Always,
    /// None: every get of another process's key goes to its owner.
    Never,
    /// Each with this probability, 0 to 1. golang/groupcache keeps one in ten.
    Probability(f64),
    /// Those of keys that their owner gets at least so many times per second, 0 or more: requests of its
    /// own callers and of all peers, the mean of about the last minute. A value whose owner reports no rate
    /// is not kept, as that of a golang/groupcache.
    ///
    /// All processes need this option, or [`measure_rates`](crate::GroupBuilder::measure_rates). Gets that a
    /// copy answers are not known to the owner, so the rate of a key falls once there are copies of it.
    OwnerRate(f64),
    /// Those for which the function returns true, given key and value.
    Custom(Arc<AdmissionFn>),
}

/// Decides for a key and its value whether to keep a copy.
pub type AdmissionFn = dyn Fn(&str, &ByteView) -> bool + Send + Sync;

impl HotAdmission {
    /// Whether to keep a copy, if its owner reported this rate.
    fn admits(&self, key: &str, value: &ByteView, owner_qps: Option<f64>) -> bool {
        match self {
            HotAdmission::Always => true,
            HotAdmission::Never => false,
            HotAdmission::Probability(p) => crate::random::unit() < *p,
            HotAdmission::OwnerRate(least) => owner_qps.is_some_and(|qps| qps >= *least),
            HotAdmission::Custom(admit) => admit(key, value),
        }
    }
}

impl fmt::Debug for HotAdmission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HotAdmission::Always => f.write_str("Always"),
            HotAdmission::Never => f.write_str("Never"),
            HotAdmission::Probability(p) => f.debug_tuple("Probability").field(p).finish(),
            HotAdmission::OwnerRate(qps) => f.debug_tuple("OwnerRate").field(qps).finish(),
            HotAdmission::Custom(_) => f.write_str("Custom"),
        }
    }
}

/// A loaded value, its times, and what else goes into the store.
pub(in crate::group) struct NewValue<'v> {
    pub(super) view: &'v mut ByteView,
    /// Whether the view is one of [`Store::keyed`](crate::store::Store::keyed) with this etag.
    pub(super) is_entry: bool,
    pub(super) lifetime: Lifetime,
    pub(super) etag: Option<&'v str>,
    /// The requests for the key per second, as its owner reported them.
    pub(super) owner_qps: Option<f64>,
    /// Whether it may be the very value that is cached. Then only the times of that one change.
    pub(super) is_renewal: bool,
}

impl<'v> NewValue<'v> {
    /// A value that is no renewal, and has no etag.
    pub(in crate::group) fn new(view: &'v mut ByteView, lifetime: Lifetime) -> Self {
        NewValue {
            view,
            is_entry: false,
            lifetime,
            etag: None,
            owner_qps: None,
            is_renewal: false,
        }
    }

    /// The value that a peer sent to a process with this old value. If it is the old one, it is renewed.
    pub(super) fn from_peer(
        view: &'v mut ByteView,
        lifetime: Lifetime,
        owner_qps: Option<f64>,
        old: Option<&'v OldValue>,
    ) -> Self {
        let is_same = |old: &&OldValue| old.view.as_ptr() == view.as_ptr();
        let old = old.filter(is_same);
        NewValue {
            etag: old.and_then(OldValue::etag),
            owner_qps,
            is_renewal: old.is_some(),
            ..NewValue::new(view, lifetime)
        }
    }
}

impl Inner {
    /// Puts a loaded value into its share, and adds the entries evicted for it to `evicted`, for
    /// [`notify_and_drop`](Self::notify_and_drop). Returns the value's times, which the group's
    /// options may have shortened.
    pub(in crate::group) fn populate(
        &self,
        placement: Placement,
        &LoadKey { hash, key }: &LoadKey<'_>,
        begun: &LoadBegin,
        value: NewValue<'_>,
        evicted: &mut EvictedEntries,
    ) -> Lifetime {
        let NewValue { view, etag, .. } = value;
        let (getters, group_ttl) = (&self.getter_flights, self.freshness.time_to_live);
        let (share, flights, ttl) = match placement {
            Placement::Main | Placement::Warm => {
                (CacheType::Main, getters, self.freshness.jittered_ttl())
            }
            Placement::Hot => (CacheType::Hot, &self.peer_flights, group_ttl),
            Placement::Fallback | Placement::Misdirected => {
                let ttl = group_ttl.map_or(FALLBACK_TTL, |ttl| ttl.min(FALLBACK_TTL));
                (CacheType::Main, getters, Some(ttl))
            }
        };
        let is_shortened = placement.is_for_another() && value.lifetime.is_endless();
        let lifetime = self.at_most(value.lifetime, ttl, begun.at);
        // Two warmed values at the same time could both find the last room.
        let _alone = (placement == Placement::Warm).then(|| self.warm_inserts.lock());
        let admitted =
            placement != Placement::Hot || self.hot_admission.admits(key, view, value.owner_qps);
        let may_keep = self.eviction_listener.is_none() || nesting::may_keep();
        if !(admitted && may_keep && begun.is_kept)
            || lifetime.is_over(self.store.clock())
            || self.store.capacity() == 0
            || placement == Placement::Warm && !self.store.has_room(key.len() + view.len())
        {
            return lifetime;
        }
        let data = match value.is_entry {
            true => view.allocation().map(NewBytes::Keyed),
            false => self.store.adopt(hash, key, view, etag),
        };
        let Some(data) = data else {
            return lifetime;
        };
        let new = NewEntry {
            hash,
            key,
            data,
            has_etag: etag.is_some(),
            is_renewal: value.is_renewal,
            share,
            expires: lifetime.expires,
            is_shortened,
            begun: lifetime.begun,
            loaded_at: begun.generation,
            is_forgotten: &|| flights.forgets(hash.get()) != begun.forgets,
        };
        self.store.insert(new, evicted);
        lifetime
    }

    /// The times of a value that is set now.
    pub(in crate::group) fn lifetime_of_set(&self, ttl: Option<Duration>) -> Lifetime {
        let now = self.store.clock().now();
        let lifetime = Lifetime::of_load(now, ttl, self.freshness.allowance());
        self.at_most(lifetime, self.freshness.jittered_ttl(), now)
    }

    /// See [`Lifetime::at_most`]. The value is inserted afterwards: only then do look-ups find it due.
    fn at_most(&self, lifetime: Lifetime, ttl: Option<Duration>, request: Tick) -> Lifetime {
        let at_most = |ttl| lifetime.at_most(ttl, request, self.freshness.allowance());
        let lifetime = ttl.map_or(lifetime, at_most);
        if lifetime.expires.is_some() && self.freshness.can_refresh() {
            self.store.raise_margin(self.freshness.margin(&lifetime));
        }
        lifetime
    }

    /// Calls the listener for entries that left the store, and then drops them. Continues to evict
    /// while the store is over its capacity. No lock is held during the calls. A panic of the
    /// listener propagates at the end.
    #[inline]
    pub(in crate::group) fn notify_and_drop(&self, evicted: &mut EvictedEntries) {
        if evicted.is_empty() && evicted.pending().is_none() {
            return;
        }
        let mut panic = FirstPanic::default();
        self.notify_all(evicted, &mut panic);
        panic.resume();
    }

    pub(in crate::group) fn notify_all(
        &self,
        evicted: &mut EvictedEntries,
        panic: &mut FirstPanic,
    ) {
        loop {
            let pending = evicted.pending();
            let listener = self.eviction_listener.as_ref();
            if let Some(listener) = listener.filter(|_| !evicted.is_empty()) {
                let (listener, evicted) = (listener.clone(), std::mem::take(evicted));
                nesting::run_or_queue(panic, move |panic| {
                    for Evicted { entry, cause } in evicted.iter() {
                        panic.catch(|| listener(entry.key(), entry.value(), *cause));
                    }
                });
            } else {
                self.store.recycle(evicted);
            }
            let Some(pending) = pending else {
                return;
            };
            *evicted = self.store.finish_eviction(pending);
        }
    }
}
