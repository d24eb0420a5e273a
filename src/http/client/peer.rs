//! A peer that is asked over HTTP: the request, and what is made of each possible answer.

use std::fmt;
use std::io::Read;
use std::time::{Duration, Instant};

use ureq::http::{HeaderName, HeaderValue};

use crate::byteview::ByteView;
use crate::clock::Clock;
use crate::context::Context;
use crate::error::{Error, ErrorKind, Result};
use crate::http::client::body::{Bytes, TOO_LONG, read_body};
use crate::http::client::combiner::Combiner;
use crate::http::client::permits::{Permit, Permits};
use crate::http::client::sharing::{Outcome, Sharing};
use crate::http::client::transport::{Transport, TransportRequest, TransportResponse};
use crate::http::client::url::PeerUrl;
use crate::http::server::answer::SharedLimits;
use crate::pb::GetRequest;
use crate::peers::{PeerResponse, ProtoGetter};
use crate::shared_bytes::SharedBytes;
use crate::sync::{Arc, Padded};
use crate::wire;

/// One peer.
///
/// What goes wrong between here and there is [`ErrorKind::Peer`] and names the peer; what the
/// peer's getter said passes as it is. Only the former says anything about the peer's health.
pub(crate) struct HttpPeer {
    url: Arc<PeerUrl>,
    pub(crate) transport: Arc<dyn Transport>,
    /// The path of the peer's URL and the base path: what comes before the group.
    pub(crate) base: String,
    pub(crate) traffic: Padded<Traffic>,
    pub(crate) limits: PeerLimits,
    pub(crate) sharing: Sharing,
    /// Read for answers that say when they expire, not how long they are good for.
    clock: Clock,
    /// What tells the peer that it has all of the exchange's time.
    full_time: HeaderValue,
}

/// What each request for a key writes to, together, so that as few lines of memory as can be go from
/// processor to processor, and none that is only read.
pub(crate) struct Traffic {
    /// One for each exchange under way: the peer's server refuses connections over its own limit.
    permits: Permits,
    /// Who asks singly, who rides together.
    pub(crate) combiner: Combiner<Outcome>,
}

/// The figures of a peer; see the setters of `HttpPoolBuilder`, which document each.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PeerLimits {
    pub(crate) exchange_timeout: Duration,
    pub(crate) max_connections: usize,
    pub(crate) max_value_size: usize,
    pub(crate) shared: SharedLimits,
}

impl HttpPeer {
    pub(crate) fn new(
        url: Arc<PeerUrl>,
        transport: Arc<dyn Transport>,
        base_path: &str,
        limits: PeerLimits,
        clock: Clock,
    ) -> Self {
        HttpPeer {
            base: format!("{}{base_path}", url.prefix()),
            url,
            transport,
            traffic: Padded(Traffic {
                permits: Permits::new(limits.max_connections),
                combiner: Combiner::new(
                    limits.shared.max_keys,
                    limits.shared.max_key_bytes(),
                    limits.max_connections,
                ),
            }),
            sharing: Sharing::new(limits.shared),
            full_time: wire::timeout_millis(limits.exchange_timeout).into(),
            limits,
            clock,
        }
    }

    /// One request for one key, and its whole answer.
    pub(crate) fn exchange(
        &self,
        ctx: &Context,
        group: &str,
        key: &str,
        budget: Duration,
    ) -> Result<PeerResponse> {
        let (_permit, budget) = self.permit(ctx, budget)?;
        let path = wire::key_path(&self.base, group, key);
        let mut sent = TransportRequest::get(path, Instant::now() + budget);
        let time_left = if budget == self.limits.exchange_timeout {
            self.full_time.clone()
        } else {
            wire::timeout_millis(budget).into()
        };
        sent.set_parsed(TIMEOUT, time_left);
        let response = self.transport.round_trip(ctx, sent)?;
        if response.status() == 200 {
            self.accept(ctx, response)
        } else {
            Err(self.explain(response))
        }
    }

    /// Waits for the right to a connection, which is held until the answer is read to its end or
    /// its connection closed; and what is left of the budget then.
    pub(crate) fn permit(&self, ctx: &Context, budget: Duration) -> Result<(Permit<'_>, Duration)> {
        match self.traffic.permits.acquire(budget) {
            Some((permit, waited)) => Ok((permit, budget.saturating_sub(waited))),
            None => Err(ctx.err().unwrap_or_else(|| self.failure(ALL_BUSY))),
        }
    }

    /// The value of an answer with status 200, if it is one.
    fn accept(&self, ctx: &Context, response: TransportResponse) -> Result<PeerResponse> {
        let body = self.read_message(ctx, response, self.limits.max_value_size)?;
        let decoded = wire::decode_response(&body).map_err(|error| self.failure(error))?;
        if decoded.value.len() > self.limits.max_value_size {
            return Err(self.failure(TOO_LONG));
        }
        let value = match &body {
            // Sharing the body keeps all of it in memory for as long as the value.
            Bytes::Shared(shared) if body.len() - decoded.value.len() <= MAX_WASTE => {
                window_of(shared, decoded.value)
            }
            _ => ByteView::from(decoded.value),
        };
        Ok(PeerResponse {
            value,
            ttl: self.ttl(&decoded),
            minute_qps: decoded.minute_qps,
        })
    }

