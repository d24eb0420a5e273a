//! One cluster of golang/groupcache nodes and larder nodes, in processes of their own.
//!
//! Ignored unless asked for: `tests/interop/run.sh` builds the two programs, `go/` and
//! `larder_node/`, and runs this. Each test starts its own nodes; `--nocapture` shows what they
//! found.
#![cfg(feature = "http")]

mod agreement;
mod cluster;
mod errors;
mod faults;
mod keys;
mod load;
mod net_http;
mod rings;
mod rollover;
mod values;
