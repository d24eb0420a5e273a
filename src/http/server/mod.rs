//! The server: a builder with every limit, and the handle of a running server.
//!
//! - `limits`: the limits on the resources that clients can use.
//! - `byte_budget`: bounds the bytes that all connections hold together.
//! - `malloc_arenas`: bounds the memory that glibc's malloc keeps.
//! - `listener`: the listening socket. `accept`: the accept thread.
//! - `connections`: the open connections, and how they end.
//! - `connection`: one connection on its own thread: reader → `head` → response → writer.
//! - `head`: parses the head of a request.
//! - `endpoint`: responds to peers. `handler`: the program's own pages. `response`: the result of both.
//! - `wait`: how long a request waits for a load. `abandoned`: counts the loads whose clients have left.
//! - `tiny`: the endpoint in a tiny_http server.

mod abandoned;
mod accept;
mod byte_budget;
mod connection;
mod connections;
pub(crate) mod endpoint;
pub(crate) mod handler;
pub(crate) mod head;
pub(crate) mod limits;
mod listener;
mod malloc_arenas;
pub(crate) mod response;
#[cfg(feature = "tiny_http")]
pub mod tiny;
mod wait;

use std::fmt;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::time::{Duration, Instant};

use self::abandoned::AbandonedLoads;
use self::byte_budget::ByteBudget;
use self::connection::Service;
use self::connections::Connections;
use self::endpoint::Endpoint;
use self::handler::Handler;
use self::limits::ServerLimits;
use self::listener::{Listener, Waker, enlarge_queue, prepare};
use crate::error::{Error, ErrorKind, Result};
use crate::http::config::KnownPeers;
use crate::panics::caught;
use crate::peers::PickerGuard;
use crate::sync::thread::JoinHandle;
use crate::sync::{Arc, Mutex, spawn};

/// Sets up a [`Server`].
///
/// The defaults are safe for a port that untrusted clients can reach. The limits bound the cost of
/// one connection; together with [`max_connections`](Self::max_connections) they bound the cost of
/// all.
#[must_use = "nothing listens before `bind` or `serve_listener`"]
pub struct ServerBuilder {
    endpoint: Endpoint,
    fallback: Option<Arc<dyn Handler>>,
    limits: ServerLimits,
    /// The limits that were set one by one. They take precedence over the others, in whatever order the calls
    /// come.
    changes: Vec<LimitChange>,
    is_shared_with_go: bool,
    peers: Arc<dyn KnownPeers>,
    /// Keeps the pool's picker registered until the server has stopped.
    registration: Arc<PickerGuard>,
}

type LimitChange = Box<dyn Fn(&mut ServerLimits) + Send + Sync>;

impl ServerBuilder {
    /// A server for the groups of `endpoint`, with a share of the connections for `peers`.
    pub(crate) fn new(
        endpoint: Endpoint,
        peers: Arc<dyn KnownPeers>,
        registration: Arc<PickerGuard>,
        is_shared_with_go: bool,
    ) -> Self {
        ServerBuilder {
            endpoint,
            fallback: None,
            limits: ServerLimits::default(),
            changes: Vec::new(),
            is_shared_with_go,
            peers,
            registration,
        }
    }

    fn with(mut self, change: impl Fn(&mut ServerLimits) + Send + Sync + 'static) -> Self {
        self.changes.push(Box::new(change));
        self
    }

    /// The limits by all calls.
    fn limits_of_all(&self) -> ServerLimits {
        let mut limits = self.limits.clone();
        if self.is_shared_with_go {
            limits.max_connections_per_addr *= GO_CONNECTIONS;
        }
        self.changes.iter().for_each(|change| change(&mut limits));
        limits
    }

    /// The handler of requests outside the base path. By default they are answered with 404.
    pub fn fallback(mut self, handler: impl Handler + 'static) -> Self {
        self.fallback = Some(Arc::new(handler));
        self
    }

