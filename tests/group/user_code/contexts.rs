//! Deep chains of contexts and errors, values that panic when they are dropped, limits of ranges.

use std::time::Duration;

use larder::{Clock, Context, Error, ErrorKind, PeerResponse, getter_fn};

use crate::common::*;

use super::*;

/// A recursion of this depth would overflow the stack of any thread of this process.
const DEEP: usize = 1_000_000;

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
        let mut built = Duration::ZERO;
        for step in steps {
            let mut ctx = root.clone();
            let (took, ()) = timed(|| {
                for _ in 0..DEEP {
                    ctx = step(&ctx, &dropped, deadline);
                }
            });
            built += took;
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
        (built, took)
    });
    let (built, took) = call.end();
    println!("built in {built:?}, dropped in {took:?}");
    assert!(took < built * 2, "{took:?}, built in {built:?}");
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
