//! An arbitrary body is refused, or its fields round-trip.
#![no_main]

use larder::fuzzing::{decode_response, encode_response};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|body: &[u8]| {
    if let Some(fields) = decode_response(body) {
        let again = encode_response(fields);
        assert_eq!(decode_response(&again), Some(fields));
    }
});
