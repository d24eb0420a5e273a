//! Writes a response: one system call, within a total deadline.

use std::io::{self, IoSlice, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use super::response::{Response, ResponseOptions};

/// The writing side of a connection.
pub(crate) struct ResponseWriter<'s> {
    stream: &'s TcpStream,
    /// SO_SNDTIMEO, which is inherited from the listener.
    timeout: Duration,
    /// The head of the last response, with its body if that is short.
    buf: Vec<u8>,
}

impl<'s> ResponseWriter<'s> {
    pub(crate) fn new(stream: &'s TcpStream, timeout: Duration) -> Self {
        let buf = Vec::with_capacity(CAPACITY);
        ResponseWriter {
            stream,
            timeout,
            buf,
        }
    }

    /// Sends a response. A short body is copied behind the head, so that the system call gets one
    /// piece.
    pub(crate) fn send(&mut self, response: &Response, options: ResponseOptions) -> io::Result<()> {
        self.buf.clear();
        response.push_head(options, &mut self.buf);
        let mut pieces = response.pieces(options).peekable();
        if let Some(piece) = pieces.next_if(|piece| piece.len() <= MAX_COPIED) {
            self.buf.extend_from_slice(piece);
        }
        let first = IoSlice::new(&self.buf);
        let Some(piece) = pieces.next() else {
            return self.write(&mut [first]);
        };
        let two = [first, IoSlice::new(piece)];
        if pieces.peek().is_none() {
            return self.write(&mut { two });
        }
        let all = two.into_iter().chain(pieces.map(IoSlice::new));
        self.write(&mut all.collect::<Vec<_>>())
    }

    /// Writes all bytes by the deadline. SO_SNDTIMEO is changed only if one system call does not
    /// write everything. It is restored afterwards, unless there was an error.
    fn write(&self, mut slices: &mut [IoSlice<'_>]) -> io::Result<()> {
        let mut stream = self.stream;
        let deadline = Instant::now() + self.timeout;
        let mut shortened = false;
        loop {
            // `write` costs the kernel less than `write_vectored` with one slice.
            let written = match slices {
                [slice] => stream.write(slice),
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
            // SO_SNDTIMEO is for one write: a client that reads a byte now and then would never exceed
            // it.
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            stream.set_write_timeout(Some(left))?;
            shortened = true;
        }
        if shortened {
            stream.set_write_timeout(Some(self.timeout))?;
        }
        Ok(())
    }
}

/// Holds the head of a response to a peer, and a short body.
const CAPACITY: usize = 256 + MAX_COPIED;

/// Holds a value that [`Body`](crate::wire::Body) copies, and the fields before it.
const MAX_COPIED: usize = 1024 + 64;

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::net::TcpListener;

    #[test]
    fn partial_write_continues_where_it_stopped() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let addr = listener.local_addr().expect("addr");
        let mut reader = TcpStream::connect(addr).expect("connect");
        let (stream, _) = listener.accept().expect("accept");
        // The kernel takes as many bytes as its buffers hold, waits this long, and reports a
        // partial write.
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
            let options = ResponseOptions {
                keep_alive: true,
                http_10: false,
                head_only: false,
            };
            let response = Response::new(200, "x/y", value.clone());
            let mut writer = ResponseWriter::new(&stream, timeout);
            writer.send(&response, options).expect("sent");
            assert_eq!(stream.write_timeout().expect("time-out"), Some(timeout));
            stream.shutdown(std::net::Shutdown::Write).expect("the end");
            reading.join().expect("no panic").expect("all of it")
        });
        assert!(received.starts_with(b"HTTP/1.1 200 OK\r\n") && received.ends_with(&value));
    }
}
