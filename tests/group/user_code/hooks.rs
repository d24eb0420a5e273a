//! Hooks that panic, call their registry, or make and remove groups.

use std::sync::{Arc, Mutex};

use larder::{Context, ErrorKind, NoPeers, Registry, getter_fn};

use crate::common::*;

use super::*;

#[test]
fn new_group_hook_that_panics_registers_nothing() {
    let registry = Registry::new();
    let runs = Count::default();
    let counted = runs.clone();
    registry
        .register_new_group_hook(move |_| {
            counted.add(1);
            if counted.get() == 1 {
                panic_quietly();
            }
        })
        .expect("the first hook");
    let build = |registry: &Registry| {
        let registry = registry.clone();
        start(move || registry.new_group("group", 1 << 20, texts()))
    };
    assert!(
        build(&registry).outcome().is_err(),
        "the panic propagates to the caller"
    );
    assert!(registry.get_group("group").is_none());
    assert!(registry.groups().is_empty());
    build(&registry).end().expect("the name is free");
    assert_eq!(runs.get(), 2);
}

#[test]
fn panicking_hook_does_not_remove_a_group_that_it_registered_itself() {
    let registry = Registry::new();
    let within_hook = registry.clone();
    let first = Mutex::new(true);
    registry
        .register_new_group_hook(move |group| {
            let is_first = std::mem::take(&mut *first.lock().unwrap_or_else(|e| e.into_inner()));
            if is_first {
                within_hook.remove_group(group.name());
                within_hook
                    .new_group(group.name(), 1 << 20, texts())
                    .expect("the name is free");
                panic_quietly();
            }
        })
        .expect("the first hook");
    let build = {
        let registry = registry.clone();
        start(move || registry.new_group("group", 1 << 20, texts()))
    };
    assert!(build.outcome().is_err());
    assert!(
        registry.get_group("group").is_some(),
        "the group that the hook made is still registered"
    );
}

#[test]
fn server_start_that_panics_can_be_registered_again() {
    let registry = Registry::new();
    registry
        .register_server_start(|| panic_quietly())
        .expect("the first");
    let build = |registry: &Registry| {
        let registry = registry.clone();
        start(move || registry.new_group("group", 1 << 20, texts()))
    };
    assert!(build(&registry).outcome().is_err());
    assert!(registry.groups().is_empty());
    let starts = Count::default();
    let counted = starts.clone();
    registry
        .register_server_start(move || counted.add(1))
        .expect("no server was started");
    build(&registry).end().expect("the name is free");
    assert_eq!(starts.get(), 1);
    let late = registry.register_server_start(|| {});
    assert_eq!(kind(late), ErrorKind::AlreadyRegistered);
}

#[test]
fn hooks_may_call_every_method_of_their_registry() {
    let registry = Registry::new();
    let use_all = |registry: &Registry, name: &str| {
        assert!(registry.get_group("outer").is_some());
        let inner = registry
            .new_group(name, 1 << 20, texts())
            .expect("a new name");
        assert_eq!(inner.get("key").expect("a value"), "key");
        assert_eq!(
            kind(registry.new_group(name, 1 << 20, texts())),
            ErrorKind::DuplicateGroup
        );
        assert!(registry.groups().len() >= 2);
        let again = registry.register_new_group_hook(|_| {});
        assert_eq!(kind(again), ErrorKind::AlreadyRegistered);
        let again = registry.register_server_start(|| {});
        assert_eq!(kind(again), ErrorKind::AlreadyRegistered);
        let _ = registry.register_peer_picker(Arc::new(NoPeers));
        let again = registry.register_per_group_peer_picker(|_| Arc::new(NoPeers));
        assert_eq!(kind(again), ErrorKind::AlreadyRegistered);
        assert!(!format!("{registry:?}").is_empty());
        assert!(registry.remove_group(name).is_some());
    };
    let own = registry.clone();
    registry
        .register_server_start(move || use_all(&own, "at the start"))
        .expect("the first");
    let own = registry.clone();
    registry
        .register_new_group_hook(move |group| {
            if group.name() == "outer" {
                use_all(&own, "in the hook");
            }
        })
        .expect("the first");
    let build = {
        let registry = registry.clone();
        start(move || registry.new_group("outer", 1 << 20, texts()))
    };
    build.end().expect("a group");
    assert_eq!(registry.groups().len(), 1);
}

#[test]
fn getter_may_make_use_and_remove_groups() {
    let registry = Registry::new();
    let own = registry.clone();
    let outer = registry
        .new_group(
            "outer",
            1 << 20,
            getter_fn(move |_: &Context, key, dest| {
                let inner = own.new_group(key, 1 << 20, texts())?;
                let value = inner.get(key)?;
                own.remove_group(key);
                // Drops the last handle of the inner group, and removes the name of the outer one.
                own.remove_group("outer");
                Ok(dest.set_view(&value)?)
            }),
        )
        .expect("a group");
    for ctx in [Context::background(), within(PATIENCE)] {
        let call = start({
            let outer = outer.clone();
            move || outer.get_with(&ctx, "inner")
        });
        assert_eq!(call.end().expect("a value"), "inner");
        outer.invalidate("inner");
    }
    assert!(registry.groups().is_empty());
}

#[test]
fn group_is_dropped_after_its_getter_if_the_last_handle_is_dropped_meanwhile() {
    let (running, gate, dropped) = (Gate::new(), Gate::new(), Count::default());
    let group = {
        let (running, gate) = (running.clone(), gate.clone());
        let kept = DropCounts(dropped.clone());
        alone("left")
            .build(getter_fn(move |_: &Context, key, dest| {
                let _ = &kept;
                running.open();
                gate.pass();
                Ok(dest.set_str(key)?)
            }))
            .expect("a group")
    };
    let call = start(move || group.get_with(&within(millis(50)), "key"));
    running.pass();
    assert_eq!(kind(call.end()), ErrorKind::DeadlineExceeded);
    assert_eq!(dropped.get(), 0);
    gate.open();
    eventually("the getter is dropped", || dropped.get() == 1);
}
