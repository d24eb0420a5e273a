//! The values that the sender of a request for several keys has cached, as hashes.

use std::borrow::Cow;

use crate::pb::GetManyRequest;

/// The field `known` of a request with these [hashes](super::value_hash) of values, one for each key; `None`
/// if there is none.
pub(super) fn known_values(hashes: &[Option<u64>]) -> Option<Cow<'static, [u8]>> {
    if hashes.iter().all(Option::is_none) {
        return None;
    }
    let bytes = hashes
        .iter()
        .flat_map(|hash| hash.unwrap_or(NO_VALUE).to_le_bytes());
    Some(Cow::Owned(bytes.collect()))
}

/// The hashes in a request, one for each key: of the value that its sender has.
pub(crate) fn known_hashes<'r>(
    request: &'r GetManyRequest<'_>,
) -> impl Iterator<Item = Option<u64>> + 'r {
    let bytes = request.known.as_deref().unwrap_or_default();
    let hash = |bytes: &[u8]| bytes.try_into().map_or(NO_VALUE, u64::from_le_bytes);
    let hashes = bytes.chunks_exact(HASH_LEN).map(hash);
    let known = hashes.map(|hash| (hash != NO_VALUE).then_some(hash));
    known
        .chain(std::iter::repeat(None))
        .take(request.keys.len())
}

/// Whether there is a hash for each key of a request, or none at all.
pub(super) fn has_whole_hashes(request: &GetManyRequest<'_>) -> bool {
    let known = request.known.as_ref();
    known.is_none_or(|known| known.len() == HASH_LEN * request.keys.len())
}

const HASH_LEN: usize = size_of::<u64>();

/// Stands for no value. A value with this hash is sent again.
const NO_VALUE: u64 = 0;

#[cfg(test)]
mod tests {
    use super::super::body::Fields;
    use super::super::many::{ManyBody, decode_many_request, decode_many_response, many_request};
    use super::*;
    use crate::error::ErrorKind;
    use proptest::collection::vec;
    use proptest::option;
    use proptest::prelude::*;

    fn bytes_of(body: ManyBody) -> Vec<u8> {
        body.finish().iter().collect::<Vec<_>>().concat()
    }

    #[test]
    fn unchanged_values_have_fields_and_no_bytes() {
        let fields = |ttl_nanos| Fields {
            ttl_nanos,
            age_ms: Some(5),
            stale_ms: Some(6),
            ..Fields::default()
        };
        let mut body = ManyBody::default();
        body.push(7, "whole".into(), &fields(None));
        body.push_unchanged(8, &fields(Some(3)));
        body.push_missing();
        body.push_unchanged(10, &fields(None));
        let body = bytes_of(body);
        let hashes = || [7, 8, 9, 10].into_iter();
        let decoded = decode_many_response(&body, hashes()).expect("it is valid");
        let value = |at: usize| match &decoded[at] {
            Some(Ok(value)) => value.clone(),
            other => panic!("{other:?}"),
        };
        assert_eq!(&body[value(0).range], b"whole");
        assert!(!value(0).is_unchanged && decoded[2].is_none());
        for (at, ttl) in [(1, Some(3)), (3, None)] {
            let value = value(at);
            assert!(value.is_unchanged && value.range.is_empty());
            let fields = value.fields;
            let times = (fields.ttl_nanos, fields.age_ms, fields.stale_ms);
            assert_eq!(times, (ttl, Some(5), Some(6)));
        }
        // The values of two keys are exchanged.
        let error = decode_many_response(&body, [7, 10, 9, 8].into_iter());
        assert_eq!(error.expect_err("refused").kind(), ErrorKind::Peer);
        // An unchanged value that has bytes.
        let mut whole = ManyBody::default();
        whole.push(7, "whole".into(), &Fields::default());
        let mut whole = bytes_of(whole);
        *whole.last_mut().expect("a state") = 4;
        assert!(decode_many_response(&whole, [7].into_iter()).is_err());
    }

    #[test]
    fn hashes_of_another_number_of_keys_are_refused() {
        let request = |known: usize| {
            let request = GetManyRequest {
                keys: vec!["a".into(), "b".into()],
                known: Some(vec![1; known].into()),
                ..GetManyRequest::default()
            };
            crate::sink::message::ProtoMessage::encode(&request).expect("it encodes")
        };
        assert!(decode_many_request(&request(16), 9).is_ok());
        for known in [0, 1, 8, 15, 17, 24] {
            let refused = decode_many_request(&request(known), 9).expect_err("refused");
            assert!(refused.contains("hash"), "{refused}");
        }
    }

    proptest! {
        #[test]
        fn hashes_round_trip(known in vec(option::of(1_u64..), 0..20)) {
            let keys: Vec<String> = (0..known.len()).map(|n| n.to_string()).collect();
            let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
            let body = many_request(&keys, 1, true, &known).expect("it encodes");
            let decoded = decode_many_request(&body, 20).expect("it is valid");
            prop_assert_eq!(known_hashes(&decoded).collect::<Vec<_>>(), known);
        }
    }
}
