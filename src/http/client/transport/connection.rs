//! A TCP connection to a peer, whose reads and writes end by the deadline of the exchange.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use crate::http::client::transport::resolve::Addresses;
use crate::http::client::transport::response::BadResponse;
use crate::http::client::transport::socket_timeout::{MIN_TIMEOUT, SocketTimeout};

/// A connection that carries one exchange after the other.
pub(crate) struct PeerConnection {
    stream: TcpStream,
    /// The address that it was connected to.
    address: SocketAddr,
    /// The time of the last exchange.
    time: ExchangeTime,
    /// The most bytes of one response, head included.
    max_response: u64,
    /// The bytes received of the current response.
    received: u64,
    /// The exchanges begun on this connection.
    exchanges: u64,
    /// The time that was left then, as long as no call of this exchange has waited: the next one need
    /// not read the clock.
    left_at_start: Option<Duration>,
    /// The id of the process that opened the connection. After a fork, parent and child have it both,
    /// and would read each other's responses.
    opened_by: u32,
    /// An empty buffer for the bytes of a request.
    request: Vec<u8>,
    read_timeout: SocketTimeout,
    write_timeout: SocketTimeout,
}

impl PeerConnection {
    /// Connects to the first of `addresses` that accepts, by `deadline`.
    ///
    /// # Errors
    ///
    /// `TimedOut` at the deadline, else the error of the last address.
    pub(crate) fn connect(
        addresses: &Addresses,
        max_response: u64,
        deadline: Instant,
    ) -> io::Result<Self> {
        let connect = |address, timeout| Ok((connect_to(address, timeout)?, address));
        let known = addresses.get(deadline)?;
        let connected = connect_to_any(&known, deadline, connect);
        if connected.is_err() {
            addresses.refresh();
        }
        let (stream, address) = connected?;
        if known.first() != Some(&address) {
            addresses.prefer(address);
        }
        Ok(PeerConnection {
            stream,
            address,
            time: ExchangeTime {
                begun: Instant::now(),
                limit: Duration::ZERO,
            },
            max_response,
            received: 0,
            exchanges: 0,
            left_at_start: None,
            opened_by: std::process::id(),
            request: Vec::new(),
            read_timeout: SocketTimeout::default(),
            write_timeout: SocketTimeout::default(),
        })
    }

    /// Begins an exchange that must be over after `limit`.
    pub(crate) fn begin(&mut self, now: Instant, limit: Duration) {
        self.time = ExchangeTime { begun: now, limit };
        self.left_at_start = Some(limit);
        self.received = 0;
        self.exchanges += 1;
    }

    /// Writes a request, which `encode` appends to an empty buffer.
    pub(crate) fn send(&mut self, encode: impl FnOnce(&mut Vec<u8>)) -> io::Result<()> {
        let mut request = std::mem::take(&mut self.request);
        encode(&mut request);
        let sent = self.write_all(&request);
        if request.capacity() <= MAX_KEPT {
            request.clear();
            self.request = request;
        }
        sent
    }

    /// Whether the connection can carry another exchange: it was opened by this process, and neither
    /// closed by the peer nor filled with bytes that answer no request. Proxies send a 408 before
    /// they close an idle connection, and some servers send a response twice.
    ///
    /// Responses of larder's server carry the hash of their key, so bytes that answer no request are
    /// detected when they are read. If `is_keyed` says that the peer is such a server, the socket is
    /// not looked at within [`UNCHECKED`] of the start of the last exchange. If the peer closed the
    /// connection within that time, the exchange fails with [`StaleConnection`].
    pub(crate) fn is_usable(&self, now: Instant, is_keyed: bool) -> bool {
        self.opened_by == std::process::id()
            && ((is_keyed && now < self.begun() + UNCHECKED)
                || (!self.is_too_old(now) && is_silent(&self.stream)))
    }

    /// The address that it was connected to.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// When the last exchange began.
    pub(crate) fn begun(&self) -> Instant {
        self.time.begun
    }

    /// Whether the connection has been idle for too long to be used again.
    pub(crate) fn is_too_old(&self, now: Instant) -> bool {
        now >= self.begun() + MAX_IDLE_AGE
    }

    /// The time that is left of the exchange. Does not read the clock if no call of it has waited.
    fn take_left(&mut self) -> Duration {
        let at_start = self.left_at_start.take();
        at_start.unwrap_or_else(|| self.time.left())
    }

