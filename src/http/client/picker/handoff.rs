//! Handoff: after a change of peers, the previous owner of a key may still have its value.
//!
//! For a while after each change, a group asks the previous owner for what it has cached, before it
//! runs its own getter. A process that has just started asks a peer which list it had before. One that was
//! only cut off is probed by its peers, which shows it that the next node has loaded its keys meanwhile.

use std::sync::Weak;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crate::context::Context;
use crate::error::Result;
use crate::http::client::peer::HttpPeer;
use crate::http::client::picker::key_owners::KeyOwners;
use crate::http::membership::{HANDOFF_WINDOW, Membership, PeersPage};
use crate::panics::caught;
use crate::pb::GetRequest;
use crate::peer::Peer;
use crate::peers::{PeerResponse, ProtoGetter};
use crate::sync::atomic::AtomicBool;
use crate::sync::{Arc, Condvar, Mutex, RwLock, spawn};

/// The owners of keys before the last change.
#[derive(Default)]
pub(crate) struct Handoff {
    previous: RwLock<Option<Arc<PreviousList>>>,
    fetch: ListFetch,
    /// When this process last began to ask others for values because it had been away.
    last_return: Mutex<Option<Instant>>,
}

/// Whether a thread [fetches](Handoff::fetch_previous) the previous list, for which loads wait a few
/// milliseconds. Otherwise the first ones after a start would run the getter for values that other processes
/// have.
#[derive(Default)]
struct ListFetch {
    /// Read without the lock by each load.
    is_under_way: AtomicBool,
    /// The end of the wait of loads. `None` once the thread has ended.
    until: Mutex<Option<Instant>>,
    ended: Condvar,
}

impl ListFetch {
    fn begin(&self) {
        *self.until.lock() = Some(Instant::now() + LONGEST_WAIT);
        self.is_under_way.store(true, Ordering::Relaxed);
    }

    fn end(&self) {
        *self.until.lock() = None;
        self.is_under_way.store(false, Ordering::Relaxed);
        self.ended.notify_all();
    }

    fn wait(&self) {
        if !self.is_under_way.load(Ordering::Relaxed) {
            return;
        }
        let mut until = self.until.lock();
        while let Some(end) = *until {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            until = self.ended.wait_timeout(until, left);
        }
    }
}

/// The clients of the nodes of a list, each at its place.
pub(crate) type PreviousClients = Vec<Option<Arc<HttpPeer>>>;

/// The owners of keys before a change, and the time until which they are asked.
struct PreviousList {
    placement: KeyOwners,
    /// The nodes, each at its place; `None` for this process and for unknown nodes.
    owners: Vec<Option<Arc<PreviousOwner>>>,
    until: Instant,
    misses: Arc<AtomicU32>,
}

impl Handoff {
    /// Begins to ask the nodes of the list that was just replaced.
    pub(crate) fn begin(&self, placement: KeyOwners, clients: PreviousClients) {
        self.begin_with(0, placement, clients);
    }

    fn begin_with(&self, misses: u32, placement: KeyOwners, clients: PreviousClients) {
        let misses = Arc::new(AtomicU32::new(misses));
        let owner = |client| {
            let misses = Arc::clone(&misses);
            Arc::new(PreviousOwner { client, misses })
        };
        let owners = clients.into_iter().map(|client| client.map(owner));
        let previous = PreviousList {
            placement,
            owners: owners.collect(),
            until: Instant::now() + HANDOFF_WINDOW,
            misses,
        };
        let before = self.previous.write().replace(Arc::new(previous));
        drop(before);
    }

    /// Begins to ask the nodes of `previous`, the list without this process: a probe showed that this process
    /// was away for a peer, so others loaded its keys. Does nothing if previous owners are asked already, and
    /// at most once in [`RETURN_PAUSE`], because a slow process is probed again and again.
    pub(crate) fn begin_after_absence(
        &self,
        previous: impl FnOnce() -> Option<(KeyOwners, PreviousClients)>,
    ) {
        let now = Instant::now();
        let is_known = |previous: &Option<Arc<PreviousList>>| {
            previous
                .as_ref()
                .is_some_and(|previous| now < previous.until)
        };
        let mut last_return = self.last_return.lock();
        let is_recent = last_return.is_some_and(|at| now - at < RETURN_PAUSE);
        if is_recent || is_known(&self.previous.read()) {
            return;
        }
        *last_return = Some(now);
        drop(last_return);
        if let Some((placement, clients)) = previous() {
            // The peer may be the one that is sick. Then there is nothing to take over.
            self.begin_with(MAX_MISSES - FEW_MISSES, placement, clients);
        }
    }

