//! The options of a group for the freshness of its values, each with its default.

use std::time::Duration;

use super::GroupBuilder;

impl GroupBuilder {
    /// How long a value is fresh, counted from the start of its load. A getter can shorten this for its
    /// value with [`Sink::expire_in`](crate::Sink::expire_in). Default: no limit; a value is kept until it
    /// is evicted.
    ///
    /// A copy in another process expires no later than the value of the key's owner. Nothing is served
    /// after its time to live, unless [`stale_while_revalidate`](Self::stale_while_revalidate) or
    /// [`stale_if_error`](Self::stale_if_error) is set.
    pub fn time_to_live(mut self, ttl: Duration) -> Self {
        self.freshness.time_to_live = Some(ttl);
        self
    }

    /// The fraction of the [`time_to_live`](Self::time_to_live) that is cut off at most, 0 to 1. The part
    /// that is cut off is random, so values loaded together do not expire together. Default: 0.05. A getter's
    /// [`expire_in`](crate::Sink::expire_in) is not shortened.
    pub fn time_to_live_jitter(mut self, fraction: f64) -> Self {
        self.freshness.jitter = fraction;
        self
    }

    /// For how long after its time to live a value is still served while it is loaded again in the
    /// background, as by `stale-while-revalidate` of RFC 5861. Default: 0. At most 10 years count.
    ///
    /// The first get in this time starts the load. No get waits for it, and no other load of the key runs
    /// meanwhile, in the whole cluster. Afterwards the value is served only if a load fails
    /// ([`stale_if_error`](Self::stale_if_error)), and never later than the longer of the two times allows.
    pub fn stale_while_revalidate(mut self, time: Duration) -> Self {
        self.freshness.stale_while_revalidate = time.min(LONGEST_STALE);
        self
    }

    /// For how long after its time to live a value is served if the load of a newer one fails, as by
    /// `stale-if-error` of RFC 5861. Default: 0. At most 10 years count.
    ///
    /// An error never replaces a value. After a failed load, the next one of the key begins 30 s later at
    /// the earliest. Until then the old value is served, and after the end of its time the error of the
    /// getter. If the error arose outside the getter, gets after that time load again.
    /// [`ErrorKind::NotFound`](crate::ErrorKind::NotFound) is no failure in this sense: the old value leaves
    /// the cache, with cause [`Explicit`](crate::RemovalCause::Explicit).
    pub fn stale_if_error(mut self, time: Duration) -> Self {
        self.freshness.stale_if_error = time.min(LONGEST_STALE);
        self
    }

    /// How long a get waits for a load while there is an old value that may be served:
    /// [`stale_while_revalidate`](Self::stale_while_revalidate) and
    /// [`stale_if_error`](Self::stale_if_error) say for how long. Afterwards the get returns the old
    /// value, and the load goes on in the background. Default: no limit. A get for which there is no such
    /// value waits for the load. A peer that asks gets the old value sooner if its request ends before.
    pub fn soft_timeout(mut self, time: Duration) -> Self {
        self.freshness.soft_timeout = Some(time);
        self
    }

    /// Loads a value again in the background if it is used after this part of its time to live, for
    /// example 0.8. So values that are used often are loaded before they expire, and no get waits for
    /// that. Values without a get in this time are not loaded again. Default: off.
    ///
    /// If the load fails, the value stays until its time is over, and the next load in the background begins
    /// 30 s later at the earliest.
    pub fn refresh_at(mut self, fraction: f64) -> Self {
        self.freshness.refresh_at = Some(fraction);
        self
    }

    /// How long [`ErrorKind::NotFound`](crate::ErrorKind::NotFound) of the getter is remembered: gets of
    /// the key return it, and the getter does not run. Default: not at all.
    ///
    /// Up to 8,192 keys are remembered, the latest ones; they take up to 1 MiB beside the capacity, and their
    /// errors. [`Group::invalidate`](crate::Group::invalidate) and the like forget them.
    pub fn negative_ttl(mut self, time: Duration) -> Self {
        self.freshness.negative_ttl = Some(time);
        self
    }

    /// How long other errors of the getter are remembered, as [`negative_ttl`](Self::negative_ttl) does
    /// for keys that do not exist. Default: not at all. Errors that arise outside the getter
    /// are not remembered: of peers, of deadlines, of busy loader threads.
    pub fn error_ttl(mut self, time: Duration) -> Self {
        self.freshness.error_ttl = Some(time);
        self
    }

    /// How long a value is kept after its time, stale times included. It is not served then, but a load can
    /// renew it without its bytes: the getter by [`Context::stale`](crate::Context::stale) and
    /// [`Sink::not_modified`](crate::Sink::not_modified), and copies in other processes by a conditional
    /// request to the owner of the key. Default: 0. At most 10 years count.
    ///
    /// Such values leave before any other is evicted for want of room. Until then,
    /// [`entry_count`](crate::Group::entry_count) and [`weighted_size`](crate::Group::weighted_size) count
    /// them. Without this option, a value can surely be renewed as long as it may be served: in the time of
    /// [`refresh_at`](Self::refresh_at), [`stale_while_revalidate`](Self::stale_while_revalidate) and
    /// [`stale_if_error`](Self::stale_if_error). Afterwards it may be gone at any time.
    pub fn keep_for_revalidation(mut self, time: Duration) -> Self {
        self.freshness.keep_for_revalidation = time.min(LONGEST_STALE);
        self
    }
}

/// A longer time could reach the end of a clock's range. The value would then never end.
const LONGEST_STALE: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);
