//! Arbitrary bodies are changes, or refused. The keys of a removal read the same when they are written
//! again.
#![no_main]

use larder::fuzzing::{check_changes, decode_keys, encode_keys};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u8, &[u8])| {
    let (most, body) = input;
    check_changes(body);
    if let Some(keys) = decode_keys(body, most.into()) {
        assert!(keys.len() <= most.into());
        assert_eq!(
            decode_keys(&encode_keys("group", &keys), most.into()),
            Some(keys)
        );
    }
});
