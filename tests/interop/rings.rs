//! Rings that disagree: in Go's ring the larder node owns every key, and in larder's ring the Go node.

use std::thread;
use std::time::{Duration, Instant};

use crate::cluster::{Node, Program, request, two_and_two};

#[test]
#[ignore = "needs Go: tests/interop/run.sh"]
fn callers_get_their_values_with_at_most_two_loads_of_a_key() {
    let (go, larder) = at_odds();
    let begun = Instant::now();
    let longest = thread::scope(|scope| {
        let asking = [&go, &larder].map(|node| {
            scope.spawn(move || {
                let times = (0..500).map(|i| {
                    let begun = Instant::now();
                    node.expect(&format!("key-{i}"));
                    begun.elapsed()
                });
                times.max().expect("some")
            })
        });
        asking.map(|thread| thread.join().expect("it asks"))
    });
    for i in 0..500 {
        let key = format!("key-{i}");
        let loads = (go.loads_of(&key), larder.loads_of(&key));
        // Every request ends at the larder node, which never forwards it.
        assert_eq!(loads, (0, 1), "{key}");
    }
    println!(
        "1000 calls in {:?}, the longest {longest:?}; one load a key",
        begun.elapsed()
    );
}

#[test]
#[ignore = "needs Go: tests/interop/run.sh"]
fn callers_of_one_key_at_both_nodes_share_one_load() {
    let (go, larder) = at_odds();
    for round in 0..5 {
        let key = &format!("slow:200:{round}");
        let begun = Instant::now();
        thread::scope(|scope| {
            for node in [&go, &larder] {
                for _ in 0..16 {
                    scope.spawn(move || node.expect(key));
                }
            }
        });
        let (took, loads) = (begun.elapsed(), go.loads_of(key) + larder.loads_of(key));
        assert!(loads <= 2, "{loads} loads");
        assert!(took < Duration::from_secs(1), "{took:?}");
        println!("32 callers of a load of 200 ms: {loads} loads, {took:?}");
    }
}

#[test]
#[ignore = "needs Go: tests/interop/run.sh"]
fn deadline_of_caller_ends_request_at_go_node() {
    let (go, larder) = at_odds();
    let deadline = Duration::from_millis(800);
    for round in 0..3 {
        let begun = Instant::now();
        let got = larder.get_within(format!("slow:1900:{round}"), deadline);
        assert_eq!(got.status, 504, "{}", got.text());
        assert!(got.took <= deadline * 11 / 10, "{:?}", got.took);
        go.wait_for("serving", 0);
        let freed = begun.elapsed();
        assert!(freed <= deadline * 12 / 10, "{freed:?}");
        println!(
            "with {deadline:?}: left after {:?}, Go was free after {freed:?}",
            got.took
        );
        larder.wait_for("loading", 0);
    }
}

#[test]
#[ignore = "needs Go: tests/interop/run.sh"]
fn deadline_of_context_hook_limits_wait_of_go() {
    let (go, larder) = at_odds();
    // A request without a deadline, as from Go. The node's hook sets 1 s.
    let url = format!("{}/_groupcache/values/slow:3000:one", larder.url);
    let got = request("GET", &url, b"");
    assert_eq!(got.status, 504, "{}", got.text());
    let second = Duration::from_secs(1);
    assert!(
        got.took >= second && got.took <= second * 11 / 10,
        "{:?}",
        got.took
    );
    // The Go node then loads the value itself.
    let got = go.get("slow:1500:two");
    assert_eq!(got.status, 200);
    assert!(
        got.took <= Duration::from_millis(1000 + 1500 + 200),
        "{:?}",
        got.took
    );
    println!(
        "Go had its value after {:?}: 1 s of ours, 1.5 s of its own load",
        got.took
    );
    larder.wait_for("loading", 0);
}

/// In the middle of a roll-out, only some nodes have the new list.
#[test]
#[ignore = "needs Go: tests/interop/run.sh"]
fn keys_of_node_unknown_to_go_are_loaded_at_most_twice() {
    let nodes = two_and_two();
    let known: Vec<&str> = nodes[..3].iter().map(|node| node.url.as_str()).collect();
    for go in &nodes[..2] {
        go.set_peers(&known);
    }
    let keys: Vec<String> = (0..500).map(|i| format!("key-{i}")).collect();
    let owners = nodes[3].owners(&keys);
    thread::scope(|scope| {
        for node in &nodes {
            let keys = &keys;
            scope.spawn(move || keys.iter().for_each(|key| node.expect(key)));
        }
    });
    let loads: Vec<_> = nodes.iter().map(Node::loads).collect();
    let mut twice = 0;
    for (key, owner) in keys.iter().zip(&owners) {
        let total: u64 = loads.iter().filter_map(|loads| loads.get(key)).sum();
        // The owner by Go's ring may have a copy already.
        let most = if *owner == nodes[3].url { 2 } else { 1 };
        assert!(
            (1..=most).contains(&total),
            "{key} of {owner}: {total} loads"
        );
        twice += u64::from(total == 2);
    }
    println!("500 keys, {twice} of them loaded twice, all of the new node");
}

fn at_odds() -> (Node, Node) {
    let (go, larder) = (Program::Go.start(&[]), Program::Larder.start(&[]));
    go.set_peers(&[&larder.url]);
    larder.set_peers(&[&go.url]);
    (go, larder)
}
