//! `max_unverified`: how long a node serves what it has cached while most of its peers do not answer.

#[cfg(all(test, larder_loom, feature = "http"))]
mod loom_models;

use std::time::{Duration, Instant};

use super::compare::{LONGEST_EXCHANGE, LONGEST_PAUSE};
use crate::clock::Tick;
use crate::context::Context;
use crate::group::Inner;
use crate::peers::Route;
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::{Arc, Condvar, Mutex};

/// The option, and until when the cache is known to have missed no older removal.
pub(in crate::group) struct MaxUnverified {
    limit: Option<UnverifiedLimit>,
    /// A number of nanoseconds as of [`Tick::nanos`].
    verified_until: AtomicU64,
    round: Mutex<Round>,
    ended: Condvar,
}

/// The requests of one get to all peers. Other gets wait for their result, so that a node without a majority
/// does not ask all peers at each get.
#[derive(Default)]
struct Round {
    is_under_way: bool,
    /// The end of the pause after a round that found no majority.
    paused_until: Option<Tick>,
}

/// Ends a round when it is dropped.
struct RoundGuard<'m> {
    of: &'m MaxUnverified,
    paused_until: Option<Tick>,
}

impl Drop for RoundGuard<'_> {
    fn drop(&mut self) {
        *self.of.round.lock() = Round {
            is_under_way: false,
            paused_until: self.paused_until,
        };
        self.of.ended.notify_all();
    }
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
            round: Mutex::default(),
            ended: Condvar::new(),
        }
    }

    /// Begins a round. `None` after waiting for the one under way, and during a pause.
    ///
    /// The wait has an end, because the get may be that of an eviction listener which the round calls.
    fn begin_round(&self, ctx: &Context, now: Tick) -> Option<RoundGuard<'_>> {
        let mut round = self.round.lock();
        if !round.is_under_way {
            let is_paused = round.paused_until.is_some_and(|until| now < until);
            round.is_under_way = !is_paused;
            return (!is_paused).then(|| RoundGuard {
                of: self,
                paused_until: None,
            });
        }
        let begun = Instant::now();
        while round.is_under_way && ctx.err().is_none() && begun.elapsed() < LONGEST_EXCHANGE {
            // Not longer, because a cancellation does not wake it.
            let longest = Duration::from_millis(10);
            let most = ctx.remaining().map_or(longest, |left| left.min(longest));
            round = self.ended.wait_timeout(round, most);
        }
        None
    }

    pub(super) fn limit(&self) -> Option<Duration> {
        self.limit.map(|limit| limit.time)
    }
}

impl Inner {
    /// Whether a cached value may be returned: there is no limit, or this node and those whose removals it
    /// had applied within the limit are more than half of all. If not, asks all peers at the same time, unless
    /// another get does so, or did so in vain a short time ago.
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
        let Some(mut round) = self.max_unverified.begin_round(ctx, now) else {
            return now.nanos() < verified.load(Ordering::Acquire);
        };
        self.exchange_with_all(ctx, &peers);
        let is_majority = is_verified(verified_until());
        if !is_majority {
            let end = self.store.clock().now();
            let pause = LONGEST_PAUSE.min(limit / 4);
            // A round that a short deadline ended says little about the peers.
            let is_cut_short = ctx.err().is_some();
            let pause = if is_cut_short {
                pause.min(end.since(now))
            } else {
                pause
            };
            round.paused_until = Some(end.after(pause));
        }
        is_majority
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
        // Two of three are a majority, which a get after the pause finds out. (The owner has missed nothing
        // that they know.)
        nodes.cut_off.lock().truncate(1);
        group
            .inner
            .store
            .clock()
            .advance(Duration::from_secs(5) / 4);
        assert_eq!(group.get("5").expect("a value"), "old");
        let answer = make_other().serve_peer(&ctx, "own 2");
        assert_eq!(answer.expect("a value").value, "old");
    }

    /// A peer that cannot be reached, and counts the attempts. Each one takes some time.
    struct CutOff(AtomicU64);

    impl ProtoGetter for CutOff {
        fn get(&self, _: &Context, _: &GetRequest<'_>) -> Result<PeerResponse> {
            Err(ErrorKind::Peer.into())
        }

        fn exchange_removals(
            &self,
            _: &Context,
            _: &RemovalTable<'_>,
        ) -> Result<RemovalTable<'static>> {
            self.0.fetch_add(1, Ordering::SeqCst);
            std::thread::sleep(Duration::from_millis(20));
            Err(ErrorKind::Peer.into())
        }
    }

    struct OnePeer(Arc<CutOff>);

    impl PeerPicker for OnePeer {
        fn pick_peer(&self, _: &str) -> Option<Arc<dyn ProtoGetter>> {
            None
        }

        fn all_peers(&self) -> Vec<Arc<dyn ProtoGetter>> {
            vec![self.0.clone()]
        }
    }

    #[test]
    fn gets_of_a_node_without_a_majority_ask_its_peers_once_a_pause() {
        let peer = Arc::new(CutOff(AtomicU64::new(0)));
        let slot = PickerSlot::default();
        let picker = Arc::new(OnePeer(peer.clone()));
        slot.register(Pickers::One(picker)).expect("empty");
        let clock = Clock::manual();
        let group = Group::builder("unverified")
            .clock(clock.clone())
            .max_unverified(Duration::from_secs(4))
            .make(getter_fn(|_, key, dest| Ok(dest.set_str(key)?)), slot);
        let get_often = || {
            let get =
                || (0..50).for_each(|_| assert_eq!(group.get("key").expect("a value"), "key"));
            std::thread::scope(|scope| (0..4).for_each(|_| drop(scope.spawn(get))));
            peer.0.load(Ordering::SeqCst)
        };
        assert_eq!(get_often(), 1);
        clock.advance(Duration::from_millis(900));
        assert_eq!(get_often(), 1);
        clock.advance(Duration::from_millis(200));
        assert_eq!(get_often(), 2);
    }
}
