//! The client of a pool: finds the peer that owns a key and asks it.
//!
//! - `picker`: the list of peers, and the owner of a key. `key_owners`: which node owns which key.
//! - `peer`: the requests to one peer. `messages`: reads its responses and its errors.
//!   `fields`: the times and marks of a response.
//! - `handoff`: the owners of keys before the last change.
//! - `list_check`: what a peer's list of peers says.
//! - `batch`, `batch_values`: the keys of several threads in one request, and its response.
//! - `many`: several keys that one caller asks for.
//! - `revalidate`: a request for a value that is cached already.
//! - `health`, `peer_health`: whether a peer is asked, and its recent exchanges.
//! - `changes`: the requests that change data at the peer.
//! - `permits`: limits the requests that are under way.
//! - `url`, `resolve`: the URL of a peer, and its addresses.
//! - `transport`: the trait that carries a request.
//! - `default_transport`: the transport of a peer; `auto` chooses between `ureq` and `direct`. Without the
//!   feature `ureq`, `larder_only` takes the place of `auto`.
//! - `target`: the URL, options and addresses of a peer, which both of these use.
//! - `pool`, `connection`, `response`: the parts of `direct`.

#[cfg(feature = "ureq")]
pub(crate) mod auto;
pub(crate) mod batch;
pub(crate) mod batch_values;
pub(crate) mod changes;
pub(crate) mod connection;
pub(crate) mod default_transport;
pub(crate) mod direct;
mod fields;
pub(crate) mod handoff;
pub(crate) mod health;
pub(crate) mod key_owners;
#[cfg(not(feature = "ureq"))]
pub(crate) mod larder_only;
pub(crate) mod list_check;
mod many;
mod messages;
pub(crate) mod peer;
mod peer_health;
pub(crate) mod permits;
pub(crate) mod picker;
pub(crate) mod pool;
pub(crate) mod resolve;
pub(crate) mod response;
mod revalidate;
pub(crate) mod target;
pub(crate) mod transport;
#[cfg(feature = "ureq")]
pub(crate) mod ureq;
pub(crate) mod url;
