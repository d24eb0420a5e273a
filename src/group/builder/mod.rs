//! The options of a group, each with its default.

mod freshness;

use std::time::Duration;

use super::counters::LoadCounters;
use super::freshness::Freshness;
use super::key_rates::KeyRates;
use super::load::failed_loads::FailedLoads;
use super::many::bulk::Bulk;
use super::removal::compare::Comparisons;
use super::removal::unverified::{MaxUnverified, UnverifiedLimit};
use super::removal_clocks::RemovalClocks;
use super::{EvictionListener, Flights, Group, HotAdmission, Inner};
use crate::byteview::ByteView;
use crate::clock::Clock;
use crate::context::Context;
use crate::error::{BoxError, Error, ErrorKind, Result};
use crate::getter::bulk::BulkGetter;
use crate::getter::value::Value;
use crate::getter::{Getter, value_fn};
use crate::group::registry::Registry;
use crate::peers::PickerSlot;
use crate::store::{Eviction, RemovalCause, Store, StoreOptions, check_capacity};
use crate::sync::{Arc, Mutex};
use crate::threads::load_permits::LoadPermits;
use crate::threads::loader_pool::{LoaderPool, LoaderShare};

/// Builds a [`Group`].
///
/// ```
/// use larder::Group;
/// use std::time::Duration;
///
/// let squares = Group::builder("squares")
///     .max_capacity(16 << 20)
///     .time_to_live(Duration::from_secs(60))
///     .build_with(|_ctx, key| key.parse::<u64>().map(|n| (n * n).to_string()))?;
/// assert_eq!(squares.get("12")?, "144");
/// # Ok::<(), larder::Error>(())
/// ```
#[must_use]
pub struct GroupBuilder {
    name: String,
    registry: Registry,
    max_capacity: u64,
    eviction: Eviction,
    favor_objects: bool,
    hot_fraction: f64,
    hot_admission: HotAdmission,
    shards: Option<usize>,
    pub(super) freshness: Freshness,
    max_key_size: usize,
    max_value_size: usize,
    max_loader_threads: usize,
    max_concurrent_loads: Option<usize>,
    max_unverified: Option<UnverifiedLimit>,
    loader_stack_size: Option<usize>,
    max_load_wait: Duration,
    eviction_listener: Option<Arc<EvictionListener>>,
    forecast: bool,
    measures_rates: bool,
    clock: Clock,
}

impl GroupBuilder {
    pub(super) fn new(name: String) -> Self {
        GroupBuilder {
            name,
            registry: Registry::global().clone(),
            max_capacity: DEFAULT_CAPACITY,
            eviction: Eviction::default(),
            favor_objects: false,
            hot_fraction: DEFAULT_HOT_FRACTION,
            hot_admission: HotAdmission::default(),
            shards: None,
            freshness: Freshness::default(),
            max_key_size: DEFAULT_MAX_KEY_SIZE,
            max_value_size: DEFAULT_MAX_VALUE_SIZE,
            max_loader_threads: DEFAULT_LOADER_THREADS,
            max_concurrent_loads: None,
            max_unverified: None,
            loader_stack_size: None,
            max_load_wait: DEFAULT_LOAD_WAIT,
            eviction_listener: None,
            forecast: false,
            measures_rates: false,
            clock: Clock::system(),
        }
    }

    /// The registry to put the group in. Default: [`Registry::global`].
    pub fn registry(mut self, registry: &Registry) -> Self {
        self.registry = registry.clone();
        self
    }

    /// The most bytes that both shares of the cache take together: keys, values, and what the
    /// allocator and the tables take for them. Default: 64 MiB. 0 switches caching off; concurrent
    /// loads of a key are still merged.
    ///
    /// A value that replaces thousands of entries is inserted before all of them are evicted, so that
    /// look-ups are not delayed. Until the call that loaded it returns, the cache can be over its
    /// capacity by that value.
    pub fn max_capacity(mut self, bytes: u64) -> Self {
        self.max_capacity = bytes;
        self
    }

    /// How the cache chooses the entries to evict. Default: [`Eviction::Tide`].
    pub fn eviction(mut self, eviction: Eviction) -> Self {
        self.eviction = eviction;
        self
    }

    /// Whether [`Eviction::Tide`] evicts large values sooner, for more hits. Default: no.
    ///
    /// Tide evicts an entry for the room that it takes and the time since its last use. By default the room
    /// counts by its square root; with this option, in full. Then more gets hit, because many small values
    /// stay instead of a few large ones, but the hits have fewer bytes. It has no effect on
    /// [`Eviction::Lru`], nor if all values have about the same size.
    pub fn favor_objects(mut self, favor: bool) -> Self {
        self.favor_objects = favor;
        self
    }

