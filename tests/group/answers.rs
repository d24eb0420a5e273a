//! Gets with options, and their answers.

use larder::{
    Answer, Clock, Context, ErrorKind, GetOptions, GetOutcome, Group, PeerResponse, Result, Source,
    getter_fn,
};

use crate::common::*;

fn ask(group: &Group, options: GetOptions) -> Result<Answer> {
    group.get_opts(&Context::background(), "key", options)
}

fn source(group: &Group, options: GetOptions) -> Source {
    ask(group, options).expect("a value").source
}

/// Values that are fresh for 10 s, and served for 5 s more if a load fails. The third load fails.
fn group(clock: &Clock, loads: &Count) -> Group {
    let counted = loads.clone();
    alone("answers")
        .clock(clock.clone())
        .time_to_live(seconds(10))
        .time_to_live_jitter(0.0)
        .stale_if_error(seconds(5))
        .build(getter_fn(move |_, _, dest| {
            counted.add(1);
            match counted.get() {
                3 => Err("the third load fails".into()),
                n => Ok(dest.set_str(&n.to_string())?),
            }
        }))
        .expect("a group")
}

#[test]
fn answer_has_source_age_and_expiry() {
    let (clock, loads) = (Clock::manual(), Count::default());
    let group = group(&clock, &loads);
    let answer = ask(&group, GetOptions::new()).expect("a value");
    assert_eq!(
        (&answer.value[..], answer.source),
        (&b"1"[..], Source::Getter)
    );
    assert_eq!(
        (answer.age, answer.expires_in),
        (Some(seconds(0)), Some(seconds(10)))
    );
    clock.advance(seconds(4));
    let answer = ask(&group, GetOptions::new()).expect("a value");
    assert_eq!(answer.source, Source::Main);
    assert_eq!(
        (answer.age, answer.expires_in),
        (Some(seconds(4)), Some(seconds(6)))
    );
}

#[test]
fn max_age_loads_a_value_that_is_too_old() {
    let (clock, loads) = (Clock::manual(), Count::default());
    let group = group(&clock, &loads);
    ask(&group, GetOptions::new()).expect("a value");
    clock.advance(seconds(4));
    let of = |age| GetOptions::new().max_age(seconds(age));
    assert_eq!(source(&group, of(4)), Source::Main);
    assert_eq!(
        kind(ask(&group, of(3).only_if_cached())),
        ErrorKind::NotCached
    );
    let answer = ask(&group, of(3)).expect("a value");
    assert_eq!(
        (&answer.value[..], answer.source),
        (&b"2"[..], Source::Getter)
    );
    assert_eq!(answer.age, Some(seconds(0)));
    assert_eq!(
        source(&group, of(0)),
        Source::Main,
        "the new value is cached"
    );
}

#[test]
fn stale_values_are_named_and_max_stale_takes_them_at_once() {
    let (clock, loads) = (Clock::manual(), Count::default());
    let group = group(&clock, &loads);
    ask(&group, GetOptions::new()).expect("a value");
    clock.advance(seconds(13));
    let stale = |time| GetOptions::new().max_stale(seconds(time));
    assert_eq!(source(&group, stale(3)), Source::Stale);
    assert_eq!(loads.get(), 1, "without a load");
    assert_eq!(
        kind(ask(&group, GetOptions::new().only_if_cached())),
        ErrorKind::NotCached
    );
    assert_eq!(
        kind(ask(&group, stale(2).only_if_cached())),
        ErrorKind::NotCached
    );
    assert_eq!(source(&group, stale(2)), Source::Getter);
    clock.advance(seconds(10));
    let answer = ask(&group, GetOptions::new()).expect("the old value");
    assert_eq!(
        (&answer.value[..], answer.source),
        (&b"2"[..], Source::Stale)
    );
    assert_eq!(answer.expires_in, Some(seconds(0)));
    assert_eq!(loads.get(), 3, "after a load that failed");
}

#[test]
fn only_if_cached_loads_nothing() {
    let (clock, loads) = (Clock::manual(), Count::default());
    let group = group(&clock, &loads);
    let cached = GetOptions::new().only_if_cached();
    assert_eq!(kind(ask(&group, cached)), ErrorKind::NotCached);
    assert_eq!(loads.get(), 0);
    group.get("key").expect("a value");
    assert_eq!(source(&group, cached), Source::Main);
}

#[test]
fn value_of_no_store_is_not_kept() {
    let (clock, loads) = (Clock::manual(), Count::default());
    let group = group(&clock, &loads);
    let options = GetOptions::new().no_store();
    for ctx in [Context::background(), within(PATIENCE)] {
        let answer = group.get_opts(&ctx, "key", options).expect("a value");
        assert_eq!(answer.source, Source::Getter);
        assert_eq!(answer.expires_in, Some(seconds(10)));
        assert_eq!(group.entry_count(), 0);
    }
}

