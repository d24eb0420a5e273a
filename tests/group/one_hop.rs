//! A request from a peer is answered from the store or by the getter. It is never forwarded, and it
//! does not wait for a load that asks a peer.

use std::sync::Arc;

use larder::{CacheType, Clock, ErrorKind, Group, PeerResponse, Registry, getter_fn};

use crate::common::*;

fn served(group: &Group, key: &str) -> String {
    let answer = group.serve_peer(&within(PATIENCE), key).expect("an answer");
    answer.value.to_str().expect("text").to_owned()
}

#[test]
fn request_from_peer_is_never_forwarded() {
    let peer = FakePeer::new(|_, _| Ok(PeerResponse::new("theirs")));
    let (getter, loads) = echo();
    let group = among("hop", all_keys_at(&[&peer, &peer]))
        .build(getter)
        .expect("a group");
    assert_eq!(served(&group, "key"), "ECHO:key");
    assert_eq!(served(&group, "key"), "ECHO:key");
    assert_eq!((peer.calls(), loads.get()), (0, 1));
    assert_eq!(group.get("other").expect("a value"), "theirs");
    assert_eq!(served(&group, "other"), "theirs", "a cached value is sent");
    assert_eq!((peer.calls(), loads.get()), (1, 1));
}

#[test]
fn value_loaded_for_mistaken_peer_is_kept_ten_seconds() {
    for (group_ttl, value_ttl, kept) in [
        (None, None, 10),
        (Some(60), None, 10),
        (Some(3), None, 3),
        (None, Some(4), 4),
        (None, Some(40), 10),
    ] {
        let clock = Clock::manual();
        let peer = FakePeer::echo();
        let mut builder = among("borrowed", all_keys_at(&[&peer])).clock(clock.clone());
        if let Some(ttl) = group_ttl {
            builder = builder.time_to_live(seconds(ttl));
        }
        let group = builder
            .build(getter_fn(move |_, key, dest| {
                if let Some(ttl) = value_ttl {
                    dest.expire_in(seconds(ttl));
                }
                Ok(dest.set_str(key)?)
            }))
            .expect("a group");
        let answer = group.serve_peer(&within(PATIENCE), "key").expect("a value");
        assert_eq!(answer.ttl, Some(seconds(kept)));
        assert_eq!(group.cache_stats(CacheType::Main).items, 1);
        clock.advance(seconds(kept) - millis(1));
        assert!(group.contains_key("key"));
        clock.advance(millis(1));
        assert!(!group.contains_key("key"), "{group_ttl:?} {value_ttl:?}");
    }
}

#[test]
fn own_key_loaded_for_peer_is_kept_normally() {
    let clock = Clock::manual();
    let group = alone("owned")
        .clock(clock.clone())
        .build(echo().0)
        .expect("a group");
    let answer = group.serve_peer(&within(PATIENCE), "key").expect("a value");
    assert_eq!(answer.ttl, None);
    clock.advance(seconds(1_000_000));
    assert_eq!(group.cache_stats(CacheType::Main).items, 1);
    assert!(group.contains_key("key"));
}

#[test]
fn request_from_peer_does_not_wait_for_peer_flight() {
    let (gate, asked) = (Gate::new(), Gate::new());
    let peer = {
        let (gate, asked) = (gate.clone(), asked.clone());
        FakePeer::new(move |_, _| {
            asked.open();
            gate.pass();
            Ok(PeerResponse::new("theirs"))
        })
    };
    let (getter, loads) = echo();
    let group = among("flights", all_keys_at(&[&peer]))
        .build(getter)
        .expect("a group");
    let get = {
        let group = group.clone();
        start(move || group.get("key"))
    };
    asked.pass();
    for ctx in [larder::Context::background(), within(PATIENCE)] {
        let serve = {
            let group = group.clone();
            start(move || group.serve_peer(&ctx, "key"))
        };
        let answer = serve.end().expect("an answer, while the peer is silent");
        assert_eq!(answer.value, "ECHO:key");
    }
    assert_eq!((peer.calls(), loads.get()), (1, 1));
    gate.open();
    assert_eq!(get.end().expect("a value"), "theirs");
}

