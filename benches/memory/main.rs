//! The resident memory of a full cache, from /proc, each case in a process of its own.
//!
//! A 64 MiB cache is offered more entries than it holds, then cleared. `rss_over_capacity` is the growth
//! of the resident set during the fill over 64 MiB, and `rss_later_over_capacity` the same after twice as
//! many offers or more. `entries` is the number of entries after the fill. `rss_after_clear_mib` is the
//! growth that is left after `clear`. Linux only.
//!
//! One thread fills the cache in the first cases. The names of the others end with the number of threads
//! and the capacity in MiB, and they have also `peak_over_capacity`: the highest resident set less the one
//! before the fill, over the capacity. `threads.rs` describes their sizes.
//!
//! `LARDER_CASES` is a comma-separated list of cases to run.

mod caches;
#[path = "../common/mod.rs"]
mod common;
mod threads;

use std::process::Command;

use caches::{ALL, Options, Size, cache};
use common::{Report, Rng, chosen, rounds, wanted};
use threads::WORKLOADS;

const CAPACITY: u64 = 64 << 20;

/// The cases of one thread.
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

/// Threads, and the capacity in MiB, of the cases of several threads. The first pair is used with all
/// workloads, the others with the first one.
const FILLERS: [(u64, u64); 6] = [(8, 64), (1, 64), (2, 64), (4, 64), (32, 64), (8, 16)];

fn main() {
    let mut args = std::env::args().skip_while(|arg| arg != "--child").skip(1);
    if let (Some(implementation), Some(case)) = (args.next(), args.next()) {
        child(&implementation, &case);
        return;
    }
    if status_kib("VmRSS") == 0 {
        println!("SKIPPED: no /proc/self/status here");
        return;
    }
    let mut report = Report::new("memory");
    let itself = std::env::current_exe().expect("the path of this program");
    let several = FILLERS.into_iter().flat_map(|(threads, mib)| {
        let count = if (threads, mib) == FILLERS[0] {
            WORKLOADS.len()
        } else {
            1
        };
        let workloads = WORKLOADS[..count].iter();
        workloads.map(move |workload| format!("{}-{threads}-{mib}", workload.name))
    });
    let cases: Vec<String> = CASES
        .iter()
        .map(|(name, _)| (*name).into())
        .chain(several)
        .collect();
    for _ in 0..rounds() {
        for case in cases.iter().filter(|case| wanted(case)) {
            for implementation in ALL.into_iter().filter(|name| chosen(name)) {
                let output = Command::new(&itself)
                    .args(["--child", implementation, case])
                    .output()
                    .expect("this program runs");
                let text = String::from_utf8_lossy(&output.stdout);
                assert!(
                    output.status.success(),
                    "{implementation} {case}: {output:?}"
                );
                for line in text.lines() {
                    let mut words = line.split_whitespace();
                    let (Some(metric), Some(value)) = (words.next(), words.next()) else {
                        continue;
                    };
                    let (metric, unit) = METRICS
                        .into_iter()
                        .find(|(name, _)| *name == metric)
                        .expect("a known metric");
                    report.add(
                        case,
                        implementation,
                        metric,
                        unit,
                        value.parse().expect("a number"),
                    );
                }
            }
        }
    }
    report.finish();
}

const METRICS: [(&str, &str); 5] = [
    ("rss_over_capacity", "ratio"),
    ("peak_over_capacity", "ratio"),
    ("entries", "entries"),
    ("rss_after_clear_mib", "MiB"),
    ("rss_later_over_capacity", "ratio"),
];

/// Fills the cache, continues to fill it, and clears it. Prints a line for each metric.
fn child(implementation: &str, case: &str) {
    if let Some((_, size)) = CASES.iter().find(|(name, _)| *name == case) {
        let offers = offered(case);
        let later = if case == "116B" {
            10_000_000
        } else {
            2 * offers
        };
        let options = Options {
            capacity: CAPACITY,
            size: *size,
            time_to_live: None,
        };
        measure(
            implementation,
            options,
            offers,
            later,
            false,
            |cache, from, to| {
                (from..to).for_each(|n| drop(cache.put(n)));
            },
        );
        return;
    }
    let mut parts = case.split('-');
    let name = parts.next().expect("a name");
    let mut number = || parts.next().and_then(|number| number.parse::<u64>().ok());
    let (threads, mib) = (number().expect("threads"), number().expect("MiB"));
    let workload = WORKLOADS
        .iter()
        .find(|workload| workload.name == name)
        .expect("a known case");
    let options = workload.options(mib << 20);
    let offers = workload.insertions(options.capacity);
    measure(
        implementation,
        options,
        offers,
        2 * offers,
        true,
        |cache, from, to| {
            workload.run(cache, from, to, threads);
        },
    );
}

fn measure(
    implementation: &str,
    options: Options,
    offers: u64,
    later: u64,
    has_peak: bool,
    fill: impl Fn(&dyn caches::Cache, u64, u64),
) {
    let Some(cache) = cache(implementation, options) else {
        return;
    };
    let before = status_kib("VmRSS");
    let grown = || status_kib("VmRSS").saturating_sub(before) as f64 / 1024.0;
    let capacity = options.capacity as f64 / 1024.0 / 1024.0;
    fill(&*cache, 0, offers);
    println!("rss_over_capacity {}", grown() / capacity);
    println!("entries {}", cache.entries());
    fill(&*cache, offers, later);
    println!("rss_later_over_capacity {}", grown() / capacity);
    if has_peak {
        let peak = status_kib("VmHWM").saturating_sub(before) as f64 / 1024.0;
        println!("peak_over_capacity {}", peak / capacity);
    }
    cache.clear();
    println!("rss_after_clear_mib {}", grown());
}

/// A number of this process's status, in KiB; 0 where there is no /proc.
fn status_kib(field: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok())
        .unwrap_or(0)
}
