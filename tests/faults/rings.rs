//! Nodes have different groups or different lists of peers; many callers request one key; clocks jump.

use larder::http::HttpPool;
use larder::{BoxError, Clock, Context, Registry, Sink};

use crate::cluster::{GROUP, Node, Setup, connect};
use crate::common::{Count, PATIENCE, seconds, start, within};
use crate::process::Process;

fn echo(runs: &Count) -> impl Fn(&Context, &str, &mut dyn Sink) -> Result<(), BoxError> + use<> {
    let runs = runs.clone();
    move |_, key, dest| {
        runs.add(1);
        Ok(dest.set_str(key)?)
    }
}

#[test]
fn key_of_an_owner_without_the_group_is_loaded_locally() {
    let (theirs, ours) = (Count::default(), Count::default());
    let other_group = Setup {
        name: "another group",
        ..Setup::default()
    };
    let nodes = [
        other_group.start(echo(&theirs)),
        Setup::default().start(echo(&ours)),
    ];
    connect(&nodes);
    let (owner, caller) = (&nodes[0], &nodes[1]);
    for n in 1..=5 {
        let key = caller.key_of(&owner.url, &format!("{n} "));
        assert_eq!(caller.group.get(&key).expect("a value"), key.as_str());
        assert_eq!((ours.get(), theirs.get()), (n, 0));
    }
    // Lists are asked for in batches.
    for n in 0..5 {
        let keys = [1, 2].map(|of| caller.key_of(&owner.url, &format!("list {n} {of} ")));
        let values = caller.group.get_many(&Context::background(), &keys);
        for (key, value) in keys.iter().zip(values) {
            assert_eq!(value.expect("a value"), key.as_str());
        }
        assert_eq!((ours.get(), theirs.get()), (5 + 2 * (n + 1), 0));
    }
    // The owner is asked again and again, and answers as soon as it has the group.
    owner
        .registry
        .new_group(GROUP, 1 << 20, echo(&theirs))
        .expect("a group");
    let key = caller.key_of(&owner.url, "later ");
    assert_eq!(caller.group.get(&key).expect("a value"), key.as_str());
    assert_eq!((ours.get(), theirs.get()), (15, 1));
    let peers = caller.pool.peers();
    assert!(
        peers.iter().all(|peer| peer.last_error.is_none()),
        "{peers:?}"
    );
}

#[test]
fn nodes_that_each_take_the_other_for_the_owner_do_not_wait_for_each_other() {
    let runs = Count::default();
    let nodes = [(); 2].map(|()| Setup::default().start(echo(&runs)));
    nodes[0].pool.set([&nodes[1].url]).expect("a URL");
    nodes[1].pool.set([&nodes[0].url]).expect("a URL");
    for round in 0..20 {
        runs.store(0);
        let calls: Vec<_> = (0..8)
            .map(|n| {
                let (group, key) = (nodes[n % 2].group.clone(), format!("key {round}"));
                start(move || group.get_with(&within(PATIENCE), &key))
            })
            .collect();
        for call in calls {
            assert_eq!(
                call.end().expect("a value"),
                format!("key {round}").as_str()
            );
        }
        assert!((1..=2).contains(&runs.get()), "{} loads", runs.get());
    }
}

#[test]
fn wall_clock_that_jumps_expires_no_entry_early_or_late() {
    let hour = 3_600_000_000_000;
    for jump in [hour, -hour] {
        let runs = Count::default();
        let clocks = [Clock::manual(), Clock::manual()];
        let node = |clock: &Clock| {
            let clock = clock.clone();
            let setup = Setup {
                group: Box::new(move |group| group.clock(clock.clone())),
                ..Setup::default()
            };
            let runs = runs.clone();
            setup.start(move |_: &Context, key: &str, dest: &mut dyn Sink| {
                runs.add(1);
                dest.expire_in(seconds(60));
                Ok(dest.set_str(key)?)
            })
        };
        let nodes: [Node; 2] = [node(&clocks[0]), node(&clocks[1])];
        connect(&nodes);
        let key = nodes[1].key_of(&nodes[0].url, "");
        // The owner's wall clock is wrong when it sends the caller the remaining time.
        clocks[0].shift_wall_clock(jump);
        nodes[1].group.get(&key).expect("a value");
        clocks[1].shift_wall_clock(jump);
        for clock in &clocks {
            clock.advance(seconds(59));
        }
        for node in &nodes {
            assert!(node.group.contains_key(&key), "it expired early");
        }
        for clock in &clocks {
            clock.shift_wall_clock(-jump);
            clock.advance(seconds(2));
        }
        for node in &nodes {
            assert!(!node.group.contains_key(&key), "it expired late");
        }
        nodes[1].group.get(&key).expect("a value");
        assert_eq!(runs.get(), 2);
    }
}

