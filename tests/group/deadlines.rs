//! A caller returns at its own deadline, whatever the leader, the peer or the getter does. The other
//! callers do not fail with it.

use larder::{
    ByteView, Context, Error, ErrorKind, Group, GroupBuilder, PeerResponse, Result, getter_fn,
};

use crate::common::*;

/// Much shorter than [`PATIENCE`], and much longer than a delay of the scheduler.
const SOON: std::time::Duration = std::time::Duration::from_secs(2);

const SHORT: std::time::Duration = std::time::Duration::from_millis(50);

fn get(group: &Group, ctx: Context, key: &'static str) -> Call<Result<ByteView>> {
    let group = group.clone();
    start(move || group.get_with(&ctx, key))
}

/// A group whose getter waits at the gate for keys that begin with `slow`. If it is `dutiful`, it
/// returns when its context ends.
fn slow(builder: GroupBuilder, dutiful: bool) -> (Group, Gate, Gate, Count) {
    let (gate, begun, loads) = (Gate::new(), Gate::new(), Count::default());
    let (pass, begins, counted) = (gate.clone(), begun.clone(), loads.clone());
    let group = builder
        .build(getter_fn(move |ctx, key, dest| {
            counted.add(1);
            begins.open();
            if key.starts_with("slow") {
                while dutiful && !pass.opens_within(millis(1)) {
                    if let Some(ended) = ctx.err() {
                        return Err(ended.into());
                    }
                }
                pass.pass();
            }
            Ok(dest.set_str(&format!("ECHO:{key}"))?)
        }))
        .expect("a group");
    (group, gate, begun, loads)
}

#[test]
fn deadline_of_leader_does_not_fail_waiters() {
    for (dutiful, runs) in [(false, 1), (true, 2)] {
        let (group, gate, begun, loads) = slow(alone("leader"), dutiful);
        let leader = {
            let group = group.clone();
            start(move || timed(|| group.get_with(&within(SHORT), "slow")))
        };
        begun.pass();
        let mut followers: Vec<_> = (0..8)
            .map(|_| get(&group, within(PATIENCE), "slow"))
            .collect();
        followers.push(get(&group, Context::background(), "slow"));
        let (took, result) = leader.end();
        assert_eq!(kind(result), ErrorKind::DeadlineExceeded);
        assert!(
            (SHORT..SOON).contains(&took),
            "the leader returned after {took:?}"
        );
        gate.open();
        for follower in followers {
            assert_eq!(follower.end().expect("a value"), "ECHO:slow");
        }
        assert!(loads.get() <= runs, "{} loads", loads.get());
        assert!(group.contains_key("slow"));
    }
}

#[test]
fn waiter_returns_at_its_own_deadline() {
    let (group, gate, begun, loads) = slow(alone("follower"), false);
    let leader = get(&group, Context::background(), "slow");
    begun.pass();
    let (took, result) = timed(|| group.get_with(&within(SHORT), "slow"));
    assert_eq!(kind(result), ErrorKind::DeadlineExceeded);
    assert!((SHORT..SOON).contains(&took), "it returned after {took:?}");
    gate.open();
    assert_eq!(leader.end().expect("a value"), "ECHO:slow");
    assert_eq!(loads.get(), 1);
}

#[test]
fn cancelled_caller_returns_at_once() {
    let (group, gate, begun, loads) = slow(alone("cancelled"), false);
    let (leading, cancel_leader) = Context::background().with_cancel();
    let leader = get(&group, leading, "slow");
    begun.pass();
    let (following, cancel_follower) = within(PATIENCE).with_cancel();
    let follower = get(&group, following, "slow");
    let patient = get(&group, Context::background(), "slow");
    eventually("all miss", || group.stats().loads == 3);
    for (canceller, call) in [(cancel_follower, follower), (cancel_leader, leader)] {
        canceller.cancel();
        assert_eq!(kind(call.end()), ErrorKind::Cancelled);
    }
    gate.open();
    assert_eq!(patient.end().expect("a value"), "ECHO:slow");
    assert_eq!(loads.get(), 1);
}

#[test]
fn caller_past_its_deadline_gets_cached_value_but_loads_nothing() {
    let (getter, loads) = echo();
    let group = alone("late").build(getter).expect("a group");
    group.get("cached").expect("a value");
    let late = within(millis(0));
    let cached = group.get_with(&late, "cached");
    assert_eq!(cached.expect("a value"), "ECHO:cached");
    assert_eq!(
        kind(group.get_with(&late, "other")),
        ErrorKind::DeadlineExceeded
    );
    let (cancelled, canceller) = Context::background().with_cancel();
    canceller.cancel();
    assert_eq!(
        kind(group.get_with(&cancelled, "other")),
        ErrorKind::Cancelled
    );
    assert_eq!(loads.get(), 1);
}

#[test]
fn hung_getter_does_not_delay_other_keys_or_groups() {
    let (hung, gate, begun, _) = slow(alone("hung").max_loader_threads(2), false);
    let other = alone("other").build(echo().0).expect("a group");
    let left = get(&hung, within(SHORT), "slow");
    begun.pass();
    for (group, key) in [(&hung, "quick"), (&other, "slow")] {
        for ctx in [Context::background(), within(PATIENCE)] {
            let value = get(group, ctx, key).end();
            assert_eq!(value.expect("a value"), format!("ECHO:{key}").as_str());
        }
    }
    assert_eq!(kind(left.end()), ErrorKind::DeadlineExceeded);
    gate.open();
}

