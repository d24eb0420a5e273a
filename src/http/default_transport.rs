//! The transport that a pool uses by default.

use std::fmt;

use crate::context::Context;
use crate::error::Result;
use crate::http::direct::DirectTransport;
use crate::http::peer_connection::Home;
use crate::http::transport::{Transport, TransportRequest, TransportResponse};
use crate::http::ureq_transport::UreqTransport;
use crate::sync::Arc;

/// ureq for what servers of any kind answer; our own client for shared exchanges, which only our own
/// server knows. Both use the same connections.
///
/// Where threads share exchanges they are many, and the processor is what they lack.
pub(crate) struct DefaultTransport {
    any: UreqTransport,
    shared: DirectTransport,
}

impl DefaultTransport {
    pub(crate) fn new(home: Arc<Home>) -> Self {
        DefaultTransport {
            any: UreqTransport::new(home.clone()),
            shared: DirectTransport::new(home),
        }
    }
}

impl Transport for DefaultTransport {
    fn round_trip(
        &self,
        ctx: &Context,
        request: TransportRequest<'_>,
    ) -> Result<TransportResponse> {
        match request.is_shared() {
            true => self.shared.round_trip(ctx, request),
            false => self.any.round_trip(ctx, request),
        }
    }
}

impl fmt::Debug for DefaultTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.any.fmt(f)
    }
}
