//! Caches that several threads fill: sizes, and the ways in which values come and go.

use std::any::Any;
use std::collections::VecDeque;
use std::time::Duration;

use crate::caches::{Cache, Options, Size};
use crate::common::Rng;

/// A workload of several threads.
#[derive(Clone, Copy)]
pub struct Workload {
    pub name: &'static str,
    pub size: Size,
    /// The mean length of a value, roughly; of `tiny`, the bytes that an entry takes, less 16. It decides how many
    /// keys are inserted.
    bytes: u64,
    way: Way,
}

/// The operations besides insertions of new keys.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Nothing,
    /// Every second operation inserts a key again that was inserted a while ago.
    Replace,
    /// Entries expire after 50 ms.
    Expire,
    /// Every second operation removes a key that was inserted a while ago.
    Remove,
    /// Each thread holds its last 100 values.
    Hold,
}

pub const WORKLOADS: [Workload; 11] = [
    workload("mixed", mixed, 7900, Way::Nothing),
    workload("tiny", |_| 10, 60, Way::Nothing),
    workload("1KiB", |_| 1024, 1024, Way::Nothing),
    workload("64KiB", |_| 65_536, 65_536, Way::Nothing),
    workload("large", large, 264 << 10, Way::Nothing),
    workload("edges", edges, 75_000, Way::Nothing),
    workload("drift", drift, 5500, Way::Nothing),
    workload("replaced", mixed, 7900, Way::Replace),
    workload("expiring", mixed, 7900, Way::Expire),
    workload("removed", mixed, 7900, Way::Remove),
    workload("held", mixed, 7900, Way::Hold),
];

const fn workload(name: &'static str, size: Size, bytes: u64, way: Way) -> Workload {
    Workload {
        name,
        size,
        bytes,
        way,
    }
}

/// 16 bytes to 64 KiB: as many between 16 and 32 bytes as between 32 and 64 KiB.
fn mixed(n: u64) -> usize {
    between(n, 16.0, 65_536.0)
}

/// 16 to 512 KiB.
fn large(n: u64) -> usize {
    let mut rng = Rng(n);
    (16 << 10) + (rng.unit() * f64::from(496 << 10)) as usize
}

/// Lengths that malloc treats in different ways: its thread cache, bins, and mapped blocks.
fn edges(n: u64) -> usize {
    const EDGES: [usize; 8] = [24, 1032, 1040, 4096, 65_536, 131_040, 131_072, 262_144];
    let mut rng = Rng(n);
    EDGES[(rng.unit() * 8.0) as usize] - 16
}

/// Sizes that grow and shrink again, by a factor of 8 with every step.
fn drift(n: u64) -> usize {
    let low = [16.0, 128.0, 1024.0, 8192.0, 1024.0, 128.0][(n / DRIFT_STEP % 6) as usize];
    between(n, low, 8.0 * low)
}

/// The insertions between two steps of [`drift`].
const DRIFT_STEP: u64 = 40_000;

/// Each doubling of the length is as likely as the others.
fn between(n: u64, low: f64, high: f64) -> usize {
    let mut rng = Rng(n);
    (low * (high / low).powf(rng.unit())) as usize
}

impl Workload {
    pub fn options(&self, capacity: u64) -> Options {
        Options {
            capacity,
            size: self.size,
            time_to_live: (self.way == Way::Expire).then_some(Duration::from_millis(50)),
        }
    }

    /// The number of insertions: of entries of eight times the capacity, or as many times as `LARDER_TIMES` says. At
    /// least two rounds of [`drift`].
    pub fn insertions(&self, capacity: u64) -> u64 {
        let times = std::env::var("LARDER_TIMES")
            .ok()
            .and_then(|times| times.parse().ok());
        let wanted = times.unwrap_or(8) * capacity / (self.bytes + 16);
        if self.name == "drift" {
            wanted.max(12 * DRIFT_STEP)
        } else {
            wanted
        }
    }

    /// The keys from `from` to `to`, inserted by this many threads.
    pub fn run(&self, cache: &dyn Cache, from: u64, to: u64, threads: u64) {
        std::thread::scope(|scope| {
            for thread in 0..threads {
                scope.spawn(move || {
                    let mut held: VecDeque<Box<dyn Any + Send>> = VecDeque::new();
                    for n in (from + thread..to).step_by(threads as usize) {
                        let value = cache.put(n);
                        let earlier = n.saturating_sub(500 * threads);
                        match self.way {
                            Way::Nothing | Way::Expire => {}
                            Way::Replace => drop(cache.replace(earlier)),
                            Way::Remove => cache.remove(earlier),
                            Way::Hold => {
                                held.push_back(value);
                                if held.len() > 100 {
                                    held.pop_front();
                                }
                            }
                        }
                    }
                });
            }
        });
    }
}
