//! The response to a batched request, and whether batches pay off for a peer.

use std::time::{Duration, Instant};

use crate::byteview::ByteView;
use crate::clock::saturating_nanos;
use crate::error::{Error, Result};
use crate::heap::SharedBytes;
use crate::http::client::peer::messages::response_of;
use crate::peers::PeerResponse;
use crate::sync::Arc;
use crate::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use crate::wire::{self, ManyValue};

/// The result of a batched request, shared by its leader and its waiters.
pub(crate) type BatchResult = Arc<Result<BatchValues, BatchError>>;

/// The values that a batched request asks for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum BatchOf {
    /// The values that it has cached, for callers that then ask for the others.
    Cached,
    /// The values that it has cached, for a load of keys that the peer may have owned before. The load does not
    /// wait for a late answer.
    Peeks,
    /// All values. The peer loads those that it has not cached.
    Loads,
}

/// Why a batched request brought no values.
#[derive(Clone, Debug)]
pub(crate) enum BatchError {
    /// The peer answers, but not to this batch: ask for each key by itself.
    Fallback,
    /// The request failed. After a time-out, the keys are not asked for one by one, because each of
    /// them would wait as long.
    Failed { error: Error, timed_out: bool },
    /// The peer reported this error for the whole request.
    Peer(Error),
}

/// The values in the response to a batched request.
pub(crate) struct BatchValues {
    pub(crate) body: SharedBytes,
    pub(crate) slots: Vec<Option<Result<ManyValue>>>,
    /// The values that the request named, each at the place of its key.
    pub(crate) olds: Vec<Option<ByteView>>,
}

impl BatchValues {
    /// The value at `place`; `None` if the peer has not cached it.
    pub(crate) fn get(&self, place: usize) -> Option<PeerResponse> {
        self.answer(place)?.ok()
    }

    /// The value or the error at `place`; `None` if the peer sent neither.
    ///
    /// The value is a copy, because a view would keep the other values in memory.
    pub(crate) fn answer(&self, place: usize) -> Option<Result<PeerResponse>> {
        let slot = match self.slots.get(place)?.as_ref()? {
            Ok(slot) => slot,
            Err(error) => return Some(Err(error.clone())),
        };
        let value = match slot.is_unchanged {
            true => self.olds.get(place)?.clone()?,
            false => ByteView::from(self.body.get(slot.range.clone())?),
        };
        Some(Ok(response_of(&slot.fields, true, value)))
    }

    /// The mean length of the values that were sent; `None` if there is none.
    pub(crate) fn mean_len(&self) -> Option<usize> {
        let is_sent = |value: &&ManyValue| !value.is_unchanged;
        let values = || self.slots.iter().flatten().flatten().filter(is_sent);
        let sum: usize = values().map(|value| value.range.len()).sum();
        sum.checked_div(values().count())
    }
}

/// The hashes of the values that a request for several keys names.
pub(crate) fn known_hashes(
    group: &str,
    keys: &[&str],
    olds: &[Option<ByteView>],
) -> Vec<Option<u64>> {
    let hash = |(key, old): (&&str, &Option<ByteView>)| {
        let old = old.as_ref().filter(|old| old.len() >= SHORTEST_KNOWN)?;
        Some(wire::value_hash(wire::key_hash(group, key), old))
    };
    keys.iter().zip(olds).map(hash).collect()
}

/// The shortest value whose hash a request names, in bytes. The hash takes eight.
const SHORTEST_KNOWN: usize = 64;

/// Whether the keys of one peer are asked for in batches, judged by its responses.
pub(crate) struct BatchPolicy {
    /// Whether batches are turned on.
    enabled: bool,
    origin: Instant,
    /// Until when no batch is sent, in nanoseconds since `origin`: the peer did not support one. 0 if
    /// batches are sent.
    paused_until: AtomicU64,
    /// Whether a batch failed although it was sent because of [`resume`](Self::resume). Then only time
    /// ends the pause.
    is_doubtful: AtomicBool,
    /// The mean length of the latest values. Concurrent updates can be lost.
    mean_len: AtomicUsize,
}

