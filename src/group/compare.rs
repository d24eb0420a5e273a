//! Compares the removals of this node with those of its peers, and repairs differences.
//!
//! Every answer of a peer has a digest of its removals. If it differs from this node's, removals are
//! under way, or one of the two missed some, because it was cut off or because the node that removed
//! ended. So if the digests differ for [`PATIENCE`], the two exchange their tables. In each stripe that
//! differs, both drop the values whose load began before the other's last removal.
//!
//! A node remembers when a peer's digest was equal to its own. The peer's removals before that time are
//! known here, so they drop nothing. Without it, one node that was cut off would empty all others.

use std::time::Duration;

use super::Inner;
use super::fence::Answer;
use super::removal_clocks::RemovalMark;
use crate::clock::Tick;
use crate::context::Context;
use crate::error::Result;
use crate::loader_pool::JobFor;
use crate::panics::FirstPanic;
use crate::pb::RemovalTable;
use crate::peers::ProtoGetter;
use crate::sync::{Arc, Mutex};

/// What is known of the peers' removals.
#[derive(Default)]
pub(super) struct Comparisons(Mutex<Vec<Comparison>>);

struct Comparison {
    peer: std::sync::Weak<dyn ProtoGetter>,
    /// The peer's removals before this time are known here.
    equal_at: Option<Tick>,
    /// Whether the peer's last digest was another one.
    differs: bool,
    /// Whether a thread will exchange the tables, if the digests still differ then.
    is_scheduled: bool,
}

impl Comparisons {
    /// Calls `with` for the state of a peer.
    fn with<R>(&self, peer: &Arc<dyn ProtoGetter>, with: impl FnOnce(&mut Comparison) -> R) -> R {
        let mut comparisons = self.0.lock();
        let is_of = |comparison: &Comparison| {
            comparison.peer.as_ptr().cast::<()>() == Arc::as_ptr(peer).cast::<()>()
        };
        let at = comparisons.iter().position(is_of).unwrap_or_else(|| {
            // A reference to a peer of an old list keeps its address from being used again.
            comparisons.retain(|comparison| comparison.peer.strong_count() > 0);
            comparisons.push(Comparison {
                peer: Arc::downgrade(peer),
                equal_at: None,
                differs: false,
                is_scheduled: false,
            });
            comparisons.len() - 1
        });
        with(&mut comparisons[at])
    }
}

impl Inner {
    /// Compares the digest in a peer's answer with this node's. If they differ although the two nodes
    /// were not equal for [`PATIENCE`], repairs the difference before it returns, and otherwise after
    /// that time.
    pub(super) fn compare(self: &Arc<Self>, peer: &Arc<dyn ProtoGetter>, (sent, response): &Answer) {
        let Some(mark) = response.removals.map(RemovalMark::from_bits) else {
            return;
        };
        if self.removals.has_same_digest(mark) {
            if !self.removals.are_unused() {
                self.comparisons.with(peer, |comparison| {
                    comparison.equal_at = comparison.equal_at.max(Some(*sent));
                    comparison.differs = false;
                });
            }
            return;
        }
        let now = self.store.clock().now();
        let (is_old, is_first) = self.comparisons.with(peer, |comparison| {
            comparison.differs = true;
            let is_first = !std::mem::replace(&mut comparison.is_scheduled, true);
            let equal_at = comparison.equal_at;
            (equal_at.is_none_or(|at| now.since(at) > PATIENCE), is_first)
        });
        if !is_first {
            return;
        }
        let is_late = is_old || self.repair_later(peer).is_err();
        if is_late {
            self.repair(peer);
        }
    }

    fn repair_later(self: &Arc<Self>, peer: &Arc<dyn ProtoGetter>) -> Result<()> {
        let (group, peer) = (self.clone(), peer.clone());
        self.pool.submit(JobFor::Own, move |_busy| {
            std::thread::sleep(PATIENCE);
            group.repair(&peer);
        })
    }

    /// Exchanges tables with a peer, unless the digests are equal by now.
    fn repair(&self, peer: &Arc<dyn ProtoGetter>) {
        let (differs, equal_at) = self.comparisons.with(peer, |comparison| {
            (comparison.differs, comparison.equal_at)
        });
        let sent = self.store.clock().now();
        let exchanged = match differs {
            true => self.exchange_tables(peer, sent, equal_at),
            false => Ok(()),
        };
        if let Err(error) = &exchanged {
            log::debug!("group {}: {error}", self.name);
        }
        self.comparisons.with(peer, |comparison| {
            comparison.is_scheduled = false;
            if differs && exchanged.is_ok() {
                comparison.equal_at = comparison.equal_at.max(Some(sent));
            }
        });
    }

    fn exchange_tables(
        &self,
        peer: &Arc<dyn ProtoGetter>,
        sent: Tick,
        equal_at: Option<Tick>,
    ) -> Result<()> {
        let request = RemovalTable {
            group: self.name.as_str().into(),
            clocks: Some(self.removals.encode(sent, equal_at).into()),
            digest: Some(self.removals.full_digest()),
        };
        let ctx = Context::background().with_timeout(LONGEST_EXCHANGE);
        let answer = peer.compare_removals(&ctx, &request)?;
        if let Some(table) = &answer.clocks {
            self.merge(table, equal_at);
        }
        Ok(())
    }

    /// The answer to a peer's table.
    pub(super) fn serve_table(&self, request: &RemovalTable<'_>) -> RemovalTable<'static> {
        let digest = self.removals.full_digest();
        let differs = request.digest != Some(digest);
        // Before the merge, which may make this node's stamps those of the peer.
        let clocks = differs.then(|| self.removals.encode(self.store.clock().now(), None));
        if let Some(table) = request.clocks.as_ref().filter(|_| differs) {
            self.merge(table, None);
        }
        RemovalTable {
            group: request.group.clone().into_owned().into(),
            clocks: clocks.map(Into::into),
            digest: Some(digest),
        }
    }

    /// Applies the removals in a peer's table that are not known here.
    fn merge(&self, table: &[u8], equal_at: Option<Tick>) {
        let unsettled = self.removals.unsettle();
        let received = self.store.clock().now();
        let Some(floors) = self.removals.merge(table, received, equal_at) else {
            return;
        };
        let mut panic = FirstPanic::default();
        // Loads that began before are not cached, and are joined by no caller.
        let is_old = |key: &str, begun: Option<Tick>| floors.is_older(key, begun);
        self.store.remove_older(&is_old, |removed| self.notify_all(removed, &mut panic));
        self.getter_flights.forget_all();
        self.peer_flights.forget_all();
        drop(unsettled);
        panic.resume();
    }
}

/// How long two digests may differ because of removals under way.
const PATIENCE: Duration = Duration::from_millis(200);

/// The longest exchange of tables.
const LONGEST_EXCHANGE: Duration = Duration::from_secs(2);
