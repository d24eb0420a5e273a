//! Many concurrent callers of a key cause one load and one entry. A panic affects only its own load.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Barrier};

use larder::{ByteView, Clock, Context, ErrorKind, Group, Registry, Result, getter_fn};

use crate::common::*;

/// Starts calls on this many threads at the same time.
fn herd(
    threads: usize,
    call: impl Fn(usize) -> Result<ByteView> + Send + Sync + 'static,
) -> Vec<Call<Result<ByteView>>> {
    let (ready, call) = (Arc::new(Barrier::new(threads)), Arc::new(call));
    (0..threads)
        .map(|n| {
            let (ready, call) = (ready.clone(), call.clone());
            start(move || {
                ready.wait();
                call(n)
            })
        })
        .collect()
}

fn contexts() -> [Context; 2] {
    // Far more time than a slow machine takes.
    [Context::background(), within(seconds(3600))]
}

#[test]
fn hundred_threads_load_cold_key_once() {
    for ctx in contexts() {
        let (getter, loads) = echo();
        let group = alone("herd").build(getter).expect("a group");
        for round in 0..20 {
            let (group, ctx) = (group.clone(), ctx.clone());
            let calls = herd(100, move |_| group.get_with(&ctx, &format!("key{round}")));
            for call in calls {
                assert_eq!(
                    call.end().expect("a value"),
                    format!("ECHO:key{round}").as_str()
                );
            }
            assert_eq!(loads.get(), round + 1);
        }
        assert_eq!(group.entry_count(), 20);
    }
}

#[test]
fn hundred_threads_load_a_key_that_expires_once() {
    for ctx in contexts() {
        let ((getter, loads), clock) = (echo(), Clock::manual());
        let builder = alone("herd").clock(clock.clone()).time_to_live(seconds(10));
        let group = builder.build(getter).expect("a group");
        group.get("key").expect("a value");
        for round in 0..20 {
            clock.advance(seconds(10));
            let (group, ctx) = (group.clone(), ctx.clone());
            for call in herd(100, move |_| group.get_with(&ctx, "key")) {
                assert_eq!(call.end().expect("a value"), "ECHO:key");
            }
            assert_eq!(loads.get(), round + 2);
        }
    }
}

#[test]
fn hundred_threads_on_three_nodes_load_cold_key_once() {
    let registries: Vec<Registry> = (0..3).map(|_| Registry::new()).collect();
    let loads = Count::default();
    let groups: Vec<Group> = registries
        .iter()
        .map(|registry| {
            let counted = loads.clone();
            Group::builder("cluster")
                .registry(registry)
                .build(getter_fn(move |_, key, dest| {
                    counted.add(1);
                    Ok(dest.set_str(key)?)
                }))
                .expect("a group")
        })
        .collect();
    // Node 0 owns every key.
    for registry in &registries[1..] {
        let owner = Arc::new(Node(registries[0].clone()));
        registry
            .register_peer_picker(all_keys_at(&[&owner]))
            .expect("a new registry");
    }
    for round in 0..10 {
        let nodes = groups.clone();
        let calls = herd(100, move |n| nodes[n % 3].get(&format!("key{round}")));
        for call in calls {
            assert_eq!(call.end().expect("a value"), format!("key{round}").as_str());
        }
        assert_eq!(loads.get(), round + 1);
    }
    let asked: u64 = groups[0].stats().server_requests;
    assert_eq!(asked, 20, "each other node asks once for each key");
}

#[test]
fn panic_propagates_to_its_caller_and_next_get_loads() {
    let runs = Count::default();
    let counted = runs.clone();
    let group = alone("panics")
        .build(getter_fn(move |_, key, dest| {
            counted.add(1);
            if counted.get() == 1 {
                std::panic::resume_unwind(Box::new("in the getter"));
            }
            Ok(dest.set_str(key)?)
        }))
        .expect("a group");
    let panic = catch_unwind(AssertUnwindSafe(|| group.get("key")))
        .expect_err("the getter ran on this thread");
    assert_eq!(panic.downcast_ref::<&str>(), Some(&"in the getter"));
    assert_eq!(group.stats().local_load_errs, 1);
    for other in ["key", "other"] {
        assert_eq!(group.get(other).expect("a value"), other);
    }
    assert_eq!(runs.get(), 3);
}

#[test]
fn panic_on_loader_thread_is_an_error() {
    let group = alone("panics")
        .max_loader_threads(1)
        .build(getter_fn(|_, key, dest| {
            if key == "bad" {
                std::panic::resume_unwind(Box::new("in the getter"));
            }
            Ok(dest.set_str(key)?)
        }))
        .expect("a group");
    for _ in 0..3 {
        let get = |key| {
            // The thread of the previous load may still be busy.
            let mut result = group.get_with(&within(PATIENCE), key);
            let begun = std::time::Instant::now();
            while matches!(&result, Err(e) if e.kind() == ErrorKind::Overloaded) {
                assert!(begun.elapsed() < PATIENCE, "the thread stays busy");
                std::thread::yield_now();
                result = group.get_with(&within(PATIENCE), key);
            }
            result
        };
        assert_eq!(kind(get("bad")), ErrorKind::GetterPanicked);
        assert_eq!(get("good").expect("a value"), "good");
        group.clear_local();
    }
}

#[test]
fn panic_before_or_after_value_is_set_caches_nothing() {
    let group = alone("panics")
        .build(getter_fn(|_, _, dest| {
            dest.set_str("half done")?;
            std::panic::resume_unwind(Box::new("after setting"))
        }))
        .expect("a group");
    let outcome = catch_unwind(AssertUnwindSafe(|| group.get("key")));
    assert!(outcome.is_err());
    assert!(!group.contains_key("key"));
}

#[test]
fn panic_in_listener_propagates_to_the_call_that_evicted() {
    let group = alone("listener")
        .eviction_listener(|_, _, _| std::panic::resume_unwind(Box::new("in the listener")))
        .build(echo().0)
        .expect("a group");
    group.get("key").expect("a value");
    let outcome = catch_unwind(AssertUnwindSafe(|| group.invalidate("key")));
    assert!(outcome.is_err());
    assert!(
        !group.contains_key("key"),
        "the entry is evicted despite the panic"
    );
    assert_eq!(group.get("key").expect("a value"), "ECHO:key");
}

#[test]
fn concurrent_gets_and_removals_all_return() {
    let group = alone("mixed")
        .max_capacity(64 << 10)
        .build(getter_fn(|_, key, dest| {
            let n: usize = key.parse()?;
            if n % 17 == 0 {
                return Err(larder::Error::not_found("no multiples of 17").into());
            }
            Ok(dest.set_bytes(&vec![b'x'; n * 3])?)
        }))
        .expect("a group");
    let shared = group.clone();
    let calls = herd(8, move |thread| {
        for round in 0..2000 {
            let n = (round * 7 + thread * 13) % 300;
            let ctx = if round % 4 == 0 {
                within(PATIENCE)
            } else {
                Context::background()
            };
            match shared.get_with(&ctx, &n.to_string()) {
                Ok(value) => assert_eq!(value.len(), n * 3),
                Err(error) => assert!(error.is_not_found() && n % 17 == 0, "{n}: {error:?}"),
            }
            match round % 50 {
                7 => shared.invalidate(&n.to_string()),
                49 => shared.clear_local(),
                _ => {}
            }
        }
        Ok(ByteView::new())
    });
    for call in calls {
        call.end().expect("no error");
    }
    assert!(group.weighted_size() <= 64 << 10);
    group.clear_local();
    assert_eq!((group.entry_count(), group.weighted_size()), (0, 0));
}