impl BatchPolicy {
    pub(crate) fn new(enabled: bool) -> Self {
        BatchPolicy {
            enabled,
            origin: Instant::now(),
            paused_until: AtomicU64::new(0),
            is_doubtful: AtomicBool::new(false),
            mean_len: AtomicUsize::new(0),
        }
    }

    /// Whether batches are sent. Reads the clock only during a pause.
    pub(crate) fn is_enabled(&self) -> bool {
        let until = self.paused_until.load(Ordering::Relaxed);
        self.enabled && (until == 0 || self.is_over(until, Instant::now()))
    }

    fn is_over(&self, until: u64, now: Instant) -> bool {
        let is_over = self.nanos(now) >= until;
        if is_over {
            // Fails if another thread ended the pause, or began the next one.
            let paused = &self.paused_until;
            let _ = paused.compare_exchange(until, 0, Ordering::Relaxed, Ordering::Relaxed);
        }
        is_over
    }

    /// Sends no batch for [`PAUSE`]: a response showed that the peer, or a proxy before it, does not
    /// support them.
    pub(crate) fn pause(&self) {
        let until = self.nanos(Instant::now() + PAUSE);
        self.paused_until.store(until, Ordering::Relaxed);
    }

    /// Ends a pause, because a response came from larder's own server, which supports batches. After
    /// the next failure, such responses have no effect until a batch succeeds. Otherwise every second
    /// request to a proxy that passes only single requests would be a batch in vain.
    #[inline]
    pub(crate) fn resume(&self) {
        if self.paused_until.load(Ordering::Relaxed) != 0
            && !self.is_doubtful.swap(true, Ordering::Relaxed)
        {
            self.paused_until.store(0, Ordering::Relaxed);
        }
    }

    /// Notes that a batch succeeded, and the mean length of its values if it had some.
    pub(crate) fn note_success(&self, mean_len: Option<usize>) {
        if let Some(len) = mean_len {
            self.note_len(len);
        }
        if self.is_doubtful.load(Ordering::Relaxed) {
            self.is_doubtful.store(false, Ordering::Relaxed);
        }
    }

    /// Forgets all failures, because the list of peers was set again.
    pub(crate) fn reset(&self) {
        self.is_doubtful.store(false, Ordering::Relaxed);
        self.paused_until.store(0, Ordering::Relaxed);
    }

    fn nanos(&self, at: Instant) -> u64 {
        saturating_nanos(at.saturating_duration_since(self.origin))
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

/// How long no batch is sent to a peer that did not support one.
const PAUSE: Duration = Duration::from_secs(20);

/// The mean is that of about this many of the latest values.
const MEAN_OF: usize = 16;

#[cfg(all(test, not(larder_loom)))]
mod tests {
    use super::*;

    #[test]
    fn pause_ends_after_its_time() {
        let policy = BatchPolicy::new(true);
        policy.pause();
        let until = policy.paused_until.load(Ordering::Relaxed);
        assert!(!policy.is_enabled());
        assert!(!policy.is_over(until, Instant::now()));
        assert!(PAUSE <= Duration::from_secs(30));
        assert!(policy.is_over(until, Instant::now() + PAUSE));
        assert!(policy.is_enabled());
    }

    #[test]
    fn answer_of_larder_ends_one_pause_until_a_batch_succeeds() {
        let policy = BatchPolicy::new(true);
        for _ in 0..2 {
            policy.pause();
            policy.resume();
            assert!(policy.is_enabled());
            policy.pause();
            policy.resume();
            assert!(!policy.is_enabled(), "it failed again");
            policy.reset();
            assert!(policy.is_enabled());
            policy.pause();
            policy.resume();
            policy.note_success(None);
        }
    }

    #[test]
    fn batches_that_are_turned_off_stay_off() {
        let policy = BatchPolicy::new(false);
        policy.resume();
        policy.reset();
        assert!(!policy.is_enabled() && !policy.pays_off());
    }
}
