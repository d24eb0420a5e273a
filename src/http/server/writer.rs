//! Writes a response: one system call, within a total deadline.

use std::io::{self, IoSlice, Write};
use std::iter;
use std::net::TcpStream;
use std::time::{Duration, Instant};

/// Sends `head`, then the pieces of the body, none of which may be empty.
///
/// SO_SNDTIMEO is `timeout` already, inherited from the listener. It is changed only if one write does
/// not take everything, and then set again, unless there is an error.
pub(crate) fn send<'p>(
    mut stream: &TcpStream,
    head: &'p [u8],
    body: impl Iterator<Item = &'p [u8]>,
    timeout: Duration,
) -> io::Result<()> {
    let mut slices: Vec<_> = iter::once(head).chain(body).map(IoSlice::new).collect();
    let mut slices = &mut slices[..];
    let deadline = Instant::now() + timeout;
    let mut shortened = false;
    loop {
        match stream.write_vectored(slices) {
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
        stream.set_write_timeout(Some(timeout))?;
    }
    Ok(())
}

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
        // The kernel takes as much as its buffers hold, waits this long, and reports a part.
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
            let body = iter::once(&value[..]);
            send(&stream, b"head", body, timeout).expect("sent");
            assert_eq!(stream.write_timeout().expect("time-out"), Some(timeout));
            stream.shutdown(std::net::Shutdown::Write).expect("the end");
            reading.join().expect("no panic").expect("all of it")
        });
        assert!(received[..4] == *b"head" && received[4..] == value);
    }
}
