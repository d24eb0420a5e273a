//! Hit ratios of real traces, replayed through a group and through other caches.
//!
//! The traces are not part of the project. Their directory is `LARDER_TRACES`, by default
//! `../shared/traces`. Without it nothing is measured. The capacity is a percentage of the weight of all
//! objects of the trace. A weight is that of a group, with overhead. The others get the same weights.

mod common;

use std::collections::HashMap;
use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use common::Report;
use larder::{CacheType, Context, Eviction, Group, Registry, Sink};

/// The object of each request, and the size of each object in bytes.
struct Trace {
    name: String,
    requests: Vec<u32>,
    sizes: Vec<usize>,
}

fn main() {
    let directory = std::env::var_os("LARDER_TRACES").unwrap_or("../shared/traces".into());
    let directory = Path::new(common::ROOT).join(directory);
    if !directory.is_dir() {
        println!(
            "SKIPPED: no traces in {}; set LARDER_TRACES",
            directory.display()
        );
        return;
    }
    let traces = read_traces(&directory);

    let mut report = Report::new("ratio");
    for trace in &traces {
        for percent in [0.1, 1.0, 10.0] {
            let capacity = (trace.total_charge() as f64 * percent / 100.0) as u64;
            let case = format!("{}@{percent}", trace.name);
            let mut add =
                |name, ratio: f64| report.add(&case, name, "object_hit_pct", "%", 100.0 * ratio);
            add(
                "larder unsharded",
                replay_group(trace, capacity, Eviction::Tide, Some(1)),
            );
            add(
                "larder",
                replay_group(trace, capacity, Eviction::Tide, None),
            );
            add(
                "larder 8 shards",
                replay_group(trace, capacity, Eviction::Tide, Some(8)),
            );
            add("LRU", replay_group(trace, capacity, Eviction::Lru, Some(1)));
            add("quick_cache", replay_quick(trace, capacity));
            add("moka", replay_moka(trace, capacity));
        }
    }
    report.finish();
}

/// The traces of a directory. A trace without sizes is used with equal sizes, and again with drawn ones.
fn read_traces(directory: &Path) -> Vec<Trace> {
    let histogram = Histogram::read(&directory.join("cachelib-kvcache_reg-sizes.json.xz"));
    let mut traces = Vec::new();
    for (name, file) in [
        ("web12", "web12.trace.xz"),
        ("orm-busy", "orm-busy.trace.xz"),
    ] {
        let keys = read_keys(&directory.join(file));
        let objects = keys.iter().max().map_or(0, |&key| key as usize + 1);
        traces.push(Trace {
            name: name.into(),
            requests: keys.clone(),
            sizes: vec![0; objects],
        });
        let sizes = (0..objects as u64).map(|id| histogram.draw(id)).collect();
        traces.push(Trace {
            name: format!("{name}+kv"),
            requests: keys,
            sizes,
        });
    }
    traces.push(read_sized(
        "nasa1d",
        &directory.join("nasa-19950801.csv.xz"),
    ));
    traces
}

impl Trace {
    fn total_charge(&self) -> u64 {
        (0..self.sizes.len()).map(|id| self.charge(id as u32)).sum()
    }

    /// The weight of an object in a group. It is measured, so that this file does not repeat the formula.
    fn charge(&self, id: u32) -> u64 {
        thread_local! {
            static KNOWN: std::cell::RefCell<HashMap<usize, u64>> = Default::default();
        }
        let size = self.sizes[id as usize];
        KNOWN.with_borrow_mut(|known| *known.entry(size).or_insert_with(|| charge_of(size)))
    }
}

fn charge_of(size: usize) -> u64 {
    let group = group_of(move |_| size, u64::MAX / 2, Eviction::Tide, Some(1));
    group.get(&key(0)).expect("the getter answers");
    group.weighted_size()
}

fn key(id: u32) -> String {
    format!("{id:08}")
}

fn group_of(
    size: impl Fn(usize) -> usize + Send + Sync + 'static,
    capacity: u64,
    eviction: Eviction,
    shards: Option<usize>,
) -> Group {
    let builder = Group::builder("ratio")
        .registry(&Registry::new())
        .max_capacity(capacity)
        .max_value_size(1 << 30)
        .eviction(eviction);
    let builder = match shards {
        Some(shards) => builder.shards(shards),
        None => builder,
    };
    builder
        .build(move |_: &Context, key: &str, dest: &mut dyn Sink| {
            Ok(dest.set_bytes(&vec![0; size(key.parse()?)])?)
        })
        .expect("the options are right")
}

