//! Clusters of golang/groupcache nodes and larder nodes, in processes of their own.
//!
//! Ignored by default: `tests/interop/run.sh` builds the two programs, `go/` and `larder_node/`, and
//! runs these tests. Each test starts its own nodes; `--nocapture` shows their figures.
#![cfg(feature = "ureq")]

mod agreement;
mod cluster;
mod errors;
mod faults;
mod keys;
mod load;
mod mailgun;
mod net_http;
mod rings;
mod rollover;
mod values;
