//! Invalid input is refused with the right kind of error, and with advice in its text.

use larder::{
    ByteView, Context, Error, ErrorKind, Group, GroupBuilder, HotAdmission, Registry, Result,
    SetOptions, Value, getter_fn,
};

use crate::common::*;

/// Returns the error's kind, and checks that its text contains `advice`.
#[track_caller]
fn refused<T: std::fmt::Debug>(result: Result<T>, advice: &str) -> ErrorKind {
    let error = result.expect_err("an error");
    let text = error.to_string();
    assert!(text.contains(advice), "{text:?} lacks {advice:?}");
    error.kind()
}

#[test]
fn duplicate_group_name_is_refused() {
    let registry = Registry::new();
    let first = registry
        .new_group("name", 1 << 20, echo().0)
        .expect("a new name");
    first.get("key").expect("a value");
    let second = registry.new_group("name", 1 << 20, echo().0);
    assert_eq!(refused(second, "get_group"), ErrorKind::DuplicateGroup);
    let found = registry.get_group("name").expect("the first");
    assert!(
        found.contains_key("key"),
        "the first group is still registered"
    );
}

#[test]
fn one_of_many_threads_makes_the_group() {
    let registry = Registry::new();
    let made = Count::default();
    let counted = made.clone();
    registry
        .register_new_group_hook(move |_| counted.add(1))
        .expect("the first hook");
    let calls: Vec<_> = (0..16)
        .map(|_| {
            let registry = registry.clone();
            start(move || registry.new_group("name", 1 << 20, echo().0).is_ok())
        })
        .collect();
    let successes = calls.into_iter().map(Call::end).filter(|&ok| ok).count();
    assert_eq!((successes, made.get()), (1, 1));
}

#[test]
fn group_name_has_1_to_256_bytes() {
    let registry = Registry::new();
    let make = |name: &str| registry.new_group(name, 1 << 20, echo().0);
    assert_eq!(refused(make(""), "1 to 256"), ErrorKind::InvalidName);
    let long = "n".repeat(257);
    assert_eq!(refused(make(&long), "257"), ErrorKind::InvalidName);
    let umlauts = "ü".repeat(129);
    assert_eq!(refused(make(&umlauts), "258"), ErrorKind::InvalidName);
    assert!(registry.groups().is_empty());
    for name in ["n", &long[..256], "a b/c", "..", "ü"] {
        assert_eq!(make(name).expect("a good name").name(), name);
    }
}

#[test]
fn too_small_capacity_is_refused_with_the_minimum() {
    for capacity in [1, 10, 30] {
        let made = alone("small").max_capacity(capacity).build(echo().0);
        let text = made.as_ref().expect_err("too small").to_string();
        assert_eq!(refused(made, "use 0"), ErrorKind::CapacityTooSmall);
        assert!(text.contains(&capacity.to_string()), "{text}");
    }
    // The text names the smallest capacity. That capacity works, and one byte less does not.
    let error = alone("small").max_capacity(1).build(echo().0);
    let text = error.expect_err("too small").to_string();
    let numbers = text.split(|c: char| !c.is_ascii_digit());
    let smallest: u64 = numbers.flat_map(str::parse).max().expect("a number");
    let group = alone("empty")
        .max_capacity(smallest)
        .build(getter_fn(|_, _, dest| Ok(dest.set_str("")?)))
        .expect("large enough");
    group.get("").expect("a value");
    assert_eq!(group.weighted_size(), smallest);
    let less = alone("small").max_capacity(smallest - 1).build(echo().0);
    assert_eq!(kind(less), ErrorKind::CapacityTooSmall);
}

#[test]
fn capacity_of_zero_caches_nothing() {
    let (getter, loads) = echo();
    let group = alone("off")
        .max_capacity(0)
        .time_to_live(seconds(60))
        .build(getter)
        .expect("0 switches caching off");
    for _ in 0..3 {
        assert_eq!(group.get("key").expect("a value"), "ECHO:key");
    }
    assert_eq!(loads.get(), 3);
    assert_eq!((group.entry_count(), group.weighted_size()), (0, 0));
    assert_eq!(group.max_capacity(), 0);
    assert_eq!(group.remove_local("key"), None);
}

