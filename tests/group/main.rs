//! Groups through the public API: the behaviours that the suites of golang/groupcache and its forks
//! test, and this crate's own invariants.
//!
//! All tests are in one binary, so that the helpers are compiled and linked once.

#![cfg(not(larder_loom))]

mod common;
#[path = "../testpb/mod.rs"]
mod testpb;

mod age;
mod answers;
mod bad_input;
mod bulk;
mod changes;
mod deadlines;
mod dump;
mod expiry;
mod failover;
mod fence;
mod freshness;
mod groupcache;
mod handoff;
mod herd;
mod hooks;
mod hot_keys;
mod keys;
mod listeners;
#[cfg(target_os = "linux")]
mod no_memory;
mod one_hop;
mod origin;
mod patience;
mod peers;
mod pressure;
mod recursion;
mod remembered_failures;
mod removal;
mod replacing;
#[cfg(target_os = "linux")]
mod resident_memory;
mod returned_values;
mod revalidation;
mod sinks;
mod soft_timeouts;
mod stale_batches;
mod stats;
mod threads;
mod user_code;
mod warm;
