//! `HttpPool`: sets the peers, finds the owner of a key, and serves peers.

use std::fmt;
use std::net::ToSocketAddrs;
use std::time::{Duration, Instant};

use crate::error::Result;
#[cfg(feature = "tiny_http")]
use crate::error::{Error, ErrorKind};
use crate::http::client::health::status::PeerStatus;
use crate::http::client::picker::Picker;
use crate::http::membership::Membership;
use crate::http::server::endpoint::Endpoint;
use crate::http::server::{Server, ServerBuilder};
use crate::peer::Peer;
use crate::peers::{KeyRoute, PeerPicker, PeerSet, PickerGuard, ProtoGetter, Route};
use crate::sync::Arc;

/// The peers that share a cache with this process, reached over HTTP.
///
/// A pool picks the peer that owns a key. Peers are set as a list of URLs. Every process of the
/// cluster must write a URL in the same way, because keys are assigned to its text, unless the peer has
/// an [id](Peer::id).
///
/// Peers reach this process at the address where [`serve`](Self::serve) listens.
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
/// A clone is a handle of the same pool. Any thread may use it and set its peers at any time.
///
/// An answer of larder's server carries a hash of its group and key. An answer to another request is
/// refused, and its connection is closed. It happens behind a proxy that changes paths, and where a
/// response arrives late or twice. The key is then loaded from the next peer or here. Other servers,
/// such as Go programs, send no hash. Behind a proxy that changes paths, they can answer for another
/// key without being detected.
///
/// After a `fork` without `exec`, parent and child open connections of their own. Everything else is
/// copied as it is at that moment. The child has no server thread and no loader thread, and a lock
/// that another thread of the parent held stays locked. So make groups and pools after the fork, or
/// fork while no other thread uses them.
///
/// The pool is the peer picker of its registry as long as one of these exists: a clone of the pool,
/// a [`ServerBuilder`] that it made, or a [`Server`] whose shutdown is not over. After that, groups
/// load every key with their own getter, and another pool can be made for the registry. A request
/// to a peer that is under way at that moment completes, and then its connection is closed. A
/// server that outlives the last clone uses the peers that were set last.
#[derive(Clone)]
#[must_use = "dropping the pool and its servers ends the use of its peers"]
pub struct HttpPool {
    inner: Arc<PoolInner>,
}

pub(crate) struct PoolInner {
    pub(crate) self_url: String,
    pub(crate) picker: Arc<Picker>,
    /// Responds to peers. Its registry holds `picker`. There is no reference cycle, because
    /// `picker` does not hold the registry.
    pub(crate) endpoint: Endpoint,
    /// Whether peers can be Go programs.
    pub(crate) shared_with_go: bool,
    pub(crate) membership: Arc<Membership>,
    /// Keeps `picker` registered.
    pub(crate) registration: Arc<PickerGuard>,
}

impl From<PoolInner> for HttpPool {
    fn from(inner: PoolInner) -> Self {
        HttpPool {
            inner: Arc::new(inner),
        }
    }
}

impl HttpPool {
    /// Replaces the list of peers: URLs, or [`Peer`]s that have an id, a weight or a zone besides. It
    /// should contain this process too: otherwise this process owns no keys and asks peers for all of
    /// them.
    ///
    /// A URL is `http://host:port`, with a path if the peer is mounted below one. The port is 80 by
    /// default. The host is a name or an address, IPv6 in brackets. This process recognises its own
    /// URL even if it is written differently in the list (case of the host, port 80, slash at the
    /// end), and its own [id](crate::http::HttpPoolBuilder::id).
    ///
    /// An empty list is an error, because it is usually the result of a look-up that failed. A process that
    /// is to be alone sets a list of itself only. One that is about to end calls [`leave`](Self::leave).
    ///
    /// This call opens no connection and does not wait for name look-ups. Names are looked up in
    /// the background. If a name is not found, only the requests to that peer fail. A peer whose
    /// URL and id were in the old list, with the same text, keeps its connections. Requests under way use
    /// the old list. Of two concurrent calls, the list of the one that finishes last is used. Two
    /// lists are never mixed.
    ///
    /// # Errors
    ///
    /// [`InvalidPeer`], [`DuplicatePeer`] or [`NoPeers`]. After an error, the peers are unchanged.
    ///
    /// [`InvalidPeer`]: crate::ErrorKind::InvalidPeer
    /// [`DuplicatePeer`]: crate::ErrorKind::DuplicatePeer
    /// [`NoPeers`]: crate::ErrorKind::NoPeers
    pub fn set<I>(&self, peers: I) -> Result<()>
    where
        I: IntoIterator,
        I::Item: Into<Peer>,
    {
        self.inner.picker.set(peers.into_iter().map(Into::into))
    }

