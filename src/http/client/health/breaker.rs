//! Decides whether a peer is asked: a state machine without clock or socket.
//!
//! ```text
//!            unreachable, or three failures in a row
//!   closed ──────────────────────────────────────────▶ open ──┐ the probe fails:
//!     ▲                                                 │  ▲  │ the window doubles, up to 30 s
//!     └──── a probe is answered; five after time-outs ──┘  └──┘
//! ```
//!
//! While a breaker is open, callers ask another peer. One probe is sent in each window, by a thread of
//! its own. A peer that fails again within 30 s of its recovery begins with a window twice as long as
//! the last time, up to 5 min.
//!
//! A peer that loses packets answers some of the probes. So a peer that timed out has to answer five in a row.

use std::time::{Duration, Instant};

/// The state of one peer, as its exchanges show it.
#[derive(Debug)]
pub(crate) struct Breaker {
    /// How long a peer has to be silent before time-outs count: the exchange time-out. A caller with
    /// less time leaves earlier, which is no failure of the peer.
    exchange_timeout: Duration,
    /// The failures since the last answer, and when the first of them began.
    failures: Option<(u32, Instant)>,
    outage: Option<Outage>,
    /// The first window of the present outage, or of the last one.
    first_window: Duration,
    /// When the last outage ended.
    recovered: Option<Instant>,
}

#[derive(Debug)]
struct Outage {
    since: Instant,
    /// The time between two probes, without the jitter.
    window: Duration,
    probe_at: Instant,
    is_probing: bool,
    /// How many probes in a row the peer has to answer to end the outage.
    needed: u32,
    /// How many probes in a row it has answered so far.
    answered: u32,
    /// `None` if the peer did not announce the outage.
    leaving: Option<Leaving>,
}

/// The state of a peer that announced its outage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leaving {
    /// The peer still answers, and can still send its cached values.
    Answers,
    /// The peer no longer answers.
    Ended,
}

/// How a probe ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ProbeEnd {
    Answered,
    /// The peer answered that it is leaving.
    IsLeaving,
    Failed,
}

/// How an exchange with a peer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ExchangeEnd {
    /// The peer answered with a value or an error of its getter, or that it is overloaded or still loading.
    Answered,
    /// The peer is unreachable, refused the connection, or ended it before the first byte of an answer.
    Unreachable,
    /// There was no answer in time.
    TimedOut,
    /// The answer was cut short, or was not one that a peer gives.
    Broken,
}

impl Breaker {
    pub(crate) fn new(exchange_timeout: Duration) -> Self {
        Breaker {
            exchange_timeout,
            failures: None,
            outage: None,
            first_window: Duration::ZERO,
            recovered: None,
        }
    }

    /// Notes an exchange of a caller, and returns whether the breaker opened because of it. `jitter` is a
    /// random number in 0..1 that shortens the window.
    ///
    /// An open breaker ignores the exchanges that were under way when it opened, even if they were answered:
    /// an answer that arrived before the peer died can be noted late.
    pub(crate) fn on_result(
        &mut self,
        began: Instant,
        now: Instant,
        end: ExchangeEnd,
        jitter: f64,
    ) -> bool {
        if self.outage.is_some() {
            return false;
        }
        if end == ExchangeEnd::Answered {
            self.failures = None;
            return false;
        }
        let (before, first) = self.failures.unwrap_or((0, began));
        let (count, first) = (before + 1, first.min(began));
        self.failures = Some((count, first));
        let opens = match end {
            ExchangeEnd::Unreachable => true,
            ExchangeEnd::TimedOut => {
                count >= FAILURES && now.saturating_duration_since(first) >= self.exchange_timeout
            }
            _ => count >= FAILURES,
        };
        if opens {
            let needed = match end {
                ExchangeEnd::TimedOut => ANSWERS,
                _ => 1,
            };
            self.open(now, needed, jitter);
        }
        opens
    }

