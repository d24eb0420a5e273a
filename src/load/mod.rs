//! What a group does about a key that it has not cached.
//!
//! ```text
//!   mod.rs        a group's parts; from its own callers and from peers
//!   flight.rs     who leads, who waits, on which thread
//!   ask.rs        the getter, or peers in turn       many.rs       many keys at once
//!   keep.rs       what is kept, and for how long     admission.rs  the hot share's part of that
//!   counters.rs   what was done
//! ```

mod admission;
mod ask;
mod counters;
mod flight;
mod keep;
mod many;
#[cfg(all(test, not(larder_loom)))]
mod tests;

use std::time::Duration;

use crate::byteview::ByteView;
use crate::clock::Tick;
use crate::context::Context;
use crate::error::{Error, ErrorKind, Result};
use crate::getter::Getter;
use crate::loader_pool::LoaderPool;
use crate::peers::PickerSlot;
use crate::singleflight;
use crate::stats::Stats;
use crate::store::{
    Evicted, Generation, KeyHash, RemovalCause, Store, StoreOptions, check_capacity,
};
use crate::sync::Arc;
use counters::Counters;
use flight::{Flight, Route, RunOn};
use keep::Keep;

pub use admission::{AdmissionFn, HotAdmission};

/// Called for entries that leave the cache: key, value, and why.
pub(crate) type EvictionListener = dyn Fn(&str, ByteView, RemovalCause) + Send + Sync;

/// What a group is made of.
pub(crate) struct LoaderOptions {
    pub(crate) name: String,
    pub(crate) getter: Box<dyn Getter>,
    pub(crate) store: StoreOptions,
    pub(crate) time_to_live: Option<Duration>,
    pub(crate) hot_admission: HotAdmission,
    pub(crate) max_key_size: usize,
    pub(crate) max_value_size: usize,
    pub(crate) max_loader_threads: usize,
    pub(crate) eviction_listener: Option<Arc<EvictionListener>>,
}

/// A loaded value, and when it expires.
#[derive(Clone, Debug)]
pub(crate) struct Loaded {
    pub(crate) view: ByteView,
    pub(crate) expires: Option<Tick>,
}

/// A key whose load has begun.
#[derive(Clone, Copy)]
pub(crate) struct Loading<'a> {
    pub(crate) hash: KeyHash,
    pub(crate) key: &'a str,
    /// What was removed from the store before.
    pub(crate) generation: Generation,
}

type Flights = singleflight::Group<Result<Loaded>>;

/// A group's store, its flights, and the policy between them.
pub(crate) struct Loader {
    name: String,
    getter: Box<dyn Getter>,
    store: Store,
    /// Flights that ask a peer. Kept apart from those that run the getter: a request from a peer
    /// joins only the latter, so a process never waits for one that waits for it.
    peer_flights: Flights,
    /// Flights that run the getter.
    getter_flights: Flights,
    peers: PickerSlot,
    pool: LoaderPool,
    time_to_live: Option<Duration>,
    hot_admission: HotAdmission,
    max_key_size: usize,
    max_value_size: usize,
    eviction_listener: Option<Arc<EvictionListener>>,
    counters: Counters,
}

