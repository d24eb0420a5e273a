//! The options of an `HttpPool`.

use std::fmt;
use std::time::Duration;

use crate::consistent_hash::{Map, Preset};
use crate::context::Context;
use crate::error::{Error, ErrorKind, Result};
use crate::http::client::peer_transport::HttpClient;
use crate::http::client::picker::{PeerSettings, Picker, TransportHook};
use crate::http::client::transport::Transport;
use crate::http::client::url::PeerUrl;
use crate::http::pool::HttpPool;
use crate::http::server::answer::{ContextHook, Endpoint, SharedLimits};
use crate::http::server::handler::Request;
use crate::registry::Registry;
use crate::sync::Arc;
use crate::wire;

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
}

/// Builds an [`HttpPool`]; see [`HttpPool::builder`].
///
/// The options that say where keys lie and how they travel ([`preset`](Self::preset),
/// [`replicas`](Self::replicas), [`hash_fn`](Self::hash_fn), [`base_path`](Self::base_path)) must be
/// the same in all processes of a cluster.
#[must_use]
pub struct HttpPoolBuilder {
    self_url: String,
    base_path: String,
    preset: Preset,
    replicas: Option<usize>,
    failover: Option<bool>,
    hash: Option<Arc<HashFn>>,
    transport: Option<Arc<TransportHook>>,
    client: HttpClient,
    context: Option<Arc<ContextHook>>,
    registry: Option<Registry>,
    connect_timeout: Duration,
    exchange_timeout: Duration,
    max_connections_per_peer: usize,
    max_idle_per_peer: usize,
    max_value_size: usize,
    shared: SharedLimits,
}

type HashFn = dyn Fn(&[u8]) -> u64 + Send + Sync;

impl HttpPoolBuilder {
    pub(crate) fn new(self_url: &str) -> Self {
        HttpPoolBuilder {
            self_url: self_url.to_owned(),
            base_path: wire::DEFAULT_BASE_PATH.to_owned(),
            preset: Preset::default(),
            replicas: None,
            failover: None,
            hash: None,
            transport: None,
            client: HttpClient::default(),
            context: None,
            registry: None,
            connect_timeout: Duration::from_millis(250),
            exchange_timeout: Duration::from_secs(1),
            max_connections_per_peer: 24,
            max_idle_per_peer: 24,
            max_value_size: 16 << 20,
            shared: SharedLimits {
                max_keys: 128,
                max_bytes: 1 << 20,
            },
        }
    }

    /// Where in a peer's URLs the cache begins; `/_groupcache/` by default, as in Go.
    pub fn base_path(mut self, base_path: &str) -> Self {
        self.base_path = base_path.to_owned();
        self
    }

    /// How keys are laid out among the peers; [`Preset::Larder`] by default. For a cluster shared
    /// with Go programs take theirs.
    ///
    /// Under [`Preset::Golang`], a raw `+` in the path of a request is read as a space, because
    /// golang/groupcache sends one for it.
    pub fn preset(mut self, preset: Preset) -> Self {
        self.preset = preset;
        self
    }

    /// The points of a peer on the ring, 1 to 65,536; by default those of the
    /// [preset](Preset::replicas), or 50 with a [`hash_fn`](Self::hash_fn), as in Go.
    pub fn replicas(mut self, replicas: usize) -> Self {
        self.replicas = Some(replicas);
        self
    }

    /// Whether a key whose owner does not answer is asked for at the next peer on the ring, before
    /// it is loaded here. By default it is under [`Preset::Larder`], so that the processes do not
    /// all load the key; under the others it is not.
    ///
    /// Go peers send a request on to the peer that they take for the owner. Asked in its place, they
    /// would ask it once more, and wait for it as long as it takes. Set this once no Go peer is left.
    pub fn failover(mut self, failover: bool) -> Self {
        self.failover = Some(failover);
        self
    }

