//! The client of a pool: picks the peer that owns a key and asks it.

pub(crate) mod auto;
pub(crate) mod body;
pub(crate) mod combiner;
pub(crate) mod connection;
pub(crate) mod direct;
pub(crate) mod peer;
pub(crate) mod permits;
pub(crate) mod picker;
pub(crate) mod pool;
pub(crate) mod resolve;
pub(crate) mod response;
pub(crate) mod shared;
pub(crate) mod sharing;
pub(crate) mod target;
pub(crate) mod transport;
pub(crate) mod ureq;
pub(crate) mod url;
