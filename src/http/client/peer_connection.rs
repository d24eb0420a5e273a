//! Connections to one peer: what has been read from each, and where it rests between exchanges.

mod body;
mod framing;
mod head;
mod input;
#[cfg(any(test, larder_fuzz))]
pub(crate) mod pieces;

use std::fmt;
use std::io::{self, Read};
use std::time::Instant;

use crate::http::client::exchange::{Refusal, Terms, deadline_of};
use crate::http::client::idle::{Carrier, Idle};
use crate::http::client::resolve::Addresses;
use crate::http::client::socket::{Generation, Socket};
use crate::sync::Arc;

pub(crate) use body::AnswerBody;
pub(crate) use framing::Framing;
pub(crate) use head::Head;
pub(crate) use input::Input;

/// All connections to a peer, whoever uses them, and the terms of the exchanges over them.
pub(crate) struct Home {
    pub(crate) terms: Terms,
    addresses: Addresses,
    generation: Generation,
    idle: Idle<Box<PeerConnection>>,
}

/// A connection with what has been read from it.
pub(crate) struct PeerConnection {
    pub(crate) socket: Socket,
    pub(crate) input: Input,
    /// What is written in one go: empty between exchanges.
    pub(crate) output: Vec<u8>,
    /// Whether a server of ours is at the other end, as far as the last answer told.
    pub(crate) is_ours: bool,
    /// Where ureq writes each line of a request to; empty until it is asked.
    pub(crate) line: Box<[u8]>,
}

/// A connection in use, and how long it may take.
pub(crate) struct Exchange {
    pub(crate) connection: Box<PeerConnection>,
    pub(crate) deadline: Instant,
    pub(crate) home: Arc<Home>,
}

impl Home {
    pub(crate) fn new(terms: Terms) -> Arc<Self> {
        Arc::new(Home {
            addresses: Addresses::new(&terms.url),
            generation: Generation::default(),
            idle: Idle::new(terms.max_idle),
            terms,
        })
    }

    /// That of a peer behind `listener`, with time for everything.
    #[cfg(all(test, not(larder_loom)))]
    pub(crate) fn behind(listener: &std::net::TcpListener) -> Arc<Self> {
        use crate::http::client::url::PeerUrl;
        use std::time::Duration;

        let address = listener.local_addr().expect("it listens");
        let url = PeerUrl::parse(&format!("http://{address}"));
        Home::new(Terms {
            url: Arc::new(url.expect("a URL")),
            connect_timeout: Duration::from_secs(20),
            exchange_timeout: Duration::from_secs(20),
            max_idle: 1,
            max_body: 100,
        })
    }

    /// A connection that rests and can carry a request, if there is one.
    pub(crate) fn take(&self, now: Instant) -> Option<Box<PeerConnection>> {
        self.idle.take(now)
    }

    /// Makes a connection.
    ///
    /// # Errors
    ///
    /// `TimedOut` at `deadline`, or earlier if connecting may not take so long.
    pub(crate) fn connect(&self, deadline: Instant) -> io::Result<Box<PeerConnection>> {
        let Home {
            terms, generation, ..
        } = self;
        let by = deadline.min(deadline_of(Instant::now(), terms.connect_timeout));
        let socket = Socket::connect(&self.addresses, generation, terms.max_answer(), by)?;
        Ok(Box::new(PeerConnection {
            socket,
            input: Input::new(),
            output: Vec::with_capacity(OUTPUT_SMALL),
            is_ours: false,
            line: Box::default(),
        }))
    }

    /// No connection made up to now is used again: the peer closed one while it rested.
    pub(crate) fn end_generation(&self) {
        self.generation.end();
    }

    /// Takes a connection back whose answer was read to its end.
    pub(crate) fn give(&self, mut connection: Box<PeerConnection>) {
        // Bytes behind the answer answer nothing.
        if connection.input.is_empty() {
            // The next answer is probably like this one.
            connection.input.expect(connection.socket.answered());
            connection.output.clear();
            connection.output.shrink_to(OUTPUT_SMALL);
            self.idle.give(connection);
        }
    }
}

impl Carrier for Box<PeerConnection> {
    fn socket(&self) -> &Socket {
        &self.socket
    }
}

impl PeerConnection {
    /// Sends what is in the output; it is `now`.
    pub(crate) fn flush(&mut self, now: Instant, deadline: Instant) -> io::Result<()> {
        let sent = self.socket.send(&self.output, now, deadline);
        self.output.clear();
        sent
    }

    /// What was read from it, and where more comes from until `deadline`.
    pub(crate) fn until(&mut self, deadline: Instant) -> (&mut Input, Until<'_>) {
        let socket = &mut self.socket;
        (&mut self.input, Until { socket, deadline })
    }
}

/// A socket whose reads end by a deadline.
pub(crate) struct Until<'s> {
    socket: &'s mut Socket,
    deadline: Instant,
}

impl Read for Until<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.socket.read(into, self.deadline)
    }
}

impl fmt::Debug for PeerConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.socket.fmt(f)
    }
}

const NOT_HTTP: Refusal = Refusal("the answer is not HTTP/1.1");

/// Holds most requests.
const OUTPUT_SMALL: usize = 512;
