//! Pickers, peers and admission functions that panic or call the group.

use std::sync::{Arc, Mutex, OnceLock};

use larder::{ByteView, Context, ErrorKind, Group, HotAdmission, NoPeers, Registry, Result};

use crate::common::*;

use super::*;

#[test]
fn picker_panic_propagates_to_the_caller_and_the_next_get_works() {
    let panics = Arc::new(Mutex::new(true));
    let own = panics.clone();
    let group = among(
        "picker-panics",
        picker(move |_, _| {
            let panics = *own.lock().unwrap_or_else(|e| e.into_inner());
            if panics { panic_quietly() } else { None }
        }),
    )
    .build(texts())
    .expect("a group");
    type Get = fn(&Group) -> Result<ByteView>;
    let gets: [Get; 3] = [
        |group| group.get("key"),
        |group| {
            group
                .get_many(&Context::background(), &["key", "other"])
                .remove(0)
        },
        |group| {
            group
                .serve_peer(&Context::background(), "key")
                .map(|answer| answer.value)
        },
    ];
    for get in gets {
        let call = |group: &Group| {
            let group = group.clone();
            start(move || get(&group))
        };
        *panics.lock().unwrap_or_else(|e| e.into_inner()) = true;
        assert!(call(&group).outcome().is_err());
        *panics.lock().unwrap_or_else(|e| e.into_inner()) = false;
        assert_eq!(call(&group).end().expect("a value"), "key");
        group.clear_local();
    }
}

#[test]
fn replica_picker_panic_fails_the_waiters_with_a_typed_error() {
    let (in_peer, go_on) = (Gate::new(), Gate::new());
    let peer = {
        let (in_peer, go_on) = (in_peer.clone(), go_on.clone());
        FakePeer::new(move |_, _| {
            in_peer.open();
            go_on.pass();
            Err(ErrorKind::Peer.into())
        })
    };
    let group = among(
        "replica-panics",
        picker(move |_, attempt| match attempt {
            0 => Some(peer.clone()),
            _ => panic_quietly(),
        }),
    )
    .build(texts())
    .expect("a group");
    let get = || {
        let group = group.clone();
        start(move || group.get("key"))
    };
    let leader = get();
    in_peer.pass();
    let waiter = get();
    eventually("the waiter misses", || group.stats().loads == 2);
    go_on.open();
    assert!(leader.outcome().is_err());
    // If the waiter was too late to join, it led a flight of its own and panicked, too.
    if let Ok(result) = waiter.outcome() {
        assert_eq!(kind(result), ErrorKind::GetterPanicked);
    }
}

#[test]
fn per_group_picker_function_may_panic_or_use_the_registry() {
    let registry = Registry::new();
    let (own, runs) = (registry.clone(), Count::default());
    let counted = runs.clone();
    registry
        .register_per_group_peer_picker(move |name| {
            counted.add(1);
            assert!(own.get_group(name).is_some());
            let again = own.register_peer_picker(Arc::new(NoPeers));
            assert_eq!(kind(again), ErrorKind::AlreadyRegistered);
            if counted.get() == 1 {
                panic_quietly();
            }
            Arc::new(NoPeers)
        })
        .expect("the first picker");
    let group = registry
        .new_group("group", 1 << 20, texts())
        .expect("a group");
    let get = || {
        let group = group.clone();
        start(move || group.get("key"))
    };
    assert!(get().outcome().is_err());
    assert_eq!(get().end().expect("a value"), "key");
}

#[test]
fn picker_may_call_the_group_it_picks_for() {
    let own: Arc<OnceLock<Group>> = Arc::default();
    let itself = own.clone();
    let group = among(
        "picker-calls",
        picker(move |key, attempt| {
            if key != "config" && attempt == 0 {
                let config = itself.get().expect("made").get("config");
                assert_eq!(config.expect("a value"), "config");
            }
            None
        }),
    )
    .build(texts())
    .expect("a group");
    own.set(group.clone()).expect("once");
    let call = start(move || group.get("key"));
    assert_eq!(call.end().expect("a value"), "key");
}

#[test]
fn hot_admission_function_may_panic_and_may_call_the_group() {
    let own: Arc<OnceLock<Group>> = Arc::default();
    let itself = own.clone();
    let peer = FakePeer::echo();
    let group = among("admission", all_keys_at(&[&peer]))
        .hot_admission(HotAdmission::Custom(Arc::new(move |key, _| {
            let group = itself.get().expect("the group is made");
            match key {
                "panics" => panic_quietly(),
                "asks for itself" => {
                    assert_eq!(kind(group.get(key)), ErrorKind::RecursiveLoad);
                }
                "asks for another" => {
                    group.get("simple").expect("a value");
                }
                _ => {}
            }
            true
        })))
        .build(texts())
        .expect("a group");
    own.set(group.clone()).expect("once");
    let get = |key: &'static str| {
        let group = group.clone();
        start(move || group.get(key))
    };
    assert!(get("panics").outcome().is_err());
    assert!(
        get("panics").outcome().is_err(),
        "the next get starts a flight of its own"
    );
    for key in ["asks for itself", "asks for another"] {
        assert_eq!(
            get(key).end().expect("a value"),
            format!("ECHO:{key}").as_str()
        );
        assert!(group.contains_key(key));
    }
    assert!(group.contains_key("simple"));
    let many = start({
        let group = group.clone();
        move || {
            group
                .get_many(&Context::background(), &["panics", "simple"])
                .len()
        }
    });
    assert!(many.outcome().is_err());
}

#[test]
fn peer_panic_fails_only_its_own_flight() {
    let peer = FakePeer::new(|_, _| panic_quietly());
    let group = among("peer-panics", all_keys_at(&[&peer]))
        .build(texts())
        .expect("a group");
    let get = |ctx: Context| {
        let group = group.clone();
        start(move || group.get_with(&ctx, "key"))
    };
    assert!(get(Context::background()).outcome().is_err());
    assert_eq!(kind(get(within(PATIENCE)).end()), ErrorKind::GetterPanicked);
}
