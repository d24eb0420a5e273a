//! Any bytes are a response or rejected, the same in whatever pieces they arrive. Bytes that follow a
//! response do not change it, and one that keeps the connection is not whole before its last byte.
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
