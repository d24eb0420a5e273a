//! Three nodes under a load that goes on while nodes are restarted and the list of peers changes.
//!
//! ```text
//! cargo run --release -p larder-examples --example soak -- --minutes 10
//! ```
//!
//! The nodes are in this process, each with a registry, a pool and a server of its own. 16 threads get values
//! of 16 bytes to 64 KiB. Every 2 s a node leaves the lists of the others and comes back, and every 5 s one
//! is restarted, every other time with a drain. Each row shows the memory, the threads and the descriptors
//! of the process. The exit code is 0 if no get failed, no value was wrong, and in the second half none of
//! the three grew.

use std::error::Error;
use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, RwLock};
use std::thread;
use std::time::{Duration, Instant};

use larder::http::{HttpPool, Server};
use larder::{Group, Registry, getter_fn};

const NODES: usize = 3;
const THREADS: u64 = 16;
const KEYS: u64 = 20_000;
const CACHE: u64 = 32 << 20;

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

struct Node {
    pool: HttpPool,
    group: Group,
    server: Server,
    addr: SocketAddr,
}

#[derive(Default)]
struct Counts {
    gets: AtomicU64,
    errors: AtomicU64,
    wrong: AtomicU64,
    loads: AtomicU64,
}

/// The nodes that serve; `None` while one is restarted.
type Nodes = RwLock<[Option<Group>; NODES]>;

fn main() -> Outcome<()> {
    let seconds = seconds()?;
    let counts = Arc::new(Counts::default());
    let listeners = [(); NODES].map(|()| TcpListener::bind("127.0.0.1:0"));
    let mut urls = Vec::new();
    for listener in &listeners {
        let listener = listener.as_ref().map_err(|error| error.to_string())?;
        urls.push(format!("http://{}", listener.local_addr()?));
    }
    let mut nodes = Vec::new();
    for listener in listeners {
        nodes.push(Node::start(listener?, &urls, &counts)?);
    }
    let groups: Nodes = RwLock::default();
    for (at, node) in nodes.iter().enumerate() {
        groups.write().map_err(|_| "a panic")?[at] = Some(node.group.clone());
    }
    let stop = AtomicBool::new(false);
    let samples = thread::scope(|scope| {
        for number in 0..THREADS {
            let (groups, counts, stop) = (&groups, &counts, &stop);
            scope.spawn(move || get_keys(number, groups, counts, stop));
        }
        let result = run(seconds, &mut nodes, &urls, &groups, &counts);
        stop.store(true, Ordering::Relaxed);
        result
    })?;
    judge(&samples, &counts)
}

/// The arguments `--minutes N` or `--seconds N`; a minute without.
fn seconds() -> Outcome<u64> {
    let mut parser = lexopt::Parser::from_env();
    let mut seconds = 60;
    while let Some(argument) = parser.next()? {
        match argument {
            lexopt::Arg::Long("minutes") => {
                seconds = 60 * parser.value()?.to_string_lossy().parse::<u64>()?
            }
            lexopt::Arg::Long("seconds") => seconds = parser.value()?.to_string_lossy().parse()?,
            other => return Err(other.unexpected().into()),
        }
    }
    Ok(seconds.max(10))
}

impl Node {
    fn start(listener: TcpListener, urls: &[String], counts: &Arc<Counts>) -> Outcome<Node> {
        let addr = listener.local_addr()?;
        let registry = Registry::new();
        let counts = counts.clone();
        let group = Group::builder("values")
            .registry(&registry)
            .max_capacity(CACHE)
            .build(getter_fn(move |_ctx, key, dest| {
                counts.loads.fetch_add(1, Ordering::Relaxed);
                Ok(dest.set_bytes(&value_of(key.parse()?))?)
            }))?;
        let pool = HttpPool::builder(&format!("http://{addr}"))
            .registry(&registry)
            .build()?;
        // Before it listens: it asks the peers for the previous owners of its keys.
        pool.set(urls)?;
        let server = pool.server().serve_listener(listener)?;
        Ok(Node {
            pool,
            group,
            server,
            addr,
        })
    }
}

/// The value of the key with this number: 16 bytes to 64 KiB, most of them short.
fn value_of(number: u64) -> Vec<u8> {
    // Half of the keys have 16 bytes, a quarter have 32, and so on.
    let len = 16 << number.trailing_ones().min(12);
    let mut value = number.to_string().into_bytes();
    value.resize(len.max(value.len()), b'.');
    value
}

/// Gets keys until the end: one in two is of the thousand keys that are asked for most.
fn get_keys(number: u64, groups: &Nodes, counts: &Counts, stop: &AtomicBool) {
    let mut random = number + 1;
    while !stop.load(Ordering::Relaxed) {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let draw = random >> 33;
        let key = match draw % 2 {
            0 => draw / 2 % 1000,
            _ => draw / 2 % KEYS,
        };
        let place = (draw / 7) as usize % NODES;
        let group = {
            let Ok(groups) = groups.read() else { return };
            let from = groups.iter().cycle().skip(place).take(NODES);
            from.flatten().next().cloned()
        };
        let Some(group) = group else { continue };
        counts.gets.fetch_add(1, Ordering::Relaxed);
        match group.get(&key.to_string()) {
            Ok(value) if value == value_of(key) => {}
            Ok(_) => _ = counts.wrong.fetch_add(1, Ordering::Relaxed),
            Err(error) => {
                if counts.errors.fetch_add(1, Ordering::Relaxed) == 0 {
                    println!("the first error: {error}");
                }
            }
        }
        thread::sleep(Duration::from_micros(200));
    }
}

