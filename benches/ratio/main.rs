//! Hit ratios of real traces, replayed through a group and through other caches.
//!
//! The traces are not part of the project. Their directory is `LARDER_TRACES`, by default
//! `../shared/traces`. Without it nothing is measured. The capacity is a percentage of the weight of all
//! objects of the trace. A weight is that of a group, with overhead. The others get the same weights.
//! The object hit ratio counts requests, the byte hit ratio the weights of the requested objects.
//!
//! Then groups forecast their hit ratios at other capacities.
//!
//! `LARDER_CASES` chooses cells (`nasa1d@10`), all cells of a trace (`nasa1d`), or `forecast`.

#[path = "../common/mod.rs"]
mod common;
mod forecast;
mod traces;

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use common::{Report, chosen, wanted};
use larder::{Context, Eviction, Group, Registry, Sink};
use traces::Trace;

/// The traces, and the capacities in percent. At 3 to 7 % of web12+kv the largest objects take much of
/// the cache.
const CELLS: [(&str, &[f64]); 7] = [
    ("web12", &[0.1, 1.0, 10.0]),
    ("web12+kv", &[0.1, 1.0, 3.0, 4.0, 5.0, 7.0, 10.0]),
    ("nasa1d", &[0.1, 1.0, 10.0]),
    ("orm-busy", &[0.1, 1.0, 10.0]),
    ("orm-busy+kv", &[0.1, 1.0, 10.0]),
    ("web12+kv-jump", &[1.0, 10.0]),
    ("orm-busy-jump", &[0.1, 1.0, 10.0]),
];

/// Replays a trace with a capacity in bytes.
type Replay = fn(&Trace, u64) -> Ratios;

const IMPLEMENTATIONS: [(&str, Replay); 7] = [
    ("larder unsharded", |trace, capacity| {
        replay_group(trace, group(capacity).shards(1)).0
    }),
    ("larder", |trace, capacity| {
        replay_group(trace, group(capacity)).0
    }),
    ("larder 8 shards", |trace, capacity| {
        replay_group(trace, group(capacity).shards(8)).0
    }),
    ("favor_objects", |trace, capacity| {
        replay_group(trace, group(capacity).shards(1).favor_objects(true)).0
    }),
    ("larder LRU", |trace, capacity| {
        replay_group(trace, group(capacity).shards(1).eviction(Eviction::Lru)).0
    }),
    ("quick_cache", replay_quick),
    ("moka", replay_moka),
];

fn main() {
    let directory = std::env::var_os("LARDER_TRACES").unwrap_or("../shared/traces".into());
    let directory = Path::new(common::ROOT).join(directory);
    if !directory.is_dir() {
        let directory = directory.display();
        println!("SKIPPED: no directory {directory}; LARDER_TRACES names that of the traces");
        return;
    }
    let mut report = Report::new("ratio");
    println!("object hit % / byte hit %");
    print!("{:18}", "");
    for (name, _) in IMPLEMENTATIONS.iter().filter(|(name, _)| chosen(name)) {
        print!("  {name:>16}");
    }
    println!();
    for (name, percents) in CELLS {
        let cells = percents
            .iter()
            .map(|&percent| (format!("{name}@{percent}"), percent));
        let cells = cells.filter(|(cell, _)| wanted(cell) || wanted(name));
        run_cells(&mut report, &directory, name, cells.collect(), measure);
    }
    println!("\nforecast hit % (and that of a group with this capacity)");
    for (name, _) in CELLS.iter().filter(|(name, _)| !name.ends_with("-jump")) {
        let cells = forecast::cells(name).collect();
        run_cells(&mut report, &directory, name, cells, forecast::measure);
    }
    report.write();
}

/// Measures cells of a trace, each with its name and its capacity in percent.
fn run_cells(
    report: &mut Report,
    directory: &Path,
    trace: &str,
    cells: Vec<(String, f64)>,
    measure: impl Fn(&mut Report, &str, &Trace, u64),
) {
    if cells.is_empty() {
        return;
    }
    match traces::read(directory, trace) {
        Ok(trace) => {
            for (cell, percent) in cells {
                let capacity = (trace.footprint as f64 * percent / 100.0) as u64;
                measure(report, &cell, &trace, capacity);
            }
        }
        Err(reason) => println!("SKIPPED: {trace}: {reason}"),
    }
}

/// Replays a trace through all implementations, and prints their ratios.
fn measure(report: &mut Report, cell: &str, trace: &Trace, capacity: u64) {
    print!("{cell:18}");
    for (name, replay) in IMPLEMENTATIONS {
        if !chosen(name) {
            continue;
        }
        let ratios = replay(trace, capacity);
        let (objects, bytes) = (ratios.object_percent(), ratios.byte_percent());
        report.add(cell, name, "object_hit_pct", "%", objects);
        report.add(cell, name, "byte_hit_pct", "%", bytes);
        print!("  {:>16}", format!("{objects:.2} / {bytes:.2}"));
        let _ = std::io::Write::flush(&mut std::io::stdout());
    }
    println!();
}