impl Loader {
    pub(crate) fn new(options: LoaderOptions, peers: PickerSlot) -> Loader {
        Loader {
            pool: LoaderPool::new(&options.name, options.max_loader_threads),
            name: options.name,
            getter: options.getter,
            store: Store::new(options.store),
            peer_flights: Flights::new(),
            getter_flights: Flights::new(),
            peers,
            time_to_live: options.time_to_live,
            hot_admission: options.hot_admission,
            max_key_size: options.max_key_size,
            max_value_size: options.max_value_size,
            eviction_listener: options.eviction_listener,
            counters: Counters::new(),
        }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    #[inline]
    pub(crate) fn store(&self) -> &Store {
        &self.store
    }

    /// Counts a miss, and loads the key.
    #[cold]
    pub(crate) fn load_missed(
        self: &Arc<Self>,
        ctx: &Context,
        hash: KeyHash,
        key: &str,
    ) -> Result<ByteView> {
        self.store.count_miss();
        self.load(ctx, hash, key)
    }

    /// Loads a key that was not found in the store: from its owner, or here.
    #[cold]
    pub(crate) fn load(
        self: &Arc<Self>,
        ctx: &Context,
        hash: KeyHash,
        key: &str,
    ) -> Result<ByteView> {
        self.check_key(key)?;
        let Some(owner) = self.peers.owner(&self.name, key) else {
            let run_on = RunOn::for_getter(ctx);
            let loaded = self.load_here(ctx, hash, key, Keep::Owned, run_on)?;
            return Ok(loaded.view);
        };
        let run_on = RunOn::for_peer(ctx, &*owner);
        let flight = Flight::Peer(Route { owner, run_on });
        let loaded = self.fly(&flight, ctx, hash, key, run_on)?;
        Ok(loaded.view)
    }

    /// Loads a key for a peer: here, whoever owns it. A request makes one hop and no more, so two
    /// processes whose rings disagree never wait for each other.
    #[cold]
    pub(crate) fn load_for_peer(
        self: &Arc<Self>,
        ctx: &Context,
        hash: KeyHash,
        key: &str,
    ) -> Result<Loaded> {
        self.check_key(key)?;
        let keep = match self.peers.owner(&self.name, key) {
            None => Keep::Owned,
            Some(_) => Keep::Borrowed,
        };
        self.load_here(ctx, hash, key, keep, RunOn::for_getter(ctx))
    }

    /// Takes a key out of the store, and lets later gets wait for no load that began before.
    pub(crate) fn remove(&self, key: &str) -> Option<ByteView> {
        let hash = self.store.hash(key);
        // First the store, which turns away what loads under way bring; then the flights, so that
        // a get that begins after this function does not join one of those loads. The other way
        // round, a load could begin between the two, be spared by `forget`, and have its value
        // turned away for nothing.
        let gone = self.store.remove(hash, key);
        self.getter_flights.forget_hashed(hash.get(), key);
        self.peer_flights.forget_hashed(hash.get(), key);
        let live = |departed: &&Evicted| departed.cause == RemovalCause::Explicit;
        let value = gone
            .iter()
            .find(live)
            .map(|departed| departed.entry.value());
        self.bury(gone);
        value
    }

    pub(crate) fn clear(&self) {
        let cleared = self.store.clear();
        self.getter_flights.forget_all();
        self.peer_flights.forget_all();
        // Only now, when nothing is left to be done if the listener panics.
        if let Some(listener) = &self.eviction_listener {
            for entry in cleared.iter() {
                listener(entry.key(), entry.value(), RemovalCause::Explicit);
            }
        }
    }

    pub(crate) fn set_capacity(&self, bytes: u64) -> Result<()> {
        check_capacity(bytes)?;
        self.store.set_capacity(bytes);
        while let Some(gone) = self.store.evict_to_capacity() {
            self.bury(gone);
        }
        Ok(())
    }

    pub(crate) fn count_server_request(&self) {
        self.counters.add(|loads| &loads.server_requests);
    }

    pub(crate) fn stats(&self) -> Stats {
        let (gets, cache_hits) = self.store.lookups();
        Stats {
            gets,
            cache_hits,
            peer_loads: self.counters.sum(|loads| &loads.peer_loads),
            peer_errors: self.counters.sum(|loads| &loads.peer_errors),
            loads: gets.saturating_sub(cache_hits),
            loads_deduped: self.counters.sum(|loads| &loads.loads_deduped),
            local_loads: self.counters.sum(|loads| &loads.local_loads),
            local_load_errs: self.counters.sum(|loads| &loads.local_load_errs),
            server_requests: self.counters.sum(|loads| &loads.server_requests),
        }
    }

    fn check_key(&self, key: &str) -> Result<()> {
        if key.len() <= self.max_key_size {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::KeyTooLong,
            format!(
                "the key has {} bytes, over the group's max_key_size of {}",
                key.len(),
                self.max_key_size
            ),
        ))
    }
}
