//! Makes the transport of a peer: ureq, direct, or by default one that chooses between the two.

use std::error::Error as _;
use std::io;

use crate::context::Context;
use crate::error::{Error, Result};
use crate::http::client::direct::DirectTransport;
use crate::http::client::target::Target;
use crate::http::client::transport::{Transport, TransportRequest, TransportResponse};
use crate::http::client::ureq::UreqTransport;
use crate::http::config::HttpClient;
use crate::sync::{Arc, RwLock};

/// The default transport of the peer `target`.
pub(crate) fn transport_for(target: Arc<Target>) -> Arc<dyn Transport> {
    match target.config.client {
        HttpClient::Auto => Arc::new(AutoTransport::new(target)),
        HttpClient::Ureq => Arc::new(UreqTransport::new(target)),
        HttpClient::Direct => Arc::new(DirectTransport::new(target)),
    }
}

/// Sends requests by ureq until a response comes from larder's own server, and by the direct
/// transport from then on. Returns to ureq if a response comes from another server or is rejected.
struct AutoTransport {
    target: Arc<Target>,
    chosen: RwLock<Chosen>,
}

#[derive(Clone)]
struct Chosen {
    is_direct: bool,
    transport: Arc<dyn Transport>,
}

impl AutoTransport {
    fn new(target: Arc<Target>) -> Self {
        AutoTransport {
            chosen: RwLock::new(Chosen {
                is_direct: false,
                transport: Arc::new(UreqTransport::new(target.clone())),
            }),
            target,
        }
    }

    /// Replaces the transport. The idle connections of the old one are closed; requests in flight
    /// complete on their own connections.
    fn choose(&self, is_direct: bool) {
        let target = self.target.clone();
        let transport: Arc<dyn Transport> = match is_direct {
            true => Arc::new(DirectTransport::new(target)),
            false => Arc::new(UreqTransport::new(target)),
        };
        let mut chosen = self.chosen.write();
        // Another thread may have replaced it meanwhile.
        if chosen.is_direct != is_direct {
            *chosen = Chosen {
                is_direct,
                transport,
            };
        }
    }
}

impl Transport for AutoTransport {
    fn round_trip(
        &self,
        ctx: &Context,
        request: TransportRequest<'_>,
    ) -> Result<TransportResponse> {
        let chosen = self.chosen.read().clone();
        let response = chosen.transport.round_trip(ctx, request);
        let is_direct = match &response {
            Ok(response) => response.is_from_larder(),
            Err(error) => chosen.is_direct && !is_protocol_error(error),
        };
        if is_direct != chosen.is_direct {
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
