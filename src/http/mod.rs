//! Peers over HTTP: the pool, its client and its server.
//!
//! - `pool`, `builder`: [`HttpPool`] and its options.
//! - `config`: the options that pool, client and server share.
//! - `membership`: compares the lists of peers of the processes.
//! - `client`: finds the peer that owns a key and asks it.
//! - `server`: responds to peers, by itself or inside a tiny_http server.
//!
//! Client and server do not import each other. Code that both use is in `crate::wire`.

mod builder;
mod client;
mod config;
mod membership;
mod pool;
mod server;

/// The parsers, for the targets in `fuzz/`.
#[cfg(larder_fuzz)]
pub(crate) mod fuzzed {
    pub(crate) use super::client::transport::response::{Pieces, read_response};
    pub(crate) use super::client::transport::url::PeerUrl;
    pub(crate) use super::server::head::{NO_FIELDS, parse, split_target};
}

pub use builder::HttpPoolBuilder;
pub use client::health::status::{PeerFailure, PeerState, PeerStatus};
pub use client::transport::{Transport, TransportRequest, TransportResponse};
pub use config::HttpClient;
pub use pool::HttpPool;
pub use server::handler::{Handler, Request};
pub use server::limits::ServerLimits;
pub use server::response::Response;
#[cfg(feature = "tiny_http")]
pub use server::tiny;
pub use server::{Server, ServerBuilder};

pub use crate::wire::Body;
