//! A get of a cached key, by all threads together, compared with other caches.
//!
//! There are 100,000 keys of 16 bytes with values of 100 bytes. All are present, and nothing is evicted.
//! `larder` is the public `Group::get`, statistics included; `larder TTL`, `larder rates` and `larder forecast`
//! are the same with a time to live, with measured rates, and with forecasts. In `one-hot-key-8` half of all
//! gets are of one key.

mod common;

use std::hint::black_box;
use std::sync::{Arc, Barrier, Mutex};
use std::time::{Duration, Instant};

use common::{Report, Rng, Zipf, chosen, shuffled, turns, wanted};
use larder::{ByteView, Context, Group, GroupBuilder, Registry, Sink};

const KEYS: usize = 100_000;
const VALUE: usize = 100;
const CAPACITY: u64 = 256 << 20;
/// Gets of one thread in one round.
const GETS: usize = 1_000_000;

trait Cache: Sync {
    /// The length of the value. By `&String`, because mini-moka cannot look up a `&str`.
    #[allow(clippy::ptr_arg, reason = "see above")]
    fn get(&self, key: &String) -> usize;
}

/// An implementation and its name in the tables.
type Named = (&'static str, Box<dyn Cache>);

impl Cache for Group {
    fn get(&self, key: &String) -> usize {
        Group::get(self, key).map_or(0, |view| view.len())
    }
}

type Shared = Arc<[u8]>;

#[derive(Clone)]
struct ByBytes;

impl quick_cache::Weighter<Box<str>, Shared> for ByBytes {
    fn weight(&self, key: &Box<str>, value: &Shared) -> u64 {
        (key.len() + value.len()) as u64
    }
}

type QuickCache = quick_cache::sync::Cache<Box<str>, Shared, ByBytes>;

impl Cache for QuickCache {
    fn get(&self, key: &String) -> usize {
        QuickCache::get(self, &**key).map_or(0, |value| value.len())
    }
}

impl Cache for moka::sync::Cache<Box<str>, Shared> {
    fn get(&self, key: &String) -> usize {
        moka::sync::Cache::get(self, &**key).map_or(0, |value| value.len())
    }
}

impl Cache for mini_moka::sync::Cache<String, Shared> {
    fn get(&self, key: &String) -> usize {
        mini_moka::sync::Cache::get(self, key).map_or(0, |value| value.len())
    }
}

impl Cache for Mutex<lru::LruCache<Box<str>, Shared>> {
    fn get(&self, key: &String) -> usize {
        let value = self.lock().unwrap().get(&**key).cloned();
        value.map_or(0, |value| value.len())
    }
}

/// Another way to get a value from a group than `Group::get`.
struct Into(Group, fn(&Group, &str) -> usize);

impl Cache for Into {
    fn get(&self, key: &String) -> usize {
        (self.1)(&self.0, key)
    }
}

fn main() {
    let keys: Vec<String> = (0..KEYS).map(|n| format!("key-{n:012}")).collect();
    let caches = filled(&keys);
    let mut rng = Rng(42);
    let order = shuffled(KEYS, &mut rng);
    let zipf = Zipf::new(KEYS, 0.99);
    let mut report = Report::new("hit");
    let mut measure = |case: &str, caches: &[Named], draws: &dyn Fn(u64) -> Vec<Vec<u32>>| {
        if !wanted(case) {
            return;
        }
        for round in turns(caches.len()) {
            let draws = at_hand(&keys, &draws(round.number as u64));
            let gets: usize = draws.iter().map(Vec::len).sum();
            for n in round.order {
                let (name, cache) = &caches[n];
                if !chosen(name) {
                    continue;
                }
                let seconds = run(&**cache, &draws);
                if round.counted {
                    let mops = gets as f64 / seconds / 1e6;
                    report.add(case, name, "mops", "million gets/s", mops);
                }
            }
        }
    };
    for (distribution, zipf) in [("zipf", Some(&zipf)), ("uniform", None)] {
        for threads in [1, 2, 8] {
            let case = format!("{distribution}-{threads}");
            measure(&case, &caches, &|round| draws(threads, zipf, &order, round));
        }
    }
    measure("one-hot-key-8", &caches[..5], &|round| {
        let mut draws = draws(8, None, &order, 1000 + round);
        for thread in &mut draws {
            for draw in thread.iter_mut().step_by(2) {
                *draw = 0;
            }
        }
        draws
    });
    report.finish();
}

/// All implementations, filled with all keys.
fn filled(keys: &[String]) -> Vec<Named> {
    let value = [7_u8; VALUE];

    let group = |option: fn(GroupBuilder) -> GroupBuilder| {
        option(Group::builder("hit"))
            .registry(&Registry::new())
            .max_capacity(CAPACITY)
            .build(move |_: &Context, _: &str, dest: &mut dyn Sink| Ok(dest.set_bytes(&value)?))
            .expect("the options are right")
    };
    let variants = [
        (
            "larder TTL",
            group(|builder| builder.time_to_live(Duration::from_secs(3600))),
        ),
        ("larder rates", group(|builder| builder.measure_rates(true))),
        ("larder forecast", group(|builder| builder.forecast(true))),
    ];
    let group = group(|builder| builder);
    let quick = QuickCache::with_weighter(KEYS, CAPACITY, ByBytes);
    let moka = moka::sync::Cache::builder()
        .max_capacity(CAPACITY)
        .weigher(weigh)
        .build();
    let mini = mini_moka::sync::Cache::builder()
        .max_capacity(CAPACITY)
        .weigher(weigh)
        .build();
    let lru = Mutex::new(lru::LruCache::unbounded());
    for key in keys {
        let owned = || Box::<str>::from(key.as_str());
        group.get(key).expect("the getter answers");
        for (_, variant) in &variants {
            variant.get(key).expect("the getter answers");
        }
        quick.insert(owned(), Shared::from(&value[..]));
        moka.insert(owned(), Shared::from(&value[..]));
        mini.insert(key.clone(), Shared::from(&value[..]));
        lru.lock().unwrap().put(owned(), Shared::from(&value[..]));
    }
    moka.run_pending_tasks();

    let [into_view, into_vec] = with_sinks(&group);
    let mut caches: Vec<Named> = vec![
        ("larder", Box::new(group)),
        ("quick_cache", Box::new(quick)),
        ("moka", Box::new(moka)),
        ("mini-moka", Box::new(mini)),
        ("lru+Mutex", Box::new(lru)),
        into_view,
        into_vec,
    ];
    for (name, variant) in variants {
        caches.push((name, Box::new(variant)));
    }
    caches
}

/// The same group with `get_into`.
fn with_sinks(group: &Group) -> [Named; 2] {
    let into_view = Into(group.clone(), |group, key| {
        let mut view = ByteView::new();
        group
            .get_into(&Context::background(), key, &mut view)
            .map_or(0, |()| view.len())
    });
    let into_vec = Into(group.clone(), |group, key| {
        let mut bytes = Vec::new();
        group
            .get_into(&Context::background(), key, &mut bytes)
            .map_or(0, |()| bytes.len())
    });
    [
        ("larder get_into view", Box::new(into_view)),
        ("larder get_into Vec", Box::new(into_vec)),
    ]
}

fn weigh<K: AsRef<str>>(key: &K, value: &Shared) -> u32 {
    (key.as_ref().len() + value.len()) as u32
}

fn draws(threads: usize, zipf: Option<&Zipf>, order: &[u32], seed: u64) -> Vec<Vec<u32>> {
    (0..threads)
        .map(|thread| {
            let mut rng = Rng(seed * 64 + thread as u64);
            (0..GETS / threads)
                .map(|_| match zipf {
                    Some(zipf) => order[zipf.draw(&mut rng)],
                    None => order[rng.below(KEYS)],
                })
                .collect()
        })
        .collect()
}

/// Copies of the drawn keys in their order, so that a thread finds its next key in the processor's
/// caches, as if it had just made or received it.
fn at_hand(keys: &[String], draws: &[Vec<u32>]) -> Vec<Vec<String>> {
    let keys_of = |draws: &Vec<u32>| draws.iter().map(|&n| keys[n as usize].clone()).collect();
    draws.iter().map(keys_of).collect()
}

/// The seconds that all threads take for their gets.
fn run(cache: &dyn Cache, draws: &[Vec<String>]) -> f64 {
    let start = Barrier::new(draws.len() + 1);
    let end = Barrier::new(draws.len() + 1);
    std::thread::scope(|scope| {
        for draws in draws {
            let (start, end) = (&start, &end);
            scope.spawn(move || {
                start.wait();
                let mut bytes = 0;
                for key in draws {
                    bytes += cache.get(key);
                }
                assert_eq!(black_box(bytes), draws.len() * VALUE, "a key was missing");
                end.wait();
            });
        }
        start.wait();
        let began = Instant::now();
        end.wait();
        began.elapsed().as_secs_f64()
    })
}
