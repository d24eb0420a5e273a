//! The transport of a build without ureq: the direct one, for larder's own servers alone.

use std::io;

use crate::context::Context;
use crate::error::{Error, ErrorKind, Result};
use crate::http::client::transport::direct::DirectTransport;
use crate::http::client::transport::target::Target;
use crate::http::client::transport::{
    IdleConnections, Transport, TransportRequest, TransportResponse,
};
use crate::sync::Arc;

/// Sends requests by the direct transport, and refuses the responses of other servers.
pub(crate) struct LarderOnlyTransport {
    target: Arc<Target>,
    direct: DirectTransport,
}

impl LarderOnlyTransport {
    pub(crate) fn new(target: Arc<Target>) -> Self {
        LarderOnlyTransport {
            direct: DirectTransport::new(target.clone()),
            target,
        }
    }
}

impl IdleConnections for LarderOnlyTransport {
    fn close_idle(&self) {
        self.direct.close_idle();
    }
}

impl Transport for LarderOnlyTransport {
    fn round_trip(
        &self,
        ctx: &Context,
        request: TransportRequest<'_>,
    ) -> Result<TransportResponse> {
        let is_batch = request.method() == "POST";
        let response = self.direct.round_trip(ctx, request)?;
        // After an error, the keys of a batch are requested one by one. Then the peer is refused.
        if response.is_from_larder() || (is_batch && response.status() != 200) {
            return Ok(response);
        }
        let unsupported = io::Error::new(io::ErrorKind::Unsupported, FOREIGN);
        Err(Error::with_source(
            ErrorKind::Peer,
            format_args!("peer {} (status {})", self.target.url, response.status()),
            unsupported,
        ))
    }
}

const FOREIGN: &str = "the response is not directly from larder's server; \
    other servers, and proxies, need larder's feature `ureq`";
