//! Reads requests from a connection: whole heads and whole bodies, within total deadlines.

use std::io::{self, Read};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use crate::http::server::byte_budget::ByteGuard;
use crate::http::server::head::{BadRequest, ParsedHead, bad};
use crate::http::server::limits::ServerLimits;
use crate::wire::{Scan, scan};

/// The reason that no request could be read, or not all of it.
pub(crate) enum RequestError {
    /// The client has disconnected or was idle for too long: no response is sent.
    Closed,
    /// The client gets a response, then the connection ends.
    Bad(BadRequest),
}

impl From<BadRequest> for RequestError {
    fn from(bad: BadRequest) -> Self {
        RequestError::Bad(bad)
    }
}

/// The reading side of a connection.
pub(crate) struct RequestReader<'s> {
    socket: TimedSocket<'s>,
    limits: &'s ServerLimits,
    /// When the first head has to be complete; `None` after it.
    deadline: Option<Instant>,
    /// Initialised to its length, which is at most `max_head_size`: a head that does not fit is too
    /// large.
    buf: Vec<u8>,
    /// The bytes that were read and not consumed are `buf[..filled]`.
    filled: usize,
}

impl<'s> RequestReader<'s> {
    pub(crate) fn new(stream: &'s TcpStream, limits: &'s ServerLimits) -> Self {
        let timeout = None;
        RequestReader {
            socket: TimedSocket { stream, timeout },
            limits,
            deadline: Some(Instant::now() + limits.head_timeout),
            buf: vec![0; CHUNK.min(limits.max_head_size)],
            filled: 0,
        }
    }

    /// Reads until the buffer begins with a whole head. Returns the head's length, and whether it
    /// is similar to `last`. The end of a similar head is not searched for.
    ///
    /// The first head of a connection has to end within `head_timeout`, counted from the accept. The
    /// others have to begin within `idle_timeout`, and end within `head_timeout` once they have begun.
    /// A head that arrives in one piece costs one system call.
    pub(crate) fn read_head(
        &mut self,
        last: Option<&ParsedHead<'_>>,
    ) -> Result<(usize, bool), RequestError> {
        let mut deadline = self.deadline.take();
        let mut scanned = 0;
        loop {
            let bytes = &self.buf[..self.filled];
            let idle = bytes.is_empty();
            if !idle {
                if last.is_some_and(|last| last.is_similar(bytes)) {
                    return Ok((bytes.len(), true));
                }
                match scan(bytes, scanned).map_err(bad)? {
                    Scan::Complete(len) => return Ok((len, false)),
                    Scan::Incomplete(at) => scanned = at,
                }
            }
            let timeout = if idle && deadline.is_none() {
                self.limits.idle_timeout
            } else {
                let head_timeout = self.limits.head_timeout;
                time_left(*deadline.get_or_insert_with(|| Instant::now() + head_timeout))
            };
            if self.filled == self.buf.len() {
                self.grow()?;
            }
            match self.socket.read(&mut self.buf[self.filled..], timeout) {
                Ok(n) => self.filled += n,
                Err(_) if idle => return Err(RequestError::Closed),
                Err(error) => return Err(error),
            }
        }
    }

    fn grow(&mut self) -> Result<(), RequestError> {
        let len = (self.buf.len() + CHUNK).min(self.limits.max_head_size);
        if len == self.buf.len() {
            return Err(HEAD_TOO_LARGE.into());
        }
        self.buf.resize(len, 0);
        Ok(())
    }

    /// The first `len` bytes that were read, the bytes after them, and the socket with the rest.
    pub(crate) fn split_at(&mut self, len: usize) -> (&[u8], &[u8], &mut TimedSocket<'s>) {
        let (head, rest) = self.buf[..self.filled].split_at(len);
        (head, rest, &mut self.socket)
    }

    /// Removes the first `len` bytes: a request that was answered.
    pub(crate) fn consume(&mut self, len: usize) {
        self.buf.copy_within(len..self.filled, 0);
        self.filled -= len;
        if self.filled == 0 && self.buf.len() > CHUNK {
            // Release the memory, because connections can be idle for long.
            self.buf.truncate(CHUNK);
            self.buf.shrink_to_fit();
        }
    }

