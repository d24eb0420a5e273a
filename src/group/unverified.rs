//! `max_unverified`: how long a node serves what it has cached while most of its peers do not answer.

use std::time::Duration;

use super::Inner;
use crate::clock::Tick;
use crate::context::Context;
use crate::sync::Arc;
use crate::sync::atomic::{AtomicU64, Ordering};

/// The option, and until when the cache is known to have missed no older removal.
pub(super) struct MaxUnverified {
    limit: Option<UnverifiedLimit>,
    /// A number of nanoseconds as of [`Tick::nanos`].
    verified_until: AtomicU64,
}

#[derive(Clone, Copy)]
pub(super) struct UnverifiedLimit {
    pub(super) time: Duration,
    /// The only use of [`Inner::is_verified`], so that programs without the limit do not contain it. It is
    /// not inlined either, so that their hits save fewer registers.
    check: fn(&Arc<Inner>, &Context, Duration) -> bool,
}

impl UnverifiedLimit {
    pub(super) fn new(time: Duration) -> UnverifiedLimit {
        UnverifiedLimit {
            time,
            check: Inner::is_verified,
        }
    }
}

impl MaxUnverified {
    pub(super) fn new(limit: Option<UnverifiedLimit>) -> MaxUnverified {
        MaxUnverified {
            limit,
            verified_until: AtomicU64::new(0),
        }
    }

    pub(super) fn limit(&self) -> Option<Duration> {
        self.limit.map(|limit| limit.time)
    }
}

impl Inner {
    /// Whether a cached value may be returned: there is no limit, or this node and those whose removals it
    /// had applied within the limit are more than half of all. If not, asks all peers at the same time.
    ///
    /// A removal that was confirmed by more than half of the nodes was confirmed by one of these. This node
    /// has applied it, unless it was confirmed later than that node was asked.
    #[inline]
    pub(super) fn may_serve(self: &Arc<Self>, ctx: &Context) -> bool {
        match self.max_unverified.limit {
            None => true,
            Some(limit) => (limit.check)(self, ctx, limit.time),
        }
    }

    fn is_verified(self: &Arc<Self>, ctx: &Context, limit: Duration) -> bool {
        let now = self.store.clock().now();
        let until = self.max_unverified.verified_until.load(Ordering::Acquire);
        now.nanos() < until || self.verify_cache(ctx, limit, now)
    }

    fn verify_cache(self: &Arc<Self>, ctx: &Context, limit: Duration, now: Tick) -> bool {
        let peers = self.all_peers(&[]);
        // With this node, half of the peers are more than half of all nodes.
        let needed = peers.len().div_ceil(2);
        if needed == 0 {
            return true;
        }
        let verified_until = || {
            let times = self.comparisons.equal_times(&peers);
            let mut times: Vec<Tick> = times.into_iter().flatten().collect();
            times.sort_unstable();
            let time = times[times.len().checked_sub(needed)?];
            let until = time.after(limit);
            let verified = &self.max_unverified.verified_until;
            verified.fetch_max(until.nanos(), Ordering::AcqRel);
            Some(until)
        };
        let is_verified = |until: Option<Tick>| until.is_some_and(|until| now < until);
        if is_verified(verified_until()) {
            return true;
        }
        self.exchange_with_all(ctx, &peers);
        is_verified(verified_until())
    }
}
