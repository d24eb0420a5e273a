//! Arbitrary bytes are a head, the beginning of a head, or refused. The result does not depend on the
//! pieces in which they arrive.
#![no_main]

use larder::fuzzing::parse_head;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u8, &[u8])| {
    let (step, bytes) = input;
    let whole = parse_head(bytes, bytes.len());
    assert_eq!(parse_head(bytes, step.into()), whole);
    if let Some(Ok((len, ..))) = whole {
        assert!(len <= bytes.len());
        // Bytes after a head do not change the result.
        assert_eq!(parse_head(&bytes[..len], len), whole);
    }
});
