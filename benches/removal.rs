//! Removals in a cluster of three nodes over loopback, all in this process.
//!
//! | case | what is timed |
//! |---|---|
//! | `remove` | each `Group::remove` of 3,000 keys that all nodes have cached, by one thread |
//! | `remove-many-1000` | `Group::remove_many` of 1,000 such keys, 20 times |
//! | `gets` | gets of 1,000 keys for a second, by two threads at a node that another node's removals reach: `gets-quiet` without removals, `gets-storm` while a thread removes these keys one after the other without a pause. Then the gets include the loads that the removals cause. |
//! | `hop-before`, `hop-after` | gets of a copy that is not kept, so each asks the owner: before the first removal, and after 10,000 removals of other keys. The second includes the fence and the digest. |
//! | `clear` | `Group::clear` of 10^6 entries, on the thread that calls it |
//!
//! `LARDER_CASES` is a comma-separated list of cases to run.

mod common;

use std::net::TcpListener;
use std::time::{Duration, Instant};

use common::{Report, rounds, wanted};
use larder::http::{HttpPool, Server};
use larder::{Context, Group, HotAdmission, Registry, Sink};

struct Node {
    pool: HttpPool,
    group: Group,
    /// Keeps no copies.
    hop: Group,
    _server: Server,
}

fn main() {
    let nodes = cluster();
    let mut report = Report::new("removal");
    for _ in 0..rounds() {
        if wanted("remove") {
            remove(&nodes, &mut report);
        }
        if wanted("remove-many-1000") {
            remove_many(&nodes, &mut report);
        }
        if wanted("gets") {
            gets(&nodes, &mut report);
        }
    }
    hop(&nodes, &mut report);
    // Last, because it changes the lists of peers.
    for _ in 0..rounds() {
        if wanted("clear") {
            clear(&nodes, &mut report);
        }
    }
    report.finish();
}

fn cluster() -> Vec<Node> {
    let listen = |_| TcpListener::bind("127.0.0.1:0").expect("a port");
    let listeners: Vec<_> = (0..3).map(listen).collect();
    let url = |listener: &TcpListener| format!("http://{}", listener.local_addr().expect("bound"));
    let urls: Vec<String> = listeners.iter().map(url).collect();
    let node = |(listener, url): (TcpListener, &String)| {
        let registry = Registry::new();
        let pool = HttpPool::builder(url)
            .registry(&registry)
            .build()
            .expect("a pool");
        pool.set(&urls).expect("peers");
        let load = |_: &Context, key: &str, dest: &mut dyn Sink| Ok(dest.set_str(key)?);
        let group = |name, admission| {
            let builder = Group::builder(name)
                .registry(&registry)
                .max_capacity(512 << 20);
            builder
                .hot_admission(admission)
                .build(load)
                .expect("a group")
        };
        Node {
            group: group("removal", HotAdmission::Always),
            hop: group("hop", HotAdmission::Never),
            _server: pool.server().serve_listener(listener).expect("a server"),
            pool,
        }
    };
    listeners.into_iter().zip(&urls).map(node).collect()
}

fn keys(count: usize) -> Vec<String> {
    (0..count).map(|n| format!("key-{n:012}")).collect()
}

fn fill(nodes: &[Node], keys: &[String]) {
    for node in nodes {
        for value in node.group.get_many(&Context::background(), keys) {
            value.expect("a value");
        }
    }
}

/// Microseconds at the 50th and the 99th percentile.
fn percentiles(mut times: Vec<Duration>) -> [f64; 2] {
    times.sort_unstable();
    let at = |part: f64| times[((times.len() - 1) as f64 * part) as usize];
    [0.5, 0.99].map(|part| at(part).as_secs_f64() * 1e6)
}

fn add_times(report: &mut Report, case: &'static str, times: Vec<Duration>) {
    let seconds: f64 = times.iter().map(Duration::as_secs_f64).sum();
    report.add(case, "larder", "per_s", "1/s", times.len() as f64 / seconds);
    let [p50, p99] = percentiles(times);
    report.add(case, "larder", "p50_us", "µs", p50);
    report.add(case, "larder", "p99_us", "µs", p99);
}

