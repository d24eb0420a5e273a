//! The behaviour of groups through the public API: golang/groupcache's suite and its forks', by
//! behaviour, and this crate's own invariants.
//!
//! One binary, so that the helpers are compiled and linked once.

#![cfg(not(larder_loom))]

mod common;
#[path = "../testpb/mod.rs"]
mod testpb;

mod bad_input;
mod deadlines;
mod expiry;
mod failover;
mod groupcache;
mod herd;
mod hooks;
mod keys;
mod listeners;
mod one_hop;
mod peers;
mod recursion;
mod removal;
mod replacing;
mod sinks;
mod stats;
mod threads;
mod user_code;
#[cfg(feature = "http")]
mod user_code_http;
