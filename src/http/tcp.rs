//! A connection to a peer as ureq uses it: two system calls a request, and a deadline that holds
//! for all of them together.
//!
//! The deadline is not ureq's. For a time-out of its own it would work out at every step what is left,
//! and to be told of another than its agent's it has its whole configuration copied. So it has none,
//! and everything that waits does so here.

use std::cell::Cell;
use std::fmt;
use std::io;
use std::time::{Duration, Instant};

use ureq::unversioned::transport::{Buffers, ConnectionDetails, Connector, NextTimeout, Transport};

use crate::http::buffers::ConnectionBuffers;
use crate::http::exchange::{Terms, deadline_of};
use crate::http::idle::{Carrier, Idle};
use crate::http::resolve::Addresses;
use crate::http::rest;
use crate::http::socket::{Generation, Socket};
use crate::sync::Arc;

/// Makes connections to one peer, and keeps them for the next request.
///
/// ureq's own pool is turned off: it hands out the connection that has rested longest, whoever asks,
/// and looks through all of them twice for each request.
#[derive(Clone)]
pub(crate) struct TcpConnector {
    addresses: Arc<Addresses>,
    connect_timeout: Duration,
    generation: Generation,
    /// The most bytes of one answer, head and all, that are read.
    max_answer: u64,
    idle: Arc<Idle<Box<Connection>>>,
    /// Whether every request gets a new connection.
    fresh: bool,
}

