//! Assignment of keys to nodes: rendezvous hashing beside rings of points.
//!
//! `lookup` is the time to find the owner of a key of 16 bytes, its hash included. `build` is the time
//! to make the set of all nodes. `memory` is what it takes besides the names. `balance` is the share of
//! the busiest node among a million keys, with the mean as 1; chance alone gives 1.00 for few nodes
//! and 1.10 for a thousand.

mod common;

use std::hint::black_box;
use std::time::Instant;

use common::caches::key;
use common::{Report, turns, wanted};
use larder::consistent_hash::{Map, Preset};
use larder::rendezvous::Rendezvous;

const KEYS: u64 = 1_000_000;
/// The points of a node on the two rings.
const FEW: usize = 160;
const MANY: usize = 2048;

/// Something that owns keys.
trait Placement {
    fn owner(&self, key: &str) -> &str;
}

impl Placement for Rendezvous {
    fn owner(&self, key: &str) -> &str {
        self.get(key).expect("there are nodes")
    }
}

impl Placement for Map {
    fn owner(&self, key: &str) -> &str {
        self.get(key).expect("there are nodes")
    }
}

type Make = fn(&[String]) -> Box<dyn Placement>;

const ALL: [(&str, Make, usize); 3] = [
    ("larder", rendezvous, 8),
    ("ring of 160", |nodes| ring(nodes, FEW), 12 * FEW),
    ("ring of 2048", |nodes| ring(nodes, MANY), 12 * MANY),
];

fn rendezvous(nodes: &[String]) -> Box<dyn Placement> {
    let mut set = Rendezvous::new();
    for node in nodes {
        set.add(node.as_str(), 1).expect("a good weight");
    }
    Box::new(set)
}

fn ring(nodes: &[String], points: usize) -> Box<dyn Placement> {
    let mut ring = Map::with_replicas(Preset::Larder, points).expect("a good number");
    ring.add(nodes);
    Box::new(ring)
}

fn main() {
    let keys: Vec<String> = (0..KEYS).map(|n| key('k', n)).collect();
    let mut report = Report::new("ring");
    for count in [3, 10, 64, 256, 1000] {
        let case = format!("{count}-nodes");
        if !wanted(&case) {
            continue;
        }
        let name = |n| format!("http://10.0.{}.{}:8080", n / 256, n % 256);
        let nodes: Vec<String> = (0..count).map(name).collect();
        for round in turns(ALL.len()) {
            for n in round.order {
                let (implementation, make, bytes) = ALL[n];
                let begun = Instant::now();
                let placement = make(&nodes);
                let build = begun.elapsed().as_secs_f64();
                let begun = Instant::now();
                // Fewer keys where each takes longer.
                let asked = &keys[..keys.len() / count.min(100)];
                for key in asked {
                    black_box(placement.owner(key));
                }
                let lookup = begun.elapsed().as_secs_f64() / asked.len() as f64;
                if !round.counted {
                    continue;
                }
                let mut add = |metric, unit, value| {
                    report.add(&case, implementation, metric, unit, value);
                };
                add("lookup", "ns", lookup * 1e9);
                add("build", "us", build * 1e6);
                add("memory", "KiB", (count * bytes) as f64 / 1024.0);
                add("balance", "x mean", balance(&*placement, &keys, count));
            }
        }
    }
    report.finish();
}

/// The share of the busiest node, with the mean as 1.
fn balance(placement: &dyn Placement, keys: &[String], nodes: usize) -> f64 {
    let mut owned = std::collections::HashMap::new();
    for key in keys {
        *owned.entry(placement.owner(key)).or_insert(0_u64) += 1;
    }
    let busiest = owned.values().max().expect("there are keys");
    *busiest as f64 * nodes as f64 / keys.len() as f64
}
