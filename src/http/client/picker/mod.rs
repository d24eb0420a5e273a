//! Finds the peer that owns a key: the placement of keys and the clients of the peers, replaced
//! together.
//!
//! - `key_owners`: which node owns which key. `routes`: the order in which peers are asked.
//! - `handoff`: the owners of keys before the last change.

mod handoff;
pub(crate) mod key_owners;
mod routes;

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::net::IpAddr;
use std::time::Instant;

use crate::error::{Error, ErrorKind, Result};
use crate::http::client::health::Standing;
use crate::http::client::health::status::PeerStatus;
use crate::http::client::health::watch::Watch;
use crate::http::client::peer::HttpPeer;
use crate::http::client::picker::handoff::Handoff;
use crate::http::client::picker::key_owners::KeyOwners;
use crate::http::client::transport::Transport;
use crate::http::client::transport::default::default_transport;
use crate::http::client::transport::resolve::Addresses;
use crate::http::client::transport::target::Target;
use crate::http::client::transport::url::PeerUrl;
use crate::http::config::{Config, KnownPeers};
use crate::http::membership::Membership;
use crate::panics::caught;
use crate::peer::Peer;
use crate::peers::{KeyRoute, PeerPicker, ProtoGetter, Route};
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::{Arc, RwLock};

/// Picks peers by the list that was set last.
///
/// It is separate from `HttpPool`, because the registry holds it and the pool holds the registry.
/// If the registry held the pool itself, the two would keep each other alive for ever.
pub(crate) struct Picker {
    own: OwnIdentity,
    /// How keys are assigned, without nodes.
    empty: KeyOwners,
    /// Whether the next peer is asked if the owner does not answer.
    failover: bool,
    transport: Option<Box<TransportHook>>,
    config: Arc<Config>,
    membership: Arc<Membership>,
    /// Whether it was logged that this process is not in its list.
    is_absence_logged: AtomicBool,
    handoff: Arc<Handoff>,
    /// Replaced as a whole. Requests under way go on with the list that they began with.
    peers: RwLock<Arc<PeerList>>,
    watch: Arc<Watch>,
}

/// Wraps or replaces the default transport of the peer whose URL it gets.
pub(crate) type TransportHook =
    dyn Fn(&str, Arc<dyn Transport>) -> Arc<dyn Transport> + Send + Sync;

/// How this process recognises itself in a list of peers.
pub(crate) struct OwnIdentity {
    pub(crate) id: Option<String>,
    /// [`PeerUrl::canonical`] of its URL.
    pub(crate) addr: String,
}

struct PeerList {
    placement: KeyOwners,
    /// The peers, in the order of the list, each at its place.
    members: Vec<Member>,
    /// The zone of this process.
    own_zone: Option<String>,
}

struct Member {
    peer: Peer,
    /// `None` for this process.
    client: Option<Arc<HttpPeer>>,
}

/// A peer of a list that passed all checks.
struct CheckedPeer {
    peer: Peer,
    url: PeerUrl,
}

impl Picker {
    pub(crate) fn new(
        own: OwnIdentity,
        empty: KeyOwners,
        failover: bool,
        transport: Option<Box<TransportHook>>,
        config: Arc<Config>,
        membership: Arc<Membership>,
    ) -> Self {
        membership.set("", &[], own.id.as_deref());
        let peers = RwLock::new(Arc::new(PeerList {
            placement: empty.clone(),
            members: Vec::new(),
            own_zone: None,
        }));
        Picker {
            own,
            empty,
            failover,
            transport,
            watch: Watch::new(config.absent_after, config.slow_after),
            config,
            membership,
            is_absence_logged: AtomicBool::new(false),
            handoff: Arc::default(),
            peers,
        }
    }

