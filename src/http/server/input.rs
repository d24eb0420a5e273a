//! What a connection reads: a small buffer that whole heads come out of, within total deadlines.

use std::io::{self, Read};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use super::head::{Arrived, LastHead, Reject, Scan, scan};
use super::limits::Limits;

/// Why no request came, or not all of it.
pub(crate) enum End {
    /// The client is gone, or was idle for too long: there is nobody to answer.
    Closed,
    /// The client is told why, then the connection ends.
    Reject(Reject),
}

/// The reading side of a connection.
pub(crate) struct Input<'s> {
    reader: Reader<'s>,
    limits: &'s Limits,
    /// Initialised to its length, and never longer than `max_head_size`: that it is full is how a
    /// head that is too long is noticed.
    buf: Vec<u8>,
    /// What was read and not consumed is `buf[start..end]`.
    start: usize,
    end: usize,
}

impl<'s> Input<'s> {
    pub(crate) fn new(stream: &'s TcpStream, limits: &'s Limits) -> Self {
        Input {
            reader: Reader {
                stream,
                timeout: None,
            },
            limits,
            buf: vec![0; INITIAL_SIZE],
            start: 0,
            end: 0,
        }
    }

    /// Reads until there is a whole head.
    ///
    /// Without a `deadline` the head may take its time to begin, `idle_timeout`, and once it has
    /// begun it ends within `head_timeout`. A head that arrives in one piece costs one system call,
    /// and one that repeats the `last` is not searched for its end.
    pub(crate) fn head(
        &mut self,
        mut deadline: Option<Instant>,
        last: &LastHead,
    ) -> Result<Arrived, End> {
        let mut scanned = 0;
        loop {
            let arrived = &self.buf[self.start..self.end];
            if let Some(repeated) = last.find(arrived) {
                return Ok(repeated);
            }
            match scan(arrived, scanned).map_err(End::Reject)? {
                Scan::Complete(len) => return Ok(Arrived { len, target: None }),
                Scan::Incomplete(at) => scanned = at,
            }
            let idle = self.start == self.end;
            self.make_room()?;
            let free = &mut self.buf[self.end..];
            let read = if idle && deadline.is_none() {
                self.reader.read_within(self.limits.idle_timeout, free)
            } else {
                let by = *deadline.get_or_insert_with(|| Instant::now() + self.limits.head_timeout);
                self.reader.read_by(by, free)
            };
            match read {
                Ok(0) => return Err(End::Closed),
                Ok(n) => self.end += n,
                Err(error) if is_timeout(&error) && !idle => return Err(End::Reject(TOO_SLOW)),
                Err(_) => return Err(End::Closed),
            }
        }
    }

    /// The head of `len` bytes, what has arrived after it, and where the rest comes from.
    pub(crate) fn split(&mut self, len: usize) -> (&[u8], &[u8], &mut Reader<'s>) {
        let (head, rest) = self.buf[self.start..self.end].split_at(len);
        (head, rest, &mut self.reader)
    }

    /// Forgets the first `len` bytes: a request that has been answered.
    pub(crate) fn consume(&mut self, len: usize) {
        self.start += len;
    }

    /// Closes the connection so that the client sees what was written last.
    ///
    /// To close with unread bytes would send a reset, and a reset makes the client forget what it
    /// has received and not yet read. So the client gets the end of our stream, and what it still
    /// sends is read and thrown away, for a while.
    pub(crate) fn linger(&mut self) {
        if self.reader.stream.shutdown(Shutdown::Write).is_err() {
            return;
        }
        let deadline = Instant::now() + LINGER;
        let mut left = LINGER_BYTES;
        while left > 0 {
            match self.reader.read_by(deadline, &mut self.buf) {
                Ok(0) | Err(_) => return,
                Ok(n) => left = left.saturating_sub(n),
            }
        }
    }

    /// Makes place for at least one byte at the end of the buffer; gives a big buffer back when
    /// the connection becomes idle.
    fn make_room(&mut self) -> Result<(), End> {
        if self.start > 0 {
            self.buf.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        if self.end == 0 && self.buf.len() > INITIAL_SIZE {
            self.buf.truncate(INITIAL_SIZE);
            self.buf.shrink_to_fit();
        }
        if self.end == self.buf.len() {
            let len = (2 * self.end).min(self.limits.max_head_size);
            if len == self.end {
                return Err(End::Reject(HEAD_TOO_LARGE));
            }
            self.buf.resize(len, 0);
        }
        Ok(())
    }
}

/// A socket that is read within time limits.
pub(crate) struct Reader<'s> {
    stream: &'s TcpStream,
    /// What SO_RCVTIMEO is now: it is set only when it changes.
    timeout: Option<Duration>,
}

impl Reader<'_> {
    /// Reads the rest of a body of `len` bytes, of which `arrived` is the beginning.
    ///
    /// Memory grows as bytes arrive, to at most twice what has arrived: an announced length alone
    /// costs nothing.
    pub(crate) fn body(
        &mut self,
        arrived: &[u8],
        len: usize,
        timeout: Duration,
    ) -> Result<Vec<u8>, End> {
        let deadline = Instant::now() + timeout;
        let mut body = arrived.to_vec();
        let mut filled = body.len();
        while filled < len {
            if filled == body.len() {
                body.resize(len.min((2 * filled).max(INITIAL_SIZE)), 0);
            }
            match self.read_by(deadline, &mut body[filled..]) {
                Ok(0) => return Err(End::Closed),
                Ok(n) => filled += n,
                Err(error) if is_timeout(&error) => return Err(End::Reject(TOO_SLOW)),
                Err(_) => return Err(End::Closed),
            }
        }
        Ok(body)
    }

    /// Reads something before `deadline`, which has to be asked for again at every read: a socket's
    /// time-out is for one read, and a client that sends a byte now and then would never meet it.
    fn read_by(&mut self, deadline: Instant, into: &mut [u8]) -> io::Result<usize> {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.read_within(left, into)
    }

    fn read_within(&mut self, timeout: Duration, into: &mut [u8]) -> io::Result<usize> {
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

/// Unix says `WouldBlock` when SO_RCVTIMEO is over, Windows `TimedOut`.
fn is_timeout(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
    )
}

/// Holds the requests that peers send, which are under 500 bytes unless they ask for many keys.
const INITIAL_SIZE: usize = 4096;

const LINGER: Duration = Duration::from_millis(500);
const LINGER_BYTES: usize = 256 << 10;

const TOO_SLOW: Reject = Reject {
    status: 408,
    reason: "the request took too long to arrive",
};

const HEAD_TOO_LARGE: Reject = Reject {
    status: 431,
    reason: "the head of the request is too large",
};
