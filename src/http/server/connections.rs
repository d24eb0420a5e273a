//! The open connections: how many there may be, which are idle, and how all of them end.

use std::collections::HashMap;
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};
use std::sync::OnceLock;
use std::thread::ThreadId;
use std::time::Instant;

use super::limits::Limits;
use crate::nesting::Origin;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::thread::{self, JoinHandle};
use crate::sync::{Arc, Condvar, Mutex};

/// One connection, shared by its own thread and a shutdown.
pub(crate) struct Connection {
    pub stream: TcpStream,
    pub addr: SocketAddr,
    /// The thread that serves the connection, once it runs.
    pub thread: OnceLock<ThreadId>,
    /// Whether a whole head was read and not yet answered.
    busy: AtomicBool,
}

impl Connection {
    pub(crate) fn new(stream: TcpStream, addr: SocketAddr) -> Arc<Self> {
        Arc::new(Connection {
            stream,
            addr,
            thread: OnceLock::new(),
            busy: AtomicBool::new(false),
        })
    }

    /// Sets whether a request is under way; see [`Connections::close_idle`].
    pub(crate) fn set_busy(&self, busy: bool) {
        self.busy.store(busy, Ordering::SeqCst);
    }

    /// The address whose limit applies; `None` for a loopback address, which has no limit of its
    /// own.
    fn limited_addr(&self) -> Option<IpAddr> {
        let ip = self.addr.ip().to_canonical();
        (!ip.is_loopback()).then_some(ip)
    }
}

/// All connections of one server.
#[derive(Default)]
pub(crate) struct Connections {
    table: Mutex<ConnectionTable>,
    /// Notified when a connection ends and when the server has stopped.
    changed: Condvar,
    stopping: AtomicBool,
}

#[derive(Default)]
struct ConnectionTable {
    next_id: u64,
    open: HashMap<u64, OpenConnection>,
    /// Threads that are about to end. They are joined at the next accept or at shutdown.
    finished: Vec<JoinHandle<()>>,
    stopped: bool,
}

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
    pub(crate) fn admit(
        self: &Arc<Self>,
        connection: &Arc<Connection>,
        limits: &Limits,
    ) -> Option<ConnectionGuard> {
        let mut table = self.table.lock();
        if table.open.len() >= limits.max_connections {
            return None;
        }
        if let Some(addr) = connection.limited_addr() {
            let addrs = table
                .open
                .values()
                .map(|open| open.connection.limited_addr());
            if addrs.filter(|other| *other == Some(addr)).count() >= limits.max_connections_per_addr
            {
                return None;
            }
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
    ///
    /// Only the receiving side is closed: a thread that has just read a request, and not yet marked
    /// its connection busy, can still write the response.
    pub(crate) fn close_idle(&self) {
        for connection in self.all(false) {
            if !connection.busy.load(Ordering::SeqCst) {
                // An error means that the client closed it first.
                let _ = connection.stream.shutdown(Shutdown::Read);
            }
        }
    }

    /// Closes every connection, also in the middle of a request. With `from_within`, exempt
    /// connections stay open.
    pub(crate) fn cut(&self, from_within: bool) {
        for connection in self.all(from_within) {
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

    /// How many connections are open.
    pub(crate) fn count(&self) -> usize {
        self.table.lock().open.len()
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

#[cfg(all(test, not(larder_loom)))]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, Ipv6Addr, TcpListener};

    /// A connection whose client has the address `ip`.
    fn connection_from(ip: impl Into<IpAddr>) -> Arc<Connection> {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let stream = TcpStream::connect(listener.local_addr().expect("addr")).expect("connect");
        Connection::new(stream, SocketAddr::new(ip.into(), 1))
    }

    #[test]
    fn limit_per_address_counts_open_connections_only() {
        let connections = Arc::new(Connections::default());
        let limits = Limits {
            max_connections: 4,
            max_connections_per_addr: 2,
            ..Limits::default()
        };
        let admit = |ip: Ipv4Addr| connections.admit(&connection_from(ip), &limits);
        let (a, b) = (Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2));
        let first = admit(a).expect("the first");
        let mapped = connections.admit(&connection_from(a.to_ipv6_mapped()), &limits);
        assert!(mapped.is_some(), "the second, as a mapped address");
        assert!(admit(a).is_none(), "over the limit");
        let _other = admit(b).expect("another address");
        drop(first);
        let _again = admit(a).expect("below the limit again");
        assert_eq!(connections.count(), 3);
    }

    #[test]
    fn loopback_is_limited_by_the_total_alone() {
        let connections = Arc::new(Connections::default());
        let limits = Limits {
            max_connections: 3,
            max_connections_per_addr: 1,
            ..Limits::default()
        };
        let mapped = Ipv4Addr::LOCALHOST.to_ipv6_mapped();
        let ips: [IpAddr; 4] = [
            Ipv4Addr::new(127, 0, 0, 9).into(),
            Ipv6Addr::LOCALHOST.into(),
            mapped.into(),
            mapped.into(),
        ];
        let guards: Vec<_> = ips
            .into_iter()
            .map(|ip| connections.admit(&connection_from(ip), &limits))
            .collect();
        let admitted = guards.iter().map(Option::is_some);
        assert!(admitted.eq([true, true, true, false]));
    }
}
