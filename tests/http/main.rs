//! The HTTP pool through its public API, over real sockets.
#![cfg(feature = "http")]

mod client;
mod cluster;
mod server;
