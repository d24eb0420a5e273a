//! An explanation of a get, as a node gives it to the program and over HTTP.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use larder::{Context, GetOutcome, Source};

use super::{Node, cluster, total_loads};

/// The response to a GET without the headers of a peer.
fn get(url: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(url.trim_start_matches("http://")).unwrap();
    let head = format!("GET /_groupcache/{path} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    let mut response = Vec::new();
    stream.read_to_end(&mut response).unwrap();
    String::from_utf8_lossy(&response).into_owned()
}

fn key_of(node: &Node, owner: &str) -> String {
    let mut keys = (0..).map(|n| format!("key {n}"));
    keys.find(|key| node.pool.owner(key).as_deref() == Some(owner))
        .unwrap()
}

#[test]
fn explanation_follows_a_key_and_loads_nothing() {
    let nodes = cluster(2);
    let (asking, owner) = (&nodes[0], nodes[1].pool.self_url());
    let key = key_of(asking, owner);
    let explained = asking.group.explain(&key);
    assert_eq!(explained.route.owner.as_deref(), Some(owner));
    assert_eq!(
        explained.route.next.as_deref(),
        Some(asking.pool.self_url())
    );
    assert!(matches!(&explained.outcome, GetOutcome::Peer(url) if url.starts_with(owner)));
    assert_eq!((explained.cached, explained.last_removal), (None, None));
    assert_eq!(total_loads(&nodes), 0);
    let stats = asking.group.stats();

    let at_owner = nodes[1].group.explain(&key);
    assert!(
        matches!(
            at_owner.outcome,
            GetOutcome::Getter | GetOutcome::PreviousOwner(_)
        ),
        "{at_owner:?}"
    );
    assert_eq!(asking.group.stats(), stats, "nothing is counted");

    asking.group.get(&key).unwrap();
    let copy = asking.group.explain(&key);
    assert_eq!(copy.cached, Some(Source::Hot));
    assert!(matches!(copy.outcome, GetOutcome::Cached));
    assert!(copy.age.unwrap() < Duration::from_secs(60));
    assert_eq!(copy.expires_in, None);
    assert_eq!(nodes[1].group.explain(&key).cached, Some(Source::Main));

    asking.group.remove(&Context::background(), &key).unwrap();
    let removed = asking.group.explain(&key);
    assert_eq!(removed.cached, None);
    assert!(removed.last_removal.is_some());
    let long = "k".repeat(1 << 20);
    assert!(matches!(
        asking.group.explain(&long).outcome,
        GetOutcome::Fail(_)
    ));
}

#[test]
fn explanation_names_why_another_node_is_asked() {
    let node = Node::start(|builder| builder);
    let third = Node::start(|builder| builder);
    let closed = TcpListener::bind("127.0.0.1:0").unwrap();
    let dead = format!("http://{}", closed.local_addr().unwrap());
    drop(closed);
    let urls = [node.pool.self_url(), third.pool.self_url(), &dead];
    node.pool.set(urls).unwrap();
    third.pool.set(urls).unwrap();
    let key = key_of(&node, &dead);
    node.group.get(&key).unwrap();
    node.group.invalidate(&key);
    let explained = node.group.explain(&key);
    let reasons = explained.route.reasons.join("\n");
    assert!(reasons.contains("is down: "), "{reasons}");
    let next = explained.route.next.as_deref();
    match &explained.outcome {
        GetOutcome::Peer(url) => assert_eq!(Some(url.as_str()), next),
        GetOutcome::Fallback => assert_eq!(next, Some(node.pool.self_url())),
        other => panic!("{other}"),
    }
    assert!(explained.to_string().contains(&format!("owner: {dead}\n")));
}

#[test]
fn operator_gets_the_explanation_as_text_and_the_status_of_the_cache_as_a_header() {
    let nodes = cluster(1);
    let url = nodes[0].pool.self_url();
    let text = get(url, "colors/a%20b?explain");
    for line in [
        "HTTP/1.1 200",
        "key: \"a b\"\n",
        "cached: no\n",
        "get: runs the getter here\n",
    ] {
        assert!(text.contains(line), "{text}");
    }
    assert_eq!(nodes[0].loads(), 0);
    let first = get(url, "colors/a%20b");
    assert!(
        first.contains("\r\nCache-Status: larder; fwd=miss\r\n"),
        "{first}"
    );
    let second = get(url, "colors/a%20b");
    assert!(
        second.contains("\r\nCache-Status: larder; hit\r\n"),
        "{second}"
    );
    assert!(get(url, "colors/a%20b?explain").contains("get: returns the cached value\n"));
    assert!(get(url, "none/a?explain").starts_with("HTTP/1.1 404"));
}