/// The counted requests and their weight, and of both the part that was a hit.
#[derive(Default)]
struct Ratios {
    requests: u64,
    hits: u64,
    weight: u64,
    hit_weight: u64,
}

impl Ratios {
    fn object_percent(&self) -> f64 {
        100.0 * self.hits as f64 / self.requests.max(1) as f64
    }

    fn byte_percent(&self) -> f64 {
        100.0 * self.hit_weight as f64 / self.weight.max(1) as f64
    }
}

/// Replays a trace through a function that says whether a request was a hit.
fn replay(trace: &Trace, mut is_hit: impl FnMut(u32, u64) -> bool) -> Ratios {
    let mut ratios = Ratios::default();
    for (n, &id) in trace.requests.iter().enumerate() {
        let weight = trace.weights[id as usize];
        let hit = is_hit(id, weight);
        if n >= trace.uncounted {
            ratios.requests += 1;
            ratios.weight += weight;
            ratios.hits += u64::from(hit);
            ratios.hit_weight += if hit { weight } else { 0 };
        }
    }
    ratios
}

fn group(capacity: u64) -> larder::GroupBuilder {
    Group::builder("ratio")
        .registry(&Registry::new())
        .max_capacity(capacity)
        .max_value_size(1 << 30)
}

fn replay_group(trace: &Trace, builder: larder::GroupBuilder) -> (Ratios, Group) {
    let loads = Arc::new(AtomicU64::new(0));
    let group = fill_with_zeros(builder, &trace.sizes, &loads);
    let keys: Vec<String> = (0..trace.sizes.len()).map(|id| key(id as u32)).collect();
    let mut loaded = 0;
    let ratios = replay(trace, |id, _| {
        group.get(&keys[id as usize]).expect("the getter answers");
        let before = std::mem::replace(&mut loaded, loads.load(Ordering::Relaxed));
        before == loaded
    });
    (ratios, group)
}

/// A group whose getter makes values of these sizes, and counts its calls.
fn fill_with_zeros(
    builder: larder::GroupBuilder,
    sizes: &Arc<[usize]>,
    loads: &Arc<AtomicU64>,
) -> Group {
    let zeros = vec![0; sizes.iter().max().copied().unwrap_or(0)];
    let (sizes, loads) = (sizes.clone(), loads.clone());
    let getter = move |_: &Context, key: &str, dest: &mut dyn Sink| {
        loads.fetch_add(1, Ordering::Relaxed);
        Ok(dest.set_bytes(&zeros[..sizes[key.parse::<usize>()?]])?)
    };
    builder.build(getter).expect("the options are right")
}

fn key(id: u32) -> String {
    format!("{id:08}")
}

/// The weights of objects in a group. They are measured, so that this file does not repeat the formula.
fn weights(sizes: &[usize]) -> Vec<u64> {
    let mut known: HashMap<usize, u64> = HashMap::new();
    let group = fill_with_zeros(
        group(u64::MAX / 2).shards(1),
        &sizes.into(),
        &Arc::default(),
    );
    let weight = |(id, size): (usize, &usize)| {
        *known.entry(*size).or_insert_with(|| {
            let key = key(id as u32);
            group.get(&key).expect("the getter answers");
            let weight = group.weighted_size();
            group.invalidate(&key);
            weight
        })
    };
    sizes.iter().enumerate().map(weight).collect()
}

#[derive(Clone)]
struct Given;

impl quick_cache::Weighter<u32, u64> for Given {
    fn weight(&self, _: &u32, weight: &u64) -> u64 {
        *weight
    }
}

fn replay_quick(trace: &Trace, capacity: u64) -> Ratios {
    let mean = trace.footprint / trace.sizes.len().max(1) as u64;
    let entries = (capacity / mean.max(1)) as usize;
    let mut cache = quick_cache::unsync::Cache::with_weighter(entries, capacity, Given);
    replay(trace, |id, weight| {
        let hit = cache.get(&id).is_some();
        if !hit {
            cache.insert(id, weight);
        }
        hit
    })
}

fn replay_moka(trace: &Trace, capacity: u64) -> Ratios {
    let cache = moka::sync::Cache::builder()
        .max_capacity(capacity)
        .weigher(|_: &u32, weight: &u64| u32::try_from(*weight).unwrap_or(u32::MAX))
        .build();
    replay(trace, |id, weight| {
        let hit = cache.get(&id).is_some();
        if !hit {
            cache.insert(id, weight);
        }
        cache.run_pending_tasks();
        hit
    })
}
