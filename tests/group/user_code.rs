//! User code in unusual places: it panics, nests deeply, calls back, or drops the objects that it
//! runs in. Nothing aborts, hangs or stays half done.

use std::panic::resume_unwind;
use std::sync::{Arc, Barrier, Mutex, OnceLock};
use std::time::Duration;

use larder::{
    BoxError, ByteView, Clock, Context, Error, ErrorKind, Eviction, Group, HotAdmission, NoPeers,
    PeerPicker, PeerResponse, ProtoDecode, ProtoMessage, ProtoSink, Registry, RemovalCause, Result,
    Sink, getter_fn,
};

use crate::common::*;

/// A recursion of this depth would overflow the stack of any thread of this process.
const DEEP: usize = 1_000_000;

fn panic_quietly() -> ! {
    resume_unwind(Box::new("a panic of the test"))
}

/// Panics when it is dropped.
struct DropPanics;

impl Drop for DropPanics {
    fn drop(&mut self) {
        panic_quietly();
    }
}

/// Counts its drops.
struct DropCounts(Count);

impl Drop for DropCounts {
    fn drop(&mut self) {
        self.0.add(1);
    }
}

fn texts() -> impl larder::Getter + 'static {
    getter_fn(|_: &Context, key, dest| Ok(dest.set_str(key)?))
}

// Chains.

#[test]
fn deep_chains_of_contexts_are_searched_cancelled_and_dropped_without_recursion() {
    let call = start(|| {
        let dropped = Count::default();
        let (root, cancel) = Context::background()
            .with_value("at the root")
            .with_cancel();
        let deadline = std::time::Instant::now() + seconds(3600);
        let steps: [fn(&Context, &Count, std::time::Instant) -> Context; 3] = [
            |ctx, dropped, _| ctx.with_value(DropCounts(dropped.clone())),
            |ctx, _, _| ctx.with_cancel().0,
            |ctx, _, deadline| ctx.with_deadline(deadline),
        ];
        let mut leaves = Vec::new();
        for step in steps {
            let mut ctx = root.clone();
            for _ in 0..DEEP {
                ctx = step(&ctx, &dropped, deadline);
            }
            assert_eq!(ctx.value::<&str>(), Some(&"at the root"));
            assert!(ctx.value::<u8>().is_none());
            assert!(ctx.err().is_none());
            leaves.push(ctx);
        }
        cancel.cancel();
        for ctx in &leaves {
            assert_eq!(ctx.err().map(|e| e.kind()), Some(ErrorKind::Cancelled));
            assert!(format!("{ctx:?}").contains("cancelled: true"));
        }
        // The part of a chain that is still shared is not dropped.
        let kept = leaves[0].clone();
        let (took, ()) = timed(|| drop(leaves));
        assert_eq!(dropped.get(), 0);
        drop(kept);
        assert_eq!(dropped.get(), DEEP as i64);
        took
    });
    assert!(call.end() < seconds(10));
}

#[test]
fn wait_with_deeply_nested_cancellations_ends_when_the_outermost_is_cancelled() {
    let call = start(|| {
        let (root, cancel) = Context::background().with_cancel();
        let mut ctx = root;
        for _ in 0..100_000 {
            ctx = ctx.with_cancel().0;
        }
        let (running, gate) = (Gate::new(), Gate::new());
        let (entered, end) = (running.clone(), gate.clone());
        let group = alone("deep-cancel")
            .build(getter_fn(move |_: &Context, key, dest| {
                entered.open();
                end.pass();
                Ok(dest.set_str(key)?)
            }))
            .expect("a group");
        let waiting = start(move || group.get_with(&ctx, "key"));
        running.pass();
        cancel.cancel();
        let outcome = kind(waiting.end());
        gate.open();
        outcome
    });
    assert_eq!(call.end(), ErrorKind::Cancelled);
}

#[test]
fn panic_in_drop_of_context_value_still_drops_the_values_below_it() {
    let call = start(|| {
        let dropped = Count::default();
        let ctx = Context::background()
            .with_value(DropCounts(dropped.clone()))
            .with_value(DropPanics)
            .with_value(1_u8);
        let outcome = start(move || drop(ctx)).outcome();
        assert!(
            outcome.is_err(),
            "the panic propagates to the thread that dropped the context"
        );
        dropped.get()
    });
    assert_eq!(call.end(), 1);
}