    /// Reads the first bytes of a response that has arrived, although the time is over: a process that was
    /// stopped for a while could not read them before.
    #[cold]
    fn read_arrived(&self, buffer: &mut [u8]) -> Option<usize> {
        let read = without_waiting(&self.stream, |mut stream| stream.read(buffer));
        read.ok().filter(|&count| count > 0)
    }

    /// Marks the failures that show a connection which was dead before this exchange: it carried an
    /// exchange before, and brought no byte of this response.
    fn explain(&self, error: io::Error) -> io::Error {
        let is_reused = self.exchanges > 1 && self.received == 0;
        let closed = matches!(
            error.kind(),
            io::ErrorKind::UnexpectedEof
                | io::ErrorKind::ConnectionReset
                // Windows reports either of these two for the same cause.
                | io::ErrorKind::ConnectionAborted
                | io::ErrorKind::BrokenPipe
        );
        match error.kind() {
            kind if closed && is_reused => io::Error::new(kind, StaleConnection::Closed),
            // The deadline has passed; otherwise the call would have been repeated.
            _ if did_nothing(&error) && is_reused => {
                io::Error::new(io::ErrorKind::TimedOut, StaleConnection::Silent)
            }
            _ if did_nothing(&error) => io::ErrorKind::TimedOut.into(),
            _ => error,
        }
    }
}

/// When an exchange began, and how long it may take.
struct ExchangeTime {
    begun: Instant,
    limit: Duration,
}

impl ExchangeTime {
    fn left(&self) -> Duration {
        self.limit.saturating_sub(self.begun.elapsed())
    }

    /// Calls `io` with the time that is left, now `left`, until it transfers bytes or fails, or the time
    /// is over.
    #[inline]
    fn until_over(
        &self,
        mut left: Duration,
        mut io: impl FnMut(Duration) -> io::Result<usize>,
    ) -> io::Result<usize> {
        loop {
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            match io(left) {
                Err(error) if did_nothing(&error) => left = self.left(),
                done => return done,
            }
        }
    }
}

/// Reads of the response.
///
/// # Errors
///
/// `TimedOut` at the deadline; [`StaleConnection`] if the connection was dead before the exchange,
/// which a status 408 says too; another error if the response is too long, or the connection ends
/// before the response begins.
impl Read for PeerConnection {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let allowed = usize::try_from(self.max_response - self.received).unwrap_or(usize::MAX);
        if allowed == 0 {
            return Err(BadResponse("the answer is too long").into());
        }
        let room = buffer.len().min(allowed);
        let left = self.take_left();
        let (mut stream, timeout) = (&self.stream, &mut self.read_timeout);
        let read = self.time.until_over(left, |left| {
            timeout.prepare(left, |timeout| stream.set_read_timeout(Some(timeout)))?;
            stream.read(&mut buffer[..room])
        });
        let read = match read {
            Err(error) if did_nothing(&error) && self.received == 0 => {
                self.read_arrived(&mut buffer[..room]).ok_or(error)
            }
            read => read,
        };
        match read.map_err(|error| self.explain(error))? {
            0 if self.received == 0 => Err(self.explain(io::Error::new(
                io::ErrorKind::ConnectionAborted,
                "the connection was closed without an answer",
            ))),
            // The server had given up the idle connection before the request arrived.
            count if self.exchanges > 1 && self.received == 0 && is_408(&buffer[..count]) => {
                let why = StaleConnection::Closed;
                Err(io::Error::new(io::ErrorKind::ConnectionAborted, why))
            }
            count => {
                self.received += count as u64;
                Ok(count)
            }
        }
    }
}

/// Writes of the request; the errors are those of the reads.
impl Write for PeerConnection {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let left = self.take_left();
        let (mut stream, timeout) = (&self.stream, &mut self.write_timeout);
        let written = self.time.until_over(left, |left| {
            timeout.prepare(left, |timeout| stream.set_write_timeout(Some(timeout)))?;
            stream.write(bytes)
        });
        // The kernel has room for a short request, because all earlier ones were answered.
        if matches!(written, Ok(len) if len == bytes.len() && len <= MAX_KEPT) {
            self.left_at_start = Some(left);
        }
        written.map_err(|error| self.explain(error))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl fmt::Debug for PeerConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.stream.fmt(f)
    }
}

/// An idle connection was dead when its next exchange began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StaleConnection {
    /// The peer had closed it. The request may be sent again on a new one.
    Closed,
    /// It brought nothing until the deadline: it was forgotten on the way, or the peer is slow. The
    /// request is not sent again, because a slow peer would have to answer it twice.
    Silent,
}

impl StaleConnection {
    /// The stale connection that caused an error.
    pub(crate) fn in_error(error: &io::Error) -> Option<StaleConnection> {
        error.get_ref()?.downcast_ref().copied()
    }
}

