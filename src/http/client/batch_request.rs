//! The batched request: several keys of one group in one exchange with a peer.

use std::time::{Duration, Instant};

use ureq::http::HeaderValue;
use ureq::http::header::CONTENT_TYPE;

use crate::byteview::ByteView;
use crate::context::Context;
use crate::error::{Error, ErrorKind, Result};
use crate::http::client::peer::HttpPeer;
use crate::http::client::transport::TransportRequest;
use crate::peers::PeerResponse;
use crate::shared_bytes::SharedBytes;
use crate::sync::Arc;
use crate::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use crate::wire::{self, ManyValue};

/// The result of a batched request, shared by its leader and its waiters.
pub(crate) type BatchResult = Arc<Result<BatchValues, BatchError>>;

/// Why a batched request brought no values.
#[derive(Clone, Debug)]
pub(crate) enum BatchError {
    /// The request failed, or the peer does not support batches: ask for each key by itself.
    Fallback,
    /// The peer's answer for all of the keys.
    Peer(Error),
}

/// The values in the response to a batched request.
pub(crate) struct BatchValues {
    body: SharedBytes,
    slots: Vec<Option<ManyValue>>,
}

impl BatchValues {
    /// The value at `place`, whose key is `key`; `None` if the peer has not cached it.
    ///
    /// It is a copy, because a view would keep the other values in memory. The copy is one
    /// allocation with its key, as the store keeps it.
    pub(crate) fn get(&self, place: usize, key: &str) -> Option<PeerResponse> {
        let slot = self.slots.get(place)?.as_ref()?;
        let value = ByteView::keyed(key, self.body.get(slot.range.clone())?);
        Some(PeerResponse {
            ttl: slot.ttl_nanos.map(Duration::from_nanos),
            ..PeerResponse::new(value)
        })
    }

    fn mean_len(&self) -> Option<usize> {
        let values = || self.slots.iter().flatten();
        let sum: usize = values().map(|value| value.range.len()).sum();
        sum.checked_div(values().count())
    }
}

/// Whether the keys of one peer are asked for in batches, judged by its responses.
pub(crate) struct BatchPolicy {
    /// False from the start if batches are turned off, and for good once a response shows that the
    /// peer does not support them.
    enabled: AtomicBool,
    /// The mean length of the latest values. Concurrent updates can be lost.
    mean_len: AtomicUsize,
}

impl BatchPolicy {
    pub(crate) fn new(enabled: bool) -> Self {
        BatchPolicy {
            enabled: AtomicBool::new(enabled),
            mean_len: AtomicUsize::new(0),
        }
    }

    pub(crate) fn is_enabled(&self) -> bool {
        self.enabled.load(Ordering::Relaxed)
    }

    fn disable(&self) {
        self.enabled.store(false, Ordering::Relaxed);
    }

    /// Whether waiting for other threads saves time. Long values take longer to send than to ask for.
    pub(crate) fn pays_off(&self) -> bool {
        self.is_enabled() && self.mean_len.load(Ordering::Relaxed) <= LONG_VALUES
    }

    /// Notes the length of a value, or the mean of several.
    pub(crate) fn note_len(&self, len: usize) {
        let mean = self.mean_len.load(Ordering::Relaxed);
        let moved = mean - mean / MEAN_OF + len / MEAN_OF;
        self.mean_len.store(moved, Ordering::Relaxed);
    }
}

impl HttpPeer {
    /// Sends one batched request and reads its response.
    pub(crate) fn send_batch(
        &self,
        ctx: &Context,
        group: &str,
        keys: &[&str],
        deadline: Instant,
    ) -> Result<BatchValues, BatchError> {
        let failed = |error: Error| {
            log::debug!("{error}");
            BatchError::Fallback
        };
        let _permit = self.permit(ctx, deadline).map_err(failed)?;
        let body = wire::many_request(keys, self.config.max_batch_bytes).map_err(failed)?;
        let path = wire::group_path(&self.base, group);
        let mut request = TransportRequest::batch(path, &body, deadline);
        request.set_parsed(CONTENT_TYPE, HeaderValue::from_static(wire::CONTENT_TYPE));
        let response = self.transport.round_trip(ctx, request).map_err(failed)?;
        let status = response.status();
        if status != 200 {
            let is_larder = response.header(wire::ERROR_HEADER).is_some();
            let error = self.error_of(response);
            if is_larder && error.kind() == ErrorKind::UnknownGroup {
                return Err(BatchError::Peer(error));
            }
            // Other statuses pass: too busy, too many, too slow.
            if !is_larder && matches!(status, 400 | 404 | 405 | 411 | 415 | 501) {
                self.policy.disable();
            }
            return Err(failed(error));
        }
        let max = self.config.max_batch_body();
        let body = self.read_message(ctx, response, max).map_err(failed)?;
        let slots = wire::decode_many_response(&body, keys.len()).map_err(|error| {
            // It answers 200 to anything, so it is not a larder server.
            self.policy.disable();
            failed(error)
        })?;
        let values = BatchValues { body, slots };
        if let Some(mean) = values.mean_len() {
            self.policy.note_len(mean);
        }
        Ok(values)
    }
}

/// Where the mean length of values is above this, threads do not wait for each other.
const LONG_VALUES: usize = 16 << 10;

/// About how many of the latest values the mean is of.
const MEAN_OF: usize = 16;
