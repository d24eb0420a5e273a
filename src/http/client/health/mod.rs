//! The health of each peer: whether it is asked, and its recent exchanges.
//!
//! - `breaker`: opens while a peer does not answer; a state machine.
//! - `slowness`: whether a peer is slow, compared with the others; a state machine.
//! - `watch`: the peers of a pool together, and the thread that probes them while one is away or slow.
//! - `exchange`: notes how an exchange ends.
//! - `latency`: the time that exchanges take.
//! - `status`: the public report of a peer.

pub(crate) mod breaker;
pub(crate) mod exchange;
pub(crate) mod latency;
pub(crate) mod slowness;
pub(crate) mod status;
pub(crate) mod watch;

use std::time::{Duration, Instant, SystemTime};

use breaker::{Breaker, ExchangeEnd, ProbeEnd};
use latency::Latencies;
use slowness::Slowness;
use status::{PeerFailure, PeerState};

use crate::error::Error;
use crate::panics::caught;
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
    /// Its lock is taken after that of the watch.
    slowness: Mutex<Slowness>,
    last_failure: Mutex<Option<PeerFailure>>,
    /// Whether by its last answer the peer has another list of peers.
    has_other_list: AtomicBool,
}

/// Whether a peer is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd)]
pub(crate) enum Standing {
    Closed,
    /// It answers much later than others: its keys are loaded by the next peer, which keeps them for a
    /// short time.
    Slow,
    /// Its breaker is open: its keys are loaded by the next peer, which keeps them for a short time.
    Open,
    /// It has been away or slow for so long that its keys belong to the next peer.
    Absent,
}

/// The answer to a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ProbeAnswer {
    /// The peer can be asked.
    Present,
    /// It is about to end, and is only asked for what it has cached.
    Leaving,
}

/// The state of a peer because of which it is probed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ProbeOf {
    Down,
    Slow,
}

impl PeerHealth {
    pub(crate) fn new(exchange_timeout: Duration) -> Self {
        PeerHealth {
            breaker: Mutex::new(Breaker::new(exchange_timeout)),
            has_failures: AtomicBool::new(false),
            standing: AtomicU8::new(Standing::Closed as u8),
            latencies: Latencies::default(),
            slowness: Mutex::new(Slowness::new()),
            last_failure: Mutex::default(),
            has_other_list: AtomicBool::new(false),
        }
    }

    pub(crate) fn standing(&self) -> Standing {
        match self.standing.load(Ordering::Relaxed) {
            0 => Standing::Closed,
            1 => Standing::Slow,
            2 => Standing::Open,
            _ => Standing::Absent,
        }
    }

    #[cfg(test)]
    fn is_closed(&self) -> bool {
        self.standing() == Standing::Closed
    }

    /// Notes that the peer answered.
    #[inline]
    pub(crate) fn on_answer(&self, began: Instant) {
        if self.has_failures.load(Ordering::Relaxed) {
            let mut breaker = self.breaker.lock();
            breaker.on_result(began, Instant::now(), ExchangeEnd::Answered, 0.0);
            self.has_failures
                .store(breaker.has_failures(), Ordering::Relaxed);
        }
    }

    /// Notes an exchange without an answer. Returns whether the breaker is open. If so, the watch has to be
    /// woken up.
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
        let is_open = breaker.open_since().is_some();
        drop(breaker);
        if opened {
            // A panic of the program's logger must not keep the watch from its start.
            caught(|| log::warn!("a peer is not asked for now: {error}"));
        }
        is_open
    }

    fn note_error(&self, error: &Error) {
        let failure = PeerFailure {
            error: error.clone(),
            at: SystemTime::now(),
        };
        let replaced = self.last_failure.lock().replace(failure);
        // An error may hold user code, so it is dropped without the lock.
        drop(replaced);
    }

    /// The state for a report, and its cause.
    pub(crate) fn state(&self) -> (PeerState, Option<String>) {
        let (is_open, is_planned) = {
            let breaker = self.breaker.lock();
            (breaker.open_since().is_some(), breaker.is_planned())
        };
        if is_planned {
            return (
                PeerState::Absent,
                Some("it announced that it leaves".into()),
            );
        }
        let slow = self.slowness.lock().cause().filter(|_| !is_open);
        if slow.is_some() {
            return (PeerState::Slow, slow);
        }
        let state = match self.standing() {
            Standing::Closed | Standing::Slow => {
                let other_list = self.has_other_list.load(Ordering::Relaxed);
                let cause = other_list.then(|| "has another list of peers".to_owned());
                return (PeerState::Healthy, cause);
            }
            Standing::Open => PeerState::Down,
            Standing::Absent => PeerState::Absent,
        };
        (
            state,
            self.last_failure().map(|failure| failure.error.to_string()),
        )
    }

    /// Notes whether the peer has another list of peers.
    #[inline]
    pub(crate) fn note_list(&self, is_other: bool) {
        if self.has_other_list.load(Ordering::Relaxed) != is_other {
            self.has_other_list.store(is_other, Ordering::Relaxed);
        }
    }

    pub(crate) fn last_failure(&self) -> Option<PeerFailure> {
        self.last_failure.lock().clone()
    }

    /// The probe that is due, which counts as under way from now on.
    fn begin_probe(&self, now: Instant) -> Option<ProbeOf> {
        let mut breaker = self.breaker.lock();
        if breaker.open_since().is_some() {
            return breaker.begin_probe(now).then_some(ProbeOf::Down);
        }
        drop(breaker);
        let is_due = self.slowness.lock().begin_probe(now);
        is_due.then_some(ProbeOf::Slow)
    }

    /// Makes the next probe due. The watch has to be woken up.
    pub(crate) fn probe_soon(&self) {
        self.breaker.lock().probe_soon(Instant::now());
    }

    fn on_probe(&self, now: Instant, result: Result<ProbeAnswer, Error>) {
        let end = match result {
            Ok(ProbeAnswer::Present) => ProbeEnd::Answered,
            Ok(ProbeAnswer::Leaving) => ProbeEnd::IsLeaving,
            Err(error) => {
                self.note_error(&error);
                ProbeEnd::Failed
            }
        };
        let jitter = random::unit();
        self.breaker.lock().on_probe(now, end, jitter);
    }

    /// Notes that the peer leaves the cluster for now. The watch has to be woken up.
    pub(crate) fn leave(&self) {
        self.breaker.lock().leave(Instant::now(), random::unit());
    }

    /// Whether the peer may be asked for a value that it has cached: it answers, or it is leaving.
    pub(crate) fn may_hand_over(&self) -> bool {
        match self.standing() {
            Standing::Closed | Standing::Slow => true,
            Standing::Open | Standing::Absent => self.breaker.lock().is_leaving(),
        }
    }
}