const THREADS: usize = 100;

/// Three processes with the same peers.
fn three() -> [Process; 3] {
    let mut nodes = [(); 3].map(|()| Process::start("exchange_ms=20000"));
    let urls = nodes.each_ref().map(|node| node.url.clone()).join(" ");
    for node in &mut nodes {
        assert_eq!(node.ask(&format!("peers {urls}")), "ready");
    }
    nodes
}

/// Gets a key by 100 threads of each node at the same time. Returns each node's runs of the getter.
fn herd(nodes: &mut [Process], key: &str) -> Vec<u64> {
    herd_while_peers_change(nodes, key, "")
}

/// Like [`herd`]. While the first half of the threads wait, each node gets these peers; then the others
/// get the key.
fn herd_while_peers_change(nodes: &mut [Process], key: &str, peers: &str) -> Vec<u64> {
    for node in &mut *nodes {
        node.begin(format!("herd {THREADS} {key} {peers}").trim_end());
    }
    for node in &mut *nodes {
        assert_eq!(node.line(), THREADS.to_string(), "each has the value");
    }
    let loads = nodes
        .iter_mut()
        .map(|node| node.number(&format!("loads {key}")));
    loads.collect()
}

#[test]
fn three_hundred_callers_of_a_cold_key_in_three_processes_cause_one_load() {
    let mut nodes = three();
    for n in 0..4 {
        let loads = herd(&mut nodes, &format!("slow:200:{n}"));
        assert_eq!(loads.iter().sum::<u64>(), 1, "{loads:?}");
    }
}

#[test]
fn three_hundred_callers_of_a_cold_key_whose_owner_changes_cause_two_loads_at_most() {
    let mut nodes = three();
    let urls = nodes.each_ref().map(|node| node.url.clone());
    let (before, after) = (urls[..2].join(" "), urls.join(" "));
    // A pool that has only the list, so that it has the same owners.
    let pool = HttpPool::builder("http://127.0.0.1:1").registry(&Registry::new());
    let pool = pool.build().expect("a pool");
    let owner = |urls: &[String], key: &str| {
        pool.set(urls).expect("URLs");
        pool.owner(key)
    };
    let moves = |key: &String| owner(&urls[..2], key) != owner(&urls, key);
    let keys = (0..).map(|n| format!("slow:400:{n}")).filter(moves);
    for key in keys.take(4) {
        for node in &mut nodes {
            assert_eq!(node.ask(&format!("peers {before}")), "ready");
        }
        let loads = herd_while_peers_change(&mut nodes, &key, &after);
        assert!(
            (1..=2).contains(&loads.iter().sum::<u64>()),
            "{key}: {loads:?}"
        );
    }
}

#[test]
fn callers_of_cold_keys_of_a_dead_owner_cause_one_load_a_fallback_owner() {
    let mut nodes = three();
    nodes[0].kill();
    let mut fallback = [0, 0];
    for n in 0..8 {
        let loads = herd(&mut nodes[1..], &format!("slow:100:{n}"));
        assert!(loads.iter().all(|loads| *loads <= 1), "{loads:?}");
        fallback[0] += loads[0];
        fallback[1] += loads[1];
    }
    assert!(fallback.iter().sum::<u64>() >= 8, "{fallback:?}");
}
