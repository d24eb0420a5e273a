use super::*;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

/// Value, time to live, and age.
type Value = (Vec<u8>, Option<u64>, Option<u64>);

fn fields(ttl_nanos: Option<u64>, age_ms: Option<u64>, removals: Option<u64>) -> Fields {
    Fields {
        ttl_nanos,
        age_ms,
        removals,
        ..Fields::default()
    }
}

fn encoded(values: &[Option<Value>]) -> Vec<u8> {
    let mut body = ManyBody::default();
    for (hash, value) in (0..).zip(values) {
        match value {
            None => body.push_missing(),
            Some((value, ttl, age)) => {
                body.push(hash, value.as_slice().into(), &fields(*ttl, *age, None))
            }
        }
    }
    body.finish().iter().collect::<Vec<_>>().concat()
}

/// Reads a response for the keys with the hashes 0, 1, 2…
fn decode(body: &[u8], keys: u32) -> Result<Vec<Option<Result<ManyValue>>>> {
    let hashes: Vec<u64> = (0..keys.into()).collect();
    decode_many_response(body, hashes.into_iter())
}

#[test]
fn value_of_another_key_is_refused() {
    let value = |text: &str| Some((text.as_bytes().to_vec(), None, None));
    let body = encoded(&[value("a"), None, value("c")]);
    assert!(decode(&body, 3).is_ok());
    for hashes in [[2, 1, 0], [0, 2, 1], [1, 2, 3]] {
        let error = decode_many_response(&body, hashes.into_iter()).expect_err("refused");
        assert!(error.to_string().contains("another key"), "{error}");
    }
    // A second age for the only value is refused.
    let aged = encoded(&[Some((b"x".to_vec(), None, Some(1)))]);
    assert!(decode(&aged, 1).is_ok());
    assert!(decode(&[&aged[..], &[0xc0, 6, 1]].concat(), 1).is_err());
    // The field of a value has to be long enough for the hash.
    let short = [0xba, 6, 1, b'x', 0xaa, 6, 1, FOUND];
    assert!(decode(&short, 1).is_err());
}

#[test]
fn error_of_a_key_keeps_its_kind_and_text() {
    let mut body = ManyBody::default();
    body.push(0, "a".into(), &fields(Some(7), Some(1), None));
    body.push_error(&Error::not_found("no such colour"));
    body.push_missing();
    body.push_error(&Error::new(ErrorKind::Getter, "é".repeat(1000)));
    body.push_error(&Error::new(ErrorKind::Cancelled, ""));
    body.push(5, "b".into(), &Fields::default());
    let body: Vec<u8> = body.finish().iter().collect::<Vec<_>>().concat();
    let slots = decode(&body, 6).expect("it is valid");
    let error = |at: usize| match &slots[at] {
        Some(Err(error)) => (error.kind(), error.to_string()),
        other => panic!("{other:?}"),
    };
    assert_eq!(error(1), (ErrorKind::NotFound, "no such colour".into()));
    assert_eq!(
        error(3),
        (ErrorKind::Getter, "é".repeat(MAX_ERROR_TEXT / 2))
    );
    assert_eq!(error(4).0, ErrorKind::Peer);
    assert!(slots[2].is_none());
    let value = |at: usize| slots[at].as_ref().and_then(|slot| slot.as_ref().ok());
    let text = |at: usize| value(at).map(|value| &body[value.range.clone()]);
    assert_eq!((text(0), text(5)), (Some(&b"a"[..]), Some(&b"b"[..])));
    // One error less than keys that failed, and one more.
    for wrong in [5, 7] {
        assert!(decode(&body, wrong).is_err());
    }
    let error = [0xca, 6, 2, b'i', b'o'];
    let failed = [0xaa, 6, 1, FAILED];
    assert!(decode(&[error, error].concat(), 0).is_err());
    assert!(decode(&failed, 1).is_err());
    assert!(decode(&[&error[..], &failed].concat(), 1).is_ok());
}

#[test]
fn group_path_is_parsed_and_other_paths_are_not() {
    let path = group_path("/_groupcache/", "a b/c");
    assert_eq!(path, "/_groupcache/a%20b%2Fc");
    let parse = |path| parse_group_path("/_groupcache/", path, false);
    assert_eq!(parse(&path), Some(Ok(Cow::Borrowed("a b/c"))));
    for other in ["/", "/_groupcache/", "/_groupcache/a/b", "/_groupcache/a/"] {
        assert_eq!(parse(other), None, "{other}");
    }
    assert!(matches!(parse("/_groupcache/%zz"), Some(Err(_))));
}

#[test]
fn request_with_too_many_keys_is_refused() {
    let keys = vec![""; 1000];
    let body = many_request(&keys, 1, true, &[]).expect("it encodes");
    assert!(decode_many_request(&body, 1000).is_ok());
    assert!(decode_many_request(&body, 999).is_err(), "a few too many");
    assert!(decode_many_request(&body, 10).is_err(), "far too many");
}

