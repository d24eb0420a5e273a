//! Killed and stopped nodes of one side, and callers of the other side.

use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::cluster::{Got, Node, Program, keys_of_then, keys_owned_by, two_and_two, value_of};

#[test]
#[ignore = "needs Go: tests/interop/run.sh"]
fn kill_and_restart_of_go_node_causes_no_error() {
    let mut nodes = two_and_two();
    let victim = nodes.remove(0);
    let (other_go, larder) = (&nodes[0], &nodes[1]);
    let mut keys = keys_owned_by(other_go, &[&victim], "theirs-", 200);
    keys.extend(keys_owned_by(other_go, &[other_go], "others-", 200));

    let (url, report) = thread::scope(|scope| {
        let load = scope.spawn(|| larder.hammer(&keys, 8, Duration::from_secs(2)));
        while victim.stat("server_requests") < 200 {}
        (victim.kill(), load.join().expect("the load ends"))
    });
    assert_clean(&report);
    println!("a Go node killed under load: {report}");

    let victim = restart(Program::Go, &url, &nodes);
    let begun = Instant::now();
    // Gets new keys. A node keeps the old ones for 10 s, because it loaded them in the owner's place.
    for round in 0.. {
        let fresh = keys_owned_by(other_go, &[&victim], &format!("{round}-after-"), 10);
        assert_clean(&larder.hammer(&fresh, 1, Duration::from_millis(20)));
        if victim.stat("server_requests") > 0 {
            break;
        }
        assert!(
            begun.elapsed() < Duration::from_secs(32),
            "it is not asked again"
        );
    }
    println!("asked again {:?} after it came back", begun.elapsed());
}

#[test]
#[ignore = "needs Go: tests/interop/run.sh"]
fn callers_return_at_their_deadline_while_go_node_is_stopped() {
    let nodes = two_and_two();
    let (stopped, other_go, larder) = (&nodes[0], &nodes[1], &nodes[2]);
    let keys = keys_owned_by(other_go, &[stopped], "theirs-", 100);
    let others = keys_owned_by(other_go, &[other_go], "others-", 100);
    let before = larder.hammer(&others, 4, Duration::from_millis(500));
    larder.expect(&keys[99]);

    stopped.stop();
    let deadline = Duration::from_millis(800);
    let calls = in_parallel(&keys[..80], 16, |key| larder.get_within(key, deadline));
    let longest = calls.iter().map(|got| got.took).max().expect("calls");
    let answered = calls.iter().filter(|got| got.status == 200).count();
    for got in &calls {
        assert!(matches!(got.status, 200 | 504), "{}", got.text());
        assert!(got.took <= deadline * 11 / 10, "took {:?}", got.took);
    }
    println!("80 callers with {deadline:?}: {answered} values, the longest took {longest:?}");

    // Without a deadline the caller gets the value of its own getter. The other Go node is not
    // asked: it would ask the stopped node and wait for ever.
    let asked = other_go.stat("server_requests");
    let keys = keys_of_then(&nodes, stopped, other_go, "next-");
    let calls = in_parallel(&keys, keys.len(), |key| larder.get(key));
    for (key, got) in keys.iter().zip(&calls) {
        assert!(
            got.status == 200 && got.body == value_of(key.as_bytes()),
            "{}",
            got.text()
        );
        assert!(got.took < Duration::from_millis(1500), "{:?}", got.took);
    }
    let longest = calls.iter().map(|got| got.took).max().expect("calls");
    println!(
        "{} callers without a deadline: each has its value, the longest took {longest:?}",
        calls.len()
    );
    assert_eq!(other_go.stat("server_requests"), asked);

    let during = larder.hammer(&others, 4, Duration::from_millis(500));
    assert_clean(&during);
    println!(
        "other keys: p99 {} us before, {} us during",
        before["p99_us"], during["p99_us"]
    );

    stopped.resume();
    let begun = Instant::now();
    let asked = stopped.stat("server_requests");
    while stopped.stat("server_requests") == asked {
        assert!(
            begun.elapsed() < Duration::from_secs(32),
            "it is not asked again"
        );
        assert_clean(&larder.hammer(&keys[..1], 1, Duration::from_millis(50)));
    }
    println!("asked again {:?} after it went on", begun.elapsed());
}

#[test]
#[ignore = "needs Go: tests/interop/run.sh"]
fn go_loads_itself_while_larder_node_is_dead_and_asks_it_again_later() {
    let mut nodes = two_and_two();
    let victim = nodes.remove(3);
    let go = &nodes[0];
    let keys = keys_owned_by(go, &[&victim], "ours-", 200);
    let (url, report) = thread::scope(|scope| {
        let load = scope.spawn(|| go.hammer(&keys, 8, Duration::from_secs(2)));
        while victim.stat("server_requests") < 200 {}
        (victim.kill(), load.join().expect("the load ends"))
    });
    assert_clean(&report);
    assert!(
        go.stat("local_loads") > 0,
        "Go loads what the dead node owned"
    );
    println!("a larder node killed under load: {report}");

    let victim = restart(Program::Larder, &url, &nodes);
    let (loads, errors) = (go.stat("local_loads"), go.stat("peer_errors"));
    let report = go.hammer(&keys, 8, Duration::from_millis(500));
    assert_clean(&report);
    assert_eq!(
        (go.stat("local_loads"), go.stat("peer_errors")),
        (loads, errors)
    );
    assert_eq!(victim.loads().len(), 200);
}

#[test]
#[ignore = "needs Go: tests/interop/run.sh"]
fn stopped_larder_node_delays_go_until_gos_own_deadline() {
    let nodes = two_and_two();
    let (go, stopped) = (&nodes[0], &nodes[3]);
    let keys = keys_owned_by(go, &[stopped], "ours-", 20);
    go.expect(&keys[0]);
    stopped.stop();
    let deadline = Duration::from_millis(500);
    let calls = in_parallel(&keys[1..17], 16, |key| go.get_within(key, deadline));
    for got in &calls {
        assert!(got.took <= deadline * 12 / 10, "took {:?}", got.took);
    }
    // Without a deadline, Go waits for ever.
    thread::scope(|scope| {
        let waiting = scope.spawn(|| go.expect(&keys[18]));
        stopped.resume();
        waiting.join().expect("a value");
    });
    assert_eq!(stopped.loads_of(&keys[18]), 1);
}

/// Starts a node on the address of a node that has ended.
fn restart(program: Program, url: &str, others: &[Node]) -> Node {
    let address = url.trim_start_matches("http://");
    let node = program.start(&["--listen", address]);
    let mut urls = vec![url];
    urls.extend(others.iter().map(|node| node.url.as_str()));
    node.set_peers(&urls);
    node
}

pub fn assert_clean(report: &Value) {
    assert_eq!(
        (&report["errors"], &report["wrong"]),
        (&0.into(), &0.into()),
        "{report}"
    );
    assert_ne!(report["gets"], 0, "{report}");
}

/// Gets all keys by `threads` threads.
fn in_parallel(keys: &[String], threads: usize, ask: impl Fn(&str) -> Got + Sync) -> Vec<Got> {
    thread::scope(|scope| {
        let ask = &ask;
        let threads: Vec<_> = keys
            .chunks(keys.len().div_ceil(threads))
            .map(|keys| scope.spawn(move || keys.iter().map(|key| ask(key)).collect::<Vec<_>>()))
            .collect();
        let found = threads
            .into_iter()
            .map(|thread| thread.join().expect("it asks"));
        found.flatten().collect()
    })
}
