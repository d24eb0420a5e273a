//! Rates of the keys that are requested most.

use std::time::Duration;

use larder::{Clock, Context, ErrorKind, Group, HotAdmission, Registry};

fn builder(clock: &Clock) -> larder::GroupBuilder {
    let registry = Registry::new();
    Group::builder("hot")
        .registry(&registry)
        .clock(clock.clone())
}

#[test]
fn hottest_keys_of_this_process_are_found_in_their_order() {
    let clock = Clock::manual();
    let group = builder(&clock)
        .measure_rates(true)
        .build_with(|_, key| match key {
            "missing" => Err(larder::Error::not_found("no such key")),
            key => Ok(key.to_owned()),
        })
        .expect("a group");
    // For a minute, in each tenth of a second 400 hits of one key, 200 of another, and 4 misses of a third.
    for round in 0..600 {
        for get in 0..600 {
            let key = if get % 3 == 0 { "second" } else { "first" };
            group.get(key).expect("a value");
        }
        for _ in 0..4 {
            let missing = group.get("missing").expect_err("no value");
            assert_eq!(missing.kind(), ErrorKind::NotFound);
        }
        group.get(&format!("once {round}")).expect("a value");
        clock.advance(Duration::from_millis(100));
    }
    let hottest = group.hottest_keys(3);
    let keys: Vec<&str> = hottest.iter().map(|rate| &*rate.key).collect();
    assert_eq!(keys, ["first", "second", "missing"]);
    // After a minute a rate is 1 - 1/e of the full one.
    let part = 1.0 - f64::exp(-1.0);
    for (rate, expected) in hottest.iter().zip([4000.0, 2000.0, 40.0]) {
        let ratio = rate.qps / (expected * part);
        assert!((0.85..1.15).contains(&ratio), "{rate:?} of {expected}");
    }
    assert_eq!(group.hottest_keys(1).len(), 1);
    assert!(group.hottest_keys(usize::MAX).len() <= 256);
}

/// [`Group::serve_peer`] is public for the transports of programs.
#[test]
fn response_to_a_peer_has_the_rate_of_a_loaded_and_of_a_cached_value() {
    let group = builder(&Clock::manual())
        .measure_rates(true)
        .build_with(|_, key| Ok::<_, larder::Error>(key.to_owned()))
        .expect("a group");
    for count in 1..=9 {
        let response = group.serve_peer(&Context::background(), "red");
        let rate = response.expect("a value").minute_qps.expect("measured");
        let expected = f64::from(count) / 60.0;
        assert!((rate - expected).abs() < 1e-6, "{count}: {rate}");
    }
}

#[test]
fn rate_for_copies_must_be_a_number_of_requests() {
    for wrong in [-1.0, f64::NAN, f64::NEG_INFINITY] {
        let error = builder(&Clock::manual())
            .hot_admission(HotAdmission::OwnerRate(wrong))
            .build_with(|_, key| Ok::<_, larder::Error>(key.to_owned()))
            .expect_err("refused");
        assert_eq!(error.kind(), ErrorKind::InvalidOption, "{wrong}");
    }
}
