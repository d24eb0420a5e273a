//! The time that recent exchanges with a peer took, as quantiles.

// std's atomics also under loom: no protocol depends on the counts.
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::slowness::TurnTimes;
use crate::sync::Mutex;

/// Counts exchanges by their time, and forgets them after a few seconds.
///
/// Callers only add to a counter. [`turn`](Self::turn) moves the counts to the weights, which halve
/// every three turns. Of a peer that answers often, only a sample is timed, because a timed exchange reads the
/// clock once more at its end.
pub(crate) struct Latencies {
    counts: [AtomicU32; BUCKETS],
    /// All answers, timed or not.
    answers: AtomicU32,
    /// One answer in so many is timed, and counts for all of them: a power of two.
    interval: AtomicU32,
    recent: Mutex<Recent>,
}

struct Recent {
    /// `counts` at the last turn.
    seen: [u32; BUCKETS],
    /// `answers` at the last turn.
    seen_answers: u32,
    weights: [f32; BUCKETS],
}

impl Default for Latencies {
    fn default() -> Self {
        Latencies {
            counts: std::array::from_fn(|_| AtomicU32::new(0)),
            answers: AtomicU32::new(0),
            interval: AtomicU32::new(1),
            recent: Mutex::new(Recent {
                seen: [0; BUCKETS],
                seen_answers: 0,
                weights: [0.0; BUCKETS],
            }),
        }
    }
}

impl Latencies {
    /// Counts an answer. Returns whether it belongs to the sample, so that its time is to be
    /// [added](Self::add_sample).
    #[inline]
    pub(crate) fn count_answer(&self) -> bool {
        let number = self.answers.fetch_add(1, Ordering::Relaxed);
        number & (self.interval.load(Ordering::Relaxed) - 1) == 0
    }

    /// Adds the time of an answer of the sample.
    pub(crate) fn add_sample(&self, took: Duration) {
        let interval = self.interval.load(Ordering::Relaxed);
        self.counts[bucket_of(took)].fetch_add(interval, Ordering::Relaxed);
    }

    /// Adds the time of an exchange that is not sampled, because it failed.
    pub(crate) fn add(&self, took: Duration) {
        self.counts[bucket_of(took)].fetch_add(1, Ordering::Relaxed);
    }

    /// Ends so many periods of time: what was added since the last turn counts fully, earlier exchanges
    /// less. Returns the times at its end.
    pub(crate) fn turn(&self, periods: u32) -> TurnTimes {
        let fresh = self.end_turn(periods);
        let total: f32 = fresh.iter().sum();
        let is_fresh = total > 0.0;
        let p95 = match is_fresh {
            true => Some(quantile(&fresh, 0.95 * total)),
            false => self.quantiles([0.95]).map(|[p95]| p95),
        };
        TurnTimes { p95, is_fresh }
    }

    /// Returns the counts since the last turn.
    fn end_turn(&self, periods: u32) -> [f32; BUCKETS] {
        let kept = KEPT_A_TURN.powi(periods.min(MOST_TURNS) as i32);
        let mut recent = self.recent.lock();
        let answers = self.answers.load(Ordering::Relaxed);
        let answers_a_turn = answers.wrapping_sub(recent.seen_answers) / periods;
        recent.seen_answers = answers;
        self.interval
            .store(interval_for(answers_a_turn), Ordering::Relaxed);
        let Recent { seen, weights, .. } = &mut *recent;
        let mut fresh = [0.0; BUCKETS];
        let buckets = self.counts.iter().zip(seen).zip(weights);
        for (fresh, ((count, seen), weight)) in fresh.iter_mut().zip(buckets) {
            let now = count.load(Ordering::Relaxed);
            *fresh = now.wrapping_sub(*seen) as f32;
            *weight = *weight * kept + *fresh;
            *seen = now;
        }
        fresh
    }

    /// The times that so many parts of the recent exchanges did not exceed, within a fifth. `None` if
    /// there were fewer than [`FEWEST`].
    pub(crate) fn quantiles<const N: usize>(&self, parts: [f32; N]) -> Option<[Duration; N]> {
        let weights = {
            let recent = self.recent.lock();
            // Exchanges since the last turn count, too.
            let fresh = self.counts.iter().zip(&recent.seen);
            let fresh =
                fresh.map(|(count, seen)| count.load(Ordering::Relaxed).wrapping_sub(*seen) as f32);
            let weights = fresh
                .zip(&recent.weights)
                .map(|(fresh, weight)| fresh + weight);
            weights.collect::<Vec<f32>>()
        };
        let total: f32 = weights.iter().sum();
        (total >= FEWEST).then(|| parts.map(|part| quantile(&weights, part * total)))
    }
}

/// How many answers there are for each one that is timed, if a turn has this many answers: a power of two. At
/// least [`SAMPLES`] of them are timed, or all if there are fewer.
fn interval_for(answers: u32) -> u32 {
    let most = (answers / SAMPLES).clamp(1, LONGEST_INTERVAL);
    1 << most.ilog2()
}

