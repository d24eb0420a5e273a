//! The body of an answer, read from its connection, which goes home at the end of it.

use std::io::{self, Read};
use std::time::Instant;

use super::{BROKE_OFF, Connection, Home, Refusal};
use crate::http::search::find_byte;
use crate::sync::Arc;

/// How the end of a body is found (RFC 9112, section 6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    /// So many bytes are left.
    Length(u64),
    Chunked(Chunk),
    UntilClosed,
}

/// What comes next in a chunked body (RFC 9112, section 7.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Chunk {
    /// A line with the size of a chunk.
    Size,
    /// So many bytes of a chunk.
    Data(u64),
    /// The end of the line after a chunk.
    DataEnd,
    /// Lines, the last of them empty.
    Trailer,
    Nothing,
}

/// Reads a body to its end, then gives the connection back. Dropped before, it closes it.
pub(super) struct DirectBody {
    home: Arc<Home>,
    /// `None` once the body is over, or has failed.
    connection: Option<Box<Connection>>,
    framing: Framing,
    /// Whether the connection can carry another exchange after this one.
    keep: bool,
    deadline: Instant,
}

impl Framing {
    pub(super) fn chunked() -> Self {
        Framing::Chunked(Chunk::Size)
    }

    /// The length of a body that has not begun, if it is known.
    pub(super) fn length(&self) -> Option<u64> {
        match self {
            Framing::Length(length) => Some(*length),
            _ => None,
        }
    }

    fn is_over(&self) -> bool {
        matches!(self, Framing::Length(0) | Framing::Chunked(Chunk::Nothing))
    }
}

impl DirectBody {
    pub(super) fn new(
        home: Arc<Home>,
        connection: Box<Connection>,
        framing: Framing,
        keep: bool,
        deadline: Instant,
    ) -> Self {
        let mut body = DirectBody {
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

impl Connection {
    /// Some of the next `most` bytes of the body, at least one if there is room.
    fn take(&mut self, into: &mut [u8], most: u64, deadline: Instant) -> io::Result<usize> {
        let room = into.len().min(usize::try_from(most).unwrap_or(usize::MAX));
        let into = &mut into[..room];
        if self.start == self.end {
            // A long piece goes to its place at once, without a stay in the input.
            if into.len() as u64 == most || into.len() >= DIRECT {
                return self.socket.read(into, deadline);
            }
            self.fill(deadline)?;
        }
        let taken = into.len().min(self.end - self.start);
        into[..taken].copy_from_slice(&self.input[self.start..self.start + taken]);
        self.start += taken;
        Ok(taken)
    }

    /// Takes the next line, and returns what `read` makes of it, without its end.
    fn line<T>(
        &mut self,
        deadline: Instant,
        read: impl FnOnce(&[u8]) -> Result<T, Refusal>,
    ) -> io::Result<T> {
        let mut searched = 0;
        loop {
            let input = &self.input[self.start..self.end];
            if let Some(at) = find_byte(&input[searched..], b'\n') {
                let line = input[..searched + at].strip_suffix(b"\r");
                let read = line.ok_or(BAD_CHUNK).and_then(read);
                self.start += searched + at + 1;
                return read.map_err(|refusal| refusal.error());
            }
            searched = input.len();
            if self.fill(deadline)? == 0 {
                return Err(broke_off());
            }
        }
    }
}

impl Chunk {
    /// What comes after the part of the framing that is next, which holds no byte of the body.
    fn after_line(self, connection: &mut Connection, deadline: Instant) -> io::Result<Chunk> {
        connection.line(deadline, |line| match self {
            Chunk::Size => match parse_size(line).ok_or(BAD_CHUNK)? {
                0 => Ok(Chunk::Trailer),
                size => Ok(Chunk::Data(size)),
            },
            Chunk::DataEnd if line.is_empty() => Ok(Chunk::Size),
            Chunk::Trailer if line.is_empty() => Ok(Chunk::Nothing),
            Chunk::Trailer => Ok(Chunk::Trailer),
            Chunk::DataEnd | Chunk::Data(_) | Chunk::Nothing => Err(BAD_CHUNK),
        })
    }
}

impl Read for DirectBody {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let deadline = self.deadline;
        if into.is_empty() || self.framing.is_over() {
            return Ok(0);
        }
        loop {
            let connection = self.connection.as_mut().ok_or_else(broke_off)?;
            let taken = match self.framing {
                Framing::Length(most) | Framing::Chunked(Chunk::Data(most)) => {
                    connection.take(into, most, deadline).and_then(|taken| {
                        let left = most - taken as u64;
                        self.framing = match self.framing {
                            Framing::Chunked(_) if left == 0 => Framing::Chunked(Chunk::DataEnd),
                            Framing::Chunked(_) => Framing::Chunked(Chunk::Data(left)),
                            _ => Framing::Length(left),
                        };
                        if taken == 0 {
                            Err(broke_off())
                        } else {
                            Ok(Some(taken))
                        }
                    })
                }
                Framing::Chunked(chunk) => chunk.after_line(connection, deadline).map(|next| {
                    self.framing = Framing::Chunked(next);
                    (next == Chunk::Nothing).then_some(0)
                }),
                Framing::UntilClosed => {
                    let taken = connection.take(into, u64::MAX, deadline);
                    if let Ok(0) = taken {
                        self.framing = Framing::Length(0);
                    }
                    taken.map(Some)
                }
            };
            match taken {
                Ok(None) => {}
                Ok(Some(taken)) => {
                    self.end_if_over();
                    return Ok(taken);
                }
                Err(error) => {
                    self.connection = None;
                    let late = error.kind() == io::ErrorKind::TimedOut;
                    return Err(if late {
                        self.home.terms.too_late()
                    } else {
                        error
                    });
                }
            }
        }
    }
}

/// The size of a chunk: hexadecimal digits, and perhaps extensions, which mean nothing to us.
fn parse_size(line: &[u8]) -> Option<u64> {
    let digits = line
        .iter()
        .take_while(|byte| byte.is_ascii_hexdigit())
        .count();
    let (size, rest) = line.split_at(digits);
    let rest = rest.trim_ascii_start();
    if !(1..=MAX_SIZE_DIGITS).contains(&digits) || !(rest.is_empty() || rest[0] == b';') {
        return None;
    }
    u64::from_str_radix(std::str::from_utf8(size).ok()?, 16).ok()
}

fn broke_off() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, BROKE_OFF)
}

const BAD_CHUNK: Refusal = Refusal("the chunks of the answer are malformed");

/// Pieces this long are read to where they stay. For shorter ones a read each would cost more than
/// the copy.
const DIRECT: usize = 16 * 1024;

/// Longer numbers need not be told apart from errors.
const MAX_SIZE_DIGITS: usize = 15;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_size_of_a_chunk_is_hexadecimal_and_nothing_else() {
        for (line, size) in [
            ("0", Some(0)),
            ("1f", Some(31)),
            ("00A", Some(10)),
            ("5;name=value", Some(5)),
            ("5 ; name", Some(5)),
            ("fffffffffffffff", Some((1 << 60) - 1)),
            ("1000000000000000", None),
            ("", None),
            (";x", None),
            ("-1", None),
            ("+1", None),
            ("0x1", None),
            ("1 1", None),
            (" 1", None),
        ] {
            assert_eq!(parse_size(line.as_bytes()), size, "{line:?}");
        }
    }
}
