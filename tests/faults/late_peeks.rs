//! Counts the peeks at previous owners that were late or failed, because the machine was busy. Their keys
//! are loaded again.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

use larder::http::{HttpPoolBuilder, Transport, TransportRequest, TransportResponse};
use larder::{Context, Result};

use crate::common::millis;

/// The peeks that were late or failed. After some in a row, previous owners are not asked any more.
#[derive(Default)]
pub struct Late {
    pub count: AtomicU64,
    in_a_row: AtomicUsize,
    most_in_a_row: AtomicUsize,
}

impl Late {
    pub fn reset(&self) {
        self.count.store(0, Ordering::SeqCst);
        self.in_a_row.store(0, Ordering::SeqCst);
        self.most_in_a_row.store(0, Ordering::SeqCst);
    }

    pub fn note(&self, is_late: bool) {
        if !is_late {
            return self.in_a_row.store(0, Ordering::SeqCst);
        }
        self.count.fetch_add(1, Ordering::SeqCst);
        let in_a_row = self.in_a_row.fetch_add(1, Ordering::SeqCst) + 1;
        self.most_in_a_row.fetch_max(in_a_row, Ordering::SeqCst);
    }

    pub fn most_in_a_row(&self) -> usize {
        self.most_in_a_row.load(Ordering::SeqCst)
    }
}

/// Sees the requests of a node to one peer.
pub struct LatePeeks {
    pub late: Arc<Late>,
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
        if is_peek {
            self.late
                .note(result.is_err() || start.elapsed() > millis(7));
        }
        result
    }
}