    /// Closes the connection in a way that lets the client read the last response.
    ///
    /// Closing a socket with unread bytes sends a reset, and the client then discards what it has
    /// received and not read. So the sending side is closed first, and further bytes from the
    /// client are read and discarded for a while.
    pub(crate) fn linger(&mut self) {
        if self.socket.stream.shutdown(Shutdown::Write).is_err() {
            return;
        }
        let deadline = Instant::now() + LINGER;
        let mut discarded = 0;
        while discarded < LINGER_BYTES {
            match self.socket.read(&mut self.buf, time_left(deadline)) {
                Ok(n) => discarded += n,
                Err(_) => return,
            }
        }
    }
}

/// A socket that is read within time limits.
pub(crate) struct TimedSocket<'s> {
    stream: &'s TcpStream,
    /// The current SO_RCVTIMEO: setting it costs a system call.
    timeout: Option<Duration>,
}

impl TimedSocket<'_> {
    /// Reads the rest of a body of `len` bytes that begins with `arrived`.
    ///
    /// Memory grows with the bytes that arrive, to a quarter more at most: a large `Content-Length`
    /// alone costs nothing. It is taken from `guard` first.
    pub(crate) fn read_body(
        &mut self,
        arrived: &[u8],
        len: usize,
        deadline: Instant,
        guard: &mut ByteGuard<'_>,
    ) -> Result<Vec<u8>, RequestError> {
        let mut body = arrived.to_vec();
        while body.len() < len {
            let filled = body.len();
            let chunk = BODY_CHUNK.max(filled / 4).min(len - filled);
            let more = (filled + chunk).saturating_sub(body.capacity());
            if !guard.grow(more) || body.try_reserve_exact(chunk).is_err() {
                return Err(NO_ROOM.into());
            }
            body.resize(filled + chunk, 0);
            let n = self.read(&mut body[filled..], time_left(deadline))?;
            body.truncate(filled + n);
        }
        Ok(body)
    }

    /// Reads at least one byte.
    fn read(&mut self, into: &mut [u8], timeout: Duration) -> Result<usize, RequestError> {
        if timeout.is_zero() {
            return Err(TOO_SLOW.into());
        }
        if self.timeout != Some(timeout) {
            let set = self.stream.set_read_timeout(Some(timeout));
            set.map_err(|_| RequestError::Closed)?;
            self.timeout = Some(timeout);
        }
        loop {
            match (&mut &*self.stream).read(into) {
                Ok(n @ 1..) => return Ok(n),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if is_timeout(&error) => return Err(TOO_SLOW.into()),
                Ok(0) | Err(_) => return Err(RequestError::Closed),
            }
        }
    }
}

/// The time until `deadline`. It has to be computed for each read, because a socket's time-out is for
/// one read: a client that sends a byte now and then would never exceed it.
fn time_left(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now())
}

/// Unix reports `WouldBlock` after SO_RCVTIMEO, Windows `TimedOut`.
pub(crate) fn is_timeout(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
    )
}

/// The size of the buffer, which grows by as much for longer heads. Requests of peers are under 500
/// bytes unless they ask for many keys.
const CHUNK: usize = 4096;

/// The memory that a short body takes beyond the bytes that have arrived.
const BODY_CHUNK: usize = 8 << 10;

const LINGER: Duration = Duration::from_millis(500);
const LINGER_BYTES: usize = 256 << 10;

/// The refusal of a body for which the budget has no room, or the system no memory.
pub(crate) const NO_ROOM: BadRequest = BadRequest {
    status: 503,
    reason: "the server has no room for more bodies and responses",
};

const TOO_SLOW: BadRequest = BadRequest {
    status: 408,
    reason: "the request took too long to arrive",
};

const HEAD_TOO_LARGE: BadRequest = BadRequest {
    status: 431,
    reason: "the head of the request is too large",
};
