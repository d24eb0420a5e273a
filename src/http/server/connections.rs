//! The open connections: how many there may be, which of them make room for others, and how all of
//! them end.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::io;
use std::mem::MaybeUninit;
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};
use std::sync::OnceLock;
use std::thread::ThreadId;
use std::time::{Duration, Instant};

use socket2::SockRef;

use super::limits::ServerLimits;
use crate::clock::{Clock, Tick};
use crate::http::config::KnownPeers;
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::sync::thread::{self, JoinHandle};
use crate::sync::{Arc, Condvar, Mutex};
use crate::threads::nesting::Origin;

/// One connection, shared by its own thread, the accept thread and a shutdown.
pub(crate) struct Connection {
    pub stream: TcpStream,
    pub addr: SocketAddr,
    /// The thread that serves the connection, once it runs.
    pub thread: OnceLock<ThreadId>,
    /// How many peers of the pool have this address; 0 for a stranger.
    peers: usize,
    clock: Clock,
    accepted: Tick,
    /// [`BUSY`] while a request is under way, [`GONE`] if its client seems to have left, and [`EVICTED`]
    /// once the connection has to make room. While it is idle: the time when it became so, in milliseconds
    /// since `accepted`. While a body arrives: [`RECEIVING`] and the time when that began.
    state: AtomicU64,
}

/// The present activity of a connection.
#[derive(Clone, Copy)]
pub(crate) enum Activity {
    /// It waits for a request: it may be closed to make room, and a shutdown closes it.
    Idle,
    /// A request is under way; see [`Connections::close_idle`].
    Busy,
    /// The body of a request arrives: it may be closed to make room.
    Receiving,
    /// Its client reads no response: it is the first to make room.
    Gone,
}

const BUSY: u64 = u64::MAX;
const EVICTED: u64 = u64::MAX - 1;
const GONE: u64 = u64::MAX - 2;
const RECEIVING: u64 = 1 << 62;

impl Connection {
    pub(crate) fn new(stream: TcpStream, addr: SocketAddr, peers: &dyn KnownPeers) -> Arc<Self> {
        let clock = Clock::system();
        Arc::new(Connection {
            stream,
            addr,
            thread: OnceLock::new(),
            peers: peers.peers_at(addr.ip().to_canonical()),
            accepted: clock.now(),
            clock,
            state: AtomicU64::new(0),
        })
    }

    /// Notes the present activity. A connection that has to make room stays [`EVICTED`].
    #[inline]
    pub(crate) fn set_activity(&self, activity: Activity) {
        let state = match activity {
            // Up to 10 ms early: it is called after each request.
            Activity::Idle => millis(self.clock.recent().since(self.accepted)),
            Activity::Busy => BUSY,
            Activity::Receiving => RECEIVING | millis(self.age()),
            Activity::Gone => GONE,
        };
        // Never for a moment another state than `EVICTED`, or the connection would make room twice.
        let kept = |old| (old != EVICTED).then_some(state);
        let order = Ordering::SeqCst;
        let _ = self.state.fetch_update(order, order, kept);
    }

    /// Whether the connection has to end after its current request.
    pub(crate) fn is_evicted(&self) -> bool {
        self.state.load(Ordering::Relaxed) == EVICTED
    }

    pub(crate) fn is_from_peer(&self) -> bool {
        self.peers > 0
    }

    /// Whether the client will send nothing more. Not detected behind requests that are still unread.
    ///
    /// Does not change the socket's mode, because another thread may use it meanwhile.
    #[cfg(unix)]
    pub(crate) fn has_ended(&self) -> bool {
        let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
        let peeked =
            SockRef::from(&self.stream).recv_with_flags(&mut [MaybeUninit::uninit()], flags);
        peeked.map_or_else(|e| e.kind() != io::ErrorKind::WouldBlock, |n| n == 0)
    }

    /// Not detected on other systems.
    #[cfg(not(unix))]
    pub(crate) fn has_ended(&self) -> bool {
        false
    }

