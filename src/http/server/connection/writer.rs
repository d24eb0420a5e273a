//! Writes a response: one system call, or several while the client keeps reading.

use std::io::{self, IoSlice, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use socket2::SockRef;

use crate::http::server::connection::reader::is_timeout;
use crate::http::server::connections::{Activity, Connection};
use crate::http::server::endpoint::reply::{VALUE_HEAD, ValueReply};
use crate::http::server::limits::ServerLimits;
use crate::http::server::listener::reset_on_close;
use crate::http::server::response::{Response, ResponseOptions};
use crate::wire;

/// The writing side of a connection.
pub(crate) struct ResponseWriter<'s> {
    connection: &'s Connection,
    limits: &'s ServerLimits,
    /// The head of the last response, with its body if that is short.
    buf: Vec<u8>,
    /// The fields in front of the last value.
    fields: Vec<u8>,
    /// Responses up to this length need no larger send buffer.
    fits_buffer: usize,
}

impl<'s> ResponseWriter<'s> {
    pub(crate) fn new(connection: &'s Connection, limits: &'s ServerLimits) -> Self {
        let buf = Vec::with_capacity(CAPACITY);
        ResponseWriter {
            connection,
            limits,
            buf,
            fields: Vec::new(),
            fits_buffer: match connection.is_from_peer() {
                true => limits.socket_buffer_size,
                false => usize::MAX,
            },
        }
    }

