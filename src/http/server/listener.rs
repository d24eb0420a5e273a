//! The listening socket, and the options of its connections.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use socket2::{SockRef, Socket};

/// The options of a server's connections.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SocketOptions {
    /// The longest wait of one system call that writes.
    pub write_step: Duration,
    /// The longest time that sent bytes are not acknowledged, or that the client has no room for
    /// more. The system then resets the connection, even if the server has closed it.
    pub deaf_timeout: Duration,
    /// The most memory that the system takes for sent bytes, and as much for received ones. Linux
    /// doubles the number, for its own overhead.
    pub buffer_size: usize,
}

impl SocketOptions {
    fn set(&self, socket: &SockRef<'_>) -> io::Result<()> {
        socket.set_tcp_nodelay(true)?;
        socket.set_write_timeout(Some(self.write_step))?;
        socket.set_send_buffer_size(self.buffer_size)?;
        socket.set_recv_buffer_size(self.buffer_size)?;
        #[cfg(target_os = "linux")]
        socket.set_tcp_user_timeout(Some(self.deaf_timeout))?;
        Ok(())
    }
}

/// Sets the options on the listener; the sockets that it accepts inherit them. This is the only way to
/// set them on tiny_http's sockets, and saves the system calls for each connection of this crate's
/// server.
#[cfg(target_os = "linux")]
pub(crate) fn prepare(listener: &TcpListener, options: SocketOptions) -> io::Result<()> {
    options.set(&SockRef::from(listener))
}

/// Other systems may not inherit the options; see [`tune_accepted`].
#[cfg(not(target_os = "linux"))]
pub(crate) fn prepare(_: &TcpListener, _: SocketOptions) -> io::Result<()> {
    Ok(())
}

/// Sets the options that an accepted socket may not have inherited.
pub(crate) fn tune_accepted(stream: &TcpStream, options: SocketOptions) -> io::Result<()> {
    if cfg!(target_os = "linux") {
        return Ok(());
    }
    stream.set_nonblocking(false)?;
    options.set(&SockRef::from(stream))
}

/// Makes room for the connections of many peers that connect at the same moment. The standard library
/// listens with a queue of 128; the system bounds the number further (net.core.somaxconn).
pub(crate) fn enlarge_queue(listener: &TcpListener) -> io::Result<()> {
    SockRef::from(listener).listen(QUEUE)
}

const QUEUE: i32 = 4096;

/// Makes the system reset the connection when it is closed: unsent bytes are dropped. Otherwise the
/// system keeps them after the close, for minutes, for a client that reads nothing.
pub(crate) fn reset_on_close(stream: &TcpStream) {
    // An error means that the connection has ended.
    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

/// Accepts connections, with a time limit where the accept thread has something else to do.
pub(crate) struct Listener {
    socket: TcpListener,
    /// The current SO_RCVTIMEO. Accepted sockets inherit it; each sets its own before it reads.
    timeout: Option<Duration>,
}

impl Listener {
    pub(crate) fn new(socket: TcpListener) -> Self {
        let timeout = None;
        Listener { socket, timeout }
    }

    /// Accepts a connection.
    ///
    /// # Errors
    ///
    /// `WouldBlock` if there was none until `end`. On other systems than Linux there is no such limit.
    pub(crate) fn accept(&mut self, end: Option<Instant>) -> io::Result<(TcpStream, SocketAddr)> {
        if cfg!(target_os = "linux") {
            // A time-out of zero would mean no limit.
            let left = |end: Instant| end.saturating_duration_since(Instant::now()).max(MIN_WAIT);
            let timeout = end.map(left);
            if timeout != self.timeout {
                SockRef::from(&self.socket).set_read_timeout(timeout)?;
                self.timeout = timeout;
            }
        }
        self.socket.accept()
    }
}

const MIN_WAIT: Duration = Duration::from_millis(1);

/// Makes a blocked `accept` return.
///
/// It holds a descriptor of its own from the start, because later none may be left.
pub(crate) struct Waker {
    #[cfg(target_os = "linux")]
    socket: Socket,
    #[cfg(not(target_os = "linux"))]
    addr: SocketAddr,
}

#[cfg(target_os = "linux")]
impl Waker {
    pub(crate) fn new(listener: &TcpListener, _addr: SocketAddr) -> io::Result<Self> {
        let socket = SockRef::from(listener).try_clone()?;
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

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn accepted_sockets_inherit_the_options() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let options = SocketOptions {
            write_step: Duration::from_secs(7),
            deaf_timeout: Duration::from_secs(8),
            buffer_size: 64 << 10,
        };
        prepare(&listener, options).expect("options");
        let addr = listener.local_addr().expect("addr");
        let _client = TcpStream::connect(addr).expect("connect");
        let (accepted, _) = listener.accept().expect("accept");
        assert!(accepted.nodelay().expect("nodelay"));
        let timeout = accepted.write_timeout().expect("write timeout");
        assert_eq!(timeout, Some(Duration::from_secs(7)));
        assert_eq!(accepted.read_timeout().expect("read timeout"), None);
        let socket = SockRef::from(&accepted);
        let deaf_timeout = socket.tcp_user_timeout().expect("user timeout");
        assert_eq!(deaf_timeout, Some(Duration::from_secs(8)));
        assert_eq!(socket.send_buffer_size().expect("size"), 128 << 10);
        assert_eq!(socket.recv_buffer_size().expect("size"), 128 << 10);
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