/// The value begins with its key: if it were cached without a key in front of it, a look-up would find it,
/// and cut it.
#[test]
fn value_that_fits_only_without_its_key_is_not_cached() {
    // With the header of its block, the value takes 24 pages.
    const LEN: usize = 24 * 4096 - 8;
    let value = |key: &str| key.repeat(LEN / key.len());
    for capacity in [24 * 4096 + 100, 25 * 4096] {
        let group = alone("edge")
            .max_capacity(capacity)
            .eviction_listener(|key, value, _| drop((key.to_owned(), value.to_vec())))
            .build_with(move |_, key| match key.strip_prefix("view") {
                None => Ok::<_, Error>(Value::from(value(key)).etag("x")),
                Some(_) => Ok(Value::from(ByteView::from(value(key)))),
            })
            .expect("a group");
        for key in ["bytes888", "view8888", "bytes888"] {
            for _ in 0..2 {
                assert!(group.get(key).expect("a value") == value(key), "{key}");
            }
            group
                .set(
                    &Context::background(),
                    key,
                    value(key),
                    SetOptions::default(),
                )
                .expect("it is set");
            assert!(group.get(key).expect("a value") == value(key), "{key}");
            let cached: Vec<String> = group.iter().map(|entry| entry.key().into()).collect();
            assert_eq!(cached, Vec::<String>::new());
        }
    }
}

#[test]
fn key_over_the_limit_is_refused_before_any_request() {
    let peer = FakePeer::echo();
    let (getter, loads) = echo();
    let group = among("keys", all_keys_at(&[&peer]))
        .max_key_size(10)
        .build(getter)
        .expect("a group");
    let long = "k".repeat(11);
    for ctx in [larder::Context::background(), within(PATIENCE)] {
        let got = group.get_with(&ctx, &long);
        assert_eq!(refused(got, "max_key_size of 10"), ErrorKind::KeyTooLong);
        let served = group.serve_peer(&ctx, &long);
        assert_eq!(refused(served, "11 bytes"), ErrorKind::KeyTooLong);
    }
    assert_eq!((peer.calls(), loads.get()), (0, 0));
    group.get(&long[..10]).expect("a value");
    group.invalidate(&long);
    assert!(!group.contains_key(&long));
}

#[test]
fn key_limit_defaults_to_8_kib_and_is_at_most_65535() {
    let group = alone("default").build(echo().0).expect("a group");
    group.get(&"k".repeat(8 << 10)).expect("a value");
    let over = group.get(&"k".repeat((8 << 10) + 1));
    assert_eq!(kind(over), ErrorKind::KeyTooLong);

    let group = alone("highest")
        .max_key_size(65_535)
        .build(echo().0)
        .expect("a group");
    let key = "k".repeat(65_535);
    for _ in 0..2 {
        assert_eq!(group.get(&key).expect("a value").len(), 65_540);
    }
    assert_eq!(group.stats().local_loads, 1);
}

#[test]
fn getter_must_set_exactly_one_value_within_the_limit() {
    let group = alone("values")
        .max_value_size(10)
        .build(getter_fn(|_, key, dest| {
            match key {
                "nothing" => {}
                "ttl only" => dest.expire_in(seconds(1)),
                "twice" => {
                    dest.set_str("one")?;
                    dest.set_str("two")?;
                }
                "twice, unseen" => {
                    dest.set_str("one")?;
                    let _ = dest.set_str("two");
                }
                "too large" => dest.set_bytes(&[0; 11])?,
                "too large, unseen" => drop(dest.set_bytes(&[0; 11])),
                _ => dest.set_bytes(&[0; 10])?,
            }
            Ok(())
        }))
        .expect("a group");
    for (key, kind, advice) in [
        ("nothing", ErrorKind::NothingSet, "Error::not_found"),
        ("ttl only", ErrorKind::NothingSet, "sink's set methods"),
        ("twice", ErrorKind::SetTwice, "set it once"),
        ("twice, unseen", ErrorKind::SetTwice, "set it once"),
        (
            "too large",
            ErrorKind::ValueTooLarge,
            "max_value_size of 10",
        ),
        ("too large, unseen", ErrorKind::ValueTooLarge, "11 bytes"),
    ] {
        assert_eq!(refused(group.get(key), advice), kind, "{key}");
        let bounded = group.get_with(&within(PATIENCE), key);
        assert_eq!(refused(bounded, advice), kind, "{key}");
        assert!(!group.contains_key(key));
    }
    assert_eq!(group.get("just right").expect("a value").len(), 10);
}

