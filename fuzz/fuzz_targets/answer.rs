//! Any bytes are an answer or refused, the same in whatever pieces they come; what follows an answer
//! does not change it, and none of those that keep the connection is whole before its last byte.
#![no_main]

use larder::fuzzing::read_answer;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u16, u16, u32, &[u8])| {
    let (step, room, before, bytes) = input;
    let whole = read_answer(bytes, usize::MAX, 1 << 20, 0);
    let pieces = read_answer(bytes, step.into(), room.into(), before.into());
    assert_eq!(pieces, whole);
    if let Some((_, body, keep, len)) = &whole {
        assert!(body.len() < *len && *len <= bytes.len());
        assert_eq!(read_answer(&bytes[..*len], usize::MAX, 1 << 20, 0), whole);
        if *keep {
            assert_eq!(
                read_answer(&bytes[..*len - 1], usize::MAX, 1 << 20, 0),
                None
            );
        }
    }
});
