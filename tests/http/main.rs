//! The HTTP pool through its public API, over real sockets.
#![cfg(feature = "http")]

mod client;
mod cluster;
mod server;

/// The hash with which larder's server says which key it answers: FNV-1a of 64 bits.
fn key_hash(group: &str, key: &str) -> u64 {
    let bytes = group.bytes().chain([0xff]).chain(key.bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
    })
}
