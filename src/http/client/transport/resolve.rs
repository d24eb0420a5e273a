//! The addresses of a peer, looked up in the background and never by a thread with a request.

use std::fmt;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use crate::http::client::transport::url::{Host, PeerUrl};
use crate::sync::{Arc, Condvar, Mutex, spawn};

/// The addresses to connect to for one peer.
///
/// An address in the URL is used as it is. A name is looked up by a thread of its own, started
/// when the peer is set, because a look-up cannot be given a deadline: while the name server is
/// down it blocks for many seconds. Only a request that needs a new connection reads the result.
/// It waits only while no address is known at all, and no longer than it may take to connect.
///
/// The look-up is repeated in the background when a new connection is needed and the result is
/// over [`FRESH`] old, when no address could be connected to, when the peer closed a connection, or
/// when a client at another address asked for what only peers may do. The known addresses are used
/// until then. At least [`PAUSE`] passes between two look-ups, and a failed one keeps the known
/// addresses.
///
/// They are tried in the order of the look-up, but first the last one that accepted a connection when others
/// before it had not. Otherwise each new connection would wait for an IPv6 address that leads nowhere.
///
/// An address that a peer lost can belong to another node soon, which answers requests for all keys. So
/// connections to it are not used any more.
pub(crate) enum Addresses {
    Literal(Arc<[SocketAddr]>),
    Name(Arc<HostName>),
}

pub(crate) struct HostName {
    host: String,
    port: u16,
    look_up: Box<LookUp>,
    state: Mutex<LookUpState>,
    /// Notified when `state.running` becomes false.
    finished: Condvar,
}

type LookUp = dyn Fn(&str, u16) -> io::Result<Vec<SocketAddr>> + Send + Sync;

#[derive(Default)]
struct LookUpState {
    /// Empty until the first look-up that found an address.
    known: Arc<[SocketAddr]>,
    /// See [`Addresses::prefer`].
    preferred: Option<SocketAddr>,
    /// Why the last look-up failed, if it did.
    failure: Option<String>,
    /// When the last look-up ended.
    ended: Option<Instant>,
    /// Whether a look-up is under way; at most one is.
    running: bool,
}

impl Addresses {
    /// The addresses of the peer at `url`. Starts to look a name up, and does not wait for it.
    pub(crate) fn new(url: &PeerUrl) -> Self {
        Self::with_look_up(url, |host, port| {
            Ok((host, port).to_socket_addrs()?.collect())
        })
    }

    fn with_look_up(
        url: &PeerUrl,
        look_up: impl Fn(&str, u16) -> io::Result<Vec<SocketAddr>> + Send + Sync + 'static,
    ) -> Self {
        let addresses = match url.host() {
            Host::Ip(ip) => Addresses::Literal(Arc::new([SocketAddr::new(*ip, url.port())])),
            Host::Name(host) => Addresses::Name(Arc::new(HostName {
                host: host.clone(),
                port: url.port(),
                look_up: Box::new(look_up),
                state: Mutex::default(),
                finished: Condvar::new(),
            })),
        };
        addresses.refresh();
        addresses
    }

    /// The addresses to try, at least one.
    ///
    /// # Errors
    ///
    /// `TimedOut` if the first look-up has not ended by `deadline`; otherwise its error.
    pub(crate) fn get(&self, deadline: Instant) -> io::Result<Arc<[SocketAddr]>> {
        match self {
            Addresses::Literal(addresses) => Ok(addresses.clone()),
            Addresses::Name(name) => name.get(deadline),
        }
    }

    /// The addresses that are known now; none before the first look-up has ended.
    pub(crate) fn known(&self) -> Arc<[SocketAddr]> {
        match self {
            Addresses::Literal(addresses) => addresses.clone(),
            Addresses::Name(name) => name.state.lock().known.clone(),
        }
    }

    /// Tries this address before all others from now on: it accepted a connection, and those before it did
    /// not.
    pub(crate) fn prefer(&self, address: SocketAddr) {
        if let Addresses::Name(name) = self {
            let mut state = name.state.lock();
            state.preferred = Some(address);
            let known = state.known.to_vec();
            state.set_known(known);
        }
    }

    /// Whether the peer still has this address, as far as is known. It had it once.
    pub(crate) fn has(&self, address: SocketAddr) -> bool {
        match self {
            Addresses::Literal(_) => true,
            Addresses::Name(name) => name.state.lock().known.contains(&address),
        }
    }

    /// Looks the name up again, in the background, if the result is over [`FRESH`] old. Strangers can cause
    /// it.
    pub(crate) fn refresh_old(&self) {
        if let Addresses::Name(name) = self {
            name.refresh(FRESH);
        }
    }

    /// Looks the name up again, in the background. Called if no address could be connected to, or the peer
    /// closed a connection: it may have moved.
    pub(crate) fn refresh(&self) {
        if let Addresses::Name(name) = self {
            name.refresh(PAUSE);
        }
    }
}

impl LookUpState {
    fn set_known(&mut self, mut found: Vec<SocketAddr>) {
        found.sort_by_key(|&address| Some(address) != self.preferred);
        found.truncate(MAX_ADDRESSES);
        self.known = found.into();
    }
}

