//! Getters that call groups. Other keys may be loaded; a load that waits for itself is an error.

use std::sync::{Arc, Barrier, Mutex, OnceLock};

use larder::{Context, ErrorKind, Group, Registry, getter_fn};

use crate::common::*;

/// A group whose getter uses the group itself.
fn with_access_to_itself(
    get: impl Fn(&Group, &Context, &str) -> larder::Result<String> + Send + Sync + 'static,
) -> Group {
    let own: Arc<OnceLock<Group>> = Arc::default();
    let itself = own.clone();
    let group = alone("recursive")
        .build(getter_fn(move |ctx, key, dest| {
            let group = itself.get().expect("the group is made");
            Ok(dest.set_str(&get(group, ctx, key)?)?)
        }))
        .expect("a group");
    own.set(group.clone()).expect("once");
    group
}

#[test]
fn getter_that_gets_its_own_key_fails_with_recursive_load() {
    for ctx in contexts() {
        let group = with_access_to_itself(|group, ctx, key| {
            group.get_with(ctx, key).map(|value| format!("{value:?}"))
        });
        let call = {
            let group = group.clone();
            start(move || group.get_with(&ctx, "key"))
        };
        let error = call.end().expect_err("it would wait for itself");
        assert_eq!(error.kind(), ErrorKind::RecursiveLoad);
        assert!(error.to_string().contains("itself"), "{error}");
        assert_eq!(group.entry_count(), 0);
    }
}

#[test]
fn getter_may_continue_after_recursive_load() {
    for ctx in contexts() {
        let group = with_access_to_itself(|group, ctx, key| {
            let refused = group
                .get_with(ctx, key)
                .expect_err("it would wait for itself");
            assert_eq!(refused.kind(), ErrorKind::RecursiveLoad);
            Ok("another way".into())
        });
        let call = {
            let group = group.clone();
            start(move || group.get_with(&ctx, "key"))
        };
        assert_eq!(call.end().expect("a value"), "another way");
        assert!(group.contains_key("key"));
    }
}

#[test]
fn long_recursion_is_detected() {
    // 0 gets 1, 1 gets 2, 2 gets 0. Without detection, a getter with a background context would
    // block for ever.
    for ctx in contexts() {
        let group = with_access_to_itself(|group, _, key| {
            let next = (key.parse::<u8>().expect("a number") + 1) % 3;
            let value = group.get(&next.to_string())?;
            Ok(value.to_str().expect("text").into())
        });
        let call = start(move || group.get_with(&ctx, "0"));
        assert_eq!(kind(call.end()), ErrorKind::RecursiveLoad);
    }
}

#[test]
fn cycle_of_two_keys_across_threads_is_detected() {
    for nested in contexts() {
        for round in 0..20 {
            // Both getters run before either gets the other's key.
            let (both, nested) = (Arc::new(Barrier::new(2)), nested.clone());
            let first_runs = Mutex::new(2);
            let group = with_access_to_itself(move |group, _, key| {
                let first = {
                    let mut left = first_runs.lock().expect("no panic");
                    *left -= 1;
                    *left >= 0
                };
                if first {
                    both.wait();
                }
                let other = if key == "a" { "b" } else { "a" };
                group.get_with(&nested, other).map(|_| key.into())
            });
            let calls = ["a", "b"].map(|key| {
                let group = group.clone();
                start(move || group.get(key))
            });
            for call in calls {
                assert_eq!(kind(call.end()), ErrorKind::RecursiveLoad, "round {round}");
            }
            assert_eq!(group.entry_count(), 0);
        }
    }
}

#[test]
fn cycle_through_two_groups_is_detected() {
    let registry = Registry::new();
    for (name, other) in [("left", "right"), ("right", "left")] {
        let within = registry.clone();
        Group::builder(name)
            .registry(&registry)
            .build(getter_fn(move |_, key, dest| {
                let group = within.get_group(other).expect("both are made");
                dest.set_view(&group.get(key)?)?;
                Ok(())
            }))
            .expect("a group");
    }
    let left = registry.get_group("left").expect("it is made");
    let call = start(move || left.get("key"));
    assert_eq!(kind(call.end()), ErrorKind::RecursiveLoad);
}

#[test]
fn nested_gets_of_other_keys_are_shared() {
    for ctx in contexts() {
        let loads = Count::default();
        let counted = loads.clone();
        let group = with_access_to_itself(move |group, ctx, key| {
            counted.add(1);
            let n: u32 = key.parse().expect("a number");
            if n < 2 {
                return Ok(n.to_string());
            }
            let fib = |n: u32| -> larder::Result<u64> {
                let value = group.get_with(ctx, &n.to_string())?;
                Ok(value.to_str().expect("text").parse().expect("a number"))
            };
            Ok((fib(n - 1)? + fib(n - 2)?).to_string())
        });
        let call = {
            let (group, ctx) = (group.clone(), ctx);
            start(move || group.get_with(&ctx, "40"))
        };
        assert_eq!(call.end().expect("a value"), "102334155");
        assert_eq!(loads.get(), 41, "each key once");
    }
}

#[test]
fn nested_gets_without_a_cycle_both_return() {
    // The getters of x and y both get z. The second one waits for the first one's load of z.
    let both = Arc::new(Barrier::new(2));
    let loads = Count::default();
    let counted = loads.clone();
    let group = with_access_to_itself(move |group, _, key| {
        if key == "z" {
            counted.add(1);
            return Ok("z".into());
        }
        both.wait();
        let z = group.get("z")?;
        Ok(format!("{key}{}", z.to_str().expect("text")))
    });
    let calls = ["x", "y"].map(|key| {
        let group = group.clone();
        start(move || group.get(key))
    });
    let [x, y] = calls.map(|call| call.end().expect("a value"));
    assert_eq!((x, y), ("xz".into(), "yz".into()));
    assert_eq!(loads.get(), 1);
}

#[test]
fn getter_may_remove_and_peek_any_key() {
    let group = with_access_to_itself(|group, _, key| {
        assert!(group.peek(key).is_none());
        group.invalidate("other");
        group.invalidate(key);
        Ok("value".into())
    });
    let call = {
        let group = group.clone();
        start(move || group.get("key"))
    };
    assert_eq!(call.end().expect("a value"), "value");
    // The load's own key was removed while it ran, so its value is not cached.
    assert!(!group.contains_key("key"));
}

#[test]
fn listener_may_use_its_group() {
    let own: Arc<OnceLock<Group>> = Arc::default();
    let calls = Count::default();
    let (itself, counted) = (own.clone(), calls.clone());
    let group = alone("listened")
        .eviction_listener(move |key, _, _| {
            counted.add(1);
            let group = itself.get().expect("the group is made");
            assert!(!group.contains_key(key));
            group.get("kept by the listener").expect("a value");
            group.invalidate("nothing");
        })
        .build(echo().0)
        .expect("a group");
    own.set(group.clone()).expect("once");
    let call = {
        let group = group.clone();
        start(move || {
            group.get("key").expect("a value");
            group.invalidate("key");
        })
    };
    call.end();
    assert_eq!(calls.get(), 1);
    assert!(group.contains_key("kept by the listener"));
}
