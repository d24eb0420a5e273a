//! Arbitrary bodies are requests or responses for several keys, or refused. The limits are respected.
#![no_main]

use larder::fuzzing::{decode_many_request, decode_many_response};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u8, &[u8])| {
    let (keys, body) = input;
    if let Some(asked) = decode_many_request(body, keys.into()) {
        assert!(asked.len() <= keys.into());
    }
    if let Some(values) = decode_many_response(body, keys.into()) {
        assert_eq!(values.len(), usize::from(keys));
        for range in values.into_iter().flatten() {
            assert!(body.get(range).is_some());
        }
    }
});