    /// Sets all limits at once, such as [`ServerLimits::small`] for a small board. Those that are set one by
    /// one, before or after this, take precedence.
    pub fn limits(mut self, limits: ServerLimits) -> Self {
        self.limits = limits;
        self
    }

    /// The most connections that are open at a time, each with a thread of its own. Default: 2,048,
    /// but at most half of the descriptors that the process may open (`ulimit -n`), so that clients
    /// cannot take those that the program needs.
    ///
    /// 64 peers have 1,536 connections with the default of
    /// [`max_connections_per_peer`](super::HttpPoolBuilder::max_connections_per_peer), 24. A connection
    /// without a request takes 512 KiB of address space, and about 20 KiB of memory.
    ///
    /// A quarter is kept for the addresses of the peers in the pool's list, if there are any. With more
    /// peers than that, one connection for each of them is kept, up to three quarters. If a new
    /// connection finds none free, the one that has been idle longest is closed, a stranger's before a
    /// peer's; a stranger's new connection never closes one of a peer. A connection counts as idle also
    /// while the body of a request arrives, and at once if the client has left while its request waits for a
    /// load. If none has been idle for 100 ms, the new one is answered with 503 and closed.
    pub fn max_connections(self, count: usize) -> Self {
        self.with(move |limits| limits.max_connections = count)
    }

    /// The most connections from one IP address. Default: 32, and 16 with [`ServerLimits::small`]; four times
    /// as many for a pool with the preset of a Go program, whose client opens a connection for each concurrent
    /// request.
    ///
    /// An address of several peers of the pool's list may have as many for each. At the limit, the
    /// connection of this address that has been idle longest is closed; if there is none, the new one
    /// is answered with 503 and closed. Connections from loopback addresses are limited by
    /// [`max_connections`](Self::max_connections) alone: they come from a proxy with many clients, or
    /// from programs on this machine. Raise the limit if many clients share one address.
    pub fn max_connections_per_addr(self, count: usize) -> Self {
        self.with(move |limits| limits.max_connections_per_addr = count)
    }

    /// The longest time that a request waits for a load. Default: 30 s, as long as a client of larder
    /// waits for a load without a deadline of its own.
    ///
    /// A longer time-out of the request is shortened to it. When it is over, the request is answered
    /// with 504. If it has a time-out, it is answered a little earlier that the value is still loaded,
    /// and its client may ask again. The load goes on, for other requests and for the cache, and the
    /// getter's context ends after this time, too. A getter that hangs occupies one loader thread for each
    /// key, and no connection. A request whose client has
    /// left is given up within a second. The time of a [`fallback`](Self::fallback) handler is not
    /// limited.
    pub fn max_request_time(self, time: Duration) -> Self {
        self.with(move |limits| limits.max_request_time = time)
    }

    /// The most loads of clients of one IP address that still run although the client has not waited
    /// for them. Default: 32, an eighth of the loader threads that a group has for its peers.
    ///
    /// Further loads of this address are refused with
    /// [`Overloaded`](crate::ErrorKind::Overloaded). Cached values are served all the same, and so are
    /// loads that run already. The limit does not apply to the addresses of peers in the pool's list,
    /// which give up when a load takes longer than their time-out, and ask again.
    pub fn max_abandoned_loads(self, count: usize) -> Self {
        self.with(move |limits| limits.max_abandoned_loads = count)
    }

    /// The most bytes of a request's head: request line and headers. Default: 8 KiB, at least 1 KiB.
    ///
    /// A longer one is answered with 431. A key is sent escaped, which can triple its length. A head
    /// also has at most 64 header fields.
    pub fn max_head_size(self, bytes: usize) -> Self {
        self.with(move |limits| limits.max_head_size = bytes)
    }

