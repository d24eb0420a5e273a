use super::*;
use crate::pb::GetResponse;
use crate::sink::message::ProtoMessage;
use proptest::option;
use proptest::prelude::*;
use quick_protobuf::{BytesReader, MessageRead};
use std::borrow::Cow;

const HASH: u64 = 0x0807_0605_0403_0201;

/// The field with [`HASH`].
const HASH_FIELD: [u8; 10] = [0xa9, 0x06, 1, 2, 3, 4, 5, 6, 7, 8];

fn generated_read(body: &[u8]) -> GetResponse<'_> {
    GetResponse::from_reader(&mut BytesReader::from_bytes(body), body).expect("it decodes")
}

fn refused(body: &[u8]) -> String {
    let error = decode_response(body).expect_err("it is refused");
    assert_eq!(error.kind(), ErrorKind::Peer);
    error.to_string()
}

fn encoded_with(value: &[u8], fields: &Fields) -> Vec<u8> {
    let body = encode_response(HASH, value.into(), fields);
    body.iter().collect::<Vec<_>>().concat()
}

fn encoded(value: &[u8], ttl: Option<u64>, expire: Option<i64>, qps: Option<f64>) -> Vec<u8> {
    let fields = Fields {
        ttl_nanos: ttl,
        expire_unix_nanos: expire,
        minute_qps: qps,
        ..Fields::default()
    };
    encoded_with(value, &fields)
}

#[test]
fn encoded_bytes_match_the_proto_file() {
    for (value, field) in [
        (&b"red"[..], &b"\x0a\x03red"[..]),
        (b"", &[0x0a, 0]),
        (&[7; 300], &[&[0x0a, 0xac, 0x02][..], &[7; 300]].concat()),
    ] {
        let want = [&HASH_FIELD, field].concat();
        assert_eq!(encoded(value, None, None, None), want);
    }
    assert_eq!(
        encoded(b"x", Some(150), Some(-1), Some(1.0)),
        [
            &[0x11, 0, 0, 0, 0, 0, 0, 0xf0, 0x3f][..],
            &[
                0x18, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01
            ],
            &[0xa0, 0x06, 0x96, 0x01],
            &HASH_FIELD,
            &[0x0a, 1, b'x'],
        ]
        .concat()
    );
    let aged = Fields {
        age_ms: Some(150),
        stale_ms: Some(3),
        ..Fields::default()
    };
    let age = [0xb0, 0x06, 0x96, 0x01, 0xc0, 0x06, 3];
    let want = [&HASH_FIELD[..], &age, &[0x0a, 1, b'x']].concat();
    assert_eq!(encoded_with(b"x", &aged), want);
    let marked = Fields {
        removals: Some(HASH),
        ..Fields::default()
    };
    let mark = [&[0xd1, 0x06][..], &HASH_FIELD[2..]].concat();
    let want = [&HASH_FIELD[..], &mark, &[0x0a, 1, b'x']].concat();
    assert_eq!(encoded_with(b"x", &marked), want);
    let unmarked = Fields {
        removals: Some(0),
        ..Fields::default()
    };
    assert_eq!(
        encoded_with(b"x", &unmarked),
        [&HASH_FIELD[..], &[0x0a, 1, b'x']].concat()
    );
}

#[test]
fn value_is_borrowed_and_absent_value_is_empty() {
    let body = encoded(b"red", None, None, None);
    let value = decode_response(&body).expect("it decodes").value;
    assert_eq!(value, b"red");
    assert_eq!(value.as_ptr(), body[body.len() - 3..].as_ptr());

    for body in [&[][..], &[0x0a, 0], &[0x18, 0]] {
        let decoded = decode_response(body).expect("it decodes");
        assert_eq!(decoded.value, b"");
        assert_eq!(decoded.fields.expire_unix_nanos, None, "0 is never");
    }
}

#[test]
fn unknown_fields_are_skipped() {
    let unknown = [
        &[0x20, 0x96, 0x01][..],
        &[0x31, 1, 2, 3, 4, 5, 6, 7, 8],
        &[0xc2, 0x07, 2, b'h', b'i'],
        &[0x3d, 1, 2, 3, 4],
    ]
    .concat();
    let body = [&unknown[..], &[0x0a, 1, b'x'], &unknown].concat();
    assert_eq!(decode_response(&body).expect("it decodes").value, b"x");
}

#[test]
fn invalid_rate_is_ignored() {
    for qps in [f64::NAN, f64::INFINITY, -1.0] {
        let body = encoded(b"", None, None, Some(qps));
        let fields = decode_response(&body).expect("it decodes").fields;
        assert_eq!(fields.minute_qps, None);
    }
}

