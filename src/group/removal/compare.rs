//! Compares the removals of this node with those of its peers, and repairs differences.
//!
//! Every answer of a peer has a digest of its removals. If it differs from this node's, removals are
//! under way, or one of the two missed some, because it was cut off or because the node that removed
//! ended. So if the digests differ for [`GRACE_PERIOD`], the two exchange their tables. A node that missed
//! removals drops the values of the stripes concerned whose load began before the other's last removal.

#[cfg(all(test, larder_loom))]
mod loom_models;

use std::time::Duration;

use super::broadcast::Confirmations;
use crate::clock::Tick;
use crate::context::Context;
use crate::error::{Error, ErrorKind, Result};
use crate::group::removal_clocks::{RemovalMark, Table};
use crate::group::{Group, Inner};
use crate::panics::FirstPanic;
use crate::pb::RemovalTable;
use crate::peers::ProtoGetter;
use crate::sync::{Arc, Mutex};
use crate::threads::loader_pool::JobFor;

/// The state of the comparison with each peer.
#[derive(Default)]
pub(in crate::group) struct Comparisons(Mutex<Vec<Comparison>>);

struct Comparison {
    peer: std::sync::Weak<dyn ProtoGetter>,
    /// The last time at which this node had applied all that the peer had, as far as is known.
    equal_at: Option<Tick>,
    /// When the peer's digest was found to be another one. `None` if that of a later request was equal, or an
    /// exchange began since.
    differed_at: Option<Tick>,
    /// Whether a thread exchanges the tables, or will do so if the digests still differ then.
    is_scheduled: bool,
    /// The end of the pause after an exchange that failed, and its length. Otherwise each answer of a peer
    /// that refuses them, or whose tables are malformed, would cost one more.
    pause: Option<(Tick, Duration)>,
}

impl Comparison {
    fn note_exchange(&mut self, has_error: bool, now: Tick) {
        self.pause = has_error.then(|| {
            let length = self.pause.map_or(GRACE_PERIOD, |(_, last)| 2 * last);
            let length = length.min(LONGEST_PAUSE);
            (now.after(length), length)
        });
    }
}

impl Comparisons {
    /// Calls `with` for the state of a peer.
    fn with<R>(&self, peer: &Arc<dyn ProtoGetter>, with: impl FnOnce(&mut Comparison) -> R) -> R {
        let mut comparisons = self.0.lock();
        let is_of = |comparison: &Comparison| {
            comparison.peer.as_ptr().cast::<()>() == Arc::as_ptr(peer).cast::<()>()
        };
        let at = comparisons.iter().position(is_of).unwrap_or_else(|| {
            // A weak reference keeps the address of a peer of an old list from being used again.
            comparisons.retain(|comparison| comparison.peer.strong_count() > 0);
            comparisons.push(Comparison {
                peer: Arc::downgrade(peer),
                equal_at: None,
                differed_at: None,
                is_scheduled: false,
                pause: None,
            });
            comparisons.len() - 1
        });
        with(&mut comparisons[at])
    }

    /// For each peer, a time until which this node has applied all that the peer had.
    pub(super) fn equal_times(&self, peers: &[Arc<dyn ProtoGetter>]) -> Vec<Option<Tick>> {
        let time = |peer| self.with(peer, |comparison| comparison.equal_at);
        peers.iter().map(time).collect()
    }
}