    fn open(&mut self, now: Instant, needed: u32, jitter: f64) {
        let again = self
            .recovered
            .is_some_and(|at| now.saturating_duration_since(at) < RELAPSE);
        self.first_window = match again {
            true => (self.first_window * 2).min(LONGEST_RELAPSE_WINDOW),
            false => SHORTEST_WINDOW,
        };
        self.failures = None;
        self.outage = Some(Outage {
            since: now,
            window: self.first_window,
            probe_at: now + with_jitter(self.first_window, jitter),
            is_probing: false,
            needed,
            answered: 0,
            leaving: None,
        });
    }

    /// Notes that the peer leaves the cluster for now.
    pub(crate) fn leave(&mut self, now: Instant, jitter: f64) {
        if self.outage.is_none() {
            self.open(now, 1, jitter);
        }
        if let Some(outage) = &mut self.outage {
            outage.leaving = Some(Leaving::Answers);
        }
    }

    /// Whether a probe is due. If so, it counts as under way until [`on_probe`](Self::on_probe).
    pub(crate) fn begin_probe(&mut self, now: Instant) -> bool {
        match &mut self.outage {
            Some(outage) if !outage.is_probing && now >= outage.probe_at => {
                outage.is_probing = true;
                true
            }
            _ => false,
        }
    }

    /// Makes the next probe due, because the peer seems to be back.
    pub(crate) fn probe_soon(&mut self, now: Instant) {
        if let Some(outage) = &mut self.outage {
            outage.probe_at = outage.probe_at.min(now);
        }
    }

    /// Notes the end of a probe. Enough answers in a row close the breaker, unless the peer is leaving.
    pub(crate) fn on_probe(&mut self, now: Instant, end: ProbeEnd, jitter: f64) {
        let Some(outage) = &mut self.outage else {
            return;
        };
        outage.is_probing = false;
        match end {
            ProbeEnd::Answered if outage.answered + 1 < outage.needed => {
                outage.answered += 1;
                outage.probe_at = now + BETWEEN_ANSWERS;
                return;
            }
            ProbeEnd::Answered => {
                // The end of a planned outage is not the recovery of a peer that may fail again.
                self.recovered = outage.leaving.is_none().then_some(now);
                self.outage = None;
                return;
            }
            // The window stays short, so that the restarted process is found soon.
            ProbeEnd::IsLeaving => outage.leaving = Some(Leaving::Answers),
            ProbeEnd::Failed => {
                outage.answered = 0;
                outage.leaving = outage.leaving.map(|_| Leaving::Ended);
                let longest = LONGEST_WINDOW.max(self.first_window);
                outage.window = (outage.window * 2).min(longest);
            }
        }
        outage.probe_at = now + with_jitter(outage.window, jitter);
    }

    pub(crate) fn has_failures(&self) -> bool {
        self.failures.is_some()
    }

    /// Whether the peer announced the outage.
    pub(crate) fn is_planned(&self) -> bool {
        self.outage
            .as_ref()
            .is_some_and(|outage| outage.leaving.is_some())
    }

    /// Whether the peer is leaving, and still answers.
    pub(crate) fn is_leaving(&self) -> bool {
        let leaving = self.outage.as_ref().and_then(|outage| outage.leaving);
        leaving == Some(Leaving::Answers)
    }

    /// When the breaker opened; `None` while it is closed.
    pub(crate) fn open_since(&self) -> Option<Instant> {
        Some(self.outage.as_ref()?.since)
    }

    /// When the next probe is due; `None` while the breaker is closed or a probe is under way.
    pub(crate) fn probe_at(&self) -> Option<Instant> {
        let outage = self.outage.as_ref()?;
        (!outage.is_probing).then_some(outage.probe_at)
    }
}

/// Whether this process itself is cut off from the network. The breakers of `open` of the `present` peers are
/// open. `was` is the previous answer: the state begins above a half and ends below a third, so that it does
/// not flap.
pub(crate) fn is_cut_off(was: bool, open: usize, present: usize) -> bool {
    match was {
        true => open > 0 && 3 * open >= present,
        false => 2 * open > present,
    }
}