fn timed(call: impl FnOnce()) -> Duration {
    let begun = Instant::now();
    call();
    begun.elapsed()
}

fn remove(nodes: &[Node], report: &mut Report) {
    let (keys, ctx) = (keys(3000), Context::background());
    fill(nodes, &keys);
    let remove = |key: &String| timed(|| nodes[0].group.remove(&ctx, key).expect("confirmed"));
    add_times(report, "remove", keys.iter().map(remove).collect());
}

fn remove_many(nodes: &[Node], report: &mut Report) {
    let (keys, ctx) = (keys(1000), Context::background());
    let remove = |_| {
        fill(nodes, &keys);
        timed(|| nodes[0].group.remove_many(&ctx, &keys).expect("confirmed"))
    };
    add_times(report, "remove-many-1000", (0..20).map(remove).collect());
}

fn clear(nodes: &[Node], report: &mut Report) {
    let group = &nodes[0].group;
    // Each node is alone for a while, so that this one owns all keys.
    nodes
        .iter()
        .for_each(|node| node.pool.set([node.pool.self_url()]).expect("alone"));
    // Kept until the end: malloc merges a million freed strings in its next large allocation.
    let keys = keys(1_000_000);
    for key in &keys {
        group.get(key).expect("a value");
    }
    let count = group.entry_count();
    let took = timed(|| group.clear(&Context::background()).expect("alone"));
    report.add("clear", "larder", "entries", "entries", count as f64);
    report.add("clear", "larder", "ms", "ms", took.as_secs_f64() * 1e3);
    let urls: Vec<_> = nodes.iter().map(|node| node.pool.self_url()).collect();
    nodes
        .iter()
        .for_each(|node| node.pool.set(&urls).expect("peers"));
}

fn gets(nodes: &[Node], report: &mut Report) {
    let keys = keys(1000);
    for (case, storms) in [("gets-quiet", false), ("gets-storm", true)] {
        fill(nodes, &keys);
        let begun = Instant::now();
        let is_over = || begun.elapsed() > Duration::from_secs(1);
        let times = std::thread::scope(|scope| {
            if storms {
                scope.spawn(|| {
                    for key in keys.iter().cycle().take_while(|_| !is_over()) {
                        let ctx = Context::background();
                        nodes[0].group.remove(&ctx, key).expect("confirmed");
                    }
                });
            }
            let get = || {
                let all = keys.iter().cycle().take_while(|_| !is_over());
                let get = |key: &String| timed(|| drop(nodes[1].group.get(key).expect("a value")));
                all.map(get).collect::<Vec<_>>()
            };
            let other = scope.spawn(get);
            let mut times = get();
            times.extend(other.join().expect("no panic"));
            times
        });
        add_times(report, case, times);
    }
}

fn hop(nodes: &[Node], report: &mut Report) {
    let node = &nodes[0];
    let is_remote = |key: &String| node.pool.owner(key).as_deref() != Some(node.pool.self_url());
    let keys: Vec<String> = keys(1000).into_iter().filter(is_remote).collect();
    for (case, removes) in [("hop-before", false), ("hop-after", true)] {
        if !wanted(case) {
            continue;
        }
        if removes {
            remove_others(node);
        }
        // The owners load the values, after all removals.
        for key in &keys {
            node.hop.get(key).expect("a value");
        }
        for _ in 0..rounds() {
            let times = (0..20).flat_map(|_| &keys);
            let times = times.map(|key| timed(|| drop(node.hop.get(key).expect("a value"))));
            add_times(report, case, times.collect());
        }
    }
}

/// Removes keys other than those that are measured: a get of a key whose stripe has a removal under way costs more.
fn remove_others(node: &Node) {
    let removed: Vec<String> = (0..10_000).map(|n| format!("removed-{n}")).collect();
    for keys in removed.chunks(10) {
        let confirmed = node.hop.remove_many(&Context::background(), keys);
        confirmed.expect("confirmed");
    }
}