#[test]
fn corrupt_bodies_are_refused() {
    for (body, why) in [
        (&[0x0a][..], "without an end"),
        (&[0x0a, 0x80], "without an end"),
        (&[0x0a, 2, b'x'], "longer than the body"),
        (
            &[0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f],
            "longer than the body",
        ),
        // 2^32 + 1: the generated reader alone would take it for 1.
        (
            &[0x0a, 0x81, 0x80, 0x80, 0x80, 0x10, b'x'],
            "longer than the body",
        ),
        (
            &[
                0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01,
            ],
            "longer than the body",
        ),
        (&[0x08, 1], "wrong type"),
        (&[0x12, 1, b'x'], "wrong type"),
        (&[0x1a, 1, b'x'], "wrong type"),
        (&[0xa1, 0x06, 1, 2, 3, 4, 5, 6, 7, 8], "wrong type"),
        (&[0xa8, 0x06, 1], "wrong type"),
        (&[0xb1, 0x06, 1, 2, 3, 4, 5, 6, 7, 8], "wrong type"),
        (&[0x02, 1, b'x'], "field number"),
        (&[0x8a, 0x80, 0x80, 0x80, 0x10, 1, b'x'], "field number"),
        (&[0x13, 0x14], "wrong type"),
        (&[0x23, 0x24], "no type"),
        (&[0x26], "no type"),
        (&[0x27], "no type"),
        (&[0x11, 1, 2, 3, 4, 5, 6, 7], "longer than the body"),
        (&[0x25, 1, 2, 3], "longer than the body"),
        (
            &[
                0x18, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02,
            ],
            "64 bits",
        ),
        (
            &[
                0x18, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
            ],
            "without an end",
        ),
        (&[0x0a, 1, b'x', 0], "field number"),
    ] {
        let text = refused(body);
        assert!(text.contains(why), "{body:x?}: {text}");
    }
}

#[test]
fn text_and_html_are_refused() {
    for page in [
        "<html><body>It works!</body></html>",
        "<!DOCTYPE html>\n<title>Sign in</title>",
        "\n<!DOCTYPE html>\n<html lang=\"en\">\n<head><title>Welcome to the network</title></head>",
        "\r\n<html></html>",
        "  <html></html>",
        "\u{feff}<html></html>",
        "{\"status\":\"ok\"}",
        "[]",
        "ok",
        "OK\n",
        "404 page not found\n",
        "no such group: colors\n",
    ] {
        refused(page.as_bytes());
    }
}

fn fields() -> impl Strategy<Value = Fields> {
    let fields = (
        option::of(any::<u64>()),
        option::of(any::<i64>().prop_filter("0 is none", |&at| at != 0)),
        option::of(0.0..1e300),
        option::of(any::<u64>()),
        option::of(any::<u64>()),
        option::of(1..u64::MAX),
        option::of(any::<u64>()),
    );
    fields.prop_map(
        |(ttl_nanos, expire_unix_nanos, minute_qps, age_ms, stale_ms, removals, load_micros)| {
            Fields {
                load_micros,
                removals,
                ttl_nanos,
                expire_unix_nanos,
                minute_qps,
                age_ms,
                stale_ms,
            }
        },
    )
}

proptest! {
    #[test]
    fn encoded_response_is_the_message(
        fields in fields(),
        value in prop::collection::vec(any::<u8>(), 0..300),
    ) {
        let body = encoded_with(&value, &fields);
        let message = GetResponse {
            value: Some(Cow::Borrowed(&value[..])),
            minute_qps: fields.minute_qps,
            expire: fields.expire_unix_nanos,
            ttl_nanos: fields.ttl_nanos,
            key_hash: Some(HASH),
            removals: fields.removals,
            load_micros: fields.load_micros,
            age_ms: fields.age_ms,
            stale_ms: fields.stale_ms,
        };
        prop_assert_eq!(&generated_read(&body), &message);
        let decoded = Decoded {
            value: &value,
            key_hash: Some(HASH),
            fields,
        };
        prop_assert_eq!(decode_response(&body).unwrap(), decoded);
        let generated = message.encode().unwrap();
        prop_assert_eq!(decode_response(&generated).unwrap(), decoded);
    }

    #[test]
    fn body_cut_inside_a_field_is_refused(
        fields in fields(),
        value in prop::collection::vec(any::<u8>(), 1..300),
        cut in any::<prop::sample::Index>(),
    ) {
        let body = encoded_with(&value, &fields);
        let tag = encoded_with(b"", &fields).len() - 2;
        let end = tag + 1 + cut.index(body.len() - tag - 1);
        refused(&body[..end]);
    }

    #[test]
    fn accepted_body_reads_as_by_the_generated_reader(
        body in prop::collection::vec(
            prop_oneof![
                any::<u8>(),
                prop::sample::select(vec![0x0a, 0x11, 0x18, 0xa0, 0xb0, 0x06, 0x80, 1, 2, 8]),
            ],
            0..40,
        ),
    ) {
        if let Ok(decoded) = decode_response(&body) {
            let message = generated_read(&body);
            prop_assert_eq!(decoded.value, message.value.as_deref().unwrap_or_default());
            prop_assert_eq!(decoded.fields.ttl_nanos, message.ttl_nanos);
            prop_assert_eq!(decoded.fields.age_ms, message.age_ms);
        }
    }
}
