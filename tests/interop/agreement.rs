//! All nodes agree on the owner of every key, so each key is loaded once.

use std::collections::BTreeMap;
use std::thread;

use crate::cluster::{Node, Program, cluster, two_and_two};

#[test]
#[ignore = "needs Go: tests/interop/run.sh"]
fn nodes_agree_on_owners_and_load_each_key_once() {
    let nodes = two_and_two();
    let keys = keys(10_000);
    let owners = agreed_owners(&nodes, &keys);

    // All nodes get the keys at the same time, each in another order. So most first gets of a key are
    // at a node that does not own it.
    thread::scope(|scope| {
        for (place, node) in nodes.iter().enumerate() {
            let keys = &keys;
            scope.spawn(move || {
                let start = place * keys.len() / 4;
                for key in keys.iter().cycle().skip(start).take(keys.len()) {
                    node.expect(key);
                }
            });
        }
    });

    let loads: Vec<_> = nodes.iter().map(Node::loads).collect();
    for (key, owner) in keys.iter().zip(&owners) {
        let by_node = loads.iter().map(|loads| loads.get(key).copied());
        let expected = nodes.iter().map(|node| (node.url == *owner).then_some(1));
        assert!(
            by_node.eq(expected),
            "{key:?} of {owner}: loads by {loads:?}"
        );
    }
    for node in &nodes {
        assert_eq!(node.stat("peer_errors"), 0, "{node:?}");
        println!("{node:?} loaded {} keys", node.loads().len());
    }
    println!(
        "{} keys, asked for at 4 nodes, each loaded once, by its owner",
        keys.len()
    );
}

#[test]
#[ignore = "needs Go: tests/interop/run.sh"]
fn nodes_agree_on_owners_with_other_replicas_and_hash() {
    for flags in [
        &["--replicas", "160"][..],
        &["--hash", "fnv1a"],
        &["--hash", "fnv1a", "--replicas", "7"],
    ] {
        let programs = [Program::Go, Program::Larder, Program::Go];
        let nodes = cluster(programs.map(|program| program.start(flags)));
        let keys = keys(2000);
        agreed_owners(&nodes, &keys);
        for key in &keys[..100] {
            for node in &nodes {
                node.expect(key);
            }
        }
        let loads: usize = nodes.iter().map(|node| node.loads().len()).sum();
        assert_eq!(loads, 100, "{flags:?}");
    }
}

/// The owners of the keys, on which all nodes agree. Each node owns some.
fn agreed_owners(nodes: &[Node], keys: &[String]) -> Vec<String> {
    let owners = nodes[0].owners(keys);
    for node in &nodes[1..] {
        let others = node.owners(keys);
        let differ = owners.iter().zip(&others).filter(|(a, b)| a != b).count();
        assert_eq!(differ, 0, "{node:?} and {:?} disagree", nodes[0]);
    }
    let mut shares = BTreeMap::new();
    for owner in &owners {
        *shares.entry(owner).or_insert(0) += 1;
    }
    assert_eq!(shares.len(), nodes.len(), "{shares:?}");
    println!("{} keys, {} nodes agree on each", keys.len(), nodes.len());
    owners
}

/// Keys of many shapes, except the keys that Go nodes change on the way. See `keys.rs`.
fn keys(count: usize) -> Vec<String> {
    let shapes = [
        "key-{}",
        "user/{}",
        "{}+1",
        "50%{}",
        "é世{}",
        "q?a={}&b;c",
        "{}",
    ];
    let shape = |i: usize| shapes[i % shapes.len()];
    (0..count)
        .map(|i| shape(i).replace("{}", &i.to_string()))
        .collect()
}
