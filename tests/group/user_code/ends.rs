//! Code that runs while something ends: drops of values, threads and groups, and unwinding.

use std::cell::RefCell;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, OnceLock};

use larder::{BoxError, Context, ErrorKind, Eviction, Group, Sink, WeakGroup, getter_fn};

use super::{DropCounts, panic_quietly, texts};
use crate::common::*;

/// Calls the whole group when it is dropped.
struct DropCalls(WeakGroup, Count);

impl Drop for DropCalls {
    fn drop(&mut self) {
        let Some(group) = self.0.upgrade() else {
            return;
        };
        assert_eq!(group.get("from a drop").expect("a value"), "from a drop");
        group
            .get_with(&within(PATIENCE), "with a deadline")
            .expect("a value");
        group.invalidate("key");
        group.clear_local();
        self.1.add(1);
    }
}

#[test]
fn thread_local_value_may_call_a_group_when_its_thread_ends() {
    thread_local! {
        static LAST: RefCell<Option<DropCalls>> = const { RefCell::new(None) };
    }
    let (ends, notified) = (Count::default(), Count::default());
    let counted = notified.clone();
    let group = alone("thread ends")
        .max_capacity(200)
        .shards(1)
        .eviction(Eviction::Lru)
        .eviction_listener(move |_, _, _| {
            counted.add(1);
        })
        .build(texts())
        .expect("a group");
    let on_thread = |used_before: bool| {
        let last = DropCalls(group.downgrade(), ends.clone());
        let group = group.clone();
        let thread = std::thread::spawn(move || {
            // Thread-local values are dropped in an order that depends on which was used first.
            if used_before {
                group.get("first").expect("a value");
                group.invalidate("first");
            }
            LAST.with(|value| *value.borrow_mut() = Some(last));
            for key in ["one", "two", "three"] {
                group.get(key).expect("a value");
            }
            group.invalidate("three");
        });
        thread.join().expect("no panic");
    };
    for (n, used_before) in [false, true, false].into_iter().enumerate() {
        on_thread(used_before);
        assert_eq!(ends.get(), n as i64 + 1);
    }
    assert!(notified.get() > 0);
}

#[test]
fn context_value_may_call_the_group_when_it_is_dropped() {
    let drops = Count::default();
    let group = alone("context ends").build(texts()).expect("a group");
    let value = || DropCalls(group.downgrade(), drops.clone());
    for ctx in [
        Context::background().with_value(value()),
        // The load runs on a loader thread, which may drop the last handle.
        Context::background()
            .with_value(value())
            .with_timeout(PATIENCE),
    ] {
        let group = group.clone();
        let call = start(move || group.get_with(&ctx, "key").map(drop));
        call.end().expect("a value");
    }
    eventually("both values are dropped", || drops.get() == 2);
}

/// An error that calls the group when it is dropped.
struct ErrorCalls(#[expect(dead_code, reason = "for its drop")] DropCalls);

impl fmt::Debug for ErrorCalls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ErrorCalls")
    }
}

impl fmt::Display for ErrorCalls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no paint left")
    }
}

impl std::error::Error for ErrorCalls {}

#[test]
fn error_of_the_getter_may_call_the_group_when_it_is_dropped() {
    let (drops, own) = (Count::default(), Arc::new(OnceLock::<WeakGroup>::new()));
    let (counted, itself) = (drops.clone(), own.clone());
    let group = alone("error ends")
        .build(move |_: &Context, key: &str, dest: &mut dyn Sink| {
            if key == "key" {
                let group = itself.get().expect("the group is made").clone();
                return Err(ErrorCalls(DropCalls(group, counted.clone())).into());
            }
            Ok(dest.set_str(key)?)
        })
        .expect("a group");
    assert!(own.set(group.downgrade()).is_ok());
    for ctx in [Context::background(), within(PATIENCE)] {
        drops.store(0);
        let calls = [0, 1, 2, 3].map(|_| {
            let (group, ctx) = (group.clone(), ctx.clone());
            start(move || {
                let error = group.get_with(&ctx, "key").expect_err("no paint");
                assert_eq!(error.to_string(), "no paint left");
            })
        });
        for call in calls {
            call.end();
        }
        eventually("an error is dropped", || drops.get() >= 1);
    }
}

