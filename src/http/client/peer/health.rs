//! The health of a peer that is asked over HTTP: its probe, its report, and the errors that it sends.

use std::time::Instant;

use crate::context::Context;
use crate::error::{Error, ErrorKind, Result};
use crate::http::client::health::exchange::ObservedExchange;
use crate::http::client::health::status::PeerStatus;
use crate::http::client::health::watch::{Probe, WatchedPeer};
use crate::http::client::health::{PeerHealth, ProbeAnswer, ProbeOf};
use crate::http::client::peer::HttpPeer;
use crate::http::client::transport::{TransportRequest, TransportResponse};
use crate::peer::Peer;
use crate::sync::Arc;
use crate::wire;

impl HttpPeer {
    pub(crate) fn health(&self) -> &Arc<PeerHealth> {
        &self.health
    }

    /// This peer for the watch.
    pub(crate) fn watched(self: &Arc<Self>) -> WatchedPeer {
        let peer: Arc<dyn Probe> = self.clone();
        WatchedPeer {
            health: self.health.clone(),
            peer: Arc::downgrade(&peer),
        }
    }

    /// See `HttpPool::peers`.
    pub(crate) fn status(&self, peer: Peer) -> PeerStatus {
        let (state, cause) = self.health.state();
        let times = self.health.latencies.quantiles([0.5, 0.99]);
        PeerStatus {
            peer,
            state,
            cause,
            p50: times.map(|[p50, _]| p50),
            p99: times.map(|[_, p99]| p99),
            in_flight: self.permits.in_use(),
            last_error: self.health.last_failure(),
        }
    }

    /// The error of a response with a status other than 200, which ends `exchange`.
    ///
    /// Another program than a peer can answer with any status. But 404 is the answer of a Go peer
    /// without the group.
    pub(super) fn end_with_error(
        &self,
        exchange: ObservedExchange<'_>,
        response: TransportResponse,
        hash: Option<u64>,
    ) -> Error {
        let is_larder = response.is_from_larder() || response.header(wire::ERROR_HEADER).is_some();
        // A Go program answers 500 for an error of its getter, and its router redirects some paths. Only
        // the errors of a proxy show that the peer is not there.
        let is_of_proxy = matches!(response.status(), 408 | 502..=504);
        let is_answer = is_larder || !is_of_proxy || hash.is_none();
        let (error, is_of_the_key) = self.read_error(response, hash);
        match is_answer && is_of_the_key {
            true => {
                exchange.answered_untimed();
                error
            }
            false => exchange.broken(error),
        }
    }
}

impl Probe for HttpPeer {
    /// Requests the base path, which names no group. Any answer but an error of a proxy will do. The
    /// idle connections to a peer that was down are closed before, because they may be those of before the
    /// outage.
    fn probe(&self, of: ProbeOf) -> Result<ProbeAnswer> {
        if of == ProbeOf::Down {
            self.connections.close_idle();
        }
        let timeout = self.config.probe_timeout();
        let deadline = Instant::now() + timeout;
        let ctx = Context::background().with_deadline(deadline);
        let own = self.membership.own();
        let request =
            TransportRequest::get(self.base.clone(), deadline).with_peers_mark(&own.header);
        let response = self.transport.round_trip(&ctx, request);
        let response = response.map_err(|error| match error.kind() {
            // No caller waits for a probe.
            ErrorKind::DeadlineExceeded => {
                self.failure(format_args!("no answer to a probe within {timeout:?}"))
            }
            _ => error,
        })?;
        if response.header(wire::LEAVING_HEADER).is_some() {
            return Ok(ProbeAnswer::Leaving);
        }
        match response.status() {
            status if response.is_from_larder() || status < 500 && status != 408 => {
                Ok(ProbeAnswer::Present)
            }
            status => Err(self.failure(format_args!("it answered a probe with {status}"))),
        }
    }

    fn name(&self) -> String {
        self.url.to_string()
    }
}
