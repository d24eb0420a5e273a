//! The age of a value, and how long it may be used.

use std::time::Duration;

use crate::clock::Tick;
use crate::peers::PeerResponse;
use crate::store::Hit;

/// The times of a value, by the clock of this process.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lifetime {
    /// A time at or before the begin of the load, in whatever process that was. `None` if it is not
    /// known, or was weeks ago.
    pub(super) begun: Option<Tick>,
    /// `None` if the value does not expire.
    pub(super) expires: Option<Tick>,
}

impl Lifetime {
    /// Of a value whose load began at `begun`. Its time to live counts from then. So a slow getter does
    /// not make its value older than the group allows.
    pub(super) fn of_load(begun: Tick, ttl: Option<Duration>) -> Lifetime {
        Lifetime {
            begun: Some(begun),
            expires: ttl.and_then(|ttl| end(begun, ttl)),
        }
    }

    /// Of the response to a request that was sent at `sent` or later. The peer's times count from the
    /// arrival of the request, which is later.
    pub(super) fn of_response(sent: Tick, response: &PeerResponse) -> Lifetime {
        Lifetime {
            begun: response.age.and_then(|age| sent.before(age)),
            expires: response.ttl.and_then(|ttl| end(sent, ttl)),
        }
    }

    /// The same, but it ends at most `ttl` after the begin of the load, or after `request` if that begin
    /// is not known.
    pub(super) fn at_most(self, ttl: Option<Duration>, request: Tick) -> Lifetime {
        let latest = ttl.and_then(|ttl| end(self.begun.unwrap_or(request), ttl));
        let expires = match (self.expires, latest) {
            (Some(expires), Some(latest)) => Some(expires.min(latest)),
            (expires, latest) => expires.or(latest),
        };
        Lifetime { expires, ..self }
    }
}

/// The end of a time to live; `None` if that is after the end of all ticks.
fn end(begin: Tick, ttl: Duration) -> Option<Tick> {
    Some(begin.after(ttl)).filter(|&end| end != Tick::NEVER)
}

impl From<&Hit> for Lifetime {
    fn from(hit: &Hit) -> Lifetime {
        Lifetime {
            begun: hit.begun,
            expires: hit.expires,
        }
    }
}
