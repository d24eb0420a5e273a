//! A cache that a set of processes share, and that fills itself.

#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod byteview;
pub mod clock;
pub mod consistent_hash;
mod context;
mod error;
mod getter;
mod group;
#[cfg(feature = "http")]
pub mod http;
pub mod lru;
mod message;
pub mod pb;
mod peers;
mod registry;
mod sink;
mod stats;
mod sync;

pub use byteview::{ByteView, Reader};
pub use clock::Clock;
pub use context::{Canceller, Context};
pub use error::{BoxError, Error, ErrorKind, Result};
pub use getter::{Getter, getter_fn};
pub use group::Group;
pub use message::{ProtoDecode, ProtoMessage};
pub use peers::{NoPeers, PeerPicker, PeerResponse, PeerSet, ProtoGetter};
pub use registry::Registry;
#[cfg(feature = "json")]
pub use sink::JsonSink;
pub use sink::{
    AllocatingByteSliceSink, ByteViewSink, ProtoSink, Sink, StringSink, TruncatingByteSliceSink,
};
pub use stats::{AtomicInt, CacheStats, CacheType, Stats};
