//! Removals and sets in a cluster of larder nodes and nodes of mailgun's protocol.

use crate::cluster::{Node, Program, cluster, two_and_two, value_of};

/// Two nodes of mailgun's protocol, then two larder nodes with its ring.
fn mixed() -> Vec<Node> {
    let larder = || Program::Larder.start(&["--preset", "mailgun"]);
    let go = || Program::Mailgun.start(&[]);
    cluster([go(), go(), larder(), larder()])
}

/// Keys that the front takes in a query.
fn keys(prefix: &str) -> Vec<String> {
    (0..40).map(|n| format!("{prefix}-{n}")).collect()
}

fn assert_all_have(nodes: &[Node], key: &str, value: &[u8]) {
    for node in nodes {
        let got = node.get(key);
        assert!(
            got.status == 200 && got.body == value,
            "{key} at {node:?}: {}",
            got.text()
        );
    }
}

#[test]
#[ignore = "run by tests/interop/run.sh"]
fn nodes_have_the_same_ring() {
    let nodes = mixed();
    let keys = keys("ring");
    for node in &nodes[1..] {
        assert_eq!(node.owners(&keys), nodes[0].owners(&keys));
    }
}

#[test]
#[ignore = "run by tests/interop/run.sh"]
fn removal_by_any_node_reaches_all_nodes() {
    let nodes = mixed();
    for (n, key) in keys("remove").iter().enumerate() {
        // The set value differs from that of the source, which replaces it after the removal.
        let done = nodes[2 + n % 2].set(key, b"set");
        assert_eq!(done.status, 200, "{}", done.text());
        assert_all_have(&nodes, key, b"set");
        let done = nodes[n % 4].remove(key);
        assert_eq!(done.status, 200, "{}", done.text());
        assert_all_have(&nodes, key, &value_of(key.as_bytes()));
    }
}

#[test]
#[ignore = "run by tests/interop/run.sh"]
fn set_by_any_node_reaches_the_owner() {
    let nodes = mixed();
    for (n, key) in keys("set").iter().enumerate() {
        let value = format!("set {n}");
        let done = nodes[n % 4].set(key, value.as_bytes());
        assert_eq!(done.status, 200, "{}", done.text());
        assert_all_have(&nodes, key, value.as_bytes());
        // A set by a larder node also drops the copies of all nodes.
        let done = nodes[2 + n % 2].set(key, b"again");
        assert_eq!(done.status, 200, "{}", done.text());
        assert_all_have(&nodes, key, b"again");
    }
}

#[test]
#[ignore = "run by tests/interop/run.sh"]
fn node_of_golang_groupcache_is_named_as_one_without_removals() {
    let nodes = two_and_two();
    let failed = nodes[2].remove("key");
    assert_eq!(failed.status, 500);
    for go in &nodes[..2] {
        assert!(failed.text().contains(&go.url), "{}", failed.text());
    }
    assert!(!failed.text().contains(&nodes[3].url), "{}", failed.text());
    assert!(failed.text().contains("DELETE"), "{}", failed.text());
}
