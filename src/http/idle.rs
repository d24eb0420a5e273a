//! The connections to one peer that wait for the next request.

use std::collections::VecDeque;
use std::time::Instant;

use crate::http::exchange::MAX_IDLE_AGE;
use crate::http::socket::Socket;
use crate::sync::{Mutex, thread_local};

/// Unused connections, the one used last at the back.
///
/// A thread gets the connection that it used last, if that is free: the thread that serves it at
/// the peer is then likely to be on the same processor, or near it, and the connection's memory too.
/// Where the peer is on this machine, that halves the cost of an exchange when many threads ask.
pub(crate) struct Idle<C> {
    max: usize,
    resting: Mutex<VecDeque<(Owner, C)>>,
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
            resting: Mutex::default(),
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