#[test]
fn body_of_another_message_is_refused() {
    // The second body is a `GetResponse` with an empty value.
    for body in [&b""[..], &[0x0a, 0], b"<html>"] {
        let error = decode(body, 1).expect_err("refused");
        assert_eq!(error.kind(), ErrorKind::Peer);
    }
    let one = encoded(&[Some((b"x".to_vec(), None, None))]);
    assert!(decode(&one, 1).is_ok());
    assert!(decode(&one, 2).is_err());
    assert!(
        decode(
            &[&one[..], &[0xba, 6, 8, 0, 0, 0, 0, 0, 0, 0, 0]].concat(),
            1
        )
        .is_err()
    );
}

#[test]
fn stamps_of_removals_follow_one_digest() {
    let mut body = ManyBody::default();
    body.push(1, "a".into(), &fields(None, None, Some(0x5_0000_0007)));
    body.push_missing();
    body.push(3, "c".into(), &fields(None, None, Some(0x6_0000_0008)));
    let body = body.finish().iter().collect::<Vec<_>>().concat();
    let decoded = decode_many_response(&body, [1, 2, 3].into_iter()).expect("it decodes");
    let removals: Vec<_> = decoded
        .iter()
        .flatten()
        .map(|value| value.as_ref().expect("no error").fields.removals)
        .collect();
    assert_eq!(removals, [Some(0x5_0000_0007), Some(0x5_0000_0008)]);
    // One byte of the stamps is missing.
    let stamps = body.len() - 13;
    let mut short = body[..body.len() - 1].to_vec();
    short[stamps] -= 1;
    let error = decode_many_response(&short, [1, 2, 3].into_iter()).expect_err("too short");
    assert!(error.to_string().contains("stamp"), "{error}");
}

#[test]
fn rates_and_stale_times_are_those_of_their_values() {
    let with = |minute_qps, stale_ms| Fields {
        minute_qps,
        stale_ms,
        ..Fields::default()
    };
    let mut body = ManyBody::default();
    body.push(0, "a".into(), &with(None, Some(u64::MAX)));
    body.push_missing();
    body.push(2, "c".into(), &with(Some(2.5), None));
    body.push(3, "d".into(), &with(Some(0.0), Some(7)));
    let body = body.finish().iter().collect::<Vec<_>>().concat();
    let decoded = decode(&body, 4).expect("it is valid");
    let numbers = |decoded: &[Option<Result<ManyValue>>]| -> Vec<_> {
        let fields = |slot: &Result<ManyValue>| slot.as_ref().expect("no error").fields;
        let fields = decoded.iter().flatten().map(fields);
        fields
            .map(|fields| (fields.minute_qps, fields.stale_ms))
            .collect()
    };
    let longest = u64::from(u32::MAX - 1);
    assert_eq!(
        numbers(&decoded),
        [
            (None, Some(longest)),
            (Some(2.5), None),
            (Some(0.0), Some(7))
        ]
    );
    // A rate of infinity and one that is missing.
    let rates = |bits: &[u32]| {
        let mut more = body.clone();
        push_numbers(&mut more, RATES, bits);
        decode(&more, 4)
    };
    assert!(rates(&[1, 2]).is_err());
    let infinite = f32::INFINITY.to_bits();
    let decoded = rates(&[infinite, 0, 0]).expect("it is valid");
    let rates: Vec<_> = numbers(&decoded).iter().map(|number| number.0).collect();
    assert_eq!(rates, [None, Some(0.0), Some(0.0)]);
}

proptest! {
    #[test]
    fn response_round_trips(
        values in vec(
            option::of((
                vec(any::<u8>(), 0..1200),
                option::of(any::<u64>()),
                option::of(0..u64::MAX),
            )),
            0..12,
        ),
    ) {
        let body = encoded(&values);
        let decoded = decode(&body, values.len() as u32).unwrap();
        let back: Vec<_> = decoded
            .into_iter()
            .map(|slot| slot.map(|value| value.expect("no error")))
            .map(|slot| slot.map(|v| (body[v.range].to_vec(), v.fields.ttl_nanos, v.fields.age_ms)))
            .collect();
        prop_assert_eq!(back, values);
    }

    #[test]
    fn request_round_trips(
        keys in vec(any::<String>(), 0..20),
        max_bytes: u32,
        load: bool,
    ) {
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        let body = many_request(&keys, max_bytes as usize, load, &[]).unwrap();
        let decoded = decode_many_request(&body, 20).unwrap();
        prop_assert_eq!(decoded.keys, keys);
        prop_assert_eq!(decoded.max_bytes, Some(u64::from(max_bytes)));
        prop_assert_eq!(decoded.load.unwrap_or_default(), load);
    }

    #[test]
    fn arbitrary_bytes_do_not_panic(body in vec(any::<u8>(), 0..200), keys in 0_u32..9) {
        let _ = decode_many_request(&body, keys as usize);
        if let Ok(slots) = decode(&body, keys) {
            prop_assert_eq!(slots.len(), keys as usize);
        }
    }
}