    pub(crate) fn is_active(&self) -> bool {
        self.previous.read().is_some()
    }

    /// The previous owner of `key`, if it may still have a value that this process lacks.
    pub(crate) fn previous_owner(&self, key: &str) -> Option<Arc<dyn ProtoGetter>> {
        self.fetch.wait();
        let previous = self.previous.read().clone()?;
        if previous.misses.load(Ordering::Relaxed) >= MAX_MISSES || Instant::now() >= previous.until
        {
            let ended = self
                .previous
                .write()
                .take_if(|other| Arc::ptr_eq(other, &previous));
            drop(ended);
            return None;
        }
        // A node that had gone before had left its keys to the next one. Nodes without a client stay.
        let may_have = |place: usize| {
            let owner = previous.owners.get(place).and_then(Option::as_ref);
            owner.is_none_or(|owner| owner.client.health().may_hand_over())
        };
        let owner = previous.placement.owner_among(key, may_have)?;
        let owner = previous.owners.get(owner)?.clone()?;
        Some(owner)
    }

    /// Fetches the previous list from the peers, for a process that has just received its first list.
    /// `members` are that list; `own_id` is the id of this process.
    ///
    /// The peers are asked on a thread, one after the other, until one has an answer. Peers that probe this
    /// process wait for that, and so do loads, for [`LONGEST_WAIT`] at most.
    pub(crate) fn fetch_previous(
        self: &Arc<Self>,
        empty: KeyOwners,
        members: Vec<(Peer, Option<Arc<HttpPeer>>)>,
        own_id: String,
        membership: Arc<Membership>,
    ) {
        let handoff = Arc::downgrade(self);
        membership.hold();
        self.fetch.begin();
        let guard = FetchGuard {
            membership,
            handoff: handoff.clone(),
        };
        let fetch = move || {
            let _held = guard;
            let clients = members.iter().filter_map(|(_, client)| client.as_ref());
            // A panic of the program's transport for one peer must not keep the others from being asked.
            let page = |client: &Arc<HttpPeer>| caught(|| client.page_reader()().ok()).flatten();
            let mut pages = clients.filter_map(page);
            let Some(page) = pages.next() else {
                return;
            };
            let Some((placement, clients)) = previous_list_of(&empty, &members, &page, &own_id)
            else {
                return;
            };
            if let Some(handoff) = handoff.upgrade() {
                handoff.begin(placement, clients);
            }
        };
        // Without a thread, the first loads run the getter.
        let _ = spawn("larder-handoff", Some(STACK), fetch);
    }
}

/// Holds peers and loads back until it is dropped.
struct FetchGuard {
    membership: Arc<Membership>,
    handoff: Weak<Handoff>,
}

impl Drop for FetchGuard {
    fn drop(&mut self) {
        self.membership.release();
        if let Some(handoff) = self.handoff.upgrade() {
            handoff.fetch.end();
        }
    }
}

/// The nodes that owned the keys before this process had its list, by the page of a peer.
///
/// The peer may have the old list still, without this process. If it has the new one, its page has the
/// old one too, unless this process was in both: then it comes back, and each of its keys was loaded by
/// the node that is next for it.
fn previous_list_of(
    empty: &KeyOwners,
    members: &[(Peer, Option<Arc<HttpPeer>>)],
    page: &str,
    own_id: &str,
) -> Option<(KeyOwners, PreviousClients)> {
    let page = PeersPage::parse(page)?;
    let has_own = |list: &[Peer]| list.iter().any(|peer| peer.id == own_id);
    let mut nodes = match page.previous {
        _ if !has_own(&page.current) => page.current,
        Some(previous) => previous,
        None => page.current,
    };
    nodes.retain(|peer| peer.id != own_id);
    let client_of = |node: &Peer| {
        let same = members.iter().find(|(peer, _)| peer.id == node.id);
        same.and_then(|(_, client)| client.clone())
    };
    let clients = nodes.iter().map(client_of).collect();
    Some((empty.with(&nodes).ok()?, clients))
}

