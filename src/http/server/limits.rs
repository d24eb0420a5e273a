//! The limits on the resources that clients can use.

use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};

/// See the setters of [`ServerBuilder`](super::ServerBuilder), which document each.
#[derive(Clone, Debug)]
pub(crate) struct Limits {
    pub max_connections: usize,
    pub max_connections_per_addr: usize,
    pub max_head_size: usize,
    pub max_body_size: usize,
    pub head_timeout: Duration,
    pub body_timeout: Duration,
    pub write_timeout: Duration,
    pub idle_timeout: Duration,
    pub stack_size: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            max_connections: 256,
            max_connections_per_addr: 32,
            max_head_size: 8 << 10,
            max_body_size: DEFAULT_MAX_BODY_SIZE,
            head_timeout: Duration::from_secs(5),
            body_timeout: Duration::from_secs(5),
            write_timeout: Duration::from_secs(30),
            idle_timeout: Duration::from_secs(60),
            stack_size: 512 << 10,
        }
    }
}

impl Limits {
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
        let timeouts = [
            self.head_timeout,
            self.body_timeout,
            self.write_timeout,
            self.idle_timeout,
        ];
        if timeouts.iter().any(|t| !TIMEOUTS.contains(t)) {
            return wrong("a time-out of the server is between 1 ms and 1 day");
        }
        Ok(())
    }
}

/// The default of the longest body of a request, 1 MiB.
pub(crate) const DEFAULT_MAX_BODY_SIZE: usize = 1 << 20;

const MIN_HEAD_SIZE: usize = 1024;
const MIN_STACK_SIZE: usize = 64 << 10;

/// The range of the time-outs. A socket option can express the shortest, and the longest can be
/// added to any `Instant`.
const TIMEOUTS: std::ops::RangeInclusive<Duration> =
    Duration::from_millis(1)..=Duration::from_secs(24 * 60 * 60);
