//! Finds the peer that owns a key: the ring and the clients of its peers, replaced together.

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::time::Instant;

use foldhash::fast::RandomState;

use crate::consistent_hash::Map;
use crate::error::{Error, ErrorKind, Result};
use crate::http::client::auto::DefaultTransport;
use crate::http::client::health::Standing;
use crate::http::client::health::status::PeerStatus;
use crate::http::client::health::watch::{Probe, Watch, WatchedPeer};
use crate::http::client::peer::HttpPeer;
use crate::http::client::target::Target;
use crate::http::client::transport::Transport;
use crate::http::client::url::PeerUrl;
use crate::http::config::{Config, KnownPeers};
use crate::peers::{PeerPicker, ProtoGetter, Route};
use crate::sync::{Arc, RwLock};

/// Picks peers by the list that was set last.
///
/// It is separate from `HttpPool`, because the registry holds it and the pool holds the registry.
/// If the registry held the pool itself, the two would keep each other alive for ever.
pub(crate) struct Picker {
    /// [`PeerUrl::canonical`] of this process.
    self_addr: String,
    /// Options of the ring, without peers.
    empty_ring: Map,
    /// Whether the next peer on the ring is asked if the owner does not answer.
    failover: bool,
    transport: Option<Box<TransportHook>>,
    config: Arc<Config>,
    /// Replaced as a whole. Requests under way go on with the list that they began with.
    peers: RwLock<Arc<PeerList>>,
    watch: Arc<Watch>,
}

/// Wraps or replaces the default transport of the peer whose URL it gets.
pub(crate) type TransportHook =
    dyn Fn(&str, Arc<dyn Transport>) -> Arc<dyn Transport> + Send + Sync;

struct PeerList {
    ring: Map,
    /// The client of each node, by its text on the ring; `None` is this process.
    members: HashMap<String, Option<Arc<HttpPeer>>, RandomState>,
}

impl Picker {
    pub(crate) fn new(
        self_addr: String,
        empty_ring: Map,
        failover: bool,
        transport: Option<Box<TransportHook>>,
        config: Arc<Config>,
    ) -> Self {
        let peers = RwLock::new(Arc::new(PeerList {
            ring: empty_ring.clone(),
            members: HashMap::default(),
        }));
        Picker {
            self_addr,
            empty_ring,
            failover,
            transport,
            watch: Watch::new(config.absent_after),
            config,
            peers,
        }
    }

    /// See `HttpPool::set`.
    pub(crate) fn set<S: AsRef<str>>(&self, urls: impl IntoIterator<Item = S>) -> Result<()> {
        let urls = parse_list(urls)?;
        let mut made = HashMap::new();
        loop {
            // `list_of` runs user code (the transport hook, the hash), so no lock is held, and
            // another thread can set peers meanwhile. Then the list is built again, with the
            // clients of the other thread's list and those in `made`.
            let before = self.peers();
            let after = Arc::new(self.list_of(&urls, &before, &mut made));
            let mut current = self.peers.write();
            if Arc::ptr_eq(&current, &before) {
                *current = after.clone();
                let others = after.members.values().flatten();
                // Under the lock, so that of two lists the watch has the last one, too.
                let watched = self.watch.set_peers(others.map(watched).collect());
                // The lock is released before `before` drops the clients that are not used any more.
                drop(current);
                drop(watched);
                return Ok(());
            }
        }
    }

    fn list_of(
        &self,
        urls: &[PeerUrl],
        before: &PeerList,
        made: &mut HashMap<String, Arc<HttpPeer>>,
    ) -> PeerList {
        let mut ring = self.empty_ring.clone();
        ring.add(urls.iter().map(PeerUrl::as_str));
        let mut client_of = |url: &PeerUrl| {
            if url.canonical() == self.self_addr {
                return None;
            }
            let name = url.as_str();
            Some(match before.members.get(name) {
                // A peer that stays keeps its client, and its connections.
                Some(Some(kept)) => {
                    kept.reset_batches();
                    kept.clone()
                }
                _ => {
                    let client = made.entry(name.to_owned());
                    client.or_insert_with(|| self.client(url)).clone()
                }
            })
        };
        let members = urls
            .iter()
            .map(|url| (url.as_str().to_owned(), client_of(url)));
        PeerList {
            members: members.collect(),
            ring,
        }
    }

    fn client(&self, url: &PeerUrl) -> Arc<HttpPeer> {
        let target = Target::new(url, &self.config);
        let mut by = DefaultTransport::new(target.clone());
        if let Some(hook) = &self.transport {
            by.transport = hook(url.as_str(), by.transport);
        }
        Arc::new(HttpPeer::new(target, by, self.watch.clone()))
    }

    /// See `HttpPool::peers`.
    pub(crate) fn statuses(&self) -> Vec<PeerStatus> {
        self.watch.tick(Instant::now());
        let peers = self.peers();
        let nodes = peers.ring.nodes().iter();
        nodes
            .filter_map(|node| Some(peers.members.get(node)?.as_ref()?.status()))
            .collect()
    }

