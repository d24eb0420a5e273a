//! Gets of several keys that no node has cached, over HTTP.

use std::net::TcpListener;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use larder::http::{HttpClient, HttpPool, HttpPoolBuilder, Server};
use larder::{Context, ErrorKind, Group, Registry, Result, Sink, bulk_fn};

use super::PATIENCE;
use crate::server::support::eventually;

type Calls = Arc<Mutex<Vec<Vec<String>>>>;

struct Node {
    pool: HttpPool,
    group: Group,
    calls: Calls,
    _server: Server,
}

/// A node whose bulk getter takes `time`.
fn node(time: Duration, options: impl Fn(HttpPoolBuilder) -> HttpPoolBuilder) -> Node {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let registry = Registry::new();
    let builder = HttpPool::builder(&url).registry(&registry);
    let builder = builder.connect_timeout(PATIENCE).exchange_timeout(PATIENCE);
    let pool = options(builder.replicas(50)).build().unwrap();
    let calls = Calls::default();
    let noted = calls.clone();
    let load = bulk_fn(move |_, keys, sinks| {
        let names = keys.iter().map(|key| key.to_string()).collect();
        noted.lock().unwrap().push(names);
        std::thread::sleep(time);
        for (key, sink) in keys.iter().zip(sinks) {
            match key.split('-').next() {
                Some("missing") => {}
                Some("broken") => sink.fail(format!("disk on fire at {url}")),
                Some("long") => sink.fail(long_text(&url)),
                Some("large") => sink.set_bytes(&[7; 700_000])?,
                _ => sink.set_str(&format!("{key} {url}"))?,
            }
        }
        Ok(())
    });
    let group = Group::builder("colors").registry(&registry);
    let group = group.max_capacity(16 << 20).build_bulk(load).unwrap();
    let server = pool.server().serve_listener(listener).unwrap();
    Node {
        pool,
        group,
        calls,
        _server: server,
    }
}

/// The text of an error that is longer than those in an answer for several keys.
fn long_text(url: &str) -> String {
    format!("{url} {}", "x".repeat(1000))
}

fn cluster(time: Duration, options: fn(HttpPoolBuilder) -> HttpPoolBuilder) -> Vec<Node> {
    let nodes: Vec<Node> = (0..3).map(|_| node(time, options)).collect();
    let urls: Vec<_> = nodes.iter().map(|node| node.pool.self_url()).collect();
    for node in &nodes {
        node.pool.set(&urls).unwrap();
    }
    nodes
}

fn check(nodes: &[Node], key: &str, result: Result<larder::ByteView>) {
    let owner = nodes[0].pool.owner(key).unwrap();
    match key.split('-').next() {
        Some("missing") => assert!(result.unwrap_err().is_not_found()),
        Some("broken") => {
            let error = result.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Getter);
            assert_eq!(error.to_string(), format!("disk on fire at {owner}"));
        }
        Some("long") => {
            let error = result.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Getter);
            let text = error.to_string();
            assert!(
                text.len() >= 400 && long_text(&owner).starts_with(&text),
                "{text}"
            );
        }
        Some("large") => assert_eq!(result.unwrap().len(), 700_000),
        _ => assert_eq!(result.unwrap(), format!("{key} {owner}")),
    }
}

#[test]
fn keys_that_no_node_has_are_one_call_at_each_owner() {
    let clients: &[fn(HttpPoolBuilder) -> HttpPoolBuilder] = &[
        |builder| builder,
        |builder| builder.http_client(HttpClient::Direct),
        #[cfg(feature = "ureq")]
        |builder| builder.http_client(HttpClient::Ureq),
    ];
    for &options in clients {
        let nodes = cluster(Duration::ZERO, options);
        let keys: Vec<String> = (0..100)
            .map(|n| match n % 10 {
                8 => format!("missing-{n}"),
                9 => format!("broken-{n}"),
                _ => format!("key-{n}"),
            })
            .collect();
        let ctx = Context::background().with_timeout(Duration::from_secs(20));
        for (key, result) in keys.iter().zip(nodes[0].group.get_many(&ctx, &keys)) {
            check(&nodes, key, result);
        }
        let mut loaded = Vec::new();
        for node in &nodes {
            let calls = node.calls.lock().unwrap();
            assert_eq!(calls.len(), 1);
            loaded.extend(calls[0].clone());
        }
        loaded.sort();
        let mut all = keys.clone();
        all.sort();
        assert_eq!(loaded, all, "each key is loaded once");
        assert_eq!(nodes[0].group.stats().peer_errors, 0);
    }
}