impl fmt::Display for StaleConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            StaleConnection::Closed => "the peer had closed an idle connection",
            StaleConnection::Silent => "no answer on an idle connection",
        })
    }
}

impl std::error::Error for StaleConnection {}

/// Connects to the addresses in turn. Each gets an even share of the time left. So an address that drops
/// packets does not use up the time of the next one.
fn connect_to_any<T>(
    addresses: &[SocketAddr],
    deadline: Instant,
    connect: impl Fn(SocketAddr, Duration) -> io::Result<T>,
) -> io::Result<T> {
    let mut last = io::Error::from(io::ErrorKind::TimedOut);
    for (at, address) in addresses.iter().enumerate() {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break;
        }
        let others = u32::try_from(addresses.len() - at).unwrap_or(u32::MAX);
        match connect(*address, (left / others).max(MIN_TIMEOUT)) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = io::Error::new(error.kind(), format!("{address}: {error}")),
        }
    }
    Err(last)
}

/// Connects to `address`, and refuses a connection to itself.
///
/// If the peer is on this machine and does not run, the kernel may choose the peer's port as the
/// local port. Then the socket connects to itself (RFC 9293, section 3.5, simultaneous open). Such
/// a connection would occupy the peer's port, and the peer could not start again.
fn connect_to(address: SocketAddr, timeout: Duration) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, timeout)?;
    if stream.local_addr()? == address {
        return Err(io::Error::new(io::ErrorKind::ConnectionRefused, MET_ITSELF));
    }
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Whether a response begins with a status 408.
fn is_408(response: &[u8]) -> bool {
    response.starts_with(b"HTTP/1.1 408") || response.starts_with(b"HTTP/1.0 408")
}

/// Whether the peer has neither sent bytes nor closed the connection.
fn is_silent(stream: &TcpStream) -> bool {
    let peeked = without_waiting(stream, |stream| stream.peek(&mut [0]));
    peeked.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
}

fn without_waiting<T>(
    stream: &TcpStream,
    call: impl FnOnce(&TcpStream) -> io::Result<T>,
) -> io::Result<T> {
    stream.set_nonblocking(true)?;
    let result = call(stream);
    stream.set_nonblocking(false)?;
    result
}

/// Whether a system call ended before it transferred anything: because of a signal, or of the
/// socket's time-out, which can be shorter than the time left.
fn did_nothing(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
    )
}

/// How long after the start of its last exchange a connection is used again. Servers keep idle
/// connections longer (larder's 60 s), so the client closes most of them first.
pub(crate) const MAX_IDLE_AGE: Duration = Duration::from_secs(15);

/// How long after the start of its last exchange a connection is used without a check. A busy
/// connection is used again within this time. Servers wait much longer before they close an idle
/// one.
const UNCHECKED: Duration = Duration::from_millis(10);

/// The most memory that is kept for the next request.
const MAX_KEPT: usize = 2048;

const MET_ITSELF: &str = "refused: it connected to itself, because no server listens";

