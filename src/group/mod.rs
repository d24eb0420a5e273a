//! A named cache that fills itself.
//!
//! ```text
//!   mod.rs           Group and its Inner: the public methods
//!   builder/         the options
//!   registry.rs      groups by name, their peers    weak.rs       a handle that keeps nothing alive
//!   load/            a miss: one load for many callers, from the owner or from the getter
//!   many/            several keys: one request an owner, one call of a bulk getter
//!   serve.rs         requests of peers for one key
//!   freshness.rs     the phases of a value's life   lifetime.rs   its age and expiry
//!   answer.rs        a get with options             explain.rs    what a get would do
//!   removal/         removals and sets in the whole cluster
//!   removal_clocks/  the removals that this node has applied
//!   handoff.rs       takes values over from earlier owners
//!   warm.rs          loads before callers ask       key_rates.rs  how often keys are requested
//!   dump/            entries to a file, and back
//!   purge.rs         removes expired entries        limit.rs      gives memory back
//!   counters.rs      counts of loads                forecast.rs   the hit ratio at other capacities
//! ```

mod answer;
mod builder;
mod counters;
mod dump;
mod explain;
mod forecast;
mod freshness;
mod handoff;
mod key_rates;
mod lifetime;
mod limit;
mod load;
mod many;
mod purge;
pub(crate) mod registry;
mod removal;
mod removal_clocks;
mod serve;
#[cfg(all(test, not(larder_loom)))]
mod tests;
mod warm;
mod weak;

use std::fmt;
use std::time::Duration;

use crate::byteview::ByteView;
use crate::clock::{Clock, Tick};
use crate::context::Context;
use crate::error::Result;
#[cfg(doc)]
use crate::error::{Error, ErrorKind};
use crate::getter::Getter;
use crate::panics::FirstPanic;
use crate::peers::PickerSlot;
use crate::singleflight::{self, Epoch, ForgetCount};
use crate::sink::Sink;
use crate::stats::{CacheStats, CacheType};
use crate::store::{Entry, Generation, KeyHash, NoView, RemovalCause, Store, check_capacity};
use crate::sync::{Arc, Mutex};
use crate::threads::load_permits::LoadPermits;
use crate::threads::loader_pool::LoaderShare;
use counters::LoadCounters;
use freshness::Freshness;
use key_rates::KeyRates;
use lifetime::Lifetime;
use load::failed_loads::FailedLoads;
use load::flight::LoadFrom;
use many::bulk::Bulk;
use removal::compare::Comparisons;
use removal::unverified::MaxUnverified;
use removal_clocks::{Counted, RemovalClocks};

pub use answer::{Answer, GetOptions, Source};
pub use builder::GroupBuilder;
pub use dump::DumpReport;
pub use dump::periodic::PeriodicDump;
pub use dump::restore::{RestoreOptions, RestoreProgress, RestoreReport};
pub use explain::{Explanation, GetOutcome};
pub use key_rates::KeyRate;
pub(crate) use limit::TemporaryLimit;
#[cfg(feature = "http")]
pub(crate) use load::client_load::ClientWaiter;
pub use load::populate::{AdmissionFn, HotAdmission};
pub use removal::set::SetOptions;
pub use warm::{WarmProgress, Warming};
pub use weak::WeakGroup;

/// A named cache, shared with the processes that have a group of the same name.
///
/// A get returns the value from this process's store. If the store does not have it, the peer that
/// owns the key is asked. If this process owns the key, or no peer answers, the getter runs.
/// Concurrent calls for one key share one load. A loaded value never changes, so a group is for data
/// that are the same in every process that loads them.
///
/// Cloning is cheap, and clones are the same group. All methods may be called from any thread at
/// any time, also from getters. A getter that gets the key it is loading, on its own thread, directly
/// or through other getters of this process, receives [`ErrorKind::RecursiveLoad`]. A cycle through
/// a thread that the getter started, or through another process, is not detected: give such calls a deadline.
/// Without one, getters of several processes that wait for each other's keys fail late: each waits for
/// [`max_load_wait`](GroupBuilder::max_load_wait), and then for up to two exchanges a key of the cycle; with
/// [`get_many`](Group::get_many) also many times as long.
#[derive(Clone)]
pub struct Group {
    inner: Arc<Inner>,
}

