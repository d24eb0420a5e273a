//! A peer that does not answer causes no error. An answer of a peer is final, also if it is an error.

use std::error::Error as _;

use larder::{CacheType, Clock, Error, ErrorKind, Group, PeerResponse, getter_fn};

use crate::common::*;

const REFUSED: &str = "connection refused";

fn group(peers: &[&std::sync::Arc<FakePeer>]) -> (Group, Count) {
    let (getter, loads) = echo();
    let group = among("failover", all_keys_at(peers))
        .build(getter)
        .expect("a group");
    (group, loads)
}

#[test]
fn successor_answers_when_owner_fails() {
    let dead = FakePeer::failing(ErrorKind::Peer, REFUSED);
    let next = FakePeer::new(|_, _| Ok(PeerResponse::new("the successor's")));
    let (group, loads) = group(&[&dead, &next]);
    for _ in 0..2 {
        assert_eq!(group.get("key").expect("a value"), "the successor's");
    }
    assert_eq!((dead.calls(), next.calls(), loads.get()), (1, 1, 0));
    let stats = group.stats();
    assert_eq!((stats.peer_errors, stats.peer_loads), (1, 1));
    assert_eq!(group.cache_stats(CacheType::Hot).items, 1);
}

#[test]
fn key_is_loaded_here_when_both_peers_fail() {
    let dead = FakePeer::failing(ErrorKind::Peer, REFUSED);
    let (group, loads) = group(&[&dead, &dead, &dead, &dead]);
    assert_eq!(group.get("key").expect("a value"), "ECHO:key");
    assert_eq!(
        (dead.calls(), loads.get()),
        (2, 1),
        "only the owner and its successor are asked"
    );
    assert_eq!(group.stats().peer_errors, 2);
}

#[test]
fn value_of_dead_owner_is_kept_ten_seconds() {
    let clock = Clock::manual();
    let dead = FakePeer::failing(ErrorKind::Peer, REFUSED);
    let (getter, loads) = echo();
    let group = among("gutter", all_keys_at(&[&dead]))
        .clock(clock.clone())
        .build(getter)
        .expect("a group");
    for _ in 0..3 {
        group.get("key").expect("a value");
    }
    assert_eq!((dead.calls(), loads.get()), (1, 1));
    assert_eq!(
        group.cache_stats(CacheType::Hot).items,
        0,
        "the hot share would be too small for all keys of a dead owner"
    );
    clock.advance(seconds(10));
    group.get("key").expect("a value");
    assert_eq!(
        (dead.calls(), loads.get()),
        (2, 2),
        "the owner is asked again"
    );
}

#[test]
fn owner_that_is_back_may_keep_the_value_longer_than_ten_seconds() {
    let clock = Clock::manual();
    let dead = FakePeer::failing(ErrorKind::Peer, REFUSED);
    let options = among("gutter", all_keys_at(&[&dead]))
        .clock(clock.clone())
        .time_to_live(seconds(60));
    let getter = getter_fn(|_, key, dest| {
        if let Ok(n) = key.parse() {
            dest.expire_in(seconds(n));
        }
        Ok(dest.set_str(key)?)
    });
    let group = options.build(getter).expect("a group");
    let cached = |key: &str| group.serve_peer_cached(key);
    for key in ["no end", "30", "5"] {
        group.get(key).expect("a value");
    }
    clock.advance(seconds(2));
    let left = |key| cached(key).expect("it is cached").ttl;
    assert_eq!(left("no end"), Some(seconds(58)));
    // A time to live that the getter chose is not remembered, so this is the rest of the ten seconds.
    assert_eq!(left("30"), Some(seconds(8)));
    assert_eq!(left("5"), Some(seconds(3)));
    clock.advance(seconds(8));
    assert!(cached("no end").is_none(), "here it is gone after 10 s");
}

#[test]
fn key_is_loaded_here_when_peer_lacks_the_group() {
    let new = FakePeer::failing(ErrorKind::UnknownGroup, "no such group");
    let next = FakePeer::echo();
    let (group, loads) = group(&[&new, &next]);
    assert_eq!(group.get("key").expect("a value"), "ECHO:key");
    assert_eq!((new.calls(), next.calls(), loads.get()), (1, 0, 1));
}

#[test]
fn error_of_owners_getter_is_final() {
    for kind in [
        ErrorKind::NotFound,
        ErrorKind::Getter,
        ErrorKind::GetterPanicked,
        ErrorKind::ValueTooLarge,
        ErrorKind::NothingSet,
        ErrorKind::RecursiveLoad,
    ] {
        let owner = FakePeer::failing(kind, "no colour mauve");
        let next = FakePeer::echo();
        let (group, loads) = group(&[&owner, &next]);
        for calls in 1..=2 {
            let error = group.get("mauve").expect_err("the owner's error");
            assert_eq!(error.kind(), kind);
            assert_eq!(error.to_string(), "no colour mauve");
            assert_eq!(owner.calls(), calls, "errors are not cached");
        }
        assert_eq!((next.calls(), loads.get()), (0, 0), "{kind:?}");
        let stats = group.stats();
        assert_eq!((stats.peer_errors, stats.peer_loads), (0, 0), "{kind:?}");
        assert_eq!(group.entry_count(), 0);
    }
}

