//! Listeners that call their group, panic, or drop it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, OnceLock};

use larder::pb::{GetRequest, RemovalTable};
use larder::{Eviction, Group, PeerPicker, PeerResponse, ProtoGetter, RemovalCause, Result};

use crate::common::*;

use super::*;

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
    let took = call.end();
    assert!(took < seconds(5), "{took:?}");
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
                5000 => group.clear_local(),
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
    let calls: [fn(&Group); 2] = [
        |group| group.set_capacity(0).expect("valid"),
        Group::clear_local,
    ];
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

/// A peer that is a group of this process, and owns all keys.
struct Owner(Group);

impl ProtoGetter for Owner {
    fn get(&self, ctx: &Context, request: &GetRequest<'_>) -> Result<PeerResponse> {
        self.0.serve_peer(ctx, &request.key)
    }

    fn exchange_removals(
        &self,
        _: &Context,
        request: &RemovalTable<'_>,
    ) -> Result<RemovalTable<'static>> {
        Ok(self.0.serve_removals(request))
    }
}

struct ToOwner(Arc<Owner>);

impl PeerPicker for ToOwner {
    fn pick_peer(&self, _: &str) -> Option<Arc<dyn ProtoGetter>> {
        Some(self.0.clone())
    }
}

#[test]
fn missed_removals_are_repaired_although_the_listener_panicked_before() {
    let owner = alone("missed").build(texts()).expect("a group");
    let to_owner = ToOwner(Arc::new(Owner(owner.clone())));
    let group = among("missed", Arc::new(to_owner))
        .eviction_listener(|_, _, _| panic_quietly())
        .build(texts())
        .expect("a group");
    for key in ["a", "b"] {
        group.get(key).expect("a value");
    }
    for removed in ["a", "b"] {
        owner
            .remove(&Context::background(), removed)
            .expect("it is alone");
        assert!(group.contains_key(removed));
        // The digest in its answer shows that a removal was missed.
        let get = || group.get(&format!("not {removed}"));
        let got = catch_unwind(AssertUnwindSafe(get));
        assert!(!group.contains_key(removed), "{removed}");
        assert!(got.is_err(), "the panic of the listener propagates");
    }
}