impl TcpConnector {
    pub(crate) fn new(terms: &Terms, generation: Generation) -> Self {
        TcpConnector {
            addresses: Arc::new(Addresses::new(&terms.url)),
            connect_timeout: terms.connect_timeout,
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

    fn dial(&self, now: Instant, deadline: Instant) -> io::Result<Box<Connection>> {
        let (addresses, generation) = (&self.addresses, &self.generation);
        let by = deadline.min(deadline_of(now, self.connect_timeout));
        Ok(Box::new(Connection {
            socket: Socket::connect(addresses, generation, self.max_answer, by)?,
            buffers: ConnectionBuffers::new(),
            held: Vec::with_capacity(HELD_SMALL),
        }))
    }
}

/// Runs `exchange`, which asks ureq once, on this thread. The connection that it is given keeps to
/// `deadline`, also when the body of the answer is read later, on whatever thread.
///
/// ureq has no way to hand anything on from who asks to the connector, but calls it on this thread.
pub(crate) fn by<R>(deadline: Instant, exchange: impl FnOnce() -> R) -> R {
    DEADLINE.set(Some(deadline));
    exchange()
}

thread_local! {
    /// Of the exchange that begins on this thread.
    static DEADLINE: Cell<Option<Instant>> = const { Cell::new(None) };
}

impl Connector for TcpConnector {
    type Out = TcpTransport;

    /// `details` has no addresses: see `NoResolver`.
    fn connect(
        &self,
        _details: &ConnectionDetails<'_>,
        _chained: Option<()>,
    ) -> Result<Option<TcpTransport>, ureq::Error> {
        let now = Instant::now();
        let deadline = DEADLINE.take().unwrap_or(now);
        let kept = if self.fresh {
            None
        } else {
            self.idle.take(now)
        };
        let connection = match kept {
            Some(connection) => connection,
            None => self.dial(now, deadline)?,
        };
        Ok(Some(TcpTransport {
            exchange: Some(Exchange {
                connection,
                deadline,
                idle: self.idle.clone(),
            }),
            none: ConnectionBuffers::default(),
            sending: false,
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

struct Connection {
    socket: Socket,
    buffers: ConnectionBuffers,
    /// Written by ureq and not yet sent: head and body of a request go out together.
    held: Vec<u8>,
}

impl Carrier for Box<Connection> {
    fn socket(&self) -> &Socket {
        &self.socket
    }
}

/// A connection in the hands of ureq, for one exchange.
pub(crate) struct TcpTransport {
    /// `None` once its connection has gone back to those at rest.
    exchange: Option<Exchange>,
    /// The buffers of a connection that is gone.
    none: ConnectionBuffers,
    /// Whether the last thing done was to write. A write after a read begins a request.
    sending: bool,
}

/// A connection, until it goes back to those at rest.
pub(crate) struct Exchange {
    connection: Box<Connection>,
    deadline: Instant,
    idle: Arc<Idle<Box<Connection>>>,
}

impl Exchange {
    /// Reads some of the body, from the buffers as long as there is something in them, then either
    /// from the socket `to_its_place` or through the buffers; 0 at the end of the connection.
    pub(crate) fn read(&mut self, into: &mut [u8], to_its_place: bool) -> io::Result<usize> {
        let connection = &mut *self.connection;
        if connection.buffers.input().is_empty() {
            if to_its_place {
                return connection.socket.read(into, self.deadline);
            }
            let read = connection.read(self.deadline)?;
            connection.buffers.input_appended(read);
        }
        let input = connection.buffers.input();
        let taken = input.len().min(into.len());
        into[..taken].copy_from_slice(&input[..taken]);
        connection.buffers.input_consume(taken);
        Ok(taken)
    }

    /// The answer was read to its end: the connection can carry another exchange.
    pub(crate) fn end(self) {
        // Bytes behind the answer answer nothing.
        if self.connection.buffers.input().is_empty() {
            self.idle.give(self.connection);
        }
    }
}

impl TcpTransport {
    fn exchange(&mut self) -> io::Result<(&mut Connection, Instant)> {
        let exchange = self.exchange.as_mut();
        let exchange = exchange.ok_or(io::ErrorKind::NotConnected)?;
        Ok((&mut exchange.connection, exchange.deadline))
    }
}

impl Connection {
    /// Sends what is held.
    fn flush(&mut self, now: Instant, deadline: Instant) -> io::Result<()> {
        let sent = self.socket.send(&self.held, now, deadline);
        self.held.clear();
        self.held.shrink_to(HELD_SMALL);
        sent
    }

    fn read(&mut self, deadline: Instant) -> io::Result<usize> {
        let buffer = self.buffers.input_append_buf();
        if buffer.is_empty() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "a line of the answer is too long",
            ));
        }
        self.socket.read(buffer, deadline)
    }
}

impl Transport for TcpTransport {
    fn buffers(&mut self) -> &mut dyn Buffers {
        match &mut self.exchange {
            Some(exchange) => &mut exchange.connection.buffers,
            None => &mut self.none,
        }
    }

    fn transmit_output(&mut self, amount: usize, _: NextTimeout) -> Result<(), ureq::Error> {
        let begins = !std::mem::replace(&mut self.sending, true);
        let (connection, deadline) = self.exchange()?;
        if begins {
            connection.socket.begin();
        }
        // ureq writes the head, then the body, and waits for the answer when there is no more.
        let output = &connection.buffers.output()[..amount];
        connection.held.extend_from_slice(output);
        if connection.held.len() >= HELD_LARGE {
            connection.flush(Instant::now(), deadline)?;
        }
        Ok(())
    }

    fn await_input(&mut self, _: NextTimeout) -> Result<bool, ureq::Error> {
        self.sending = false;
        let (connection, deadline) = self.exchange()?;
        if !connection.held.is_empty() {
            connection.flush(Instant::now(), deadline)?;
        }
        let read = connection.read(deadline)?;
        connection.buffers.input_appended(read);
        Ok(read > 0)
    }

    /// ureq asks this when it has read an answer to its end and nothing is left in the buffers,
    /// before it would put the connection into its pool. It goes into ours instead, and ureq is
    /// told to let go of it.
    fn is_open(&mut self) -> bool {
        if let Some(exchange) = self.exchange.take() {
            exchange.end();
        }
        false
    }
}

impl Drop for TcpTransport {
    fn drop(&mut self) {
        if let Some(exchange) = self.exchange.take() {
            rest::leave(exchange);
        }
    }
}

impl fmt::Debug for TcpTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let exchange = self.exchange.as_ref();
        exchange.map(|exchange| &exchange.connection.socket).fmt(f)
    }
}

/// Holds most requests.
const HELD_SMALL: usize = 512;

/// What is sent without waiting for more.
const HELD_LARGE: usize = 16 * 1024;
