//! Values move to the new owners of their keys after a change of peers.

use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use larder::http::{Transport, TransportRequest, TransportResponse};
use larder::{Context, Peer};

use super::{Node, PATIENCE, total_loads};
use crate::server::support::eventually;

const KEYS: usize = 400;

fn set_all(nodes: &[Node], urls: &[String]) {
    for node in nodes {
        node.pool.set(urls).unwrap();
    }
}

fn urls(nodes: &[Node]) -> Vec<String> {
    nodes
        .iter()
        .map(|node| node.pool.self_url().to_owned())
        .collect()
}

/// Gets each key at its owner, so that no node has copies of others' keys.
fn get_at_owners(nodes: &[Node]) {
    for key in (0..KEYS).map(|n| format!("key-{n}")) {
        let owner = nodes[0].pool.owner(&key).unwrap();
        let owner = nodes.iter().find(|node| node.pool.self_url() == owner);
        assert!(
            owner
                .unwrap()
                .group
                .get(&key)
                .unwrap()
                .starts_with(key.as_bytes())
        );
    }
}

#[test]
fn new_nodes_take_values_over_from_previous_owners_and_give_them_back() {
    let nodes: Vec<_> = (0..6).map(|_| Node::start(|builder| builder)).collect();
    let urls = urls(&nodes);
    set_all(&nodes[..3], &urls[..3]);
    get_at_owners(&nodes[..3]);
    assert_eq!(total_loads(&nodes), KEYS);

    // The new nodes get their first list. A thread of each fetches the previous one.
    set_all(&nodes, &urls);
    for node in &nodes[3..] {
        eventually(|| format!("{:?}", node.pool).contains("handoff: true"));
    }
    get_at_owners(&nodes);
    // On a busy machine, an answer can come too late. Then the getter runs.
    let moved = sum(&nodes[3..], |node| node.group.entry_count());
    let taken_over = peer_loads(&nodes[3..]);
    let loaded = total_loads(&nodes) as u64 - KEYS as u64;
    assert_eq!(taken_over + loaded, moved);
    assert!(taken_over > 0);

    let (loads, before) = (total_loads(&nodes) as u64, peer_loads(&nodes[..3]));
    set_all(&nodes, &urls[..3]);
    for node in &nodes[..3] {
        node.group.clear_local();
    }
    get_at_owners(&nodes[..3]);
    let given_back = peer_loads(&nodes[..3]) - before;
    let loaded = total_loads(&nodes) as u64 - loads;
    assert_eq!(given_back + loaded, KEYS as u64);
    assert!(
        0 < given_back && given_back <= moved,
        "{given_back} of {moved}"
    );
}

fn sum(nodes: &[Node], number: impl Fn(&Node) -> u64) -> u64 {
    nodes.iter().map(number).sum()
}

fn peer_loads(nodes: &[Node]) -> u64 {
    sum(nodes, |node| node.group.stats().peer_loads)
}

/// A network on which the list of peers takes 2 ms. It reports when the list came.
struct SlowNetwork {
    inner: Arc<dyn Transport>,
    came: mpsc::Sender<Instant>,
}

impl Transport for SlowNetwork {
    fn round_trip(
        &self,
        ctx: &Context,
        request: TransportRequest<'_>,
    ) -> larder::Result<TransportResponse> {
        if !request.path().ends_with("_peers") {
            return self.inner.round_trip(ctx, request);
        }
        std::thread::sleep(Duration::from_millis(2));
        let response = self.inner.round_trip(ctx, request);
        // Fails if the test has ended.
        let _ = self.came.send(Instant::now());
        response
    }
}

#[test]
fn first_load_of_a_new_node_waits_until_it_has_the_previous_list() {
    let attempt = || {
        let mut nodes = vec![Node::start(|builder| builder)];
        set_all(&nodes, &urls(&nodes));
        get_at_owners(&nodes);
        let (sender, came) = mpsc::channel();
        nodes.push(Node::start(move |builder| {
            let sender = sender.clone();
            builder.transport(move |_, inner| {
                let came = sender.clone();
                Arc::new(SlowNetwork { inner, came })
            })
        }));
        let urls = urls(&nodes);
        nodes[0].pool.set(&urls).unwrap();
        let begun = Instant::now();
        nodes[1].pool.set(&urls).unwrap();
        let own = (0..KEYS).map(|n| format!("key-{n}"));
        let mut own = own.filter(|key| nodes[1].pool.owner(key).as_ref() == Some(&urls[1]));
        nodes[1].group.get(&own.next().unwrap()).unwrap();
        let came = came.recv_timeout(PATIENCE).unwrap();
        (nodes[1].loads() == 0, came - begun)
    };
    // On a busy machine, the list can come later than loads wait for it.
    let attempts: Vec<_> = (0..20).map(|_| attempt()).collect();
    let is_any_in_time = attempts
        .iter()
        .any(|(_, took)| *took < Duration::from_millis(4));
    let is_any_taken_over = attempts.iter().any(|(is_taken_over, _)| *is_taken_over);
    assert!(is_any_taken_over || !is_any_in_time, "{attempts:?}");
}

#[test]
fn expired_or_removed_values_are_not_taken_over() {
    let nodes: Vec<_> = (0..2).map(|_| Node::start(|builder| builder)).collect();
    let urls = urls(&nodes);
    set_all(&nodes[..1], &urls[..1]);
    get_at_owners(&nodes[..1]);
    set_all(&nodes[..1], &urls);
    nodes[1].pool.set(&urls[1..]).unwrap();
    nodes[1].pool.set(&urls).unwrap();
    nodes[0].group.clear_local();
    get_at_owners(&nodes);
    assert_eq!(total_loads(&nodes), 2 * KEYS);
}

#[test]
fn change_of_an_address_or_a_zone_begins_no_handoff() {
    let peer = |url: &str| Peer::new(url).with_id("b");
    let (first, second) = (peer("http://127.0.0.1:1"), peer("http://127.0.0.1:2"));
    let is_handing_over = |node: &Node| {
        let shown = format!("{:?}", node.pool);
        assert!(shown.contains("handoff: "), "{shown}");
        shown.contains("handoff: true")
    };

    let node = Node::start(|builder| builder.id("a"));
    let own = Peer::new(node.pool.self_url()).with_id("a");
    node.pool.set([own.clone()]).unwrap();
    node.pool.set([own, first.clone()]).unwrap();
    assert!(is_handing_over(&node), "another peer");

    let node = Node::start(|builder| builder.id("a"));
    let own = Peer::new(node.pool.self_url()).with_id("a");
    node.pool.set([own.clone(), first]).unwrap();
    assert!(!is_handing_over(&node), "the first list");
    node.pool.set([own.clone(), second.clone()]).unwrap();
    assert!(!is_handing_over(&node), "another address");
    let zoned = [own, second].map(|peer| peer.with_zone("z"));
    node.pool.set(zoned).unwrap();
    assert!(!is_handing_over(&node), "another zone");
}