    /// The most bytes of a request's body. Default: 1 MiB.
    ///
    /// Below the base path it is 128 KiB, if this number is not lower: the keys of a batch have at most
    /// 64 KiB. A value that a known peer sets may have the pool's
    /// [`max_value_size`](super::HttpPoolBuilder::max_value_size) in addition. A longer body is answered with
    /// 413, before any of it is read. Memory is taken as the bytes of a body arrive, not when they are
    /// announced.
    pub fn max_body_size(self, bytes: usize) -> Self {
        self.with(move |limits| limits.max_body_size = bytes)
    }

    /// The time a head may take, from its first byte to its last; on a new connection, from the
    /// accept. Default: 5 s.
    ///
    /// A slower one is answered with 408. A new connection that sends nothing is closed.
    pub fn head_timeout(self, timeout: Duration) -> Self {
        self.with(move |limits| limits.head_timeout = timeout)
    }

    /// The time a body may take, from the end of the head to its last byte. Default: 5 s.
    ///
    /// A slower one is answered with 408.
    pub fn body_timeout(self, timeout: Duration) -> Self {
        self.with(move |limits| limits.body_timeout = timeout)
    }

    /// The time a client may take to receive one response. Default: 30 s.
    ///
    /// The connection of a slower client is reset.
    pub fn write_timeout(self, timeout: Duration) -> Self {
        self.with(move |limits| limits.write_timeout = timeout)
    }

    /// The bytes in a second that a client has to read of a response. Default: 16 KiB; 0 switches the
    /// check off.
    ///
    /// The check is made each second, and a client may be 5 s behind. The connection of a slower client
    /// is reset, so that the system frees what was not sent. So is a connection whose client has had no
    /// room for sent bytes for 8 s (on Linux).
    pub fn min_write_rate(self, bytes_per_second: usize) -> Self {
        self.with(move |limits| limits.min_write_rate = bytes_per_second)
    }

    /// The size of the buffers, one to send and one to receive, that the system keeps for a connection,
    /// in bytes. Default: 64 KiB, at least 4 KiB. Linux takes the double, for its own overhead.
    ///
    /// It bounds what clients that read nothing can hold: the system's own limit is over 1 MiB a
    /// connection. A response is sent at most this fast for each round trip: 64 MB/s at 1 ms. Raise it
    /// for large values and distant clients.
    pub fn socket_buffer_size(self, bytes: usize) -> Self {
        self.with(move |limits| limits.socket_buffer_size = bytes)
    }

    /// The size of the send buffer that the system keeps for a connection of a known peer, in bytes, once a
    /// response is longer than [`socket_buffer_size`](Self::socket_buffer_size). Default: 512 KiB, at least
    /// 4 KiB; no effect if it is smaller than that size. Linux takes the double.
    ///
    /// With a small buffer, the threads of server and client wake each other up for each part of a long
    /// value.
    pub fn peer_buffer_size(self, bytes: usize) -> Self {
        self.with(move |limits| limits.peer_buffer_size = bytes)
    }

    /// How long a connection is kept open between two requests. Default: 60 s.
    ///
    /// Keep it longer than clients keep their idle connections, so that the clients close them first.
    /// Clients of larder do so after 15 s.
    pub fn idle_timeout(self, timeout: Duration) -> Self {
        self.with(move |limits| limits.idle_timeout = timeout)
    }

    /// The stack of each connection's thread, in bytes. Default: 512 KiB, at least 64 KiB.
    ///
    /// The fallback and the context hook run on these threads; getters run on loader threads. The
    /// server itself needs less than 32 KiB. A stack reserves address space: only the pages that were
    /// used take memory, so the default costs no more than a smaller one. 128 KiB are enough for simple
    /// handlers if address space is scarce or all memory is locked.
    pub fn stack_size(self, bytes: usize) -> Self {
        self.with(move |limits| limits.stack_size = bytes)
    }