    /// See `HttpPool::set`.
    pub(crate) fn set(&self, peers: impl Iterator<Item = Peer>) -> Result<()> {
        let checked = check_list(peers)?;
        let mut made = Vec::new();
        loop {
            // `list_of` runs user code (the transport hook, the hash), so no lock is held, and
            // another thread can set peers meanwhile. Then the list is built again, with the
            // clients of the other thread's list and those in `made`.
            let before = self.peers();
            let after = Arc::new(self.list_of(&checked, &before, &mut made)?);
            let mut current = self.peers.write();
            if Arc::ptr_eq(&current, &before) {
                let own = after.own().map(|own| &own.peer.id);
                let own = own.or(self.own.id.as_ref()).map(String::as_str);
                let placement = after.placement.name();
                self.membership.set(&placement, &after.peers(), own);
                *current = after.clone();
                // Under the lock, so that of two lists the watch has the last one, too.
                let others = after.clients().map(HttpPeer::watched).collect();
                let watched = self.watch.set_peers(others);
                // The lock is released before `before` drops the clients that are not used any more.
                drop(current);
                drop(watched);
                self.warn_if_absent(&after);
                self.begin_handoff(&before, &after);
                return Ok(());
            }
        }
    }

    fn list_of(
        &self,
        checked: &[CheckedPeer],
        before: &PeerList,
        made: &mut Vec<(String, Arc<HttpPeer>)>,
    ) -> Result<PeerList> {
        let peers: Vec<Peer> = checked.iter().map(|checked| checked.peer.clone()).collect();
        let placement = self.empty.with(&peers)?;
        let own = self.own.find(checked);
        let mut client_of = |checked: &CheckedPeer| {
            let url = checked.url.as_str();
            match before.client_of(&checked.peer) {
                // A peer that stays keeps its client, and its connections.
                Some(kept) => {
                    kept.reset_batches();
                    kept.clone()
                }
                None => {
                    if let Some((_, client)) = made.iter().find(|(of, _)| of == url) {
                        return client.clone();
                    }
                    let client = self.client(checked);
                    made.push((url.to_owned(), client.clone()));
                    client
                }
            }
        };
        let members = checked.iter().enumerate().map(|(place, checked)| Member {
            peer: checked.peer.clone(),
            client: (own != Some(place)).then(|| client_of(checked)),
        });
        let members = members.collect();
        Ok(PeerList {
            own_zone: own.and_then(|own| peers[own].zone.clone()),
            placement,
            members,
        })
    }

    /// Lets this process take values over from the previous owners of its keys.
    fn begin_handoff(&self, before: &PeerList, after: &PeerList) {
        let Some(own) = after.own() else {
            return;
        };
        if before.members.is_empty() {
            if after.members.len() > 1 {
                let members = after.members.iter();
                let members = members.map(|member| (member.peer.clone(), member.client.clone()));
                let own_id = own.peer.id.clone();
                self.handoff.fetch_previous(
                    self.empty.clone(),
                    members.collect(),
                    own_id,
                    self.membership.clone(),
                );
            }
            return;
        }
        fn nodes(list: &PeerList) -> HashSet<(&str, u32)> {
            let peers = list.members.iter().map(|member| &member.peer);
            peers.map(|peer| (&*peer.id, peer.weight)).collect()
        }
        if nodes(before) != nodes(after) {
            before.begin_handoff(&self.handoff);
        }
    }

    /// Logs, once, that this process is in no list.
    fn warn_if_absent(&self, list: &PeerList) {
        let is_absent = !list.members.is_empty() && list.own().is_none();
        if is_absent && !self.is_absence_logged.swap(true, Ordering::Relaxed) {
            log::warn!(
                "this process ({}) is not in its list of peers, so it owns no keys and asks peers for \
                 all: {self:?}",
                self.own.addr
            );
        }
    }

    fn client(&self, CheckedPeer { peer, url }: &CheckedPeer) -> Arc<HttpPeer> {
        let target = Target::new(url, &self.config);
        let mut by = default_transport(target.clone());
        if let Some(hook) = &self.transport {
            by.transport = hook(url.as_str(), by.transport);
        }
        let watch = self.watch.clone();
        let membership = self.membership.clone();
        Arc::new(HttpPeer::new(target, &peer.id, membership, by, watch))
    }

    /// See `HttpPool::peers`.
    pub(crate) fn statuses(&self) -> Vec<PeerStatus> {
        self.watch.tick(Instant::now());
        let peers = self.peers();
        let status = |member: &Member| {
            let client = member.client.as_ref()?;
            Some(client.status(member.peer.clone()))
        };
        peers.members.iter().filter_map(status).collect()
    }