fn quantile(weights: &[f32], limit: f32) -> Duration {
    let mut sum = 0.0;
    let found = weights.iter().position(|weight| {
        sum += weight;
        sum >= limit && *weight > 0.0
    });
    let last = || weights.iter().rposition(|weight| *weight > 0.0);
    upper_end(found.or_else(last).unwrap_or_default())
}

/// The bucket of a time: four to each power of two, from 16 µs to 16 s.
fn bucket_of(took: Duration) -> usize {
    let micros = u32::try_from(took.as_micros()).unwrap_or(u32::MAX);
    let micros = micros.clamp(SHORTEST, LONGEST);
    let power = micros.ilog2();
    let quarter = (micros >> (power - 2)) & 3;
    ((power - SHORTEST.ilog2()) * 4 + quarter) as usize
}

fn upper_end(bucket: usize) -> Duration {
    let (power, quarter) = (bucket as u64 / 4, bucket as u64 % 4);
    Duration::from_micros((u64::from(SHORTEST) << power) / 4 * (5 + quarter))
}

const SHORTEST: u32 = 1 << 4;
const LONGEST: u32 = (1 << 24) - 1;
const BUCKETS: usize = 20 * 4;

/// The weight that an exchange keeps over a turn: after three turns, half.
const KEPT_A_TURN: f32 = 0.8;

/// After this many turns, nothing is left of the weight of an exchange.
const MOST_TURNS: u32 = 200;

/// The fewest answers that are timed in a turn, if there are as many. All are timed below twice this number.
const SAMPLES: u32 = 64;

/// At least one answer in this many is timed. A slow peer gives few answers, and it may take seconds until one
/// is timed.
const LONGEST_INTERVAL: u32 = 4;

/// The fewest recent exchanges of which there are quantiles.
const FEWEST: f32 = 3.0;

#[cfg(all(test, not(larder_loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn millis(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn quantiles_are_those_of_the_recent_exchanges() {
        let latencies = Latencies::default();
        assert_eq!(latencies.quantiles([0.5]), None);
        (1..=100).for_each(|n| latencies.add(millis(n)));
        for _ in 0..2 {
            let [p50, p95, p99] = latencies
                .quantiles([0.5, 0.95, 0.99])
                .expect("100 exchanges");
            for (found, exact) in [(p50, 50), (p95, 95), (p99, 99)] {
                assert!(
                    found >= millis(exact) && found <= millis(exact) * 5 / 4,
                    "{found:?}"
                );
            }
            assert_eq!(latencies.turn(1).p95, Some(p95));
        }
        latencies.add(millis(500));
        let [fresh, none] = [1; 2].map(|periods| latencies.turn(periods));
        assert!(
            fresh.is_fresh && fresh.p95 >= Some(millis(500)),
            "{fresh:?}"
        );
        assert!(!none.is_fresh && none.p95 < fresh.p95, "{none:?}");
    }

    #[test]
    fn earlier_exchanges_are_forgotten() {
        let latencies = Latencies::default();
        (0..1000).for_each(|_| latencies.add(millis(1)));
        for _ in 0..20 {
            latencies.turn(1);
            (0..10).for_each(|_| latencies.add(millis(500)));
        }
        let [p50] = latencies.quantiles([0.5]).expect("enough");
        assert!(p50 >= millis(500));
        latencies.turn(1);
        latencies.turn(40);
        assert_eq!(latencies.quantiles([0.5]), None);
    }

    #[test]
    fn one_answer_in_so_many_is_timed_and_counts_for_all_of_them() {
        let latencies = Latencies::default();
        let timed_of = |answers: u32, took| {
            let timed = (0..answers).filter(|_| latencies.count_answer());
            timed.map(|_| latencies.add_sample(took)).count() as u32
        };
        for (answers, then) in [(127, 127), (128, 64), (511, 127), (100_000, 25_000)] {
            // This turn has no answers, so the next one times all.
            latencies.turn(1);
            assert_eq!(timed_of(answers, millis(1)), answers);
            latencies.turn(1);
            assert_eq!(timed_of(answers, millis(1)), then);
            latencies.turn(1);
        }
        // Of 1,600 answers, 1 in 16 is late.
        timed_of(1_600, millis(1));
        latencies.turn(1);
        let [first, last] = [timed_of(1_500, millis(1)), timed_of(100, millis(500))];
        assert!(first <= 1_500 / 4 + 1 && last >= 100 / 4, "{first} {last}");
        let p95 = latencies.turn(1).p95.expect("answers");
        assert!(p95 >= millis(500), "{p95:?}");
    }

    proptest! {
        #[test]
        fn every_time_is_in_its_bucket(nanos in 0..40_000_000_000_u64) {
            let took = Duration::from_nanos(nanos);
            let bucket = bucket_of(took);
            prop_assert!(bucket < BUCKETS);
            prop_assert!(took < upper_end(bucket) || bucket == BUCKETS - 1);
            prop_assert!(bucket == 0 || took >= upper_end(bucket - 1) );
        }
    }
}
