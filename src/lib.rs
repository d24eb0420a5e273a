//! A cache that a set of processes share, and that fills itself.
//!
//! Each process links this crate, owns a part of the keys, fills itself from a getter that the
//! program gives, and asks its peers for the rest. It is golang/groupcache's design for plain
//! threads: calls block, there is no async runtime, and values are bytes.
//!
#![cfg_attr(feature = "http", doc = "```no_run")]
#![cfg_attr(not(feature = "http"), doc = "```ignore")]
//! use larder::http::HttpPool;
//!
//! fn main() -> larder::Result<()> {
//!     // What a key's value is: asked once, at the key's owner, for all who want it at that time.
//!     let squares = larder::new_group("squares", 64 << 20, larder::getter_fn(|_ctx, key, dest| {
//!         let n: u32 = key.parse()?;
//!         Ok(dest.set_str(&u64::from(n).pow(2).to_string())?)
//!     }))?;
//!
//!     // Who shares it: this process, and the same list in every process.
//!     let pool = HttpPool::new("http://10.0.0.1:8000")?;
//!     pool.set(["http://10.0.0.1:8000", "http://10.0.0.2:8000", "http://10.0.0.3:8000"])?;
//!     let _server = pool.serve("0.0.0.0:8000")?;
//!
//!     assert_eq!(squares.get("12")?, "144");
//!     Ok(())
//! }
//! ```
//!
//! # The way of one get
//!
//! On one of the machines, all of which run the same code, `group.get("foo")`:
//!
//! 1. Is "foo" in this process's store, because it owns the key or because it has a copy? Then that
//!    is the answer. It costs a look-up under a shared lock, and no byte is copied.
//! 2. Who owns "foo" on the hash ring? If a peer does, this process asks that peer, keeps a copy in
//!    the hot share of the store, and answers. If the peer fails, it asks the next peer on the ring,
//!    then loads the key itself.
//! 3. If this process owns it: it runs the getter, keeps the value in the main share, and answers.
//!    All who ask for the key at the same time, here or at peers, share one load.
//!
//! Four things always hold:
//!
//! - **One hop.** A request that came from a peer is answered from the store or by the getter, and
//!   never forwarded. Two processes that disagree about the ring do not wait for each other.
//! - **Two kinds of flight.** Loads that ask a peer and loads that run the getter are merged
//!   separately. A peer's request joins only the latter, so it never waits for another peer.
//! - **A caller's deadline is its own.** A caller leaves at its [`Context`]'s deadline, whatever the
//!   getter or the peer does, and its leaving fails nobody else.
//! - **Removed is removed.** A load that began before a key was removed does not put the old value
//!   back.
//!
//! # The map
//!
//! | where | what |
//! |---|---|
//! | [`Group`], [`GroupBuilder`] | a named cache: gets, removal, counters; its options, each with its default |
//! | [`Registry`], [`new_group`], [`get_group`] | groups by name and the peers they share; the global registry |
//! | [`Getter`], [`getter_fn`], [`Sink`] | what a program gives to fill a cache, and what the getter writes the value to |
//! | [`ByteView`] | a cached value: a window into shared bytes |
//! | [`Context`] | deadline, cancellation and values of one call |
//! | [`Error`], [`ErrorKind`] | what went wrong, to match on and to read |
//! | [`http`] | [`HttpPool`](http::HttpPool): the ring, the client and the server; transports, handlers, tiny_http |
//! | [`PeerPicker`], [`ProtoGetter`], [`PeerSet`] | peers by other means than `http` |
//! | [`pb`] | the messages on the wire |
//! | [`consistent_hash`], [`lru`], [`singleflight`] | the parts, useful by themselves; they know nothing of groups |
//! | [`clock`] | the clock that expiry is measured by, and one for tests that stands still |
//!
//! # Features
//!
//! | feature | default | brings | dependencies |
//! |---|---|---|---|
//! | `http` | yes | module [`http`]: [`HttpPool`](http::HttpPool), its server and its clients | ureq, httparse |
//! | `tiny_http` | yes | [`HttpPool::handle`](http::HttpPool::handle): the peer path in a tiny_http server of the program's own | tiny_http |
//! | `json` | no | [`JsonSink`]: values as JSON documents of serde types | serde, serde_json |
//!
//! # From Go
//!
//! | golang/groupcache | larder |
//! |---|---|
//! | `NewGroup(name, cacheBytes, getter)`, `GetGroup(name)` | [`new_group`], [`get_group`] on [`Registry::global`]; the same as methods of a [`Registry`] of one's own; [`Group::builder`] for options |
//! | `Group.Get(ctx, key, dest)` | [`Group::get_into`]; short forms [`Group::get`], [`Group::get_with`]; [`Group::get_many`] for several keys at once |
//! | `Getter`, `GetterFunc` | [`Getter`], which closures implement; [`getter_fn`] infers their types |
//! | `Sink`: `SetString`, `SetBytes`, `SetProto`, `view` | [`Sink`]: [`set_str`](Sink::set_str), [`set_bytes`](Sink::set_bytes), [`set_proto`](Sink::set_proto), [`set_view`](Sink::set_view), [`expire_in`](Sink::expire_in) |
//! | `StringSink`, `ByteViewSink`, `ProtoSink`, `AllocatingByteSliceSink`, `TruncatingByteSliceSink` | [`StringSink`], [`ByteViewSink`], [`ProtoSink`], [`AllocatingByteSliceSink`], [`TruncatingByteSliceSink`]; or plain `&mut String`, `&mut Vec<u8>`, `&mut ByteView`; [`JsonSink`] |
//! | `ByteView`: `Len`, `ByteSlice`, `String`, `At`, `Slice`, `SliceFrom`, `Copy`, `Equal`, `Reader`, `WriteTo` | [`ByteView`]: [`len`](ByteView::len), `to_vec` and [`as_bytes`](ByteView::as_bytes), [`to_str`](ByteView::to_str), [`at`](ByteView::at), [`slice`](ByteView::slice), [`slice_from`](ByteView::slice_from), [`copy_to`](ByteView::copy_to), `==`, [`reader`](ByteView::reader), [`write_to`](ByteView::write_to) |
//! | `consistenthash.Map`: `New(replicas, fn)`, `Add`, `Get`, `IsEmpty` | [`consistent_hash::Map`], with `remove` and `successors`; [`Preset::Golang`](consistent_hash::Preset::Golang) is the ring of Go's `HTTPPool` |
//! | `lru.Cache`: `New(maxEntries)`, `Add`, `Get`, `Remove`, `RemoveOldest`, `Len`, `Clear`, `OnEvicted` | [`lru::Cache`], with [`with_on_evicted`](lru::Cache::with_on_evicted) |
//! | `singleflight.Group.Do` | [`singleflight::Group::do_once`] |
//! | `PeerPicker.PickPeer`, `ProtoGetter.Get`, `NoPeers` | [`PeerPicker::pick_peer`], [`ProtoGetter::get`], [`NoPeers`] |
//! | `RegisterPeerPicker`, `RegisterPerGroupPeerPicker`, `RegisterNewGroupHook`, `RegisterServerStart` | methods of [`Registry`]: [`register_peer_picker`](Registry::register_peer_picker), [`register_per_group_peer_picker`](Registry::register_per_group_peer_picker), [`register_new_group_hook`](Registry::register_new_group_hook), [`register_server_start`](Registry::register_server_start) |
//! | `NewHTTPPool(self)`, `Set(peers…)` | [`HttpPool::new`](http::HttpPool::new), [`HttpPool::set`](http::HttpPool::set) |
//! | `NewHTTPPoolOpts(self, {BasePath, Replicas, HashFn})`, `Transport`, `Context` | [`HttpPool::builder`](http::HttpPool::builder): `base_path`, `replicas`, `hash_fn`, `transport`, `context` |
//! | `HTTPPool.ServeHTTP` | [`HttpPool::serve`](http::HttpPool::serve), [`HttpPool::server`](http::HttpPool::server) with limits and the program's own pages; [`HttpPool::handle`](http::HttpPool::handle) in a tiny_http server |
//! | `GetRequest`, `GetResponse` | [`pb::GetRequest`], [`pb::GetResponse`] |
//! | `Stats`, `CacheStats(which)`, `CacheType`, `AtomicInt` | [`Group::stats`] and [`Stats`], [`Group::cache_stats`] and [`CacheStats`], [`CacheType`], [`AtomicInt`] |
//! | `context.Context` | [`Context`] |

#![forbid(unsafe_code)]
#![deny(missing_docs)]

#[cfg(all(any(doc, doctest), feature = "http"))]
pub mod _docs;
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
mod shared_bytes;
pub mod singleflight;
mod sink;
mod stats;
mod store;
mod sync;
mod thread_counters;
#[cfg(feature = "http")]
mod wire;

pub use byteview::{ByteView, Reader};
pub use clock::Clock;
pub use context::{CancelHandle, Context};
pub use error::{BoxError, Error, ErrorKind, Result};
pub use getter::{Getter, getter_fn};
pub use group::{AdmissionFn, Group, GroupBuilder, HotAdmission};
pub use message::{ProtoDecode, ProtoMessage};
pub use peers::{NoPeers, PeerPicker, PeerResponse, PeerSet, ProtoGetter};
pub use registry::{Registry, get_group, new_group};
#[cfg(feature = "json")]
pub use sink::JsonSink;
pub use sink::{
    AllocatingByteSliceSink, ByteViewSink, ProtoSink, Sink, StringSink, TruncatingByteSliceSink,
};
pub use stats::{AtomicInt, CacheStats, CacheType, Stats};
pub use store::{Entry, Eviction, RemovalCause};