/// The store, the flights, and the options of a group.
struct Inner {
    name: String,
    getter: Arc<dyn Getter>,
    /// The same getter, if it can load several keys with one call.
    bulk_getter: Option<Bulk>,
    store: Store,
    /// Flights that ask a peer. They are kept apart from those that run the getter. A request from a
    /// peer joins only getter flights, so two processes never wait for each other.
    peer_flights: Flights,
    /// Flights that run the getter.
    getter_flights: Flights,
    peers: PickerSlot,
    pool: LoaderShare,
    /// `None` without a limit.
    permits: Option<Arc<LoadPermits>>,
    /// Held for the insertion of a warmed value.
    warm_inserts: Mutex<()>,
    /// Held while a dump is written: two dumps to one path would write to one temporary file.
    dumps: Mutex<()>,
    freshness: Freshness,
    failed_loads: FailedLoads,
    hot_admission: HotAdmission,
    max_key_size: usize,
    max_value_size: usize,
    max_load_wait: Duration,
    eviction_listener: Option<Arc<EvictionListener>>,
    removals: RemovalClocks,
    comparisons: Comparisons,
    /// `None` if they are not measured.
    rates: Option<KeyRates>,
    max_unverified: MaxUnverified,
    counters: LoadCounters,
}

type Flights = singleflight::Group<Result<Loaded>>;

/// Called for entries that leave the cache, with key, value, and cause.
type EvictionListener = dyn Fn(&str, ByteView, RemovalCause) + Send + Sync;

/// A value and its times.
#[derive(Clone, Debug)]
struct Loaded {
    view: ByteView,
    lifetime: Lifetime,
    /// Whether a peer sent it.
    by_peer: bool,
}

/// The state at a miss: the store's generation of the key, and the epochs of its flights.
type MissToken = (Generation, Epochs);

/// The epochs of the flights of a key.
#[derive(Clone, Copy)]
struct Epochs {
    peer: Epoch,
    getter: Epoch,
}

impl Epochs {
    /// The epoch of the flights of a load.
    fn of(self, from: &LoadFrom) -> Epoch {
        match from.asks_peer() {
            true => self.peer,
            false => self.getter,
        }
    }
}

/// The state when a load began. Its value is cached only if `generation` and `forgets` are still the same.
#[derive(Clone, Copy)]
struct LoadBegin {
    at: Tick,
    /// Whether the value is to be cached.
    is_kept: bool,
    /// Whether the value is to be newer than the one that is cached.
    replaces: bool,
    /// Whether a loader thread runs the load: its callers can return before it ends.
    on_pool: bool,
    generation: Generation,
    /// The count of the flights that the load belongs to.
    forgets: ForgetCount,
}

/// A key and its hash.
#[derive(Clone, Copy)]
struct LoadKey<'a> {
    hash: KeyHash,
    key: &'a str,
}

impl Group {
    /// Starts to build a group of the given name. [`GroupBuilder::build`] registers it.
    pub fn builder(name: impl Into<String>) -> GroupBuilder {
        GroupBuilder::new(name.into())
    }

