//! Any text is accepted as a file in which Linux reports memory, and no folder leads out of its mount.
#![no_main]

use larder::fuzzing;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| fuzzing::check_memory_files(text));