#[test]
fn calls_that_take_longer_than_an_exchange_run_once() {
    let options: fn(HttpPoolBuilder) -> HttpPoolBuilder =
        |builder| builder.exchange_timeout(Duration::from_millis(1000));
    let nodes = cluster(Duration::from_millis(2400), options);
    let keys: Vec<String> = (0..30).map(|n| format!("key-{n}")).collect();
    let with_deadline = Context::background().with_timeout(Duration::from_secs(20));
    for ctx in [Context::background(), with_deadline] {
        for node in &nodes {
            node.group.clear_local();
            node.calls.lock().unwrap().clear();
        }
        for (key, result) in keys.iter().zip(nodes[0].group.get_many(&ctx, &keys)) {
            check(&nodes, key, result);
        }
        for node in &nodes {
            assert_eq!(node.calls.lock().unwrap().len(), 1);
        }
        assert_eq!(nodes[0].group.stats().peer_errors, 0);
    }
}

#[test]
fn values_that_do_not_fit_into_one_answer_are_loaded_once() {
    let nodes = cluster(Duration::ZERO, |builder| builder);
    let keys: Vec<String> = (0..12).map(|n| format!("large-{n}")).collect();
    let results = nodes[0].group.get_many(&Context::background(), &keys);
    for (key, result) in keys.iter().zip(results) {
        check(&nodes, key, result);
    }
    let calls = nodes
        .iter()
        .map(|node| node.calls.lock().unwrap().concat().len());
    assert_eq!(calls.sum::<usize>(), 12);
}

#[test]
fn batches_have_no_more_keys_than_a_server_reads() {
    let nodes = cluster(Duration::ZERO, |builder| builder.max_batch_keys(100_000));
    let keys: Vec<String> = (0..15_000).map(|n| format!("{n}")).collect();
    let results = nodes[0].group.get_many(&Context::background(), &keys);
    for (key, result) in keys.iter().zip(results) {
        check(&nodes, key, result);
    }
    for node in &nodes {
        let calls = node.calls.lock().unwrap().len();
        assert!(calls <= 2, "{calls} calls");
    }
}

#[test]
fn error_text_of_any_length_arrives_or_is_cut() {
    let nodes = cluster(Duration::ZERO, |builder| builder.max_batch_bytes(2000));
    let keys: Vec<String> = (0..40)
        .map(|n| format!("{}-{n}", ["broken", "long"][n % 2]))
        .collect();
    let results = nodes[0].group.get_many(&Context::background(), &keys);
    for (key, result) in keys.iter().zip(results) {
        check(&nodes, key, result);
    }
}

#[test]
fn new_owner_takes_the_values_of_several_keys_over() {
    let nodes: Vec<Node> = (0..4)
        .map(|_| node(Duration::ZERO, |builder| builder))
        .collect();
    let urls: Vec<_> = nodes.iter().map(|node| node.pool.self_url()).collect();
    let set = |nodes: &[Node], urls: &[&str]| {
        nodes.iter().for_each(|node| node.pool.set(urls).unwrap());
    };
    let keys: Vec<String> = (0..400).map(|n| format!("key-{n}")).collect();
    set(&nodes[..3], &urls[..3]);
    for result in nodes[0].group.get_many(&Context::background(), &keys) {
        result.unwrap();
    }
    set(&nodes, &urls);
    eventually(|| format!("{:?}", nodes[3].pool).contains("handoff: true"));
    let is_moved = |key: &&String| nodes[0].pool.owner(key).as_deref() == Some(urls[3]);
    let moved: Vec<&String> = keys.iter().filter(is_moved).collect();
    let mut values = Vec::new();
    for keys in moved.chunks(4) {
        values.extend(nodes[3].group.get_many(&Context::background(), keys));
    }
    for (key, value) in moved.iter().zip(values) {
        assert!(value.unwrap().starts_with(key.as_bytes()));
    }
    // On a busy machine, an answer can come too late. Then the getter loads the keys.
    let loaded = nodes[3].calls.lock().unwrap().concat().len() as u64;
    let taken_over = nodes[3].group.stats().peer_loads;
    assert_eq!(taken_over + loaded, moved.len() as u64);
    // The answers have 10 ms. If four are late in a row, the node asks for no more.
    let is_slow = (0..20).any(|n| {
        let begun = Instant::now();
        nodes[3].group.get(&format!("control-{n}")).unwrap();
        begun.elapsed() > Duration::from_millis(7)
    });
    assert!(taken_over > 0 || is_slow);
}