/// Shortens a window by up to a quarter, so that the probes of several processes spread.
fn with_jitter(window: Duration, jitter: f64) -> Duration {
    window.mul_f64(1.0 - jitter / 4.0)
}

/// The time-outs or broken answers in a row that open a breaker.
const FAILURES: u32 = 3;

/// After time-outs, a peer is asked again once it has answered this many probes in a row. A peer that loses 30
/// of 100 packets in each direction answers about two of five probes, but five in a row in only one window of
/// a hundred. Each time the breaker closes for such a peer, dozens of requests fail until it opens again.
const ANSWERS: u32 = 5;

/// The time from an answered probe to the next one, if one answer is not enough.
const BETWEEN_ANSWERS: Duration = Duration::from_millis(if cfg!(larder_loom) { 0 } else { 500 });

/// Zero under loom, which does not wait for time to pass.
const SHORTEST_WINDOW: Duration = Duration::from_secs(if cfg!(larder_loom) { 0 } else { 1 });
const LONGEST_WINDOW: Duration = Duration::from_secs(30);

/// A peer that fails again so soon after its recovery is probed less often.
const RELAPSE: Duration = Duration::from_secs(30);
const LONGEST_RELAPSE_WINDOW: Duration = Duration::from_secs(300);

#[cfg(all(test, not(larder_loom)))]
mod tests {
    use super::*;
    use ExchangeEnd::*;
    use proptest::prelude::*;

    const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(1);

