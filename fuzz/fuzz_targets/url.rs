//! An arbitrary text is refused, or its canonical URL parses to itself.
#![no_main]

use larder::fuzzing::parse_url;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Some(spelling) = parse_url(text) {
        assert_eq!(parse_url(&spelling).as_ref(), Some(&spelling));
    }
});