    /// The part of the capacity, 0 to 1, for copies of other processes' values. They may take more
    /// while this process's own values do not need the rest. Default: 1/8, as in golang/groupcache.
    pub fn hot_fraction(mut self, fraction: f64) -> Self {
        self.hot_fraction = fraction;
        self
    }

    /// Which copies of other processes' values to keep. Default: [`HotAdmission::Always`].
    pub fn hot_admission(mut self, admission: HotAdmission) -> Self {
        self.hot_admission = admission;
        self
    }

    /// The number of shards, each with a lock of its own. It is rounded up to a power of two, and is
    /// at most 256. Default: eight for each core that the system lets the process run on, whatever share
    /// of their time its cgroup has; at most 64, and so few that each has 1 MiB.
    ///
    /// With more shards, more threads insert at once; with fewer, eviction chooses better victims.
    pub fn shards(mut self, shards: usize) -> Self {
        self.shards = Some(shards);
        self
    }

    /// How long this process serves cached values while most of its peers do not answer. Default: no
    /// limit, which a node that is cut off from all others needs to go on with its cache.
    ///
    /// With a limit, an [`ErrorKind::Partial`](crate::ErrorKind::Partial) says until when the peers that did
    /// not confirm a removal can serve the old value. A cached value is returned only if this process, and the
    /// peers whose removals it had applied within the limit, are more than half of all nodes. Otherwise the
    /// get asks all peers at the same time, and if too few answer, runs the getter, also for a key that a peer
    /// owns: the two may be cut off together. So a process in a cluster of two has no cache while the other is
    /// down. Set the same limit in all processes. At most one get asks the peers at a time, and others wait for
    /// its result. If too few answered, none asks again for a quarter of the limit, at most 5 s.
    ///
    /// The limit holds for `get`, `get_many`, `get_opts` and their forms, not for `peek` and `iter`. A hit
    /// reads the clock, and each process exchanges 8 KiB with each peer about once in this time.
    ///
    /// # Errors
    ///
    /// `build` returns [`ErrorKind::InvalidOption`](crate::ErrorKind::InvalidOption) for a limit under 10 ms.
    pub fn max_unverified(mut self, limit: Duration) -> Self {
        self.max_unverified = Some(UnverifiedLimit::new(limit));
        self
    }

    /// The longest key, in bytes, up to 65,535. Default: 8 KiB.
    ///
    /// A key whose escaped form does not fit into a peer's request head (8 KiB by default) is loaded
    /// in this process, even if a peer owns it. A [`set`](crate::Group::set) of such a key fails if a peer
    /// owns it; a removal reaches all peers.
    pub fn max_key_size(mut self, bytes: usize) -> Self {
        self.max_key_size = bytes;
        self
    }

    /// The longest value that the getter may set, in bytes. Default: 16 MiB.
    pub fn max_value_size(mut self, bytes: usize) -> Self {
        self.max_value_size = bytes;
        self
    }

    /// The most threads that run loads for callers with a deadline or a cancellation, and for clients
    /// of an [`http`](crate::http) server. Default: 512.
    ///
    /// The groups of a registry share the threads of one pool, 1,024 by default. The group gets another one
    /// only while it has fewer than are left there, so that a getter that hangs does not keep other groups
    /// from loading: see [`Registry::set_max_loader_threads`].
    ///
    /// Loads for the server's clients take at most half of them, rounded up, so that clients cannot
    /// keep this process's own callers from loading. By default these are 256, as many loads as 10 peers with
    /// default options can request at a time.
    ///
    /// Threads start when needed and end after 10 s without work. When all are busy, loads of this
    /// process's callers fail with [`ErrorKind::Overloaded`] at once. Those of clients first wait half a
    /// second for a thread, so that a burst of new keys is served if the getter is quick. A getter that hangs
    /// occupies one thread for each key. A thread that drops the values of a finished load does not count,
    /// because the drop may wait for another load.
    pub fn max_loader_threads(mut self, threads: usize) -> Self {
        self.max_loader_threads = threads;
        self
    }

