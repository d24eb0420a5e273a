//! The server and the peer path in tiny_http.

mod conformance;
mod limits;
mod serving;
mod shutdown;
#[cfg(target_os = "linux")]
mod starvation;
mod support;