#[test]
fn panic_in_drop_of_context_value_leaves_the_group_usable() {
    let (getter, loads) = echo();
    let group = alone("drop-panics")
        .max_loader_threads(1)
        .build(getter)
        .expect("a group");
    for n in 0..5 {
        let key = format!("key{n}");
        let ctx = Context::background()
            .with_value(DropPanics)
            .with_timeout(PATIENCE);
        let call = start({
            let (group, key) = (group.clone(), key.clone());
            move || {
                let value = group.get_with(&ctx, &key);
                // The context is not dropped here, so that the loader thread drops the last handle.
                std::mem::forget(ctx);
                value
            }
        });
        // The only loader thread may still be unwinding from the previous load.
        match call.end() {
            Ok(value) => assert_eq!(value, format!("ECHO:{key}").as_str()),
            Err(error) => assert_eq!(error.kind(), ErrorKind::Overloaded),
        }
    }
    assert!(loads.get() >= 1);
    eventually("the loader thread is free", || {
        group.get_with(&within(PATIENCE), "last").is_ok()
    });
}

#[test]
fn deep_chains_of_errors_are_formatted_walked_and_dropped_without_recursion() {
    let call = start(|| {
        let mut error = Error::with_source(ErrorKind::Io, "0", std::io::Error::other("disk"));
        for _ in 0..DEEP {
            error = Error::with_source(ErrorKind::Getter, "x", error);
        }
        let text = error.to_string();
        assert_eq!(text.len(), "x: ".len() * DEEP + "0: disk".len());
        assert!(text.starts_with("x: x: ") && text.ends_with("x: 0: disk"));
        assert!(format!("{error:?}").ends_with("0: disk\")"));
        let first: &dyn std::error::Error = &error;
        let sources = std::iter::successors(first.source(), |e| e.source()).count();
        assert_eq!(sources, DEEP + 1);
        let shared = error.clone();
        drop(error);
        assert_eq!(shared.to_string().len(), text.len());
        drop(shared);
    });
    call.end();
}

#[test]
fn error_does_not_grow_when_it_passes_through_many_getters() {
    let call = start(|| {
        let failing = alone("failing")
            .build(getter_fn(|_: &Context, _, _| Err("no disk".into())))
            .expect("a group");
        let mut group = failing;
        for n in 0..20 {
            let inner = group;
            group = alone(&format!("around{n}"))
                .build(getter_fn(move |_: &Context, key, dest| {
                    Ok(dest.set_view(&inner.get(key)?)?)
                }))
                .expect("a group");
        }
        group.get("key").expect_err("the disk is gone")
    });
    let error = call.end();
    assert_eq!(
        (error.kind(), error.to_string().as_str()),
        (ErrorKind::Getter, "no disk")
    );
}

// Limits of ranges.

#[test]
fn manual_clock_saturates() {
    let clock = Clock::manual();
    clock.advance(Duration::MAX);
    let end = clock.now();
    clock.advance(seconds(1));
    assert_eq!(clock.now(), end);
    clock.advance(Duration::MAX);
    assert_eq!(clock.now(), end);
    assert!(clock.unix_nanos() > 0);
    for (shift, end) in [(i64::MAX, i64::MAX), (i64::MIN, i64::MIN)] {
        let clock = Clock::manual();
        clock.shift_wall_clock(shift);
        clock.shift_wall_clock(shift);
        assert_eq!(clock.unix_nanos(), end);
    }
}

#[test]
fn longest_durations_mean_no_limit() {
    let clock = Clock::manual();
    let group = alone("long")
        .clock(clock.clone())
        .time_to_live(Duration::MAX)
        .build(getter_fn(|_: &Context, key, dest| {
            dest.expire_in(Duration::MAX);
            Ok(dest.set_str(key)?)
        }))
        .expect("a group");
    let ctx = within(Duration::MAX);
    assert_eq!(ctx.deadline(), None);
    group.get_with(&ctx, "key").expect("a value");
    let answer = group.serve_peer(&ctx, "key").expect("a value");
    assert!(answer.ttl.is_none_or(|ttl| ttl > seconds(1 << 33)));
    clock.advance(seconds(500 * 365 * 86_400));
    assert!(group.contains_key("key"));
    clock.advance(Duration::MAX);
    assert!(
        group.contains_key("key"),
        "a longest time to live never ends"
    );
    group.get("another").expect("a value");

    let far = FakePeer::new(|_, _| Ok(PeerResponse::new("v").with_ttl(Duration::MAX)));
    let group = among("far", all_keys_at(&[&far]))
        .build(texts())
        .expect("a group");
    assert_eq!(group.get("key").expect("a value"), "v");
    assert!(group.contains_key("key"));
}