impl Group {
    /// Applies the removals of a peer that this process has missed, and returns those that this process
    /// has applied. As for [`serve_remove`](Self::serve_remove).
    pub fn serve_removals(&self, request: &RemovalTable<'_>) -> RemovalTable<'static> {
        let inner = &self.inner;
        // Before the merge, after which the peer would find nothing new in it.
        let answer = inner.own_table();
        if let Some(table) = table_of(request) {
            inner.merge(&table);
        }
        answer
    }
}

impl Inner {
    /// Compares the digest in a peer's answer to a request of the time `sent` with this node's. If they
    /// differ although the two were not equal for [`GRACE_PERIOD`], repairs the difference before it returns,
    /// and otherwise after that time.
    pub(in crate::group) fn compare(
        self: &Arc<Self>,
        peer: &Arc<dyn ProtoGetter>,
        ctx: &Context,
        sent: Tick,
        removals: Option<u64>,
    ) {
        let Some(mark) = removals.map(RemovalMark::from_bits) else {
            return;
        };
        if self.removals.has_same_digest(Some(mark)) {
            if !self.removals.are_unused() || self.max_unverified.limit().is_some() {
                self.comparisons.with(peer, |comparison| {
                    comparison.equal_at = comparison.equal_at.max(Some(sent));
                    // Answers to concurrent requests come in any order.
                    if comparison.differed_at.is_some_and(|at| sent >= at) {
                        comparison.differed_at = None;
                    }
                });
            }
            return;
        }
        let now = self.store.clock().now();
        let (is_old, is_first) = self.comparisons.with(peer, |comparison| {
            comparison.differed_at = Some(now);
            let is_paused = comparison.pause.is_some_and(|(end, _)| now < end);
            let is_first = !is_paused && !std::mem::replace(&mut comparison.is_scheduled, true);
            let is_old = comparison
                .equal_at
                .is_none_or(|at| now.since(at) > GRACE_PERIOD);
            (is_old, is_first)
        });
        let repairs_now = is_first && (is_old || self.repair_later(peer).is_err());
        if repairs_now && self.repair(peer, ctx) && self.repair_later(peer).is_err() {
            self.comparisons
                .with(peer, |comparison| comparison.is_scheduled = false);
        }
    }

    fn repair_later(self: &Arc<Self>, peer: &Arc<dyn ProtoGetter>) -> Result<()> {
        let (group, peer) = (self.clone(), peer.clone());
        self.pool.submit(JobFor::Own, move |busy| {
            loop {
                std::thread::sleep(GRACE_PERIOD);
                if !group.repair(&peer, &Context::background()) {
                    break;
                }
            }
            drop(busy);
            (group, peer)
        })
    }

    /// Exchanges tables with a peer, unless the digests are equal by now.
    ///
    /// An answer that comes meanwhile may show a removal that the peer's table does not have. Then this
    /// function returns true, and the caller repairs again after [`GRACE_PERIOD`].
    fn repair(&self, peer: &Arc<dyn ProtoGetter>, ctx: &Context) -> bool {
        // A panic of the eviction listener.
        let mut panic = FirstPanic::default();
        let differs = |comparison: &mut Comparison| comparison.differed_at.take().is_some();
        let mut is_failed = self.comparisons.with(peer, differs);
        // Not by a panic, which comes after the peer's removals were applied.
        let mut has_error = false;
        if is_failed {
            panic.catch(|| match self.exchange(peer, ctx) {
                Ok(()) => is_failed = false,
                Err(error) => {
                    has_error = true;
                    log::debug!("group {}: {error}", self.name);
                }
            });
        }
        let now = self.store.clock().now();
        let differs_again = self.comparisons.with(peer, |comparison| {
            comparison.note_exchange(has_error, now);
            // The first answer after the pause begins the next attempt after a failed one.
            comparison.is_scheduled = !is_failed && comparison.differed_at.is_some();
            comparison.is_scheduled
        });
        panic.resume();
        differs_again
    }

    /// Exchanges tables with a peer. After that, this node has applied all that the peer had.
    pub(super) fn exchange(&self, peer: &Arc<dyn ProtoGetter>, ctx: &Context) -> Result<()> {
        let sent = self.store.clock().now();
        let request = self.own_table();
        let answer = peer.exchange_removals(&ctx.with_timeout(LONGEST_EXCHANGE), &request)?;
        let table = table_of(&answer).ok_or_else(|| {
            Error::new(ErrorKind::Peer, "the peer's table of removals is malformed")
        })?;
        self.merge(&table);
        self.comparisons.with(peer, |comparison| {
            comparison.equal_at = comparison.equal_at.max(Some(sent));
        });
        Ok(())
    }