    /// Sends a value on a connection that stays open.
    pub(crate) fn send_value(&mut self, reply: &ValueReply) -> io::Result<()> {
        let value = reply.value.as_bytes();
        self.fields.clear();
        wire::push_fields(&mut self.fields, reply.key_hash, value.len(), &reply.fields);
        self.buf.clear();
        self.buf.extend_from_slice(VALUE_HEAD);
        wire::push_decimal(&mut self.buf, (self.fields.len() + value.len()) as u64);
        self.buf.extend_from_slice(b"\r\n\r\n");
        self.buf.extend_from_slice(&self.fields);
        if value.len() <= MAX_COPIED {
            self.buf.extend_from_slice(value);
            return self.write(&mut [IoSlice::new(&self.buf)]);
        }
        if value.len() > self.fits_buffer {
            self.enlarge_send_buffer();
        }
        self.write(&mut [IoSlice::new(&self.buf), IoSlice::new(value)])
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

    /// Gives the connection of a peer the send buffer for long values. Only peers get it, so that what
    /// strangers can hold stays small.
    #[cold]
    fn enlarge_send_buffer(&mut self) {
        self.fits_buffer = usize::MAX;
        let size = self.limits.peer_buffer_size;
        if size > self.limits.socket_buffer_size {
            // Without it, the response only takes longer.
            let _ = SockRef::from(&self.connection.stream).set_send_buffer_size(size);
        }
    }

    /// Writes all bytes. If one system call does not take them, or the client does not, the clock is
    /// read for the first time.
    fn write(&self, mut slices: &mut [IoSlice<'_>]) -> io::Result<()> {
        match write_some(&self.connection.stream, slices) {
            Ok(n) => IoSlice::advance_slices(&mut slices, n),
            Err(error) if is_timeout(&error) => {}
            Err(error) => return Err(error),
        }
        if slices.is_empty() {
            return Ok(());
        }
        let written = self.write_slowly(slices);
        if written.is_err() {
            reset_on_close(&self.connection.stream);
        }
        written
    }

    /// Writes to a client that has not taken the first bytes within [`SocketOptions::write_step`], the
    /// longest time of one system call. After each call, checks that the client keeps reading.
    ///
    /// While it does not, the connection may be closed to make room for another.
    ///
    /// [`SocketOptions::write_step`]: crate::http::server::listener::SocketOptions::write_step
    #[cold]
    fn write_slowly(&self, mut slices: &mut [IoSlice<'_>]) -> io::Result<()> {
        let now = Instant::now();
        let step = self.limits.socket_options().write_step;
        let began = now.checked_sub(step).unwrap_or(now);
        let mut sent = 0;
        loop {
            let is_stuck = match write_some(&self.connection.stream, slices) {
                Ok(n) => {
                    sent += n;
                    IoSlice::advance_slices(&mut slices, n);
                    false
                }
                Err(error) if is_timeout(&error) => true,
                Err(error) => return Err(error),
            };
            if slices.is_empty() {
                self.connection.set_activity(Activity::Busy);
                return Ok(());
            }
            if is_stuck {
                self.connection.set_activity(Activity::Gone);
            } else {
                self.connection.set_activity(Activity::Busy);
            }
            let time = began.elapsed();
            let rated = time.saturating_sub(GRACE).as_secs_f64();
            let is_slow = (sent as f64) < self.limits.min_write_rate as f64 * rated;
            if is_slow || time >= self.limits.write_timeout || self.connection.is_evicted() {
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
    }
}

/// Writes at least one byte, by one system call.
fn write_some(mut stream: &TcpStream, slices: &[IoSlice<'_>]) -> io::Result<usize> {
    loop {
        // `write` costs the kernel less than a vectored write with one slice.
        let written = match slices {
            [slice] => stream.write(slice),
            _ => write_vectored(stream, slices),
        };
        match written {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            written => return written,
        }
    }
}

/// Writes without SIGPIPE, which would end a program whose `main` is not Rust's. std's vectored write
/// raises it, its other writes do not.
#[cfg(all(unix, not(target_vendor = "apple")))]
fn write_vectored(stream: &TcpStream, slices: &[IoSlice<'_>]) -> io::Result<usize> {
    let slices = &slices[..slices.len().min(MAX_SLICES)];
    SockRef::from(stream).send_vectored_with_flags(slices, libc::MSG_NOSIGNAL)
}

/// Elsewhere there is no SIGPIPE, or the socket has an option against it, which std sets.
#[cfg(not(all(unix, not(target_vendor = "apple"))))]
fn write_vectored(mut stream: &TcpStream, slices: &[IoSlice<'_>]) -> io::Result<usize> {
    stream.write_vectored(slices)
}

/// The most slices that a system call takes on all systems (IOV_MAX of Linux).
#[cfg(all(unix, not(target_vendor = "apple")))]
const MAX_SLICES: usize = 1024;

/// The time that a client gets beyond the bytes that it has taken: it may read in large pieces, with
/// pauses in between.
const GRACE: Duration = Duration::from_secs(5);

/// Holds the head of a response to a peer, and a short body.
const CAPACITY: usize = 256 + MAX_COPIED;

/// Holds a value that [`Body`](crate::wire::Body) copies, and the fields before it.
const MAX_COPIED: usize = 1024 + 64;

#[cfg(all(test, not(larder_loom)))]
mod tests {
    use super::*;
    use crate::http::server::connections::{test_connection, test_peer_connection};
    use crate::sync::Arc;
    use crate::wire::Fields;
    use std::io::Read;
    use std::net::TcpListener;

    const OPTIONS: ResponseOptions = ResponseOptions {
        keep_alive: true,
        http_10: false,
        head_only: false,
    };

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
        let connection = test_connection(stream);
        let value: Vec<u8> = (0..16 << 20).map(|n: u32| (n % 251) as u8).collect();
        let received = std::thread::scope(|scope| {
            let reading = scope.spawn(|| {
                std::thread::sleep(4 * short);
                let mut received = Vec::new();
                reader.read_to_end(&mut received).map(|_| received)
            });
            let limits = ServerLimits::default();
            let response = Response::new(200, "x/y", value.clone());
            let mut writer = ResponseWriter::new(&connection, &limits);
            writer.send(&response, OPTIONS).expect("sent");
            let end = connection.stream.shutdown(std::net::Shutdown::Write);
            end.expect("the end");
            reading.join().expect("no panic").expect("all of it")
        });
        assert!(received.starts_with(b"HTTP/1.1 200 OK\r\n") && received.ends_with(&value));
    }

    /// The size of the send buffer of a connection after a value of this length.
    fn buffer_after(make: impl FnOnce(TcpStream) -> Arc<Connection>, len: usize) -> usize {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let addr = listener.local_addr().expect("addr");
        let mut reader = TcpStream::connect(addr).expect("connect");
        let limits = ServerLimits::default();
        let (stream, _) = listener.accept().expect("accept");
        SockRef::from(&stream)
            .set_send_buffer_size(limits.socket_buffer_size)
            .expect("options");
        let connection = make(stream);
        std::thread::scope(|scope| {
            scope.spawn(|| reader.read_to_end(&mut Vec::new()));
            let reply = ValueReply {
                key_hash: 1,
                value: vec![7; len].into(),
                fields: Fields::default(),
            };
            let mut writer = ResponseWriter::new(&connection, &limits);
            writer.send_value(&reply).expect("sent");
            let size = SockRef::from(&connection.stream).send_buffer_size();
            let end = connection.stream.shutdown(std::net::Shutdown::Write);
            end.expect("the end");
            size.expect("size")
        })
    }

    #[test]
    fn only_peers_get_a_large_send_buffer_and_only_for_long_values() {
        let stranger = buffer_after(test_connection, 1 << 20);
        let short = buffer_after(test_peer_connection, 10_000);
        let long = buffer_after(test_peer_connection, 1 << 20);
        assert_eq!(short, stranger);
        // The system may allow less than 512 KiB (net.core.wmem_max).
        assert!(long > stranger, "{long} and {stranger}");
    }
}
