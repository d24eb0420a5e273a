//! Asks a peer for a value that this process has cached already: an equal one is not sent again.

use std::time::{Duration, Instant};

use crate::byteview::ByteView;
use crate::context::Context;
use crate::error::Result;
use crate::http::client::health::exchange::ObservedExchange;
use crate::http::client::peer::HttpPeer;
use crate::http::client::peer::messages::response_of;
use crate::http::client::transport::TransportResponse;
use crate::pb::GetRequest;
use crate::peers::{PeerResponse, ProtoGetter};
use crate::wire;

impl HttpPeer {
    /// See [`ProtoGetter::revalidate`](crate::ProtoGetter::revalidate). A value that is hardly longer than
    /// the headers is asked for as any other, perhaps in a batch.
    pub(super) fn get_newer(
        &self,
        ctx: &Context,
        request: &GetRequest<'_>,
        old: &ByteView,
    ) -> Result<PeerResponse> {
        if old.len() < SHORTEST_KNOWN {
            return self.get(ctx, request);
        }
        let (group, key) = (&*request.group, &*request.key);
        let now = Instant::now();
        let deadline = self.deadline(ctx, now)?;
        self.get_single(ctx, group, key, now, deadline, Some(old))
    }

    /// Ends an exchange with a 304: the old value with new times. `None` if no server of larder sent it; other
    /// servers have tags of their own.
    pub(super) fn renewed(
        &self,
        ctx: &Context,
        exchange: ObservedExchange<'_>,
        response: TransportResponse,
        hash: u64,
        old: &ByteView,
    ) -> Result<Option<PeerResponse>> {
        let header = response.header(wire::UNCHANGED_HEADER).unwrap_or_default();
        let renewed = wire::decode_unchanged(header, |decoded| {
            let is_of_key = decoded.key_hash == Some(hash);
            is_of_key.then(|| response_of(&decoded.fields, true, old.clone()))
        });
        if let Err(error) = self.drain(ctx, response) {
            return Err(exchange.failed(error));
        }
        if let Ok(None) = renewed {
            return Err(exchange.failed(self.other_key()));
        }
        let load_time = match &renewed {
            Ok(Some(renewed)) => renewed.load_time,
            _ => Duration::ZERO,
        };
        exchange.answered(load_time);
        self.policy.note_len(old.len());
        Ok(renewed.unwrap_or(None))
    }
}

/// The shortest value for which a request is conditional, in bytes.
const SHORTEST_KNOWN: usize = 512;
