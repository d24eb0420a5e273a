//! Peers over HTTP: the pool, its server and its client.

mod accept;
mod answer;
mod body;
mod builder;
mod combiner;
mod connection;
mod connections;
mod dial;
mod exchange;
mod handler;
mod head;
mod idle;
mod input;
mod lean;
mod limits;
mod listener;
mod output;
mod peer;
mod peer_connection;
mod peer_transport;
mod permits;
mod picker;
mod pool;
mod repeat;
mod resolve;
mod response;
mod server;
mod shared;
mod sharing;
mod socket;
mod socket_timeout;
mod take_back;
#[cfg(feature = "tiny_http")]
pub mod tiny;
mod transport;
mod ureq_client;
mod ureq_connector;
mod url;

#[cfg(all(test, not(larder_loom)))]
mod tests;

/// The parsers, for the targets in `fuzz/`.
#[cfg(larder_fuzz)]
pub(crate) mod fuzzed {
    pub(crate) use super::head::{NO_FIELDS, Scan, parse, scan};
    pub(crate) use super::peer_connection::pieces::{Pieces, read_answer};
    pub(crate) use super::url::PeerUrl;
}

pub use builder::HttpPoolBuilder;
pub use handler::{Handler, Request};
pub use peer_transport::HttpClient;
pub use pool::HttpPool;
pub use response::{Body, Response};
pub use server::{Server, ServerBuilder};
pub use transport::{Transport, TransportRequest, TransportResponse};
