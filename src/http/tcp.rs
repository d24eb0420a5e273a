//! One TCP connection to a peer, and how it is made: two system calls a request, and a deadline
//! that holds for all of them together.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use ureq::Timeout;
use ureq::unversioned::transport::{Buffers, ConnectionDetails, Connector, NextTimeout, Transport};

use crate::http::buffers::ConnectionBuffers;
use crate::http::resolve::Addresses;
use crate::http::socket_timeout::{MIN_TIMEOUT, SocketTimeout};
use crate::sync::Arc;
use crate::sync::atomic::{AtomicU64, Ordering};

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

    fn dial(&self, deadline: Instant) -> io::Result<TcpStream> {
        let addresses = self.addresses.get(deadline)?;
        let dialled = first_of(&addresses, deadline, dial_one);
        if dialled.is_err() {
            self.addresses.refresh();
        }
        dialled
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
        // Read first: if the others are found stale while this one is made, it is not one of them,
        // but is dropped with them, which costs less than the opposite mistake.
        let born = self.generation.now();
        let stream = self
            .dial(deadline_after(details.timeout))
            .map_err(ureq::Error::Io)?;
        Ok(Some(TcpTransport {
            stream,
            buffers: ConnectionBuffers::new(),
            held: Vec::with_capacity(HELD_SMALL),
            generation: self.generation.clone(),
            born,
            max_answer: self.max_answer,
            requests: 0,
            sending: false,
            answered: 0,
            last_read: Instant::now(),
            broken: false,
            read_timeout: SocketTimeout::default(),
            write_timeout: SocketTimeout::default(),
        }))
    }
}

/// Dials the addresses in turn. Each gets an even share of the time that is left, so that one that
/// swallows packets does not use up the time of the next.
fn first_of<T>(
    addresses: &[SocketAddr],
    deadline: Instant,
    dial: impl Fn(SocketAddr, Duration) -> io::Result<T>,
) -> io::Result<T> {
    let mut last = io::Error::from(io::ErrorKind::TimedOut);
    for (at, address) in addresses.iter().enumerate() {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break;
        }
        let others = u32::try_from(addresses.len() - at).unwrap_or(u32::MAX);
        match dial(*address, (left / others).max(MIN_TIMEOUT)) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = io::Error::new(error.kind(), format!("{address}: {error}")),
        }
    }
    Err(last)
}

/// A peer of this machine that is down can be "reached" by a connection to itself: the kernel gives
/// the connection a port of its own, sooner or later the very port that is dialled, and the two
/// ends meet (RFC 9293, section 3.5, simultaneous open). Kept, it would take the port from the peer
/// that starts again.
fn dial_one(address: SocketAddr, timeout: Duration) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, timeout)?;
    if stream.local_addr()? == address {
        return Err(io::Error::new(io::ErrorKind::ConnectionRefused, MET_ITSELF));
    }
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// One connection, used for one exchange after the other.
pub(crate) struct TcpTransport {
    stream: TcpStream,
    buffers: ConnectionBuffers,
    /// Written by ureq and not yet sent: head and body of a request go out together.
    held: Vec<u8>,
    generation: Generation,
    /// The generation it was made in.
    born: u64,
    max_answer: u64,
    /// Requests begun on this connection.
    requests: u64,
    /// Whether the last thing done was to write. A write after a read begins a request.
    sending: bool,
    /// Bytes read of the present answer.
    answered: u64,
    /// When bytes were read last.
    last_read: Instant,
    /// Whether reading or writing failed, or the peer closed its side.
    broken: bool,
    read_timeout: SocketTimeout,
    write_timeout: SocketTimeout,
}

impl TcpTransport {
    /// The connection failed. [`Stale`] marks the failures that a second attempt can mend: the
    /// connection had been idle, and the peer closed it before it answered.
    fn fail(&mut self, error: io::Error, reason: Timeout) -> ureq::Error {
        self.broken = true;
        let closed = matches!(
            error.kind(),
            io::ErrorKind::UnexpectedEof
                | io::ErrorKind::ConnectionReset
                | io::ErrorKind::BrokenPipe
        );
        if closed && self.requests > 1 && self.answered == 0 {
            return ureq::Error::Other(Box::new(Stale(error)));
        }
        timeout_or_io(error, reason)
    }

    /// Sends what is held.
    fn flush(&mut self, deadline: Instant) -> io::Result<()> {
        let mut rest = &self.held[..];
        while !rest.is_empty() {
            let set = |timeout| self.stream.set_write_timeout(Some(timeout));
            self.write_timeout.prepare(deadline, set)?;
            match (&self.stream).write(rest) {
                Ok(0) => return Err(io::ErrorKind::BrokenPipe.into()),
                Ok(n) => rest = &rest[n..],
                Err(error) if is_early(&error) => {}
                Err(error) => return Err(error),
            }
        }
        self.held.clear();
        self.held.shrink_to(HELD_SMALL);
        Ok(())
    }

    fn read(&mut self, deadline: Instant) -> io::Result<usize> {
        let allowed = usize::try_from(self.max_answer - self.answered).unwrap_or(usize::MAX);
        if allowed == 0 {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the answer is too long",
            ));
        }
        let buffer = self.buffers.input_append_buf();
        if buffer.is_empty() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "a line of the answer is too long",
            ));
        }
        let room = buffer.len().min(allowed);
        let buffer = &mut buffer[..room];
        loop {
            let set = |timeout| self.stream.set_read_timeout(Some(timeout));
            self.read_timeout.prepare(deadline, set)?;
            match (&self.stream).read(buffer) {
                Err(error) if is_early(&error) => {}
                result => return result,
            }
        }
    }
}

