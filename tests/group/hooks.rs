//! Registries: names, hooks for new groups, and pickers for all groups or for each group.

use std::sync::{Arc, Mutex};

use larder::{ErrorKind, Group, NoPeers, PeerPicker, PeerResponse, Registry};

use crate::common::*;

/// Makes a group on a thread of its own. It would hang if hooks ran under a lock.
fn group(registry: &Registry, name: &'static str) -> Group {
    let registry = registry.clone();
    let made = start(move || registry.new_group(name, 1 << 20, echo().0));
    made.end().expect("a new name")
}

/// A picker with one peer for all keys. The peer's value is its name.
fn called(name: &'static str) -> Arc<dyn PeerPicker> {
    let peer = FakePeer::new(move |_, _| Ok(PeerResponse::new(name)));
    all_keys_at(&[&peer])
}

#[test]
fn new_group_hook_sees_every_later_group() {
    let registry = Registry::new();
    group(&registry, "before");
    let seen = Arc::new(Mutex::new(Vec::new()));
    let (noted, within) = (seen.clone(), registry.clone());
    registry
        .register_new_group_hook(move |group| {
            // No lock of the registry is held: the hook may use it.
            assert!(within.get_group(group.name()).is_some());
            noted
                .lock()
                .expect("no panic")
                .push(group.name().to_owned());
        })
        .expect("the first hook");
    group(&registry, "one");
    assert_eq!(*seen.lock().expect("no panic"), ["one"]);
    group(&registry, "two");
    assert!(registry.new_group("two", 1 << 20, echo().0).is_err());
    assert_eq!(*seen.lock().expect("no panic"), ["one", "two"]);
    let second = registry.register_new_group_hook(|_| {});
    assert_eq!(kind(second), ErrorKind::AlreadyRegistered);
}

#[test]
fn server_start_runs_once_with_first_group() {
    let registry = Registry::new();
    let starts = Count::default();
    let counted = starts.clone();
    registry
        .register_server_start(move || counted.add(1))
        .expect("the first");
    let second = registry.register_server_start(|| {});
    assert_eq!(kind(second), ErrorKind::AlreadyRegistered);
    assert_eq!(starts.get(), 0);
    group(&registry, "one");
    assert_eq!(starts.get(), 1);
    group(&registry, "two");
    assert_eq!(starts.get(), 1);
    let late = registry.register_server_start(|| {});
    assert_eq!(kind(late), ErrorKind::AlreadyRegistered);
}

#[test]
fn server_start_after_first_group_is_refused() {
    let registry = Registry::new();
    group(&registry, "one");
    let error = registry.register_server_start(|| {}).expect_err("too late");
    assert!(error.to_string().contains("before"), "{error}");
}

#[test]
fn picker_serves_groups_made_before_it() {
    let registry = Registry::new();
    let early = group(&registry, "early");
    assert_eq!(early.get("key").expect("a value"), "ECHO:key");
    registry
        .register_peer_picker(called("peer"))
        .expect("the first picker");
    let late = group(&registry, "late");
    assert_eq!(early.get("key2").expect("a value"), "peer");
    assert_eq!(late.get("key").expect("a value"), "peer");
}

#[test]
fn each_group_can_have_its_own_picker() {
    let registry = Registry::new();
    registry
        .register_per_group_peer_picker(|name| match name {
            "colors" => called("palette"),
            "towns" => called("atlas"),
            _ => Arc::new(NoPeers),
        })
        .expect("the first picker");
    for (name, answer) in [
        ("colors", "palette"),
        ("towns", "atlas"),
        ("others", "ECHO:key"),
    ] {
        let group = group(&registry, name);
        assert_eq!(group.get("key").expect("a value"), answer);
    }
}

#[test]
fn second_picker_of_any_kind_is_refused() {
    let shared = Registry::new();
    shared.register_peer_picker(called("a")).expect("the first");
    let each = Registry::new();
    each.register_per_group_peer_picker(|_| called("a"))
        .expect("the first");
    for registry in [shared, each] {
        let all = registry.register_peer_picker(called("b"));
        assert_eq!(kind(all), ErrorKind::AlreadyRegistered);
        let per_group = registry.register_per_group_peer_picker(|_| called("b"));
        assert_eq!(kind(per_group), ErrorKind::AlreadyRegistered);
        let group = group(&registry, "group");
        assert_eq!(group.get("key").expect("a value"), "a");
    }
}

#[test]
fn without_peers_every_key_is_local() {
    let (getter, loads) = echo();
    let group = among("lonely", Arc::new(NoPeers))
        .build(getter)
        .expect("a group");
    assert_eq!(group.get("key").expect("a value"), "ECHO:key");
    assert_eq!(loads.get(), 1);
    assert!(NoPeers.pick_peer("key").is_none());
    assert!(NoPeers.pick_replica("key", 1).is_none());
}

#[test]
fn registries_are_independent() {
    let (one, other) = (Registry::new(), Registry::new());
    let first = group(&one, "same");
    let second = group(&other, "same");
    first.get("key").expect("a value");
    assert!(!second.contains_key("key"));
    assert!(one.get_group("same").is_some());
    assert!(Registry::global().get_group("same").is_none());
}

#[test]
fn removed_group_frees_its_name_and_stays_usable() {
    let registry = Registry::new();
    let old = group(&registry, "name");
    old.get("key").expect("a value");
    assert!(registry.remove_group("name").is_some());
    assert!(registry.remove_group("name").is_none());
    assert!(registry.get_group("name").is_none());
    let new = group(&registry, "name");
    assert!(old.contains_key("key") && !new.contains_key("key"));
    assert_eq!(registry.groups().len(), 1);
}

#[test]
fn global_functions_use_global_registry() {
    let name = "hooks: a name of this test alone";
    let group = larder::new_group(name, 1 << 20, echo().0).expect("a new name");
    group.get("key").expect("a value");
    let found = larder::get_group(name).expect("it is there");
    assert!(found.contains_key("key"), "the same group");
    assert!(Registry::global().get_group(name).is_some());
    assert!(larder::get_group("hooks: a name without a group").is_none());
    assert!(Registry::global().remove_group(name).is_some());
}
