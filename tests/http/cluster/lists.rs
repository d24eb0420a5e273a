//! Processes with different lists of peers, and a process that is listed under another name.

use std::io::{Read, Write};
use std::net::TcpStream;

use larder::Peer;

use super::{Node, cluster, total_loads};

/// Keys of which each node owns some.
fn keys() -> impl Iterator<Item = String> {
    (0..40).map(|n| format!("key-{n}"))
}

fn get(addr: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(addr).expect("it listens");
    let request = format!("GET {path} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).expect("it reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("text");
    answer
}

#[test]
fn different_lists_are_counted_on_both_sides_and_equal_ones_are_not() {
    let nodes = cluster(2);
    let urls = nodes.iter().map(|node| node.pool.self_url());
    nodes[1].pool.set(urls.rev()).unwrap();
    for key in keys() {
        nodes[0].group.get(&key).unwrap();
    }
    assert!(
        nodes
            .iter()
            .all(|node| node.pool.peer_list_differences() == 0)
    );

    let urls = nodes.iter().map(|node| node.pool.self_url());
    nodes[0]
        .pool
        .set(urls.chain(["http://127.0.0.1:1"]))
        .unwrap();
    let cached = nodes[0].group.entry_count();
    nodes[0].group.clear_local();
    for key in keys() {
        nodes[0].group.get(&key).unwrap();
    }
    assert!(cached > 0);
    assert!(
        nodes
            .iter()
            .all(|node| node.pool.peer_list_differences() > 0)
    );
    let cause = nodes[0].pool.peers()[0].cause.clone();
    assert_eq!(cause.as_deref(), Some("has another list of peers"));

    let urls: Vec<_> = nodes.iter().map(|node| node.pool.self_url()).collect();
    nodes[0].pool.set(&urls).unwrap();
    nodes[0].group.clear_local();
    for key in keys() {
        nodes[0].group.get(&key).unwrap();
    }
    assert_eq!(nodes[0].pool.peers()[0].cause, None);
}

#[test]
fn process_that_is_listed_under_another_name_loads_its_keys_itself() {
    let node = Node::start(|builder| builder);
    let port = node.pool.self_url().rsplit(':').next().unwrap().to_owned();
    node.pool.set([format!("http://localhost:{port}")]).unwrap();
    for key in keys() {
        let asks = node.group.stats().server_requests;
        assert!(asks <= 1, "it asked itself {asks} times");
        node.group.get(&key).unwrap();
    }
    assert_eq!(node.loads(), 40);
}

#[test]
fn list_is_a_page_for_this_machine() {
    let node = Node::start(|builder| builder.id("a"));
    let own = node.pool.self_url().to_owned();
    let peers = [
        Peer::new("http://10.0.0.9:1")
            .with_weight(3)
            .with_zone("east"),
        Peer::new(own.as_str()).with_id("a"),
    ];
    node.pool.set(peers).unwrap();
    let page = get(own.strip_prefix("http://").unwrap(), "/_groupcache/_peers");
    let (head, body) = page.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    assert_eq!(
        body,
        format!("http://10.0.0.9:1 weight=3 zone=east\n{own} id=a\n")
    );
}

#[test]
fn moved_node_keeps_its_keys() {
    let nodes: Vec<_> = (0..3)
        .map(|n| Node::start(move |builder| builder.id(format!("node-{n}"))))
        .collect();
    let list = |urls: &[&str]| -> Vec<Peer> {
        let peer = |(n, url): (usize, &&str)| Peer::new(*url).with_id(format!("node-{n}"));
        urls.iter().enumerate().map(peer).collect()
    };
    let urls: Vec<_> = nodes.iter().map(|node| node.pool.self_url()).collect();
    for node in &nodes {
        node.pool.set(list(&urls)).unwrap();
    }
    for key in keys() {
        nodes[0].group.get(&key).unwrap();
    }
    let loads = total_loads(&nodes);

    // The second node is reached by another name from now on.
    let port = urls[1].rsplit(':').next().unwrap();
    let moved = format!("http://localhost:{port}");
    for node in &nodes {
        node.pool.set(list(&[urls[0], &moved, urls[2]])).unwrap();
    }
    let before = nodes[2].group.stats().local_loads;
    for key in keys() {
        nodes[2].group.get(&key).unwrap();
    }
    assert_eq!(nodes[2].group.stats().local_loads, before);
    assert_eq!(total_loads(&nodes), loads, "no key moved");
}
