//! Records how one exchange with a peer ends.

use std::error::Error as _;
use std::io;
use std::time::{Duration, Instant};

use super::PeerHealth;
use super::breaker::ExchangeEnd;
use super::watch::Watch;
use crate::error::{Error, ErrorKind};
use crate::sync::Arc;

/// An exchange under way. One of the methods records its end; an exchange that panics is not recorded.
pub(crate) struct ObservedExchange<'p> {
    health: &'p PeerHealth,
    watch: &'p Arc<Watch>,
    began: Instant,
    /// Whether the caller waits only briefly, so that a late answer says nothing about the peer.
    pub(crate) is_peek: bool,
}

impl<'p> ObservedExchange<'p> {
    pub(crate) fn new(health: &'p PeerHealth, watch: &'p Arc<Watch>, began: Instant) -> Self {
        ObservedExchange {
            health,
            watch,
            began,
            is_peek: false,
        }
    }

    /// The peer answered with a value, and loaded it for `load_time`; zero if it was cached.
    #[inline]
    pub(crate) fn answered(self, load_time: Duration) {
        self.health.on_answer(self.began);
        if self.health.latencies.count_answer() {
            self.sampled(load_time);
        }
    }

    #[inline(never)]
    fn sampled(self, load_time: Duration) {
        let now = Instant::now();
        let took = now.saturating_duration_since(self.began);
        self.health
            .latencies
            .add_sample(took.saturating_sub(load_time));
        self.watch.tick(now);
    }

    /// The peer answered, but the time does not show how fast it is: it sent an error of its getter, or that it
    /// is overloaded, or values of which it loaded some.
    pub(crate) fn answered_untimed(self) {
        self.health.on_answer(self.began);
    }

    /// The exchange failed with `error`, which is returned.
    pub(crate) fn failed(self, error: Error) -> Error {
        match end_of(&error) {
            _ if self.is_peek && error.kind() == ErrorKind::DeadlineExceeded => {}
            Some(ExchangeEnd::Answered) => self.answered_untimed(),
            Some(end) => return self.ended(end, error),
            None => {}
        }
        error
    }

    /// The answer was not one that a peer gives. Returns `error`.
    pub(crate) fn broken(self, error: Error) -> Error {
        self.ended(ExchangeEnd::Broken, error)
    }

    fn ended(self, end: ExchangeEnd, error: Error) -> Error {
        let now = Instant::now();
        // A time-out of this process counts as an answer that took that long. A caller's deadline does not: the
        // peer may be running a slow getter for the caller.
        if end == ExchangeEnd::TimedOut && error.kind() == ErrorKind::Peer {
            let took = now.saturating_duration_since(self.began);
            self.health.latencies.add(took);
        }
        let is_open = self.health.on_failure(self.began, now, end, &error);
        // Wake the watch even if another thread opened the breaker: that thread may not have done so yet, and
        // this caller would pick the same peer again.
        if is_open {
            self.watch.wake();
        }
        error
    }
}

/// How an exchange that failed with `error` ended. `None` if the error shows neither an answer nor a failure
/// of the peer.
fn end_of(error: &Error) -> Option<ExchangeEnd> {
    match error.kind() {
        ErrorKind::DeadlineExceeded => return Some(ExchangeEnd::TimedOut),
        ErrorKind::Cancelled => return None,
        ErrorKind::Peer => {}
        // A transport of the program may read the answer itself.
        _ => return Some(ExchangeEnd::Answered),
    }
    let cause = error.source().and_then(|cause| cause.downcast_ref());
    match cause.map(io::Error::kind) {
        Some(io::ErrorKind::TimedOut) => Some(ExchangeEnd::TimedOut),
        Some(
            io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::HostUnreachable
            | io::ErrorKind::NetworkUnreachable,
        ) => Some(ExchangeEnd::Unreachable),
        // The request could not be sent, or its value is too long for the options of this process.
        Some(io::ErrorKind::InvalidInput) => None,
        _ => Some(ExchangeEnd::Broken),
    }
}

