//! The options that a pool and the clients of its peers share.

use std::net::IpAddr;
use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};
use crate::wire;

/// The options of a pool; the setters of `HttpPoolBuilder` document each.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(crate) base_path: String,
    pub(crate) client: HttpClient,
    pub(crate) connect_timeout: Duration,
    pub(crate) exchange_timeout: Duration,
    pub(crate) absent_after: Duration,
    pub(crate) slow_after: Duration,
    pub(crate) max_connections_per_peer: usize,
    pub(crate) max_idle_per_peer: usize,
    pub(crate) max_value_size: usize,
    pub(crate) max_batch_keys: usize,
    pub(crate) max_batch_bytes: usize,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            base_path: wire::DEFAULT_BASE_PATH.to_owned(),
            client: HttpClient::default(),
            connect_timeout: Duration::from_millis(250),
            exchange_timeout: Duration::from_secs(1),
            absent_after: Duration::from_secs(60),
            slow_after: Duration::from_millis(20),
            max_connections_per_peer: 24,
            max_idle_per_peer: 24,
            max_value_size: 16 << 20,
            max_batch_keys: 128,
            max_batch_bytes: 1 << 20,
        }
    }
}

impl Config {
    /// The options of unit tests, with time-outs that no test reaches.
    #[cfg(all(test, not(larder_loom)))]
    pub(crate) fn for_test() -> Self {
        Config {
            connect_timeout: Duration::from_secs(20),
            exchange_timeout: Duration::from_secs(20),
            max_value_size: 1 << 20,
            ..Config::default()
        }
    }

    /// # Errors
    ///
    /// [`ErrorKind::InvalidBasePath`], or [`ErrorKind::InvalidOption`] for a number out of range.
    pub(crate) fn check(&self) -> Result<()> {
        wire::check_base_path(&self.base_path)?;
        for (name, timeout) in [
            ("connect_timeout", self.connect_timeout),
            ("exchange_timeout", self.exchange_timeout),
        ] {
            if timeout.is_zero() || timeout > MAX_TIMEOUT {
                return Err(refuse(format!("{name} is {timeout:?}: 0 < {name} <= 1 h")));
            }
        }
        if self.max_value_size == 0 {
            return Err(refuse("max_value_size is 0: no value would fit"));
        }
        if self.max_connections_per_peer == 0 {
            return Err(refuse(
                "max_connections_per_peer is 0: no peer could be asked",
            ));
        }
        if self.max_batch_bytes == 0 {
            return Err(refuse(
                "max_batch_bytes is 0: no value would fit; max_batch_keys(1) switches batches off",
            ));
        }
        Ok(())
    }

    /// How long a request may take for which the peer need not load anything.
    pub(crate) fn probe_timeout(&self) -> Duration {
        self.exchange_timeout.min(PROBE_TIMEOUT)
    }

    /// The most bytes of the keys in one batch. It is well below the longest body that servers
    /// accept (1 MiB by default).
    pub(crate) fn max_batch_key_bytes(&self) -> usize {
        self.max_batch_bytes.min(MAX_KEY_BYTES)
    }

    /// The longest body of the response for one key.
    pub(crate) fn max_body(&self) -> u64 {
        (self.max_value_size as u64).saturating_add(MAX_FIELDS)
    }

    /// The longest body of the response to a batch.
    pub(crate) fn max_batch_body(&self) -> u64 {
        let around = (self.max_batch_keys as u64).saturating_mul(MAX_AROUND);
        (self.max_batch_bytes as u64)
            .saturating_add(around)
            .saturating_add(MAX_FIELDS)
    }
}

/// The addresses of the peers in the pool's list. The server keeps connections for them.
pub(crate) trait KnownPeers: Send + Sync {
    /// How many peers have this address. The address of a peer's name is known once it was looked up.
    fn peers_at(&self, ip: IpAddr) -> usize;

    /// How many peers there are other than this process.
    fn count(&self) -> usize;

    /// Looks the names of peers up again, because a client at another address asked for what peers may do. Does
    /// not wait.
    fn look_up_again(&self) {}

    /// Notes that the peer with this id leaves. Returns whether there is one.
    fn leave(&self, id: &str) -> bool;

    /// Notes that a peer probes this process, because it found it down or slow.
    fn note_probe(&self) {}
}

/// Which HTTP client asks the peers.
///
/// `Ureq` and `Direct` accept the responses of any HTTP/1.1 server, with the same limits and the same
/// errors. So does `Auto` with the feature `ureq`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum HttpClient {
    /// ureq for servers of all kinds, and this crate's own client for larder's server. The latter
    /// takes less CPU time (`cargo bench --bench hop` compares this with `Ureq`). The default.
    ///
    /// ureq sends the requests to a peer until a response comes from larder's server (`Server:
    /// larder`, and no `Via` of a proxy). From then on, this crate's own client sends them. ureq
    /// takes over again if a response comes from another server or is not valid HTTP/1.1. Each
    /// client has connections of its own.
    ///
    /// Without the feature `ureq`, this crate's own client sends all requests, and only larder's
    /// server may respond. A response of another server, or through a proxy that sends `Via`, is an
    /// error of the peer ([`ErrorKind::Peer`]). Its source is an [`std::io::Error`] of kind
    /// `Unsupported` that names the feature.
    #[default]
    Auto,
    /// ureq for everything. Needs the feature `ureq`.
    #[cfg(feature = "ureq")]
    Ureq,
    /// This crate's own client for everything. It has the parts of HTTP/1.1 that peers use: no
    /// redirects, proxies or TLS.
    Direct,
}

/// The most bytes of a body in addition to its values. The fields of this version take 60; later
/// versions may add some.
const MAX_FIELDS: u64 = 1024;

fn refuse(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOption, message)
}

/// Peers are probed one after the other. The exchange time-out has to be as long as the getters of Go
/// programs run, and one peer that hangs must not keep the others from being probed for so long.
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);

const MAX_TIMEOUT: Duration = Duration::from_secs(3600);

const MAX_KEY_BYTES: usize = 64 << 10;

/// The most keys that a server reads of one request, which bounds its memory to 100 KiB. A request with
/// more is refused.
pub(crate) const MAX_BATCH_KEYS: usize = 4096;

/// The most bytes that each value of a batch adds to the body: 15 for its tag, its length and the hash of
/// its key, 1 for its state, 12 each for its time to live and its age, and 4 each for its removals, its
/// rate and its stale time.
const MAX_AROUND: u64 = 64;

#[cfg(all(test, not(larder_loom)))]
mod tests {
    use super::*;
    use crate::byteview::ByteView;
    use crate::wire::{Fields, ManyBody};

    #[test]
    fn batch_full_of_values_with_all_fields_is_not_too_long() {
        let fields = Fields {
            ttl_nanos: Some(u64::MAX),
            minute_qps: Some(1.0),
            age_ms: Some(u64::MAX),
            stale_ms: Some(u64::MAX),
            removals: Some(u64::MAX),
            ..Fields::default()
        };
        for keys in [1, 128, 4096] {
            let config = Config {
                max_batch_keys: keys,
                ..Config::default()
            };
            let value = ByteView::from(vec![0; config.max_batch_bytes / keys]);
            let mut body = ManyBody::default();
            for _ in 0..keys {
                body.push(1, value.clone(), &fields);
            }
            let body = body.finish();
            assert!(body.len() as u64 <= config.max_batch_body(), "{keys} keys");
        }
    }
}
