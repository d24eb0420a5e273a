//! The client of a pool: finds the peer that owns a key and asks it.
//!
//! - `picker`: the list of peers, and the owner of a key.
//! - `peer`: the request for one key, and the meaning of each response.
//! - `batch`, `batch_request`: the keys of several threads in one request.
//! - `permits`: a bound for the requests that are under way.
//! - `url`, `resolve`: the URL of a peer and its addresses.
//! - `transport`: the trait that carries a request; `auto` chooses its implementation.

pub(crate) mod auto;
pub(crate) mod batch;
pub(crate) mod batch_request;
pub(crate) mod dial;
pub(crate) mod exchange;
pub(crate) mod idle;
pub(crate) mod lean;
pub(crate) mod peer;
pub(crate) mod peer_connection;
pub(crate) mod peer_transport;
pub(crate) mod permits;
pub(crate) mod picker;
pub(crate) mod resolve;
pub(crate) mod socket;
pub(crate) mod socket_timeout;
pub(crate) mod take_back;
pub(crate) mod transport;
pub(crate) mod ureq_client;
pub(crate) mod ureq_connector;
pub(crate) mod url;