impl HostName {
    fn get(self: &Arc<Self>, deadline: Instant) -> io::Result<Arc<[SocketAddr]>> {
        let is_known = !self.state.lock().known.is_empty();
        self.refresh(if is_known { FRESH } else { PAUSE });
        let mut state = self.state.lock();
        while state.known.is_empty() && state.running {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let message = format!("{} is still being looked up", self.host);
                return Err(io::Error::new(io::ErrorKind::TimedOut, message));
            }
            state = self.finished.wait_timeout(state, left);
        }
        if state.known.is_empty() {
            let failure = state.failure.as_deref().unwrap_or("no address found");
            let message = format!("{} cannot be looked up: {failure}", self.host);
            return Err(io::Error::new(io::ErrorKind::NotFound, message));
        }
        Ok(state.known.clone())
    }

    /// Starts a look-up, unless one is under way or the last ended less than `pause` ago.
    fn refresh(self: &Arc<Self>, pause: Duration) {
        {
            let mut state = self.state.lock();
            if state.running || state.ended.is_some_and(|at| at.elapsed() < pause) {
                return;
            }
            state.running = true;
        }
        let name = self.clone();
        let run = move || {
            let look_up = || (name.look_up)(&name.host, name.port);
            let found = catch_unwind(AssertUnwindSafe(look_up));
            name.finish(found.unwrap_or_else(|_| Err(io::Error::other("the look-up panicked"))));
        };
        if let Err(error) = spawn("larder-lookup", None, run) {
            let message = format!("cannot look up {}: {error}", self.host);
            self.finish(Err(error));
            log::warn!("{message}");
        }
    }

    fn finish(&self, found: io::Result<Vec<SocketAddr>>) {
        let mut state = self.state.lock();
        state.running = false;
        state.ended = Some(Instant::now());
        state.failure = None;
        match found {
            Ok(found) if !found.is_empty() => state.set_known(found),
            Ok(_) => {}
            Err(error) => state.failure = Some(error.to_string()),
        }
        drop(state);
        self.finished.notify_all();
    }
}

impl fmt::Debug for Addresses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Addresses::Literal(addresses) => addresses.fmt(f),
            Addresses::Name(name) => write!(f, "{}:{}", name.host, name.port),
        }
    }
}

/// The age of a result above which a new connection starts a look-up in the background.
const FRESH: Duration = Duration::from_secs(30);

/// The least time between two look-ups of one name.
const PAUSE: Duration = Duration::from_secs(1);

/// The most addresses of one name that are tried.
const MAX_ADDRESSES: usize = 16;

#[cfg(all(test, larder_loom))]
mod loom_models;

