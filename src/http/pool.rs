//! `HttpPool`: the peers of this process, and its own place among them.

use std::fmt;
use std::net::ToSocketAddrs;

use crate::error::Result;
#[cfg(feature = "tiny_http")]
use crate::error::{Error, ErrorKind};
use crate::http::client::picker::Picker;
use crate::http::server::answer::Endpoint;
use crate::http::server::{Server, ServerBuilder};
use crate::peers::{PeerPicker, PeerSet, PickerGuard, ProtoGetter};
use crate::sync::Arc;

/// The peers that share a cache with this process, reached over HTTP.
///
/// A pool picks the peer that owns a key. Peers are set as a list of URLs, which every process of
/// the cluster must spell in the same way: the ring hashes the text as it is.
///
/// The other way round, peers reach this process where [`serve`](Self::serve) listens.
///
/// ```no_run
/// use larder::http::HttpPool;
///
/// let pool = HttpPool::new("http://10.0.0.1:8080")?;
/// pool.set(["http://10.0.0.1:8080", "http://10.0.0.2:8080", "http://10.0.0.3:8080"])?;
/// let colors = larder::new_group(
///     "colors",
///     64 << 20,
///     larder::getter_fn(|_ctx, name, dest| Ok(dest.set_str(&format!("the color {name}"))?)),
/// )?;
/// let server = pool.serve("0.0.0.0:8080")?;
/// println!("{:?}", colors.get("red")?);
/// # Ok::<(), larder::Error>(())
/// ```
///
/// Clones are the same pool. Any thread may use it and set its peers at any time.
///
/// The pool is the peer picker of its registry for as long as a clone of it, or a [`Server`] or a
/// [`ServerBuilder`] that it made, exists; a server counts until its shutdown is over. After that,
/// groups load every key with their own getter, and another pool can be made for the registry. A
/// get that is asking a peer at that moment goes on, and then closes its connection. A server that
/// outlives the last clone goes on with the peers that were set last.
#[derive(Clone)]
#[must_use = "dropping the pool and its servers ends the use of its peers"]
pub struct HttpPool {
    shared: Arc<Shared>,
}

struct Shared {
    self_url: String,
    picker: Arc<Picker>,
    /// What peers are answered from. Its registry holds `picker`, which holds nothing of this.
    endpoint: Endpoint,
    /// Whether peers can be Go programs.
    shared_with_go: bool,
    registration: Arc<PickerGuard>,
}

impl HttpPool {
    pub(crate) fn from_parts(
        self_url: String,
        picker: Arc<Picker>,
        endpoint: Endpoint,
        shared_with_go: bool,
        registration: PickerGuard,
    ) -> Self {
        HttpPool {
            shared: Arc::new(Shared {
                self_url,
                picker,
                endpoint,
                shared_with_go,
                registration: Arc::new(registration),
            }),
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

    /// Listens on `addr` and answers peers there, with the default limits of [`ServerBuilder`].
    /// Port 0 lets the system choose one: see [`Server::local_addr`].
    ///
    /// # Errors
    ///
    /// As [`ServerBuilder::bind`].
    pub fn serve(&self, addr: impl ToSocketAddrs) -> Result<Server> {
        self.server().bind(addr)
    }

    /// A server that answers peers, with limits to set, and pages of the program's own beside them.
    pub fn server(&self) -> ServerBuilder {
        let builder = ServerBuilder::new(Some(self.shared.endpoint.clone()))
            .registration(self.shared.registration.clone());
        if self.shared.shared_with_go {
            builder.max_connections_per_addr(GO_CONNECTIONS_PER_ADDR)
        } else {
            builder
        }
    }

    /// Answers a peer's request that a tiny_http server received. For programs that run one; it
    /// has faults that [`serve`](Self::serve) has not, see [`tiny`](crate::http::tiny).
    ///
    /// Blocks until the answer is written, and runs the getter meanwhile where it must: have
    /// several threads receive requests. A request outside the base path gets 404: ask
    /// [`matches`](Self::matches) first. A client that has gone is no error.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let pool = larder::http::HttpPool::new("http://10.0.0.1:8080")?;
    /// let server = larder::http::tiny::bind("0.0.0.0:8080")?;
    /// for request in server.incoming_requests() {
    ///     if pool.matches(request.url()) {
    ///         pool.handle(request)?;
    ///     } else {
    ///         request.respond(tiny_http::Response::from_string("hello"))?;
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Io`] if the answer could not be written.
    #[cfg(feature = "tiny_http")]
    pub fn handle(&self, request: tiny_http::Request) -> Result<()> {
        crate::http::tiny::handle(&self.shared.endpoint, request)
            .map_err(|error| Error::with_source(ErrorKind::Io, "cannot answer a peer", error))
    }

    /// Whether the path of `url`, with or without a query, is a peer's: below the base path.
    pub fn matches(&self, url: &str) -> bool {
        self.shared.endpoint.owns(url)
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

/// Go's HTTP client opens a connection for each request that finds none idle, keeps two, and has no
/// limit of its own. Half of what the server takes in all.
const GO_CONNECTIONS_PER_ADDR: usize = 128;
