//! Asks a peer for a value that this process has cached already: an equal one is not sent again.

use std::time::Instant;

use super::peer::HttpPeer;
use super::transport::TransportResponse;
use crate::byteview::ByteView;
use crate::context::Context;
use crate::error::Result;
use crate::pb::GetRequest;
use crate::peers::PeerResponse;
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
        let (group, key) = (&*request.group, &*request.key);
        let now = Instant::now();
        let deadline = self.deadline(ctx, now)?;
        self.get_single(ctx, group, key, now, deadline, Some(old))
    }

    /// The old value with the times of a 304. `None` if the response is not one that a server of larder
    /// sends to such a request.
    pub(super) fn renewed(
        &self,
        ctx: &Context,
        response: TransportResponse,
        hash: u64,
        old: &ByteView,
    ) -> Result<Option<PeerResponse>> {
        let header = response.header(wire::UNCHANGED_HEADER).unwrap_or_default();
        let renewed = wire::decode_unchanged(header, |decoded| {
            let is_of_key = decoded.key_hash == Some(hash);
            is_of_key.then(|| Self::response_of(&decoded.fields, true, old.clone()))
        });
        self.drain(ctx, response)?;
        match renewed {
            Ok(Some(renewed)) => Ok(Some(renewed)),
            Ok(None) => Err(self.other_key()),
            Err(_) => Ok(None),
        }
    }
}

/// The shortest value for which a request is conditional, in bytes.
pub(super) const SHORTEST_KNOWN: usize = 512;