    /// Exchanges tables with several peers at the same time.
    pub(in crate::group) fn exchange_with_all(
        self: &Arc<Self>,
        ctx: &Context,
        peers: &[Arc<dyn ProtoGetter>],
    ) -> Confirmations {
        let group = self.clone();
        self.broadcast(
            ctx,
            peers,
            Arc::new(move |peer, ctx| group.exchange(peer, ctx)),
        )
    }

    fn own_table(&self) -> RemovalTable<'static> {
        let (clocks, applied) = self.removals.table(self.store.clock()).encode();
        RemovalTable {
            group: self.name.clone().into(),
            clocks: Some(clocks.into()),
            applied: Some(applied.into()),
        }
    }

    /// Applies the removals in a peer's table that were not applied here.
    pub(in crate::group) fn merge(&self, table: &Table) {
        let change_guard = self.removals.begin_change();
        let clock = self.store.clock();
        let Some(floors) = self.removals.merge(table, clock.now(), clock) else {
            return;
        };
        let mut panic = FirstPanic::default();
        let is_old = |key: &str, begun: Option<Tick>| floors.is_older(key, begun);
        let removed = |mut removed| self.notify_all(&mut removed, &mut panic);
        // Loads that began before are not cached, and are joined by no caller.
        self.store.remove_older(&is_old, removed);
        self.forget_all();
        self.removals.finish_merge(table, &floors);
        drop(change_guard);
        panic.resume();
    }
}

fn table_of(message: &RemovalTable<'_>) -> Option<Table> {
    Table::decode(message.clocks.as_deref()?, message.applied.as_deref()?)
}

/// How long two digests may differ because of removals under way, before the tables are exchanged.
const GRACE_PERIOD: Duration = Duration::from_millis(if cfg!(larder_loom) { 0 } else { 200 });

/// The longest pause after exchanges that failed.
pub(super) const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// The longest exchange of tables.
pub(super) const LONGEST_EXCHANGE: Duration = Duration::from_secs(2);

/// A peer that answers nothing but exchanges of tables, on the thread that asks it.
#[cfg(test)]
pub(in crate::group) struct RemovalsPeer(pub(in crate::group) Group);

#[cfg(test)]
impl ProtoGetter for RemovalsPeer {
    fn get(
        &self,
        _: &Context,
        _: &crate::pb::GetRequest<'_>,
    ) -> Result<crate::peers::PeerResponse> {
        Err(ErrorKind::Peer.into())
    }

    fn exchange_removals(
        &self,
        _: &Context,
        request: &RemovalTable<'_>,
    ) -> Result<RemovalTable<'static>> {
        Ok(self.0.serve_removals(request))
    }
}

