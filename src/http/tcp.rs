//! A connection to a peer as ureq uses it: two system calls a request, and a deadline that holds
//! for all of them together.

use std::fmt;
use std::io;
use std::time::Instant;

use ureq::Timeout;
use ureq::unversioned::transport::{Buffers, ConnectionDetails, Connector, NextTimeout, Transport};

use crate::http::buffers::ConnectionBuffers;
use crate::http::exchange::{Terms, deadline_of};
use crate::http::idle::{Carrier, Idle};
use crate::http::resolve::Addresses;
use crate::http::socket::{Generation, Socket};
use crate::sync::Arc;

/// Makes connections to one peer, and keeps them for the next request.
///
/// ureq's own pool is turned off: it hands out the connection that has rested longest, whoever asks,
/// and looks through all of them twice for each request.
#[derive(Clone)]
pub(crate) struct TcpConnector {
    addresses: Arc<Addresses>,
    generation: Generation,
    /// The most bytes of one answer, head and all, that are read.
    max_answer: u64,
    idle: Arc<Idle<Connection>>,
    /// Whether every request gets a new connection.
    fresh: bool,
}

impl TcpConnector {
    pub(crate) fn new(terms: &Terms, generation: Generation) -> Self {
        TcpConnector {
            addresses: Arc::new(Addresses::new(&terms.url)),
            generation,
            max_answer: terms.max_answer(),
            idle: Arc::new(Idle::new(terms.max_idle)),
            fresh: false,
        }
    }

    /// The same for second attempts: what it makes is kept with the others, but it takes none of
    /// them.
    pub(crate) fn fresh(&self) -> Self {
        TcpConnector {
            fresh: true,
            ..self.clone()
        }
    }

    fn connect_by(&self, deadline: Instant) -> io::Result<Connection> {
        let (addresses, generation) = (&self.addresses, &self.generation);
        Ok(Connection {
            socket: Socket::connect(addresses, generation, self.max_answer, deadline)?,
            buffers: ConnectionBuffers::new(),
            held: Vec::with_capacity(HELD_SMALL),
        })
    }
}

impl Connector for TcpConnector {
    type Out = TcpTransport;

    /// `details` has no addresses: see `NoResolver`.
    fn connect(
        &self,
        details: &ConnectionDetails<'_>,
        _chained: Option<()>,
    ) -> Result<Option<TcpTransport>, ureq::Error> {
        let kept = if self.fresh {
            None
        } else {
            self.idle.take(Instant::now())
        };
        let Connection {
            socket,
            buffers,
            held,
        } = match kept {
            Some(connection) => connection,
            None => self
                .connect_by(deadline_after(Instant::now(), details.timeout))
                .map_err(ureq::Error::Io)?,
        };
        Ok(Some(TcpTransport {
            socket: Some(socket),
            buffers,
            held,
            sending: false,
            idle: self.idle.clone(),
        }))
    }
}

impl fmt::Debug for TcpConnector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TcpConnector")
            .field("addresses", &self.addresses)
            .finish_non_exhaustive()
    }
}

/// A connection at rest.
struct Connection {
    socket: Socket,
    buffers: ConnectionBuffers,
    held: Vec<u8>,
}

impl Carrier for Connection {
    fn socket(&self) -> &Socket {
        &self.socket
    }
}

/// A connection in the hands of ureq, for one exchange.
pub(crate) struct TcpTransport {
    /// `None` once it has gone back to those at rest.
    socket: Option<Socket>,
    buffers: ConnectionBuffers,
    /// Written by ureq and not yet sent: head and body of a request go out together.
    held: Vec<u8>,
    /// Whether the last thing done was to write. A write after a read begins a request.
    sending: bool,
    idle: Arc<Idle<Connection>>,
}

impl TcpTransport {
    fn socket(&mut self) -> io::Result<&mut Socket> {
        self.socket
            .as_mut()
            .ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    /// Sends what is held.
    fn flush(&mut self, now: Instant, deadline: Instant) -> io::Result<()> {
        let held = std::mem::take(&mut self.held);
        let sent = self.socket()?.send(&held, now, deadline);
        self.held = held;
        self.held.clear();
        self.held.shrink_to(HELD_SMALL);
        sent
    }

    fn read(&mut self, deadline: Instant) -> io::Result<usize> {
        let socket = self.socket.as_mut().ok_or(io::ErrorKind::NotConnected)?;
        let buffer = self.buffers.input_append_buf();
        if buffer.is_empty() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "a line of the answer is too long",
            ));
        }
        socket.read(buffer, deadline)
    }
}

impl Transport for TcpTransport {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), ureq::Error> {
        if !self.sending {
            self.sending = true;
            self.socket()?.begin();
        }
        // ureq writes the head, then the body, and waits for the answer when there is no more.
        self.held
            .extend_from_slice(&self.buffers.output()[..amount]);
        if self.held.len() < HELD_LARGE {
            return Ok(());
        }
        let now = Instant::now();
        self.flush(now, deadline_after(now, timeout))
            .map_err(|error| timeout_or_io(error, timeout.reason))
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, ureq::Error> {
        self.sending = false;
        let now = Instant::now();
        let deadline = deadline_after(now, timeout);
        match self.flush(now, deadline).and_then(|()| self.read(deadline)) {
            Ok(n) => {
                self.buffers.input_appended(n);
                Ok(n > 0)
            }
            Err(error) => Err(timeout_or_io(error, timeout.reason)),
        }
    }

    /// ureq asks this when it has read an answer to its end and nothing is left in the buffers,
    /// before it would put the connection into its pool. It goes into ours instead, and ureq is
    /// told to let go of it.
    fn is_open(&mut self) -> bool {
        if let Some(socket) = self.socket.take() {
            self.idle.give(Connection {
                socket,
                buffers: std::mem::take(&mut self.buffers),
                held: std::mem::take(&mut self.held),
            });
        }
        false
    }
}

impl fmt::Debug for TcpTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.socket.fmt(f)
    }
}

fn deadline_after(now: Instant, timeout: NextTimeout) -> Instant {
    deadline_of(now, *timeout.after)
}

fn timeout_or_io(error: io::Error, reason: Timeout) -> ureq::Error {
    if error.kind() == io::ErrorKind::TimedOut {
        ureq::Error::Timeout(reason)
    } else {
        ureq::Error::Io(error)
    }
}

/// Holds most requests.
const HELD_SMALL: usize = 512;

/// What is sent without waiting for more.
const HELD_LARGE: usize = 16 * 1024;
