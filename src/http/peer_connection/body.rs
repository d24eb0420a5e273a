//! The body of an answer, read from its connection, which goes home at the end of it.

use std::io::{self, Read};
use std::time::Instant;

use super::framing::Framing;
use super::{Home, PeerConnection};
use crate::http::exchange::broke_off;
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
        match self.framing.read(input, &mut socket, into) {
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