    /// The most runs of the getter at the same time in this process, for an origin that serves only so many.
    /// Default: no limit. A call of a [bulk getter](Self::build_bulk) is one run.
    ///
    /// Over the limit a load waits on its caller's thread, and the load whose caller has the earliest deadline
    /// is next. The caller leaves at its deadline, and then another caller of the key waits in its place. A
    /// caller without a deadline waits for [`max_load_wait`](Self::max_load_wait) in all, together with the
    /// gets of its getter, and then fails with [`ErrorKind::Overloaded`](crate::ErrorKind::Overloaded); or for
    /// twice as long at most, if it first waits for loads of other callers. If one of several keys fails so,
    /// the others of the call do not wait. If an old value may be served
    /// ([`stale_while_revalidate`](Self::stale_while_revalidate), [`stale_if_error`](Self::stale_if_error)),
    /// nothing waits: callers get that value, and a later get starts the load. A request of a peer waits as a
    /// request for a slow load does.
    ///
    /// Loads of other processes' keys, whose owners do not answer, have half of the runs at most, rounded up.
    /// A getter that gets another key does not count while it waits for that. It goes on before other loads begin.
    /// If no run ends by the deadline of that get, or for `max_load_wait` and at least a second, it goes on over the
    /// limit.
    ///
    /// # Errors
    ///
    /// `build` returns [`ErrorKind::InvalidOption`](crate::ErrorKind::InvalidOption) for 0.
    pub fn max_concurrent_loads(mut self, loads: usize) -> Self {
        self.max_concurrent_loads = Some(loads);
        self
    }

    /// The stack of each loader thread, in bytes, at least 64 KiB. Default: that of std, 2 MiB or the value of
    /// `RUST_MIN_STACK`.
    ///
    /// Getters run on these threads. A stack reserves address space; only the pages that were used take
    /// memory.
    pub fn loader_stack_size(mut self, bytes: usize) -> Self {
        self.loader_stack_size = Some(bytes);
        self
    }

    /// Sets the numbers for a board with 64 MB of memory: 16 MiB of
    /// [`max_capacity`](Self::max_capacity), values of 1 MiB, keys of 1 KiB, and 64 loader threads with
    /// stacks of 128 KiB. Options that are set later take precedence.
    pub fn small(self) -> Self {
        self.max_capacity(16 << 20)
            .max_value_size(1 << 20)
            .max_key_size(1 << 10)
            .max_loader_threads(64)
            .loader_stack_size(128 << 10)
    }

    /// How long a caller without a deadline waits while the owner of a key runs its getter, up to 24 h.
    /// Default: 30 s.
    ///
    /// An owner that is still loading at the end of an exchange answers so, and is asked again. After this
    /// time it counts as failed: the next peer is asked, and then the key is loaded here. A caller with
    /// a deadline waits until that. With 0, the owner is not asked again.
    ///
    /// A get and the gets of its getter wait so in vain for this time in all. Later ones then ask a peer that is
    /// loading once.
    pub fn max_load_wait(mut self, wait: Duration) -> Self {
        self.max_load_wait = wait;
        self
    }

    /// Sets a function that is called for every entry that leaves the cache: evicted, expired,
    /// replaced, or removed.
    ///
    /// It runs on the thread that removed the entry, after the removal and with no lock held. So it
    /// may call the group, also for the key that left. A slow listener delays only that thread:
    /// callers that wait for a value loaded there receive the value before the listener runs.
    ///
    /// Notifications that a listener's own calls cause wait until it has returned. They then run one
    /// after the other on the same thread. A value that is loaded in such a later notification is
    /// returned, but not cached. So a listener that loads evicted keys again does not loop forever.
    ///
    /// It is not called for the entries of a group that is dropped. [Clear](Group::clear_local) the group
    /// before, so that it is. A listener that holds a [`Group`] of its own group keeps that group
    /// alive for ever: let it hold a [`WeakGroup`](crate::WeakGroup).
    ///
    /// If the listener panics, it is still called for the other entries. The panic then propagates at
    /// the end of the call that runs on that thread; a loader thread survives it.
    pub fn eviction_listener(
        mut self,
        listener: impl Fn(&str, ByteView, RemovalCause) + Send + Sync + 'static,
    ) -> Self {
        self.eviction_listener = Some(Arc::new(listener));
        self
    }

    /// Whether [`Group::forecast`] forecasts the hit ratio at other capacities. Default: no.
    ///
    /// It takes at most 64 KiB, which are not part of the capacity. It follows one key in 32, or fewer if
    /// there are more than some thousand entries. A get of another key compares a few bits more, and one
    /// of these keys takes about twice as long. If two threads get such keys at the same time, one of the
    /// gets is left out of the forecast.
    pub fn forecast(mut self, forecast: bool) -> Self {
        self.forecast = forecast;
        self
    }

    /// Whether the group measures how often its keys are requested: for [`Group::hottest_keys`], and for
    /// peers, which get the rate of a key with its value ([`PeerResponse::minute_qps`](crate::PeerResponse)).
    /// Default: no, unless [`hot_admission`](Self::hot_admission) is [`HotAdmission::OwnerRate`].
    ///
    /// It takes 10 KiB, and the first 128 bytes of up to 256 keys, which are not part of the capacity. Only
    /// one hit in 256 takes longer; each miss does.
    pub fn measure_rates(mut self, measure: bool) -> Self {
        self.measures_rates = measure;
        self
    }

