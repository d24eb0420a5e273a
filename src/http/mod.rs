//! Peers over HTTP: the pool, its server and its client.

mod buffers;
mod resolve;
mod tcp;
mod transport;
mod ureq_transport;
mod url;

pub use transport::{Transport, TransportRequest, TransportResponse};
