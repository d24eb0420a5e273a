//! How long gets take: counted in buckets, eight to each doubling of the time.

use std::array;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Counts of times, in buckets an eighth wide.
#[derive(Clone, Default)]
pub struct Histogram {
    /// Bucket by bucket; empty, or [`BUCKETS`] long.
    counts: Vec<u64>,
}

impl Histogram {
    /// Adds what another has counted.
    pub fn merge(&mut self, other: &Histogram) {
        for (bucket, count) in other.non_empty() {
            self.add(bucket, count);
        }
    }

    /// What this has counted more than an `earlier` state of it.
    pub fn since(&self, earlier: &Histogram) -> Histogram {
        let before = |bucket: usize| earlier.counts.get(bucket).copied().unwrap_or(0);
        let counts = self.counts.iter().enumerate();
        Histogram {
            counts: counts
                .map(|(bucket, count)| count.saturating_sub(before(bucket)))
                .collect(),
        }
    }

    /// Adds `count` to a bucket; does nothing if there is no such bucket.
    pub fn add(&mut self, bucket: usize, count: u64) {
        if self.counts.is_empty() {
            self.counts.resize(BUCKETS, 0);
        }
        if let Some(total) = self.counts.get_mut(bucket) {
            *total += count;
        }
    }

    /// The buckets that counted something.
    pub fn non_empty(&self) -> impl Iterator<Item = (usize, u64)> {
        let counts = self.counts.iter().copied().enumerate();
        counts.filter(|(_, count)| *count > 0)
    }

    /// The time that the fraction `q` of all stayed within, at most an eighth too long; `None` if
    /// nothing was counted.
    pub fn quantile(&self, q: f64) -> Option<Duration> {
        let total: u64 = self.counts.iter().sum();
        let wanted = ((total as f64 * q).ceil() as u64).max(1);
        let mut seen = 0;
        let (bucket, _) = self.non_empty().find(|(_, count)| {
            seen += count;
            seen >= wanted
        })?;
        Some(Duration::from_nanos(longest_in(bucket)))
    }
}

/// A histogram that one thread fills and another reads.
pub struct Recorder {
    counts: Box<[AtomicU64; BUCKETS]>,
}

impl Recorder {
    pub fn new() -> Self {
        Recorder {
            counts: Box::new(array::from_fn(|_| AtomicU64::new(0))),
        }
    }

    pub fn record(&self, time: Duration) {
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.counts[bucket_of(nanos)].fetch_add(1, Ordering::Relaxed);
    }

    /// What was counted so far.
    pub fn snapshot(&self) -> Histogram {
        let counts = self.counts.iter();
        Histogram {
            counts: counts.map(|count| count.load(Ordering::Relaxed)).collect(),
        }
    }
}

/// Below 8 ns a bucket a nanosecond; then the three bits after the first choose among eight.
fn bucket_of(nanos: u64) -> usize {
    if nanos < 8 {
        return nanos as usize;
    }
    let doublings = nanos.ilog2() - 3;
    let eighth = (nanos >> doublings) as usize - 8;
    8 + doublings as usize * 8 + eighth
}

fn longest_in(bucket: usize) -> u64 {
    if bucket < 8 {
        return bucket as u64;
    }
    let (doublings, eighth) = ((bucket - 8) / 8, (bucket - 8) % 8);
    let end = (eighth as u128 + 9) << doublings;
    u64::try_from(end - 1).unwrap_or(u64::MAX)
}

/// As many as there are for 64-bit nanoseconds.
const BUCKETS: usize = 8 + 61 * 8;
