//! Arbitrary bodies are requests or responses for several keys, or refused. The limits are respected.
#![no_main]

use larder::fuzzing::{decode_many_request, decode_many_response};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (Vec<u64>, &[u8])| {
    let (hashes, body) = input;
    let keys = hashes.len();
    if let Some(asked) = decode_many_request(body, keys) {
        assert!(asked.len() <= keys);
    }
    if let Some(values) = decode_many_response(body, &hashes) {
        assert_eq!(values.len(), keys);
        for range in values.into_iter().flatten() {
            assert!(body.get(range).is_some());
        }
    }
});