    fn millis(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    /// A breaker, and a clock that the tests move.
    struct TimedBreaker {
        breaker: Breaker,
        now: Instant,
    }

    impl TimedBreaker {
        fn new() -> Self {
            TimedBreaker {
                breaker: Breaker::new(EXCHANGE_TIMEOUT),
                now: Instant::now(),
            }
        }

        /// Notes an exchange that took `took`.
        fn note(&mut self, took: Duration, end: ExchangeEnd) -> bool {
            let began = self.now;
            self.now += took;
            self.breaker.on_result(began, self.now, end, 0.0)
        }

        /// Waits for the next probe and notes its end. Returns the time waited.
        fn probe(&mut self, is_answered: bool) -> Duration {
            let at = self.breaker.probe_at().expect("it is open");
            assert!(!self.breaker.begin_probe(at - millis(1)));
            assert!(self.breaker.begin_probe(at));
            assert!(!self.breaker.begin_probe(at), "one probe a window");
            assert_eq!(self.breaker.probe_at(), None);
            let end = if is_answered {
                ProbeEnd::Answered
            } else {
                ProbeEnd::Failed
            };
            self.breaker.on_probe(at, end, 0.0);
            at.saturating_duration_since(std::mem::replace(&mut self.now, at))
        }
    }

    #[test]
    fn unreachable_peer_opens_at_once() {
        let mut peer = TimedBreaker::new();
        assert!(!peer.note(millis(1), Answered));
        assert!(peer.note(millis(1), Unreachable));
        assert_eq!(peer.breaker.open_since(), Some(peer.now));
        assert!(!peer.note(millis(1), Unreachable), "it is open already");
    }

    #[test]
    fn peer_that_leaves_is_probed_each_second_until_it_has_gone() {
        let mut peer = TimedBreaker::new();
        peer.breaker.leave(peer.now, 0.0);
        for _ in 0..5 {
            assert!(peer.breaker.is_leaving() && peer.breaker.is_planned());
            let at = peer.breaker.probe_at().expect("it is open");
            assert_eq!(at - peer.now, SHORTEST_WINDOW);
            assert!(peer.breaker.begin_probe(at));
            peer.breaker.on_probe(at, ProbeEnd::IsLeaving, 0.0);
            peer.now = at;
        }
        peer.probe(false);
        assert!(!peer.breaker.is_leaving() && peer.breaker.is_planned());
        peer.probe(true);
        assert_eq!(peer.breaker.open_since(), None);
        // A planned outage is no sign of a peer that fails again and again.
        assert!(peer.note(millis(1), Unreachable));
        assert_eq!(peer.breaker.probe_at(), Some(peer.now + SHORTEST_WINDOW));
        assert!(!peer.breaker.is_planned());
        peer.breaker.leave(peer.now, 0.0);
        assert!(
            peer.breaker.is_planned(),
            "an outage becomes planned if the peer announces it late"
        );
    }

    #[test]
    fn three_failures_in_a_row_open() {
        for end in [TimedOut, Broken] {
            let mut peer = TimedBreaker::new();
            for _ in 0..5 {
                assert!(!peer.note(EXCHANGE_TIMEOUT, end));
                assert!(!peer.note(EXCHANGE_TIMEOUT, end));
                assert!(!peer.note(millis(1), Answered), "{end:?}");
                assert!(!peer.breaker.has_failures());
            }
            assert!(!peer.note(EXCHANGE_TIMEOUT, end));
            assert!(!peer.note(EXCHANGE_TIMEOUT, end));
            assert!(peer.note(EXCHANGE_TIMEOUT, end), "{end:?}");
        }
    }

    #[test]
    fn callers_with_little_time_open_only_after_the_exchange_timeout() {
        let mut peer = TimedBreaker::new();
        let opened = (0..100)
            .take_while(|_| !peer.note(millis(20), TimedOut))
            .count();
        assert_eq!(opened, 49, "50 exchanges of 20 ms take a second");
    }

    #[test]
    fn window_doubles_to_thirty_seconds() {
        let mut peer = TimedBreaker::new();
        peer.note(millis(1), Unreachable);
        let waits: Vec<u64> = (0..8).map(|_| peer.probe(false).as_secs()).collect();
        assert_eq!(waits, [1, 2, 4, 8, 16, 30, 30, 30]);
        peer.probe(true);
        assert_eq!(peer.breaker.open_since(), None);
    }

    #[test]
    fn peer_that_timed_out_answers_five_probes_in_a_row_before_it_is_asked() {
        let mut peer = TimedBreaker::new();
        let opened = [(); 3].map(|()| peer.note(EXCHANGE_TIMEOUT, TimedOut));
        assert_eq!(opened, [false, false, true]);
        let ends = [true, true, true, true, false, true, true, true, true];
        let waits = ends.map(|answers| peer.probe(answers).as_millis());
        assert_eq!(waits, [1000, 500, 500, 500, 500, 2000, 500, 500, 500]);
        assert!(peer.breaker.open_since().is_some());
        assert_eq!(peer.probe(true), BETWEEN_ANSWERS);
        assert_eq!(peer.breaker.open_since(), None);
    }

    #[test]
    fn relapse_doubles_the_first_window_to_five_minutes() {
        let mut peer = TimedBreaker::new();
        let mut waits = Vec::new();
        for _ in 0..11 {
            peer.now += RELAPSE - millis(2);
            peer.note(millis(1), Unreachable);
            waits.push(peer.probe(true).as_secs());
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]);
        peer.now += RELAPSE;
        peer.note(millis(1), Unreachable);
        assert_eq!(peer.probe(true).as_secs(), 1, "30 s without a failure");
    }

    #[test]
    fn peer_that_seems_to_be_back_is_probed_soon() {
        let mut peer = TimedBreaker::new();
        peer.breaker.probe_soon(peer.now);
        assert_eq!(peer.breaker.probe_at(), None, "the breaker is closed");
        peer.note(millis(1), Unreachable);
        peer.probe(false);
        peer.breaker.probe_soon(peer.now);
        assert_eq!(peer.breaker.probe_at(), Some(peer.now));
        assert_eq!(peer.probe(true), Duration::ZERO);
        assert_eq!(peer.breaker.open_since(), None);
    }

    #[test]
    fn late_answer_does_not_close() {
        let mut peer = TimedBreaker::new();
        let began = peer.now;
        peer.note(millis(1), Unreachable);
        let late = peer.now + millis(1);
        peer.breaker.on_result(began, late, Answered, 0.0);
        assert!(peer.breaker.open_since().is_some());
    }