    /// The URL of the owner of `key`, this process or another.
    pub(crate) fn owner(&self, key: &str) -> Option<String> {
        self.peers().ring.get(key).map(str::to_owned)
    }

    /// The list that was set last.
    pub(crate) fn urls(&self) -> Vec<String> {
        self.peers().ring.nodes().to_vec()
    }

    fn peers(&self) -> Arc<PeerList> {
        self.peers.read().clone()
    }
}

impl KnownPeers for Picker {
    fn peers_at(&self, ip: IpAddr) -> usize {
        let peers = self.peers();
        let others = peers.members.values().flatten();
        others.filter(|peer| peer.target().is_at(ip)).count()
    }

    fn any(&self) -> bool {
        self.peers().members.values().flatten().next().is_some()
    }
}

impl PeerPicker for Picker {
    fn pick_peer(&self, key: &str) -> Option<Arc<dyn ProtoGetter>> {
        let peers = self.peers();
        peers.member(peers.ring.get(key)?)
    }

    /// Attempt 0 gives the owner, and attempt 1 the node that would own `key` without the owner.
    /// There is no third attempt, because two peers that do not answer have cost the caller enough
    /// time. If this process is reached first, the result is `None`, and it loads the key itself.
    fn pick_replica(&self, key: &str, attempt: usize) -> Option<Arc<dyn ProtoGetter>> {
        match attempt {
            0 => self.pick_peer(key),
            1 if self.failover => {
                let peers = self.peers();
                let mut successors = peers.ring.successors(key);
                peers.member(successors.next()?)?;
                peers.member(successors.next()?)
            }
            _ => None,
        }
    }

    fn route(&self, key: &str) -> Route {
        let peers = self.peers();
        if self.watch.is_any_away() {
            return peers.route_around(key, self.failover, self.watch.is_cut_off());
        }
        match peers.ring.get(key).and_then(|owner| peers.member(owner)) {
            Some(owner) => Route::Peer(owner),
            None => Route::Own,
        }
    }

    /// There is no third attempt: see [`pick_replica`](Self::pick_replica). Peers whose breakers are open
    /// are passed over, because they cost no time.
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
        let asked = Arc::as_ptr(asked).cast::<HttpPeer>();
        let mut nodes = peers.members_in_order(key);
        nodes.find(|node| node.is_some_and(|peer| Arc::as_ptr(peer) == asked))?;
        match nodes.find(|node| node.is_none_or(|peer| peer.health().is_closed()))? {
            Some(peer) => Some(peer.clone()),
            None => None,
        }
    }
}

impl Drop for Picker {
    fn drop(&mut self) {
        self.watch.close();
    }
}

impl PeerList {
    /// The nodes that own a key one after the other, if those before are gone; `None` is this process.
    fn members_in_order(&self, key: &str) -> impl Iterator<Item = Option<&Arc<HttpPeer>>> {
        let nodes = self.ring.successors(key);
        nodes.filter_map(|node| Some(self.members.get(node)?.as_ref()))
    }

    /// The route of a key while a peer is away.
    ///
    /// The keys of a peer that is down are loaded by the next one that is not, and kept there for a short
    /// time: by their own ring, the next one knows that it does not own them. Those of an absent peer
    /// belong to the next one. If this process is cut off, it loads the keys of all others itself.
    fn route_around(&self, key: &str, failover: bool, cut_off: bool) -> Route {
        let mut is_fallback = false;
        for node in self.members_in_order(key) {
            let Some(peer) = node else {
                return match is_fallback {
                    true => Route::Fallback,
                    false => Route::Own,
                };
            };
            match peer.health().standing() {
                Standing::Closed if cut_off => return Route::Fallback,
                Standing::Closed => return Route::Peer(peer.clone()),
                _ if !failover || cut_off => return Route::Fallback,
                Standing::Open => is_fallback = true,
                Standing::Absent => {}
            }
        }
        Route::Fallback
    }

    /// The client of a node of the ring; `None` for this process.
    fn member(&self, node: &str) -> Option<Arc<dyn ProtoGetter>> {
        let peer = self.members.get(node)?.clone()?;
        Some(peer)
    }
}

impl fmt::Debug for Picker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.urls()).finish()
    }
}

fn watched(peer: &Arc<HttpPeer>) -> WatchedPeer {
    let health = peer.health().clone();
    let peer: Arc<dyn Probe> = peer.clone();
    WatchedPeer {
        health,
        peer: Arc::downgrade(&peer),
    }
}

/// Parses a list of peers and checks that none is in it twice.
fn parse_list<S: AsRef<str>>(urls: impl IntoIterator<Item = S>) -> Result<Vec<PeerUrl>> {
    let mut seen = HashMap::new();
    let mut parsed = Vec::new();
    for url in urls {
        let url = PeerUrl::parse(url.as_ref())?;
        if let Some(other) = seen.insert(url.canonical(), url.as_str().to_owned()) {
            let message = format!(
                "{other:?} and {:?} are one peer; list it once",
                url.as_str()
            );
            return Err(Error::new(ErrorKind::DuplicatePeer, message));
        }
        parsed.push(url);
    }
    Ok(parsed)
}
