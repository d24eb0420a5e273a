//! Who owns a key now: the ring and the clients of its peers, replaced as one.

use std::collections::HashMap;
use std::fmt;

use crate::clock::Clock;
use crate::consistent_hash::Map;
use crate::error::{Error, ErrorKind, Result};
use crate::http::client::auto::transport_for;
use crate::http::client::peer::{HttpPeer, PeerLimits};
use crate::http::client::transport::Transport;
use crate::http::client::url::PeerUrl;
use crate::http::config::Config;
use crate::http::config::SharedLimits;
use crate::peers::{PeerPicker, ProtoGetter};
use crate::sync::{Arc, RwLock};

/// Picks peers by the list that was set last.
///
/// Apart from `HttpPool`, which holds the registry that holds this: together they would keep each
/// other alive for ever.
pub(crate) struct Picker {
    settings: PeerSettings,
    /// Replaced as a whole; requests under way go on with what they began with.
    peers: RwLock<Arc<Peers>>,
}

/// What all peers have in common.
pub(crate) struct PeerSettings {
    /// [`PeerUrl::place`] of this process.
    pub(crate) own_place: String,
    pub(crate) empty_ring: Map,
    /// Whether the next peer on the ring is asked where the owner does not answer.
    pub(crate) failover: bool,
    pub(crate) transport: Option<Arc<TransportHook>>,
    pub(crate) config: Arc<Config>,
    pub(crate) shared: SharedLimits,
}

/// Wraps or replaces the default transport of the peer whose URL it gets.
pub(crate) type TransportHook =
    dyn Fn(&str, Arc<dyn Transport>) -> Arc<dyn Transport> + Send + Sync;

struct Peers {
    ring: Map,
    /// By the spelling that is on the ring; `None` is this process.
    members: HashMap<String, Option<Arc<HttpPeer>>>,
    /// The same in the order of the ring's nodes.
    in_order: Vec<Option<Arc<HttpPeer>>>,
}

impl Picker {
    pub(crate) fn new(settings: PeerSettings) -> Self {
        let none = Peers {
            ring: settings.empty_ring.clone(),
            members: HashMap::new(),
            in_order: Vec::new(),
        };
        Picker {
            settings,
            peers: RwLock::new(Arc::new(none)),
        }
    }

    /// See `HttpPool::set`.
    pub(crate) fn set<S: AsRef<str>>(&self, urls: impl IntoIterator<Item = S>) -> Result<()> {
        let urls = check(urls)?;
        let mut made = HashMap::new();
        loop {
            // User code runs in `build`: the transport hook, the hash. So no lock is held, and
            // another thread can set peers in the meantime. Then the new list is built again, on
            // the clients of that one; the clients just made are in `made`.
            let before = self.peers();
            let after = Arc::new(self.build(&urls, &before, &mut made));
            let mut current = self.peers.write();
            if Arc::ptr_eq(&current, &before) {
                *current = after;
                // `before` is dropped when the lock is released, and with it what nobody uses.
                drop(current);
                return Ok(());
            }
        }
    }

    fn build(
        &self,
        urls: &[PeerUrl],
        before: &Peers,
        made: &mut HashMap<String, Arc<HttpPeer>>,
    ) -> Peers {
        let mut ring = self.settings.empty_ring.clone();
        ring.add(urls.iter().map(PeerUrl::spelling));
        let client_of = |url: &PeerUrl| {
            if url.place() == self.settings.own_place {
                return None;
            }
            let spelling = url.spelling();
            // A peer that stays keeps its client, and its connections.
            let kept = before.members.get(spelling).cloned().flatten();
            Some(kept.unwrap_or_else(|| {
                let made = made
                    .entry(spelling.to_owned())
                    .or_insert_with(|| Arc::new(self.settings.client(url)));
                made.clone()
            }))
        };
        let spellings = urls.iter().map(|url| url.spelling().to_owned());
        let members: HashMap<_, _> = spellings.zip(urls.iter().map(client_of)).collect();
        let nodes = ring.nodes().iter();
        Peers {
            in_order: nodes.map(|node| members.get(node).cloned()?).collect(),
            ring,
            members,
        }
    }

    /// The URL of the owner of `key`, this process or another.
    pub(crate) fn owner(&self, key: &str) -> Option<String> {
        self.peers().ring.get(key).map(str::to_owned)
    }

    /// The list that was set last.
    pub(crate) fn urls(&self) -> Vec<String> {
        self.peers().ring.nodes().to_vec()
    }

    fn peers(&self) -> Arc<Peers> {
        self.peers.read().clone()
    }
}

impl PeerPicker for Picker {
    fn pick_peer(&self, key: &str) -> Option<Arc<dyn ProtoGetter>> {
        // The hash can be the user's, so no lock is held while it runs; what follows it is so
        // short that the lock is held rather than the list's reference count raised and lowered,
        // in a line that all threads write.
        let hash = self.settings.empty_ring.hash(key);
        let peers = self.peers.read();
        let peer = peers.in_order[peers.ring.owner(hash)?].clone()?;
        Some(peer)
    }

    /// The owner, then the node that would own `key` without it, then nobody: two peers that do
    /// not answer have cost the caller enough time. Where this process comes first, it loads.
    fn pick_replica(&self, key: &str, attempt: usize) -> Option<Arc<dyn ProtoGetter>> {
        match attempt {
            0 => self.pick_peer(key),
            1 if self.settings.failover => {
                let peers = self.peers();
                let mut successors = peers.ring.successors(key);
                peers.member(successors.next()?)?;
                peers.member(successors.next()?)
            }
            _ => None,
        }
    }
}

impl Peers {
    /// The client of the node of this spelling; `None` for this process.
    fn member(&self, spelling: &str) -> Option<Arc<dyn ProtoGetter>> {
        let peer = self.members.get(spelling)?.clone()?;
        Some(peer)
    }
}

impl PeerSettings {
    fn client(&self, url: &PeerUrl) -> HttpPeer {
        let mut transport = transport_for(url, &self.config);
        if let Some(hook) = &self.transport {
            transport = hook(url.spelling(), transport);
        }
        HttpPeer::new(
            Arc::new(url.clone()),
            transport,
            &self.config.base_path,
            PeerLimits {
                exchange_timeout: self.config.exchange_timeout,
                max_connections: self.config.max_connections_per_peer,
                max_value_size: self.config.max_value_size,
                shared: self.shared,
            },
            Clock::system(),
        )
    }
}

impl fmt::Debug for Picker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let peers = self.peers();
        f.debug_list().entries(peers.ring.nodes()).finish()
    }
}

fn check<S: AsRef<str>>(urls: impl IntoIterator<Item = S>) -> Result<Vec<PeerUrl>> {
    let mut places = HashMap::new();
    let mut parsed = Vec::new();
    for url in urls {
        let url = PeerUrl::parse(url.as_ref())?;
        if let Some(other) = places.insert(url.place(), url.spelling().to_owned()) {
            return Err(Error::new(
                ErrorKind::DuplicatePeer,
                format!(
                    "{other:?} and {:?} are one peer; list it once",
                    url.spelling()
                ),
            ));
        }
        parsed.push(url);
    }
    Ok(parsed)
}
