//! Decides whether a peer is slow: a state machine without clock or socket.
//!
//! ```text
//!       most turns of 3 s are over the limit
//!   usual ─────────────────────────────────────────▶ slow
//!     ▲                                               │
//!     └──────── its probes are under it for 5 s ──────┘
//! ```
//!
//! The limit is five times the time of a usual peer, and [`slow_after`] at least. So no peer is slow where
//! all of them are. Callers ask the next peer in place of a slow one. They do not ask both: a slow peer
//! of five has a fifth of the exchanges, and as many more would be a load that delays others. Two probes
//! a second, by a thread of their own, show when the peer is as fast as before.
//!
//! [`slow_after`]: crate::http::HttpPoolBuilder::slow_after

use std::time::{Duration, Instant};

use crate::clock::saturating_nanos;

/// Whether one peer is slow.
#[derive(Debug)]
pub(crate) struct Slowness {
    streak: Option<SlowStreak>,
    slow: Option<SlowPeriod>,
    /// How long probes of the present period, or of the last one, have to be under the limit.
    needed: Duration,
    /// When the last period ended.
    recovered: Option<Instant>,
}

/// Successive turns of which more were over the limit than under it. A peer that loses packets has some turns
/// under it, too.
#[derive(Clone, Copy, Debug)]
struct SlowStreak {
    first: Instant,
    last: Instant,
    /// The turns that were over the limit, less the others.
    excess: u32,
}

#[derive(Debug)]
struct SlowPeriod {
    since: Instant,
    /// The time that answers took when the period began.
    time: Duration,
    /// The limit at that time.
    limit: Duration,
    /// When the first of the latest successive probes under the limit was sent.
    good_since: Option<Instant>,
    probe_at: Instant,
    is_probing: bool,
}

/// The answers of a peer at the end of a turn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct TurnTimes {
    /// The time that 95 of 100 answers of the turn did not exceed. If there was none, that of the recent
    /// ones; `None` if these were too few.
    pub(crate) p95: Option<Duration>,
    /// Whether there was an answer in the turn.
    pub(crate) is_fresh: bool,
}

impl Slowness {
    pub(crate) fn new() -> Self {
        Slowness {
            streak: None,
            slow: None,
            needed: Duration::ZERO,
            recovered: None,
        }
    }

    /// Notes the answers of a turn, and returns whether the peer became slow with them. `limit` is `None`
    /// if too few peers answered for a comparison.
    pub(crate) fn on_turn(
        &mut self,
        now: Instant,
        times: TurnTimes,
        limit: Option<Duration>,
    ) -> bool {
        if self.slow.is_some() {
            return false;
        }
        // A turn without an answer shows nothing.
        if !times.is_fresh {
            return false;
        }
        let in_time = |streak: &SlowStreak| now.saturating_duration_since(streak.last) <= GAP;
        let streak = self.streak.filter(in_time);
        let Some((time, limit)) = times.p95.zip(limit).filter(|(p95, limit)| p95 > limit) else {
            let streak = streak.filter(|streak| streak.excess > 1);
            self.streak = streak.map(|streak| SlowStreak {
                last: now,
                excess: streak.excess - 1,
                ..streak
            });
            return false;
        };
        let first = streak.map_or(now, |streak| streak.first);
        self.streak = Some(SlowStreak {
            first,
            last: now,
            excess: streak.map_or(0, |streak| streak.excess) + 1,
        });
        let is_slow = now.saturating_duration_since(first) >= PERIOD;
        if is_slow {
            self.begin(now, time, limit);
        }
        is_slow
    }

    /// Notes a turn in which callers did not ask the peer, because it is down: the streak pauses. So a peer
    /// that loses packets, and answers a probe in between, is found slow.
    pub(crate) fn skip_turn(&mut self, now: Instant) {
        if let Some(streak) = &mut self.streak {
            streak.first += now.saturating_duration_since(streak.last);
            streak.last = now;
        }
    }

    fn begin(&mut self, now: Instant, time: Duration, limit: Duration) {
        let again = self
            .recovered
            .is_some_and(|at| now.saturating_duration_since(at) < RELAPSE);
        self.needed = match again {
            true => (self.needed * 2).min(LONGEST_RECOVERY),
            false => RECOVERY,
        };
        self.streak = None;
        self.slow = Some(SlowPeriod {
            since: now,
            time,
            limit,
            good_since: None,
            probe_at: now + PROBE_EVERY,
            is_probing: false,
        });
    }

    /// Whether a probe is due. If so, it counts as under way until [`on_probe`](Self::on_probe).
    pub(crate) fn begin_probe(&mut self, now: Instant) -> bool {
        match &mut self.slow {
            Some(slow) if !slow.is_probing && now >= slow.probe_at => {
                slow.is_probing = true;
                true
            }
            _ => false,
        }
    }