/// The memory in KiB, the threads and the descriptors of this process.
type Sample = [u64; 3];

fn run(
    seconds: u64,
    nodes: &mut [Node],
    urls: &[String],
    groups: &Nodes,
    counts: &Arc<Counts>,
) -> Outcome<Vec<Sample>> {
    let start = Instant::now();
    let mut samples = Vec::new();
    println!("seconds       gets   errors  wrong     loads   RSS KiB  threads  descriptors");
    for second in 1..=seconds {
        let wait = Duration::from_secs(second).saturating_sub(start.elapsed());
        thread::sleep(wait);
        if second % 2 == 0 {
            let away = (second / 2) as usize % NODES;
            let rest: Vec<&String> = urls
                .iter()
                .enumerate()
                .filter(|(at, _)| *at != away)
                .map(|(_, url)| url)
                .collect();
            for (at, node) in nodes.iter().enumerate() {
                if at != away {
                    node.pool.set(rest.iter().copied())?;
                }
            }
            thread::sleep(Duration::from_millis(100));
            for node in nodes.iter() {
                node.pool.set(urls)?;
            }
        }
        if second % 5 == 0 {
            let at = (second / 5) as usize % NODES;
            restart(at, second % 10 == 0, nodes, urls, groups, counts)?;
        }
        let sample = sample()?;
        samples.push(sample);
        if second % 10 == 0 || second == seconds {
            let [gets, errors, wrong, loads] =
                [&counts.gets, &counts.errors, &counts.wrong, &counts.loads]
                    .map(|count| count.load(Ordering::Relaxed));
            let [memory, threads, descriptors] = sample;
            println!(
                "{second:7} {gets:10} {errors:8} {wrong:6} {loads:9} {memory:9} {threads:8} {descriptors:12}"
            );
        }
    }
    Ok(samples)
}

fn restart(
    at: usize,
    drains: bool,
    nodes: &mut [Node],
    urls: &[String],
    groups: &Nodes,
    counts: &Arc<Counts>,
) -> Outcome<()> {
    groups.write().map_err(|_| "a panic")?[at] = None;
    let addr = nodes[at].addr;
    if drains {
        nodes[at].pool.leave(Duration::from_millis(500));
    }
    // Gets that began before still use the old node.
    nodes[at].server.shutdown(Duration::from_secs(5))?;
    let begin = Instant::now();
    let listener = loop {
        match TcpListener::bind(addr) {
            Ok(listener) => break listener,
            Err(error) if begin.elapsed() > Duration::from_secs(30) => return Err(error.into()),
            Err(_) => thread::sleep(Duration::from_millis(10)),
        }
    };
    nodes[at] = Node::start(listener, urls, counts)?;
    groups.write().map_err(|_| "a panic")?[at] = Some(nodes[at].group.clone());
    Ok(())
}

fn sample() -> Outcome<Sample> {
    let status = fs::read_to_string("/proc/self/status")?;
    let field = |name: &str| -> Outcome<u64> {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let number = line.and_then(|line| line.split_whitespace().next());
        Ok(number.ok_or("no such field")?.parse()?)
    };
    let descriptors = fs::read_dir("/proc/self/fd")?.count() as u64;
    Ok([field("VmRSS:")?, field("Threads:")?, descriptors])
}

/// Compares the least figures of the second and the fourth quarter, which a leak raises. The greatest ones
/// show how busy the machine was.
fn judge(samples: &[Sample], counts: &Counts) -> Outcome<()> {
    let quarter = samples.len() / 4;
    let least = |from: usize| -> Sample {
        let part = &samples[from * quarter..(from + 1) * quarter];
        [0, 1, 2].map(|at| part.iter().map(|sample| sample[at]).min().unwrap_or(0))
    };
    let (before, after) = (least(1), least(3));
    let mut flat = true;
    for (at, (name, allowed)) in [("RSS", 8192), ("threads", 16), ("descriptors", 32)]
        .into_iter()
        .enumerate()
    {
        let limit = before[at] + before[at] / 10 + allowed;
        flat &= after[at] <= limit;
        println!(
            "{name}: at least {} in the second quarter, {} in the fourth",
            before[at], after[at]
        );
    }
    let failed = counts.errors.load(Ordering::Relaxed) + counts.wrong.load(Ordering::Relaxed);
    println!(
        "{} gets, {failed} failed or wrong",
        counts.gets.load(Ordering::Relaxed)
    );
    match failed == 0 && flat {
        true => Ok(()),
        false => Err("not flat, or not without errors".into()),
    }
}