#[cfg(all(test, not(larder_loom)))]
pub(crate) mod tests {
    use super::*;
    use crate::http::client::transport::url::PeerUrl;
    use crate::sync::Mutex;
    use std::net::TcpListener;
    use std::thread;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(20)
    }

    impl PeerConnection {
        /// Waits until the peer has closed the connection.
        pub(crate) fn wait_for_end(&self) {
            assert_eq!(self.stream.peek(&mut [0]).unwrap(), 0);
        }
    }

    /// A connection, and its other end.
    pub(crate) fn pair() -> (PeerConnection, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let addresses = Addresses::new(&PeerUrl::parse(&url).unwrap());
        let connection = PeerConnection::connect(&addresses, 9, soon()).unwrap();
        (connection, listener.accept().unwrap().0)
    }

    pub(crate) fn port(connection: &PeerConnection) -> u16 {
        connection.stream.local_addr().unwrap().port()
    }

    /// Makes `connection` one that another process opened.
    pub(crate) fn open_by_another_process(connection: &mut PeerConnection) {
        connection.opened_by ^= 1;
    }

    /// Makes the last exchange of `connection` begin earlier.
    pub(crate) fn age(connection: &mut PeerConnection, by: Duration) {
        connection.time.begun -= by;
    }

    #[test]
    fn connection_is_used_again_until_it_is_too_old_or_the_peer_sends_something() {
        let (mut connection, mut peer) = pair();
        connection.begin(Instant::now(), Duration::from_secs(20));
        connection.write_all(b"request").unwrap();
        peer.write_all(b"response").unwrap();
        assert_eq!(connection.read(&mut [0; 9]).unwrap(), 8);
        let later = |past| connection.begun() + past;
        for is_keyed in [true, false] {
            assert!(connection.is_usable(later(Duration::ZERO), is_keyed));
            assert!(connection.is_usable(later(UNCHECKED), is_keyed));
            assert!(!connection.is_usable(later(MAX_IDLE_AGE), is_keyed));
        }
        peer.write_all(b"more").unwrap();
        connection.stream.peek(&mut [0]).unwrap();
        assert!(!connection.is_usable(later(UNCHECKED), true));
        assert!(!connection.is_usable(later(Duration::ZERO), false));
    }

    #[test]
    fn connection_of_another_process_is_not_used() {
        let (mut connection, _peer) = pair();
        assert!(connection.is_usable(connection.begun(), true));
        open_by_another_process(&mut connection);
        assert!(!connection.is_usable(connection.begun(), true));
    }

    #[test]
    fn write_ends_at_its_deadline_even_if_the_peer_reads_some_of_it() {
        for pause in [None, Some(Duration::from_millis(10))] {
            let (mut connection, peer) = pair();
            let mut reads = peer.try_clone().unwrap();
            let reader = pause.map(|pause| {
                thread::spawn(move || {
                    while reads.read(&mut [0; 64 << 10]).is_ok_and(|n| n > 0) {
                        thread::sleep(pause);
                    }
                })
            });
            let begun = Instant::now();
            let limit = Duration::from_millis(200);
            connection.begin(begun, limit);
            let error = connection.write_all(&vec![0; 256 << 20]).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::TimedOut, "{error}");
            let took = begun.elapsed();
            assert!((limit..4 * limit).contains(&took), "{took:?}");
            drop((connection, peer));
            if let Some(reader) = reader {
                reader.join().unwrap();
            }
        }
    }

    #[test]
    fn response_that_arrived_while_this_process_was_stopped_is_read() {
        let (mut connection, mut peer) = pair();
        let limit = Duration::from_millis(20);
        connection.begin(Instant::now() - 2 * limit, limit);
        // The time of a wait is fixed before the stop.
        connection.take_left();
        peer.write_all(b"resp").unwrap();
        connection.stream.peek(&mut [0]).unwrap();
        assert_eq!(connection.read(&mut [0; 9]).unwrap(), 4);
        // There is no time for the rest.
        peer.write_all(b"onse").unwrap();
        connection.stream.peek(&mut [0]).unwrap();
        let error = connection.read(&mut [0; 9]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut, "{error}");
    }

    fn addresses(count: u16) -> Vec<SocketAddr> {
        (1..=count)
            .map(|port| SocketAddr::from(([10, 0, 0, 1], port)))
            .collect()
    }

    #[test]
    fn address_that_does_not_answer_leaves_time_for_the_next() {
        let deadline = Instant::now() + Duration::from_millis(900);
        let connected = connect_to_any(&addresses(3), deadline, |address, timeout| {
            if address.port() < 3 {
                thread::sleep(timeout);
                return Err(io::ErrorKind::TimedOut.into());
            }
            Ok(address)
        });
        assert_eq!(connected.unwrap().port(), 3);
    }

    #[test]
    fn addresses_share_the_time_that_is_left() {
        let deadline = Instant::now() + Duration::from_secs(12);
        let shares = Mutex::new(Vec::new());
        let error = connect_to_any(&addresses(3), deadline, |_, timeout| {
            shares.lock().push(timeout.as_secs_f64().round());
            Err::<(), _>(io::ErrorKind::ConnectionRefused.into())
        })
        .unwrap_err();
        assert_eq!(*shares.lock(), [4.0, 6.0, 12.0]);
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        assert!(error.to_string().starts_with("10.0.0.1:3: "), "{error}");
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn connection_to_itself_is_refused() {
        // Linux prefers even local ports for outgoing connections. Without a listener, every
        // attempt is refused until the kernel chooses the port of `address` as the local port.
        let listener = (40_000..60_000)
            .step_by(2)
            .find_map(|port| TcpListener::bind(("127.0.0.1", port)).ok())
            .expect("a free port");
        let address = listener.local_addr().expect("address");
        drop(listener);
        let met = (0..400_000).any(|_| match connect_to(address, Duration::from_secs(1)) {
            Ok(_) => panic!("no server listens"),
            Err(error) => error.to_string() == MET_ITSELF,
        });
        assert!(met);
    }
}