    /// Whether the two are handles of one group.
    pub(crate) fn is(&self, other: &Group) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner)
    }

    /// The name the group was made with.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// The value of `key`.
    ///
    /// If the value is cached, this is a look-up under a shared lock and copies no bytes. Otherwise
    /// the load runs on this thread, or on a peer while this thread waits.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotFound`] if the getter, here or at the owner, returns
    /// [`Error::not_found`]; [`ErrorKind::Getter`] if it failed; see [`ErrorKind`] for the others.
    ///
    /// # Panics
    ///
    /// If the getter panics on this thread. Other callers of the key get
    /// [`ErrorKind::GetterPanicked`], and the next call loads again.
    #[inline]
    pub fn get(&self, key: &str) -> Result<ByteView> {
        self.get_with(BACKGROUND, key)
    }

    /// The value of `key`, within the bounds of `ctx`.
    ///
    /// If `ctx` has a deadline or can be cancelled, the getter runs on a thread of the group's loader
    /// pool, so that this call returns on time even if the getter hangs. The load then continues for
    /// other callers and for the cache. If this call starts the load, the getter receives `ctx`.
    ///
    /// # Errors
    ///
    /// As for [`get`](Self::get); and [`ErrorKind::DeadlineExceeded`], [`ErrorKind::Cancelled`], or
    /// [`ErrorKind::Overloaded`] if the loader pool has no thread left. A cached value is returned
    /// even past the deadline.
    ///
    /// # Panics
    ///
    /// If the getter panics on this thread. It runs on this thread only if `ctx` has no deadline and
    /// cannot be cancelled.
    pub fn get_with(&self, ctx: &Context, key: &str) -> Result<ByteView> {
        self.inner.get(ctx, key)
    }

    /// Puts the value of `key` into `dest`.
    ///
    /// # Errors
    ///
    /// As for [`get_with`](Self::get_with); and [`ErrorKind::Sink`] if `dest` refuses the value.
    ///
    /// # Panics
    ///
    /// As for [`get_with`](Self::get_with).
    pub fn get_into(&self, ctx: &Context, key: &str, mut dest: impl Sink) -> Result<()> {
        dest.take_view(self.get_with(ctx, key)?)
    }

    /// The values of `keys`, in their order, each with its own result.
    ///
    /// Keys that are not cached here are sorted by their owners, and each owner gets one request for
    /// all of its keys, at the same time as the others. It answers from its cache, and loads what it
    /// lacks. This process loads its own keys meanwhile. A [bulk getter](crate::BulkGetter) runs once for the
    /// keys of a request, and once for all own keys. Another getter runs for up to 16 of them at the same
    /// time on loader threads; without a deadline and a cancellation, also on this thread, which loads the
    /// first one. But if a getter calls this function, the keys are loaded one by one.
    ///
    /// A request has at most 128 keys by default: see
    /// [`max_batch_keys`](crate::http::HttpPoolBuilder::max_batch_keys). If an owner has more, its requests are
    /// sent one after the other. Values that do not fit into an answer are requested one by one, and so are
    /// the keys of an owner that does not know such requests. Under a context that can be cancelled, each key
    /// of another owner is requested by itself. If an owner fails, its keys are asked for at the next peer, and
    /// else loaded here.
    ///
    /// Two concurrent calls for one key may both ask its owner.
    ///
    /// After the deadline no load begins, but each key is looked up and has a result. So a call for many keys is
    /// late: one for 200,000 keys returned 20 to 58 ms late on two busy cores.
    ///
    /// ```
    /// use larder::{Context, Registry, getter_fn};
    ///
    /// let colors = Registry::new().new_group(
    ///     "colors",
    ///     1 << 20,
    ///     getter_fn(|_ctx, name, dest| Ok(dest.set_str(&format!("the color {name}"))?)),
    /// )?;
    /// let both = colors.get_many(&Context::background(), &["red", "blue"]);
    /// assert_eq!(both[1].as_ref().unwrap(), &"the color blue");
    /// # Ok::<(), larder::Error>(())
    /// ```
    ///
    /// # Panics
    ///
    /// As for [`get_with`](Self::get_with).
    pub fn get_many<K: AsRef<str>>(&self, ctx: &Context, keys: &[K]) -> Vec<Result<ByteView>> {
        self.inner.get_many(ctx, keys)
    }

    /// The value of `key` if it is cached here. Loads nothing, counts nothing, and is not a use that
    /// protects the entry from eviction.
    pub fn peek(&self, key: &str) -> Option<ByteView> {
        let store = &self.inner.store;
        let found = store.peek(store.hash(key), key);
        found.ok().map(|hit| hit.view)
    }

    /// Whether a value of `key` is cached here. Like [`peek`](Self::peek), it loads and counts
    /// nothing.
    pub fn contains_key(&self, key: &str) -> bool {
        self.peek(key).is_some()
    }

    /// The entries cached here, in no particular order. Loads nothing, counts nothing, and protects
    /// no entry from eviction.
    ///
    /// The iterator reads up to 1,024 entries of a shard at a time, and holds them until it has returned
    /// them. An entry that is inserted or removed meanwhile may be returned or not. No key is returned
    /// twice unless it was removed and inserted again, or the tables of the cache shrank because many
    /// entries left. No lock is held between two calls of `next`.
    ///
    /// ```
    /// # use larder::{Registry, getter_fn};
    /// # let colors = Registry::new().new_group("colors", 1 << 20, getter_fn(|_, name, dest| Ok(dest.set_str(name)?)))?;
    /// colors.get("red")?;
    /// let keys: Vec<String> = colors.iter().map(|entry| entry.key().into()).collect();
    /// assert_eq!(keys, ["red"]);
    /// # Ok::<(), larder::Error>(())
    /// ```
    pub fn iter(&self) -> impl Iterator<Item = Entry> + '_ {
        self.inner.store.iter()
    }

    /// The contents and the counters of one share of the cache.
    pub fn cache_stats(&self, which: CacheType) -> CacheStats {
        self.inner.store.stats(which)
    }

    /// The number of entries cached here, in both shares. Expired entries count until they are
    /// [removed](Self::purge_expired).
    pub fn entry_count(&self) -> u64 {
        self.cache_stats(CacheType::Main).items + self.cache_stats(CacheType::Hot).items
    }

    /// The weight of the entries cached here, in both shares, in bytes.
    pub fn weighted_size(&self) -> u64 {
        self.cache_stats(CacheType::Main).bytes + self.cache_stats(CacheType::Hot).bytes
    }

    /// The most bytes that the cache takes, in both shares together; 0 if caching is off. A
    /// [`MemoryPressure`](crate::MemoryPressure) may allow less for some time.
    pub fn max_capacity(&self) -> u64 {
        self.inner.store.full_capacity()
    }

    /// Changes the capacity, in bytes. Evicts down to the new capacity before it returns, with cause
    /// [`RemovalCause::Size`](crate::RemovalCause::Size), and shrinks the tables. Concurrent gets
    /// wait for a few hundred evictions at most. The memory of the evicted entries returns to the system,
    /// except for values that are still held. 0 evicts everything and switches caching off.
    ///
    /// The number of shards does not change. If the cache will grow much, set
    /// [`shards`](crate::GroupBuilder::shards) for its later size.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::CapacityTooSmall`] if no entry would fit, and [`ErrorKind::InvalidOption`] for more
    /// than the address space, which 4 GiB exceed on 32 bits. Then nothing changes.
    pub fn set_capacity(&self, bytes: u64) -> Result<()> {
        check_capacity(bytes)?;
        self.inner.store.set_capacity(bytes);
        let mut panic = FirstPanic::default();
        self.inner.evict_to_capacity(&mut panic);
        panic.resume();
        Ok(())
    }

    /// The clock that measures expiry.
    pub fn clock(&self) -> &Clock {
        self.inner.store.clock()
    }
}

