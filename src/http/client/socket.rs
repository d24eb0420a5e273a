//! One connection to a peer: every read and write within the deadline of its exchange, and what is
//! remembered to tell a connection that went stale from a peer that fails.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::http::client::dial::dial;
use crate::http::client::resolve::Addresses;
use crate::http::client::socket_timeout::SocketTimeout;
use crate::sync::Arc;
use crate::sync::atomic::{AtomicU64, Ordering};

/// A connection that carries one exchange after the other.
pub(crate) struct Socket {
    stream: TcpStream,
    generation: Generation,
    /// The generation it was made in.
    born: u64,
    /// The most bytes of one answer, head and all, that are read.
    max_answer: u64,
    /// Requests begun on this connection.
    requests: u64,
    /// Bytes read of the present answer.
    answered: u64,
    /// When the last request was sent. Not when its answer was read: that would be one more look at
    /// the clock, for an age that need not be exact.
    last_used: Instant,
    /// Whether reading or writing failed, or the peer closed its side.
    broken: bool,
    read_timeout: SocketTimeout,
    write_timeout: SocketTimeout,
}

impl Socket {
    pub(crate) fn connect(
        addresses: &Addresses,
        generation: &Generation,
        max_answer: u64,
        deadline: Instant,
    ) -> io::Result<Self> {
        // Read first: if the others are found stale while this one is made, it is not one of them,
        // but is dropped with them, which costs less than the opposite mistake.
        let born = generation.now();
        Ok(Socket {
            stream: dial(addresses, deadline)?,
            generation: generation.clone(),
            born,
            max_answer,
            requests: 0,
            answered: 0,
            last_used: Instant::now(),
            broken: false,
            read_timeout: SocketTimeout::default(),
            write_timeout: SocketTimeout::default(),
        })
    }

    /// A request begins.
    pub(crate) fn begin(&mut self) {
        self.requests += 1;
        self.answered = 0;
    }

    /// Sends all of `bytes`; it is `now`.
    ///
    /// # Errors
    ///
    /// `TimedOut` at the deadline; [`Stale`] inside the error where a second attempt can help.
    pub(crate) fn send(
        &mut self,
        bytes: &[u8],
        mut now: Instant,
        deadline: Instant,
    ) -> io::Result<()> {
        let mut rest = bytes;
        self.last_used = now;
        while !rest.is_empty() {
            let set = |timeout| self.stream.set_write_timeout(Some(timeout));
            let written = self
                .write_timeout
                .prepare(deadline.saturating_duration_since(now), set)
                .and_then(|()| (&self.stream).write(rest));
            match written {
                Ok(0) => return Err(self.fail(io::ErrorKind::BrokenPipe.into())),
                Ok(n) if n == rest.len() => return Ok(()),
                Ok(n) => rest = &rest[n..],
                Err(error) if is_early(&error) && Instant::now() < deadline => {}
                Err(error) => return Err(self.fail(error)),
            }
            now = Instant::now();
        }
        Ok(())
    }

    /// Reads some bytes of the answer; 0 at the end of the connection.
    ///
    /// # Errors
    ///
    /// As [`send`](Self::send); and where the answer is too long, or ends before it began.
    pub(crate) fn read(&mut self, buffer: &mut [u8], deadline: Instant) -> io::Result<usize> {
        let allowed = usize::try_from(self.max_answer - self.answered).unwrap_or(usize::MAX);
        if allowed == 0 {
            let error = io::Error::new(io::ErrorKind::InvalidData, "the answer is too long");
            return Err(self.fail(error));
        }
        let room = buffer.len().min(allowed);
        loop {
            let set = |timeout| self.stream.set_read_timeout(Some(timeout));
            let read = self
                .read_timeout
                .prepare(deadline.saturating_duration_since(Instant::now()), set)
                .and_then(|()| (&self.stream).read(&mut buffer[..room]));
            match read {
                Ok(0) if self.answered == 0 => {
                    return Err(self.fail(io::Error::new(
                        io::ErrorKind::UnexpectedEof,
                        "the connection was closed without an answer",
                    )));
                }
                Ok(n) => {
                    self.broken |= n == 0;
                    self.answered += n as u64;
                    return Ok(n);
                }
                Err(error) if is_early(&error) && Instant::now() < deadline => {}
                Err(error) => return Err(self.fail(error)),
            }
        }
    }

