//! Three processes share a cache under load. One is killed and started again on its port.

#![cfg(feature = "http")]

mod node;
#[allow(dead_code, reason = "tests/faults uses the other helpers")]
#[path = "../faults/process.rs"]
mod process;

use std::time::{Duration, Instant};

use node::{CALLERS, Counts, KEYS};
use process::Process;

/// The number of gets that each node makes in each phase, at least.
const GETS: u64 = 3_000;

/// The longest wait for the restarted node.
const PATIENCE: Duration = Duration::from_secs(60);

/// The node that is killed.
const VICTIM: usize = 1;

#[test]
fn killed_and_restarted_node_causes_no_error_and_no_wrong_value() {
    let mut nodes: Vec<_> = (0..3).map(|_| Process::start("0")).collect();
    let urls: Vec<_> = nodes.iter().map(|node| node.url.clone()).collect();
    let peers = format!("peers {}", urls.join(" "));
    for node in &mut nodes {
        assert_eq!(node.ask(&peers), "ready");
    }

    // With all nodes up, the cluster runs the getter once for each key.
    let before: Vec<Counts> = nodes.iter_mut().map(|node| report(node, GETS)).collect();
    check(&before);
    let loads: u64 = before.iter().map(|counts| counts.loads).sum();
    assert!(loads <= KEYS, "{loads} loads of {KEYS} keys");
    assert!(before.iter().all(|counts| counts.peer_loads > 0));
    assert!(before.iter().all(|counts| counts.peer_errors == 0));

    // The other nodes go on without the killed node, and load its keys themselves.
    let mut killed = nodes.remove(VICTIM);
    killed.kill();
    let down: Vec<Counts> = nodes
        .iter_mut()
        .zip([&before[0], &before[2]])
        .map(|(node, before)| report(node, before.calls + GETS))
        .collect();
    check(&down);
    let errors: u64 = down.iter().map(|counts| counts.peer_errors).sum();
    assert!(errors > 0, "no request to the killed node failed");

    // A new process on the old port owns the same keys, and the other nodes ask it for them.
    let (_, port) = urls[VICTIM].rsplit_once(':').expect("a port");
    let mut restarted = Process::start(port);
    assert_eq!(restarted.ask(&peers), "ready");
    nodes.push(restarted);
    let calls = [down[0].calls, down[1].calls, 0];
    let after: Vec<Counts> = nodes
        .iter_mut()
        .zip(calls)
        .map(|(node, calls)| report(node, calls + GETS))
        .collect();
    check(&after);
    // It may get all values from the nodes that loaded them in its place. Then its getter never runs.
    let filled = after[2].loads + after[2].peer_loads;
    assert!(filled > 0, "the restarted node got no value");

    // The others ask it again after a probe has reached it.
    wait_until_asked(&mut nodes[2]);

    // The callers of all nodes stop before the first server stops.
    for node in &mut nodes {
        assert_eq!(node.ask("stop"), format!("{CALLERS} callers ended"));
    }
    let last: Vec<Counts> = nodes.iter_mut().map(|node| report(node, 0)).collect();
    check(&last);
}

fn wait_until_asked(node: &mut Process) {
    let begun = Instant::now();
    while report(node, 0).served == 0 {
        assert!(begun.elapsed() < PATIENCE, "no peer asks the node");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Waits until the callers of a node have made `calls` gets, and returns its counts.
fn report(node: &mut Process, calls: u64) -> Counts {
    let answer = node.ask(&format!("report {calls}"));
    answer.parse().expect("counts")
}

/// Checks that no caller of any node got an error or a wrong value.
fn check(nodes: &[Counts]) {
    for counts in nodes {
        assert!(counts.calls > 0, "a node without calls: {nodes:?}");
        assert_eq!((counts.errors, counts.wrong), (0, 0), "{nodes:?}");
    }
}

/// This is not a test. The processes that the test above starts run it.
#[test]
#[ignore = "a process that another test starts"]
fn node_process() {
    if let Ok(port) = std::env::var(process::OPTIONS) {
        node::run(port.parse().expect("a port"));
    }
}
