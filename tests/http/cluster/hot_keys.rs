//! Rates of keys, which the owner measures and reports, and copies of those that are requested often.

use std::net::TcpListener;
use std::time::Duration;

use larder::http::{HttpPool, Server};
use larder::pb::GetRequest;
use larder::{Clock, Context, Group, GroupBuilder, HotAdmission, PeerPicker, Registry, Result};

use super::PATIENCE;

struct Node {
    pool: HttpPool,
    group: Group,
    _server: Server,
}

/// Two nodes with one clock.
fn cluster(clock: &Clock, options: impl Fn(GroupBuilder) -> GroupBuilder) -> Vec<Node> {
    let node = || {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let registry = Registry::new();
        let builder = HttpPool::builder(&url).registry(&registry);
        let builder = builder.connect_timeout(PATIENCE).exchange_timeout(PATIENCE);
        let pool = builder.build().unwrap();
        let builder = Group::builder("colors").registry(&registry);
        let group = options(builder.clock(clock.clone()))
            .build_with(|_, key| Ok::<_, larder::Error>(format!("the color {key}")))
            .unwrap();
        let server = pool.server().serve_listener(listener).unwrap();
        Node {
            pool,
            group,
            _server: server,
        }
    };
    let nodes = vec![node(), node()];
    let urls: Vec<_> = nodes.iter().map(|node| node.pool.self_url()).collect();
    nodes
        .iter()
        .for_each(|node| node.pool.set(&urls).expect("valid peers"));
    nodes
}

/// Keys that the second node owns.
fn keys_of_second(nodes: &[Node]) -> impl Iterator<Item = String> + '_ {
    let keys = (0..).map(|i: u32| format!("key-{i}"));
    keys.filter(|key| nodes[0].pool.pick_peer(key).is_some())
}

fn rate_at_owner(nodes: &[Node], key: &str) -> Option<f64> {
    let owner = nodes[0]
        .pool
        .pick_peer(key)
        .expect("the second node owns it");
    let request = GetRequest {
        group: "colors".into(),
        key: key.into(),
    };
    let response = owner.get(&Context::background(), &request).unwrap();
    response.minute_qps
}

#[test]
fn owner_reports_the_rate_of_a_key_to_single_and_batched_requests() {
    let clock = Clock::manual();
    let nodes = cluster(&clock, |builder| builder.measure_rates(true));
    let keys: Vec<String> = keys_of_second(&nodes).take(3).collect();
    for count in 1..=30 {
        let rate = rate_at_owner(&nodes, &keys[0]).expect("measured");
        let expected = f64::from(count) / 60.0;
        assert!((rate - expected).abs() < 1e-6, "{count}: {rate}");
    }
    let owner = nodes[0].pool.pick_peer(&keys[0]).expect("the second node");
    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
    let many = |load: bool| -> Vec<Option<f64>> {
        let ctx = Context::background();
        match load {
            false => {
                let found = owner.get_many(&ctx, "colors", &keys).unwrap();
                let rate = |found: Option<larder::PeerResponse>| found?.minute_qps;
                found.into_iter().map(rate).collect()
            }
            true => {
                let found = owner.load_many(&ctx, "colors", &keys).unwrap();
                let rate = |found: Option<Result<larder::PeerResponse>>| found?.ok()?.minute_qps;
                found.into_iter().map(rate).collect()
            }
        }
    };
    let is_about = |rate: Option<f64>, count: f64| {
        let rate = rate.expect("measured");
        assert!((rate - count / 60.0).abs() < 1e-5, "{rate} for {count}");
    };
    let rates = many(false);
    is_about(rates[0], 31.0);
    assert_eq!(rates[1..], [None, None], "they are not cached");
    let rates = many(true);
    is_about(rates[0], 32.0);
    is_about(rates[1], 1.0);
    is_about(rates[2], 1.0);
    clock.advance(Duration::from_secs(600));
    assert!(rate_at_owner(&nodes, keys[0]).expect("measured") < 1.01 / 60.0);
    let hottest = nodes[1].group.hottest_keys(1);
    assert_eq!(hottest.len(), 1);
    assert_eq!(hottest[0].key, keys[0]);
}

#[test]
fn only_keys_over_the_owners_rate_are_copied() {
    let clock = Clock::manual();
    let nodes = cluster(&clock, |builder| {
        builder.hot_admission(HotAdmission::OwnerRate(0.5))
    });
    let keys: Vec<String> = keys_of_second(&nodes).take(2).collect();
    let get = |key: &str| nodes[0].group.get(key).expect("a value");
    // The 30th request within a minute is the first over the rate.
    for count in 1..=30 {
        get(&keys[0]);
        let is_copied = nodes[0].group.contains_key(&keys[0]);
        assert_eq!(is_copied, count == 30, "after {count} requests");
    }
    get(&keys[1]);
    assert!(!nodes[0].group.contains_key(&keys[1]));
    assert_eq!(nodes[1].group.stats().server_requests, 31);
    // The copy is gone, and the rate has fallen.
    nodes[0].group.invalidate(&keys[0]);
    clock.advance(Duration::from_secs(120));
    get(&keys[0]);
    assert!(!nodes[0].group.contains_key(&keys[0]));
}

#[test]
fn keys_of_one_call_are_copied_by_the_owners_rate() {
    let clock = Clock::manual();
    let nodes = cluster(&clock, |builder| {
        builder.hot_admission(HotAdmission::OwnerRate(0.11))
    });
    let keys: Vec<String> = keys_of_second(&nodes).take(3).collect();
    for count in 1..=7 {
        let values = nodes[0].group.get_many(&Context::background(), &keys);
        values
            .into_iter()
            .for_each(|value| drop(value.expect("a value")));
        let copied = |key: &&String| nodes[0].group.contains_key(key);
        let copied = keys.iter().filter(copied).count();
        assert_eq!(copied, if count < 7 { 0 } else { 3 }, "after {count} calls");
    }
}

#[test]
fn no_rate_is_measured_by_default() {
    let nodes = cluster(&Clock::manual(), |builder| builder);
    let key = keys_of_second(&nodes).next().expect("a key");
    for _ in 0..600 {
        assert_eq!(rate_at_owner(&nodes, &key), None);
    }
    assert!(nodes[1].group.hottest_keys(9).is_empty());
}
