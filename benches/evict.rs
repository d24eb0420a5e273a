//! Churn: gets in a full cache. Many of them miss, fill, and so evict another entry.
//!
//! One operation in ten is for a new key, so it misses. The others draw from 500,000 keys by Zipf 0.8
//! and fill if they miss. The cache has room for 50,000 entries, a tenth of those keys, by its own
//! weights (see `common::caches`). The warm-up round fills it, and all rounds use the same cache.
//!
//! `mops` is all operations of all threads. `hit_pct` is the percentage of operations that hit, and
//! `entries` the number of entries at the end. A cache that keeps more entries, or better ones, has
//! fewer fills to do.

mod common;

use std::sync::Barrier;
use std::time::Instant;

use common::caches::{ALL, Cache, VALUE, count_load, key, loads};
use common::{Report, Rng, Zipf, chosen, shuffled, turns, wanted};

const KEYS: usize = 500_000;
const ROOM: usize = KEYS / 10;
/// Operations of all threads in one round.
const OPERATIONS: usize = 500_000;

fn main() {
    let keys: Vec<String> = (0..KEYS as u64).map(|n| key('k', n)).collect();
    let mut rng = Rng(42);
    let order = shuffled(KEYS, &mut rng);
    let zipf = Zipf::new(KEYS, 0.8);
    let mut new_keys = (0_u64..).map(|n| key('n', n));
    let mut report = Report::new("evict");
    for (case, threads) in [("evict-1", 1), ("evict-2", 2)] {
        if !wanted(case) {
            continue;
        }
        let caches: Vec<_> = ALL
            .iter()
            .map(|(name, make)| (*name, make(ROOM, count_load)))
            .collect();
        for round in turns(caches.len()) {
            let operations =
                operations(&keys, &mut new_keys, || order[zipf.draw(&mut rng)] as usize);
            for n in round.order {
                let (name, cache) = &caches[n];
                if !chosen(name) {
                    continue;
                }
                let (seconds, missed) = run(&**cache, &operations, threads);
                if !round.counted {
                    continue;
                }
                let all = operations.len() as f64;
                let mut add = |metric, unit, value| report.add(case, name, metric, unit, value);
                add("mops", "million operations/s", all / seconds / 1e6);
                add("hit_pct", "%", 100.0 * (1.0 - missed as f64 / all));
                add("entries", "entries", cache.entries() as f64);
            }
        }
    }
    report.finish();
}

/// The keys of a round in their order: every tenth one new, the others drawn. They are copies, so that
/// a thread finds its next key in the processor's caches, as if it had just made or received it.
fn operations(
    keys: &[String],
    mut new: impl Iterator<Item = String>,
    mut draw: impl FnMut() -> usize,
) -> Vec<String> {
    (0..OPERATIONS)
        .map(|n| match n % 10 {
            0 => new.next().expect("new keys do not end"),
            _ => keys[draw()].clone(),
        })
        .collect()
}

/// The seconds that the threads need for all operations, and how many of these missed.
fn run(cache: &dyn Cache, operations: &[String], threads: usize) -> (f64, u64) {
    let (start, end) = (Barrier::new(threads + 1), Barrier::new(threads + 1));
    std::thread::scope(|scope| {
        let threads: Vec<_> = operations
            .chunks(operations.len() / threads)
            .map(|operations| {
                let (start, end) = (&start, &end);
                scope.spawn(move || {
                    start.wait();
                    let before = loads();
                    let bytes: usize = operations.iter().map(|key| cache.get(key)).sum();
                    let missed = loads() - before;
                    end.wait();
                    assert_eq!(bytes, operations.len() * VALUE.len());
                    missed
                })
            })
            .collect();
        start.wait();
        let began = Instant::now();
        end.wait();
        let seconds = began.elapsed().as_secs_f64();
        let joined = threads.into_iter().map(|thread| thread.join());
        (
            seconds,
            joined.map(|missed| missed.expect("no panic")).sum(),
        )
    })
}
