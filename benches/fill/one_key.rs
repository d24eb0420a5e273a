//! Eight threads get one missing key with a getter that takes 1 ms: the number of loads, and the delay
//! of the waiting threads.
//!
//! `getter_calls` is the runs of the getter for each key; 1 is right. `followers_p50_us` is the time
//! from the end of the getter to the return of a get that began earlier and waited: the median over all
//! such gets, without those of the thread that ran the getter.

use std::cell::Cell;
use std::sync::Barrier;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::common::Report;
use crate::common::caches::{Make, key};

pub const CASE: &str = "one-key-8";
pub const THREADS: usize = 8;
/// Keys of one round.
pub const KEYS: usize = 200;

const TAKES: Duration = Duration::from_millis(1);

pub struct Measured {
    pub getter_calls: f64,
    pub followers_p50_us: f64,
}

impl Measured {
    pub fn add(&self, report: &mut Report, name: &'static str) {
        report.add(CASE, name, "getter_calls", "a key", self.getter_calls);
        let latency = self.followers_p50_us;
        report.add(CASE, name, "followers_p50_us", "µs", latency);
    }
}

/// The end of the getter for the current key, in nanoseconds since the first call of [`now`].
static ENDED: AtomicU64 = AtomicU64::new(0);
static CALLS: AtomicU64 = AtomicU64::new(0);

thread_local! {
    static HAS_LED: Cell<bool> = const { Cell::new(false) };
}

pub fn measure(make: Make) -> Measured {
    let cache = make(10 * KEYS, load);
    let keys: Vec<String> = (0..KEYS as u64).map(|n| key('s', n)).collect();
    let barrier = Barrier::new(THREADS);
    CALLS.store(0, Ordering::Relaxed);
    let mut late: Vec<u64> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|_| {
                scope.spawn(|| {
                    let mut late = Vec::new();
                    for key in &keys {
                        barrier.wait();
                        HAS_LED.set(false);
                        let asked = now();
                        cache.get(key);
                        let had = now();
                        // The getter stored this before this thread got the value.
                        let ended = ENDED.load(Ordering::Relaxed);
                        if !HAS_LED.get() && asked < ended {
                            late.push(had.saturating_sub(ended));
                        }
                        barrier.wait();
                    }
                    late
                })
            })
            .collect();
        let joined = threads.into_iter().map(|thread| thread.join());
        joined.flat_map(|late| late.expect("no panic")).collect()
    });
    late.sort_unstable();
    Measured {
        getter_calls: CALLS.load(Ordering::Relaxed) as f64 / KEYS as f64,
        followers_p50_us: late.get(late.len() / 2).map_or(f64::NAN, |&ns| ns as f64) / 1e3,
    }
}

fn load() {
    std::thread::sleep(TAKES);
    CALLS.fetch_add(1, Ordering::Relaxed);
    HAS_LED.set(true);
    ENDED.store(now(), Ordering::Relaxed);
}

/// Nanoseconds since the first call.
fn now() -> u64 {
    static BEGAN: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    BEGAN.get_or_init(Instant::now).elapsed().as_nanos() as u64
}