// Hooks and registries.

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

// Pickers, peers and admission.

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
        group.clear();
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
    std::thread::sleep(millis(20));
    go_on.open();
    assert!(leader.outcome().is_err());
    // If the waiter was late, it became leader of its own flight and panicked too.
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

// Listeners.

/// A group with room for two small entries, whose listener is called with the group itself.
fn listened(
    name: &str,
    listen: impl Fn(&Group, &str, RemovalCause) + Send + Sync + 'static,
) -> Group {
    let own: Arc<OnceLock<Group>> = Arc::default();
    let itself = own.clone();
    let group = alone(name)
        .max_capacity(200)
        .shards(1)
        .eviction(Eviction::Lru)
        .eviction_listener(move |key, _, cause| {
            listen(itself.get().expect("the group is made"), key, cause);
        })
        .build(texts())
        .expect("a group");
    assert!(own.set(group.clone()).is_ok());
    group
}

#[test]
fn listener_may_get_its_own_victim() {
    let notified = Count::default();
    let counted = notified.clone();
    let group = listened("victim", move |group, key, _| {
        counted.add(1);
        assert_eq!(group.get(key).expect("a value"), key);
    });
    let call = start({
        let group = group.clone();
        move || {
            timed(|| {
                for n in 0..1000 {
                    let key = format!("key{n}");
                    assert_eq!(group.get(&key).expect("a value"), key.as_str());
                }
            })
            .0
        }
    });
    assert!(call.end() < seconds(5));
    assert!(notified.get() >= 998, "{}", notified.get());
    assert!(group.weighted_size() <= group.max_capacity());
    assert_eq!(group.entry_count(), 2);
}

#[test]
fn listener_that_gets_its_victims_on_loader_threads_terminates() {
    let notified = Count::default();
    let counted = notified.clone();
    let group = listened("victim-on-pool", move |group, key, _| {
        counted.add(1);
        let value = group.get_with(&within(PATIENCE), key);
        assert_eq!(value.expect("a value"), key);
    });
    let call = start({
        let group = group.clone();
        move || {
            for n in 0..100 {
                let key = format!("key{n}");
                let value = group.get_with(&within(PATIENCE), &key);
                assert_eq!(value.expect("a value"), key.as_str());
            }
        }
    });
    call.end();
    // Each eviction that a get caused leads to at most one more, on another thread.
    eventually("the notifications end", || {
        let before = notified.get();
        std::thread::sleep(millis(50));
        notified.get() == before
    });
    assert!(notified.get() >= 98, "{}", notified.get());
    assert_eq!(group.entry_count(), 2);
}

#[test]
fn listeners_of_two_groups_that_get_from_each_other_terminate() {
    let groups: Arc<OnceLock<[Group; 2]>> = Arc::default();
    let make = |name: &str, other: usize| {
        let groups = groups.clone();
        listened(name, move |_, key, _| {
            let other = &groups.get().expect("both are made")[other];
            assert_eq!(other.get(key).expect("a value"), key);
        })
    };
    let both = [make("left", 1), make("right", 0)];
    assert!(groups.set(both.clone()).is_ok());
    let call = start(move || {
        for n in 0..200 {
            both[n % 2].get(&format!("key{n}")).expect("a value");
        }
        both.map(|group| group.entry_count())
    });
    assert_eq!(call.end(), [2, 2]);
}

#[test]
fn notifications_caused_by_listeners_are_queued_and_do_not_grow_the_stack() {
    const KEYS: usize = 100_000;
    let own: Arc<OnceLock<Group>> = Arc::default();
    let (itself, notified) = (own.clone(), Arc::new(Mutex::new(Vec::new())));
    let noted = notified.clone();
    let group = alone("chain")
        .eviction_listener(move |key, value, cause| {
            assert_eq!(
                (value.to_str().expect("text"), cause),
                (key, RemovalCause::Explicit)
            );
            let n: usize = key.parse().expect("a number");
            noted.lock().expect("no panic").push(n);
            itself
                .get()
                .expect("the group is made")
                .invalidate(&(n + 1).to_string());
        })
        .build(texts())
        .expect("a group");
    assert!(own.set(group.clone()).is_ok());
    for n in 0..KEYS {
        group.get(&n.to_string()).expect("a value");
    }
    let call = start({
        let group = group.clone();
        move || group.invalidate("0")
    });
    call.end();
    assert_eq!(group.entry_count(), 0);
    assert!(
        notified
            .lock()
            .expect("no panic")
            .iter()
            .copied()
            .eq(0..KEYS)
    );
}

