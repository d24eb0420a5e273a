//! Options of a listening socket that the standard library has for streams only.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

/// Sets TCP_NODELAY and SO_SNDTIMEO on the listener; the sockets that it accepts inherit them. This
/// is the only way to set them on tiny_http's sockets, and saves two system calls for each
/// connection of this crate's server.
///
/// SO_RCVTIMEO is not set, because it also ends `accept`.
#[cfg(target_os = "linux")]
pub(crate) fn prepare(listener: &TcpListener, write_timeout: Duration) -> io::Result<()> {
    let socket = as_stream(listener)?;
    socket.set_nodelay(true)?;
    socket.set_write_timeout(Some(write_timeout))
}

/// Other systems may not inherit the options; see [`tune_accepted`].
#[cfg(not(target_os = "linux"))]
pub(crate) fn prepare(_: &TcpListener, _: Duration) -> io::Result<()> {
    Ok(())
}

/// Sets the options that an accepted socket may not have inherited.
pub(crate) fn tune_accepted(stream: &TcpStream, write_timeout: Duration) -> io::Result<()> {
    if cfg!(target_os = "linux") {
        return Ok(());
    }
    stream.set_nonblocking(false)?;
    stream.set_nodelay(true)?;
    stream.set_write_timeout(Some(write_timeout))
}

/// Makes a blocked `accept` return.
///
/// It holds a descriptor of its own from the start, because later none may be left.
pub(crate) struct Waker {
    #[cfg(target_os = "linux")]
    socket: TcpStream,
    #[cfg(not(target_os = "linux"))]
    addr: SocketAddr,
}

#[cfg(target_os = "linux")]
impl Waker {
    pub(crate) fn new(listener: &TcpListener, _addr: SocketAddr) -> io::Result<Self> {
        let socket = as_stream(listener)?;
        Ok(Waker { socket })
    }

    /// Stops listening: `accept` fails from now on.
    pub(crate) fn wake(&self) {
        // An error means that the socket does not listen any more.
        let _ = self.socket.shutdown(std::net::Shutdown::Both);
    }
}

#[cfg(not(target_os = "linux"))]
impl Waker {
    pub(crate) fn new(_listener: &TcpListener, mut addr: SocketAddr) -> io::Result<Self> {
        use std::net::{Ipv4Addr, Ipv6Addr};
        if addr.ip().is_unspecified() {
            addr.set_ip(match addr {
                SocketAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
                SocketAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
            });
        }
        Ok(Waker { addr })
    }

    /// Makes `accept` return once, by connecting to the listener.
    pub(crate) fn wake(&self) {
        let _ = TcpStream::connect_timeout(&self.addr, Duration::from_secs(1));
    }
}

/// The listening socket as a stream: options and `shutdown` use the same system calls.
#[cfg(target_os = "linux")]
fn as_stream(listener: &TcpListener) -> io::Result<TcpStream> {
    use std::os::fd::OwnedFd;
    Ok(TcpStream::from(OwnedFd::from(listener.try_clone()?)))
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn accepted_sockets_inherit_the_options() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        prepare(&listener, Duration::from_secs(7)).expect("options");
        let addr = listener.local_addr().expect("addr");
        let _client = TcpStream::connect(addr).expect("connect");
        let (accepted, _) = listener.accept().expect("accept");
        assert!(accepted.nodelay().expect("nodelay"));
        let timeout = accepted.write_timeout().expect("write timeout");
        assert_eq!(timeout, Some(Duration::from_secs(7)));
        assert_eq!(accepted.read_timeout().expect("read timeout"), None);
    }

    #[test]
    fn waker_ends_a_blocked_accept_and_frees_the_port() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let addr = listener.local_addr().expect("addr");
        let waker = Waker::new(&listener, addr).expect("waker");
        let accepting = std::thread::spawn(move || listener.accept().is_err());
        waker.wake();
        assert!(accepting.join().expect("no panic"));
        drop(waker);
        TcpListener::bind(addr).expect("the port is free");
    }
}
