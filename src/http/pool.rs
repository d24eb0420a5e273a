//! `HttpPool`: the peers of this process, and its own place among them.

use std::fmt;

use crate::error::Result;
use crate::http::builder::HttpPoolBuilder;
use crate::http::picker::Picker;
use crate::peers::{PeerPicker, PeerSet, ProtoGetter};
use crate::sync::Arc;

/// The peers that share a cache with this process, reached over HTTP.
///
/// A pool picks the peer that owns a key. Peers are set as a list of URLs, which every process of
/// the cluster must spell in the same way: the ring hashes the text as it is.
///
/// Clones are the same pool. Any thread may use it and set its peers at any time.
#[derive(Clone)]
pub struct HttpPool {
    shared: Arc<Shared>,
}

struct Shared {
    self_url: String,
    picker: Arc<Picker>,
}

impl HttpPool {
    /// A pool with the default options, the peer picker of [`Registry::global`].
    ///
    /// `self_url` is the URL of this process, as it stands in the list of peers. There are no peers
    /// until [`set`](Self::set) is called: every key is this process's own.
    ///
    /// [`Registry::global`]: crate::Registry::global
    ///
    /// # Errors
    ///
    /// As [`HttpPoolBuilder::build`].
    pub fn new(self_url: &str) -> Result<Self> {
        Self::builder(self_url).build()
    }

    /// A pool with options.
    pub fn builder(self_url: &str) -> HttpPoolBuilder {
        HttpPoolBuilder::new(self_url)
    }

    pub(crate) fn from_parts(self_url: String, picker: Arc<Picker>) -> Self {
        HttpPool {
            shared: Arc::new(Shared { self_url, picker }),
        }
    }

    /// Replaces the list of peers. It should hold this process too: without it, it owns no keys
    /// and asks others for all.
    ///
    /// A URL is `http://host:port`, with a path if the peer is mounted below one; the port is 80
    /// if there is none, and a host is a name or an address, IPv6 in brackets. This process finds
    /// itself in the list also if its URL is spelled in another way there (case of the host, port
    /// 80, slash at the end).
    ///
    /// Nothing is dialled here, and no name is waited for: names begin to be looked up in the
    /// background, and one that cannot be found is an error of the requests to that peer alone.
    /// Peers that stay, by their spelling, keep their connections. Requests under way go on with
    /// the old list. Of two calls at once the last to finish wins, as a whole.
    ///
    /// # Errors
    ///
    /// [`InvalidPeer`] or [`DuplicatePeer`]; the peers stay as they were.
    ///
    /// [`InvalidPeer`]: crate::ErrorKind::InvalidPeer
    /// [`DuplicatePeer`]: crate::ErrorKind::DuplicatePeer
    pub fn set<I>(&self, peers: I) -> Result<()>
    where
        I: IntoIterator,
        I::Item: AsRef<str>,
    {
        self.shared.picker.set(peers)
    }

    /// The URL of this process, as it was given.
    pub fn self_url(&self) -> &str {
        &self.shared.self_url
    }

    /// The URLs of the peers, as they were set last.
    pub fn peers(&self) -> Vec<String> {
        self.shared.picker.urls()
    }

    /// The URL of the peer that owns `key`, which can be this process; `None` without peers.
    pub fn owner(&self, key: &str) -> Option<String> {
        self.shared.picker.owner(key)
    }
}

impl PeerPicker for HttpPool {
    fn pick_peer(&self, key: &str) -> Option<Arc<dyn ProtoGetter>> {
        self.shared.picker.pick_peer(key)
    }

    fn pick_replica(&self, key: &str, attempt: usize) -> Option<Arc<dyn ProtoGetter>> {
        self.shared.picker.pick_replica(key, attempt)
    }
}

impl PeerSet for HttpPool {
    fn set_peers(&self, urls: &[String]) -> Result<()> {
        self.set(urls)
    }
}

impl fmt::Debug for HttpPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpPool")
            .field("self_url", &self.shared.self_url)
            .field("peers", &self.shared.picker)
            .finish()
    }
}