    /// Whether a request is under way whose client will send nothing more.
    fn is_abandoned(&self) -> bool {
        self.state.load(Ordering::SeqCst) == BUSY && self.has_ended()
    }

    /// The time since the accept.
    fn age(&self) -> Duration {
        self.clock.now().since(self.accepted)
    }

    /// How long the connection has been idle; `None` if it is busy or evicted.
    fn idle(&self) -> Option<Duration> {
        match self.state.load(Ordering::SeqCst) {
            BUSY | EVICTED => None,
            GONE => Some(Duration::MAX),
            since => {
                let since = Duration::from_millis(since & !RECEIVING);
                Some(self.age().saturating_sub(since))
            }
        }
    }

    /// Ends the connection if it is idle or, with `make_room`, if a body arrives or its client seems to
    /// have left. Returns whether it did.
    ///
    /// Only the receiving side is closed: a thread that has just read a request, and not yet marked
    /// its connection busy, can still write the response.
    fn evict(&self, make_room: bool) -> bool {
        let state = self.state.load(Ordering::SeqCst);
        let (before, after) = (Ordering::SeqCst, Ordering::Relaxed);
        let is_under_way = state == GONE || state & RECEIVING != 0;
        if matches!(state, BUSY | EVICTED)
            || (is_under_way && !make_room)
            || self
                .state
                .compare_exchange(state, EVICTED, before, after)
                .is_err()
        {
            return false;
        }
        // An error means that the client closed it first.
        let _ = self.stream.shutdown(Shutdown::Read);
        true
    }

    /// The address whose limit applies; `None` for a loopback address, which has no limit of its
    /// own.
    fn limited_addr(&self) -> Option<IpAddr> {
        let ip = self.addr.ip().to_canonical();
        (!ip.is_loopback()).then_some(ip)
    }
}

fn millis(time: Duration) -> u64 {
    time.as_secs() * 1000 + u64::from(time.subsec_millis())
}

/// All connections of one server.
#[derive(Default)]
pub(crate) struct Connections {
    table: Mutex<ConnectionTable>,
    /// Notified when a connection ends and when the server has stopped.
    changed: Condvar,
    stopping: AtomicBool,
    /// Held while threads are joined: another call returns no earlier than they have ended.
    joining: Mutex<()>,
}

#[derive(Default)]
struct ConnectionTable {
    next_id: u64,
    open: HashMap<u64, OpenConnection>,
    /// Threads that are about to end. They are joined at the next accept or at shutdown.
    finished: Vec<JoinHandle<()>>,
    stopped: bool,
}

impl ConnectionTable {
    /// The number of open connections for which `matches` is true, without evicted ones.
    fn count(&self, matches: impl Fn(&Connection) -> bool) -> usize {
        let open = self.open.values().map(|open| &*open.connection);
        open.filter(|one| matches(one) && !one.is_evicted()).count()
    }

    /// Ends one connection for which `matches` is true: of the idle ones the one that has been idle longest,
    /// a stranger's first; else a busy one whose client has left. Returns whether there is one.
    ///
    /// A connection that became idle a moment ago does not count: its client may be sending the next
    /// request.
    fn evict(&self, matches: impl Fn(&Connection) -> bool) -> bool {
        let mut idle: Vec<_> = self
            .open
            .values()
            .map(|open| &*open.connection)
            .filter(|one| matches(one))
            .filter_map(|one| Some((one.idle().filter(|idle| *idle >= MIN_IDLE)?, one)))
            .collect();
        let rank = |(idle, one): &(Duration, &Connection)| (one.is_from_peer(), Reverse(*idle));
        while let Some(first) = (0..idle.len()).min_by_key(|&at| rank(&idle[at])) {
            // It may have become busy.
            if idle.swap_remove(first).1.evict(true) {
                return true;
            }
        }
        // A thread that waits for a load looks for its client every 200 ms. A new client does not wait so long.
        let open = self.open.values().map(|open| &*open.connection);
        let mut matching = open.filter(|one| matches(one)).take(MAX_LOOKS);
        matching.any(|one| {
            one.is_abandoned() && {
                one.set_activity(Activity::Gone);
                one.evict(true)
            }
        })
    }
}