#[test]
fn listener_may_shrink_and_clear_the_group() {
    let group = alone("shrinks");
    let own: Arc<OnceLock<Group>> = Arc::default();
    let (itself, notified) = (own.clone(), Count::default());
    let counted = notified.clone();
    let group = group
        .eviction_listener(move |_, _, _| {
            counted.add(1);
            let group = itself.get().expect("the group is made");
            match counted.get() {
                n if n < 5000 => {
                    let size = group.weighted_size();
                    if size > 1000 {
                        group.set_capacity(size - 1).expect("room for some");
                    }
                }
                5000 => group.clear(),
                _ => {}
            }
        })
        .build(texts())
        .expect("a group");
    assert!(own.set(group.clone()).is_ok());
    for n in 0..20_000 {
        group.get(&n.to_string()).expect("a value");
    }
    let call = start({
        let group = group.clone();
        move || group.invalidate("0")
    });
    call.end();
    assert_eq!((group.entry_count(), notified.get()), (0, 20_000));
}

#[test]
fn listener_panic_leaves_no_call_half_done() {
    let notified = Count::default();
    let counted = notified.clone();
    let make = move || {
        let counted = counted.clone();
        let group = alone("panicking")
            .eviction_listener(move |_, _, _| {
                counted.add(1);
                panic_quietly();
            })
            .build(texts())
            .expect("a group");
        for n in 0..2000 {
            group.get(&n.to_string()).expect("a value");
        }
        group
    };
    let calls: [fn(&Group); 2] = [|group| group.set_capacity(0).expect("valid"), Group::clear];
    for call in calls {
        let group = make();
        let before = notified.get();
        let outcome = start({
            let group = group.clone();
            move || call(&group)
        });
        assert!(
            outcome.outcome().is_err(),
            "the panic propagates to the caller"
        );
        assert_eq!((group.entry_count(), group.weighted_size()), (0, 0));
        assert_eq!(
            notified.get() - before,
            2000,
            "one notification for each entry"
        );
    }
}

#[test]
fn listener_panic_after_a_nested_notification_leaves_the_thread_usable() {
    let group = listened("panics-nested", |group, key, _| {
        if key == "first" {
            group.invalidate("second");
            panic_quietly();
        }
    });
    for key in ["first", "second"] {
        group.get(key).expect("a value");
    }
    let call = start({
        let group = group.clone();
        move || {
            let panics = std::panic::AssertUnwindSafe(|| group.invalidate("first"));
            assert!(std::panic::catch_unwind(panics).is_err());
            // The same thread would deliver notifications here that were left over.
            group.get("third").expect("a value");
            group.invalidate("third");
            group.entry_count()
        }
    });
    assert_eq!(call.end(), 0);
}

#[test]
fn listener_may_drop_the_last_handle_of_its_group() {
    let own: Arc<Mutex<Option<Group>>> = Arc::default();
    let (itself, dropped) = (own.clone(), Count::default());
    let kept = DropCounts(dropped.clone());
    let group = alone("drops-itself")
        .eviction_listener(move |_, _, _| {
            let _ = &kept;
            drop(itself.lock().expect("no panic").take());
        })
        .build(texts())
        .expect("a group");
    group.get("key").expect("a value");
    *own.lock().expect("no panic") = Some(group.clone());
    let call = start(move || group.invalidate("key"));
    call.end();
    eventually("the group is dropped", || dropped.get() == 1);
}

// Sinks, messages, errors.

#[test]
fn sink_panic_affects_only_its_own_call() {
    struct Panics;
    impl Sink for Panics {
        fn set_bytes(&mut self, _: &[u8]) -> Result<()> {
            panic_quietly()
        }
    }
    let (getter, loads) = echo();
    let group = alone("sink-panics").build(getter).expect("a group");
    let call = start({
        let group = group.clone();
        move || group.get_into(&Context::background(), "key", Panics)
    });
    assert!(call.outcome().is_err());
    assert_eq!(group.get("key").expect("a value"), "ECHO:key");
    assert_eq!(loads.get(), 1, "the value was loaded and cached before");
}