    /// The body of an answer with status 200, if it is a protobuf message with at most
    /// `max_values` bytes of values.
    pub(crate) fn read_message(
        &self,
        ctx: &Context,
        response: TransportResponse,
        max_values: usize,
    ) -> Result<Bytes> {
        if !response.is_protobuf() {
            let found = response.header("content-type").unwrap_or_default();
            let found: String = found.chars().take(80).collect();
            return Err(self.failure(format_args!(
                "it answered with {found:?}, not with {}: is a peer behind this URL?",
                wire::CONTENT_TYPE
            )));
        }
        let max = max_body(max_values);
        let length = response.length();
        let body = read_body(response.into_body(), length, max);
        body.map_err(|why| ctx.err().unwrap_or_else(|| self.failure(why)))
    }

    /// How long the value is good for. A time that has passed is no time at all: the caller gets
    /// the value, and it is not kept.
    fn ttl(&self, decoded: &wire::Decoded<'_>) -> Option<Duration> {
        if let Some(nanos) = decoded.ttl_nanos {
            return Some(Duration::from_nanos(nanos));
        }
        let left = decoded
            .expire_unix_nanos?
            .saturating_sub(self.clock.unix_nanos());
        Some(Duration::from_nanos(u64::try_from(left).unwrap_or(0)))
    }

    /// The error that an answer with another status stands for.
    pub(crate) fn explain(&self, response: TransportResponse) -> Error {
        let status = response.status();
        let header = response.header(wire::ERROR_HEADER).map(str::to_owned);
        let mut text = Vec::new();
        // What was read is used, also if reading ends in an error: the status is known.
        let _ = response
            .into_body()
            .take(MAX_ERROR_TEXT)
            .read_to_end(&mut text);
        let error = wire::error_of(status, header.as_deref(), &String::from_utf8_lossy(&text));
        match error.kind() {
            kind @ (ErrorKind::Peer | ErrorKind::UnknownGroup) => {
                Error::new(kind, format!("peer {}: {error}", self.url))
            }
            _ => error,
        }
    }

    /// The time of the exchange is over, or that of the caller.
    pub(crate) fn too_late(&self, ctx: &Context) -> Error {
        ctx.err().unwrap_or_else(|| {
            let limit = self.limits.exchange_timeout;
            self.failure(format_args!("no answer within {limit:?}"))
        })
    }

    fn failure(&self, why: impl fmt::Display) -> Error {
        Error::new(ErrorKind::Peer, format!("peer {}: {why}", self.url))
    }
}

impl ProtoGetter for HttpPeer {
    fn get(&self, ctx: &Context, request: &GetRequest<'_>) -> Result<PeerResponse> {
        self.get_together(ctx, &request.group, &request.key)
    }

    fn get_many(
        &self,
        ctx: &Context,
        group: &str,
        keys: &[&str],
    ) -> Result<Vec<Option<PeerResponse>>> {
        self.get_cached(ctx, group, keys)
    }

    fn honors_deadline(&self) -> bool {
        true
    }
}

impl fmt::Debug for HttpPeer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("HttpPeer").field(&self.url).finish()
    }
}

/// The longest body for values of at most `max_value_size` bytes.
pub(crate) fn max_body(max_value_size: usize) -> u64 {
    (max_value_size as u64).saturating_add(MAX_FIELDS)
}

fn window_of(shared: &SharedBytes, value: &[u8]) -> ByteView {
    if value.is_empty() {
        // It may lie anywhere.
        return ByteView::new();
    }
    let start = value.as_ptr().addr() - shared.as_ptr().addr();
    ByteView::window(shared.clone(), start, start + value.len())
}

/// What the body may have on top of the value: fields of ours take 50 bytes, later versions may
/// add some.
const MAX_FIELDS: u64 = 1024;

/// The most bytes around a value that are kept with it to spare a copy.
const MAX_WASTE: usize = 64;

/// The most that is read of the text of an error.
const MAX_ERROR_TEXT: u64 = 64 * 1024;

const TIMEOUT: HeaderName = HeaderName::from_static(wire::TIMEOUT_HEADER);

const ALL_BUSY: &str = "all connections to it stayed busy; see max_connections_per_peer";

#[cfg(all(test, target_os = "linux", not(larder_loom)))]
mod tests {
    use super::*;

    /// Elsewhere std's locks are larger, and it takes a line more.
    #[test]
    fn what_each_request_writes_to_lies_on_one_pair_of_lines() {
        assert_eq!(size_of::<Padded<Traffic>>(), 128);
    }
}