    /// The clock that measures expiry. Default: the system's.
    pub fn clock(mut self, clock: Clock) -> Self {
        self.clock = clock;
        self
    }

    /// Makes the group, with a getter that returns the value of a key, and registers it.
    ///
    /// The value is a `String`, a `Vec<u8>`, a [`ByteView`], a `&'static str`, a `&'static [u8]`, or a
    /// [`Value`], which can also limit its time in the cache. The error is of any type that `?` turns into a
    /// [`BoxError`]: each `std::error::Error`, and a `BoxError` itself. If it is [`Error::not_found`], or has
    /// that among its sources, callers get [`ErrorKind::NotFound`]. The closure runs as described at
    /// [`Getter`], which also serves getters that write large values in place.
    ///
    /// ```
    /// use larder::{Error, Group};
    /// # let registry = larder::Registry::new();
    ///
    /// let colors = Group::builder("colors")
    ///     # .registry(&registry)
    ///     .build_with(|_ctx, name| match name {
    ///         "red" => Ok("#ff0000"),
    ///         _ => Err(Error::not_found(format!("no color {name}"))),
    ///     })?;
    /// assert_eq!(colors.get("red")?, "#ff0000");
    /// assert!(colors.get("rod").unwrap_err().is_not_found());
    /// # Ok::<(), Error>(())
    /// ```
    ///
    /// If the closure uses `?` with errors of several types, the type of its own error has to be named,
    /// as in any closure:
    ///
    /// ```
    /// use larder::{BoxError, Group};
    /// # let registry = larder::Registry::new();
    ///
    /// let lengths = Group::builder("lengths")
    ///     # .registry(&registry)
    ///     .build_with(|_ctx, range| {
    ///         let (from, to) = range.split_once("..").ok_or("not a range")?;
    ///         let (from, to): (u64, u64) = (from.parse()?, to.parse()?);
    ///         Ok::<_, BoxError>(to.abs_diff(from).to_string())
    ///     })?;
    /// assert_eq!(lengths.get("3..10")?, "7");
    /// # Ok::<(), larder::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As for [`build`](Self::build).
    pub fn build_with<V, E, F>(self, load: F) -> Result<Group>
    where
        V: Into<Value> + 'static,
        E: Into<BoxError> + 'static,
        F: Fn(&Context, &str) -> Result<V, E> + Send + Sync + 'static,
    {
        self.build(value_fn(load))
    }

    /// Makes the group and registers it.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::DuplicateGroup`] if the registry has a group of this name;
    /// [`ErrorKind::InvalidName`]; [`ErrorKind::CapacityTooSmall`];
    /// [`ErrorKind::InvalidOption`] for a number outside its range.
    pub fn build(self, getter: impl Getter + 'static) -> Result<Group> {
        self.register(Arc::new(getter), None)
    }

    /// Makes the group, with a getter that loads several keys with one call, and registers it.
    ///
    /// A [`bulk_fn`](crate::bulk_fn) is such a getter.
    ///
    /// # Errors
    ///
    /// As for [`build`](Self::build).
    pub fn build_bulk(self, getter: impl BulkGetter + 'static) -> Result<Group> {
        let getter = Arc::new(getter);
        self.register(getter.clone(), Some(Bulk::new(getter)))
    }

    fn register(self, getter: Arc<dyn Getter>, bulk_getter: Option<Bulk>) -> Result<Group> {
        check_name(&self.name)?;
        self.check_numbers()?;
        let (name, registry) = (self.name.clone(), self.registry.clone());
        let loaders = self.loaders(registry.loaders());
        registry.register(&name, |peers| {
            self.make_with(getter, bulk_getter, peers, loaders)
        })
    }

    /// Makes the group without registering it.
    #[cfg(test)]
    pub(crate) fn make(self, getter: impl Getter + 'static, peers: PickerSlot) -> Group {
        let loaders = self.loaders(&LoaderPool::default());
        self.make_with(Arc::new(getter), None, peers, loaders)
    }

    fn loaders(&self, pool: &LoaderPool) -> LoaderShare {
        pool.share(self.max_loader_threads, self.loader_stack_size)
    }

