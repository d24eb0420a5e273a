//! A miss that fills: the cost of one miss with a getter that costs nothing, and of many at once for
//! one key with a getter that takes 1 ms.
//!
//! `ns_per_fill` is the time over the number of fills of all threads, for keys that are all missing. In
//! `fill-1` and `fill-8`, 1 and 8 threads fill an empty cache with room for twice as many entries. The
//! growth of the tables and of the heap is part of the time. In `fill-evicting-1` the cache is full, and
//! each fill has to evict. `common::caches` describes the capacities, `fresh` the case `fill-fresh-1`, and
//! `one_key` the case `one-key-8`. If `benches/peers/install.sh` has built golang/groupcache, a process of it
//! measures the same.
//!
//! `LARDER_CASES` is a comma-separated list of cases to run.

#[path = "../common/mod.rs"]
mod common;
mod fresh;
mod golang;
mod one_key;

use std::sync::Barrier;
use std::time::Instant;

use common::caches::{ALL, Cache, Make, SHARING, VALUE, count_load, key};
use common::{Report, chosen, turns, wanted};

/// Fills of one round.
const FILLS: usize = 200_000;
/// The room of the full cache, in entries.
const FULL: usize = 50_000;

/// Name, threads, whether the cache is full.
const CASES: [(&str, usize, bool); 3] = [
    ("fill-1", 1, false),
    ("fill-8", 8, false),
    ("fill-evicting-1", 1, true),
];

fn main() {
    let keys: Vec<String> = (0..FILLS as u64).map(|n| key('k', n)).collect();
    if let Some(make) = fresh::implementation() {
        return println!("{}", fill(make, &keys, None, 1));
    }
    let mut report = Report::new("fill");
    let others: Vec<String> = (0..2 * FULL as u64).map(|n| key('o', n)).collect();
    let golang = golang::node();
    for (case, threads, evicting) in CASES.into_iter().filter(|(case, ..)| wanted(case)) {
        for round in turns(ALL.len() + usize::from(golang.is_some())) {
            for n in round.order {
                if !chosen(ALL.get(n).map_or("golang", |(name, _)| name)) {
                    continue;
                }
                let (name, ns) = match (ALL.get(n), &golang) {
                    (Some((name, make)), _) => {
                        let others = evicting.then_some(&*others);
                        (*name, fill(*make, &keys, others, threads))
                    }
                    (None, Some(golang)) => ("golang", golang.fill(threads, evicting)),
                    (None, None) => unreachable!("no such implementation"),
                };
                if round.counted {
                    report.add(case, name, "ns_per_fill", "ns", ns);
                }
            }
        }
    }
    if wanted(fresh::CASE) {
        for round in turns(ALL.len()) {
            for (name, _) in round.order.iter().map(|&n| ALL[n]) {
                if chosen(name) {
                    let ns = fresh::measure(name);
                    if round.counted {
                        report.add(fresh::CASE, name, "ns_per_fill", "ns", ns);
                    }
                }
            }
        }
    }
    if wanted(one_key::CASE) {
        for round in turns(SHARING + usize::from(golang.is_some())) {
            for n in round.order {
                if !chosen(ALL[..SHARING].get(n).map_or("golang", |(name, _)| name)) {
                    continue;
                }
                let (name, measured) = match &golang {
                    Some(golang) if n == SHARING => ("golang", golang.one_key()),
                    _ => (ALL[n].0, one_key::measure(ALL[n].1)),
                };
                if round.counted {
                    measured.add(&mut report, name);
                }
            }
        }
    }
    report.finish();
}

/// The nanoseconds of a fill, when `threads` threads share all fills. The cache is full of `others`, or
/// empty.
fn fill(make: Make, keys: &[String], others: Option<&[String]>, threads: usize) -> f64 {
    let room = if others.is_some() { FULL } else { 2 * FILLS };
    let cache = make(room, count_load);
    for key in others.unwrap_or_default() {
        cache.get(key);
    }
    let (start, end) = (Barrier::new(threads + 1), Barrier::new(threads + 1));
    std::thread::scope(|scope| {
        for keys in keys.chunks(keys.len() / threads) {
            let (cache, start, end) = (&*cache, &start, &end);
            scope.spawn(move || {
                start.wait();
                get_all(cache, keys);
                end.wait();
            });
        }
        start.wait();
        let began = Instant::now();
        end.wait();
        began.elapsed().as_nanos() as f64 / keys.len() as f64
    })
}

fn get_all(cache: &dyn Cache, keys: &[String]) {
    let before = common::caches::loads();
    let bytes: usize = keys.iter().map(|key| cache.get(key)).sum();
    let loads = common::caches::loads() - before;
    assert_eq!(bytes, keys.len() * VALUE.len());
    assert_eq!(loads, keys.len() as u64, "a key was present already");
}
