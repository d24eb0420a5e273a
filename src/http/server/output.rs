//! What a connection writes: one answer in one system call, within a total deadline.

use std::io::{self, IoSlice, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use super::answer::Rest;
use crate::wire::SHORT;

/// The writing side of a connection.
pub(crate) struct Output<'s> {
    stream: &'s TcpStream,
    /// The total time for one answer. The socket's own time-out, inherited from the listener, is
    /// the same, so that an answer that is written in one go needs no other.
    timeout: Duration,
    /// The head of the answer that is sent next, and what else had to be put together.
    pub head: Vec<u8>,
}

impl<'s> Output<'s> {
    pub(crate) fn new(stream: &'s TcpStream, timeout: Duration) -> Self {
        Output {
            stream,
            timeout,
            head: Vec::with_capacity(HEAD_SIZE),
        }
    }

    /// Sends `head`, then `rest`, and empties `head`.
    pub(crate) fn send(&mut self, rest: Rest<'_>) -> io::Result<()> {
        let head = IoSlice::new(&self.head);
        let result = match rest {
            Rest::One([]) => write_all(self.stream, &mut [head], self.timeout),
            Rest::One(bytes) => {
                let mut slices = [head, IoSlice::new(bytes)];
                write_all(self.stream, &mut slices, self.timeout)
            }
            Rest::Many(body) => {
                let mut slices = vec![head];
                slices.extend(body.pieces().map(IoSlice::new));
                write_all(self.stream, &mut slices, self.timeout)
            }
        };
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
        // The kernel makes less of one piece that is known to be one.
        let written = match slices {
            [one] => stream.write(one),
            _ => stream.write_vectored(slices),
        };
        match written {
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

/// Holds the head of every answer to a peer, and a short value.
const HEAD_SIZE: usize = 256 + SHORT;

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::net::TcpListener;

    #[test]
    fn a_write_that_was_cut_short_goes_on_where_it_stopped() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let addr = listener.local_addr().expect("addr");
        let mut reader = TcpStream::connect(addr).expect("connect");
        let (stream, _) = listener.accept().expect("accept");
        // The kernel takes what fits its buffers, waits this long, and reports a part.
        let short = Duration::from_millis(50);
        stream.set_write_timeout(Some(short)).expect("time-out");
        let value: Vec<u8> = (0..16 << 20).map(|n: u32| (n % 251) as u8).collect();
        let received = std::thread::scope(|scope| {
            let reading = scope.spawn(|| {
                std::thread::sleep(4 * short);
                let mut received = Vec::new();
                reader.read_to_end(&mut received).map(|_| received)
            });
            let timeout = Duration::from_secs(20);
            let mut output = Output::new(&stream, timeout);
            output.head.extend_from_slice(b"head");
            output.send(Rest::One(&value)).expect("sent");
            assert_eq!(stream.write_timeout().expect("time-out"), Some(timeout));
            assert!(output.head.is_empty());
            stream.shutdown(std::net::Shutdown::Write).expect("the end");
            reading.join().expect("no panic").expect("all of it")
        });
        assert!(received[..4] == *b"head" && received[4..] == value);
    }
}