#[test]
fn request_from_peer_joins_getter_flight() {
    let (gate, begun) = (Gate::new(), Gate::new());
    let loads = Count::default();
    let group = {
        let (gate, begun, loads) = (gate.clone(), begun.clone(), loads.clone());
        alone("shared")
            .build(getter_fn(move |_, _, dest| {
                loads.add(1);
                begun.open();
                gate.pass();
                Ok(dest.set_str("value")?)
            }))
            .expect("a group")
    };
    let get = {
        let group = group.clone();
        start(move || group.get("key"))
    };
    begun.pass();
    let serve = {
        let group = group.clone();
        start(move || group.serve_peer(&within(PATIENCE), "key"))
    };
    eventually("both miss", || group.stats().loads == 2);
    gate.open();
    assert_eq!(get.end().expect("a value"), "value");
    assert_eq!(serve.end().expect("a value").value, "value");
    assert_eq!(loads.get(), 1);
}

/// Two nodes in one process. Each takes the other for the owner of every key.
fn that_disagree(loads: &Count) -> [Group; 2] {
    let registries = [Registry::new(), Registry::new()];
    let groups = [0, 1].map(|n| {
        let counted = loads.clone();
        Group::builder("same")
            .registry(&registries[n])
            .build(getter_fn(move |_, key, dest| {
                counted.add(1);
                // Sometimes long enough for the other node's request to arrive meanwhile.
                for _ in 0..50 {
                    std::thread::yield_now();
                }
                Ok(dest.set_str(key)?)
            }))
            .expect("a group")
    });
    for n in 0..2 {
        let other = Arc::new(Node(registries[1 - n].clone()));
        registries[n]
            .register_peer_picker(all_keys_at(&[&other]))
            .expect("a new registry");
    }
    groups
}

#[test]
fn nodes_with_different_rings_answer() {
    for has_deadline in [false, true] {
        let loads = Count::default();
        let groups = that_disagree(&loads);
        for round in 0..100 {
            let before = loads.get();
            let calls: Vec<_> = (0..4)
                .map(|n| {
                    let group = groups[n % 2].clone();
                    let ctx = match has_deadline {
                        false => larder::Context::background(),
                        true => within(PATIENCE),
                    };
                    start(move || group.get_with(&ctx, &format!("key{round}")))
                })
                .collect();
            for call in calls {
                assert_eq!(call.end().expect("a value"), format!("key{round}").as_str());
            }
            assert!(loads.get() - before <= 2, "at most one load on each node");
        }
        let errors: u64 = groups.iter().map(|group| group.stats().peer_errors).sum();
        assert_eq!(errors, 0);
    }
}

#[test]
fn calls_with_circular_rings_end_after_one_hop() {
    let loads = Count::default();
    let registries: Vec<Registry> = (0..5).map(|_| Registry::new()).collect();
    let groups: Vec<Group> = registries
        .iter()
        .map(|registry| {
            let counted = loads.clone();
            Group::builder("circle")
                .registry(registry)
                .build(getter_fn(move |_, key, dest| {
                    counted.add(1);
                    Ok(dest.set_str(key)?)
                }))
                .expect("a group")
        })
        .collect();
    for n in 0..5 {
        let next = Arc::new(Node(registries[(n + 1) % 5].clone()));
        registries[n]
            .register_peer_picker(all_keys_at(&[&next]))
            .expect("a new registry");
    }
    assert_eq!(groups[0].get("key").expect("a value"), "key");
    assert_eq!(loads.get(), 1);
    let asked: Vec<u64> = groups.iter().map(|g| g.stats().server_requests).collect();
    assert_eq!(asked, [0, 1, 0, 0, 0]);
}

#[test]
fn bad_request_from_peer_is_refused() {
    let group = alone("limits")
        .max_key_size(3)
        .build(echo().0)
        .expect("a group");
    let refused = group.serve_peer(&within(PATIENCE), "four");
    assert_eq!(kind(refused), ErrorKind::KeyTooLong);
    let late = group.serve_peer(&within(millis(0)), "key");
    assert_eq!(kind(late), ErrorKind::DeadlineExceeded);
}
