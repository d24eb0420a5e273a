//! The HTTP client and the HTTP server, through the public API and over real sockets.
#![cfg(feature = "http")]

mod server;