#[test]
fn sink_may_call_the_group() {
    struct Calls(Group, Vec<ByteView>);
    impl Sink for Calls {
        fn set_bytes(&mut self, value: &[u8]) -> Result<()> {
            self.1.push(value.into());
            self.0.invalidate("key");
            self.1.push(self.0.get("key")?);
            Ok(())
        }
    }
    let group = alone("sink-calls").build(texts()).expect("a group");
    let call = start(move || {
        let mut sink = Calls(group.clone(), Vec::new());
        group.get_into(&Context::background(), "key", &mut sink)?;
        Ok(sink.1.len())
    });
    assert_eq!(call.end().map_err(|e: Error| e.kind()), Ok(2));
}

#[derive(Debug, PartialEq)]
struct Message(u8);

impl ProtoMessage for Message {
    fn encode(&self) -> Result<Vec<u8>, BoxError> {
        match self.0 {
            0 => panic_quietly(),
            n => Ok(vec![n]),
        }
    }
}

impl ProtoDecode for Message {
    fn decode(bytes: &[u8]) -> Result<Self, BoxError> {
        match bytes {
            [1] => panic_quietly(),
            [n] => Ok(Message(*n)),
            _ => Err("one byte".into()),
        }
    }
}

#[test]
fn message_panic_leaves_the_destination_and_the_key_unchanged() {
    let next = Arc::new(Mutex::new(0));
    let values = next.clone();
    let group = alone("proto-panics")
        .build(getter_fn(move |_: &Context, _, dest| {
            let message = {
                let mut next = values.lock().expect("no panic");
                *next += 1;
                Message(*next - 1)
            };
            Ok(dest.set_proto(&message)?)
        }))
        .expect("a group");
    let get = |mut dest: Message| {
        let group = group.clone();
        start(move || {
            let sink = ProtoSink::new(&mut dest);
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                group.get_into(&Context::background(), "key", sink)
            }));
            (result.is_err(), dest)
        })
    };
    assert_eq!(get(Message(9)).end(), (true, Message(9)), "encoding panics");
    assert!(!group.contains_key("key"));
    assert_eq!(get(Message(9)).end(), (true, Message(9)), "decoding panics");
    group.invalidate("key");
    assert_eq!(get(Message(9)).end(), (false, Message(2)));
}

/// An error whose text panics.
#[derive(Debug)]
struct TextPanics;

impl std::fmt::Display for TextPanics {
    fn fmt(&self, _: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        panic_quietly()
    }
}

impl std::error::Error for TextPanics {}

#[test]
fn panic_in_the_text_of_an_error_counts_as_getter_panic() {
    for ctx in [Context::background(), within(PATIENCE)] {
        let group = alone("text-panics")
            .build(getter_fn(|_: &Context, _, _| Err(TextPanics.into())))
            .expect("a group");
        let on_caller = ctx.deadline().is_none();
        for _ in 0..2 {
            let call = start({
                let (group, ctx) = (group.clone(), ctx.clone());
                move || group.get_with(&ctx, "key")
            });
            match call.outcome() {
                Ok(result) => {
                    assert!(!on_caller);
                    let error = result.expect_err("the text panics");
                    assert_eq!(error.kind(), ErrorKind::GetterPanicked);
                    assert!(!error.to_string().is_empty());
                }
                Err(_) => assert!(on_caller),
            }
        }
    }
}

#[test]
fn panic_payload_that_panics_on_drop_does_not_end_a_loader_thread() {
    let group = alone("payload")
        .max_loader_threads(1)
        .build(getter_fn(|_: &Context, key, dest| {
            if key == "panics" {
                resume_unwind(Box::new(DropPanics));
            }
            Ok(dest.set_str(key)?)
        }))
        .expect("a group");
    for _ in 0..3 {
        eventually("the loader thread is free", || {
            let error = group
                .get_with(&within(PATIENCE), "panics")
                .expect_err("a panic");
            error.kind() == ErrorKind::GetterPanicked
        });
    }
    eventually("the loader thread is free", || {
        group.get_with(&within(PATIENCE), "key").is_ok()
    });
}

#[test]
fn getter_panics_between_removals_leave_no_flight() {
    let both = Arc::new(Barrier::new(2));
    let entered = both.clone();
    let group = alone("panic-and-remove")
        .build(getter_fn(move |_: &Context, _, _| {
            entered.wait();
            panic_quietly()
        }))
        .expect("a group");
    for _ in 0..10 {
        let call = start({
            let group = group.clone();
            move || group.get("key")
        });
        both.wait();
        group.invalidate("key");
        assert!(call.outcome().is_err());
    }
    assert!(NoPeers.pick_peer("key").is_none());
    assert_eq!(group.entry_count(), 0);
}
