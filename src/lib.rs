//! A cache that a set of processes share, and that fills itself.

#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod builder;
mod byteview;
pub mod clock;
pub mod consistent_hash;
mod context;
mod error;
#[cfg(all(larder_fuzz, feature = "http"))]
#[doc(hidden)]
pub mod fuzzing;
mod getter;
mod group;
#[cfg(feature = "http")]
pub mod http;
mod load;
mod loader_pool;
#[cfg(all(test, larder_loom))]
mod loom_models;
pub mod lru;
mod message;
pub mod pb;
mod peers;
mod random;
mod recursion;
mod registry;
pub mod singleflight;
mod sink;
mod stats;
mod store;
mod sync;
#[cfg(feature = "http")]
mod wire;

pub use builder::GroupBuilder;
pub use byteview::{ByteView, Reader};
pub use clock::Clock;
pub use context::{Canceller, Context};
pub use error::{BoxError, Error, ErrorKind, Result};
pub use getter::{Getter, getter_fn};
pub use group::Group;
pub use load::{AdmissionFn, HotAdmission};
pub use message::{ProtoDecode, ProtoMessage};
pub use peers::{NoPeers, PeerPicker, PeerResponse, PeerSet, ProtoGetter};
pub use registry::{Registry, get_group, new_group};
#[cfg(feature = "json")]
pub use sink::JsonSink;
pub use sink::{
    AllocatingByteSliceSink, ByteViewSink, ProtoSink, Sink, StringSink, TruncatingByteSliceSink,
};
pub use stats::{AtomicInt, CacheStats, CacheType, Stats};
pub use store::{Eviction, RemovalCause};