/// A peer that is only asked for what it has cached.
struct PreviousOwner {
    client: Arc<HttpPeer>,
    /// The answers without a value since the last one with a value. All previous owners share the count.
    misses: Arc<AtomicU32>,
}

impl ProtoGetter for PreviousOwner {
    fn get(&self, ctx: &Context, request: &GetRequest<'_>) -> Result<PeerResponse> {
        self.client.get(ctx, request)
    }

    fn get_many(
        &self,
        ctx: &Context,
        group: &str,
        keys: &[&str],
    ) -> Result<Vec<Option<PeerResponse>>> {
        let answers = self.client.get_many(ctx, group, keys);
        let misses = &self.misses;
        match &answers {
            Ok(answers) if answers.iter().any(Option::is_some) => {
                misses.store(0, Ordering::Relaxed)
            }
            Ok(_) => _ = misses.fetch_add(1, Ordering::Relaxed),
            Err(_) => _ = misses.fetch_add(COST_OF_FAILURE, Ordering::Relaxed),
        }
        answers
    }

    fn url(&self) -> String {
        self.client.url()
    }

    fn honors_deadline(&self) -> bool {
        true
    }
}

/// How long loads wait for the previous list, from the first list on. The answer of a peer takes a
/// millisecond or two, and a peer that does not run refuses at once. Under loom, only the end of the thread
/// ends the wait.
const LONGEST_WAIT: Duration = Duration::from_millis(if cfg!(larder_loom) { 3_600_000 } else { 5 });

/// After so many answers in a row without a value, previous owners are not asked any more: the cluster
/// has just started, or the window is longer than it needs to be.
const MAX_MISSES: u32 = 256;

/// Like [`MAX_MISSES`], for a process that may have been away, until it gets the first value. The number is
/// more than the cost of one failure, because an answer may be late on a busy machine.
const FEW_MISSES: u32 = 4 * COST_OF_FAILURE;

/// A failed exchange counts as so many answers without a value, because it costs more time.
const COST_OF_FAILURE: u32 = 16;

/// The shortest time between two takeovers after an absence of this process.
const RETURN_PAUSE: Duration = Duration::from_secs(3);

/// The stack of the thread that fetches the previous list, in bytes.
const STACK: usize = 256 << 10;

#[cfg(all(test, larder_loom))]
mod model {
    use std::sync::atomic::AtomicUsize;

    use super::*;
    use crate::rendezvous::Rendezvous;
    use crate::sync::thread;

    #[test]
    fn loom_load_that_waits_for_the_previous_list_is_woken() {
        loom::model(|| {
            let fetch = Arc::new(ListFetch::default());
            fetch.begin();
            let waiting = {
                let fetch = fetch.clone();
                thread::spawn(move || fetch.wait())
            };
            fetch.end();
            waiting.join().unwrap();
        });
    }

    #[test]
    fn loom_returns_at_the_same_time_begin_one_handoff() {
        loom::model(|| {
            let handoff = Arc::new(Handoff::default());
            let lists = Arc::new(AtomicUsize::new(0));
            let begin_after_absence = |handoff: &Handoff, lists: &AtomicUsize| {
                handoff.begin_after_absence(|| {
                    lists.fetch_add(1, Ordering::Relaxed);
                    Some((KeyOwners::Rendezvous(Rendezvous::new()), Vec::new()))
                });
            };
            let other = {
                let (handoff, lists) = (handoff.clone(), lists.clone());
                thread::spawn(move || begin_after_absence(&handoff, &lists))
            };
            let asking = {
                let handoff = handoff.clone();
                thread::spawn(move || handoff.previous_owner("key").is_none())
            };
            begin_after_absence(&handoff, &lists);
            other.join().unwrap();
            assert!(asking.join().unwrap(), "the list has no nodes");
            assert_eq!(lists.load(Ordering::Relaxed), 1);
            assert!(handoff.is_active());
        });
    }
}
