//! The age of values: the time since their load began, in whatever process it ran.

use larder::{Clock, Group, HotAdmission, PeerResponse, Registry, getter_fn};

use crate::common::*;

fn served(group: &Group, key: &str) -> PeerResponse {
    group.serve_peer(&within(PATIENCE), key).expect("an answer")
}

#[test]
fn age_counts_from_the_start_of_the_load() {
    let clock = Clock::manual();
    let slow = clock.clone();
    let group = alone("aging")
        .clock(clock.clone())
        .time_to_live(seconds(10))
        .time_to_live_jitter(0.0)
        .build(getter_fn(move |_, key, dest| {
            slow.advance(seconds(3));
            Ok(dest.set_str(key)?)
        }))
        .expect("a group");
    let loaded = served(&group, "key");
    assert_eq!(loaded.age, Some(seconds(0)), "it began after the request");
    assert_eq!(loaded.ttl, Some(seconds(10)), "from the request on");
    clock.advance(seconds(4));
    let cached = served(&group, "key");
    assert_eq!(cached.age, Some(seconds(7)));
    assert_eq!(cached.ttl, Some(seconds(3)));
    assert_eq!(
        group.serve_peer_cached("key").expect("cached").age,
        cached.age
    );
}

#[test]
fn copy_inherits_the_age_and_the_expiry_of_the_owner() {
    let clock = Clock::manual();
    let owner = Registry::new();
    let slow = clock.clone();
    let at_owner = Group::builder("shared")
        .registry(&owner)
        .clock(clock.clone())
        .time_to_live(seconds(10))
        .build(getter_fn(move |_, key, dest| {
            slow.advance(seconds(2));
            Ok(dest.set_str(key)?)
        }))
        .expect("a group");
    let node = std::sync::Arc::new(Node(owner));
    let here = among("shared", all_keys_at(&[&node]))
        .clock(clock.clone())
        .build(echo().0)
        .expect("a group");
    here.get("key").expect("a value");
    clock.advance(seconds(1));
    let (original, copy) = (served(&at_owner, "key"), served(&here, "key"));
    assert_eq!(original.age, Some(seconds(3)));
    assert_eq!(copy.age, original.age);
    assert_eq!(copy.ttl, original.ttl, "both expire at the same time");

    // A copy that is made later is as old as the value.
    here.invalidate("key");
    clock.advance(seconds(4));
    here.get("key").expect("a value");
    assert_eq!(served(&here, "key").age, Some(seconds(7)));
    clock.advance(seconds(3));
    assert!(
        !here.contains_key("key"),
        "it expires with the owner's value"
    );
}

#[test]
fn ttl_of_the_group_counts_from_the_start_of_the_load_at_the_owner() {
    let clock = Clock::manual();
    let peer = FakePeer::new(|_, _| Ok(PeerResponse::new("theirs").with_age(seconds(6))));
    let group = among("older", all_keys_at(&[&peer]))
        .clock(clock.clone())
        .time_to_live(seconds(10))
        .build(echo().0)
        .expect("a group");
    group.get("key").expect("a value");
    assert_eq!(served(&group, "key").ttl, Some(seconds(4)));
    assert_eq!(served(&group, "key").age, Some(seconds(6)));
}

#[test]
fn times_of_a_peers_answer_count_from_the_start_of_the_request() {
    let clock = Clock::manual();
    let slow = clock.clone();
    let peer = FakePeer::new(move |_, _| {
        slow.advance(seconds(3));
        let answer = PeerResponse::new("theirs").with_ttl(seconds(10));
        Ok(answer.with_age(seconds(1)))
    });
    let group = among("slow", all_keys_at(&[&peer]))
        .clock(clock.clone())
        .build(echo().0)
        .expect("a group");
    group.get("key").expect("a value");
    let answer = served(&group, "key");
    assert_eq!(answer.ttl, Some(seconds(7)));
    assert_eq!(answer.age, Some(seconds(4)));
}

#[test]
fn age_that_a_peer_does_not_report_is_not_known() {
    let clock = Clock::manual();
    let peer = FakePeer::echo();
    let group = among("silent", all_keys_at(&[&peer]))
        .clock(clock.clone())
        .time_to_live(seconds(10))
        .build(echo().0)
        .expect("a group");
    group.get("key").expect("a value");
    clock.advance(seconds(1));
    let answer = served(&group, "key");
    assert_eq!((answer.age, answer.ttl), (None, Some(seconds(9))));
}

#[test]
fn value_older_than_this_process_keeps_its_age() {
    let peer = FakePeer::new(|_, _| Ok(PeerResponse::new("old").with_age(20 * seconds(86_400))));
    let group = among("ancient", all_keys_at(&[&peer]))
        .build(echo().0)
        .expect("a group");
    group.get("key").expect("a value");
    let age = served(&group, "key").age.expect("it is known");
    assert!(
        age >= 20 * seconds(86_400) && age < 21 * seconds(86_400),
        "{age:?}"
    );
}

#[test]
fn value_that_expired_during_its_load_is_returned_and_not_kept() {
    let clock = Clock::manual();
    for admission in [HotAdmission::Always, HotAdmission::Never] {
        let slow = clock.clone();
        let group = alone("late")
            .clock(clock.clone())
            .hot_admission(admission)
            .time_to_live(seconds(5))
            .build(getter_fn(move |_, key, dest| {
                slow.advance(seconds(5));
                Ok(dest.set_str(key)?)
            }))
            .expect("a group");
        assert_eq!(group.get("key").expect("a value"), "key");
        assert_eq!(group.entry_count(), 0);
    }
}
