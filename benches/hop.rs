//! Measures a get that asks a peer over loopback. The value is cached at the owner, and the caller keeps
//! no copy.
//!
//! Each implementation has a server process and a client process. `larder` uses its default client, and
//! `larder by ureq` uses ureq for all requests. `raw` is sockets without HTTP, the lower bound for this
//! design. memcached and golang/groupcache take part if `benches/peers/install.sh` has installed them. In
//! each round all of them run one after the other, so that other load of the machine affects all.
//!
//! A run takes 1 s, or 0.3 s with `--quick`. `LARDER_ROUNDS` is the number of rounds, 5 by default.
//! `LARDER_CASES` and `LARDER_IMPLS` are comma-separated lists of the cases and implementations to run.

mod common;
mod peers;

use std::io::{Read, Write};
use std::net::TcpStream;

use common::{Report, flag, rounds, wanted};
use peers::{Load, MANY_AT_ONCE, Measured, Pair, Process};

/// The name of a case, the size of its values, its keys, its threads, and its `slow_percent` (see [`Load`]).
const CASES: [(&str, usize, usize, usize, i32); 10] = [
    ("100B-1", 100, 1000, 1, 0),
    ("100B-8", 100, 1000, 8, 0),
    ("100B-32", 100, 1000, 32, 0),
    ("10KB-1", 10_000, 1000, 1, 0),
    ("10KB-8", 10_000, 1000, 8, 0),
    ("10KB-32", 10_000, 1000, 32, 0),
    ("1MB-1", 1_000_000, 32, 1, 0),
    ("1MB-8", 1_000_000, 32, 8, 0),
    // This case is 100B-8, but one get in twenty is of a key that takes 50 ms to load.
    ("mixed-8", 100, 1000, 8, 5),
    // A call gets 100 keys. Each key counts as a get.
    ("get_many-100", 100, 1000, 1, MANY_AT_ONCE),
];

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    if let Some(at) = arguments.iter().position(|word| word == "--process") {
        return peers::run_process(&arguments[at + 1..]);
    }
    let millis = if flag("--quick") { 300 } else { 1000 };

    let mut pairs = Pair::all();
    let mut report = Report::new("hop");
    for (case, size, keys, threads, slow_percent) in CASES {
        if !wanted(case) {
            continue;
        }
        let load = Load {
            size,
            keys,
            threads,
            millis,
            slow_percent,
        };
        for pair in &mut pairs {
            // The first gets load the values. They are not counted.
            pair.run(Load {
                millis: 300,
                slow_percent: 0,
                ..load
            });
        }
        for _ in 0..rounds() {
            for pair in &mut pairs {
                // Only larder gets several keys with one call. raw and memcached have no getter that could
                // be slow.
                let skipped = match slow_percent {
                    MANY_AT_ONCE => !pair.name.starts_with("larder"),
                    _ => slow_percent > 0 && matches!(pair.name, "raw" | "memcached"),
                };
                if skipped {
                    continue;
                }
                let measured = pair.run(load);
                add(&mut report, case, pair.name, &measured, slow_percent > 0);
            }
        }
    }
    drop(pairs);
    if wanted("idle-256") {
        idle(&mut report);
    }
    report.finish();
}

fn add(report: &mut Report, case: &str, name: &'static str, measured: &Measured, slow: bool) {
    // Slow keys take most of the time, so only the latency of the others is meaningful.
    if !slow {
        let per_100k = 1e5 / measured.gets;
        report.add(
            case,
            name,
            "rps",
            "requests/s",
            measured.gets / measured.seconds,
        );
        report.add(
            case,
            name,
            "cpu_s_per_100k",
            "CPU s",
            measured.cpu * per_100k,
        );
    }
    report.add(case, name, "p50_us", "µs", measured.p50_us);
    report.add(case, name, "p99_us", "µs", measured.p99_us);
}

/// Measures the memory that a server takes for 256 more connections, each idle after one request.
fn idle(report: &mut Report) {
    let request = "GET /_groupcache/hop/key-100-1 HTTP/1.1\r\nHost: h\r\n\r\n";
    for _ in 0..rounds() {
        let mut server = Process::own(&["larder", "server"]);
        let address = server.line();
        let open = || {
            let mut stream = TcpStream::connect(&address).expect("a connection");
            stream
                .write_all(request.as_bytes())
                .expect("the server reads");
            let read = stream.read(&mut [0; 4096]).expect("the server answers");
            assert!(read > 100, "a whole answer");
            stream
        };
        // The first request loads the value.
        let first = open();
        let before = server.rss_mib();
        let others: Vec<_> = (0..256).map(|_| open()).collect();
        let grown = server.rss_mib() - before;
        drop((first, others));
        report.add("idle-256", "larder", "server_rss", "MiB", grown);
    }
}
