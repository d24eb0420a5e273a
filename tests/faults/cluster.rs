//! Nodes in this process: each has a registry, a group, a pool and a server of its own.

use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use larder::http::{
    HttpPool, HttpPoolBuilder, Server, ServerBuilder, Transport, TransportRequest,
    TransportResponse,
};
use larder::{BoxError, Context, Group, GroupBuilder, Registry, Sink};

use crate::common::PATIENCE;

/// The name of each node's group.
pub const GROUP: &str = "values";

pub struct Node {
    pub url: String,
    pub registry: Registry,
    pub group: Group,
    pub pool: HttpPool,
    pub server: Server,
}

/// The options of a node. The defaults, and the time-outs that `pool` begins with, suit a slow machine.
pub struct Setup {
    pub name: &'static str,
    pub group: Box<dyn Fn(GroupBuilder) -> GroupBuilder + Sync>,
    pub pool: Box<dyn Fn(HttpPoolBuilder) -> HttpPoolBuilder + Sync>,
    pub server: Box<dyn Fn(ServerBuilder) -> ServerBuilder + Sync>,
}

impl Default for Setup {
    fn default() -> Self {
        Setup {
            name: GROUP,
            group: Box::new(|group| group),
            pool: Box::new(|pool| pool),
            server: Box::new(|server| server),
        }
    }
}

impl Setup {
    pub fn start<G>(&self, getter: G) -> Node
    where
        G: Fn(&Context, &str, &mut dyn Sink) -> Result<(), BoxError> + Send + Sync + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        self.start_on(listener, &[], getter)
    }

    /// Starts a node on an existing socket. The node knows its peers before it listens.
    pub fn start_on<G>(&self, listener: TcpListener, peers: &[String], getter: G) -> Node
    where
        G: Fn(&Context, &str, &mut dyn Sink) -> Result<(), BoxError> + Send + Sync + 'static,
    {
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let registry = Registry::new();
        let group = (self.group)(Group::builder(self.name).registry(&registry))
            .build(getter)
            .expect("a group");
        let pool = HttpPool::builder(&url).registry(&registry);
        let pool = pool.connect_timeout(PATIENCE).exchange_timeout(PATIENCE);
        let pool = (self.pool)(pool).build().expect("a pool");
        if !peers.is_empty() {
            pool.set(peers).expect("good URLs");
        }
        let server = (self.server)(pool.server())
            .serve_listener(listener)
            .expect("a server");
        Node {
            url,
            registry,
            group,
            pool,
            server,
        }
    }
}

impl Node {
    pub fn addr(&self) -> SocketAddr {
        self.server.local_addr()
    }

    /// A key with this prefix that `owner` owns, by the list of this node.
    pub fn key_of(&self, owner: &str, prefix: &str) -> String {
        let mut keys = (0..).map(|n| format!("{prefix}{n}"));
        let owned = |key: &String| self.pool.owner(key).as_deref() == Some(owner);
        keys.find(owned).expect("a key")
    }
}

/// Calls `see` with each request that the pool sends, and with the URL of its peer, before it is sent.
pub fn see_requests<F>(pool: HttpPoolBuilder, see: F) -> HttpPoolBuilder
where
    F: Fn(&str, &TransportRequest<'_>) + Send + Sync + 'static,
{
    struct Seen<F> {
        see: Arc<F>,
        url: String,
        inner: Arc<dyn Transport>,
    }

    impl<F: Fn(&str, &TransportRequest<'_>) + Send + Sync> Transport for Seen<F> {
        fn round_trip(
            &self,
            ctx: &Context,
            request: TransportRequest<'_>,
        ) -> larder::Result<TransportResponse> {
            (self.see)(&self.url, &request);
            self.inner.round_trip(ctx, request)
        }
    }

    let see = Arc::new(see);
    pool.transport(move |url, inner| {
        Arc::new(Seen {
            see: see.clone(),
            url: url.to_owned(),
            inner,
        })
    })
}

/// Sets the same peers at all nodes.
pub fn connect(nodes: &[Node]) {
    for node in nodes {
        let urls = nodes.iter().map(|node| &node.url);
        node.pool.set(urls).expect("good URLs");
    }
}

/// How late the latest of some threads is that wait for `limit`, measured beside the call that
/// `during` makes.
pub fn lateness<T>(limit: Duration, during: impl FnOnce() -> T) -> (Duration, T) {
    let wait = move || {
        let start = Instant::now();
        let never = (Mutex::new(()), Condvar::new());
        let lock = never.0.lock().expect("no panic");
        drop(never.1.wait_timeout(lock, limit).expect("no panic"));
        start.elapsed().saturating_sub(limit)
    };
    let controls: Vec<_> = (0..8).map(|_| thread::spawn(wait)).collect();
    let result = during();
    let late = controls
        .into_iter()
        .map(|control| control.join().expect("no panic"));
    (late.max().unwrap_or_default(), result)
}

/// Whether a call with the deadline `limit` returned within 1.1 times of it, apart from what the
/// machine adds: see [`lateness`].
#[track_caller]
pub fn assert_on_time(took: Duration, limit: Duration, late: Duration) {
    let most = limit * 11 / 10 + Duration::from_millis(8) + 2 * socket_lateness() + 4 * late;
    assert!(
        took <= most,
        "{took:?} of {limit:?}; {late:?} is the machine's"
    );
}

/// How late the system ends a wait at a socket, which has coarser clocks than other waits.
pub fn socket_lateness() -> Duration {
    let limit = Duration::from_millis(20);
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a port");
    socket.set_read_timeout(Some(limit)).expect("valid");
    let late = (0..5).map(|_| {
        let start = Instant::now();
        let _ = socket.recv(&mut [0]);
        start.elapsed().saturating_sub(limit)
    });
    late.max().unwrap_or_default()
}

/// How late `threads` threads are when one event wakes all of them: the control of tests that limit
/// the time of such a moment.
pub fn wake_up_delay(threads: usize) -> Duration {
    let woken_at = Arc::new((Mutex::new((0, None)), Condvar::new()));
    let waiting: Vec<_> = (0..threads)
        .map(|_| {
            let woken_at = woken_at.clone();
            thread::spawn(move || {
                let mut state = woken_at.0.lock().expect("no panic");
                state.0 += 1;
                woken_at.1.notify_all();
                let woken = |state: &mut (usize, Option<Instant>)| state.1.is_none();
                let waited = woken_at.1.wait_timeout_while(state, PATIENCE, woken);
                let state = waited.expect("no panic").0;
                state.1.expect("it is set").elapsed()
            })
        })
        .collect();
    let state = woken_at.0.lock().expect("no panic");
    let all_wait = |state: &mut (usize, Option<Instant>)| state.0 < threads;
    let waited = woken_at.1.wait_timeout_while(state, PATIENCE, all_wait);
    let (mut state, waited) = waited.expect("no panic");
    assert!(!waited.timed_out(), "some threads do not start");
    state.1 = Some(Instant::now());
    drop(state);
    woken_at.1.notify_all();
    let delays = waiting
        .into_iter()
        .map(|thread| thread.join().expect("no panic"));
    delays.max().unwrap_or_default()
}
