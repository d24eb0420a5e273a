//! After any sequence of allocations, resizes, drops and releases, a heap holds the blocks of a naive model.
#![no_main]

use larder::fuzzing;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|steps: &[u8]| fuzzing::check_heap(steps));