    /// The connection failed. [`Stale`] marks the failures that a second attempt can mend: the
    /// connection had been idle, and the peer closed it before it answered.
    fn fail(&mut self, error: io::Error) -> io::Error {
        self.broken = true;
        let closed = matches!(
            error.kind(),
            io::ErrorKind::UnexpectedEof
                | io::ErrorKind::ConnectionReset
                // Windows has both, for one cause.
                | io::ErrorKind::ConnectionAborted
                | io::ErrorKind::BrokenPipe
        );
        match error.kind() {
            kind if closed && self.requests > 1 && self.answered == 0 => {
                io::Error::new(kind, Stale(error))
            }
            // The deadline has passed, or the call would have been made again.
            _ if is_early(&error) => io::ErrorKind::TimedOut.into(),
            _ => error,
        }
    }

    /// The bytes read of the present answer, or of the last.
    pub(crate) fn answered(&self) -> u64 {
        self.answered
    }

    /// Whether nothing has failed on the connection, or on those that were made with it.
    pub(crate) fn is_sound(&self) -> bool {
        !self.broken && self.born == self.generation.now()
    }

    /// Whether the connection, after it has rested so long, can carry another exchange.
    ///
    /// Makes no system call for a connection in steady use, with short exchanges. One that the peer
    /// closed a moment ago is found out by using it ([`Stale`]).
    ///
    /// One that has rested is asked of the kernel. Bytes may have come that answer no request:
    /// proxies send a 408 before they close an idle connection, and a bad length leaves a rest.
    /// They would be taken for the answer to the next request, whatever its key. What comes within
    /// [`RESTED`] of the last request is not found; that would cost three system calls a request,
    /// and a peer that means harm can send a wrong answer in the first place.
    pub(crate) fn is_open_after(&self, rested: Duration) -> bool {
        self.is_sound() && (rested < RESTED || is_quiet(&self.stream))
    }

    /// How long ago the last request was sent.
    pub(crate) fn rested(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.last_used)
    }
}

impl fmt::Debug for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Socket")
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
    pub(crate) fn is(error: &io::Error) -> bool {
        error.get_ref().is_some_and(|inner| inner.is::<Stale>())
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

/// How long after a request a connection is looked at again before the next. Long enough that few are,
/// with 24 connections taken in turn; short beside the times after which anybody closes one.
const RESTED: Duration = Duration::from_millis(10);

#[cfg(all(test, not(larder_loom)))]
mod tests {
    use super::*;
    use crate::http::client::url::PeerUrl;
    use std::net::TcpListener;
    use std::thread;

    #[test]
    fn the_age_of_a_connection_is_that_of_its_last_request() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let addresses = Addresses::new(&PeerUrl::parse(&url).unwrap());
        let soon = Instant::now() + Duration::from_secs(20);
        let mut socket = Socket::connect(&addresses, &Generation::default(), 9, soon).unwrap();
        let (mut other, _) = listener.accept().unwrap();
        let sent = Instant::now();
        socket.begin();
        socket.send(b"request", sent, soon).unwrap();
        other.write_all(b"answer").unwrap();
        assert_eq!(socket.read(&mut [0; 9], soon).unwrap(), 6);
        let later = sent + Duration::from_secs(3);
        assert_eq!(socket.rested(later), Duration::from_secs(3));
    }

    #[test]
    fn a_write_ends_at_its_deadline_also_if_some_of_it_is_taken() {
        for pause in [None, Some(Duration::from_millis(10))] {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let url = format!("http://{}", listener.local_addr().unwrap());
            let addresses = Addresses::new(&PeerUrl::parse(&url).unwrap());
            let soon = Instant::now() + Duration::from_secs(20);
            let mut socket = Socket::connect(&addresses, &Generation::default(), 1, soon).unwrap();
            let (other, _) = listener.accept().unwrap();
            let mut reads = other.try_clone().unwrap();
            let reader = pause.map(|pause| {
                thread::spawn(move || {
                    while reads.read(&mut [0; 64 << 10]).is_ok_and(|n| n > 0) {
                        thread::sleep(pause);
                    }
                })
            });
            socket.begin();
            let begun = Instant::now();
            let limit = Duration::from_millis(200);
            let error = socket
                .send(&vec![0; 256 << 20], begun, begun + limit)
                .unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::TimedOut, "{error}");
            let took = begun.elapsed();
            assert!((limit..4 * limit).contains(&took), "{took:?}");
            assert!(!socket.is_sound());
            drop((socket, other));
            if let Some(reader) = reader {
                reader.join().unwrap();
            }
        }
    }
}
