//! A group and key round-trip through their path. An arbitrary path below the base is refused, or its
//! group and key round-trip too.
#![no_main]

use larder::fuzzing::{
    DEFAULT_BASE_PATH as BASE, group_path, key_path, parse_group_path, parse_path,
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (bool, &str, &str, &str)| {
    let (plus_is_space, group, key, raw) = input;
    if !group.is_empty() {
        round_trips(group, key, plus_is_space);
    }
    let _ = parse_path(BASE, raw, plus_is_space);
    let _ = parse_group_path(BASE, raw, plus_is_space);
    if let Some((group, key)) = parse_path(BASE, &format!("{BASE}{raw}"), plus_is_space) {
        round_trips(&group, &key, plus_is_space);
    }
});

fn round_trips(group: &str, key: &str, plus_is_space: bool) {
    let path = key_path(BASE, group, key);
    assert_eq!(path.len(), path.capacity());
    let read = parse_path(BASE, &path, plus_is_space).expect("the path parses");
    assert_eq!((read.0.as_str(), read.1.as_str()), (group, key));
    let read = parse_group_path(BASE, &group_path(BASE, group), plus_is_space);
    assert_eq!(read.as_deref(), Some(group));
}
