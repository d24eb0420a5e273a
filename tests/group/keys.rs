//! Keys are plain text: no key is special, and no key is confused with another.

use std::sync::Mutex;

use larder::{PeerResponse, getter_fn};

use crate::common::*;

/// Keys that code for paths, separators, encodings or tables could change.
fn keys() -> Vec<String> {
    let mut keys: Vec<String> = [
        "",
        " ",
        "  ",
        "a b/c,d",
        "a",
        "A",
        "a ",
        " a",
        ".",
        "..",
        "../..",
        "/",
        "//x",
        "x//",
        "/x",
        "a/b",
        "a%2Fb",
        "a%2fb",
        "%",
        "%00",
        "%zz",
        "a+b",
        "a%2Bb",
        "a?b",
        "a#b",
        "a&b=c",
        "\0",
        "\0\0",
        "a\nb",
        "\r\n",
        "\u{7f}",
        "ü",
        "u\u{308}",
        "\u{1f980}",
        "ключ",
        "鍵",
        "\u{202e}x",
        "\u{feff}x",
        "\u{10ffff}",
    ]
    .map(String::from)
    .into();
    keys.push("k".repeat(8 << 10));
    keys.push("k".repeat((8 << 10) - 1));
    keys
}

#[test]
fn every_key_is_loaded_cached_and_removed_as_itself() {
    let keys = keys();
    let (getter, loads) = echo();
    let group = alone("keys").build(getter).expect("a group");
    for _ in 0..2 {
        for key in &keys {
            let value = group.get(key).expect("a value");
            assert_eq!(value, format!("ECHO:{key}").as_str(), "{key:?}");
        }
    }
    assert_eq!(loads.get(), keys.len() as i64);
    assert_eq!(group.entry_count(), keys.len() as u64);
    for (n, key) in keys.iter().enumerate() {
        assert_eq!(
            group.remove_local(key).expect("it is cached"),
            format!("ECHO:{key}").as_str()
        );
        assert_eq!(group.remove_local(key), None, "{key:?}");
        assert_eq!(group.entry_count() as usize, keys.len() - n - 1);
    }
    assert_eq!(group.weighted_size(), 0);
}

#[test]
fn peer_and_picker_get_the_key_unchanged() {
    let peer = FakePeer::echo();
    let group = among("peers", all_keys_at(&[&peer]))
        .build(echo().0)
        .expect("a group");
    for key in keys() {
        assert_eq!(
            group.get(&key).expect("a value"),
            format!("ECHO:{key}").as_str()
        );
        let served = group.serve_peer(&within(PATIENCE), &key);
        assert_eq!(
            served.expect("a value").value,
            format!("ECHO:{key}").as_str()
        );
    }
    assert_eq!(peer.calls(), keys().len() as i64);
}

#[test]
fn listener_and_admission_get_the_key_unchanged() {
    let gone = std::sync::Arc::new(Mutex::new(Vec::new()));
    let noted = gone.clone();
    let group = alone("gone")
        .eviction_listener(move |key, value, _| {
            assert_eq!(value, format!("ECHO:{key}").as_str());
            noted.lock().expect("no panic").push(key.to_owned());
        })
        .build(echo().0)
        .expect("a group");
    for key in keys() {
        group.get(&key).expect("a value");
        group.invalidate(&key);
    }
    assert_eq!(*gone.lock().expect("no panic"), keys());
}

#[test]
fn one_view_set_for_many_keys_stays_intact() {
    // A view that was cached under one key may be set for another.
    let first = alone("first").build(echo().0).expect("a group");
    let behind = first.clone();
    let second = alone("second")
        .build(getter_fn(move |_, _, dest| {
            Ok(dest.set_view(&behind.get("inner")?.slice_from(1))?)
        }))
        .expect("a group");
    for key in keys() {
        assert_eq!(second.get(&key).expect("a value"), "CHO:inner");
        assert_eq!(second.get(&key).expect("a value"), "CHO:inner");
    }
    assert_eq!(first.get("inner").expect("a value"), "ECHO:inner");
}

#[test]
fn empty_values_are_cached() {
    let empty = FakePeer::new(|_, _| Ok(PeerResponse::new("")));
    let ours = alone("ours")
        .build(getter_fn(|_, _, dest| Ok(dest.set_str("")?)))
        .expect("a group");
    let theirs = among("theirs", all_keys_at(&[&empty]))
        .build(echo().0)
        .expect("a group");
    for group in [ours, theirs] {
        for key in ["", "key"] {
            assert_eq!(group.get(key).expect("a value"), "");
            assert!(group.contains_key(key));
        }
        assert_eq!(group.stats().loads, 2);
    }
    assert_eq!(empty.calls(), 2);
}
