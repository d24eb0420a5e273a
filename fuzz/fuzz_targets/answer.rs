//! Arbitrary bytes are a response or are rejected. The result does not depend on the pieces in which
//! they arrive, nor on bytes after the response. A response that keeps the connection open is not
//! complete before its last byte.
#![no_main]

use larder::fuzzing::read_response;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u16, u16, &[u8])| {
    let (step, room, bytes) = input;
    let whole = read_response(bytes, usize::MAX, 1 << 20);
    let pieces = read_response(bytes, step.into(), room.into());
    assert_eq!(pieces, whole);
    if let Some((_, body, keep, len)) = &whole {
        assert!(body.len() < *len && *len <= bytes.len());
        assert_eq!(read_response(&bytes[..*len], usize::MAX, 1 << 20), whole);
        if *keep {
            assert_eq!(read_response(&bytes[..*len - 1], usize::MAX, 1 << 20), None);
        }
    }
});
