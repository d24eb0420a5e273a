//! The system has no memory left for a value.

use std::fs;
use std::process::Command;

use larder::{ByteView, Context, SetOptions, Value};

use crate::common::*;

const LEN: usize = 64 << 20;

#[test]
fn value_for_which_there_is_no_memory_is_returned_and_not_cached() {
    // In a process of its own, because all threads share the limit.
    let output = Command::new(std::env::current_exe().expect("a path"))
        .args(["--exact", "no_memory::process_at_its_limit", "--ignored"])
        .output()
        .expect("it starts");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text} {:?}", output.status);
    assert!(text.contains("1 passed"), "{text}");
}

#[test]
#[ignore = "the process of another test"]
fn process_at_its_limit() {
    let value = ByteView::from(vec![7; LEN]);
    let shared = value.clone();
    let group = alone("large")
        .max_capacity(1 << 30)
        .max_value_size(LEN)
        .build_with(move |_, _| Ok::<_, larder::Error>(Value::from(shared.clone())))
        .expect("a group");
    let before = group.get("before").expect("a value");
    assert!(before == value && group.contains_key("before"));
    limit_addresses(address_space() + (LEN / 2) as u64);
    let got = group.get("key").expect("a value");
    assert!(got == value);
    if group.contains_key("key") {
        eprintln!("the system does not limit addresses");
        return;
    }
    let options = SetOptions::default();
    let set = group.set(&Context::background(), "before", value, options);
    set.expect("it is set");
    assert!(!group.contains_key("before"), "the old value is gone");
}

/// The addresses of this process that are in use, in bytes.
fn address_space() -> u64 {
    let text = fs::read_to_string("/proc/self/status").expect("Linux has it");
    let line = text.lines().find_map(|line| line.strip_prefix("VmSize:"));
    let size = line.and_then(|size| size.trim().strip_suffix(" kB"));
    size.and_then(|size| size.parse::<u64>().ok())
        .expect("a size")
        * 1024
}

fn limit_addresses(bytes: u64) {
    let bytes = bytes as libc::rlim_t;
    let limit = libc::rlimit {
        rlim_cur: bytes,
        rlim_max: bytes,
    };
    // SAFETY: the pointer is that of a limit.
    let result = unsafe { libc::setrlimit(libc::RLIMIT_AS, &raw const limit) };
    assert_eq!(result, 0);
}
