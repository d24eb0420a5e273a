//! The nine counters of a group, and those of its two shares.

use std::sync::Arc;

use larder::{CacheType, Error, ErrorKind, Group, PeerResponse, ProtoGetter, Stats, getter_fn};

use crate::common::*;

/// A group in which the first letter of a key determines its owner and the result of its load.
fn group() -> Group {
    let well = FakePeer::new(|_, _| Ok(PeerResponse::new("theirs")));
    let dead = FakePeer::failing(ErrorKind::Peer, "connection refused");
    let lacking = FakePeer::failing(ErrorKind::NotFound, "no such key there");
    let picker = picker(move |key, attempt| {
        let peer: Arc<dyn ProtoGetter> = match key.as_bytes().first() {
            Some(b'p') => well.clone(),
            Some(b'd') => dead.clone(),
            Some(b'n') => lacking.clone(),
            _ => return None,
        };
        (attempt == 0).then_some(peer)
    });
    among("stats", picker)
        .build(getter_fn(|_, key, dest| {
            if key.starts_with('e') {
                return Err(Error::not_found("no such key here").into());
            }
            Ok(dest.set_str("ours")?)
        }))
        .expect("a group")
}

/// Gets, hits, loads, merged loads, peer loads, peer errors, local loads, local errors, requests
/// of peers.
fn nine(stats: Stats) -> [u64; 9] {
    [
        stats.gets,
        stats.cache_hits,
        stats.loads,
        stats.loads_deduped,
        stats.peer_loads,
        stats.peer_errors,
        stats.local_loads,
        stats.local_load_errs,
        stats.server_requests,
    ]
}

#[test]
fn every_counter_matches_its_doc() {
    let group = group();
    assert_eq!(nine(group.stats()), [0; 9]);
    let mut sum = [0; 9];
    let mut step = |what: &str, call: &dyn Fn(), counted: [u64; 9]| {
        call();
        for (sum, counted) in sum.iter_mut().zip(counted) {
            *sum += counted;
        }
        assert_eq!(nine(group.stats()), sum, "{what}");
    };
    let get = |key: &'static str| {
        let group = group.clone();
        move || drop(group.get(key))
    };
    let serve = |key: &'static str| {
        let group = group.clone();
        move || drop(group.serve_peer(&within(PATIENCE), key))
    };
    step("an own key", &get("own"), [1, 0, 1, 1, 0, 0, 1, 0, 0]);
    step("the same again", &get("own"), [1, 1, 0, 0, 0, 0, 0, 0, 0]);
    step("a peer's key", &get("peer"), [1, 0, 1, 1, 1, 0, 0, 0, 0]);
    step("the same again", &get("peer"), [1, 1, 0, 0, 0, 0, 0, 0, 0]);
    step(
        "a dead peer's key",
        &get("dead"),
        [1, 0, 1, 1, 0, 1, 1, 0, 0],
    );
    // The peer answers "not found". That counts neither as a peer error nor as a peer load.
    step(
        "a key its peer lacks",
        &get("n"),
        [1, 0, 1, 1, 0, 0, 0, 0, 0],
    );
    step("a key not there", &get("e"), [1, 0, 1, 1, 0, 0, 0, 1, 0]);
    step("a peer asks", &serve("new"), [1, 0, 1, 1, 0, 0, 1, 0, 1]);
    step(
        "a peer asks again",
        &serve("new"),
        [1, 1, 0, 0, 0, 0, 0, 0, 1],
    );
    step(
        "a peer asks, and the getter fails",
        &serve("e"),
        [1, 0, 1, 1, 0, 0, 0, 1, 1],
    );
}

#[test]
fn merged_loads_are_counted_once() {
    let (gate, begun) = (Gate::new(), Gate::new());
    let group = {
        let (gate, begun) = (gate.clone(), begun.clone());
        alone("merged")
            .build(getter_fn(move |_, _, dest| {
                begun.open();
                gate.pass();
                Ok(dest.set_str("value")?)
            }))
            .expect("a group")
    };
    let calls: Vec<_> = (0..8)
        .map(|_| {
            let group = group.clone();
            start(move || group.get("key"))
        })
        .collect();
    begun.pass();
    eventually("all miss", || group.stats().loads == 8);
    gate.open();
    for call in calls {
        assert_eq!(call.end().expect("a value"), "value");
    }
    assert_eq!(nine(group.stats()), [8, 0, 8, 1, 0, 0, 1, 0, 0]);
}

#[test]
fn no_count_is_lost_between_threads() {
    let (getter, loads) = echo();
    let group = alone("threads").build(getter).expect("a group");
    let calls: Vec<_> = (0..8)
        .map(|_| {
            let group = group.clone();
            start(move || {
                for n in 0..1000 {
                    group.get(&format!("key{}", n % 50)).expect("a value");
                }
            })
        })
        .collect();
    calls.into_iter().for_each(Call::end);
    let stats = group.stats();
    assert_eq!(loads.get(), 50, "each key is loaded once");
    assert_eq!((stats.gets, stats.local_loads), (8000, 50));
    assert_eq!(stats.loads_deduped, 50);
    assert_eq!(stats.gets, stats.cache_hits + stats.loads);
}

#[test]
fn shares_count_their_own_entries_and_lookups() {
    let group = group();
    for key in ["own1", "own2", "peer"] {
        group.get(key).expect("a value");
    }
    for key in ["own1", "own1", "own2", "peer"] {
        group.get(key).expect("a value");
    }
    let (main, hot) = (
        group.cache_stats(CacheType::Main),
        group.cache_stats(CacheType::Hot),
    );
    assert_eq!((main.items, main.gets, main.hits), (2, 7, 3));
    // The three hits in main do not look up the hot share.
    assert_eq!((hot.items, hot.gets, hot.hits), (1, 4, 1));
    assert_eq!((main.evictions, hot.evictions), (0, 0));
    assert_eq!(group.entry_count(), 3);
    assert_eq!(group.weighted_size(), main.bytes + hot.bytes);
    assert!(hot.bytes > 0 && main.bytes > hot.bytes);
    group.clear_local();
    assert_eq!((group.entry_count(), group.weighted_size()), (0, 0));
}