#[test]
fn getter_error_keeps_kind_text_and_source() {
    let group = alone("errors")
        .build(getter_fn(|_, key, _| {
            Err(match key {
                "mauve" => Error::not_found("no colour mauve").into(),
                "io" => std::io::Error::other("disk on fire").into(),
                _ => "plain text".into(),
            })
        }))
        .expect("a group");
    let error = group.get("mauve").expect_err("not there");
    assert!(error.is_not_found());
    assert_eq!(error.to_string(), "no colour mauve");

    let error = group.get("io").expect_err("the getter failed");
    assert_eq!(error.kind(), ErrorKind::Getter);
    assert_eq!(error.to_string(), "disk on fire");
    let source = error.source().expect("a source");
    assert!(source.downcast_ref::<std::io::Error>().is_some());

    let error = group.get("other").expect_err("the getter failed");
    assert_eq!(
        (error.kind(), error.to_string()),
        (ErrorKind::Getter, "plain text".into())
    );
    assert_eq!(group.entry_count(), 0);
    assert_eq!(group.stats().local_load_errs, 3);
}

#[test]
fn failing_getter_runs_once_for_key_of_dead_peer() {
    let dead = FakePeer::failing(ErrorKind::Peer, REFUSED);
    for ctx in [larder::Context::background(), within(PATIENCE)] {
        let runs = Count::default();
        let counted = runs.clone();
        let group = among("both", all_keys_at(&[&dead]))
            .build(getter_fn(move |_, _, _| {
                counted.add(1);
                Err(Error::not_found("nowhere").into())
            }))
            .expect("a group");
        assert!(
            group
                .get_with(&ctx, "key")
                .expect_err("nowhere")
                .is_not_found()
        );
        assert_eq!(runs.get(), 1);
    }
}

#[test]
fn panicking_getter_runs_once_for_key_of_dead_peer() {
    let dead = FakePeer::failing(ErrorKind::Peer, REFUSED);
    let runs = Count::default();
    let counted = runs.clone();
    let group = among("both", all_keys_at(&[&dead]))
        .build(getter_fn(move |_, _, _| {
            counted.add(1);
            std::panic::resume_unwind(Box::new("in the getter"))
        }))
        .expect("a group");
    let bounded = {
        let group = group.clone();
        start(move || group.get_with(&within(PATIENCE), "key"))
    };
    assert_eq!(kind(bounded.end()), ErrorKind::GetterPanicked);
    assert_eq!(runs.get(), 1);
    let unbounded = start(move || group.get("key"));
    let panic = unbounded
        .outcome()
        .expect_err("the getter ran on this thread");
    assert_eq!(panic.downcast_ref::<&str>(), Some(&"in the getter"));
    assert_eq!(runs.get(), 2);
}

#[test]
fn panic_in_peer_or_picker_fails_only_that_call() {
    let group = {
        let peer = FakePeer::new(|_, key| match key {
            "bad" => std::panic::resume_unwind(Box::new("in the peer")),
            _ => Ok(PeerResponse::new("theirs")),
        });
        among("panics", all_keys_at(&[&peer]))
            .build(echo().0)
            .expect("a group")
    };
    for _ in 0..2 {
        let bounded = {
            let group = group.clone();
            start(move || group.get_with(&within(PATIENCE), "bad"))
        };
        assert_eq!(kind(bounded.end()), ErrorKind::GetterPanicked);
        let unbounded = {
            let group = group.clone();
            start(move || group.get("bad"))
        };
        assert!(unbounded.outcome().is_err());
        assert_eq!(group.get("good").expect("a value"), "theirs");
        group.clear_local();
    }
}

#[test]
fn no_peer_is_asked_after_the_deadline() {
    let slow = FakePeer::punctual(|ctx, _| {
        // Returns only after the caller's deadline, although a peer gets half of the time.
        let closed = Gate::new();
        closed.opens_within(3 * ctx.remaining().unwrap_or(PATIENCE));
        Err(Error::new(ErrorKind::Peer, "timed out"))
    });
    let next = FakePeer::echo();
    let (group, loads) = group(&[&slow, &next]);
    let late = group.get_with(&within(millis(30)), "key");
    assert_eq!(kind(late), ErrorKind::DeadlineExceeded);
    assert_eq!((next.calls(), loads.get()), (0, 0));
}