    /// See `HttpPool::leave`.
    pub(crate) fn announce_leave(&self) {
        let peers = self.peers();
        if let Some(own) = peers.own() {
            let announce = |client: &Arc<HttpPeer>| {
                // A panic of the program's transport or logger must not end the announcement.
                caught(|| {
                    if let Err(error) = client.announce_leave(&own.peer.id) {
                        log::warn!("a peer did not confirm that this process leaves: {error}");
                    }
                });
            };
            let announce = &announce;
            // At the same time, so that no peer passes a key to one that has not received the announcement.
            std::thread::scope(|scope| {
                for client in peers.clients() {
                    let named = std::thread::Builder::new().name("larder-leave".into());
                    if named.spawn_scoped(scope, move || announce(client)).is_err() {
                        announce(client);
                    }
                }
            });
        }
        self.watch.leave();
    }

    /// Whether this process still asks previous owners for the values of its keys.
    pub(crate) fn is_handing_over(&self) -> bool {
        self.handoff.is_active()
    }

    /// The owner of `key`, this process or another.
    pub(crate) fn owner(&self, key: &str) -> Option<Peer> {
        let peers = self.peers();
        let owner = peers.placement.owner(key)?;
        Some(peers.members[owner].peer.clone())
    }

    /// The list that was set last.
    pub(crate) fn list(&self) -> Vec<Peer> {
        self.peers().peers()
    }

    fn peers(&self) -> Arc<PeerList> {
        self.peers.read().clone()
    }
}

impl OwnIdentity {
    /// The index of this process in a list.
    fn find(&self, list: &[CheckedPeer]) -> Option<usize> {
        let by_id = |id: &String| list.iter().position(|checked| checked.peer.id == *id);
        let by_addr = || {
            list.iter()
                .position(|checked| checked.url.canonical() == self.addr)
        };
        self.id.as_ref().and_then(by_id).or_else(by_addr)
    }
}

impl KnownPeers for Picker {
    fn peers_at(&self, ip: IpAddr) -> usize {
        let peers = self.peers();
        let others = peers.clients();
        others.filter(|peer| peer.target().is_at(ip)).count()
    }

    fn count(&self) -> usize {
        self.peers().clients().count()
    }

    fn look_up_again(&self) {
        let peers = self.peers();
        let addresses = peers.clients().map(|peer| peer.target().addresses());
        addresses.for_each(Addresses::refresh_old);
    }

    /// From now on, the next peer owns its keys. It asks the one that leaves for what that has cached, so
    /// the handoff begins before.
    fn leave(&self, id: &str) -> bool {
        let peers = self.peers();
        let mut members = peers.members.iter();
        let found = members.find(|member| member.peer.id == id);
        let Some(client) = found.and_then(|member| member.client.as_ref()) else {
            return false;
        };
        peers.begin_handoff(&self.handoff);
        client.health().leave();
        self.watch.wake();
        true
    }

    /// While this process was away, the node that is next for each of its keys loaded it. Peers that this
    /// process cannot reach may be back, too.
    fn note_probe(&self) {
        let peers = self.peers();
        self.handoff.begin_after_absence(|| {
            let others: Vec<&Member> = peers.others().collect();
            let nodes: Vec<Peer> = others.iter().map(|member| member.peer.clone()).collect();
            let clients = others.iter().map(|member| member.client.clone());
            Some((self.empty.with(&nodes).ok()?, clients.collect()))
        });
        let away = peers.clients().map(|client| client.health());
        let mut away = away
            .filter(|health| health.standing() >= Standing::Open)
            .peekable();
        if away.peek().is_some() {
            away.for_each(|health| health.probe_soon());
            self.watch.wake();
        }
    }
}

impl PeerPicker for Picker {
    fn pick_peer(&self, key: &str) -> Option<Arc<dyn ProtoGetter>> {
        let peers = self.peers();
        peers.client(peers.placement.owner(key)?)
    }

    /// Attempt 0 gives the owner, and attempt 1 the node that would own `key` without the owner, in
    /// the zone of this process if there is another node there. There is no third attempt, because
    /// two peers that do not answer have cost the caller enough time. If this process is reached
    /// first, the result is `None`, and it loads the key itself.
    fn pick_replica(&self, key: &str, attempt: usize) -> Option<Arc<dyn ProtoGetter>> {
        match attempt {
            0 => self.pick_peer(key),
            1 if self.failover => {
                let peers = self.peers();
                let owner = peers.placement.owner(key)?;
                // If this process is the owner, it asks no peer.
                peers.client(owner)?;
                peers.client(peers.next_of(key, |place| place != owner)?)
            }
            _ => None,
        }
    }