/// How many of `max` connections are kept for peers: a quarter, or one for each of many peers. Busy
/// strangers have at least a quarter.
fn kept_for_peers(max: usize, peers: usize) -> usize {
    if peers == 0 {
        return 0;
    }
    peers.min(max - max / 4).max(max / 4)
}

/// See [`ConnectionTable::evict`].
const MIN_IDLE: Duration = Duration::from_millis(100);

/// How many clients the accept thread looks for before it refuses a connection. A look is one system call.
const MAX_LOOKS: usize = 1024;

struct OpenConnection {
    connection: Arc<Connection>,
    /// `None` until the accept thread has set it.
    thread: Option<JoinHandle<()>>,
    /// Whether a call to shut down came from its own request, which cannot end before the call.
    exempt: bool,
}

/// Counts a connection among the open ones until it is dropped.
pub(crate) struct ConnectionGuard {
    connections: Arc<Connections>,
    pub id: u64,
    pub connection: Arc<Connection>,
}

impl Connections {
    /// Adds `connection` to the open ones; `None` if a limit is reached.
    ///
    /// At a limit, the connection that has been idle longest makes room. A stranger's connection can make
    /// room for any other, and does so first. That of a peer makes room for a peer only. Strangers cannot
    /// take the connections that are [kept for peers](kept_for_peers).
    pub(crate) fn admit(
        self: &Arc<Self>,
        connection: &Arc<Connection>,
        limits: &ServerLimits,
        peers: &dyn KnownPeers,
    ) -> Option<ConnectionGuard> {
        let mut table = self.table.lock();
        // An evicted connection ends soon. This bounds those that have not ended yet.
        if table.open.len() >= limits.max_connections.saturating_mul(2) {
            return None;
        }
        let addr = connection.limited_addr();
        let same_addr = |other: &Connection| addr.is_some() && other.limited_addr() == addr;
        let stranger = |other: &Connection| !other.is_from_peer();
        let any = |_: &Connection| true;
        let is_peer = connection.is_from_peer();
        let reserved = kept_for_peers(limits.max_connections, peers.count());
        let has_room = if table.count(same_addr)
            >= limits
                .max_connections_per_addr
                .saturating_mul(connection.peers.max(1))
        {
            table.evict(same_addr)
        } else if !is_peer && table.count(stranger) >= limits.max_connections - reserved {
            table.evict(stranger)
        } else if table.count(any) >= limits.max_connections {
            table.evict(if is_peer { any } else { stranger })
        } else {
            true
        };
        if !has_room {
            return None;
        }
        let id = table.next_id;
        table.next_id += 1;
        let open = OpenConnection {
            connection: connection.clone(),
            thread: None,
            exempt: false,
        };
        table.open.insert(id, open);
        Some(ConnectionGuard {
            connections: self.clone(),
            id,
            connection: connection.clone(),
        })
    }

    /// Stores the thread that serves the connection with this id, which may have ended by now.
    pub(crate) fn attach(&self, id: u64, thread: JoinHandle<()>) {
        let mut table = self.table.lock();
        match table.open.get_mut(&id) {
            Some(open) => open.thread = Some(thread),
            None => table.finished.push(thread),
        }
    }

    /// Joins the threads that have finished.
    pub(crate) fn reap(&self) {
        let _joining = self.joining.lock();
        let finished = std::mem::take(&mut self.table.lock().finished);
        for thread in finished {
            if thread.thread().id() == thread::current().id() {
                continue;
            }
            // The thread catches panics of user code. The panic hook has reported any other panic.
            let _ = thread.join();
        }
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }

    /// Makes each connection end after its current request.
    pub(crate) fn stop(&self) {
        let _table = self.table.lock();
        self.stopping.store(true, Ordering::SeqCst);
        self.changed.notify_all();
    }

