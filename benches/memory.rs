//! The resident memory of a full cache, from /proc, each case in a process of its own.
//!
//! A 64 MiB cache is offered more entries than it holds, then cleared. `rss_over_capacity` is the growth
//! of the resident set during the fill over 64 MiB, and `rss_later_over_capacity` the same after twice as
//! many offers or more. `entries` is the number of entries after the fill. `rss_after_clear_mib` is the
//! growth that is left after `clear`. Linux only.

mod common;

use std::process::Command;
use std::sync::Arc;

use common::{Report, Rng, chosen, rounds};
use larder::{Context, Group, Registry, Sink};

const CAPACITY: u64 = 64 << 20;

/// The length of the value of the n-th key.
type Size = fn(u64) -> usize;

const CASES: [(&str, Size); 5] = [
    ("10B", |_| 10),
    ("116B", |_| 100),
    ("1KiB", |_| 1024),
    ("64KiB", |_| 65536),
    ("mix", |n| {
        // Most values are small and a few are large, as in published traces of key-value stores.
        let mut rng = Rng(n);
        let exponent = rng.unit() * rng.unit() * 13.0;
        (10.0 * exponent.exp2()) as usize
    }),
];

fn offered(case: &str) -> u64 {
    match case {
        "64KiB" => 20_000,
        "1KiB" => 300_000,
        "10B" => 2_000_000,
        _ => 1_000_000,
    }
}

fn main() {
    let mut args = std::env::args().skip_while(|arg| arg != "--child").skip(1);
    if let (Some(implementation), Some(case)) = (args.next(), args.next()) {
        child(&implementation, &case);
        return;
    }
    if rss_kib() == 0 {
        println!("SKIPPED: no /proc/self/status here");
        return;
    }
    let mut report = Report::new("memory");
    let itself = std::env::current_exe().expect("the path of this program");
    for _ in 0..rounds() {
        for (case, _) in CASES {
            for implementation in ["larder", "quick_cache", "moka"] {
                if !chosen(implementation) {
                    continue;
                }
                let output = Command::new(&itself)
                    .args(["--child", implementation, case])
                    .output()
                    .expect("this program runs");
                let text = String::from_utf8_lossy(&output.stdout);
                let figures: Vec<f64> = text
                    .split_whitespace()
                    .filter_map(|n| n.parse().ok())
                    .collect();
                let [grown, entries, left, drift] = figures[..] else {
                    panic!("{implementation} {case}: {output:?}");
                };
                let capacity = CAPACITY as f64 / 1024.0;
                let mut add =
                    |metric, unit, value| report.add(case, implementation, metric, unit, value);
                add("rss_over_capacity", "ratio", grown / capacity);
                add("entries", "entries", entries);
                add("rss_after_clear_mib", "MiB", left / 1024.0);
                add("rss_later_over_capacity", "ratio", drift / capacity);
            }
        }
    }
    report.finish();
}

/// Fills the cache, continues to fill it, and clears it. Prints the growth, the entries, the growth
/// after `clear`, and the growth before it.
fn child(implementation: &str, case: &str) {
    let size = CASES
        .iter()
        .find(|(name, _)| *name == case)
        .expect("a known case")
        .1;
    let offers = offered(case);
    let later = if case == "116B" {
        10_000_000
    } else {
        2 * offers
    };
    let cache = cache(implementation, size);
    let before = rss_kib();
    for n in 0..offers {
        (cache.put)(n);
    }
    let full = rss_kib();
    let entries = (cache.entries)();
    for n in offers..later {
        (cache.put)(n);
    }
    let later = rss_kib();
    (cache.clear)();
    let cleared = rss_kib();
    println!(
        "{} {entries} {} {}",
        full - before,
        cleared.saturating_sub(before),
        later - before
    );
}

struct Cache {
    put: Box<dyn Fn(u64)>,
    entries: Box<dyn Fn() -> u64>,
    clear: Box<dyn Fn()>,
}

fn key(n: u64) -> String {
    format!("key-{n:012}")
}

#[derive(Clone)]
struct Payload;

impl quick_cache::Weighter<String, Arc<[u8]>> for Payload {
    fn weight(&self, key: &String, value: &Arc<[u8]>) -> u64 {
        (key.len() + value.len()) as u64
    }
}

fn cache(implementation: &str, size: Size) -> Cache {
    match implementation {
        "larder" => {
            let group = Group::builder("memory")
                .registry(&Registry::new())
                .max_capacity(CAPACITY)
                .build(move |_: &Context, key: &str, dest: &mut dyn Sink| {
                    let n = key[4..].parse()?;
                    Ok(dest.set_bytes(&vec![n as u8; size(n)])?)
                })
                .expect("the options are right");
            let (put, entries, clear) = (group.clone(), group.clone(), group);
            Cache {
                put: Box::new(move |n| drop(put.get(&key(n)))),
                entries: Box::new(move || entries.entry_count()),
                clear: Box::new(move || clear.clear()),
            }
        }
        "quick_cache" => {
            let items = (CAPACITY / (16 + size(0) as u64)) as usize;
            let cache = quick_cache::sync::Cache::with_weighter(items, CAPACITY, Payload);
            let cache = Arc::new(cache);
            let (put, entries, clear) = (cache.clone(), cache.clone(), cache);
            Cache {
                put: Box::new(move |n| put.insert(key(n), vec![n as u8; size(n)].into())),
                entries: Box::new(move || entries.len() as u64),
                clear: Box::new(move || clear.clear()),
            }
        }
        "moka" => {
            let cache = moka::sync::Cache::builder()
                .max_capacity(CAPACITY)
                .weigher(|key: &String, value: &Arc<[u8]>| (key.len() + value.len()) as u32)
                .build();
            let (put, entries, clear) = (cache.clone(), cache.clone(), cache);
            Cache {
                put: Box::new(move |n| put.insert(key(n), vec![n as u8; size(n)].into())),
                entries: Box::new(move || {
                    entries.run_pending_tasks();
                    entries.entry_count()
                }),
                clear: Box::new(move || {
                    clear.invalidate_all();
                    clear.run_pending_tasks();
                }),
            }
        }
        other => panic!("no cache named {other}"),
    }
}

/// The resident set of this process, in KiB; 0 where there is no /proc.
fn rss_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok())
        .unwrap_or(0)
}