    fn previous_owner(&self, key: &str) -> Option<Arc<dyn ProtoGetter>> {
        self.handoff.previous_owner(key)
    }

    fn all_peers(&self) -> Vec<Arc<dyn ProtoGetter>> {
        let peers = self.peers();
        peers.clients().map(|peer| peer.clone() as _).collect()
    }

    fn route(&self, key: &str) -> Route {
        let peers = self.peers();
        if self.watch.is_any_away() {
            return peers.route_around(key, self.failover, &self.watch);
        }
        let owner = peers.placement.owner(key);
        match owner.and_then(|owner| peers.client(owner)) {
            Some(owner) => Route::Peer(owner),
            None => Route::Own,
        }
    }

    fn explain(&self, key: &str) -> KeyRoute {
        self.peers().explain(key, self.failover, &self.watch)
    }

    /// There is no third attempt: see [`pick_replica`](Self::pick_replica). Peers that are away are passed
    /// over, because that costs no time.
    fn pick_next(
        &self,
        key: &str,
        attempt: usize,
        asked: &Arc<dyn ProtoGetter>,
    ) -> Option<Arc<dyn ProtoGetter>> {
        if attempt > 1 || !self.failover || self.watch.is_cut_off() {
            return None;
        }
        let peers = self.peers();
        peers.next_after(key, asked)
    }
}

impl Drop for Picker {
    fn drop(&mut self) {
        self.watch.close();
    }
}

impl PeerList {
    /// The client of the peer at a place; `None` for this process.
    fn client(&self, place: usize) -> Option<Arc<dyn ProtoGetter>> {
        let client = self.members.get(place)?.client.as_ref()?;
        let is_other = !client.is_this_process();
        is_other.then(|| client.clone() as Arc<dyn ProtoGetter>)
    }

    /// This process, if it is in the list.
    fn own(&self) -> Option<&Member> {
        self.members.iter().find(|member| member.client.is_none())
    }

    fn peers(&self) -> Vec<Peer> {
        let members = self.members.iter();
        members.map(|member| member.peer.clone()).collect()
    }

    /// Begins to ask the nodes of this list for what they have cached.
    fn begin_handoff(&self, handoff: &Handoff) {
        let clients = self.members.iter().map(|member| member.client.clone());
        handoff.begin(self.placement.clone(), clients.collect());
    }

    fn clients(&self) -> impl Iterator<Item = &Arc<HttpPeer>> {
        self.others().filter_map(|member| member.client.as_ref())
    }

    /// All but this process.
    fn others(&self) -> impl Iterator<Item = &Member> {
        self.members.iter().filter(|member| member.client.is_some())
    }

    /// The client of the peer with this id, if it has the same URL.
    fn client_of(&self, peer: &Peer) -> Option<&Arc<HttpPeer>> {
        let members = &mut self.members.iter();
        let is_same = |other: &Peer| other.url == peer.url && other.id == peer.id;
        let member = members.find(|member| is_same(&member.peer))?;
        member.client.as_ref()
    }
}

impl fmt::Debug for Picker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.list()).finish()
    }
}

/// Parses a list of peers and checks that it is not empty, and that no id and no address is in it twice.
fn check_list(peers: impl Iterator<Item = Peer>) -> Result<Vec<CheckedPeer>> {
    let duplicate = |message: String| Error::new(ErrorKind::DuplicatePeer, message);
    let (mut ids, mut addresses) = (HashSet::new(), HashMap::new());
    let mut list = Vec::new();
    for peer in peers {
        peer.check()?;
        let url = PeerUrl::parse(&peer.url)?;
        if let Some(other) = addresses.insert(url.canonical(), peer.url.clone()) {
            let message = format!("{other:?} and {:?} are one peer; list it once", peer.url);
            return Err(duplicate(message));
        }
        if !ids.insert(peer.id.clone()) {
            return Err(duplicate(format!("two peers have the id {:?}", peer.id)));
        }
        list.push(CheckedPeer { peer, url });
    }
    if list.is_empty() {
        // Usually a look-up that failed. Each process would load all keys.
        return Err(ErrorKind::NoPeers.into());
    }
    Ok(list)
}
