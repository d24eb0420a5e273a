//! The health of each peer: whether it is asked, and its recent exchanges.
//!
//! - `breaker`: opens while a peer does not answer; a state machine.
//! - `watch`: the peers of a pool together, and the thread that probes them while one is away.
//! - `exchange`: notes how an exchange ends.
//! - `latency`: the time that exchanges take.
//! - `status`: the public report of a peer.

pub(crate) mod breaker;
pub(crate) mod exchange;
pub(crate) mod latency;
pub(crate) mod status;
pub(crate) mod watch;

use std::time::{Duration, Instant, SystemTime};

use breaker::{Breaker, ExchangeEnd};
use latency::Latencies;
use status::{PeerFailure, PeerState};

use crate::error::Error;
use crate::random;
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicBool, AtomicU8, Ordering};

/// The health of one peer, as this process sees it.
///
/// Exchanges with a healthy peer take no lock here. [`Watch`](watch::Watch) owns `standing`, which
/// picks of peers read.
pub(crate) struct PeerHealth {
    breaker: Mutex<Breaker>,
    /// Whether `breaker` has failures that an answer makes it forget.
    has_failures: AtomicBool,
    /// A [`Standing`]. Set under the lock of the watch.
    standing: AtomicU8,
    pub(crate) latencies: Latencies,
    last_failure: Mutex<Option<PeerFailure>>,
}

/// Whether a peer is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    Closed,
    /// Its breaker is open: its keys are loaded by the next peer, which keeps them for a short time.
    Open,
    /// It has been away for so long that its keys belong to the next peer.
    Absent,
}

impl PeerHealth {
    /// `patience` is the exchange time-out.
    pub(crate) fn new(patience: Duration) -> Self {
        PeerHealth {
            breaker: Mutex::new(Breaker::new(patience)),
            has_failures: AtomicBool::new(false),
            standing: AtomicU8::new(Standing::Closed as u8),
            latencies: Latencies::default(),
            last_failure: Mutex::default(),
        }
    }

    pub(crate) fn standing(&self) -> Standing {
        match self.standing.load(Ordering::Relaxed) {
            0 => Standing::Closed,
            1 => Standing::Open,
            _ => Standing::Absent,
        }
    }

    #[cfg(test)]
    fn is_closed(&self) -> bool {
        self.standing() == Standing::Closed
    }

    /// Notes that the peer answered.
    #[inline]
    pub(crate) fn on_answer(&self, began: Instant, now: Instant) {
        if self.has_failures.load(Ordering::Relaxed) {
            let mut breaker = self.breaker.lock();
            breaker.on_result(began, now, ExchangeEnd::Answered, 0.0);
            self.has_failures
                .store(breaker.has_failures(), Ordering::Relaxed);
        }
    }

    /// Notes an exchange without an answer. Returns whether the breaker opened because of it.
    #[must_use]
    pub(crate) fn on_failure(
        &self,
        began: Instant,
        now: Instant,
        end: ExchangeEnd,
        error: &Error,
    ) -> bool {
        self.note_error(error);
        let mut breaker = self.breaker.lock();
        let opened = breaker.on_result(began, now, end, random::unit());
        self.has_failures
            .store(breaker.has_failures(), Ordering::Relaxed);
        opened
    }

    fn note_error(&self, error: &Error) {
        *self.last_failure.lock() = Some(PeerFailure {
            error: error.clone(),
            at: SystemTime::now(),
        });
    }

    /// The state for a report, and its cause.
    pub(crate) fn state(&self) -> (PeerState, Option<String>) {
        let state = match self.standing() {
            Standing::Closed => return (PeerState::Healthy, None),
            Standing::Open => PeerState::Down,
            Standing::Absent => PeerState::Absent,
        };
        (
            state,
            self.last_failure().map(|failure| failure.error.to_string()),
        )
    }

    pub(crate) fn last_failure(&self) -> Option<PeerFailure> {
        self.last_failure.lock().clone()
    }

    fn begin_probe(&self, now: Instant) -> bool {
        self.breaker.lock().begin_probe(now)
    }

    fn on_probe(&self, now: Instant, result: Result<(), Error>) {
        if let Err(error) = &result {
            self.note_error(error);
        }
        let dice = random::unit();
        self.breaker.lock().on_probe(now, result.is_ok(), dice);
    }
}