    /// Listens on `addr` and answers peers there, with the default limits of [`ServerBuilder`].
    /// Port 0 lets the system choose one: see [`Server::local_addr`].
    ///
    /// # Errors
    ///
    /// As for [`ServerBuilder::bind`].
    pub fn serve(&self, addr: impl ToSocketAddrs) -> Result<Server> {
        self.server().bind(addr)
    }

    /// A builder of a server that answers peers. It can set limits and add pages of the program.
    pub fn server(&self) -> ServerBuilder {
        let inner = &self.inner;
        ServerBuilder::new(
            inner.endpoint.clone(),
            inner.picker.clone(),
            inner.registration.clone(),
            inner.shared_with_go,
        )
    }

    /// Answers a peer's request that a tiny_http server received. It is for programs that already
    /// run such a server: tiny_http has faults that [`serve`](Self::serve) does not have, see
    /// [`tiny`](crate::http::tiny).
    ///
    /// Blocks until the response is written, which can take as long as a load: receive requests on several
    /// threads. A request outside the base path gets 404: call [`matches`](Self::matches)
    /// first. It is not an error if the client has closed its connection.
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
    /// [`ErrorKind::Io`] if the response could not be written.
    #[cfg(feature = "tiny_http")]
    pub fn handle(&self, request: tiny_http::Request) -> Result<()> {
        crate::http::tiny::handle(&self.inner.endpoint, request)
            .map_err(|error| Error::with_source(ErrorKind::Io, "cannot answer a peer", error))
    }

