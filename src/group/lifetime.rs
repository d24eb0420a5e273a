//! The age of a value, and how long it may be used.

use std::time::Duration;

use crate::clock::{Clock, Tick};
use crate::peers::PeerResponse;

/// The times of a value, by the clock of this process.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lifetime {
    /// A time at or before the start of the load, which this process or another one ran. `None` if it is
    /// not known, or was weeks ago.
    pub(super) begun: Option<Tick>,
    /// The end of the time to live; `None` if there is none.
    pub(super) fresh_until: Option<Tick>,
    /// The end of the time in which the value may be served although it is not fresh. The store keeps
    /// the value until then.
    pub(super) expires: Option<Tick>,
}

impl Lifetime {
    /// The times of a value whose load began at `begun`. Its time to live counts from then. So a slow getter
    /// does not make its value older than the group allows. A value with a time to live of zero is never
    /// served again; others are, for `allowance` at most.
    pub(super) fn of_load(begun: Tick, ttl: Option<Duration>, allowance: Duration) -> Lifetime {
        let allowance = match ttl {
            Some(Duration::ZERO) => Duration::ZERO,
            _ => allowance,
        };
        let fresh_until = ttl.and_then(|ttl| end(begun, ttl));
        Lifetime::between(Some(begun), fresh_until, allowance)
    }

    /// The times of a peer's value. The request was sent at `sent` or later. The peer counts its times
    /// from the arrival of the request, so they end here no later than there.
    pub(super) fn of_response(
        sent: Tick,
        response: &PeerResponse,
        allowance: Duration,
    ) -> Lifetime {
        let left = match (response.stale, response.ttl) {
            (Some(left), _) => left.min(allowance),
            (None, Some(Duration::ZERO)) => Duration::ZERO,
            (None, _) => allowance,
        };
        let begun = response.age.and_then(|age| sent.before(age));
        let fresh_until = response.ttl.and_then(|ttl| end(sent, ttl));
        Lifetime::between(begun, fresh_until, left)
    }

    /// The times of a cached value.
    pub(super) fn of_entry(
        begun: Option<Tick>,
        expires: Option<Tick>,
        allowance: Duration,
    ) -> Lifetime {
        let fresh_until = |end: Tick| end.before(allowance).unwrap_or(end);
        Lifetime {
            begun,
            fresh_until: expires.map(fresh_until),
            expires,
        }
    }

    /// The times of a value whose begin and end are known.
    pub(super) fn between(
        begun: Option<Tick>,
        fresh_until: Option<Tick>,
        allowance: Duration,
    ) -> Lifetime {
        Lifetime {
            begun,
            fresh_until,
            expires: fresh_until.and_then(|fresh| end(fresh, allowance)),
        }
    }

    /// These times with a shorter time to live: at most `ttl` from the start of the load, or from
    /// `request` if that is not known.
    pub(super) fn at_most(self, ttl: Duration, request: Tick, allowance: Duration) -> Self {
        let fresh = end(self.begun.unwrap_or(request), ttl);
        let expires = fresh.and_then(|fresh| end(fresh, allowance));
        Lifetime {
            begun: self.begun,
            fresh_until: earlier(self.fresh_until, fresh),
            expires: earlier(self.expires, expires),
        }
    }

    /// Whether the value has no end of its own, and a known begin from which a group's time to live counts.
    pub(super) fn is_endless(&self) -> bool {
        self.expires.is_none() && self.begun.is_some()
    }

    /// Whether the value may not be served any more.
    pub(super) fn is_over(&self, clock: &Clock) -> bool {
        self.expires.is_some_and(|end| end <= clock.now())
    }

    /// The time from the start of the load to the end of the time to live; the longest time if one of the
    /// two is not known.
    pub(super) fn fresh_time(&self) -> Duration {
        match (self.begun, self.fresh_until) {
            (Some(begun), Some(end)) => end.since(begun),
            _ => Duration::from_nanos(u64::MAX),
        }
    }
}

fn earlier(one: Option<Tick>, other: Option<Tick>) -> Option<Tick> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}

/// The end of a time; `None` if that is after the end of all ticks.
fn end(begin: Tick, time: Duration) -> Option<Tick> {
    Some(begin.after(time)).filter(|&end| end != Tick::NEVER)
}