    /// Notes the end of a probe that was sent at `began`: how long it took, or `None` without an answer.
    /// Returns whether the peer is not slow any more.
    pub(crate) fn on_probe(
        &mut self,
        began: Instant,
        now: Instant,
        took: Option<Duration>,
        limit: Duration,
    ) -> bool {
        let Some(slow) = &mut self.slow else {
            return false;
        };
        slow.is_probing = false;
        slow.probe_at = now + PROBE_EVERY;
        if took.is_none_or(|took| took > limit) {
            slow.good_since = None;
            return false;
        }
        let good_since = *slow.good_since.get_or_insert(began);
        let is_over = now.saturating_duration_since(good_since) >= self.needed;
        if is_over {
            self.slow = None;
            self.recovered = Some(now);
        }
        is_over
    }

    /// The time at which the peer became slow; `None` if it is not slow.
    pub(crate) fn slow_since(&self) -> Option<Instant> {
        Some(self.slow.as_ref()?.since)
    }

    /// When the next probe is due; `None` if the peer is not slow, or a probe is under way.
    pub(crate) fn probe_at(&self) -> Option<Instant> {
        let slow = self.slow.as_ref()?;
        (!slow.is_probing).then_some(slow.probe_at)
    }

    /// Why the peer is slow, for people; `None` if it is not.
    pub(crate) fn cause(&self) -> Option<String> {
        let SlowPeriod { time, limit, .. } = self.slow.as_ref()?;
        Some(format!(
            "its answers took {time:?} (95 of 100); more than {limit:?} is slow beside the other peers"
        ))
    }
}

/// The time over which a peer is slow; `None` if fewer than two of `peers` answered enough. It is
/// [`FACTOR`] times the lower median of their times.
pub(crate) fn slow_limit(peers: &[TurnTimes], at_least: Duration) -> Option<Duration> {
    // Sort numbers instead of `Duration`s: a program contains that sort anyway.
    let nanos = |times: &TurnTimes| times.p95.map(saturating_nanos);
    let mut times: Vec<u64> = peers.iter().filter_map(nanos).collect();
    if times.len() < 2 {
        return None;
    }
    times.sort_unstable();
    let median = Duration::from_nanos(times[(times.len() - 1) / 2]);
    Some(median.saturating_mul(FACTOR).max(at_least))
}

/// Whether so many of `nodes` nodes are slow that none of them is passed over: the cause is common to all,
/// or the others could not take over their keys.
pub(crate) fn are_many_slow(slow: usize, nodes: usize) -> bool {
    3 * slow > nodes
}

const FACTOR: u32 = 5;

/// How long answers are over the limit until the peer is slow. Zero under loom, which does not wait for
/// time to pass.
const PERIOD: Duration = Duration::from_secs(if cfg!(larder_loom) { 0 } else { 3 });

/// Turns over the limit with more time between them are not of one streak.
const GAP: Duration = Duration::from_secs(2);

const PROBE_EVERY: Duration = Duration::from_millis(if cfg!(larder_loom) { 0 } else { 500 });

/// How long probes are under the limit until the peer is as before.
const RECOVERY: Duration = Duration::from_secs(if cfg!(larder_loom) { 0 } else { 5 });

/// A peer that is slow again so soon after its recovery needs twice as long for the next one.
const RELAPSE: Duration = Duration::from_secs(30);
const LONGEST_RECOVERY: Duration = Duration::from_secs(300);