#[cfg(all(test, not(larder_loom)))]
mod tests {
    use super::*;
    use crate::http::client::transport::target::Target;
    use crate::http::config::Config;
    use std::net::TcpListener;
    use std::sync::mpsc;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(5)
    }

    fn named() -> PeerUrl {
        PeerUrl::parse("http://cache.example:81").unwrap()
    }

    #[test]
    fn address_in_url_needs_no_look_up() {
        let url = PeerUrl::parse("http://[::1]:81").unwrap();
        let addresses = Addresses::with_look_up(&url, |_, _| panic!("looked up"));
        assert_eq!(
            addresses.get(Instant::now()).unwrap()[..],
            ["[::1]:81".parse().unwrap()]
        );
    }

    #[test]
    fn waiters_share_one_look_up() {
        let (release, gate) = mpsc::channel::<()>();
        let gate = Mutex::new(gate);
        let addresses = Addresses::with_look_up(&named(), move |host, port| {
            let _ = gate.lock().recv_timeout(Duration::from_secs(20));
            assert_eq!(host, "cache.example");
            Ok(vec![SocketAddr::from(([10, 0, 0, 1], port))])
        });
        std::thread::scope(|scope| {
            let waiting: Vec<_> = (0..4)
                .map(|_| scope.spawn(|| addresses.get(soon())))
                .collect();
            // One message: a second look-up would wait for ever.
            release.send(()).unwrap();
            for waiter in waiting {
                let found = waiter.join().unwrap().unwrap();
                assert_eq!(found[..], ["10.0.0.1:81".parse().unwrap()]);
            }
        });
    }

    #[test]
    fn hanging_look_up_does_not_outlast_the_deadline() {
        let (_keep, gate) = mpsc::channel::<()>();
        let gate = Mutex::new(gate);
        let addresses = Addresses::with_look_up(&named(), move |_, _| {
            let _ = gate.lock().recv_timeout(Duration::from_secs(20));
            Ok(Vec::new())
        });
        let error = addresses
            .get(Instant::now() + Duration::from_millis(20))
            .unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[test]
    fn failed_look_up_is_an_error_at_once_and_not_repeated_within_the_pause() {
        let (calls, seen) = mpsc::channel();
        let addresses = Addresses::with_look_up(&named(), move |_, _| {
            let _ = calls.send(());
            Err(io::Error::other("no such host"))
        });
        for _ in 0..3 {
            let error = addresses.get(soon()).unwrap_err();
            assert!(error.to_string().contains("no such host"), "{error}");
        }
        assert_eq!(seen.try_iter().count(), 1);
    }

    #[test]
    fn panicking_look_up_ends() {
        let addresses = Addresses::with_look_up(&named(), |_, _| panic!("on purpose"));
        let error = addresses.get(soon()).unwrap_err();
        assert!(error.to_string().contains("panicked"), "{error}");
    }

    #[test]
    fn known_addresses_are_used_while_a_refresh_fails() {
        let answers = Mutex::new(vec![
            Err(io::Error::other("down")),
            Ok(vec!["10.0.0.1:81".parse().unwrap()]),
        ]);
        let addresses = Addresses::with_look_up(&named(), move |_, _| {
            answers.lock().pop().unwrap_or_else(|| Ok(Vec::new()))
        });
        let known = addresses.get(soon()).unwrap();
        let Addresses::Name(name) = &addresses else {
            panic!("not a name")
        };
        name.refresh(Duration::ZERO);
        let mut state = name.state.lock();
        while state.running {
            state = name.finished.wait_timeout(state, Duration::from_secs(5));
        }
        assert_eq!(state.failure.as_deref(), Some("down"));
        drop(state);
        assert_eq!(addresses.get(soon()).unwrap(), known);
    }

    /// A peer with a name, which looks up these addresses in turn, one with each look-up.
    fn peer_at(addresses: Vec<SocketAddr>) -> Arc<Target> {
        let answers = Mutex::new(addresses.into_iter());
        let look_up = move |_: &str, _| Ok(answers.lock().next().into_iter().collect());
        let addresses = Addresses::with_look_up(&named(), look_up);
        Target::with_addresses(&named(), &Arc::new(Config::for_test()), addresses)
    }

    /// Makes the last look-up one of long ago, and waits for its end.
    fn forget_pause(addresses: &Addresses) -> &HostName {
        let Addresses::Name(name) = addresses else {
            panic!("not a name")
        };
        let mut state = name.state.lock();
        while state.running {
            state = name.finished.wait_timeout(state, Duration::from_secs(5));
        }
        state.ended = None;
        name
    }

    #[test]
    fn connection_to_an_address_that_the_peer_lost_is_not_used() {
        let servers = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let [old, new] = servers.each_ref().map(|s| s.local_addr().unwrap());
        let target = peer_at(vec![old, new]);
        let connection = target.connect(soon()).unwrap();
        assert_eq!(connection.address(), old);
        assert!(target.may_use(&connection, Instant::now()));
        // The peer moved, and its old address belongs to another node: it accepts connections.
        forget_pause(target.addresses());
        target.addresses().refresh();
        forget_pause(target.addresses());
        assert!(!target.may_use(&connection, Instant::now()));
        assert_eq!(target.connect(soon()).unwrap().address(), new);
    }

    #[test]
    fn address_that_accepted_is_tried_before_one_that_did_not() {
        let [closed, open] = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let both = [&closed, &open].map(|server| server.local_addr().unwrap());
        drop(closed);
        let addresses = Addresses::with_look_up(&named(), move |_, _| Ok(both.to_vec()));
        let target = Target::with_addresses(&named(), &Arc::new(Config::for_test()), addresses);
        let known = || target.addresses().get(soon()).unwrap();
        assert_eq!(known()[..], both);
        assert_eq!(target.connect(soon()).unwrap().address(), both[1]);
        assert_eq!(known()[..], [both[1], both[0]]);
        // The next look-up has them in their first order.
        forget_pause(target.addresses());
        target.addresses().refresh();
        forget_pause(target.addresses());
        assert_eq!(known()[..], [both[1], both[0]]);
    }

    #[test]
    fn strangers_cause_a_look_up_only_if_the_last_one_is_old() {
        let [old, new] = [1, 2].map(|last| SocketAddr::from(([10, 0, 0, last], 81)));
        let target = peer_at(vec![old, new]);
        target.addresses().get(soon()).unwrap();
        let known_after = |age| {
            let name = forget_pause(target.addresses());
            name.state.lock().ended = Instant::now().checked_sub(age);
            target.addresses().refresh_old();
            forget_pause(target.addresses());
            target.addresses().known()[0]
        };
        assert_eq!(known_after(FRESH / 2), old);
        assert_eq!(known_after(FRESH), new);
    }

    #[test]
    fn name_of_a_peer_that_closed_a_connection_is_looked_up_again() {
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let old = server.local_addr().unwrap();
        let new = SocketAddr::from(([10, 0, 0, 1], 81));
        let target = peer_at(vec![old, new]);
        let connection = target.connect(soon()).unwrap();
        forget_pause(target.addresses());
        assert!(target.may_use(&connection, Instant::now()));
        drop(server.accept().unwrap());
        connection.wait_for_end();
        assert!(!target.may_use(&connection, Instant::now()));
        forget_pause(target.addresses());
        assert_eq!(target.addresses().known()[..], [new]);
    }
}
