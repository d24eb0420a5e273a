//! The server and the tiny_http front, over real sockets.

mod conformance;
mod limits;
mod serving;
mod shutdown;
#[cfg(target_os = "linux")]
mod starvation;
mod support;
