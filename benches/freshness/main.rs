//! Measures values that expire: the cost of a time to live on a hit, gets during refreshes and slow loads,
//! the bytes between nodes for values that have not changed, gets of keys that no node has cached, and the
//! time until hits alone have removed expired entries.
//!
//! `LARDER_CASES` is a comma-separated list of cases to run. A round of `refresh` lasts `LARDER_TTLS` times
//! to live, 50 by default. `LARDER_ROUNDS` is the number of rounds, 5 by default; `refresh` has 3 at most.

mod cold_many;
#[path = "../common/mod.rs"]
mod common;
mod plain;
mod unchanged;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::{Report, Rng, Zipf, rounds, shuffled, wanted};
use larder::{BoxError, Clock, Group, Registry, Value};
use plain::Plain;
use rustix::time::{ClockId, clock_gettime};

fn main() {
    let mut report = Report::new("freshness");
    if wanted("hit-ttl") {
        hit_ttl(&mut report);
    }
    if wanted("refresh") {
        for _ in 0..rounds().min(3) {
            refresh(&mut report);
        }
    }
    if wanted("soft-timeout") {
        soft_timeout(&mut report);
    }
    if wanted("unchanged") {
        unchanged::run(&mut report);
    }
    if wanted("cold-many-100") {
        cold_many::run(&mut report);
    }
    if wanted("dead-10000") {
        dead(&mut report);
    }
    report.finish();
}

/// The keys of the case `hit-ttl`. All are cached, as in the benchmark `hit`.
const HIT_KEYS: usize = 100_000;

/// The hits of a slice. The three kinds of hits alternate slice by slice.
const HITS: usize = 100_000;

/// Compares hits of values that have a time to live with hits of values that have none, and with hits of
/// the latter that also read the coarse clock: a hit that reads the time costs at least that.
fn hit_ttl(report: &mut Report) {
    let group = |name: &str, ttl: Option<Duration>| {
        let builder = Group::builder(name).registry(&Registry::new());
        let builder = match ttl {
            Some(ttl) => builder.time_to_live(ttl),
            None => builder,
        };
        let echo = |_: &_, key: &str| Ok::<_, BoxError>(key.to_owned());
        builder.build_with(echo).expect("a group")
    };
    let (mut rng, zipf) = (Rng(42), Zipf::new(HIT_KEYS, 0.99));
    let key = |n: u32| format!("key-{n:012}");
    let order = shuffled(HIT_KEYS, &mut rng);
    let keys: Vec<String> = (0..HITS).map(|_| key(order[zipf.draw(&mut rng)])).collect();
    let groups = [
        group("none", None),
        group("ttl", Some(Duration::from_secs(3600))),
    ];
    let [none, ttl] = &groups;
    let hit = |group: &Group, key: &str| {
        std::hint::black_box(group.get(key).expect("a value"));
    };
    let slice = |hit: &dyn Fn(&str)| {
        let began = Instant::now();
        keys.iter().for_each(|key| hit(key));
        began.elapsed().as_secs_f64()
    };
    let slices: [&dyn Fn(&str); 3] = [&|key| hit(none, key), &|key| hit(ttl, key), &|key| {
        std::hint::black_box(clock_gettime(ClockId::MonotonicCoarse));
        hit(none, key);
    }];
    for group in &groups {
        order.iter().for_each(|n| hit(group, &key(*n)));
    }
    slices.iter().for_each(|hit| _ = slice(hit));
    for _ in 0..rounds() {
        let mut sums = [0.0; 3];
        for _ in 0..10 {
            for (sum, hit) in sums.iter_mut().zip(slices) {
                *sum += slice(hit);
            }
        }
        let mut add = |name, sum| report.add("hit-ttl", name, "ratio", "ratio", sum / sums[0]);
        add("larder", sums[1]);
        add("coarse clock", sums[2]);
    }
}

