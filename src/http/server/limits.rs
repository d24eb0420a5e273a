//! The limits on the resources that clients can use.

use std::time::Duration;

use super::listener::SocketOptions;
use crate::error::{Error, ErrorKind, Result};

/// The limits of a server, for [`ServerBuilder::limits`](super::ServerBuilder::limits). The setters of
/// [`ServerBuilder`](super::ServerBuilder) document each and change one.
#[derive(Clone, Debug)]
pub struct ServerLimits {
    pub(crate) max_connections: usize,
    pub(crate) max_connections_per_addr: usize,
    pub(crate) max_head_size: usize,
    pub(crate) max_body_size: usize,
    pub(crate) max_request_time: Duration,
    pub(crate) max_abandoned_loads: usize,
    pub(crate) head_timeout: Duration,
    pub(crate) body_timeout: Duration,
    pub(crate) write_timeout: Duration,
    pub(crate) min_write_rate: usize,
    pub(crate) socket_buffer_size: usize,
    pub(crate) peer_buffer_size: usize,
    pub(crate) idle_timeout: Duration,
    pub(crate) stack_size: usize,
    pub(crate) max_response_bytes: usize,
    pub(crate) max_body_bytes: usize,
    pub(crate) malloc_arenas: usize,
}

impl Default for ServerLimits {
    fn default() -> Self {
        ServerLimits {
            max_connections: default_max_connections(),
            max_connections_per_addr: 32,
            max_head_size: 8 << 10,
            max_body_size: DEFAULT_MAX_BODY_SIZE,
            max_request_time: DEFAULT_MAX_REQUEST_TIME,
            max_abandoned_loads: 32,
            head_timeout: Duration::from_secs(5),
            body_timeout: Duration::from_secs(5),
            write_timeout: Duration::from_secs(30),
            min_write_rate: 16 << 10,
            socket_buffer_size: DEFAULT_SOCKET_BUFFER_SIZE,
            peer_buffer_size: 512 << 10,
            idle_timeout: Duration::from_secs(60),
            stack_size: 512 << 10,
            max_response_bytes: DEFAULT_MAX_RESPONSE_BYTES,
            max_body_bytes: 256 << 20,
            malloc_arenas: 0,
        }
    }
}

impl ServerLimits {
    /// The limits for a board with 64 MB of memory.
    ///
    /// At most 96 connections, 16 from one address, with stacks of 128 KiB and socket buffers of 16
    /// KiB; heads of 4 KiB and bodies of 64 KiB; 2 MiB of responses and 512 KiB of bodies at a time; 8
    /// abandoned loads of one address; 2 arenas of malloc. All others have their defaults.
    pub fn small() -> Self {
        ServerLimits {
            max_connections: 96.min(default_max_connections()),
            max_connections_per_addr: 16,
            max_head_size: 4 << 10,
            max_body_size: 64 << 10,
            max_abandoned_loads: 8,
            socket_buffer_size: 16 << 10,
            peer_buffer_size: 16 << 10,
            stack_size: 128 << 10,
            max_response_bytes: 2 << 20,
            max_body_bytes: 512 << 10,
            malloc_arenas: 2,
            ..ServerLimits::default()
        }
    }

    /// Refuses limits that are out of range, with which a server could not answer requests.
    pub(crate) fn check(&self) -> Result<()> {
        let wrong = |message| Err(Error::new(ErrorKind::InvalidOption, message));
        if self.max_connections == 0 || self.max_connections_per_addr == 0 {
            return wrong("a server needs at least one connection");
        }
        if self.max_head_size < MIN_HEAD_SIZE {
            return wrong("max_head_size is at least 1024 bytes");
        }
        if self.stack_size < MIN_STACK_SIZE {
            return wrong("stack_size is at least 65536 bytes");
        }
        if self.socket_buffer_size.min(self.peer_buffer_size) < MIN_SOCKET_BUFFER_SIZE {
            return wrong("socket_buffer_size and peer_buffer_size are at least 4096 bytes");
        }
        let timeouts = [
            self.head_timeout,
            self.body_timeout,
            self.max_request_time,
            self.write_timeout,
            self.idle_timeout,
        ];
        if timeouts.iter().any(|t| !TIMEOUTS.contains(t)) {
            return wrong("a time-out of the server is between 1 ms and 1 day");
        }
        Ok(())
    }

    /// The options of the connections' sockets.
    pub(crate) fn socket_options(&self) -> SocketOptions {
        SocketOptions {
            write_step: WRITE_STEP.min(self.write_timeout),
            deaf_timeout: match self.min_write_rate {
                0 => self.write_timeout,
                _ => DEAF_TIMEOUT.min(self.write_timeout),
            },
            buffer_size: self.socket_buffer_size,
        }
    }

    /// The longest body that is read of a request to a peer's path or to another one.
    pub(crate) fn max_body(&self, is_for_peers: bool) -> usize {
        if is_for_peers {
            self.max_body_size.min(MAX_PEER_BODY)
        } else {
            self.max_body_size
        }
    }
}

/// Room for the connections of 64 peers, 24 each, and a third more. But half of the descriptors
/// that the process may open are left to the program.
fn default_max_connections() -> usize {
    let half = max_descriptors().map_or(usize::MAX, |most| most / 2);
    MAX_CONNECTIONS.min(half).max(MIN_CONNECTIONS)
}

/// The soft limit of open files, where the system shows it as Linux does.
fn max_descriptors() -> Option<usize> {
    let limits = std::fs::read_to_string("/proc/self/limits").ok()?;
    let line = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

const MAX_CONNECTIONS: usize = 2048;
const MIN_CONNECTIONS: usize = 16;

/// The default of the longest body of a request, 1 MiB.
pub(crate) const DEFAULT_MAX_BODY_SIZE: usize = 1 << 20;

/// The default of the longest time of a request.
pub(crate) const DEFAULT_MAX_REQUEST_TIME: Duration = Duration::from_secs(30);

/// The default of the bytes of responses under way.
const DEFAULT_MAX_RESPONSE_BYTES: usize = 1 << 30;

/// The longest body of a request below the base path. The keys of a batch have at most 64 KiB, and each
/// has a few bytes around it.
pub(crate) const MAX_PEER_BODY: usize = 128 << 10;

/// The default size of a socket's buffers.
pub(crate) const DEFAULT_SOCKET_BUFFER_SIZE: usize = 64 << 10;

/// The longest wait of one system call that writes: a client's progress is checked as often.
const WRITE_STEP: Duration = Duration::from_secs(1);

/// How long a client may have no room for sent bytes, also after the server has closed the connection.
const DEAF_TIMEOUT: Duration = Duration::from_secs(8);

const MIN_SOCKET_BUFFER_SIZE: usize = 4096;
const MIN_HEAD_SIZE: usize = 1024;
const MIN_STACK_SIZE: usize = 64 << 10;

/// The range of the time-outs. A socket option can express the shortest, and the longest can be
/// added to any `Instant`.
const TIMEOUTS: std::ops::RangeInclusive<Duration> =
    Duration::from_millis(1)..=Duration::from_secs(24 * 60 * 60);

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn half_of_the_descriptors_are_left_to_the_program() {
        let most = max_descriptors().expect("Linux shows it");
        let connections = ServerLimits::default().max_connections;
        assert!(connections == MIN_CONNECTIONS || connections <= most / 2);
        assert!(connections == MAX_CONNECTIONS || connections >= (most / 2).min(MIN_CONNECTIONS));
    }
}
