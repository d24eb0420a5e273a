//! Counts the peeks at previous owners that were late or failed, because the machine was busy. Their keys
//! are loaded again.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use larder::http::{HttpPoolBuilder, Transport, TransportRequest, TransportResponse};
use larder::{Context, Result};

use crate::common::millis;

/// Sees the requests of a node to one peer.
pub struct LatePeeks {
    pub count: Arc<AtomicU64>,
    pub inner: Arc<dyn Transport>,
}

/// Keeps concurrent gets from being sent together, so that only peeks are sent by POST.
pub fn only_peeks_are_posts(pool: HttpPoolBuilder) -> HttpPoolBuilder {
    pool.max_batch_keys(2)
}

impl Transport for LatePeeks {
    fn round_trip(
        &self,
        ctx: &Context,
        request: TransportRequest<'_>,
    ) -> Result<TransportResponse> {
        let (is_peek, start) = (request.method() == "POST", Instant::now());
        let result = self.inner.round_trip(ctx, request);
        if is_peek && (result.is_err() || start.elapsed() > millis(7)) {
            self.count.fetch_add(1, Ordering::SeqCst);
        }
        result
    }
}
