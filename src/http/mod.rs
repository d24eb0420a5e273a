//! Peers over HTTP: the pool, its server and its client.

mod buffers;
mod builder;
mod client;
mod picker;
mod pool;
mod resolve;
mod tcp;
mod transport;
mod ureq_transport;
mod url;

pub use builder::HttpPoolBuilder;
pub use pool::HttpPool;
pub use transport::{Transport, TransportRequest, TransportResponse};
