//! Processes that share a cache while faults happen to them, and a judge of the values that they read.
//!
//! - `clock`: the time of this machine, which all processes share.
//! - `source`: the versions of the keys: where the getters read, and which removals announce.
//! - `records`: files in which each process notes its gets and its removals.
//! - `judge`: finds gets that returned a value older than a removal had promised.
//! - `node`, `workload`, `network`: a process: its commands, its threads, and disturbed requests.
//! - `process`, `namespaces`: starts and kills processes, and gives each a network of its own.
//! - `cluster`: a set of processes, which can be killed, stopped, cut off and so on.
//! - `faults`: the order of these events.

pub mod clock;
pub mod cluster;
pub mod faults;
pub mod judge;
pub mod namespaces;
pub mod network;
pub mod node;
pub mod process;
pub mod random;
pub mod records;
pub mod source;
pub mod workload;