/// Measures gets of one key by two threads, while it is refreshed again and again. The same threads get a
/// [`Plain`] value as a control: it has blocking loads only if the machine runs its threads too late.
fn refresh(report: &mut Report) {
    let group = Group::builder("refresh")
        .registry(&Registry::new())
        .time_to_live(plain::TTL)
        .time_to_live_jitter(0.0)
        .refresh_at(plain::REFRESH_AT)
        .build_with(|_, key| {
            thread::sleep(plain::LOAD);
            Ok::<_, BoxError>(key.to_owned())
        })
        .expect("a group");
    group.get("key").expect("a value");
    let plain = Plain::start();
    let end = Instant::now() + plain::TTL * number("LARDER_TTLS", 50) as u32;
    let gets = || {
        let mut times = Vec::new();
        let mut began = Instant::now();
        while began < end {
            group.get("key").expect("a value");
            times.push(began.elapsed().as_nanos() as u32);
            std::hint::black_box(plain.get());
            began = Instant::now();
        }
        times
    };
    let mut times = thread::scope(|scope| {
        let other = scope.spawn(gets);
        let mut times = gets();
        times.extend(other.join().expect("no panic"));
        times
    });
    let stats = group.stats();
    let blocking = stats.loads - 1;
    let mut add = |name, metric, unit, value| report.add("refresh", name, metric, unit, value);
    add("larder", "p50_us", "us", quantile(&mut times, 0.5) / 1e3);
    add("larder", "p99_us", "us", quantile(&mut times, 0.99) / 1e3);
    add("larder", "blocking_loads", "loads", blocking as f64);
    add("plain", "blocking_loads", "loads", plain.blocking_loads());
    add("larder", "refreshes", "loads", stats.refreshes as f64);
}

/// Measures gets of a stale value by four threads, while its load takes 10 s.
fn soft_timeout(report: &mut Report) {
    const GETS: usize = 40;
    let clock = Clock::manual();
    let loads = AtomicUsize::new(0);
    let is_over: &'static AtomicBool = Box::leak(Box::default());
    let group = Group::builder("soft")
        .registry(&Registry::new())
        .clock(clock.clone())
        .time_to_live(Duration::from_secs(10))
        .stale_if_error(Duration::from_secs(60))
        .soft_timeout(Duration::from_millis(50))
        .build_with(move |_, key| {
            let end = Instant::now() + Duration::from_secs(10);
            let is_slow = loads.fetch_add(1, Ordering::SeqCst) > 0;
            while is_slow && Instant::now() < end && !is_over.load(Ordering::SeqCst) {
                thread::sleep(Duration::from_millis(10));
            }
            Ok::<_, BoxError>(key.to_owned())
        })
        .expect("a group");
    group.get("key").expect("a value");
    clock.advance(Duration::from_secs(10));
    let gets = || -> Vec<u32> {
        let get = |_| {
            let began = Instant::now();
            group.get("key").expect("the old value");
            began.elapsed().as_micros() as u32
        };
        (0..GETS).map(get).collect()
    };
    let mut times: Vec<u32> = thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(gets)).collect();
        let times = threads.into_iter().map(|thread| thread.join());
        times.flat_map(|times| times.expect("no panic")).collect()
    });
    is_over.store(true, Ordering::SeqCst);
    let p50 = quantile(&mut times, 0.5) / 1e3;
    let p99 = quantile(&mut times, 0.99) / 1e3;
    report.add("soft-timeout", "larder", "p50_ms", "ms", p50);
    report.add("soft-timeout", "larder", "p99_ms", "ms", p99);
}

/// Measures the time until all expired entries are removed, while one other entry gets 10,000 hits per second.
fn dead(report: &mut Report) {
    const DEAD: usize = 10_000;
    let clock = Clock::manual();
    let group = Group::builder("dead")
        .registry(&Registry::new())
        .clock(clock.clone())
        .build_with(|_, key| {
            let value = Value::new(key.to_owned());
            Ok::<_, BoxError>(match key {
                "live" => value,
                _ => value.expire_in(Duration::from_secs(1)),
            })
        })
        .expect("a group");
    group.get("live").expect("a value");
    for n in 0..DEAD {
        group.get(&n.to_string()).expect("a value");
    }
    clock.advance(Duration::from_secs(2));
    let began = Instant::now();
    let mut hits = 0;
    while group.entry_count() > 1 {
        for _ in 0..10 {
            group.get("live").expect("a value");
        }
        hits += 10;
        let due = Duration::from_micros(100) * hits;
        thread::sleep(due.saturating_sub(began.elapsed()));
    }
    let seconds = began.elapsed().as_secs_f64();
    report.add("dead-10000", "larder", "seconds", "s", seconds);
    report.add("dead-10000", "larder", "hits", "hits", f64::from(hits));
}

/// Returns the value that this part of the values do not exceed. Sorts the values.
fn quantile(values: &mut [u32], part: f64) -> f64 {
    values.sort_unstable();
    let last = values.len() - 1;
    f64::from(values[(last as f64 * part).round() as usize])
}

/// Returns the number in an environment variable.
fn number(name: &str, default: usize) -> usize {
    let set = std::env::var(name).ok();
    set.and_then(|set| set.parse().ok()).unwrap_or(default)
}