#[cfg(all(test, not(larder_loom)))]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
    use std::sync::mpsc::{Sender, channel};
    use std::thread;

    use super::*;
    use crate::clock::Clock;
    use crate::getter::getter_fn;
    use crate::group::tests::eventually;
    use crate::pb::{GetRequest, RemoveKeysRequest};
    use crate::peers::{PeerResponse, PickerSlot};

    const PATIENCE: Duration = Duration::from_secs(20);

    fn removal(number: u64) -> RemoveKeysRequest<'static> {
        RemoveKeysRequest {
            group: "compare".into(),
            keys: vec!["key".into()],
            removal_id: Some(7 << 32 | number),
            unless_applied: None,
        }
    }

    fn mark_of(group: &Group) -> Option<u64> {
        group.inner.removals_for("key")
    }

    /// Reports each exchange to the channel.
    struct Reporting(RemovalsPeer, Mutex<Sender<()>>);

    impl ProtoGetter for Reporting {
        fn get(&self, ctx: &Context, request: &GetRequest<'_>) -> Result<PeerResponse> {
            self.0.get(ctx, request)
        }

        fn exchange_removals(
            &self,
            ctx: &Context,
            request: &RemovalTable<'_>,
        ) -> Result<RemovalTable<'static>> {
            let answer = self.0.exchange_removals(ctx, request);
            let _ = self.1.lock().send(());
            answer
        }
    }

    #[test]
    fn late_answer_does_not_hide_a_removal_that_a_later_one_showed() {
        let clock = Clock::manual();
        let [node, other] = [(); 2].map(|()| {
            let getter = getter_fn(|_, key, dest| Ok(dest.set_str(key)?));
            let builder = Group::builder("compare").clock(clock.clone());
            builder.make(getter, PickerSlot::default())
        });
        for group in [&node, &other] {
            group.serve_remove(&removal(1));
        }
        let (sender, exchanges) = channel();
        let peer: Arc<dyn ProtoGetter> =
            Arc::new(Reporting(RemovalsPeer(other.clone()), Mutex::new(sender)));
        let compare = |sent, mark| {
            let ctx = Context::background();
            node.inner.compare(&peer, &ctx, sent, mark);
        };
        let first = clock.now();
        clock.advance(Duration::from_millis(1));
        compare(clock.now(), mark_of(&other));
        let equal = mark_of(&other);
        other.serve_remove(&removal(2));
        compare(clock.now(), mark_of(&other));
        // It was sent before the second removal.
        compare(first, equal);
        exchanges.recv_timeout(PATIENCE).expect("an exchange");
    }

    /// A peer that applies another removal each time it has sent its table. The next answer shows that removal.
    struct Removing {
        node: Group,
        other: Group,
        this: std::sync::Weak<Removing>,
        exchanges: AtomicUsize,
    }

    impl ProtoGetter for Removing {
        fn get(&self, _: &Context, _: &GetRequest<'_>) -> Result<PeerResponse> {
            Err(ErrorKind::Peer.into())
        }

        fn exchange_removals(
            &self,
            ctx: &Context,
            request: &RemovalTable<'_>,
        ) -> Result<RemovalTable<'static>> {
            let answer = self.other.serve_removals(request);
            if self.exchanges.fetch_add(1, Ordering::SeqCst) < 2 {
                let peer: Arc<dyn ProtoGetter> = self.this.upgrade().expect("it is in use");
                let (inner, now) = (&self.node.inner, self.node.inner.store.clock().now());
                self.other
                    .serve_remove(&removal(2 + self.exchanges.load(Ordering::SeqCst) as u64));
                inner.compare(&peer, ctx, now, mark_of(&self.other));
            }
            Ok(answer)
        }
    }

    #[test]
    fn removal_that_an_answer_shows_during_an_exchange_is_repaired() {
        let [node, other] = [(); 2].map(|()| {
            let getter = getter_fn(|_, key, dest| Ok(dest.set_str(key)?));
            Group::builder("compare").make(getter, PickerSlot::default())
        });
        other.serve_remove(&removal(1));
        let peer: Arc<dyn ProtoGetter> = Arc::new_cyclic(|this| Removing {
            node: node.clone(),
            other: other.clone(),
            this: this.clone(),
            exchanges: AtomicUsize::new(0),
        });
        let (inner, ctx) = (&node.inner, Context::background());
        inner.compare(&peer, &ctx, inner.store.clock().now(), mark_of(&other));
        let is_scheduled = |comparison: &mut Comparison| comparison.is_scheduled;
        eventually(|| !inner.comparisons.with(&peer, is_scheduled));
        let known = other.inner.removals.known().expect("all of them");
        assert!(inner.removals.has_applied(&known));
    }

    /// A peer whose tables are malformed at first. Counts the exchanges.
    struct Malformed {
        other: RemovalsPeer,
        is_sound: AtomicBool,
        exchanges: AtomicUsize,
    }

    impl ProtoGetter for Malformed {
        fn get(&self, _: &Context, _: &GetRequest<'_>) -> Result<PeerResponse> {
            Err(ErrorKind::Peer.into())
        }

        fn exchange_removals(
            &self,
            ctx: &Context,
            request: &RemovalTable<'_>,
        ) -> Result<RemovalTable<'static>> {
            self.exchanges.fetch_add(1, Ordering::SeqCst);
            match self.is_sound.load(Ordering::SeqCst) {
                true => self.other.exchange_removals(ctx, request),
                false => Ok(RemovalTable::default()),
            }
        }
    }

    #[test]
    fn pauses_between_exchanges_that_fail_become_longer() {
        let clock = Clock::manual();
        let [node, other] = [(); 2].map(|()| {
            let getter = getter_fn(|_, key, dest| Ok(dest.set_str(key)?));
            let builder = Group::builder("compare").clock(clock.clone());
            builder.make(getter, PickerSlot::default())
        });
        other.serve_remove(&removal(1));
        let malformed = Arc::new(Malformed {
            other: RemovalsPeer(other.clone()),
            is_sound: AtomicBool::new(false),
            exchanges: AtomicUsize::new(0),
        });
        let peer: Arc<dyn ProtoGetter> = malformed.clone();
        let answers_of = |time: Duration| {
            let before = malformed.exchanges.load(Ordering::SeqCst);
            let end = clock.now().after(time);
            while clock.now() < end {
                let (ctx, now) = (Context::background(), clock.now());
                node.inner.compare(&peer, &ctx, now, mark_of(&other));
                clock.advance(Duration::from_millis(10));
            }
            malformed.exchanges.load(Ordering::SeqCst) - before
        };
        assert_eq!(answers_of(Duration::from_millis(200)), 1);
        assert_eq!(answers_of(Duration::from_millis(400)), 1);
        let exchanges = answers_of(Duration::from_secs(100));
        assert!((10..=25).contains(&exchanges), "{exchanges} exchanges");
        malformed.is_sound.store(true, Ordering::SeqCst);
        assert_eq!(answers_of(LONGEST_PAUSE), 1);
        let known = other.inner.removals.known().expect("all of them");
        assert!(node.inner.removals.has_applied(&known));
    }

    /// A second table with the same removals comes while the listener is called for entries that the first one
    /// drops.
    #[test]
    fn merge_ends_after_the_entries_of_another_one_are_dropped() {
        let (reached, listening) = channel();
        let (go_on, waits) = channel::<()>();
        let (is_first, waits) = (AtomicBool::new(true), Mutex::new(waits));
        let reached = Mutex::new(reached);
        let node = Group::builder("compare")
            .max_capacity(1 << 20)
            .shards(2)
            .eviction_listener(move |_, _, _| {
                if is_first.swap(false, Ordering::SeqCst) {
                    let _ = reached.lock().send(());
                    let _ = waits.lock().recv_timeout(PATIENCE);
                }
            })
            .make(
                getter_fn(|_, key, dest| Ok(dest.set_str(key)?)),
                PickerSlot::default(),
            );
        for key in 0..40 {
            node.get(&key.to_string()).expect("a value");
        }
        let other = Group::builder("compare").make(
            getter_fn(|_, key, dest| Ok(dest.set_str(key)?)),
            PickerSlot::default(),
        );
        other.clear(&Context::background()).expect("no peers");
        let table = other.serve_removals(&RemovalTable::default());
        let first = {
            let (node, table) = (node.clone(), table.clone());
            thread::spawn(move || drop(node.serve_removals(&table)))
        };
        listening
            .recv_timeout(PATIENCE)
            .expect("an entry is dropped");
        node.serve_removals(&table);
        assert_eq!(node.entry_count(), 0);
        let known = other.inner.removals.known().expect("all of them");
        assert!(node.inner.removals.has_applied(&known));
        go_on.send(()).expect("it waits");
        first.join().expect("no panic");
    }
}
