//! A removal is a promise: processes share a cache, faults happen to them, and no get returns a value that
//! is older than a removal had promised.
//!
//! Each test has a cluster of its own, and lets one fault happen. By default once; `LARDER_PROMISE_GETS` is
//! the number of gets after which a test ends, and `LARDER_PROMISE_CUT_SECONDS` the time for which a node is
//! cut off. `cargo run --release --example chaos` lets all of them happen to one cluster.
//!
//! The tests whose names begin with `needs_root` give each process a network namespace: `.ci/promise.sh`.

#![cfg(all(feature = "http", target_os = "linux", not(larder_loom)))]

mod harness;

use std::sync::Mutex;

use harness::cluster::{Cluster, Second, Setup, Verdict, Watch};
use harness::faults::Fault;
use harness::random::Random;

/// This is no test of its own: the other tests start this program again for it.
#[test]
#[ignore = "a node of the other tests"]
fn node_process() {
    if let Ok(options) = std::env::var(harness::process::OPTIONS) {
        harness::node::run(&options).expect("the node works");
    }
}

/// One at a time, so that the clusters do not slow each other.
static ONE: Mutex<()> = Mutex::new(());

/// Prints everything, which is shown if the test fails.
struct Printed;

impl Watch for Printed {
    fn second(&mut self, second: &Second<'_>) {
        let (states, counts) = (second.states, second.counts);
        println!("{states:?}, {counts:?}, {} violations", second.violations);
    }

    fn event(&mut self, event: &str) {
        println!("{event}");
    }
}

fn setup(nodes: usize) -> Setup {
    let program = std::env::current_exe().expect("the path of this program");
    let arguments = ["--exact", "node_process", "--ignored", "--nocapture"];
    let program = [program.into()]
        .into_iter()
        .chain(arguments.map(Into::into))
        .collect();
    Setup {
        nodes,
        program,
        seed: 1,
        namespaces: false,
        adjustable_clock: false,
        unverified_ms: 0,
    }
}

/// Lets a fault happen until there were enough gets.
fn judged(setup: Setup, fault: Fault) -> Verdict {
    let _one = ONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let gets = std::env::var("LARDER_PROMISE_GETS").ok();
    let gets = gets.map_or(0, |gets| gets.parse().expect("a number"));
    let mut random = Random(setup.seed);
    let mut watch = Printed;
    let mut cluster = Cluster::start(setup, &mut watch).expect("nodes");
    loop {
        fault.happen(&mut cluster, &mut random).expect("nodes");
        if cluster.counts.gets >= gets {
            return cluster.finish().expect("records");
        }
    }
}

#[track_caller]
fn assert_kept(setup: Setup, fault: Fault) {
    let verdict = judged(setup, fault);
    let counts = verdict.counts;
    println!("{counts:?}\n{}", verdict.status.join("\n"));
    assert!(counts.gets > 0 && counts.promises > 0, "{counts:?}");
    let violations = verdict.violations;
    assert!(
        violations.is_empty(),
        "{} violations, such as:\n{}",
        violations.len(),
        violations[..violations.len().min(5)].join("\n")
    );
}

#[test]
fn promise_holds_while_requests_are_delayed() {
    assert_kept(setup(3), Fault::Delay);
}

#[test]
fn promise_holds_while_a_node_is_cut_off() {
    assert_kept(
        Setup {
            adjustable_clock: true,
            ..setup(3)
        },
        Fault::Cut,
    );
}

#[test]
fn promise_holds_while_a_node_with_max_unverified_is_cut_off() {
    assert_kept(
        Setup {
            unverified_ms: 500,
            ..setup(3)
        },
        Fault::Cut,
    );
}

#[test]
fn promise_holds_after_the_remover_is_killed() {
    assert_kept(setup(3), Fault::KillRemover);
}

#[test]
fn promise_holds_after_an_owner_is_killed() {
    assert_kept(setup(3), Fault::KillOwner);
}

#[test]
fn promise_holds_after_an_old_dump_is_restored() {
    assert_kept(setup(3), Fault::Restore);
}

#[test]
fn promise_holds_while_the_list_of_peers_changes() {
    assert_kept(setup(3), Fault::Ring);
}

#[test]
fn promise_holds_after_a_node_was_stopped() {
    assert_kept(setup(3), Fault::Stop);
}

#[test]
fn promise_holds_among_five_nodes_while_requests_are_delayed() {
    assert_kept(setup(5), Fault::Delay);
}

#[test]
#[ignore = "needs root: .ci/promise.sh"]
fn needs_root_promise_holds_among_three_nodes_with_networks_of_their_own() {
    for fault in Fault::ALL {
        assert_kept(
            Setup {
                namespaces: true,
                ..setup(3)
            },
            fault,
        );
    }
}

#[test]
#[ignore = "needs root: .ci/promise.sh"]
fn needs_root_promise_holds_among_five_nodes_with_networks_of_their_own() {
    assert_kept(
        Setup {
            namespaces: true,
            ..setup(5)
        },
        Fault::Cut,
    );
}