    #[test]
    fn cut_off_begins_over_a_half_and_ends_below_a_third() {
        for (was, open, present, expected) in [
            (false, 1, 1, true),
            (false, 1, 2, false),
            (false, 2, 2, true),
            (false, 2, 4, false),
            (false, 3, 4, true),
            (true, 2, 4, true),
            (true, 2, 6, true),
            (true, 1, 4, false),
            (true, 1, 3, true),
            (true, 0, 3, false),
            (true, 0, 0, false),
            (false, 0, 0, false),
        ] {
            let cut_off = is_cut_off(was, open, present);
            assert_eq!(cut_off, expected, "{was} {open}/{present}");
        }
    }

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Exchange(u64, ExchangeEnd),
        /// Waits this many milliseconds. The flag is whether a probe that is due then is answered.
        Wait(u64, bool),
    }

    fn step() -> impl Strategy<Value = Step> {
        let end = prop_oneof![
            Just(Answered),
            Just(Unreachable),
            Just(TimedOut),
            Just(Broken)
        ];
        prop_oneof![
            (0..1500_u64, end).prop_map(|(took, end)| Step::Exchange(took, end)),
            (0..40_000_u64, any::<bool>()).prop_map(|(ms, answered)| Step::Wait(ms, answered)),
        ]
    }

    proptest! {
        /// The breaker follows the rules of the module's documentation, after any history.
        #[test]
        fn breaker_follows_its_rules(
            steps in prop::collection::vec(step(), 1..200),
            jitter in 0.0..1.0_f64,
        ) {
            let mut breaker = Breaker::new(EXCHANGE_TIMEOUT);
            let mut now = Instant::now();
            // The failures in a row while it was closed, as (begin, end).
            let mut row: Vec<(Instant, ExchangeEnd)> = Vec::new();
            let mut last_probe: Option<Instant> = None;
            // The number of answered probes in a row that close it, and how many there are so far.
            let (mut needed, mut answers) = (0, 0);
            for step in steps {
                let was_open = breaker.open_since().is_some();
                match step {
                    Step::Exchange(took, end) => {
                        let began = now;
                        now += millis(took);
                        let opened = breaker.on_result(began, now, end, jitter);
                        if was_open {
                            prop_assert!(!opened);
                            continue;
                        }
                        match end {
                            Answered => row.clear(),
                            _ => row.push((began, end)),
                        }
                        let silent = row.first().map(|(began, _)| now - *began);
                        let expected = match end {
                            Answered => false,
                            Unreachable => true,
                            TimedOut => row.len() >= 3 && silent >= Some(EXCHANGE_TIMEOUT),
                            Broken => row.len() >= 3,
                        };
                        prop_assert_eq!(opened, expected);
                        prop_assert_eq!(breaker.open_since().is_some(), opened);
                        if opened {
                            row.clear();
                            last_probe = Some(now);
                            (needed, answers) = (if end == TimedOut { 5 } else { 1 }, 0);
                        }
                    }
                    Step::Wait(ms, answered) => {
                        now += millis(ms);
                        let due = breaker.probe_at().is_some_and(|at| at <= now);
                        prop_assert_eq!(breaker.begin_probe(now), due);
                        if due {
                            let since = now - last_probe.expect("it opened");
                            let least = if answers > 0 { millis(500) } else { millis(750) };
                            prop_assert!(since >= least, "{since:?} between probes");
                            let end = if answered { ProbeEnd::Answered } else { ProbeEnd::Failed };
                            breaker.on_probe(now, end, jitter);
                            answers = if answered { answers + 1 } else { 0 };
                            prop_assert_eq!(breaker.open_since().is_none(), answers == needed);
                            last_probe = Some(now);
                        }
                        let next = breaker.probe_at().map(|at| at - now);
                        prop_assert!(next <= Some(LONGEST_RELAPSE_WINDOW));
                    }
                }
            }
        }
    }
}
