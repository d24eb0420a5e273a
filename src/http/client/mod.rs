//! The client of a pool: picks the peer that owns a key and asks it.

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
