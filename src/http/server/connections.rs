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

/// One connection, as its own thread and a shutdown share it.
pub(crate) struct Link {
    pub stream: TcpStream,
    pub addr: SocketAddr,
    /// The thread that serves the connection, once it runs.
    pub thread: OnceLock<ThreadId>,
    /// Whether a whole head was read and not yet answered.
    busy: AtomicBool,
}

impl Link {
    pub(crate) fn new(stream: TcpStream, addr: SocketAddr) -> Arc<Self> {
        Arc::new(Link {
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

    /// The address that the connection counts for; `None` from this machine, which is not limited.
    fn counted_addr(&self) -> Option<IpAddr> {
        let ip = self.addr.ip().to_canonical();
        (!ip.is_loopback()).then_some(ip)
    }
}

/// All connections of one server.
#[derive(Default)]
pub(crate) struct Connections {
    state: Mutex<State>,
    /// Notified when a connection ends and when the server has stopped.
    changed: Condvar,
    stopping: AtomicBool,
}

#[derive(Default)]
struct State {
    next_id: u64,
    open: HashMap<u64, Open>,
    per_addr: HashMap<IpAddr, usize>,
    /// Threads that have nothing left to do but to end. Joined at the next accept or at shutdown.
    finished: Vec<JoinHandle<()>>,
    stopped: bool,
}

struct Open {
    link: Arc<Link>,
    /// `None` until the accept thread has come to put it in.
    thread: Option<JoinHandle<()>>,
    /// Whether a call to shut down came from its own request, which cannot end before the call.
    exempt: bool,
}

/// A connection's place among the open ones; dropping it gives the place up.
pub(crate) struct Ticket {
    connections: Arc<Connections>,
    id: u64,
    pub link: Arc<Link>,
}

impl Connections {
    /// Gives `link` a place; `None` if there is none left for it.
    pub(crate) fn admit(self: &Arc<Self>, link: &Arc<Link>, limits: &Limits) -> Option<Ticket> {
        let mut state = self.state.lock();
        if state.open.len() >= limits.max_connections {
            return None;
        }
        if let Some(addr) = link.counted_addr() {
            let count = state.per_addr.entry(addr).or_default();
            if *count >= limits.max_connections_per_addr {
                return None;
            }
            *count += 1;
        }
        let id = state.next_id;
        state.next_id += 1;
        let open = Open {
            link: link.clone(),
            thread: None,
            exempt: false,
        };
        state.open.insert(id, open);
        Some(Ticket {
            connections: self.clone(),
            id,
            link: link.clone(),
        })
    }

    /// Says which thread serves the connection with this id. It may have ended by now.
    pub(crate) fn attach(&self, id: u64, thread: JoinHandle<()>) {
        let mut state = self.state.lock();
        match state.open.get_mut(&id) {
            Some(open) => open.thread = Some(thread),
            None => state.finished.push(thread),
        }
    }

    /// Joins the threads that have finished.
    pub(crate) fn reap(&self) {
        let finished = std::mem::take(&mut self.state.lock().finished);
        for thread in finished {
            if thread.thread().id() == thread::current().id() {
                continue;
            }
            // It caught the panics of user code; one of its own has been reported by the hook.
            let _ = thread.join();
        }
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }

    /// From now on connections end with the request that they are busy with.
    pub(crate) fn stop(&self) {
        let _state = self.state.lock();
        self.stopping.store(true, Ordering::SeqCst);
        self.changed.notify_all();
    }

    /// Lets shutdowns that come from within requests not wait for the connection whose request this
    /// thread works for. Returns whether there is one.
    pub(crate) fn exempt_caller(&self) -> bool {
        let caller = Origin::here().thread();
        let mut state = self.state.lock();
        let mut all = state.open.values_mut();
        match all.find(|open| open.link.thread.get() == Some(&caller)) {
            Some(open) => open.exempt = true,
            None => return false,
        }
        true
    }

    /// Ends the connections that wait for a request. Comes after [`stop`](Self::stop).
    ///
    /// A connection thread says that it is idle and then looks whether the server is stopping; we
    /// say that it is stopping and then look whether the connection is idle. Whichever order the
    /// four steps take, one of the two sees the other.
    ///
    /// Only the reading side is shut: a thread that has read a request in this moment, and not yet
    /// said that it is busy, can still write the answer.
    pub(crate) fn close_idle(&self) {
        for link in self.links(false) {
            if !link.busy.load(Ordering::SeqCst) {
                // An error means that the client closed it first.
                let _ = link.stream.shutdown(Shutdown::Read);
            }
        }
    }

    /// Cuts every connection, whatever it is busy with, but exempt ones if the caller is one.
    pub(crate) fn cut(&self, from_within: bool) {
        for link in self.links(from_within) {
            let _ = link.stream.shutdown(Shutdown::Both);
        }
    }

    /// Waits until no connection is open, or until `deadline`; returns how many are left. Exempt
    /// ones do not count if the caller is one.
    pub(crate) fn wait_until_none(&self, from_within: bool, deadline: Instant) -> usize {
        let mut state = self.state.lock();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let waited_for = |open: &&Open| !(from_within && open.exempt);
            let open = state.open.values().filter(waited_for).count();
            if open == 0 || left.is_zero() {
                return open;
            }
            state = self.changed.wait_timeout(state, left);
        }
    }

    /// Lets [`wait_until_stopped`](Self::wait_until_stopped) return.
    pub(crate) fn set_stopped(&self) {
        self.state.lock().stopped = true;
        self.changed.notify_all();
    }

    /// Waits until the server has stopped.
    pub(crate) fn wait_until_stopped(&self) {
        let from_within = self.exempt_caller();
        let mut state = self.state.lock();
        while !(state.stopped || from_within && self.is_stopping()) {
            state = self.changed.wait(state);
        }
    }

    /// How many connections are open.
    pub(crate) fn count(&self) -> usize {
        self.state.lock().open.len()
    }

    fn links(&self, from_within: bool) -> Vec<Arc<Link>> {
        let state = self.state.lock();
        let open = state.open.values();
        let some = open.filter(|open| !(from_within && open.exempt));
        some.map(|open| open.link.clone()).collect()
    }
}

impl Ticket {
    pub(crate) fn id(&self) -> u64 {
        self.id
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut state = self.connections.state.lock();
        let mut open = state.open.remove(&self.id);
        if let Some(thread) = open.as_mut().and_then(|open| open.thread.take()) {
            state.finished.push(thread);
        }
        if let Some(addr) = self.link.counted_addr() {
            if let Some(count) = state.per_addr.get_mut(&addr) {
                *count -= 1;
                if *count == 0 {
                    state.per_addr.remove(&addr);
                }
            }
        }
        drop(state);
        self.connections.changed.notify_all();
    }
}

#[cfg(all(test, not(larder_loom)))]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, Ipv6Addr, TcpListener};

    /// A link that pretends to come from `ip`.
    fn link_from(ip: impl Into<IpAddr>) -> Arc<Link> {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let stream = TcpStream::connect(listener.local_addr().expect("addr")).expect("connect");
        Link::new(stream, SocketAddr::new(ip.into(), 1))
    }

    #[test]
    fn an_address_has_its_share_and_gets_it_back() {
        let connections = Arc::new(Connections::default());
        let limits = Limits {
            max_connections: 4,
            max_connections_per_addr: 2,
            ..Limits::default()
        };
        let admit = |ip: Ipv4Addr| connections.admit(&link_from(ip), &limits);
        let (a, b) = (Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2));
        let first = admit(a).expect("the first");
        let mapped = connections.admit(&link_from(a.to_ipv6_mapped()), &limits);
        assert!(mapped.is_some(), "the second, however it is written");
        assert!(admit(a).is_none(), "over the share");
        let _other = admit(b).expect("another address");
        drop(first);
        let _again = admit(a).expect("the share came back");
        assert_eq!(connections.count(), 3);
    }

    #[test]
    fn this_machine_is_limited_by_the_total_alone() {
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
        let tickets: Vec<_> = ips
            .into_iter()
            .map(|ip| connections.admit(&link_from(ip), &limits))
            .collect();
        let admitted = tickets.iter().map(Option::is_some);
        assert!(admitted.eq([true, true, true, false]));
    }
}