    /// The most bytes of responses that are under way, over all connections. Default: 1 GiB.
    ///
    /// A request whose response does not fit waits for its turn, without holding the value. It is then
    /// answered anew, or with 503 at the end of its client's time, or of
    /// [`max_request_time`](Self::max_request_time). Clients other than the peers
    /// of the pool's list take half of the bytes at most. A longer response is sent alone. Responses of
    /// up to 4 KiB do not count, and those of a [`fallback`](Self::fallback) are not made again: one that
    /// does not fit is answered with 503 at once.
    pub fn max_response_bytes(self, bytes: usize) -> Self {
        self.with(move |limits| limits.max_response_bytes = bytes)
    }

    /// The most bytes of request bodies that have arrived and are not answered, over all connections.
    /// Default: 256 MiB.
    ///
    /// A body for which there is no room, or no memory, is answered with 503. Clients other than the peers
    /// of the pool's list take half of the bytes at most. A body that arrives together with its head does
    /// not count.
    pub fn max_body_bytes(self, bytes: usize) -> Self {
        self.with(move |limits| limits.max_body_bytes = bytes)
    }

    /// The most arenas of glibc's malloc, for the whole process. 0, the default, leaves them as they are:
    /// eight for each core, or what `MALLOC_ARENA_MAX` says. Other allocators have no such option.
    ///
    /// Each arena keeps memory that its threads have freed, up to twice the longest value. It is set when
    /// the server starts; arenas that exist by then stay. With few arenas, threads wait for each other
    /// when they allocate.
    pub fn malloc_arenas(self, count: usize) -> Self {
        self.with(move |limits| limits.malloc_arenas = count)
    }

    /// Listens on `addr` and serves; port 0 lets the system choose one.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Io`] if `addr` does not resolve or cannot be listened on, or no thread could
    /// be started; [`ErrorKind::InvalidOption`] if a limit is out of its range. Time-outs are
    /// between 1 ms and a day.
    pub fn bind(self, addr: impl ToSocketAddrs) -> Result<Server> {
        let bind = || {
            let listener = TcpListener::bind(addr)?;
            enlarge_queue(&listener)?;
            Ok(listener)
        };
        let listener = bind().map_err(|e| failed("cannot listen", e))?;
        self.serve_listener(listener)
    }

    /// Serves on a socket that listens already, for example one with special options, or one that was
    /// bound before the process dropped its privileges.
    ///
    /// The server owns the socket. It sets options on it, and on Linux its shutdown stops the listening
    /// in every process that shares the socket: a supervisor that passes a socket on has to open
    /// another one for the next process.
    ///
    /// # Errors
    ///
    /// As for [`bind`](Self::bind).
    pub fn serve_listener(self, listener: TcpListener) -> Result<Server> {
        let limits = self.limits_of_all();
        limits.check()?;
        let setup = || {
            listener.set_nonblocking(false)?;
            prepare(&listener, limits.socket_options())?;
            let addr = listener.local_addr()?;
            Ok((addr, Waker::new(&listener, addr)?))
        };
        let (local_addr, waker) =
            setup().map_err(|e| failed("cannot set up the listening socket", e))?;
        malloc_arenas::bound(limits.malloc_arenas);
        let service = Arc::new(Service {
            endpoint: self.endpoint,
            fallback: self.fallback,
            peers: self.peers,
            abandoned: AbandonedLoads::new(limits.max_abandoned_loads),
            response_bytes: ByteBudget::new(limits.max_response_bytes),
            body_bytes: ByteBudget::new(limits.max_body_bytes),
            limits,
            connections: Arc::new(Connections::default()),
        });
        let accept = {
            let service = service.clone();
            move || accept::run(&mut Listener::new(listener), &service)
        };
        let accept = spawn("larder-accept", None, accept)
            .map_err(|e| failed("cannot start the accept thread", e))?;
        Ok(Server {
            connections: service.connections.clone(),
            local_addr,
            listening: Mutex::new(Some(Listening { waker, accept })),
            registration: Mutex::new(Some(self.registration)),
        })
    }
}

