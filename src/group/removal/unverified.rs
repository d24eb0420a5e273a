//! `max_unverified`: how long a node serves what it has cached while most of its peers do not answer.

use std::time::Duration;

use crate::clock::Tick;
use crate::context::Context;
use crate::group::Inner;
use crate::peers::Route;
use crate::sync::Arc;
use crate::sync::atomic::{AtomicU64, Ordering};

/// The option, and until when the cache is known to have missed no older removal.
pub(in crate::group) struct MaxUnverified {
    limit: Option<UnverifiedLimit>,
    /// A number of nanoseconds as of [`Tick::nanos`].
    verified_until: AtomicU64,
}

#[derive(Clone, Copy)]
pub(in crate::group) struct UnverifiedLimit {
    pub(in crate::group) time: Duration,
    /// The only use of [`Inner::is_verified`], so that programs without the limit do not contain it. It is
    /// not inlined either, so that their hits save fewer registers.
    check: fn(&Arc<Inner>, &Context, Duration) -> bool,
}

impl UnverifiedLimit {
    pub(in crate::group) fn new(time: Duration) -> UnverifiedLimit {
        UnverifiedLimit {
            time,
            check: Inner::is_verified,
        }
    }
}

impl MaxUnverified {
    pub(in crate::group) fn new(limit: Option<UnverifiedLimit>) -> MaxUnverified {
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
    pub(in crate::group) fn may_serve(self: &Arc<Self>, ctx: &Context) -> bool {
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
        let verified = &self.max_unverified.verified_until;
        if needed == 0 {
            verified.fetch_max(now.after(limit).nanos(), Ordering::AcqRel);
            return true;
        }
        let verified_until = || {
            let times = self.comparisons.equal_times(&peers);
            let mut times: Vec<Tick> = times.into_iter().flatten().collect();
            times.sort_unstable();
            let time = times[times.len().checked_sub(needed)?];
            let until = time.after(limit);
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

    /// Whether removals may have been missed here, as far as the last get found out.
    pub(super) fn is_unverified(&self) -> bool {
        let until = || self.max_unverified.verified_until.load(Ordering::Acquire);
        let limit = self.max_unverified.limit;
        limit.is_some_and(|_| until() <= self.store.clock().now().nanos())
    }

    /// The source of a key with this route. A node that may have missed removals asks no peer for values: the
    /// peer may have missed them, too, if the two are cut off together.
    pub(in crate::group) fn verified_route(&self, route: Route) -> Route {
        match route {
            Route::Peer(_) if self.is_unverified() => Route::Fallback,
            route => route,
        }
    }
}

#[cfg(all(test, not(larder_loom)))]
mod tests {
    use super::*;
    use crate::clock::Clock;
    use crate::context::Context;
    use crate::error::{ErrorKind, Result};
    use crate::getter::getter_fn;
    use crate::group::{GetOptions, Group};
    use crate::pb::{GetRequest, RemovalTable};
    use crate::peers::{PeerPicker, PeerResponse, PickerSlot, Pickers, ProtoGetter};
    use crate::sync::Mutex;

    /// The owner of all keys; or a node that cannot be reached.
    struct Node(Option<Group>);

    impl ProtoGetter for Node {
        fn get(&self, ctx: &Context, request: &GetRequest<'_>) -> Result<PeerResponse> {
            let group = self.0.as_ref().ok_or(ErrorKind::Peer)?;
            group.serve_peer(ctx, &request.key)
        }

        fn get_many(
            &self,
            _: &Context,
            _: &str,
            keys: &[&str],
        ) -> Result<Vec<Option<PeerResponse>>> {
            let group = self.0.as_ref().ok_or(ErrorKind::Peer)?;
            Ok(keys
                .iter()
                .map(|key| group.serve_peer_cached(key))
                .collect())
        }

        fn exchange_removals(
            &self,
            _: &Context,
            request: &RemovalTable<'_>,
        ) -> Result<RemovalTable<'static>> {
            let group = self.0.as_ref().ok_or(ErrorKind::Peer)?;
            Ok(group.serve_removals(request))
        }

        fn honors_deadline(&self) -> bool {
            true
        }
    }

    /// Five nodes, of which this one reaches the owner only, or all.
    struct Nodes {
        owner: Arc<Node>,
        cut_off: Mutex<Vec<Arc<Node>>>,
    }

    impl PeerPicker for Nodes {
        fn pick_peer(&self, key: &str) -> Option<Arc<dyn ProtoGetter>> {
            (!key.starts_with("own")).then(|| self.owner.clone() as _)
        }

        fn all_peers(&self) -> Vec<Arc<dyn ProtoGetter>> {
            let mut all: Vec<Arc<dyn ProtoGetter>> = vec![self.owner.clone()];
            let cut_off = self.cut_off.lock();
            all.extend(cut_off.iter().map(|node| node.clone() as _));
            all
        }

        fn previous_owner(&self, _: &str) -> Option<Arc<dyn ProtoGetter>> {
            Some(self.owner.clone())
        }
    }

    #[test]
    fn nodes_that_are_cut_off_together_do_not_serve_each_other_old_values() {
        let source = Arc::new(Mutex::new("old"));
        let make = |slot: PickerSlot| {
            let source = source.clone();
            let getter = getter_fn(move |_, _, dest| Ok(dest.set_str(*source.lock())?));
            let builder = Group::builder("unverified").clock(Clock::manual());
            builder
                .max_unverified(Duration::from_secs(5))
                .make(getter, slot)
        };
        let owner = make(PickerSlot::default());
        let nodes = Arc::new(Nodes {
            owner: Arc::new(Node(Some(owner.clone()))),
            cut_off: Mutex::new((0..3).map(|_| Arc::new(Node(None))).collect()),
        });
        let make_other = || {
            let slot = PickerSlot::default();
            slot.register(Pickers::One(nodes.clone())).expect("empty");
            make(slot)
        };
        let group = make_other();
        for key in ["1", "2", "3", "4", "5", "own 1", "own 2"] {
            assert_eq!(owner.get(key).expect("a value"), "old");
        }
        // The other three nodes remove the keys.
        *source.lock() = "new";
        let ctx = Context::background();
        for key in ["1", "own 1"] {
            assert_eq!(group.get(key).expect("a value"), "new");
        }
        let answer = make_other().serve_peer(&ctx, "own 1");
        assert_eq!(answer.expect("a value").value, "new");
        for value in group.get_many(&ctx, &["2", "3"]) {
            assert_eq!(value.expect("a value"), "new");
        }
        let answer = group.get_opts(&ctx, "4", GetOptions::new());
        assert_eq!(answer.expect("a value").value, "new");
        // Two of three are a majority. (The owner has missed nothing that they know.)
        nodes.cut_off.lock().truncate(1);
        assert_eq!(group.get("5").expect("a value"), "old");
        let answer = make_other().serve_peer(&ctx, "own 2");
        assert_eq!(answer.expect("a value").value, "old");
    }
}
