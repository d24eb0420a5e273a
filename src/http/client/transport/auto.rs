//! Chooses between ureq and the direct transport, by the server that responds.

use std::error::Error as _;
use std::io;

use crate::context::Context;
use crate::error::{Error, Result};
use crate::http::client::transport::direct::DirectTransport;
use crate::http::client::transport::target::Target;
use crate::http::client::transport::ureq::UreqTransport;
use crate::http::client::transport::{
    DefaultTransport, IdleConnections, Transport, TransportRequest, TransportResponse,
};
use crate::sync::{Arc, RwLock};

/// Sends requests by ureq until a response comes from larder's own server, and by the direct
/// transport from then on. Returns to ureq if a response comes from another server or is rejected.
pub(crate) struct AutoTransport {
    target: Arc<Target>,
    chosen: RwLock<Chosen>,
}

struct Chosen {
    is_direct: bool,
    by: DefaultTransport,
}

impl AutoTransport {
    pub(crate) fn new(target: Arc<Target>) -> Self {
        AutoTransport {
            chosen: RwLock::new(Chosen {
                is_direct: false,
                by: DefaultTransport::of(UreqTransport::new(target.clone())),
            }),
            target,
        }
    }

    /// Replaces the transport. The idle connections of the old one are closed; requests in flight
    /// complete on their own connections.
    fn choose(&self, is_direct: bool) {
        let target = self.target.clone();
        let by = match is_direct {
            true => DefaultTransport::of(DirectTransport::new(target)),
            false => DefaultTransport::of(UreqTransport::new(target)),
        };
        let mut chosen = self.chosen.write();
        // Another thread may have replaced it meanwhile.
        if chosen.is_direct != is_direct {
            *chosen = Chosen { is_direct, by };
        }
    }
}

impl IdleConnections for AutoTransport {
    /// Closes those of the present transport, and returns to ureq: a proxy may have come between.
    fn close_idle(&self) {
        let connections = self.chosen.read().by.connections.clone();
        connections.close_idle();
        self.choose(false);
    }
}

impl Transport for AutoTransport {
    fn round_trip(
        &self,
        ctx: &Context,
        request: TransportRequest<'_>,
    ) -> Result<TransportResponse> {
        let (was_direct, transport) = {
            let chosen = self.chosen.read();
            (chosen.is_direct, chosen.by.transport.clone())
        };
        let response = transport.round_trip(ctx, request);
        let is_direct = match &response {
            Ok(response) => response.is_from_larder(),
            Err(error) => was_direct && !is_protocol_error(error),
        };
        if is_direct != was_direct {
            self.choose(is_direct);
        }
        response
    }
}

/// Whether the response was rejected: it is not valid HTTP/1.1, or too long.
fn is_protocol_error(error: &Error) -> bool {
    let cause = error.source().and_then(|cause| cause.downcast_ref());
    cause.is_some_and(|cause: &io::Error| cause.kind() == io::ErrorKind::InvalidData)
}
