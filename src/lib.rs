// The README is the first part of the documentation. If a link has two definitions, the first one
// counts. The definitions here come before README's, so the links to the guides lead to their pages in
// the documentation.
#![cfg_attr(
    feature = "http",
    doc = "[From Go groupcache]: manual::from_go_groupcache\n[Eviction]: manual::eviction\n[Freshness]: manual::freshness\n[Removal]: manual::removal\n\n",
    doc = include_str!("../README.md"),
)]
//!
//! # Overview
//!
//! | item | purpose |
//! |---|---|
//! | [`Group`], [`GroupBuilder`] | a named cache: gets, removal, counters; its options, each with its default |
//! | [`Registry`], [`new_group`], [`get_group`] | groups by name and the peers they share; the global registry |
//! | [`MemoryPressure`] | makes groups smaller while memory is short (Linux) |
//! | [`GroupBuilder::build_with`], [`Value`], [`value_fn`] | the getter that fills a cache: a closure that returns the value |
//! | [`Getter`], [`getter_fn`], [`Sink`] | the same as a trait, and the sink to which it writes the value in place |
//! | [`BulkGetter`], [`bulk_fn`], [`BulkSink`] | a getter that loads several keys with one call |
//! | [`ByteView`] | a cached value: a window into shared bytes |
//! | [`Context`] | deadline, cancellation and values of one call |
//! | [`Error`], [`ErrorKind`] | errors, each with a kind to match on and a text |
//! | [`http`] | [`HttpPool`](http::HttpPool): the list of peers, the client and the server; transports, handlers, tiny_http |
//! | [`Peer`] | a node of the cluster: identity, address, weight, zone |
//! | [`PeerPicker`], [`ProtoGetter`], [`PeerSet`] | peers by other means than `http` |
//! | [`pb`] | the messages on the wire |
//! | [`rendezvous`], [`consistent_hash`], [`lru`], [`singleflight`] | parts that are useful by themselves and do not depend on groups |
//! | [`clock`] | the clock that measures expiry, and a manual one for tests |

#![deny(unsafe_code)]
#![deny(missing_docs)]

// The modules:
//
//   group/             a named cache: gets, loads, removals
//   getter/            the user's getter, the value it returns     sink/      where its values go
//   byteview, context, error, peer, stats                          other types of the interface
//   store/             the entries of a group, in shards           heap/      their memory
//   singleflight       one call for many callers
//   threads/           the threads that run getters, and the state of a thread
//   peers              how a group finds and asks its peers
//   http/              the same over HTTP: client and server       wire/      their messages
//   pb/                the messages that pb-rs generated
//   rendezvous, consistent_hash/   which node owns a key           lru/       a small cache
//   dump/              the file of a dump                          checksum   of dumps and values
//   memory_pressure/   makes groups smaller when memory is short   panics     of user code
//   clock, random, sync            small tools
//   manual             the guides, in the documentation only
//   loom_models/, fuzzing                                              for tests only

mod byteview;
mod checksum;
pub mod clock;
pub mod consistent_hash;
mod context;
mod dump;
mod error;
#[cfg(all(larder_fuzz, feature = "http"))]
#[doc(hidden)]
pub mod fuzzing;
mod getter;
mod group;
mod heap;
#[cfg(feature = "http")]
pub mod http;
#[cfg(all(test, larder_loom))]
mod loom_models;
pub mod lru;
#[cfg(all(any(doc, doctest), feature = "http"))]
pub mod manual;
mod memory_pressure;
mod panics;
pub mod pb;
mod peer;
mod peers;
mod random;
pub mod rendezvous;
pub mod singleflight;
mod sink;
mod stats;
mod store;
mod sync;
mod threads;
#[cfg(feature = "http")]
mod wire;

pub use byteview::{ByteView, Reader};
pub use clock::Clock;
pub use context::{CancelHandle, Context};
pub use error::{BoxError, Error, ErrorKind, FailedPeer, Partial, Result};
pub use getter::bulk::{BulkGetter, BulkSink, bulk_fn};
pub use getter::value::Value;
pub use getter::{Getter, getter_fn, value_fn};
pub use group::registry::{Registry, get_group, new_group};
pub use group::{
    AdmissionFn, Answer, DumpReport, Explanation, GetOptions, GetOutcome, Group, GroupBuilder,
    HotAdmission, KeyRate, PeriodicDump, RestoreOptions, RestoreProgress, RestoreReport,
    SetOptions, Source, WarmProgress, Warming, WeakGroup,
};
pub use memory_pressure::{MemoryPressure, MemoryPressureBuilder, MemoryStatus};
pub use peer::Peer;
pub use peers::{KeyRoute, NoPeers, PeerPicker, PeerResponse, PeerSet, ProtoGetter, Route};
#[cfg(feature = "json")]
pub use sink::JsonSink;
pub use sink::message::{ProtoDecode, ProtoMessage};
pub use sink::{
    AllocatingByteSliceSink, ByteViewSink, ProtoSink, Sink, StringSink, TruncatingByteSliceSink,
};
pub use stats::{AtomicInt, CacheStats, CacheType, Stats};
pub use store::{Entry, Eviction, Forecast, ForecastPoint, RemovalCause};
