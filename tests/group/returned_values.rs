//! Getters that return their values.

use std::num::ParseIntError;

use larder::{BoxError, ByteView, Clock, Context, Error, ErrorKind, Registry, Value, value_fn};

use crate::common::*;

fn parsed(_: &Context, key: &str) -> Result<String, ParseIntError> {
    key.parse::<u32>().map(|n| n.to_string())
}

#[test]
fn every_kind_of_value_is_returned_and_cached() {
    let text = alone("text").build_with(|_, key| Ok::<_, Error>(key.to_owned()));
    let fixed = alone("fixed").build_with(|_, _| Ok::<_, Error>("key"));
    let bytes = alone("bytes").build_with(|_, key| Ok::<_, Error>(key.as_bytes().to_vec()));
    let fixed_bytes = alone("fixed").build_with(|_, _| Ok::<_, Error>(&b"key"[..]));
    let view = alone("view").build_with(|_, key| Ok::<_, Error>(ByteView::from(key)));
    let value = alone("value").build_with(|_, key| Ok::<_, Error>(Value::new(key.to_owned())));
    for group in [text, fixed, bytes, fixed_bytes, view, value] {
        let group = group.expect("a group");
        assert_eq!(group.get("key").expect("a value"), "key");
        assert_eq!(group.peek("key").expect("it is cached"), "key");
        assert_eq!(group.stats().local_loads, 1);
    }
}

#[test]
fn value_expires_at_its_own_time() {
    let clock = Clock::manual();
    let build = |ttl| {
        let load = move |_: &Context, _: &str| Ok::<_, Error>(Value::new("v").expire_in(ttl));
        alone("ttl").clock(clock.clone()).build_with(load)
    };
    let short = build(seconds(5)).expect("a group");
    let long = build(std::time::Duration::MAX).expect("a group");
    for group in [&short, &long] {
        group.get("key").expect("a value");
    }
    clock.advance(seconds(6));
    assert!(!short.contains_key("key"));
    assert!(long.contains_key("key"));
}

#[test]
fn value_with_an_etag_is_renewed_by_not_modified() {
    let (clock, sent) = (Clock::manual(), Count::default());
    let counted = sent.clone();
    let group = alone("etags")
        .clock(clock.clone())
        .time_to_live(seconds(10))
        .keep_for_revalidation(seconds(60))
        .build_with(move |ctx, key| {
            if key == "never set" || ctx.etag() == Some("first") {
                return Ok::<_, Error>(Value::not_modified());
            }
            counted.add(1);
            Ok(Value::new("text").etag("first"))
        })
        .expect("a group");
    for _ in 0..3 {
        assert_eq!(group.get("key").expect("a value"), "text");
        clock.advance(seconds(10));
        assert!(!group.contains_key("key"));
    }
    assert_eq!((sent.get(), group.stats().local_loads), (1, 3));
    assert_eq!(kind(group.get("never set")), ErrorKind::NothingSet);
}

#[test]
fn error_of_any_type_reaches_the_caller() {
    let group = alone("numbers").build_with(parsed).expect("a group");
    assert_eq!(group.get("7").expect("a value"), "7");
    let error = group.get("seven").expect_err("not a number");
    assert_eq!(error.kind(), ErrorKind::Getter);
    let source = std::error::Error::source(&error).expect("a source");
    assert!(source.is::<ParseIntError>());

    let missing = |_: &Context, key: &str| -> Result<String, BoxError> {
        Err(Error::not_found(format!("no {key}")).into())
    };
    let group = alone("missing").build_with(missing).expect("a group");
    let error = group.get("seven").expect_err("not found");
    assert!(error.is_not_found());
    assert_eq!(error.to_string(), "no seven");

    let group = alone("texts").build_with(|_, key| match key {
        "" => Ok(String::new()),
        _ => Err("too long"),
    });
    let error = group.expect("a group").get("x").expect_err("too long");
    assert_eq!(error.to_string(), "too long");
}

#[test]
fn too_large_value_is_refused() {
    let builder = alone("large").max_value_size(3);
    let group = builder.build_with(|_, key| Ok::<_, Error>(key.to_owned()));
    let group = group.expect("a group");
    assert_eq!(group.get("abc").expect("a value"), "abc");
    assert_eq!(kind(group.get("abcd")), ErrorKind::ValueTooLarge);
}

#[test]
fn closure_that_returns_is_a_getter_everywhere() {
    let group = Registry::new().new_group("numbers", 1 << 20, value_fn(parsed));
    assert_eq!(group.expect("a group").get("7").expect("a value"), "7");
}
