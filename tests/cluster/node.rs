//! A node: a server, and callers that check every byte.

use std::io;
use std::net::TcpListener;
use std::process;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex};
use std::thread;
use std::time::Duration;

use larder::http::HttpPool;
use larder::{Group, HotAdmission, getter_fn};

use crate::process::MARK;

/// The longest wait for calls. A slow machine needs a few seconds.
const PATIENCE: Duration = Duration::from_secs(60);

pub const KEYS: u64 = 150;
pub const CALLERS: u64 = 3;

/// The counts of a node since it was started.
#[derive(Debug, Default)]
pub struct Counts {
    pub calls: u64,
    pub errors: u64,
    pub wrong: u64,
    /// Runs of the getter.
    pub loads: u64,
    pub peer_loads: u64,
    pub peer_errors: u64,
    /// Requests of peers.
    pub served: u64,
}

impl FromStr for Counts {
    type Err = String;

    fn from_str(line: &str) -> Result<Counts, String> {
        let numbers: Result<Vec<u64>, _> = line.split(' ').map(str::parse).collect();
        match numbers.as_deref() {
            Ok(&[calls, errors, wrong, loads, peer_loads, peer_errors, served]) => Ok(Counts {
                calls,
                errors,
                wrong,
                loads,
                peer_loads,
                peer_errors,
                served,
            }),
            _ => Err(line.to_owned()),
        }
    }
}

/// Serves on a port and answers the lines of standard input. Ends the process when standard input
/// ends, so that no node outlives the test.
pub fn run(port: u16) {
    let listener = TcpListener::bind(("127.0.0.1", port)).expect("the port is free");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let pool = HttpPool::builder(&url)
        // The time-outs are long enough for a slow machine.
        .connect_timeout(Duration::from_secs(10))
        .exchange_timeout(Duration::from_secs(30))
        .build()
        .expect("a pool");
    let group = Group::builder("values")
        .max_capacity(64 << 20)
        // Without copies, nodes ask each other all the time, also when a node is killed.
        .hot_admission(HotAdmission::Never)
        .build(getter_fn(|_ctx, key, dest| {
            Ok(dest.set_bytes(&value(key.parse()?))?)
        }))
        .expect("a group");
    let _server = pool.server().serve_listener(listener).expect("a server");
    println!("{MARK}{url}");

    let callers = Callers::default();
    thread::scope(|scope| {
        let mut threads = Vec::new();
        for line in io::stdin().lines().map_while(Result::ok) {
            let mut words = line.split(' ');
            match words.next() {
                Some("peers") => {
                    pool.set(words).expect("good URLs");
                    let (callers, group) = (&callers, &group);
                    threads
                        .extend((0..CALLERS).map(|n| scope.spawn(move || callers.run(group, n))));
                    println!("{MARK}ready");
                }
                Some("report") => {
                    let calls = words.next().and_then(|calls| calls.parse().ok());
                    println!("{MARK}{}", callers.report(&group, calls.expect("a number")));
                }
                Some("stop") => {
                    callers.stop.store(true, Ordering::Relaxed);
                    let ended = threads.drain(..).map(|thread| thread.join());
                    let ended = ended.filter(Result::is_ok).count();
                    println!("{MARK}{ended} callers ended");
                }
                _ => panic!("unknown command {line:?}"),
            }
        }
        process::exit(0);
    });
}

#[derive(Default)]
struct Callers {
    stop: AtomicBool,
    /// Calls, errors, wrong values.
    counts: Mutex<[u64; 3]>,
    counted: Condvar,
}

impl Callers {
    fn run(&self, group: &Group, caller: u64) {
        // Gets all keys in turn. Each caller begins with another key.
        for n in caller * KEYS / CALLERS.. {
            if self.stop.load(Ordering::Relaxed) {
                break;
            }
            let key = n % KEYS;
            let result = group.get(&key.to_string());
            let mut counts = self.counts.lock().expect("no panic");
            counts[0] += 1;
            match result {
                Ok(found) => counts[2] += u64::from(found != value(key)),
                Err(error) => {
                    counts[1] += 1;
                    eprintln!("{key}: {:?}: {error}", error.kind());
                }
            }
            self.counted.notify_all();
        }
    }

    /// Waits for `calls` calls. Returns the numbers of [`Counts`] in their order.
    fn report(&self, group: &Group, calls: u64) -> String {
        let counts = self.counts.lock().expect("no panic");
        let is_short = |counts: &mut [u64; 3]| counts[0] < calls;
        let waited = self.counted.wait_timeout_while(counts, PATIENCE, is_short);
        let (counts, waited) = waited.expect("no panic");
        assert!(!waited.timed_out(), "{} of {calls} calls", counts[0]);
        let [calls, errors, wrong] = *counts;
        let stats = group.stats();
        format!(
            "{calls} {errors} {wrong} {} {} {} {}",
            stats.local_loads, stats.peer_loads, stats.peer_errors, stats.server_requests
        )
    }
}

/// The value of a key: 100 bytes times the key.
fn value(key: u64) -> Vec<u8> {
    (0..key * 100).map(|n| (n + key) as u8).collect()
}