#[test]
fn getter_may_call_every_method_of_its_own_group() {
    let own = Arc::new(OnceLock::<WeakGroup>::new());
    let itself = own.clone();
    let getter = move |ctx: &Context, key: &str, dest: &mut dyn Sink| -> Result<(), BoxError> {
        if key != "key" {
            return Ok(dest.set_str(key)?);
        }
        let group = itself
            .get()
            .and_then(WeakGroup::upgrade)
            .expect("it is made");
        for ctx in [ctx, &Context::background(), &within(PATIENCE)] {
            let results = group.get_many(ctx, &["other", "key", "third"]);
            let kinds = results
                .iter()
                .map(|result| result.as_ref().err().map(|e| e.kind()));
            let recursive = Some(ErrorKind::RecursiveLoad);
            assert!(kinds.eq([None, recursive, None]), "{results:?}");
            assert_eq!(kind(group.get_with(ctx, "key")), ErrorKind::RecursiveLoad);
        }
        group.invalidate("key");
        assert_eq!(group.remove_local("other").expect("it was loaded"), "other");
        group.set_capacity(1 << 20)?;
        group.clear_local();
        assert_eq!(group.iter().count(), 0);
        assert!(group.serve_peer_cached("key").is_none());
        assert_eq!(group.serve_peer(ctx, "fourth")?.value, "fourth");
        assert!(group.stats().gets > 0 && group.peek("key").is_none());
        Ok(dest.set_str(key)?)
    };
    let group = alone("calls itself").build(getter).expect("a group");
    assert!(own.set(group.downgrade()).is_ok());
    for ctx in [Context::background(), within(PATIENCE)] {
        let call = start({
            let group = group.clone();
            move || group.get_with(&ctx, "key")
        });
        assert_eq!(call.end().expect("a value"), "key");
        group.clear_local();
    }
}

#[test]
fn get_while_unwinding_returns_the_panic_of_its_getter_as_an_error() {
    struct Gets(Group, Arc<Mutex<Vec<ErrorKind>>>);
    impl Drop for Gets {
        fn drop(&mut self) {
            for ctx in [Context::background(), within(PATIENCE)] {
                let kind = kind(self.0.get_with(&ctx, "panics"));
                self.1.lock().expect("no panic").push(kind);
            }
            assert_eq!(self.0.get("fine").expect("a value"), "fine");
            // The listener panics here, too.
            self.0.invalidate("fine");
        }
    }
    let group = alone("unwinds")
        .eviction_listener(|_, _, _| panic_quietly())
        .build(getter_fn(|_: &Context, key, dest| match key {
            "panics" => panic_quietly(),
            _ => Ok(dest.set_str(key)?),
        }))
        .expect("a group");
    let kinds = Arc::<Mutex<Vec<ErrorKind>>>::default();
    let gets = Gets(group, kinds.clone());
    let call = start(move || {
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            let _gets = gets;
            panic_quietly()
        }));
        outcome.is_err()
    });
    assert!(call.end());
    assert_eq!(
        *kinds.lock().expect("no panic"),
        [ErrorKind::GetterPanicked; 2]
    );
}

#[test]
fn listener_with_a_weak_handle_of_its_group_leaks_nothing() {
    let (dropped, reloads) = (Count::default(), Count::default());
    let own = Arc::new(OnceLock::<WeakGroup>::new());
    let registry = larder::Registry::new();
    let group = {
        let (itself, kept, counted) = (own.clone(), DropCounts(dropped.clone()), reloads.clone());
        Group::builder("weak")
            .registry(&registry)
            .eviction_listener(move |key, _, _| {
                let _ = &kept;
                let group = itself.get().and_then(WeakGroup::upgrade);
                if group.is_some_and(|group| group.get(key).is_ok()) {
                    counted.add(1);
                }
            })
            .build(texts())
            .expect("a group")
    };
    assert!(own.set(group.downgrade()).is_ok());
    let weak = group.downgrade();
    assert!(format!("{weak:?}").contains("\"weak\""));
    group.get("key").expect("a value");
    group.invalidate("key");
    assert_eq!((reloads.get(), dropped.get()), (1, 0));
    drop(group);
    assert!(weak.upgrade().is_some(), "its registry holds it");
    registry.remove_group("weak");
    assert!(weak.upgrade().is_none());
    assert_eq!(dropped.get(), 1);
}

#[test]
fn dropped_group_does_not_call_its_listener() {
    let notified = Count::default();
    let counted = notified.clone();
    let group = alone("dropped")
        .eviction_listener(move |_, _, _| {
            counted.add(1);
        })
        .build(texts())
        .expect("a group");
    group.get("key").expect("a value");
    let weak = group.downgrade();
    drop(group);
    assert!(weak.upgrade().is_none());
    assert_eq!(notified.get(), 0);
}