#[test]
fn options_outside_their_range_are_refused() {
    type Set = fn(GroupBuilder) -> GroupBuilder;
    let bad: [(Set, &str); 12] = [
        (|b| b.hot_fraction(-0.1), "between 0 and 1"),
        (|b| b.hot_fraction(1.1), "between 0 and 1"),
        (|b| b.hot_fraction(f64::NAN), "between 0 and 1"),
        (
            |b| b.hot_admission(HotAdmission::Probability(-0.1)),
            "between 0 and 1",
        ),
        (
            |b| b.hot_admission(HotAdmission::Probability(f64::NAN)),
            "between 0 and 1",
        ),
        (|b| b.max_key_size(65_536), "at most 65535"),
        (|b| b.shards(0), "at least one shard"),
        (|b| b.max_loader_threads(0), "at least 1"),
        (|b| b.max_concurrent_loads(0), "at least 1"),
        (|b| b.loader_stack_size(65_535), "at least 65536"),
        (
            |b| b.max_load_wait(std::time::Duration::MAX),
            "at most 24 h",
        ),
        (|b| b.hot_fraction(f64::INFINITY), "between 0 and 1"),
    ];
    let registry = Registry::new();
    for (set, advice) in bad {
        let made = set(Group::builder("options").registry(&registry)).build(echo().0);
        assert_eq!(refused(made, advice), ErrorKind::InvalidOption);
    }
    assert!(registry.groups().is_empty(), "the name is still free");
    let good: [Set; 9] = [
        |b| b.hot_fraction(0.0),
        |b| b.hot_fraction(1.0),
        |b| b.hot_admission(HotAdmission::Probability(0.0)),
        |b| b.hot_admission(HotAdmission::Probability(1.0)),
        |b| b.max_key_size(0),
        |b| b.max_value_size(0),
        |b| b.shards(3),
        |b| b.shards(usize::MAX),
        |b| b.max_capacity(usize::MAX as u64),
    ];
    for set in good {
        let group = set(alone("options"))
            .build(getter_fn(|_, _, dest| Ok(dest.set_str("")?)))
            .expect("a good option");
        for _ in 0..2 {
            assert_eq!(group.get("").expect("a value"), "");
        }
        assert_eq!(group.stats().local_loads, 1);
    }
}

#[cfg(target_pointer_width = "32")]
#[test]
fn capacity_over_the_address_space_is_refused() {
    let made = alone("large").max_capacity(1 << 33).build(echo().0);
    assert_eq!(refused(made, "the address space"), ErrorKind::InvalidOption);
    let group = alone("small").build(echo().0).expect("a group");
    let before = group.max_capacity();
    let set = group.set_capacity(1 << 33);
    assert_eq!(refused(set, "the address space"), ErrorKind::InvalidOption);
    assert_eq!(group.max_capacity(), before);
}

#[test]
fn second_registration_is_refused_with_advice() {
    let registry = Registry::new();
    let peer = FakePeer::echo();
    let picker = || all_keys_at(&[&peer]);
    registry.register_peer_picker(picker()).expect("the first");
    let second = registry.register_peer_picker(picker());
    assert_eq!(
        refused(second, "a Registry of its own"),
        ErrorKind::AlreadyRegistered
    );
    registry.register_new_group_hook(|_| {}).expect("the first");
    let second = registry.register_new_group_hook(|_| {});
    assert_eq!(
        refused(second, "a Registry of its own"),
        ErrorKind::AlreadyRegistered
    );
}

#[test]
fn every_error_kind_has_a_text() {
    for kind in [
        ErrorKind::NotFound,
        ErrorKind::Getter,
        ErrorKind::GetterPanicked,
        ErrorKind::RecursiveLoad,
        ErrorKind::NothingSet,
        ErrorKind::SetTwice,
        ErrorKind::Sink,
        ErrorKind::KeyTooLong,
        ErrorKind::ValueTooLarge,
        ErrorKind::DeadlineExceeded,
        ErrorKind::Cancelled,
        ErrorKind::Overloaded,
        ErrorKind::Loading,
        ErrorKind::Peer,
        ErrorKind::UnknownGroup,
    ] {
        let error = Error::from(kind);
        assert_eq!(error.kind(), kind);
        assert!(error.to_string().len() > 10, "{error}");
    }
}
