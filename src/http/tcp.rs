//! A connection to a peer as ureq uses it: two system calls a request, and a deadline that holds
//! for all of them together.

use std::fmt;
use std::io;
use std::time::{Duration, Instant};

use ureq::Timeout;
use ureq::unversioned::transport::{Buffers, ConnectionDetails, Connector, NextTimeout, Transport};

use crate::http::buffers::ConnectionBuffers;
use crate::http::resolve::Addresses;
use crate::http::socket::{Generation, Socket};
use crate::sync::Arc;

/// Makes connections to one peer.
#[derive(Clone, Debug)]
pub(crate) struct TcpConnector {
    addresses: Arc<Addresses>,
    generation: Generation,
    /// The most bytes of one answer, head and all, that are read.
    max_answer: u64,
}

impl TcpConnector {
    pub(crate) fn new(addresses: Addresses, generation: Generation, max_answer: u64) -> Self {
        TcpConnector {
            addresses: Arc::new(addresses),
            generation,
            max_answer,
        }
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
        let deadline = deadline_after(details.timeout);
        let socket = Socket::connect(&self.addresses, &self.generation, self.max_answer, deadline);
        Ok(Some(TcpTransport {
            socket: socket.map_err(ureq::Error::Io)?,
            buffers: ConnectionBuffers::new(),
            held: Vec::with_capacity(HELD_SMALL),
            sending: false,
        }))
    }
}

/// One connection, used for one exchange after the other.
pub(crate) struct TcpTransport {
    socket: Socket,
    buffers: ConnectionBuffers,
    /// Written by ureq and not yet sent: head and body of a request go out together.
    held: Vec<u8>,
    /// Whether the last thing done was to write. A write after a read begins a request.
    sending: bool,
}

impl TcpTransport {
    /// Sends what is held.
    fn flush(&mut self, deadline: Instant) -> io::Result<()> {
        self.socket.send(&self.held, deadline)?;
        self.held.clear();
        self.held.shrink_to(HELD_SMALL);
        Ok(())
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
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), ureq::Error> {
        if !self.sending {
            self.sending = true;
            self.socket.begin();
        }
        // ureq writes the head, then the body, and waits for the answer when there is no more.
        self.held
            .extend_from_slice(&self.buffers.output()[..amount]);
        if self.held.len() < HELD_LARGE {
            return Ok(());
        }
        self.flush(deadline_after(timeout))
            .map_err(|error| timeout_or_io(error, timeout.reason))
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, ureq::Error> {
        self.sending = false;
        let deadline = deadline_after(timeout);
        match self.flush(deadline).and_then(|()| self.read(deadline)) {
            Ok(n) => {
                self.buffers.input_appended(n);
                Ok(n > 0)
            }
            Err(error) => Err(timeout_or_io(error, timeout.reason)),
        }
    }

    /// One whose last answer was not read to its end never gets here, because ureq drops it, and
    /// one that got more than its answer is dropped for its full buffer.
    fn is_open(&mut self) -> bool {
        self.socket.is_open()
    }
}

impl fmt::Debug for TcpTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.socket.fmt(f)
    }
}

fn deadline_after(timeout: NextTimeout) -> Instant {
    Instant::now() + (*timeout.after).min(LONGEST)
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

/// A bound that keeps sums of times in range. Exchanges have far shorter ones.
const LONGEST: Duration = Duration::from_secs(86_400);
