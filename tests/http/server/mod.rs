//! The server and the peer path in tiny_http.

mod budgets;
mod cache_status;
mod changes;
mod conformance;
mod limits;
mod room;
mod serving;
mod shutdown;
#[cfg(target_os = "linux")]
mod starvation;
pub mod support;
mod unread;
mod waiting;
