//! Sinks: each gets the value, and none can change the cached bytes.

use larder::{
    AllocatingByteSliceSink, ByteView, ByteViewSink, Error, ErrorKind, Group, ProtoSink, Sink,
    StringSink, TruncatingByteSliceSink, getter_fn,
};

use crate::common::*;
use crate::testpb::Town;

fn group() -> Group {
    alone("sinks").build(echo().0).expect("a group")
}

#[test]
fn truncating_sink_takes_what_fits() {
    let group = group();
    let mut buffer = [b'.'; 100];
    let mut slice = &mut buffer[..];
    group
        .get_into(
            &background(),
            "short",
            TruncatingByteSliceSink::new(&mut slice),
        )
        .expect("a value");
    assert_eq!(slice, b"ECHO:short");

    let mut slice = &mut buffer[..6];
    group
        .get_into(
            &background(),
            "cut",
            TruncatingByteSliceSink::new(&mut slice),
        )
        .expect("a value");
    assert_eq!(slice, b"ECHO:c");
    assert_eq!(group.get("cut").expect("a value"), "ECHO:cut");
}

#[test]
fn changes_to_callers_copy_do_not_reach_the_cache() {
    let group = group();
    for _ in 0..2 {
        let mut vector = Vec::new();
        group
            .get_into(
                &background(),
                "key",
                AllocatingByteSliceSink::new(&mut vector),
            )
            .expect("a value");
        assert_eq!(vector, b"ECHO:key");
        vector.fill(b'X');

        let mut plain = Vec::new();
        group
            .get_into(&background(), "key", &mut plain)
            .expect("a value");
        assert_eq!(plain, b"ECHO:key");
        plain.fill(b'Y');

        let mut buffer = [0; 8];
        let mut slice = &mut buffer[..];
        group
            .get_into(
                &background(),
                "key",
                TruncatingByteSliceSink::new(&mut slice),
            )
            .expect("a value");
        assert_eq!(slice, b"ECHO:key");
        slice.fill(b'Z');
    }
    assert_eq!(group.get("key").expect("a value"), "ECHO:key");
    assert_eq!(group.stats().local_loads, 1);
}

#[test]
fn changes_to_getters_buffer_do_not_reach_the_cache() {
    let group = alone("buffer")
        .build(getter_fn(|_, _, dest| {
            let mut buffer = *b"value";
            dest.set_bytes(&buffer)?;
            buffer.fill(b'X');
            std::hint::black_box(&buffer);
            Ok(())
        }))
        .expect("a group");
    assert_eq!(group.get("key").expect("a value"), "value");
    assert_eq!(group.get("key").expect("a value"), "value");
}

#[test]
fn views_share_cached_bytes_and_survive_eviction() {
    let group = group();
    let first = group.get("key").expect("a value");
    let mut second = ByteView::new();
    group
        .get_into(&background(), "key", ByteViewSink::new(&mut second))
        .expect("a value");
    let mut third = ByteView::new();
    group
        .get_into(&background(), "key", &mut third)
        .expect("a value");
    assert_eq!(first.as_ptr(), second.as_ptr());
    assert_eq!(first.as_ptr(), third.as_ptr());
    group.clear_local();
    drop((first, second));
    assert_eq!(third, "ECHO:key");
}

#[test]
fn text_sinks_refuse_bytes_that_are_not_utf8() {
    let group = alone("bytes")
        .build(getter_fn(|_, _, dest| Ok(dest.set_bytes(&[0xff, 0xfe])?)))
        .expect("a group");
    let mut text = String::from("before");
    let refused = group.get_into(&background(), "key", StringSink::new(&mut text));
    assert_eq!(kind(refused), ErrorKind::Sink);
    assert_eq!(text, "before");
    assert_eq!(group.get("key").expect("the bytes"), [0xff, 0xfe]);
    assert_eq!(
        group.stats().local_loads,
        1,
        "the value is valid, so it stays cached"
    );
}

#[test]
fn value_that_does_not_decode_is_refused() {
    let group = group();
    let mut town = Town::default();
    let refused = group.get_into(&background(), "key", ProtoSink::new(&mut town));
    assert_eq!(kind(refused), ErrorKind::Sink);
    assert_eq!(town, Town::default());
}

#[test]
fn user_defined_sink_is_filled() {
    struct Len(usize);
    impl Sink for Len {
        fn set_bytes(&mut self, value: &[u8]) -> Result<(), Error> {
            self.0 = value.len();
            Ok(())
        }
    }
    let mut len = Len(0);
    group()
        .get_into(&background(), "key", &mut len)
        .expect("a value");
    assert_eq!(len.0, 8);
}

#[test]
fn getter_may_set_text_bytes_message_or_view() {
    let shared = ByteView::from("shared");
    let town = Town {
        name: "Ys".into(),
        ..Town::default()
    };
    let (view, message) = (shared.clone(), town.clone());
    let group = alone("setters")
        .build(getter_fn(move |_, key, dest| {
            match key {
                "text" => dest.set_str("text")?,
                "bytes" => dest.set_bytes(b"bytes")?,
                "message" => dest.set_proto(&message)?,
                _ => dest.set_view(&view)?,
            }
            Ok(())
        }))
        .expect("a group");
    for _ in 0..2 {
        assert_eq!(group.get("text").expect("a value"), "text");
        assert_eq!(group.get("bytes").expect("a value"), "bytes");
        assert_eq!(group.get("view").expect("a value"), shared);
        let mut got = Town::default();
        group
            .get_into(&background(), "message", ProtoSink::new(&mut got))
            .expect("a message");
        assert_eq!(got, town);
    }
    assert_eq!(group.stats().local_loads, 4);
}
