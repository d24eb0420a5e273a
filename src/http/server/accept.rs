//! The accept thread: starts a thread for each connection, and goes on after errors of the system.

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::time::{Duration, Instant};

use super::connection::{Service, serve};
use super::connections::{Connection, ConnectionGuard};
use super::listener::Listener;
use crate::panics::caught;
use crate::sync::{self, Arc, thread};

/// Accepts until the server stops.
///
/// An error of `accept` leaves the listener intact. If no descriptor (EMFILE, ENFILE) or memory is
/// left, the error is logged, and `accept` is called again after a pause, in which connections may
/// end. If the client disconnected before it was accepted, `accept` is called again at once.
pub(crate) fn run(listener: &mut Listener, service: &Arc<Service>) {
    let mut refused = RefusedConnections::default();
    let mut log = RateLimitedLog::default();
    loop {
        let accepted = listener.accept(refused.next_end());
        if service.connections.is_stopping() {
            return;
        }
        service.connections.reap();
        refused.close_old();
        match accepted {
            Ok((stream, addr)) => {
                let connection = Connection::new(stream, addr, &*service.peers);
                if let Err(why) = start(service, &connection) {
                    log.warn(|| format!("refusing connections, for one from {addr}: {why}"));
                    refused.add(connection);
                }
            }
            Err(error) if is_no_failure(&error) => {}
            Err(error) => {
                log.warn(|| format!("cannot accept connections: {error}; trying again"));
                refused.clear();
                std::thread::sleep(PAUSE);
            }
        }
    }
}

/// Whether `accept` returned without a connection, and is to be called again.
fn is_no_failure(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::Interrupted
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::WouldBlock
            | io::ErrorKind::TimedOut
    )
}

/// Starts the thread of a connection, unless there are too many connections or threads.
fn start(service: &Arc<Service>, connection: &Arc<Connection>) -> Result<(), ConnectionRefused> {
    let guard = service
        .connections
        .admit(connection, &service.limits, &*service.peers)
        .ok_or(ConnectionRefused::TooMany)?;
    let id = guard.id;
    let thread = spawn(service.clone(), guard).map_err(ConnectionRefused::NoThread)?;
    service.connections.attach(id, thread);
    Ok(())
}

fn spawn(service: Arc<Service>, guard: ConnectionGuard) -> io::Result<thread::JoinHandle<()>> {
    let stack_size = service.limits.stack_size;
    sync::spawn("larder-conn", Some(stack_size), move || {
        // An error would mean that the thread is set already, but only this line sets it.
        let _ = guard.connection.thread.set(std::thread::current().id());
        serve(&service, &guard.connection);
    })
}

enum ConnectionRefused {
    TooMany,
    NoThread(io::Error),
}

impl fmt::Display for ConnectionRefused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ConnectionRefused::TooMany => {
                f.write_str("max_connections or max_connections_per_addr is reached")
            }
            ConnectionRefused::NoThread(error) => write!(f, "no thread could be started: {error}"),
        }
    }
}

/// Connections that were answered with 503 and not read, kept open for a moment.
///
/// Closing one at once would often reset it, because its request is on the way or unread, and the
/// client would not see the response. No thread waits for the client. So the accept thread keeps
/// the last few refused connections, and closes each after [`KEPT_FOR`].
#[derive(Default)]
struct RefusedConnections(VecDeque<(Instant, Arc<Connection>)>);

impl RefusedConnections {
    fn add(&mut self, connection: Arc<Connection>) {
        if self.0.len() >= KEPT {
            self.close_first();
        }
        // The socket is new, so the response fits its buffer. An error concerns this client only.
        let mut stream = &connection.stream;
        let _ = stream.set_nonblocking(true);
        let _ = stream.write_all(TOO_MANY_CONNECTIONS);
        let _ = stream.shutdown(Shutdown::Write);
        self.0.push_back((Instant::now() + KEPT_FOR, connection));
    }

    /// When the next one is to be closed.
    fn next_end(&self) -> Option<Instant> {
        self.0.front().map(|(end, _)| *end)
    }

    fn close_old(&mut self) {
        while self.next_end().is_some_and(|end| end <= Instant::now()) {
            self.close_first();
        }
    }

    fn close_first(&mut self) {
        if let Some((_, connection)) = self.0.pop_front() {
            // Closing with unread bytes would reset the connection.
            let mut bytes = [0; 1024];
            for _ in 0..8 {
                if !matches!((&mut &connection.stream).read(&mut bytes), Ok(1..)) {
                    break;
                }
            }
        }
    }

    fn clear(&mut self) {
        while !self.0.is_empty() {
            self.close_first();
        }
    }
}

/// Warns at most once in [`LOG_PAUSE`], so that clients cannot fill a disk with warnings.
#[derive(Default)]
struct RateLimitedLog {
    last: Option<Instant>,
}

impl RateLimitedLog {
    fn warn(&mut self, message: impl FnOnce() -> String) {
        if self.last.is_none_or(|last| last.elapsed() >= LOG_PAUSE) {
            self.last = Some(Instant::now());
            // A panic of the program's logger must not end the accept thread.
            caught(|| log::warn!("{}", message()));
        }
    }
}

/// Short enough that connections are accepted well within a second after descriptors are free.
const PAUSE: Duration = Duration::from_millis(50);

/// At most `KEPT` refused connections are kept, each for `KEPT_FOR`.
const KEPT: usize = 16;
const KEPT_FOR: Duration = Duration::from_secs(1);

const LOG_PAUSE: Duration = Duration::from_secs(10);

const TOO_MANY_CONNECTIONS: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\n\
    Server: larder\r\n\
    Content-Type: text/plain; charset=utf-8\r\n\
    Content-Length: 20\r\n\
    Connection: close\r\n\r\n\
    too many connections";