#[cfg(all(test, not(larder_loom)))]
mod tests {
    use super::*;
    use crate::http::client::health::watch::{Probe, WatchedPeer};
    use crate::http::client::health::{ProbeAnswer, ProbeOf};
    use std::sync::Weak;

    #[test]
    fn time_out_of_this_process_counts_as_a_late_answer_and_that_of_a_caller_does_not() {
        let second = Duration::from_secs(1);
        let health = PeerHealth::new(Duration::from_secs(60));
        let watch = Watch::new(second, second);
        let end_after_a_second = |kind| {
            let began = Instant::now() - second;
            let timed_out = io::Error::from(io::ErrorKind::TimedOut);
            let error = Error::with_source(kind, "no answer", timed_out);
            ObservedExchange::new(&health, &watch, began).failed(error);
        };
        (0..5).for_each(|_| end_after_a_second(ErrorKind::DeadlineExceeded));
        assert_eq!(health.latencies.quantiles([0.5]), None);
        (0..5).for_each(|_| end_after_a_second(ErrorKind::Peer));
        let [p50] = health.latencies.quantiles([0.5]).expect("enough");
        assert!(p50 >= second, "{p50:?}");
    }

    #[test]
    fn failure_passes_the_peer_over_although_another_thread_opened_its_breaker() {
        let second = Duration::from_secs(1);
        let health = Arc::new(PeerHealth::new(second));
        let watch = Watch::new(second, second);
        let peer = Weak::<NoProbe>::new();
        let watched = WatchedPeer {
            health: health.clone(),
            peer,
        };
        drop(watch.set_peers(vec![watched]));
        let began = Instant::now();
        let refused = io::Error::from(io::ErrorKind::ConnectionRefused);
        let error = Error::with_source(ErrorKind::Peer, "refused", refused);
        // The other thread is before its call of `wake`.
        assert!(health.on_failure(began, began, ExchangeEnd::Unreachable, &error));
        assert!(!watch.is_any_away());
        ObservedExchange::new(&health, &watch, began).failed(error);
        assert!(watch.is_any_away());
        watch.close();
    }

    struct NoProbe;

    impl Probe for NoProbe {
        fn probe(&self, _: ProbeOf) -> Result<ProbeAnswer, Error> {
            Err(ErrorKind::Peer.into())
        }

        fn name(&self) -> String {
            String::new()
        }
    }

    #[test]
    fn end_of_an_exchange_follows_from_its_error() {
        let io = |kind: io::ErrorKind| {
            end_of(&Error::with_source(
                ErrorKind::Peer,
                "peer",
                io::Error::from(kind),
            ))
        };
        assert_eq!(
            io(io::ErrorKind::ConnectionRefused),
            Some(ExchangeEnd::Unreachable)
        );
        assert_eq!(
            io(io::ErrorKind::HostUnreachable),
            Some(ExchangeEnd::Unreachable)
        );
        assert_eq!(io(io::ErrorKind::UnexpectedEof), Some(ExchangeEnd::Broken));
        assert_eq!(
            io(io::ErrorKind::ConnectionAborted),
            Some(ExchangeEnd::Unreachable)
        );
        assert_eq!(io(io::ErrorKind::TimedOut), Some(ExchangeEnd::TimedOut));
        assert_eq!(io(io::ErrorKind::InvalidData), Some(ExchangeEnd::Broken));
        assert_eq!(io(io::ErrorKind::InvalidInput), None);
        for (kind, end) in [
            (ErrorKind::Peer, Some(ExchangeEnd::Broken)),
            (ErrorKind::DeadlineExceeded, Some(ExchangeEnd::TimedOut)),
            (ErrorKind::Cancelled, None),
            (ErrorKind::Getter, Some(ExchangeEnd::Answered)),
            (ErrorKind::Overloaded, Some(ExchangeEnd::Answered)),
            (ErrorKind::NotFound, Some(ExchangeEnd::Answered)),
            (ErrorKind::UnknownGroup, Some(ExchangeEnd::Answered)),
        ] {
            assert_eq!(end_of(&Error::new(kind, "no io error")), end, "{kind:?}");
        }
    }
}
