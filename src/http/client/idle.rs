//! The connections to one peer that wait for the next request.

use std::collections::VecDeque;
use std::time::Instant;

use crate::http::client::exchange::MAX_IDLE_AGE;
use crate::http::client::socket::Socket;
use crate::sync::{Mutex, Padded, thread_local};

/// Unused connections, the one used last at the back.
///
/// A thread gets the connection that it used last, if that is free: the thread that serves it at
/// the peer is then likely to be on the same processor, or near it, and the connection's memory too.
pub(crate) struct Idle<C> {
    max: usize,
    resting: Padded<Mutex<VecDeque<(Owner, C)>>>,
}

/// Something that goes over a socket.
pub(crate) trait Carrier {
    fn socket(&self) -> &Socket;
}

impl<C: Carrier> Idle<C> {
    /// Keeps at most `max` connections.
    pub(crate) fn new(max: usize) -> Self {
        Idle {
            max,
            resting: Padded(Mutex::default()),
        }
    }

    /// A connection that can carry a request: this thread's, else the one used last, so that the
    /// others may grow old.
    pub(crate) fn take(&self, now: Instant) -> Option<C> {
        let me = Owner::me();
        loop {
            let (_, connection) = {
                let mut resting = self.resting.lock();
                let mine = resting.iter().rposition(|(owner, _)| *owner == me);
                match mine {
                    Some(at) => resting.remove(at),
                    None => resting.pop_back(),
                }
            }?;
            let socket = connection.socket();
            let rested = socket.rested(now);
            if rested < MAX_IDLE_AGE && socket.is_open_after(rested) {
                return Some(connection);
            }
        }
    }

    /// Takes a connection back whose answer was read to its end.
    pub(crate) fn give(&self, connection: C) {
        if !connection.socket().is_sound() {
            return;
        }
        let me = Owner::me();
        let old = {
            let mut resting = self.resting.lock();
            resting.push_back((me, connection));
            let is_useless = |(_, oldest): &(Owner, C)| {
                let socket = oldest.socket();
                !socket.is_sound() || socket.rested(Instant::now()) >= MAX_IDLE_AGE
            };
            let surplus = resting.len() > self.max
                || (resting.len() > 1 && resting.front().is_some_and(is_useless));
            surplus.then(|| resting.pop_front())
        };
        drop(old);
    }
}

/// A thread, told from the others while it runs.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Owner(usize);

impl Owner {
    fn me() -> Self {
        thread_local! {
            static PLACE: u8 = const { 0 };
        }
        Owner(
            PLACE
                .try_with(|place| std::ptr::from_ref(place).addr())
                .unwrap_or(0),
        )
    }
}

#[cfg(all(test, not(larder_loom)))]
mod tests {
    use super::*;
    use crate::http::client::resolve::Addresses;
    use crate::http::client::socket::Generation;
    use crate::http::client::url::PeerUrl;
    use std::net::{TcpListener, TcpStream};
    use std::time::Duration;

    struct Numbered(usize, Socket);

    impl Carrier for Numbered {
        fn socket(&self) -> &Socket {
            &self.1
        }
    }

    struct Peer {
        listener: TcpListener,
        addresses: Addresses,
        generation: Generation,
    }

    impl Peer {
        fn new() -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let url = format!("http://{}", listener.local_addr().unwrap());
            Peer {
                listener,
                addresses: Addresses::new(&PeerUrl::parse(&url).unwrap()),
                generation: Generation::default(),
            }
        }

        /// Connections, with their other ends.
        fn connect(&self, count: usize) -> (Vec<Numbered>, Vec<TcpStream>) {
            let deadline = Instant::now() + Duration::from_secs(20);
            let connect = |number| {
                let socket = Socket::connect(&self.addresses, &self.generation, 1, deadline);
                let (other, _) = self.listener.accept().unwrap();
                (Numbered(number, socket.unwrap()), other)
            };
            (0..count).map(connect).unzip()
        }
    }

    fn resting(idle: &Idle<Numbered>) -> Vec<usize> {
        let resting = idle.resting.lock();
        resting.iter().map(|(_, numbered)| numbered.0).collect()
    }

    #[test]
    fn those_used_last_are_kept_and_no_more_than_allowed() {
        let (connections, _others) = Peer::new().connect(5);
        let idle = Idle::new(3);
        connections.into_iter().for_each(|one| idle.give(one));
        assert_eq!(resting(&idle), [2, 3, 4]);
    }

    #[test]
    fn who_has_rested_too_long_is_closed() {
        let (connections, _others) = Peer::new().connect(2);
        let idle = Idle::new(3);
        connections.into_iter().for_each(|one| idle.give(one));
        let late = Instant::now() + MAX_IDLE_AGE;
        assert!(idle.take(late).is_none());
        assert!(resting(&idle).is_empty());
    }

    #[test]
    fn those_of_before_are_let_go_of_when_others_come_back() {
        let peer = Peer::new();
        let (connections, _others) = peer.connect(3);
        let idle = Idle::new(10);
        connections.into_iter().for_each(|one| idle.give(one));
        peer.generation.end();
        let (connections, _others) = peer.connect(2);
        connections.into_iter().for_each(|one| idle.give(one));
        assert_eq!(resting(&idle), [2, 0, 1]);
        assert_eq!(idle.take(Instant::now()).map(|one| one.0), Some(1));
        assert_eq!(idle.take(Instant::now()).map(|one| one.0), Some(0));
        assert!(idle.take(Instant::now()).is_none());
    }

    #[test]
    fn a_thread_gets_its_own_else_the_one_used_last() {
        let (connections, _others) = Peer::new().connect(3);
        let idle = &Idle::new(3);
        let mut connections = connections.into_iter();
        idle.give(connections.next().unwrap());
        let take = || idle.take(Instant::now()).unwrap();
        std::thread::scope(|scope| {
            // While this thread runs, no other can be taken for it.
            scope.spawn(|| connections.for_each(|one| idle.give(one)));
        });
        let mine = take();
        assert_eq!((mine.0, take().0), (0, 2));
    }
}
