//! The response to a batched request, and whether batches pay off for a peer.

use std::time::Duration;

use crate::byteview::ByteView;
use crate::error::{Error, Result};
use crate::heap::SharedBytes;
use crate::peers::PeerResponse;
use crate::sync::Arc;
use crate::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use crate::wire::ManyValue;

/// The result of a batched request, shared by its leader and its waiters.
pub(crate) type BatchResult = Arc<Result<BatchValues, BatchError>>;

/// Why a batched request brought no values.
#[derive(Clone, Debug)]
pub(crate) enum BatchError {
    /// The request failed, or the peer does not support batches: ask for each key by itself.
    Fallback,
    /// The peer reported this error for the whole request.
    Peer(Error),
}

/// The values in the response to a batched request.
pub(crate) struct BatchValues {
    pub(crate) body: SharedBytes,
    pub(crate) slots: Vec<Option<ManyValue>>,
}

impl BatchValues {
    /// The value at `place`; `None` if the peer has not cached it.
    ///
    /// It is a copy, because a view would keep the other values in memory.
    pub(crate) fn get(&self, place: usize) -> Option<PeerResponse> {
        let slot = self.slots.get(place)?.as_ref()?;
        let value = ByteView::from(self.body.get(slot.range.clone())?);
        Some(PeerResponse {
            ttl: slot.ttl_nanos.map(Duration::from_nanos),
            ..PeerResponse::new(value)
        })
    }

    /// The mean length of the values; `None` if there is none.
    pub(crate) fn mean_len(&self) -> Option<usize> {
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

    pub(crate) fn disable(&self) {
        self.enabled.store(false, Ordering::Relaxed);
    }

    /// Whether waiting for other threads saves time. It does not if the values are long, because
    /// then most of the time is spent on sending them.
    pub(crate) fn pays_off(&self) -> bool {
        self.is_enabled() && self.mean_len.load(Ordering::Relaxed) <= LONG_VALUES
    }

    /// Notes the length of a value, or the mean of several.
    pub(crate) fn note_len(&self, len: usize) {
        let mean = self.mean_len.load(Ordering::Relaxed);
        let moved = mean - mean / MEAN_OF + len / MEAN_OF;
        // Written only if it moves: all callers read it.
        if moved != mean {
            self.mean_len.store(moved, Ordering::Relaxed);
        }
    }
}

/// If the mean length of values is above this, threads do not wait for each other.
const LONG_VALUES: usize = 16 << 10;

/// The mean is that of about this many of the latest values.
const MEAN_OF: usize = 16;
