//! Any text is a peer's URL, which reads the same again, or refused.
#![no_main]

use larder::fuzzing::parse_url;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Some(spelling) = parse_url(text) {
        assert_eq!(parse_url(&spelling).as_ref(), Some(&spelling));
    }
});
