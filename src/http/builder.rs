//! The options of an `HttpPool`.

use std::fmt;
use std::time::Duration;

use crate::consistent_hash::{Map, Preset};
use crate::context::Context;
use crate::error::Result;
use crate::group::registry::Registry;
use crate::http::client::picker::key_owners::KeyOwners;
use crate::http::client::picker::{OwnIdentity, Picker, TransportHook};
use crate::http::client::transport::Transport;
use crate::http::client::transport::url::PeerUrl;
use crate::http::config::{Config, HttpClient, MAX_BATCH_KEYS};
use crate::http::membership::Membership;
use crate::http::pool::{HttpPool, PoolInner};
use crate::http::server::endpoint::{ContextHook, Endpoint};
use crate::http::server::handler::Request;
use crate::rendezvous::Rendezvous;
use crate::sync::Arc;

impl HttpPool {
    /// A pool with the default options. It is the peer picker of [`Registry::global`].
    ///
    /// `self_url` is the URL of this process, as it is written in the list of peers. There are no
    /// peers until [`set`](Self::set) is called, so this process owns every key.
    ///
    /// [`Registry::global`]: crate::Registry::global
    ///
    /// # Errors
    ///
    /// As for [`HttpPoolBuilder::build`].
    pub fn new(self_url: &str) -> Result<Self> {
        Self::builder(self_url).build()
    }

    /// A pool with options.
    pub fn builder(self_url: &str) -> HttpPoolBuilder {
        HttpPoolBuilder {
            self_url: self_url.to_owned(),
            id: None,
            preset: None,
            replicas: None,
            failover: None,
            hash: None,
            transport: None,
            context: None,
            registry: None,
            config: Config::default(),
        }
    }
}

/// Builds an [`HttpPool`]; see [`HttpPool::builder`].
///
/// The options that place keys and route requests ([`preset`](Self::preset),
/// [`replicas`](Self::replicas), [`hash_fn`](Self::hash_fn), [`base_path`](Self::base_path)) must be
/// the same in all processes of a cluster.
#[must_use]
pub struct HttpPoolBuilder {
    self_url: String,
    id: Option<String>,
    preset: Option<Preset>,
    replicas: Option<usize>,
    failover: Option<bool>,
    hash: Option<Box<HashFn>>,
    transport: Option<Box<TransportHook>>,
    context: Option<Arc<ContextHook>>,
    registry: Option<Registry>,
    config: Config,
}

type HashFn = dyn Fn(&[u8]) -> u64 + Send + Sync;

impl HttpPoolBuilder {
    /// The base path: the path of a peer's groups, after the peer's URL; `/_groupcache/` by default, as in Go.
    /// It begins and ends with a slash, and has no escapes, no empty segments, no `.` and no `..`.
    pub fn base_path(mut self, base_path: &str) -> Self {
        self.config.base_path = base_path.to_owned();
        self
    }

    /// The id of this process in the list of peers. By default this process recognises itself by its
    /// URL. Set it where peers have [ids](crate::Peer::id) of their own, so that a list with another
    /// address of this process is understood.
    pub fn id(mut self, id: impl Into<String>) -> Self {
        self.id = Some(id.into());
        self
    }

    /// Assigns keys to peers by the ring of a preset. By default they are assigned by weighted
    /// [rendezvous hashing](crate::rendezvous), which is better balanced and takes less memory. For a
    /// cluster shared with Go programs, use their preset.
    ///
    /// A ring has no weights: [`HttpPool::set`] refuses a weight other than 1. Under [`Preset::Golang`], a raw
    /// `+` in the path of a request is read as a space, because golang/groupcache sends `+` for a space.
    pub fn preset(mut self, preset: Preset) -> Self {
        self.preset = Some(preset);
        self
    }

    /// Assigns keys by a ring with this number of points for each peer, 1 to 65,536. By default the
    /// number is that of the [preset](Preset::replicas), or 50 with a [`hash_fn`](Self::hash_fn), as in
    /// Go.
    pub fn replicas(mut self, replicas: usize) -> Self {
        self.replicas = Some(replicas);
        self
    }

    /// Whether the next peer is asked for a key whose owner does not answer, before the key is loaded
    /// here. The default is true, so that the processes do not all load the key, and false under the
    /// presets of Go programs.
    ///
    /// A Go peer that does not own a key forwards the request to the owner. So a Go peer that is
    /// asked in the owner's place asks the owner once more, and waits without a limit. Set this to
    /// true once no Go peer is left.
    pub fn failover(mut self, failover: bool) -> Self {
        self.failover = Some(failover);
        self
    }

    /// Assigns keys by a ring whose points and keys are hashed by this function; see [`Map::new`]. In a
    /// cluster shared with Go programs, set their [`preset`](Self::preset) too, because it has other effects
    /// as well.
    pub fn hash_fn(mut self, hash: impl Fn(&[u8]) -> u64 + Send + Sync + 'static) -> Self {
        self.hash = Some(Box::new(hash));
        self
    }