#[test]
fn hung_key_uses_one_loader_thread_for_any_number_of_callers() {
    let (group, gate, _, loads) = slow(alone("hung").max_loader_threads(2), false);
    for _ in 0..10 {
        let result = group.get_with(&within(millis(5)), "slow");
        assert_eq!(kind(result), ErrorKind::DeadlineExceeded);
    }
    assert_eq!(loads.get(), 1);
    let quick = group.get_with(&within(PATIENCE), "quick");
    assert_eq!(
        quick.expect("the other loader thread is free"),
        "ECHO:quick"
    );
    gate.open();
    eventually("the late value is cached", || group.contains_key("slow"));
}

#[test]
fn call_is_refused_at_once_when_all_loader_threads_are_busy() {
    let (group, gate, _, loads) = slow(alone("busy").max_loader_threads(2), false);
    let hung = ["slow1", "slow2"].map(|key| get(&group, within(PATIENCE), key));
    eventually("both run", || loads.get() == 2);
    let (took, refused) = timed(|| group.get_with(&within(PATIENCE), "slow3"));
    let error = refused.expect_err("all loader threads are busy");
    assert_eq!(error.kind(), ErrorKind::Overloaded);
    assert!(error.to_string().contains("max_loader_threads"), "{error}");
    assert!(took < SOON, "it was refused after {took:?}");
    // A caller without a deadline runs the getter on its own thread.
    assert_eq!(group.get("quick").expect("a value"), "ECHO:quick");
    gate.open();
    for call in hung {
        call.end().expect("a value");
    }
    eventually("a thread is free again", || {
        group.get_with(&within(PATIENCE), "slow3").is_ok()
    });
}

#[test]
fn overloaded_leader_hands_over_to_caller_without_deadline() {
    let (group, gate, _, loads) = slow(alone("busy").max_loader_threads(1), false);
    let hung = get(&group, within(PATIENCE), "slow");
    eventually("it runs", || loads.get() == 1);
    let calls: Vec<_> = (0..20)
        .map(|n| {
            let ctx = match n % 2 {
                0 => Context::background(),
                _ => within(PATIENCE),
            };
            (n % 2, get(&group, ctx, "quick"))
        })
        .collect();
    for (bounded, call) in calls {
        match call.end() {
            Ok(value) => assert_eq!(value, "ECHO:quick"),
            Err(error) => assert_eq!((bounded, error.kind()), (1, ErrorKind::Overloaded)),
        }
    }
    gate.open();
    hung.end().expect("a value");
}

#[test]
fn call_to_slow_peer_returns_at_the_callers_deadline() {
    let gate = Gate::new();
    let peer = {
        let gate = gate.clone();
        FakePeer::new(move |_, _| {
            gate.pass();
            Ok(PeerResponse::new("theirs"))
        })
    };
    let (getter, loads) = echo();
    let group = among("slow", all_keys_at(&[&peer]))
        .build(getter)
        .expect("a group");
    let (took, result) = timed(|| group.get_with(&within(SHORT), "key"));
    assert_eq!(kind(result), ErrorKind::DeadlineExceeded);
    assert!((SHORT..SOON).contains(&took), "it returned after {took:?}");
    let patient = get(&group, Context::background(), "key");
    gate.open();
    assert_eq!(patient.end().expect("a value"), "theirs");
    assert_eq!((peer.calls(), loads.get()), (1, 0));
}

#[test]
fn leader_at_peer_returns_at_deadline_and_hands_over() {
    let (gate, asked) = (Gate::new(), Gate::new());
    let peer = {
        let (gate, asked) = (gate.clone(), asked.clone());
        FakePeer::punctual(move |ctx, _| {
            asked.open();
            match gate.opens_within(ctx.remaining().unwrap_or(PATIENCE)) {
                true => Ok(PeerResponse::new("theirs")),
                false => Err(Error::new(ErrorKind::DeadlineExceeded, "too late")),
            }
        })
    };
    let (getter, loads) = echo();
    let group = among("punctual", all_keys_at(&[&peer]))
        .build(getter)
        .expect("a group");
    let leader = get(&group, within(SHORT), "key");
    asked.pass();
    let follower = get(&group, within(PATIENCE), "key");
    assert_eq!(kind(leader.end()), ErrorKind::DeadlineExceeded);
    gate.open();
    assert_eq!(follower.end().expect("a value"), "theirs");
    assert!(peer.calls() <= 2);
    assert_eq!(loads.get(), 0);
}

#[test]
fn getter_sees_context_of_its_caller() {
    struct UserName(&'static str);
    let group = alone("context")
        .build(getter_fn(|ctx, _, dest| {
            assert!(ctx.remaining().is_some_and(|left| left <= PATIENCE));
            let name = ctx.value::<UserName>().map_or("absent", |name| name.0);
            Ok(dest.set_str(name)?)
        }))
        .expect("a group");
    let ctx = within(PATIENCE).with_value(UserName("me"));
    assert_eq!(group.get_with(&ctx, "key").expect("a value"), "me");
}

#[test]
fn timeout_inside_getter_is_a_getter_error() {
    // A timeout of a database behind the getter is not the deadline of this caller.
    let group = alone("behind")
        .build(getter_fn(|_, _, _| {
            Err(Error::new(ErrorKind::DeadlineExceeded, "the database is slow").into())
        }))
        .expect("a group");
    let error = group.get("key").expect_err("the getter failed");
    assert_eq!(error.kind(), ErrorKind::Getter);
    assert_eq!(error.to_string(), "the database is slow");
}
