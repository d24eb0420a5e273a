//! The body of an answer, read from its connection, which goes home at the end of it.

use std::io::{self, Read};
use std::time::Instant;

use super::framing::{Chunk, Framing};
use super::input::Input;
use super::{Home, PeerConnection};
use crate::http::client::exchange::broke_off;
use crate::sync::Arc;

/// Reads a body to its end, then gives the connection back. Dropped before, it closes it.
pub(crate) struct AnswerBody {
    home: Arc<Home>,
    /// `None` once the body is over, or has failed.
    connection: Option<Box<PeerConnection>>,
    framing: Framing,
    /// Whether the connection can carry another exchange after this one.
    keep: bool,
    deadline: Instant,
}

impl AnswerBody {
    /// The body that comes next on `connection`.
    pub(crate) fn new(
        home: Arc<Home>,
        connection: Box<PeerConnection>,
        framing: Framing,
        keep: bool,
        deadline: Instant,
    ) -> Self {
        let mut body = AnswerBody {
            home,
            connection: Some(connection),
            framing,
            keep,
            deadline,
        };
        body.end_if_over();
        body
    }

    fn end_if_over(&mut self) {
        if self.framing.is_over() {
            if let Some(connection) = self.connection.take().filter(|_| self.keep) {
                self.home.give(connection);
            }
        }
    }
}

impl Read for AnswerBody {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if into.is_empty() || self.framing.is_over() {
            return Ok(0);
        }
        let connection = self.connection.as_mut().ok_or_else(broke_off)?;
        let (input, mut socket) = connection.until(self.deadline);
        match read_some(&mut self.framing, input, &mut socket, into) {
            Ok(taken) => {
                self.end_if_over();
                Ok(taken)
            }
            Err(error) => {
                self.connection = None;
                Err(match error.kind() {
                    io::ErrorKind::TimedOut => self.home.terms.too_late(),
                    _ => error,
                })
            }
        }
    }
}

/// Takes some of a body, at least a byte; 0 at its end. `into` has room for one.
pub(crate) fn read_some(
    framing: &mut Framing,
    input: &mut Input,
    from: &mut impl Read,
    into: &mut [u8],
) -> io::Result<usize> {
    loop {
        match *framing {
            Framing::Length(0) | Framing::Chunked(Chunk::Nothing) => return Ok(0),
            Framing::Length(left) => {
                let (taken, left) = some_of(left, input, from, into)?;
                *framing = Framing::Length(left);
                return Ok(taken);
            }
            Framing::Chunked(Chunk::Data(left)) => {
                let (taken, left) = some_of(left, input, from, into)?;
                *framing = Framing::Chunked(match left {
                    0 => Chunk::DataEnd,
                    left => Chunk::Data(left),
                });
                return Ok(taken);
            }
            Framing::Chunked(chunk) => {
                let next = input.line(from, |line| chunk.after(line))?;
                *framing = Framing::Chunked(next);
            }
            Framing::UntilClosed => {
                let taken = input.take(into, u64::MAX, from)?;
                if taken == 0 {
                    *framing = Framing::Length(0);
                }
                return Ok(taken);
            }
        }
    }
}

/// Takes some of `left` bytes, at least one; how many, and how many are left then.
fn some_of(
    left: u64,
    input: &mut Input,
    from: &mut impl Read,
    into: &mut [u8],
) -> io::Result<(usize, u64)> {
    match input.take(into, left, from)? {
        0 => Err(broke_off()),
        taken => Ok((taken, left - taken as u64)),
    }
}
