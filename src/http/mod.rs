//! Peers over HTTP: the pool, its client and its server.
//!
//! - `pool`, `builder`: [`HttpPool`] and its options.
//! - `config`: the numbers that all of them share.
//! - `client`: finds the peer that owns a key and asks it.
//! - `server`: answers peers, and mounts the same answers in a tiny_http server.
//!
//! Client and server do not import each other. What both need lies in `crate::wire`.

mod builder;
mod client;
mod config;
mod pool;
mod server;

/// The parsers, for the targets in `fuzz/`.
#[cfg(larder_fuzz)]
pub(crate) mod fuzzed {
    pub(crate) use super::client::response::{Pieces, read_response};
    pub(crate) use super::client::url::PeerUrl;
    pub(crate) use super::server::head::{NO_FIELDS, parse};
}

pub use builder::HttpPoolBuilder;
pub use client::transport::{Transport, TransportRequest, TransportResponse};
pub use config::HttpClient;
pub use pool::HttpPool;
pub use server::handler::{Handler, Request};
pub use server::response::Response;
#[cfg(feature = "tiny_http")]
pub use server::tiny;
pub use server::{Server, ServerBuilder};

pub use crate::wire::Body;