#[test]
fn answer_with_a_value_of_a_peer_has_source_peer() {
    let peer = FakePeer::new(|_, _| Ok(PeerResponse::new("theirs").with_age(seconds(7))));
    let clock = Clock::manual();
    let group = among("named", all_keys_at(&[&peer]))
        .clock(clock.clone())
        .build(echo().0)
        .expect("a group");
    let answer = ask(&group, GetOptions::new()).expect("a value");
    assert_eq!(
        (answer.source, answer.age),
        (Source::Peer, Some(seconds(7)))
    );
    assert_eq!(answer.expires_in, None);
    assert_eq!(source(&group, GetOptions::new()), Source::Hot);
}

#[test]
fn copy_past_its_time_to_live_has_source_stale() {
    let answered = Count::default();
    let counted = answered.clone();
    let peer = FakePeer::new(move |_, _| {
        counted.add(1);
        match counted.get() {
            1 => Ok(PeerResponse::new("theirs")
                .with_ttl(seconds(10))
                .with_age(seconds(0))),
            _ => Err(ErrorKind::Peer.into()),
        }
    });
    let clock = Clock::manual();
    let group = among("stale", all_keys_at(&[&peer]))
        .clock(clock.clone())
        .stale_if_error(seconds(5))
        .build(getter_fn(|_, _, _| Err("down, too".into())))
        .expect("a group");
    assert_eq!(source(&group, GetOptions::new()), Source::Peer);
    clock.advance(seconds(12));
    let answer = ask(&group, GetOptions::new()).expect("the old value");
    assert_eq!(
        (answer.source, answer.age),
        (Source::Stale, Some(seconds(12)))
    );
    assert_eq!(answer.expires_in, Some(seconds(0)));
}

#[test]
fn max_age_loads_here_if_the_owner_of_a_copy_that_is_too_old_does_not_answer() {
    let answered = Count::default();
    let counted = answered.clone();
    let peer = FakePeer::new(move |_, _| {
        counted.add(1);
        match counted.get() {
            1 => Ok(PeerResponse::new("theirs").with_age(seconds(0))),
            _ => Err(ErrorKind::Peer.into()),
        }
    });
    let clock = Clock::manual();
    let (getter, _) = echo();
    let group = among("too-old", all_keys_at(&[&peer]))
        .clock(clock.clone())
        .build(getter)
        .expect("a group");
    assert_eq!(source(&group, GetOptions::new()), Source::Peer);
    clock.advance(seconds(3));
    let answer = ask(&group, GetOptions::new().max_age(seconds(1))).expect("a newer value");
    assert_eq!(
        (answer.source, answer.age),
        (Source::Getter, Some(seconds(0)))
    );
    assert_ne!(answer.value, "theirs");
}

#[test]
fn newer_value_of_a_peer_that_reports_no_age_has_source_peer() {
    let answered = Count::default();
    let counted = answered.clone();
    let peer = FakePeer::new(move |_, _| {
        counted.add(1);
        Ok(PeerResponse::new(counted.to_string()).with_ttl(seconds(10)))
    });
    let clock = Clock::manual();
    let group = among("ageless", all_keys_at(&[&peer]))
        .clock(clock.clone())
        .stale_if_error(seconds(5))
        .build(echo().0)
        .expect("a group");
    assert_eq!(source(&group, GetOptions::new()), Source::Peer);
    clock.advance(seconds(12));
    let answer = ask(&group, GetOptions::new()).expect("a newer value");
    assert_eq!(
        (&answer.value[..], answer.source),
        (&b"2"[..], Source::Peer)
    );
}

#[test]
fn explanation_names_the_old_value_that_a_get_returns_after_a_failure() {
    let (clock, loads) = (Clock::manual(), Count::default());
    let group = group(&clock, &loads);
    let outcome = || group.explain("key").outcome;
    group.get("key").expect("a value");
    clock.advance(seconds(10));
    assert!(matches!(outcome(), GetOutcome::Getter), "{:?}", outcome());
    group.get("key").expect("a newer value");
    clock.advance(seconds(10));
    group.get("key").expect("the old value");
    assert_eq!(group.explain("key").cached, Some(Source::Stale));
    assert!(matches!(outcome(), GetOutcome::Cached), "{:?}", outcome());
    clock.advance(seconds(5));
    assert!(matches!(outcome(), GetOutcome::Fail(_)), "{:?}", outcome());
}

#[test]
fn explanation_names_no_refresh_after_a_failed_one() {
    let (clock, fails) = (Clock::manual(), Count::default());
    let failing = fails.clone();
    let group = alone("refreshed")
        .clock(clock.clone())
        .time_to_live(seconds(10))
        .refresh_at(0.5)
        .build(getter_fn(move |_, key, dest| match failing.get() {
            0 => Ok(dest.set_str(key)?),
            _ => Err("down".into()),
        }))
        .expect("a group");
    let outcome = || group.explain("key").outcome;
    group.get("key").expect("a value");
    clock.advance(seconds(6));
    let is_refreshed = || matches!(outcome(), GetOutcome::CachedAndRefresh);
    assert!(is_refreshed(), "{:?}", outcome());
    fails.add(1);
    group.get("key").expect("a value");
    eventually("the refresh fails", || !is_refreshed());
    assert!(matches!(outcome(), GetOutcome::Cached), "{:?}", outcome());
}