impl fmt::Debug for ServerBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerBuilder")
            .field("limits", &self.limits_of_all())
            .finish_non_exhaustive()
    }
}

/// A running server.
///
/// It serves until [`shutdown`](Self::shutdown) is called or the handle is dropped; dropping is a
/// shutdown with 5 s for the requests under way. A program with nothing else to do calls
/// [`wait`](Self::wait).
///
/// Connections are kept open (HTTP/1.1, and 1.0 on demand), and pipelined requests are answered in
/// order. One thread serves one connection; a request that arrives in one piece costs one system call
/// to read and one to answer, and a cached value is sent without a copy.
///
/// Ambiguous requests, which two servers could read in two ways, are answered with 400 and end the
/// connection: two lengths, a length that is not a number, a line that ends in LF alone, a missing
/// Host, and so on. Bodies need a `Content-Length`; transfer codings are answered with 411.
///
/// A client that has disconnected raises no SIGPIPE, also where `main` is not Rust's, as for a library in
/// a C program.
#[must_use = "dropping the server shuts it down; call `wait` to serve for ever"]
pub struct Server {
    connections: Arc<Connections>,
    local_addr: SocketAddr,
    /// Taken by the first shutdown. It holds the lock until the port is free, and so do others wait for that.
    listening: Mutex<Option<Listening>>,
    /// Released when a shutdown is over.
    registration: Mutex<Option<Arc<PickerGuard>>>,
}

struct Listening {
    waker: Waker,
    accept: JoinHandle<()>,
}

impl Server {
    /// The address that the server listens on, with the port that the system chose.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// How many connections are open, idle ones included. Those that are closed to make room do not
    /// count, except during a shutdown.
    pub fn connections(&self) -> usize {
        self.connections.count()
    }

    /// Blocks until another thread has shut the server down; a call from a handler or getter that
    /// runs for a request of this server returns once a shutdown has begun.
    pub fn wait(&self) {
        self.connections.wait_until_stopped();
    }

    /// Stops the server: frees the port, closes idle connections, and gives requests under way
    /// `timeout` to finish, after which their connections are closed.
    ///
    /// When it returns `Ok`, every thread of the server has ended. A second call waits like the
    /// first.
    ///
    /// A handler or getter that runs for a request of this server may call it too: its own
    /// connection is not waited for and not cut. That connection ends after the response to its
    /// request.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::DeadlineExceeded`] if requests were cut off. Threads whose getter or handler has
    /// not returned are left behind and end when it does.
    pub fn shutdown(&self, timeout: Duration) -> Result<()> {
        self.connections.stop();
        self.stop_listening();
        self.connections.close_idle();
        let from_within = self.connections.exempt_caller();
        let deadline = Instant::now() + timeout.min(LONGEST_SHUTDOWN);
        let cut = self.connections.wait_until_none(from_within, deadline);
        if cut > 0 {
            self.connections.cut(from_within);
            let deadline = Instant::now() + AFTER_CUT;
            self.connections.wait_until_none(from_within, deadline);
        }
        self.connections.reap();
        self.connections.set_stopped();
        let registration = self.registration.lock().take();
        drop(registration);
        if cut > 0 {
            return Err(Error::new(
                ErrorKind::DeadlineExceeded,
                format!("{cut} requests were not finished after {timeout:?} and were cut off"),
            ));
        }
        Ok(())
    }