    /// Hashes points and keys in place of the preset's hash; see [`Map::new`]. In a cluster shared
    /// with Go programs set their [`preset`](Self::preset) too: it says more than the hash.
    pub fn hash_fn(mut self, hash: impl Fn(&[u8]) -> u64 + Send + Sync + 'static) -> Self {
        self.hash = Some(Arc::new(hash));
        self
    }

    /// Wraps or replaces how requests travel: `hook` gets the URL of a peer, as it was set, and the
    /// default transport, and returns the one to use. It is called once for each peer that is new
    /// in the list, on the thread that calls [`HttpPool::set`].
    pub fn transport(
        mut self,
        hook: impl Fn(&str, Arc<dyn Transport>) -> Arc<dyn Transport> + Send + Sync + 'static,
    ) -> Self {
        self.transport = Some(Arc::new(hook));
        self
    }

    /// Which HTTP client asks the peers; [`HttpClient::Auto`] by default. A
    /// [`transport`](Self::transport) hook gets the one that is chosen.
    pub fn http_client(mut self, client: HttpClient) -> Self {
        self.client = client;
        self
    }

    /// Makes the context in which a peer's request is answered, which the getter then gets; by
    /// default [`Context::background`]. The time that the asking peer has left is added to it.
    pub fn context(
        mut self,
        hook: impl Fn(&Request<'_>) -> Context + Send + Sync + 'static,
    ) -> Self {
        self.context = Some(Arc::new(hook));
        self
    }

    /// The registry whose groups ask these peers, and are asked by them;
    /// [`Registry::global`] by default.
    pub fn registry(mut self, registry: &Registry) -> Self {
        self.registry = Some(registry.clone());
        self
    }

    /// How long connecting to a peer may take, over all its addresses together; 250 ms by default.
    /// It counts towards the [`exchange_timeout`](Self::exchange_timeout).
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// How long one exchange with a peer may take, from connecting to the last byte of the answer;
    /// 1 s by default. A caller whose own deadline is earlier leaves then.
    ///
    /// The peer's getter runs within this time: make it longer for slow ones.
    pub fn exchange_timeout(mut self, timeout: Duration) -> Self {
        self.exchange_timeout = timeout;
        self
    }

    /// The most connections to one peer that are in use at a time; 24 by default, at least 1.
    ///
    /// A request more waits for one, in its turn, until its own deadline or the
    /// [`exchange_timeout`](Self::exchange_timeout), from which the wait is taken; then it is an
    /// error of the peer. Keep it below what the peers' servers take from one address
    /// ([`max_connections_per_addr`](crate::http::ServerBuilder::max_connections_per_addr), 32):
    /// what they refuse is an error too, and at once.
    pub fn max_connections_per_peer(mut self, connections: usize) -> Self {
        self.max_connections_per_peer = connections;
        self
    }

    /// How many unused connections to one peer are kept for the next request; 24 by default. A thread
    /// gets the one that it used last, if it is free. Those whose last request is 15 s old are
    /// closed, one with each request that ends. Each holds 8 KiB, and up to 64 KiB once it has carried
    /// longer answers; 8 KiB more if ureq uses it (see [`HttpClient`]). 0 makes a new connection for
    /// each request.
    pub fn max_idle_per_peer(mut self, connections: usize) -> Self {
        self.max_idle_per_peer = connections;
        self
    }

    /// The longest value that is taken from a peer, in bytes; 16 MiB by default. A longer one is
    /// an error of the peer, found out at the latest 64 KiB after this many bytes.
    pub fn max_value_size(mut self, bytes: usize) -> Self {
        self.max_value_size = bytes;
        self
    }

    /// The most keys that one request asks a peer for; 128 by default.
    ///
    /// Up to 16 threads ask a peer side by side, fewer where
    /// [`max_connections_per_peer`](Self::max_connections_per_peer) is below 18. When more do, they
    /// ride together, until fewer than 8 ask: while two of their requests are under way, further keys
    /// gather and go in the next. So do, in any case, those of one
    /// [`get_many`](crate::Group::get_many).
    /// The peer answers such a request from its cache, at once; what it would have to load is then
    /// asked for singly, so that a slow load never holds up the others. A peer that does not know
    /// such requests (one of Go) is asked singly from then on. Where values are 16 KiB and longer
    /// in the mean, threads do not wait for each other.
    ///
    /// 0 and 1 turn it off. It is also the most keys that peers get in one answer from here.
    pub fn max_shared_keys(mut self, keys: usize) -> Self {
        self.shared.max_keys = keys;
        self
    }

    /// The most bytes of values in the answer to one request for several keys; 1 MiB by default,
    /// both for what is asked here and for what peers get from here. Values that find no room are
    /// asked for singly. The keys of a request have as much room, and 64 KiB at most.
    pub fn max_shared_bytes(mut self, bytes: usize) -> Self {
        self.shared.max_bytes = bytes;
        self
    }

    /// Makes the pool, without peers, and registers it as the peer picker of its registry.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidPeer`] for the URL of this process, [`ErrorKind::InvalidBasePath`],
    /// [`ErrorKind::InvalidOption`] for a time-out that is zero or over an hour, a zero
    /// `max_value_size` or `max_connections_per_peer`, or replicas out of range;
    /// [`ErrorKind::AlreadyRegistered`] if the registry has a peer picker; that of an [`HttpPool`]
    /// counts until the pool and its servers are dropped. Nothing is registered then.
    pub fn build(self) -> Result<HttpPool> {
        let own = PeerUrl::parse(&self.self_url)?;
        wire::check_base_path(&self.base_path)?;
        for (name, timeout) in [
            ("connect_timeout", self.connect_timeout),
            ("exchange_timeout", self.exchange_timeout),
        ] {
            if timeout.is_zero() || timeout > MAX_TIMEOUT {
                return Err(refuse(format!("{name} is {timeout:?}: 0 < {name} <= 1 h")));
            }
        }
        if self.max_value_size == 0 {
            return Err(refuse("max_value_size is 0: no value would fit".into()));
        }
        if self.max_connections_per_peer == 0 {
            return Err(refuse(
                "max_connections_per_peer is 0: no peer could be asked".into(),
            ));
        }
        let shared_with_go = self.preset != Preset::Larder;
        let picker = Arc::new(Picker::new(PeerSettings {
            own_place: own.place(),
            empty_ring: self.empty_ring()?,
            failover: self.failover.unwrap_or(!shared_with_go),
            base_path: self.base_path.clone(),
            transport: self.transport,
            client: self.client,
            connect_timeout: self.connect_timeout,
            exchange_timeout: self.exchange_timeout,
            max_connections: self.max_connections_per_peer,
            max_idle_per_peer: self.max_idle_per_peer,
            max_value_size: self.max_value_size,
            shared: self.shared,
        }));
        let registry = self.registry.unwrap_or_else(|| Registry::global().clone());
        let registration = registry.lend_peer_picker(picker.clone())?;
        let endpoint = Endpoint {
            registry,
            base_path: self.base_path,
            plus_is_space: self.preset == Preset::Golang,
            context: self.context,
            shared: self.shared,
        };
        Ok(HttpPool::from_parts(
            self.self_url,
            picker,
            endpoint,
            shared_with_go,
            registration,
        ))
    }

    fn empty_ring(&self) -> Result<Map> {
        match (&self.hash, self.replicas) {
            (Some(hash), replicas) => {
                let hash = hash.clone();
                let replicas = replicas.unwrap_or(Preset::Golang.replicas());
                Map::new(replicas, move |bytes| hash(bytes))
            }
            (None, Some(replicas)) => Map::with_replicas(self.preset, replicas),
            (None, None) => Ok(Map::preset(self.preset)),
        }
    }
}

impl fmt::Debug for HttpPoolBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpPoolBuilder")
            .field("self_url", &self.self_url)
            .field("base_path", &self.base_path)
            .field("preset", &self.preset)
            .finish_non_exhaustive()
    }
}

fn refuse(message: String) -> Error {
    Error::new(ErrorKind::InvalidOption, message)
}

const MAX_TIMEOUT: Duration = Duration::from_secs(3600);