impl fmt::Debug for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Group")
            .field("name", &self.name())
            .field("max_capacity", &self.max_capacity())
            .finish_non_exhaustive()
    }
}

impl Inner {
    fn get(self: &Arc<Self>, ctx: &Context, key: &str) -> Result<ByteView> {
        if !self.may_serve(ctx) {
            self.remove_here(key, Counted::Not);
        }
        let hash = self.store.hash(key);
        let epochs = || self.epochs(hash);
        let sample = || self.sample_hit(&LoadKey { hash, key });
        match self.store.get_view(hash, key, epochs, sample) {
            Ok(view) => Ok(view),
            Err(why) => self.get_without_view(ctx, hash, key, why),
        }
    }

    /// Not inlined, so that a hit saves fewer registers, and with its arguments by value, so that a hit does not
    /// write them to memory.
    #[inline(never)]
    fn get_without_view(
        self: &Arc<Self>,
        ctx: &Context,
        hash: KeyHash,
        key: &str,
        why: NoView<Epochs>,
    ) -> Result<ByteView> {
        let key = &LoadKey { hash, key };
        match &why {
            NoView::Due => self.get_found_due(ctx, key),
            NoView::Missed(miss) => {
                self.count_miss(key, || self.purge_some());
                Ok(self.load(ctx, key, Some(miss))?.view)
            }
        }
    }

    /// Read at a miss, under the lock of the store. Not inlined, as [`get_without_view`](Self::get_without_view).
    #[inline(never)]
    fn epochs(&self, hash: KeyHash) -> Epochs {
        Epochs {
            peer: self.peer_flights.epoch(hash.get()),
            getter: self.getter_flights.epoch(hash.get()),
        }
    }

    fn key<'a>(&self, key: &'a str) -> LoadKey<'a> {
        let hash = self.store.hash(key);
        LoadKey { hash, key }
    }

    /// Counts a look-up that found nothing, and returns the key's rate if it is measured. A sampled one calls
    /// `purge`.
    fn count_miss(&self, key: &LoadKey<'_>, purge: impl FnOnce()) -> Option<f64> {
        if self.store.count_miss(key.hash) {
            purge();
        }
        self.count_request(key)
    }
}

/// A context by reference. A local one would be dropped in the caller, which moves the result once
/// more.
const BACKGROUND: &Context = &Context::background();
