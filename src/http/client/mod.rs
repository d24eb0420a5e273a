//! The client of a pool: finds the peer that owns a key and asks it.
//!
//! - `picker`: the list of peers, and the owner of a key, now and before the last change.
//! - `peer`: what one peer is asked, and how its answers are read.
//! - `health`: whether a peer is asked: its recent exchanges.
//! - `transport`: carries a request to a peer and brings the response.

pub(crate) mod health;
pub(crate) mod peer;
pub(crate) mod picker;
pub(crate) mod transport;
