//! Peers over HTTP.

mod accept;
mod answer;
mod connection;
mod connections;
mod handler;
mod head;
mod input;
mod limits;
mod listener;
mod output;
mod response;
mod server;
#[cfg(feature = "tiny_http")]
pub mod tiny;

#[cfg(all(test, not(larder_loom)))]
mod tests;

pub use handler::{Handler, Request};
pub use response::{Body, Response};
pub use server::{Server, ServerBuilder};