    /// Exempts the connection whose request this thread works for: a shutdown that is called from
    /// within a request does not wait for it. Returns whether there is such a connection.
    pub(crate) fn exempt_caller(&self) -> bool {
        let caller = Origin::here().thread();
        let mut table = self.table.lock();
        let mut all = table.open.values_mut();
        match all.find(|open| open.connection.thread.get() == Some(&caller)) {
            Some(open) => open.exempt = true,
            None => return false,
        }
        true
    }

    /// Ends the connections that wait for a request. To be called after [`stop`](Self::stop).
    ///
    /// A connection thread marks its connection idle and then checks whether the server is stopping.
    /// A shutdown marks the server as stopping and then checks whether the connection is idle. In
    /// every order of these four steps, at least one of the two checks succeeds.
    pub(crate) fn close_idle(&self) {
        for connection in self.all(false) {
            connection.evict(false);
        }
    }

    /// Closes every connection, also in the middle of a request. With `from_within`, exempt
    /// connections stay open.
    pub(crate) fn cut(&self, from_within: bool) {
        for connection in self.all(from_within) {
            // A thread that waits for a load sees the state, and one that writes gets an error.
            connection.state.store(EVICTED, Ordering::SeqCst);
            let _ = connection.stream.shutdown(Shutdown::Both);
        }
    }

    /// Waits until no connection is open, or until `deadline`; returns how many are left. With
    /// `from_within`, exempt connections do not count.
    pub(crate) fn wait_until_none(&self, from_within: bool, deadline: Instant) -> usize {
        let mut table = self.table.lock();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let waited_for = |open: &&OpenConnection| !(from_within && open.exempt);
            let open = table.open.values().filter(waited_for).count();
            if open == 0 || left.is_zero() {
                return open;
            }
            table = self.changed.wait_timeout(table, left);
        }
    }

    /// Makes [`wait_until_stopped`](Self::wait_until_stopped) return.
    pub(crate) fn set_stopped(&self) {
        self.table.lock().stopped = true;
        self.changed.notify_all();
    }

    /// Waits until the server has stopped.
    pub(crate) fn wait_until_stopped(&self) {
        let from_within = self.exempt_caller();
        let mut table = self.table.lock();
        while !(table.stopped || from_within && self.is_stopping()) {
            table = self.changed.wait(table);
        }
    }

    /// How many connections are open, without those that end to make room.
    pub(crate) fn count(&self) -> usize {
        let table = self.table.lock();
        // A shutdown evicts all of them, and is over when they have ended.
        if self.is_stopping() {
            return table.open.len();
        }
        table.count(|_| true)
    }

    fn all(&self, from_within: bool) -> Vec<Arc<Connection>> {
        let table = self.table.lock();
        let open = table.open.values();
        let some = open.filter(|open| !(from_within && open.exempt));
        some.map(|open| open.connection.clone()).collect()
    }
}

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        let mut table = self.connections.table.lock();
        let open = table.open.remove(&self.id);
        table.finished.extend(open.and_then(|open| open.thread));
        drop(table);
        self.connections.changed.notify_all();
    }
}

/// A connection of a unit test.
#[cfg(all(test, not(larder_loom)))]
pub(crate) fn test_connection(stream: TcpStream) -> Arc<Connection> {
    let addr = stream.peer_addr().expect("it is connected");
    Connection::new(stream, addr, &tests::Peers(Vec::new()))
}

/// A connection of a known peer.
#[cfg(all(test, not(larder_loom)))]
pub(crate) fn test_peer_connection(stream: TcpStream) -> Arc<Connection> {
    let addr = stream.peer_addr().expect("it is connected");
    Connection::new(stream, addr, &tests::Peers(vec![addr.ip()]))
}

#[cfg(all(test, larder_loom))]
mod loom_models;

#[cfg(all(test, not(larder_loom)))]
mod tests;
