//! The peer of a transport, and the limits of every exchange with it.

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::time::Instant;

use crate::context::Context;
use crate::error::{Error, ErrorKind, Result};
use crate::http::client::transport::TransportRequest;
use crate::http::client::transport::connection::{PeerConnection, StaleConnection};
use crate::http::client::transport::resolve::Addresses;
use crate::http::client::transport::url::PeerUrl;
use crate::http::config::Config;
use crate::sync::Arc;
use crate::sync::atomic::{AtomicBool, Ordering};

/// The URL, options and addresses of a peer, shared by its transports.
pub(crate) struct Target {
    pub(crate) url: PeerUrl,
    pub(crate) config: Arc<Config>,
    addresses: Addresses,
    /// See [`is_keyed`](Self::is_keyed).
    is_keyed: AtomicBool,
}

impl Target {
    pub(crate) fn new(url: &PeerUrl, config: &Arc<Config>) -> Arc<Self> {
        Self::with_addresses(url, config, Addresses::new(url))
    }

    pub(crate) fn with_addresses(
        url: &PeerUrl,
        config: &Arc<Config>,
        addresses: Addresses,
    ) -> Arc<Self> {
        Arc::new(Target {
            url: url.clone(),
            config: config.clone(),
            addresses,
            is_keyed: AtomicBool::new(false),
        })
    }

    pub(crate) fn addresses(&self) -> &Addresses {
        &self.addresses
    }

    /// Whether the peer has this address, as far as is known.
    pub(crate) fn is_at(&self, ip: IpAddr) -> bool {
        let known = self.addresses.known();
        known.iter().any(|addr| addr.ip().to_canonical() == ip)
    }

    /// Whether the last response came from larder's server, whose responses carry the hash of their
    /// key.
    pub(crate) fn is_keyed(&self) -> bool {
        self.is_keyed.load(Ordering::Relaxed)
    }

    /// Notes whether a response came from larder's server.
    pub(crate) fn note_keyed(&self, is_keyed: bool) {
        // Written only if it changes, because all callers read it.
        if self.is_keyed() != is_keyed {
            self.is_keyed.store(is_keyed, Ordering::Relaxed);
        }
    }

    /// When the exchange of `request` must be over.
    ///
    /// # Errors
    ///
    /// If `ctx` has ended, or the request cannot be sent.
    pub(crate) fn deadline(
        &self,
        ctx: &Context,
        request: &TransportRequest<'_>,
    ) -> Result<Instant> {
        if let Some(ended) = ctx.err() {
            return Err(ended);
        }
        if request.path_len() > MAX_PATH {
            let why = "the key is too long for the path of a URL";
            let cause = io::Error::new(io::ErrorKind::InvalidInput, why);
            let peer = format!("peer {}", self.url);
            return Err(Error::with_source(ErrorKind::Peer, peer, cause));
        }
        let own = request.deadline();
        Ok(ctx.deadline().map_or(own, |earlier| earlier.min(own)))
    }

    /// Makes a connection.
    ///
    /// # Errors
    ///
    /// `TimedOut` at `deadline`, or at the end of the connect time-out if that is earlier;
    /// otherwise the error of the look-up or of the last address.
    pub(crate) fn connect(&self, deadline: Instant) -> io::Result<PeerConnection> {
        let deadline = deadline.min(Instant::now() + self.config.connect_timeout);
        let max_response = self.max_body().saturating_add(MAX_FRAMING);
        PeerConnection::connect(&self.addresses, max_response, deadline)
    }

    /// Whether an idle connection can carry another exchange with this peer.
    pub(crate) fn may_use(&self, connection: &PeerConnection, now: Instant) -> bool {
        if connection.is_usable(now, self.is_keyed()) {
            return self.addresses.has(connection.address());
        }
        if !connection.is_too_old(now) {
            self.addresses.refresh();
        }
        false
    }

    /// The most bytes of the body of a response that are read.
    pub(crate) fn max_body(&self) -> u64 {
        self.config.max_body().max(self.config.max_batch_body())
    }

    /// The error of an exchange that failed with `error`.
    pub(crate) fn explain(&self, ctx: &Context, error: io::Error) -> Error {
        let url = &self.url;
        if let Some(ended) = ctx.err() {
            return Error::new(ended.kind(), format!("{ended}, while peer {url} was asked"));
        }
        let error = self.explain_timeout(error);
        Error::with_source(ErrorKind::Peer, format_args!("peer {url}"), error)
    }

    /// The same error, with a text if it is a time-out without one.
    pub(crate) fn explain_timeout(&self, error: io::Error) -> io::Error {
        let has_text = error.get_ref().is_some() && StaleConnection::in_error(&error).is_none();
        if error.kind() != io::ErrorKind::TimedOut || has_text {
            return error;
        }
        let limit = self.config.exchange_timeout;
        let message = format!("no whole answer within {limit:?}");
        io::Error::new(io::ErrorKind::TimedOut, message)
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.url.fmt(f)
    }
}

/// The longest line of a request's head: ureq writes a line into its output buffer as a whole, so
/// the buffer has this size. By default, larder's server accepts no head over 8 KiB.
pub(crate) const MAX_LINE: usize = 8 * 1024;

/// The longest path: method and version are on the same line.
pub(crate) const MAX_PATH: usize = MAX_LINE - 32;

/// The most bytes of a response in addition to its body: the head, and the lines between chunks.
const MAX_FRAMING: u64 = 63 * 1024;
