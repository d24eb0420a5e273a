//! The miss path of a whole cluster: nodes in processes of their own, from a cold start to a steady
//! state.
//!
//! 3 and 10 nodes share 10,000 keys of 16 bytes with values of 100. They do 400,000 gets in all, by
//! Zipf 1.0, each node the same number. A node's share of the data is all data over the number of
//! nodes. In the `roomy` cases a node has room for 1.4 times its share: the keys that it owns fit into
//! the main share of its cache, and the rest, about a third of its share, keeps copies of others'
//! values. In the `tight` cases it has room for half of its share, an eighth of which is for copies, so
//! the whole cluster keeps at most half of the data.
//!
//! The implementations differ in the admission of copies into the hot share: `larder` admits all, which
//! is the default, `larder hot off` none, and `larder coin 10 %` one in ten at random, like
//! golang/groupcache (with larder's eviction).
//!
//! The figures are counts of gets, not times, so they do not depend on the machine's speed.
//! The system chooses the ports, so every round has another ring.
//!
//! - `leave_pct`: gets for which a node asked another, of all gets in the last fifth of the run;
//!   `leave_pct_cold` the same in the first fifth
//! - `origin_pct`: loads at the origin for each get, in the last fifth
//! - `loads_per_key`: loads at the origin over the different keys that were loaded, in the whole run;
//!   1 is the figure of one cache that keeps everything
//! - `owned_max_over_mean`, `loads_max_over_mean`: the maximum of the nodes over their mean, of the
//!   owned keys among 200,000, and of the loads
//! - `failed_exchanges`: must be 0, otherwise the other figures mean nothing
//!
//! The curves go to `target/larder-bench/cluster-*.svg`, each the mean of the rounds.
//! `LARDER_CASES` is a comma-separated list of cases to run.

#[path = "../common/mod.rs"]
mod common;
mod fleet;
mod node;
mod plot;

use common::{Report, rounds, wanted};
use fleet::{Fleet, Run, STEPS};
use plot::{Curve, Plot, Style};

const KEYS: usize = 10_000;
/// The gets of all nodes together.
const GETS: usize = 400_000;
/// The number of keys whose owners are counted. It is large, so that the figure shows the balance of
/// the ring and not chance.
const OWNED_KEYS: usize = 200_000;

/// Name, and the room of a node in shares of the data.
const ROOMS: [(&str, f64); 2] = [("roomy", 1.4), ("tight", 0.5)];

/// Implementation, the name of its admission, and the style of its curves. The later curves are thinner,
/// so that the curves below them are visible.
const ADMISSIONS: [(&str, &str, Style); 3] = [
    ("larder", "always", ("#1b6ca8", 4.0)),
    ("larder hot off", "never", ("#c0392b", 2.5)),
    ("larder coin 10 %", "coin", ("#22a455", 1.6)),
];

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    if let Some(at) = arguments.iter().position(|word| word == "--node") {
        return node::be(&arguments[at + 1..]);
    }
    let mut report = Report::new("cluster");
    for nodes in [3, 10] {
        let mut leaving = Vec::new();
        let mut loads = Vec::new();
        for (room_name, room) in ROOMS {
            let case = format!("{nodes}-{room_name}");
            if !wanted(&case) {
                continue;
            }
            let mut runs: [Vec<Run>; 3] = Default::default();
            for round in 0..rounds() {
                for ((name, admission, _), runs) in ADMISSIONS.iter().zip(&mut runs) {
                    let run = Fleet::start(nodes, admission, room, round as u64).run();
                    add(&mut report, &case, name, &run);
                    runs.push(run);
                }
            }
            for ((name, _, style), runs) in ADMISSIONS.iter().zip(&runs) {
                let curve = |from: usize, value: &dyn Fn(&Run, usize) -> f64| Curve {
                    name: format!("{name}, {room_name}"),
                    style: *style,
                    dashed: room_name == "tight",
                    points: (from..=STEPS)
                        .map(|step| {
                            let mean = runs.iter().map(|run| value(run, step)).sum::<f64>();
                            (thousand_gets(step), mean / runs.len() as f64)
                        })
                        .collect(),
                };
                leaving.push(curve(1, &|run, step| run.leave_pct(step - 1, step)));
                loads.push(curve(0, &|run, step| run.loads(step) / 1000.0));
            }
        }
        if !leaving.is_empty() {
            draw(nodes, leaving, loads);
        }
    }
    report.finish();
}

/// Writes the pictures of the clusters with this number of nodes.
fn draw(nodes: usize, leaving: Vec<Curve>, loads: Vec<Curve>) {
    let plot = |title: String, y: &'static str, curves| Plot {
        title,
        x: "gets of all nodes, thousand",
        y,
        curves,
    };
    plot(
        format!("Gets that leave the node, {nodes} nodes"),
        "% of gets, each point over 8 thousand",
        leaving,
    )
    .write(&format!("cluster-{nodes}-leaving.svg"));
    plot(
        format!("Loads at the origin since the cold start, {nodes} nodes"),
        "loads, thousand",
        loads,
    )
    .write(&format!("cluster-{nodes}-loads.svg"));
}

fn thousand_gets(step: usize) -> f64 {
    (step * GETS / STEPS) as f64 / 1000.0
}

fn add(report: &mut Report, case: &str, name: &'static str, run: &Run) {
    let fifth = STEPS / 5;
    let mut add = |metric, unit, value| report.add(case, name, metric, unit, value);
    add("leave_pct", "%", run.leave_pct(STEPS - fifth, STEPS));
    add("leave_pct_cold", "%", run.leave_pct(0, fifth));
    add("origin_pct", "%", run.origin_pct(STEPS - fifth, STEPS));
    add("loads_per_key", "loads", run.loads_per_key());
    let (owned, loads) = (&run.owned, &run.loads_by_node);
    add("owned_max_over_mean", "ratio", max_over_mean(owned));
    add("loads_max_over_mean", "ratio", max_over_mean(loads));
    add("failed_exchanges", "exchanges", run.failed());
}

fn max_over_mean(numbers: &[f64]) -> f64 {
    let mean = numbers.iter().sum::<f64>() / numbers.len() as f64;
    numbers.iter().copied().fold(0.0, f64::max) / mean
}
