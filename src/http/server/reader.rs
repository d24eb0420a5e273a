//! Reads requests from a connection: whole heads and whole bodies, within total deadlines.

use std::io::{self, Read};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use super::head::{BadRequest, bad};
use super::limits::Limits;
use crate::wire::{Scan, scan};

/// The reason that no request could be read, or not all of it.
pub(crate) enum RequestError {
    /// The client is gone or was idle for too long: no response is sent.
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
    limits: &'s Limits,
    /// The bytes that were read and not consumed. At most `max_head_size`: if that many do not
    /// contain a whole head, the head is too large.
    buf: Vec<u8>,
}

impl<'s> RequestReader<'s> {
    pub(crate) fn new(stream: &'s TcpStream, limits: &'s Limits) -> Self {
        let timeout = None;
        RequestReader {
            socket: TimedSocket { stream, timeout },
            limits,
            buf: Vec::with_capacity(CHUNK),
        }
    }

    /// Reads until the buffer begins with a whole head, and returns the head's length.
    ///
    /// Without a `deadline` the head has to begin within `idle_timeout`, and once it has begun it has
    /// to end within `head_timeout`. A head that arrives in one piece costs one system call.
    pub(crate) fn read_head(
        &mut self,
        mut deadline: Option<Instant>,
    ) -> Result<usize, RequestError> {
        let mut scanned = 0;
        loop {
            match scan(&self.buf, scanned).map_err(bad)? {
                Scan::Complete(len) => return Ok(len),
                Scan::Incomplete(at) => scanned = at,
            }
            let idle = self.buf.is_empty();
            let timeout = if idle && deadline.is_none() {
                self.limits.idle_timeout
            } else {
                let head_timeout = self.limits.head_timeout;
                time_left(*deadline.get_or_insert_with(|| Instant::now() + head_timeout))
            };
            let room = (self.buf.len() + 1).next_multiple_of(CHUNK);
            let room = room.min(self.limits.max_head_size);
            if room == self.buf.len() {
                return Err(HEAD_TOO_LARGE.into());
            }
            match self.socket.append(&mut self.buf, room, timeout) {
                Err(_) if idle => return Err(RequestError::Closed),
                result => result?,
            }
        }
    }

    /// The first `len` bytes of the buffer, the bytes after them, and the socket that sends the rest.
    pub(crate) fn split_at(&mut self, len: usize) -> (&[u8], &[u8], &mut TimedSocket<'s>) {
        let (head, rest) = self.buf.split_at(len);
        (head, rest, &mut self.socket)
    }

    /// Removes the first `len` bytes of the buffer: a request that was answered.
    pub(crate) fn consume(&mut self, len: usize) {
        self.buf.drain(..len);
        self.buf.shrink_to(CHUNK);
    }

    /// Closes the connection in a way that lets the client read the last response.
    ///
    /// Closing a socket with unread bytes sends a reset, and the client then discards what it has
    /// received and not read. So the sending side is closed first, and what the client still sends is
    /// read and discarded for a while.
    pub(crate) fn linger(&mut self) {
        if self.socket.stream.shutdown(Shutdown::Write).is_err() {
            return;
        }
        let deadline = Instant::now() + LINGER;
        let mut discarded = 0;
        while discarded < LINGER_BYTES {
            self.buf.clear();
            let left = time_left(deadline);
            if self.socket.append(&mut self.buf, CHUNK, left).is_err() {
                return;
            }
            discarded += self.buf.len();
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
    /// Memory grows with the bytes that arrive: a large `Content-Length` alone costs nothing.
    pub(crate) fn read_body(
        &mut self,
        arrived: &[u8],
        len: usize,
        deadline: Instant,
    ) -> Result<Vec<u8>, RequestError> {
        let mut body = arrived.to_vec();
        while body.len() < len {
            let room = len.min(body.len() + BODY_CHUNK);
            self.append(&mut body, room, time_left(deadline))?;
        }
        Ok(body)
    }

    /// Appends the bytes of one read to `buf`, which then has at most `max_len`.
    fn append(
        &mut self,
        buf: &mut Vec<u8>,
        max_len: usize,
        timeout: Duration,
    ) -> Result<(), RequestError> {
        let filled = buf.len();
        buf.resize(max_len, 0);
        let read = self.read(&mut buf[filled..], timeout);
        buf.truncate(filled + *read.as_ref().unwrap_or(&0));
        match read {
            Ok(1..) => Ok(()),
            Err(error) if is_timeout(&error) => Err(TOO_SLOW.into()),
            Ok(0) | Err(_) => Err(RequestError::Closed),
        }
    }

    fn read(&mut self, into: &mut [u8], timeout: Duration) -> io::Result<usize> {
        if timeout.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        if self.timeout != Some(timeout) {
            self.stream.set_read_timeout(Some(timeout))?;
            self.timeout = Some(timeout);
        }
        loop {
            match (&mut &*self.stream).read(into) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => return result,
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
fn is_timeout(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
    )
}

/// The size of the buffer, which grows by as much for longer heads. Requests of peers are under 500
/// bytes unless they ask for many keys.
const CHUNK: usize = 4096;

/// The most memory that a body takes beyond the bytes that have arrived, apart from `Vec`'s growth.
const BODY_CHUNK: usize = 16 << 10;

const LINGER: Duration = Duration::from_millis(500);
const LINGER_BYTES: usize = 256 << 10;

const TOO_SLOW: BadRequest = BadRequest {
    status: 408,
    reason: "the request took too long to arrive",
};

const HEAD_TOO_LARGE: BadRequest = BadRequest {
    status: 431,
    reason: "the head of the request is too large",
};
