//! Peers that are killed, stopped or away for good, and the processes that ask them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use larder::Clock;
use larder::http::PeerState;

use crate::cluster::{Node, Setup};
use crate::common::{eventually, millis, seconds};
use crate::process::{Process, figure};
use crate::raw_server::RawServer;

/// Processes that know each other.
fn cluster<const N: usize>(options: &str) -> [Process; N] {
    let mut nodes = [(); N].map(|()| Process::start(options));
    connect(&mut nodes);
    nodes
}

fn connect(nodes: &mut [Process]) {
    let urls: Vec<&str> = nodes.iter().map(|node| node.url.as_str()).collect();
    let line = format!("peers {}", urls.join(" "));
    for node in nodes {
        assert_eq!(node.ask(&line), "ready");
    }
}

#[test]
fn killed_peer_costs_each_thread_one_exchange_and_is_asked_again_after_its_restart() {
    const THREADS: u64 = 8;
    let mut nodes = cluster::<3>("exchange_ms=1000 connect_ms=250");
    for node in &mut nodes[..2] {
        let load = format!("load threads={THREADS} pause_us=200 prefix={}", node.url);
        assert_eq!(node.ask(&load), "started");
    }
    thread::sleep(millis(500));
    let (dead, options) = (nodes[2].url.clone(), nodes[2].same_port());
    nodes[2].kill();
    // The first window is 1 s, the second one 2 s.
    thread::sleep(millis(2000));
    let status = nodes[0].ask(&format!("peer {dead}"));
    assert!(
        status.contains("Down") && status.contains("refused"),
        "{status}"
    );
    nodes[2] = Process::start(&format!("exchange_ms=1000 connect_ms=250 {options}"));
    let back = Instant::now();
    connect(&mut nodes[2..]);
    while nodes[2].number::<u64>("served") == 0 {
        let took = back.elapsed();
        assert!(took < seconds(4), "not asked again after {took:?}");
        thread::sleep(millis(10));
    }
    for node in &mut nodes[..2] {
        let figures = node.ask("end");
        assert_eq!(figure(&figures, "errors"), 0, "{figures}");
        assert_eq!(figure(&figures, "wrong"), 0, "{figures}");
        let failed: u64 = node.number("peer-errors");
        assert!((1..=THREADS).contains(&failed), "{failed} failed exchanges");
    }
}

#[test]
fn absent_owner_leaves_its_keys_to_the_next_node_for_their_full_life() {
    let clock = Clock::manual();
    let loads = Arc::new(AtomicUsize::new(0));
    let (ours, counted) = (clock.clone(), loads.clone());
    let setup = Setup {
        group: Box::new(move |group| group.clock(ours.clone())),
        pool: Box::new(|pool| pool.absent_after(millis(500))),
        ..Setup::default()
    };
    let nodes = [(); 2].map(|()| {
        let counted = counted.clone();
        setup.start(move |_, key, dest| {
            counted.fetch_add(1, Ordering::SeqCst);
            Ok(dest.set_str(key)?)
        })
    });
    let dead = RawServer::start(drop);
    let urls = [&dead.url, &nodes[0].url, &nodes[1].url];
    for node in &nodes {
        node.pool.set(urls).expect("URLs");
    }
    let get_at_both = |key: &str| {
        for node in &nodes {
            assert_eq!(node.group.get(key).expect("a value"), key);
        }
        loads.swap(0, Ordering::SeqCst)
    };
    // Both nodes notice that the owner is down, each by a key that the other has not loaded for it.
    for (n, node) in nodes.iter().enumerate() {
        let key = node.key_of(&dead.url, &format!("first{n}"));
        assert_eq!(node.group.get(&key).expect("a value"), key.as_str());
    }
    loads.store(0, Ordering::SeqCst);
    // A value in the owner's place is kept for 10 s.
    let key = nodes[0].key_of(&dead.url, "down");
    assert!((1..=2).contains(&get_at_both(&key)));
    clock.advance(seconds(11));
    assert_eq!(get_at_both(&key), 1, "one node loads for both");

    let is_absent = |node: &Node| node.pool.peers()[0].state == PeerState::Absent;
    eventually("absent", || nodes.iter().all(is_absent));
    let key = nodes[0].key_of(&dead.url, "absent");
    assert_eq!(get_at_both(&key), 1);
    clock.advance(seconds(3600));
    assert_eq!(get_at_both(&key), 0, "it is kept");
}

#[test]
fn peer_that_is_down_gets_one_probe_a_window() {
    let [probes, gets] = [(); 2].map(|()| Arc::new(AtomicUsize::new(0)));
    let (counted_probes, counted_gets) = (probes.clone(), gets.clone());
    let dead = RawServer::start(move |mut connection| {
        let head = connection.read_head().unwrap_or_default();
        if head.starts_with("GET /_groupcache/ ") {
            counted_probes.fetch_add(1, Ordering::SeqCst);
        } else if head.contains("/key") || head.starts_with("POST") {
            counted_gets.fetch_add(1, Ordering::SeqCst);
        }
    });
    let others = [(); 2].map(|()| Setup::default().start(|_, _, dest| Ok(dest.set_str("value")?)));
    let node = Setup::default().start(|_, _, dest| Ok(dest.set_str("value")?));
    let urls = [&dead.url, &others[0].url, &others[1].url, &node.url];
    node.pool.set(urls).expect("URLs");
    let start = Instant::now();
    let mut number = 0;
    while start.elapsed() < millis(3200) {
        let keys: Vec<String> = (number..number + 10).map(|n| format!("key{n}")).collect();
        number += 10;
        for key in &keys[..5] {
            assert_eq!(node.group.get(key).expect("a value"), "value");
        }
        let values = node
            .group
            .get_many(&larder::Context::background(), &keys[5..]);
        assert!(values.iter().all(|value| value.is_ok()));
        thread::sleep(millis(1));
    }
    // Probes are sent after 1 s and after 2 s more, each up to a quarter earlier.
    let probes = probes.load(Ordering::SeqCst);
    assert!((1..=2).contains(&probes), "{probes} probes");
    assert_eq!(gets.load(Ordering::SeqCst), 1);
    assert_eq!(node.group.stats().peer_errors, 1);
}