impl Transport for TcpTransport {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), ureq::Error> {
        if !self.sending {
            self.sending = true;
            self.requests += 1;
            self.answered = 0;
        }
        // ureq writes the head, then the body, and waits for the answer when there is no more.
        self.held
            .extend_from_slice(&self.buffers.output()[..amount]);
        if self.held.len() < HELD_LARGE {
            return Ok(());
        }
        self.flush(deadline_after(timeout))
            .map_err(|error| self.fail(error, timeout.reason))
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, ureq::Error> {
        self.sending = false;
        let deadline = deadline_after(timeout);
        match self.flush(deadline).and_then(|()| self.read(deadline)) {
            Ok(0) if self.answered == 0 => {
                let closed = io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    "the connection was closed without an answer",
                );
                Err(self.fail(closed, timeout.reason))
            }
            Ok(0) => {
                self.broken = true;
                Ok(false)
            }
            Ok(n) => {
                self.answered += n as u64;
                self.last_read = Instant::now();
                self.buffers.input_appended(n);
                Ok(true)
            }
            Err(error) => Err(self.fail(error, timeout.reason)),
        }
    }

    /// Makes no system call for a connection in steady use. One that the peer closed a moment ago
    /// is found out by using it ([`Stale`]); one whose last answer was not read to its end never
    /// gets here, because ureq drops it, and one that got more than its answer is dropped for its
    /// full buffer.
    ///
    /// One that has rested is asked of the kernel. Bytes may have come that answer no request:
    /// proxies send a 408 before they close an idle connection, and a bad length leaves a rest.
    /// They would be taken for the answer to the next request, whatever its key. What comes within
    /// [`RESTED`] of the answer is not found; that would cost three system calls a request, and a
    /// peer that means harm can send a wrong answer in the first place.
    fn is_open(&mut self) -> bool {
        !self.broken
            && self.born == self.generation.now()
            && (self.last_read.elapsed() < RESTED || is_quiet(&self.stream))
    }
}

impl fmt::Debug for TcpTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TcpTransport")
            .field("stream", &self.stream)
            .field("requests", &self.requests)
            .finish_non_exhaustive()
    }
}

/// Ties the idle connections to a peer together: when one is found stale, because the peer was
/// restarted, so are probably all of them, and none is tried again.
#[derive(Clone, Debug, Default)]
pub(crate) struct Generation(Arc<AtomicU64>);

impl Generation {
    fn now(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Ends the connections made up to now, when they come back or are asked for.
    pub(crate) fn end(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// The peer closed an idle connection before it answered the request that came next on it. It may
/// be asked again on a new one.
#[derive(Debug)]
pub(crate) struct Stale(io::Error);

impl Stale {
    pub(crate) fn is(error: &ureq::Error) -> bool {
        matches!(error, ureq::Error::Other(inner) if inner.is::<Stale>())
    }
}

impl fmt::Display for Stale {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "an idle connection was closed: {}", self.0)
    }
}

impl std::error::Error for Stale {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.0)
    }
}

/// Whether nothing has come, bytes or an end.
fn is_quiet(stream: &TcpStream) -> bool {
    let peek = || {
        stream.set_nonblocking(true)?;
        let peeked = stream.peek(&mut [0]);
        stream.set_nonblocking(false)?;
        peeked
    };
    peek().is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
}

/// Whether a system call ended before it did anything: interrupted by a signal, or by the socket's
/// own time-out, which can be shorter than the time left.
fn is_early(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
    )
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

/// How long a connection lies unused before it is looked at again. Long enough that few are, with
/// 24 connections taken in turn; short beside the times after which anybody closes one.
const RESTED: Duration = Duration::from_millis(10);

/// A bound that keeps sums of times in range. Exchanges have far shorter ones.
const LONGEST: Duration = Duration::from_secs(86_400);

const MET_ITSELF: &str = "refused: nobody listens, and the connection met itself";

#[cfg(all(test, not(larder_loom)))]
mod tests {
    use super::*;
    use crate::sync::Mutex;

    fn addresses(count: u16) -> Vec<SocketAddr> {
        (1..=count)
            .map(|port| SocketAddr::from(([10, 0, 0, 1], port)))
            .collect()
    }

    #[test]
    fn an_address_that_does_not_answer_leaves_time_for_the_next() {
        let deadline = Instant::now() + Duration::from_millis(900);
        let connected = first_of(&addresses(3), deadline, |address, timeout| {
            if address.port() < 3 {
                std::thread::sleep(timeout);
                return Err(io::ErrorKind::TimedOut.into());
            }
            Ok(address)
        });
        assert_eq!(connected.unwrap().port(), 3);
    }

    #[test]
    fn the_time_is_shared_by_the_addresses_that_are_left() {
        let deadline = Instant::now() + Duration::from_secs(12);
        let shares = Mutex::new(Vec::new());
        let error = first_of(&addresses(3), deadline, |_, timeout| {
            shares.lock().push(timeout.as_secs_f64().round());
            Err::<(), _>(io::ErrorKind::ConnectionRefused.into())
        })
        .unwrap_err();
        assert_eq!(*shares.lock(), [4.0, 6.0, 12.0]);
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        assert!(error.to_string().starts_with("10.0.0.1:3: "), "{error}");
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_connection_to_itself_is_refused() {
        // Linux gives even ports to connections first. Without a listener every dial is refused,
        // until the port of the connection is the one it dials.
        let listener = (40_000..60_000)
            .step_by(2)
            .find_map(|port| std::net::TcpListener::bind(("127.0.0.1", port)).ok())
            .expect("a free port");
        let address = listener.local_addr().expect("address");
        drop(listener);
        let met = (0..400_000).any(|_| match dial_one(address, Duration::from_secs(1)) {
            Ok(_) => panic!("nobody listens"),
            Err(error) => error.to_string() == MET_ITSELF,
        });
        assert!(met);
    }
}