    /// Frees the port, or waits until another call has done so.
    fn stop_listening(&self) {
        let mut listening = self.listening.lock();
        if let Some(Listening { waker, accept }) = listening.take() {
            waker.wake();
            // An error would mean a panic, after which the thread has ended as well.
            let _ = accept.join();
            // The waker holds the last handle of the listening socket.
            drop(waker);
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // An earlier shutdown has waited already.
        if self.listening.lock().is_none() {
            return;
        }
        if let Err(error) = self.shutdown(DROP_TIMEOUT) {
            // A panic of the program's logger in a drop could abort the process.
            caught(|| log::warn!("{error}"));
        }
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("local_addr", &self.local_addr)
            .field("connections", &self.connections())
            .finish_non_exhaustive()
    }
}

fn failed(what: &str, error: std::io::Error) -> Error {
    Error::with_source(ErrorKind::Io, what, error)
}

/// The time that requests under way get when a server is dropped.
const DROP_TIMEOUT: Duration = Duration::from_secs(5);

/// The time that threads get to notice that their connection was closed.
const AFTER_CUT: Duration = Duration::from_millis(250);

/// The longest time-out of a shutdown. A day can be added to any `Instant`.
const LONGEST_SHUTDOWN: Duration = Duration::from_secs(24 * 60 * 60);

/// How many times more connections an address may have if it may be that of a Go program. Go's HTTP client opens a
/// connection for each request that finds no idle one, keeps two idle ones, and has no limit of its own.
const GO_CONNECTIONS: usize = 4;

#[cfg(all(test, not(larder_loom)))]
mod tests {
    use std::sync::mpsc::{RecvTimeoutError, channel};

    use super::*;
    use crate::consistent_hash::Preset;
    use crate::group::registry::Registry;
    use crate::http::HttpPool;

    #[test]
    fn order_of_the_calls_that_set_limits_does_not_matter() {
        let limits = |preset, set: fn(ServerBuilder) -> ServerBuilder| {
            let builder = HttpPool::builder("http://127.0.0.1:1").registry(&Registry::new());
            let pool = builder.preset(preset).build().expect("a pool");
            let limits = set(pool.server()).limits_of_all();
            (limits.max_connections_per_addr, limits.max_body_size)
        };
        for (preset, default, small) in [(Preset::Larder, 32, 16), (Preset::Golang, 128, 64)] {
            let limits = |set| limits(preset, set);
            assert_eq!(limits(|builder| builder), (default, 1 << 20));
            let by_one_call = limits(|builder| builder.limits(ServerLimits::small()));
            assert_eq!(by_one_call, (small, 64 << 10));
            let first = limits(|builder| {
                let builder = builder.max_connections_per_addr(7).max_body_size(8);
                builder.limits(ServerLimits::small())
            });
            assert_eq!(first, (7, 8));
            let last = limits(|builder| {
                let builder = builder.limits(ServerLimits::small());
                builder.max_connections_per_addr(7).max_body_size(8)
            });
            assert_eq!(last, first);
        }
    }

    #[test]
    fn second_shutdown_waits_until_the_port_is_free() {
        let pool = crate::http::HttpPool::builder("http://127.0.0.1:1").registry(&Registry::new());
        let pool = pool.build().expect("a pool");
        let server = pool.serve("127.0.0.1:0").expect("a server");
        // An accept thread that has something else to do when it is to end.
        let (release, released) = channel::<()>();
        let accept = spawn("accept", None, move || _ = released.recv()).expect("a thread");
        let accepting = match server.listening.lock().as_mut() {
            Some(listening) => std::mem::replace(&mut listening.accept, accept),
            None => panic!("it does not listen"),
        };
        let (ended, ends) = channel();
        std::thread::scope(|scope| {
            for _ in 0..2 {
                let (server, ended) = (&server, ended.clone());
                scope.spawn(move || {
                    server
                        .shutdown(Duration::ZERO)
                        .expect("no request is under way");
                    ended.send(()).expect("the test waits");
                });
            }
            let early = ends.recv_timeout(Duration::from_millis(100));
            assert_eq!(early, Err(RecvTimeoutError::Timeout));
            drop(release);
        });
        assert_eq!(ends.try_iter().count(), 2);
        accepting.join().expect("no panic");
        TcpListener::bind(server.local_addr()).expect("the port is free");
    }
}
