//! A load of gets on a node, in the background, and its figures.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use larder::http::HttpPool;
use larder::{Context, Group};

use crate::node::value_of;

/// Threads that get keys until the end.
pub struct Load {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Tally>>,
}

/// The gets of a load.
#[derive(Default)]
pub struct Tally {
    /// The microseconds of each get.
    micros: Vec<u64>,
    /// The microseconds of each get of a key that the peer `apart` owns.
    micros_apart: Vec<u64>,
    errors: u64,
    wrong: u64,
}

/// The options of a load.
struct Options {
    threads: u64,
    /// The number of keys from which each get chooses at random. With 0, each get takes a new key.
    keys: u64,
    prefix: String,
    deadline: Option<Duration>,
    /// A pause after each get.
    pause: Option<Duration>,
    /// The load gets only keys that this node owns.
    only: Option<String>,
    /// The load gets no keys that this node owns.
    except: Option<String>,
    /// A peer for whose keys the times are kept apart.
    apart: Option<String>,
    /// The place of this node, and the number of nodes that share the keys. One get in two is of a new key, and
    /// the other one is of the last thousand keys of all nodes.
    shared: Option<(u64, u64)>,
}

impl Options {
    /// Options are words such as `threads=8 keys=1000 ms=500 pause_us=100 only=URL shared=2/5`.
    fn new(words: &[&str]) -> Self {
        let words: HashMap<&str, &str> = words.iter().filter_map(|w| w.split_once('=')).collect();
        let number = |name: &str| words.get(name).map(|n| n.parse().expect("a number"));
        let text = |name: &str| words.get(name).map(|text| (*text).to_owned());
        Options {
            threads: number("threads").unwrap_or(8),
            keys: number("keys").unwrap_or(0),
            prefix: text("prefix").unwrap_or_default(),
            deadline: number("ms").map(Duration::from_millis),
            pause: number("pause_us").map(Duration::from_micros),
            only: text("only"),
            except: text("except"),
            apart: text("apart"),
            shared: words.get("shared").map(|shared| {
                let (place, nodes) = shared.split_once('/').expect("two numbers");
                let number = |n: &str| n.parse().expect("a number");
                (number(place), number(nodes))
            }),
        }
    }
}

impl Load {
    pub fn start(group: &Group, pool: &HttpPool, words: &[&str]) -> Load {
        let options = Arc::new(Options::new(words));
        let stop = Arc::new(AtomicBool::new(false));
        let count = Arc::new(AtomicU64::new(0));
        let run = |number| {
            let (group, pool, options) = (group.clone(), pool.clone(), options.clone());
            let (stop, count) = (stop.clone(), count.clone());
            thread::spawn(move || run(number, &group, &pool, &options, &stop, &count))
        };
        Load {
            threads: (0..options.threads).map(run).collect(),
            stop,
        }
    }

    /// Ends the load.
    pub fn end(self) -> Tally {
        self.stop.store(true, Ordering::Relaxed);
        let mut sum = Tally::default();
        for thread in self.threads {
            let tally = thread.join().expect("no panic");
            sum.micros.extend(tally.micros);
            sum.micros_apart.extend(tally.micros_apart);
            sum.errors += tally.errors;
            sum.wrong += tally.wrong;
        }
        sum
    }
}

impl Tally {
    /// Words such as `gets=1000 errors=0`.
    pub fn figures(self) -> String {
        let (errors, wrong) = (self.errors, self.wrong);
        let mut micros = self.micros;
        micros.extend(self.micros_apart);
        let gets = micros.len();
        let [p50, p99, max] = [500, 990, 1000].map(|part| quantile(&mut micros, part));
        format!("gets={gets} errors={errors} wrong={wrong} p50_us={p50} p99_us={p99} max_us={max}")
    }

    /// The microseconds of the gets, then of those of keys that the peer `apart` owns, then the number of
    /// errors, with a `/` between.
    pub fn times(self) -> String {
        let words = |micros: Vec<u64>| {
            let words = micros.iter().map(u64::to_string);
            words.collect::<Vec<_>>().join(" ")
        };
        assert_eq!(self.wrong, 0, "wrong values");
        let (here, apart) = (words(self.micros), words(self.micros_apart));
        format!("{here}/{apart}/{}", self.errors)
    }
}

/// A quantile: the time that `part` of 1000 gets do not exceed.
pub fn quantile(micros: &mut [u64], part: usize) -> u64 {
    micros.sort_unstable();
    let last = micros.len().max(1) - 1;
    let found = micros.get((micros.len() * part / 1000).min(last));
    found.copied().unwrap_or_default()
}

fn run(
    number: u64,
    group: &Group,
    pool: &HttpPool,
    options: &Options,
    stop: &AtomicBool,
    count: &AtomicU64,
) -> Tally {
    let mut tally = Tally::default();
    let mut random = number + 1;
    while !stop.load(Ordering::Relaxed) {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(number * 2 + 1);
        let place = match (options.keys, options.shared) {
            (0, None) => count.fetch_add(1, Ordering::Relaxed),
            (0, Some((place, nodes))) => {
                let number = count.fetch_add(1, Ordering::Relaxed);
                let new = number / 2 * nodes + place;
                match number % 2 {
                    0 => new,
                    _ => new.saturating_sub((random >> 33) % 1000),
                }
            }
            (keys, _) => (random >> 33) % keys,
        };
        let key = format!("{}{place}", options.prefix);
        let is_owner = |url: &Option<String>| url.is_some() && pool.owner(&key) == *url;
        if is_owner(&options.except) || options.only.is_some() && !is_owner(&options.only) {
            continue;
        }
        let start = Instant::now();
        let value = match options.deadline {
            None => group.get(&key),
            Some(limit) => group.get_with(&Context::background().with_timeout(limit), &key),
        };
        let micros = start.elapsed().as_micros() as u64;
        match is_owner(&options.apart) {
            true => tally.micros_apart.push(micros),
            false => tally.micros.push(micros),
        }
        match value {
            Ok(value) => tally.wrong += u64::from(value != value_of(&key).as_slice()),
            Err(_) => tally.errors += 1,
        }
        if let Some(pause) = options.pause {
            thread::sleep(pause);
        }
    }
    tally
}
