//! The values of single header fields and of the request's target are valid or refused. An error that
//! is read and sent on keeps its kind.
#![no_main]

use std::time::Duration;

use larder::fuzzing::{
    is_message, parse_known, parse_timeout, read_error, read_unchanged, split_target,
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u16, &str, &[u8], &str)| {
    let (status, text, bytes, field) = input;
    let day = Duration::from_secs(24 * 60 * 60);
    assert!(parse_timeout(bytes).is_none_or(|timeout| timeout <= day));
    let _ = is_message(bytes, field.as_bytes());
    if let Some(known) = parse_known(field) {
        assert_eq!(field, known);
    }
    // Written again, it is read again.
    if let Some(written) = read_unchanged(field) {
        assert_eq!(read_unchanged(&written).as_ref(), Some(&written));
    }
    if let Some((path, _)) = split_target("GET", text) {
        assert!(path.starts_with('/'));
        assert!(path.len() <= text.len().max(1));
    }
    for header in [None, Some(field)] {
        let (error, sent_as, code) = read_error(status, header, text);
        assert!(error.to_string().len() <= text.len() + 1000);
        let (again, ..) = read_error(sent_as, Some(code), &error.to_string());
        assert!(again.kind() == error.kind() || code == "getter");
    }
});