fn replay_group(trace: &Trace, capacity: u64, eviction: Eviction, shards: Option<usize>) -> f64 {
    let sizes = trace.sizes.clone();
    let group = group_of(move |id| sizes[id], capacity, eviction, shards);
    for &id in &trace.requests {
        group.get(&key(id)).expect("the getter answers");
    }
    let stats = group.cache_stats(CacheType::Main);
    stats.hits as f64 / stats.gets as f64
}

#[derive(Clone)]
struct Given;

impl quick_cache::Weighter<u32, u64> for Given {
    fn weight(&self, _: &u32, charge: &u64) -> u64 {
        *charge
    }
}

fn replay_quick(trace: &Trace, capacity: u64) -> f64 {
    let mean = trace.total_charge() / trace.sizes.len().max(1) as u64;
    let mut cache = quick_cache::unsync::Cache::with_weighter(
        (capacity / mean.max(1)) as usize,
        capacity,
        Given,
    );
    ratio(trace, |id, charge| {
        let hit = cache.get(&id).is_some();
        if !hit {
            cache.insert(id, charge);
        }
        hit
    })
}

fn replay_moka(trace: &Trace, capacity: u64) -> f64 {
    let cache = moka::sync::Cache::builder()
        .max_capacity(capacity)
        .weigher(|_: &u32, charge: &u64| u32::try_from(*charge).unwrap_or(u32::MAX))
        .build();
    ratio(trace, |id, charge| {
        let hit = cache.get(&id).is_some();
        if !hit {
            cache.insert(id, charge);
        }
        cache.run_pending_tasks();
        hit
    })
}

fn ratio(trace: &Trace, mut request: impl FnMut(u32, u64) -> bool) -> f64 {
    let hits = trace
        .requests
        .iter()
        .filter(|&&id| request(id, trace.charge(id)))
        .count();
    hits as f64 / trace.requests.len() as f64
}

fn unpack(path: &Path) -> Vec<u8> {
    let file = File::open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let mut bytes = Vec::new();
    lzma_rs::xz_decompress(&mut BufReader::new(file), &mut bytes)
        .unwrap_or_else(|e| panic!("{}: {e:?}", path.display()));
    bytes
}

/// Big-endian 32-bit keys, numbered by first appearance.
fn read_keys(path: &Path) -> Vec<u32> {
    let mut numbers = HashMap::new();
    unpack(path)
        .chunks_exact(4)
        .map(|key| {
            let next = numbers.len() as u32;
            *numbers
                .entry([key[0], key[1], key[2], key[3]])
                .or_insert(next)
        })
        .collect()
}

/// Lines of `id,size`.
fn read_sized(name: &str, path: &Path) -> Trace {
    let text = String::from_utf8(unpack(path)).expect("the trace is text");
    let mut trace = Trace {
        name: name.into(),
        requests: Vec::new(),
        sizes: Vec::new(),
    };
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (id, size) = line.split_once(',').expect("id,size");
        let (id, size): (u32, usize) = (id.parse().expect("an id"), size.parse().expect("a size"));
        if trace.sizes.len() <= id as usize {
            trace.sizes.resize(id as usize + 1, 0);
        }
        trace.sizes[id as usize] = size;
        trace.requests.push(id);
    }
    trace
}

/// CacheLib's histogram of value sizes: between edge n and edge n + 1 with weight n.
struct Histogram {
    edges: Vec<u64>,
    sums: Vec<u64>,
}

impl Histogram {
    fn read(path: &Path) -> Histogram {
        let text = String::from_utf8(unpack(path)).expect("JSON is text");
        let list = |name: &str| -> Vec<f64> {
            let from = text.find(name).expect("the list is there");
            let body = &text[from..];
            let (open, close) = (
                body.find('[').expect("a list"),
                body.find(']').expect("its end"),
            );
            let numbers = body[open + 1..close].split(',');
            numbers
                .map(|n| n.trim().parse().expect("a number"))
                .collect()
        };
        let edges = list("\"valSizeRange\"")
            .iter()
            .map(|&edge| edge as u64)
            .collect();
        let mut sum = 0.0;
        let weights = list("\"valSizeRangeProbability\"");
        let sums = weights.iter().map(|weight| {
            sum += weight;
            sum as u64
        });
        let sums = sums.collect();
        Histogram { edges, sums }
    }

    fn draw(&self, id: u64) -> usize {
        let mut rng = common::Rng(id);
        let total = self.sums.last().copied().unwrap_or(1);
        let at = rng.next() % total;
        let bucket = self.sums.partition_point(|&sum| sum <= at);
        let low = self.edges[bucket.min(self.edges.len() - 1)];
        let high = self.edges[(bucket + 1).min(self.edges.len() - 1)].max(low + 1);
        (low + rng.next() % (high - low)) as usize
    }
}