    /// Leaves the cluster before this process ends: announces it to all peers, and returns after `drain`.
    ///
    /// From the announcement on, the next peer owns each key of this process, and does not wait until this
    /// process fails. (Without [`failover`](crate::http::HttpPoolBuilder::failover), each process loads these
    /// keys itself.) Before it loads one, it asks this process for what that has cached, for 10 ms at most.
    /// So the values in use move within `drain`. A time of 5 s is enough for those that are
    /// asked for once in 5 s. This process answers requests until its server is
    /// [shut down](Server::shutdown), and asks the peers for the keys that it had. It does not join again:
    /// the next process at its URL does, which takes the values back as they are asked for.
    ///
    /// A peer that does not confirm within the
    /// [`exchange_timeout`](crate::http::HttpPoolBuilder::exchange_timeout) is logged. It finds out when its
    /// requests fail.
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # fn stop(pool: &larder::http::HttpPool, server: &larder::http::Server) -> larder::Result<()> {
    /// // After SIGTERM:
    /// pool.leave(Duration::from_secs(5));
    /// server.shutdown(Duration::from_secs(5))?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn leave(&self, drain: Duration) {
        let end = Instant::now() + drain.min(LONGEST_DRAIN);
        self.inner.membership.hold();
        self.inner.picker.announce_leave();
        std::thread::sleep(end.saturating_duration_since(Instant::now()));
    }

    /// Whether the path of `url`, with or without a query, lies below the base path.
    pub fn matches(&self, url: &str) -> bool {
        self.inner.endpoint.owns(url)
    }

    /// The URL of this process, as it was given to [`new`](Self::new).
    pub fn self_url(&self) -> &str {
        &self.inner.self_url
    }

    /// The URLs of the list of peers, as it was last set, with that of this process if it is in the list.
    pub fn urls(&self) -> Vec<String> {
        let peers = self.inner.picker.list().into_iter();
        peers.map(|peer| peer.url).collect()
    }

    /// How many exchanges this process had with processes that have another list of peers.
    ///
    /// Each request between larder's processes carries a hash of the sender's list (ids and weights)
    /// and of the way in which keys are assigned. The first time that two lists differ, both are
    /// logged as a warning. While the list changes, the number grows for a moment. If it grows on,
    /// processes disagree about owners, and keys are loaded more than once. A listed peer that turns
    /// out to be this process, because its URL is written differently, is logged as an error, and
    /// this process then loads that peer's keys itself. The peer is asked again after 30 s, since the name
    /// of another one may have led here for a moment.
    pub fn peer_list_differences(&self) -> u64 {
        self.inner.membership.differences()
    }

    /// The peers in the list other than this process, as this process sees them: whether each is asked, how
    /// long its answers take, and why an exchange with it failed last.
    ///
    /// A peer that refuses a connection, is unreachable, or closes the connection without an answer is down
    /// at once. One whose answers are late or broken is down after three such exchanges in a row; where
    /// callers have less time than the [`exchange_timeout`](crate::http::HttpPoolBuilder::exchange_timeout),
    /// after it was silent for that time. An error of the peer's getter is an answer. So is that the peer
    /// is overloaded.
    ///
    /// A peer that is down is not asked. Its keys are loaded by the next one in the list's order for each
    /// key, which keeps them for 10 s, so that not all processes load them. A thread of its own sends one
    /// probe after 1 s, 2 s, 4 s and so on up to 30 s, until one is answered; or five in a row, half a second
    /// apart, if the peer was late and not unreachable. Each wait is up to a quarter shorter, at random. A
    /// probe ends at the exchange time-out, or after 5 s if that is earlier. If a peer fails again within 30
    /// s of its return, its first wait is twice as long as the last time, up to 5 min.
    ///
    /// A peer is slow if 5 of 100 of its answers take more than five times as long as those of a usual peer,
    /// and more than [`slow_after`](crate::http::HttpPoolBuilder::slow_after), in most of the half seconds of
    /// 3 s. With fewer than two peers that answer, none is slow. The time of loads at the peer does not
    /// count, and an exchange that reached its own time-out counts as an answer after that time. The next
    /// peer is asked in place of a slow one, as if it were down, and the slow one gets two probes a second
    /// until they have been fast for 5 s. A peer that is slow again within 30 s needs twice as long. If more
    /// than a third of the nodes are slow, none of them is passed over.
    ///
    /// If more than half of the peers are down, this process is the one that is cut off. It then loads all
    /// keys of others itself, until fewer than a third are down. Peers that are absent do not count.
    pub fn peers(&self) -> Vec<PeerStatus> {
        self.inner.picker.statuses()
    }

    /// The URL of the owner of `key`, a peer or this process; `None` without peers.
    pub fn owner(&self, key: &str) -> Option<String> {
        self.inner.picker.owner(key).map(|peer| peer.url)
    }
}

/// Each method asks the pool's own picker. So a picker of the program that wraps a pool passes over peers
/// that do not answer, as the pool does.
impl PeerPicker for HttpPool {
    fn pick_peer(&self, key: &str) -> Option<Arc<dyn ProtoGetter>> {
        self.inner.picker.pick_peer(key)
    }

    fn pick_replica(&self, key: &str, attempt: usize) -> Option<Arc<dyn ProtoGetter>> {
        self.inner.picker.pick_replica(key, attempt)
    }

    fn previous_owner(&self, key: &str) -> Option<Arc<dyn ProtoGetter>> {
        self.inner.picker.previous_owner(key)
    }

    fn all_peers(&self) -> Vec<Arc<dyn ProtoGetter>> {
        self.inner.picker.all_peers()
    }

    fn route(&self, key: &str) -> Route {
        self.inner.picker.route(key)
    }

    fn explain(&self, key: &str) -> KeyRoute {
        self.inner.picker.explain(key)
    }

    fn pick_next(
        &self,
        key: &str,
        attempt: usize,
        asked: &Arc<dyn ProtoGetter>,
    ) -> Option<Arc<dyn ProtoGetter>> {
        self.inner.picker.pick_next(key, attempt, asked)
    }
}

impl PeerSet for HttpPool {
    fn set_peers(&self, peers: &[Peer]) -> Result<()> {
        self.set(peers)
    }
}

impl fmt::Debug for HttpPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpPool")
            .field("self_url", &self.inner.self_url)
            .field("peers", &self.inner.picker)
            .field("handoff", &self.inner.picker.is_handing_over())
            .finish()
    }
}

/// A day can be added to any `Instant`.
const LONGEST_DRAIN: Duration = Duration::from_secs(24 * 60 * 60);