#[cfg(all(test, not(larder_loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TURN: Duration = Duration::from_millis(500);

    fn millis(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    fn all(time: Duration) -> TurnTimes {
        TurnTimes {
            p95: Some(time),
            is_fresh: true,
        }
    }

    /// The state of a peer, and a clock that the tests move.
    struct TimedPeer {
        slowness: Slowness,
        now: Instant,
    }

    impl TimedPeer {
        fn new() -> Self {
            TimedPeer {
                slowness: Slowness::new(),
                now: Instant::now(),
            }
        }

        fn turn(&mut self, times: TurnTimes) -> bool {
            self.now += TURN;
            self.slowness.on_turn(self.now, times, Some(millis(20)))
        }

        /// Turns until the peer is slow. Returns the time.
        fn become_slow(&mut self) -> Duration {
            let begin = self.now;
            while !self.turn(all(millis(500))) {
                assert!(self.now - begin < Duration::from_secs(10));
            }
            self.now - begin
        }

        /// Sends the next probe.
        fn probe(&mut self, took: Option<Duration>) -> bool {
            let at = self.slowness.probe_at().expect("it is slow");
            assert!(!self.slowness.begin_probe(at - millis(1)));
            assert!(self.slowness.begin_probe(at));
            assert!(!self.slowness.begin_probe(at), "one at a time");
            self.now = at + took.unwrap_or(millis(1000));
            self.slowness.on_probe(at, self.now, took, millis(20))
        }

        /// Sends fast probes until the peer is not slow. Returns the time.
        fn recover(&mut self) -> Duration {
            let begin = self.now;
            while !self.probe(Some(millis(1))) {}
            self.now - begin
        }
    }

    #[test]
    fn peer_is_slow_after_three_seconds_and_recovers_after_five() {
        let mut peer = TimedPeer::new();
        let took = peer.become_slow();
        assert!(
            (PERIOD..PERIOD + 2 * TURN).contains(&took) && took < Duration::from_secs(5),
            "{took:?}"
        );
        assert!(peer.slowness.cause().expect("a cause").contains("500ms"));
        for late in [Some(millis(500)), None] {
            assert!(!peer.probe(Some(millis(1))));
            assert!(!peer.probe(late), "a late probe ends the streak");
        }
        let took = peer.recover();
        assert!((RECOVERY..RECOVERY + 2 * TURN).contains(&took), "{took:?}");
        assert_eq!(peer.slowness.slow_since(), None);
    }

    #[test]
    fn peer_that_relapses_needs_longer_to_recover() {
        let mut peer = TimedPeer::new();
        peer.become_slow();
        let first = peer.recover();
        peer.become_slow();
        let second = peer.recover();
        assert!(second >= 2 * RECOVERY && second > first, "{second:?}");
        peer.now += RELAPSE;
        peer.become_slow();
        assert!(peer.recover() < 2 * RECOVERY, "that was long ago");
    }

    #[test]
    fn one_late_answer_makes_no_peer_slow() {
        let mut peer = TimedPeer::new();
        assert!(!peer.turn(all(millis(500))));
        for _ in 0..20 {
            let none = TurnTimes {
                is_fresh: false,
                ..all(millis(500))
            };
            assert!(!peer.turn(none), "it is still in the quantile");
        }
        for _ in 0..5 {
            assert!(!peer.turn(all(millis(500))));
            assert!(!peer.turn(all(millis(1))), "a fast turn ends the streak");
        }
        // One in a while: the turns between them have no answers.
        for _ in 0..20 {
            assert!(!peer.turn(all(millis(500))));
            (0..5).for_each(|_| assert!(!peer.turn(TurnTimes::default())));
        }
    }

    #[test]
    fn peer_is_slow_if_most_turns_are_over_the_limit() {
        let mut peer = TimedPeer::new();
        peer.turn(all(millis(500)));
        let time_of = |turn| millis(if turn % 3 == 1 { 1 } else { 500 });
        let slow_at = (0..20).find(|&turn| peer.turn(all(time_of(turn))));
        assert_eq!(slow_at, Some(5), "3 s after the first turn");
    }

    #[test]
    fn outage_pauses_a_streak_of_slow_turns() {
        let mut peer = TimedPeer::new();
        peer.turn(all(millis(500)));
        assert!(!peer.turn(all(millis(500))), "0.5 s");
        peer.now += Duration::from_secs(20);
        peer.slowness.skip_turn(peer.now);
        let took = peer.become_slow();
        assert_eq!(took, PERIOD - TURN);
        peer.recover();
        peer.slowness.skip_turn(peer.now);
        assert!(!peer.turn(all(millis(500))), "no streak to go on with");
    }

    #[test]
    fn limit_is_that_of_a_usual_peer_and_at_least_the_given_one() {
        let limit = |times: &[u64]| {
            let times: Vec<_> = times.iter().map(|&n| all(millis(n))).collect();
            slow_limit(&times, millis(20))
        };
        assert_eq!(limit(&[]), None);
        assert_eq!(limit(&[500]), None, "a peer is not compared with itself");
        assert_eq!(limit(&[500, 1]), Some(millis(20)));
        assert_eq!(limit(&[1, 1, 1, 500]), Some(millis(20)));
        assert_eq!(limit(&[201, 200, 202, 700]), Some(millis(1005)));
        assert!(!are_many_slow(1, 3) && are_many_slow(2, 5) && are_many_slow(1, 2));
    }

    proptest! {
        /// The streak is compared with a model that keeps the last turns as a list.
        #[test]
        fn peer_is_slow_exactly_after_turns_in_a_row(
            turns in prop::collection::vec((prop::option::of(0_u64..60), 1_u64..6), 1..60),
        ) {
            let mut peer = TimedPeer::new();
            // The time of each turn since the streak began, and whether it was over the limit.
            let mut streak: Vec<(Instant, bool)> = Vec::new();
            for (time, halves) in turns {
                peer.now += TURN * (halves as u32 - 1);
                let times = time.map_or(TurnTimes::default(), |time| all(millis(time)));
                let became = peer.turn(times);
                if let Some(time) = time {
                    if streak.last().is_some_and(|&(last, _)| peer.now - last > GAP) {
                        streak.clear();
                    }
                    streak.push((peer.now, time > 20));
                    let over = streak.iter().filter(|(_, is_over)| *is_over).count();
                    if over <= streak.len() - over {
                        streak.clear();
                    }
                }
                let is_due = time.is_some_and(|time| time > 20) && peer.now - streak[0].0 >= PERIOD;
                prop_assert_eq!(became, is_due);
                if became {
                    prop_assert!(peer.slowness.probe_at().is_some());
                    return Ok(());
                }
                prop_assert_eq!(peer.slowness.slow_since(), None);
            }
        }
    }
}