    fn make_with(
        self,
        getter: Arc<dyn Getter>,
        bulk_getter: Option<Bulk>,
        peers: PickerSlot,
        loaders: LoaderShare,
    ) -> Group {
        let store = StoreOptions {
            capacity: self.max_capacity,
            eviction: self.eviction,
            favor_objects: self.favor_objects,
            hot_fraction: self.hot_fraction,
            shards: self.shards,
            retention: self.freshness.keep_for_revalidation,
            forecast: self.forecast,
            clock: self.clock,
        };
        let has_rates =
            self.measures_rates || matches!(self.hot_admission, HotAdmission::OwnerRate(_));
        let rates = has_rates.then(|| KeyRates::new(store.clock.now()));
        let inner = Inner {
            pool: loaders,
            warm_inserts: Mutex::default(),
            dumps: Mutex::default(),
            permits: self
                .max_concurrent_loads
                .map(|loads| LoadPermits::new(loads, self.max_load_wait)),
            name: self.name,
            getter,
            bulk_getter,
            store: Store::new(store),
            peer_flights: Flights::new(),
            getter_flights: Flights::new(),
            peers,
            freshness: self.freshness,
            failed_loads: FailedLoads::new(),
            hot_admission: self.hot_admission,
            max_key_size: self.max_key_size,
            max_value_size: self.max_value_size,
            max_load_wait: self.max_load_wait,
            eviction_listener: self.eviction_listener,
            removals: RemovalClocks::new(),
            comparisons: Comparisons::default(),
            rates,
            max_unverified: MaxUnverified::new(self.max_unverified),
            counters: LoadCounters::new(),
        };
        inner.store.raise_margin(inner.freshness.allowance());
        Group {
            inner: Arc::new(inner),
        }
    }

    fn check_numbers(&self) -> Result<()> {
        check_capacity(self.max_capacity)?;
        self.freshness.check()?;
        let is_admission_valid = match self.hot_admission {
            HotAdmission::Probability(p) => (0.0..=1.0).contains(&p),
            HotAdmission::OwnerRate(qps) => qps >= 0.0,
            _ => true,
        };
        let unverified = self.max_unverified.map(|limit| limit.time);
        let checks = [
            (
                (0.0..=1.0).contains(&self.hot_fraction),
                "hot_fraction must be between 0 and 1",
            ),
            (
                is_admission_valid,
                "hot_admission: a probability must be between 0 and 1, a rate at least 0",
            ),
            (
                self.max_key_size <= usize::from(u16::MAX),
                "max_key_size must be at most 65535",
            ),
            (self.shards != Some(0), "there must be at least one shard"),
            (
                self.max_loader_threads != 0,
                "max_loader_threads must be at least 1",
            ),
            (
                self.max_concurrent_loads != Some(0),
                "max_concurrent_loads must be at least 1",
            ),
            (
                unverified.is_none_or(|time| time >= LEAST_UNVERIFIED),
                "max_unverified must be at least 10 ms",
            ),
            (
                self.loader_stack_size
                    .is_none_or(|bytes| bytes >= MIN_LOADER_STACK),
                "loader_stack_size must be at least 65536 bytes",
            ),
            (
                self.max_load_wait <= LONGEST_LOAD_WAIT,
                "max_load_wait must be at most 24 h",
            ),
        ];
        match checks.into_iter().find(|(is_valid, _)| !is_valid) {
            Some((_, message)) => Err(Error::new(ErrorKind::InvalidOption, message)),
            None => Ok(()),
        }
    }
}

impl std::fmt::Debug for GroupBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GroupBuilder")
            .field("name", &self.name)
            .field("max_capacity", &self.max_capacity)
            .finish_non_exhaustive()
    }
}

const MIN_LOADER_STACK: usize = 64 << 10;

const DEFAULT_CAPACITY: u64 = 64 << 20;
const DEFAULT_HOT_FRACTION: f64 = 0.125;
const DEFAULT_MAX_KEY_SIZE: usize = 8 << 10;
const DEFAULT_MAX_VALUE_SIZE: usize = 16 << 20;
const DEFAULT_LOADER_THREADS: usize = 512;
const DEFAULT_LOAD_WAIT: Duration = Duration::from_secs(30);
const LEAST_UNVERIFIED: Duration = Duration::from_millis(10);
const LONGEST_LOAD_WAIT: Duration = Duration::from_secs(24 * 60 * 60);

/// The longest group name, in bytes.
const MAX_NAME: usize = 256;

/// Checks a group's name.
fn check_name(name: &str) -> Result<()> {
    if name.is_empty() || name.len() > MAX_NAME {
        return Err(Error::new(
            ErrorKind::InvalidName,
            format!(
                "a group's name is 1 to {MAX_NAME} bytes long, this one is {}",
                name.len()
            ),
        ));
    }
    Ok(())
}