    /// Wraps or replaces the transport of requests. `hook` gets the URL of a peer, as it was set,
    /// and the default transport, and returns the one to use. It is called once for each peer that
    /// is new in the list, on the thread that calls [`HttpPool::set`].
    pub fn transport(
        mut self,
        hook: impl Fn(&str, Arc<dyn Transport>) -> Arc<dyn Transport> + Send + Sync + 'static,
    ) -> Self {
        self.transport = Some(Box::new(hook));
        self
    }

    /// Which HTTP client asks the peers; [`HttpClient::Auto`] by default. A
    /// [`transport`](Self::transport) hook gets the client that is chosen here.
    pub fn http_client(mut self, client: HttpClient) -> Self {
        self.config.client = client;
        self
    }

    /// Makes the context of a peer's request, which is passed to the getter; by default
    /// [`Context::background`]. The remaining time of the asking peer is added to it as a deadline. The hook
    /// also runs for requests whose value is cached, but not for batches that load nothing.
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
        self.config.connect_timeout = timeout;
        self
    }

    /// How long one exchange with a peer may take, from connecting to the last byte of the
    /// response; 1 s by default. It ends at the caller's own deadline if that is earlier, and after half of the
    /// time until then if another peer can be asked afterwards.
    ///
    /// The time includes the run of the peer's getter. If that takes longer, larder's server answers before the
    /// end that the value is being loaded, and is asked again: by a caller with a deadline until that, by
    /// others for [`max_load_wait`](crate::GroupBuilder::max_load_wait). [`Getter`](crate::Getter::get) says
    /// what such a getter has to do. Other servers, such as Go programs, do not answer so, and their getters'
    /// time has to fit.
    pub fn exchange_timeout(mut self, timeout: Duration) -> Self {
        self.config.exchange_timeout = timeout;
        self
    }

    /// How long a peer is down until it counts as absent; 60 s by default.
    ///
    /// The keys of a peer that is down are kept for 10 s by the process that loads them in its place. The
    /// keys of an absent peer belong to the next peer, which keeps them for their full life. Both end when
    /// the peer answers a probe. Without [`failover`](Self::failover), no other peer is asked, and each
    /// process loads such keys itself. See [`HttpPool::peers`].
    pub fn absent_after(mut self, time: Duration) -> Self {
        self.config.absent_after = time;
        self
    }

    /// The shortest time of a peer's answers that counts as slow; 20 ms by default.
    ///
    /// A peer is slow if 5 of 100 of its answers take longer than this, and longer than five times what is
    /// usual for the other peers, for 3 s. The time of loads at the peer does not count. Raise it where some
    /// peers are much farther away than others, so that distance alone makes none slow. See
    /// [`HttpPool::peers`].
    pub fn slow_after(mut self, time: Duration) -> Self {
        self.config.slow_after = time;
        self
    }

    /// The most connections to one peer that are in use at a time; 24 by default, at least 1.
    ///
    /// A further request waits for a free connection; requests get connections in the order in
    /// which they came. The wait ends at the caller's deadline or at the end of the
    /// [`exchange_timeout`](Self::exchange_timeout), which includes the wait. A request that gets
    /// no connection is an error of the peer. Keep the number below the limit of the peers' servers
    /// for one address
    /// ([`max_connections_per_addr`](crate::http::ServerBuilder::max_connections_per_addr), 32 by
    /// default), because a connection that a server refuses is an error at once.
    pub fn max_connections_per_peer(mut self, connections: usize) -> Self {
        self.config.max_connections_per_peer = connections;
        self
    }

    /// How many idle connections to one peer are kept for the next request; 24 by default. 0 makes
    /// a new connection for each request.
    ///
    /// A connection whose last request is 15 s old is not used again, and is closed as later
    /// requests end. This crate's own client closes one such connection with each request that
    /// ends; ureq closes all of them. An idle connection holds buffers of 16 KiB, and of 40 KiB
    /// with ureq.
    pub fn max_idle_per_peer(mut self, connections: usize) -> Self {
        self.config.max_idle_per_peer = connections;
        self
    }

    /// The longest value that is taken from a peer, in bytes; 16 MiB by default. A longer one is an
    /// error of the peer. It is detected at the latest 64 KiB after this many bytes.
    pub fn max_value_size(mut self, bytes: usize) -> Self {
        self.config.max_value_size = bytes;
        self
    }

    /// The most keys in one batched request to a peer, and the most keys whose values this process
    /// sends in one response; 128 by default, and 4,096 at most: larger numbers count as 4,096. With 0 or
    /// 1, this process sends no batches.
    ///
    /// Up to 16 threads at a time send requests of their own to a peer; fewer if
    /// [`max_connections_per_peer`](Self::max_connections_per_peer) is below 18. The keys of
    /// further threads are batched, until fewer than 8 threads ask. While two batches are under
    /// way, further keys gather and are sent in the next batch. The keys of one
    /// [`get_many`](crate::Group::get_many) are batched in any case.
    ///
    /// The peer answers a batch of several threads' keys from its cache alone, without loading. The keys that
    /// it has not cached are then requested one by one, so that a slow load never delays the others. For a
    /// `get_many`, it loads them. A peer that does not support batches, such as a Go program, gets one request
    /// for each key; the next batch is tried 20 s later. If the mean length of the peer's values is over
    /// 16 KiB, threads do not wait for each other.
    pub fn max_batch_keys(mut self, keys: usize) -> Self {
        self.config.max_batch_keys = keys.min(MAX_BATCH_KEYS);
        self
    }

    /// The most bytes of values in the response to one batched request; 1 MiB by default, both for
    /// requests of this process and for those of peers. Values that do not fit are requested one by
    /// one. The keys of one request have at most as many bytes too, and at most 64 KiB.
    pub fn max_batch_bytes(mut self, bytes: usize) -> Self {
        self.config.max_batch_bytes = bytes;
        self
    }

    /// Sets the numbers for a board with 64 MB of memory: 4 connections to each peer, one of them kept
    /// when idle, values of 1 MiB, and batches of 32 keys and 64 KiB. Options that are set later take
    /// precedence. [`ServerLimits::small`](crate::http::ServerLimits::small) has the numbers of the server.
    pub fn small(self) -> Self {
        self.max_connections_per_peer(4)
            .max_idle_per_peer(1)
            .max_value_size(1 << 20)
            .max_batch_keys(32)
            .max_batch_bytes(64 << 10)
    }

    /// Makes the pool, without peers, and registers it as the peer picker of its registry.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidPeer`] for the URL of this process, [`ErrorKind::InvalidBasePath`],
    /// [`ErrorKind::InvalidOption`] for a time-out that is zero or over an hour, a zero
    /// `max_value_size`, `max_batch_bytes` or `max_connections_per_peer`, or replicas out of range;
    /// [`ErrorKind::AlreadyRegistered`] if the registry already has a peer picker. The picker of
    /// another [`HttpPool`] is registered until that pool and its servers are dropped. After an
    /// error, nothing is registered.
    ///
    /// [`ErrorKind::InvalidPeer`]: crate::ErrorKind::InvalidPeer
    /// [`ErrorKind::InvalidBasePath`]: crate::ErrorKind::InvalidBasePath
    /// [`ErrorKind::InvalidOption`]: crate::ErrorKind::InvalidOption
    /// [`ErrorKind::AlreadyRegistered`]: crate::ErrorKind::AlreadyRegistered
    pub fn build(self) -> Result<HttpPool> {
        let own = PeerUrl::parse(&self.self_url)?;
        self.config.check()?;
        let go = self.preset.filter(|&preset| preset != Preset::Larder);
        let shared_with_go = go.is_some();
        let config = Arc::new(self.config);
        let membership = Arc::new(Membership::new());
        let picker = Arc::new(Picker::new(
            OwnIdentity {
                id: self.id,
                addr: own.canonical(),
            },
            empty_placement(self.preset, self.replicas, self.hash)?,
            self.failover.unwrap_or(!shared_with_go),
            self.transport,
            config.clone(),
            membership.clone(),
        ));
        let registry = self.registry.unwrap_or_else(|| Registry::global().clone());
        let registration = registry.lend_peer_picker(picker.clone())?;
        let endpoint = Endpoint {
            registry,
            peers: picker.clone(),
            plus_is_space: go == Some(Preset::Golang),
            context: self.context,
            config,
            membership: membership.clone(),
        };
        Ok(HttpPool::from(PoolInner {
            self_url: self.self_url,
            picker,
            endpoint,
            shared_with_go,
            membership,
            registration: Arc::new(registration),
        }))
    }
}

impl fmt::Debug for HttpPoolBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpPoolBuilder")
            .field("self_url", &self.self_url)
            .field("preset", &self.preset)
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

fn empty_placement(
    preset: Option<Preset>,
    replicas: Option<usize>,
    hash: Option<Box<HashFn>>,
) -> Result<KeyOwners> {
    Ok(KeyOwners::Ring(match (hash, replicas, preset) {
        (None, None, None) => return Ok(KeyOwners::Rendezvous(Rendezvous::new())),
        (Some(hash), replicas, _) => Map::new(replicas.unwrap_or(Preset::Golang.replicas()), hash)?,
        (None, Some(replicas), preset) => Map::with_replicas(preset.unwrap_or_default(), replicas)?,
        (None, None, Some(preset)) => Map::preset(preset),
    }))
}
