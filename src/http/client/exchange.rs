//! What every transport of ours holds to: how long an exchange takes, how long its answer is, and
//! the words of its errors.

use std::fmt;
use std::io;
use std::time::{Duration, Instant};

use crate::context::Context;
use crate::error::{Error, ErrorKind, Result};
use crate::http::client::transport::TransportRequest;
use crate::http::client::url::PeerUrl;
use crate::sync::Arc;

/// A peer, and the figures of the exchanges with it.
#[derive(Clone, Debug)]
pub(crate) struct Terms {
    pub(crate) url: Arc<PeerUrl>,
    /// For looking up a name and connecting to one of its addresses.
    pub(crate) connect_timeout: Duration,
    /// For one exchange: connecting, sending, and the answer to its last byte.
    pub(crate) exchange_timeout: Duration,
    /// The most connections that are kept for the next request.
    pub(crate) max_idle: usize,
    /// The most bytes that are taken of the body of an answer.
    pub(crate) max_body: u64,
}

impl Terms {
    /// When the exchange of `request` has to be over.
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
        if request.path().len() > MAX_PATH {
            return Err(self.refuse("the key is too long for the path of a URL"));
        }
        let own = request.deadline();
        Ok(ctx.deadline().map_or(own, |earlier| earlier.min(own)))
    }

    /// The most bytes of an answer, head and all, that are read.
    pub(crate) fn max_answer(&self) -> u64 {
        self.max_body.saturating_add(MAX_FRAMING)
    }

    pub(crate) fn refuse(&self, why: impl fmt::Display) -> Error {
        Error::new(ErrorKind::Peer, format!("peer {}: {why}", self.url))
    }

    /// The error of an exchange that failed by `error`.
    pub(crate) fn explain(&self, ctx: &Context, error: io::Error) -> Error {
        let url = &self.url;
        if let Some(ended) = ctx.err() {
            return Error::new(ended.kind(), format!("{ended}, while peer {url} was asked"));
        }
        let error = match error.kind() {
            io::ErrorKind::TimedOut if error.get_ref().is_none() => self.too_late(),
            _ => error,
        };
        Error::with_source(ErrorKind::Peer, format_args!("peer {url}"), error)
    }

    pub(crate) fn too_late(&self) -> io::Error {
        let limit = self.exchange_timeout;
        let message = format!("no whole answer within {limit:?}");
        io::Error::new(io::ErrorKind::TimedOut, message)
    }
}

/// The time `budget` from `begun` on.
pub(crate) fn deadline_of(begun: Instant, budget: Duration) -> Instant {
    begun + budget.min(LONGEST)
}

/// The peer is gone before its answer is over.
pub(crate) fn broke_off() -> io::Error {
    let message = "the connection was closed in the middle of the answer";
    io::Error::new(io::ErrorKind::UnexpectedEof, message)
}

/// Pieces of a body this long are read to where they stay. For shorter ones a read each would cost
/// more than the copy.
pub(crate) const DIRECT: usize = 16 * 1024;

/// How long after a request a connection is kept for the next. Servers keep theirs longer (ours a
/// minute), so that few are closed by the other side.
pub(crate) const MAX_IDLE_AGE: Duration = Duration::from_secs(15);

/// The longest head of an answer.
pub(crate) const MAX_HEAD: usize = 16 * 1024;

/// The longest line of a request's head: ureq writes it as a whole or not at all. By default a server
/// of ours takes no head above 8 KiB.
pub(crate) const MAX_LINE: usize = 8 * 1024;

/// The longest path: method and version stand in the same line.
const MAX_PATH: usize = MAX_LINE - 32;

/// Why an answer is none.
pub(crate) struct Refusal(pub(crate) &'static str);

impl Refusal {
    pub(crate) fn error(&self) -> io::Error {
        io::Error::new(io::ErrorKind::InvalidData, self.0)
    }
}

pub(crate) const TWO_LENGTHS: Refusal = Refusal("the answer's length can be read in two ways");
pub(crate) const NO_LENGTH: Refusal =
    Refusal("the answer says neither its length nor that it is chunked");

/// What an answer may have on top of its body: the head, and the lines between chunks.
const MAX_FRAMING: u64 = 63 * 1024;

/// A bound that keeps sums of times in range. Exchanges have far shorter ones.
const LONGEST: Duration = Duration::from_secs(86_400);
