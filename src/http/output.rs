//! What a connection writes: one answer in one system call, within a total deadline.

use std::io::{self, IoSlice, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

/// The writing side of a connection.
pub(super) struct Output<'s> {
    stream: &'s TcpStream,
    /// The total time for one answer. The socket's own time-out, inherited from the listener, is
    /// the same, so that an answer that is written in one go needs no other.
    timeout: Duration,
    /// The head of the answer that is sent next, and what else had to be put together.
    pub head: Vec<u8>,
}

impl<'s> Output<'s> {
    pub(super) fn new(stream: &'s TcpStream, timeout: Duration) -> Self {
        Output {
            stream,
            timeout,
            head: Vec::with_capacity(HEAD_SIZE),
        }
    }

    /// Sends `head`, then `rest`, and empties `head`.
    pub(super) fn send(&mut self, rest: &[u8]) -> io::Result<()> {
        let mut slices = [IoSlice::new(&self.head), IoSlice::new(rest)];
        let result = write_all(self.stream, &mut slices, self.timeout);
        self.head.clear();
        self.head.shrink_to(HEAD_SIZE);
        result
    }
}

/// Writes all of `slices`. On an error, and only then, the socket's time-out may have changed.
fn write_all(
    mut stream: &TcpStream,
    mut slices: &mut [IoSlice<'_>],
    timeout: Duration,
) -> io::Result<()> {
    IoSlice::advance_slices(&mut slices, 0);
    let deadline = Instant::now() + timeout;
    let mut shortened = false;
    while !slices.is_empty() {
        match stream.write_vectored(slices) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => IoSlice::advance_slices(&mut slices, n),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        if slices.is_empty() {
            break;
        }
        // The socket's time-out is for one write: a client that takes a byte now and then would
        // never meet it.
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.set_write_timeout(Some(left))?;
        shortened = true;
    }
    if shortened {
        stream.set_write_timeout(Some(timeout))?;
    }
    Ok(())
}

/// Holds the head of every answer to a peer.
const HEAD_SIZE: usize = 256;
