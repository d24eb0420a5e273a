//! Gives memory back when it is short, and takes it again later.
//!
//! ```text
//!   mod.rs      the options, the guard, and the thread
//!   source.rs   reads Linux's files     parse.rs   parses them
//!   decide.rs   readings in, limits out
//! ```

mod decide;
pub(crate) mod parse;
mod source;

use std::fmt;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::error::{Error, ErrorKind, Result};
use crate::group::registry::Registry;
use crate::group::{Group, TemporaryLimit};
use crate::panics::{self, caught};
use crate::sync::{Arc, Condvar, Mutex, spawn_plain};
use decide::{Controller, GroupSize, Options};
use source::PressureSource;

/// Watches the memory of the process's surroundings, and makes groups smaller while it is short. Ends
/// when it is dropped.
///
/// Linux only. A thread reads, four times a second:
///
/// - the limits of the process's cgroup and of the cgroups above it (`memory.high` and `memory.max`; in
///   version 1 `memory.limit_in_bytes`), with what is used of them and cannot be dropped at once;
/// - the machine's memory (`MemTotal` and `MemAvailable` of `/proc/meminfo`);
/// - the time that tasks wait for memory (PSI: the cgroup's `memory.pressure`, or
///   `/proc/pressure/memory` while less than a quarter of the machine's memory is available).
///
/// If a limit has less headroom than the [reserve](MemoryPressureBuilder::reserve), the groups give back
/// what is missing, as by [`Group::trim`], and may not grow meanwhile. If tasks wait for a tenth of the
/// time or more, they give back an eighth each second. Each group keeps a
/// [floor](MemoryPressureBuilder::floor), and gives in proportion to what it holds above that. After
/// ten seconds without pressure the groups may grow again as far as the headroom allows: to the full
/// capacity in sixteen seconds. [`Group::max_capacity`] does not change meanwhile.
///
/// While every limit has sixteen times the headroom that it needs, the thread reads once a second. A
/// reading takes about 0.1 ms. Several guards may watch one group; the lowest limit counts.
///
/// A kernel kills processes as soon as a limit is exceeded, however fast that happened. So the reserve
/// has to be as large as what others may take between two readings. `memory.high` below `memory.max`
/// slows them down.
///
/// ```
/// use larder::{MemoryPressure, Registry, getter_fn};
///
/// let registry = Registry::new();
/// let colors = registry.new_group("colors", 1 << 20, getter_fn(|_, name, dest| Ok(dest.set_str(name)?)))?;
/// # if cfg!(target_os = "linux") {
/// let guard = MemoryPressure::builder().registry(&registry).floor(0.5).watch()?;
/// assert_eq!(guard.status().allowed, colors.max_capacity());
/// # }
/// # Ok::<(), larder::Error>(())
/// ```
#[must_use = "the groups are watched until the guard is dropped"]
pub struct MemoryPressure {
    shared: Arc<WatchShared>,
    thread: Option<JoinHandle<()>>,
}

/// The options of a [`MemoryPressure`].
#[derive(Clone, Debug)]
pub struct MemoryPressureBuilder {
    registries: Vec<Registry>,
    groups: Vec<Group>,
    options: Options,
    interval: Duration,
}

/// The state of a [`MemoryPressure`], as of its last reading.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct MemoryStatus {
    /// The least headroom of all limits, in bytes.
    pub headroom: u64,
    /// The bytes that the groups together may take now. Without pressure, the sum of their capacities.
    pub allowed: u64,
    /// The bytes that the groups have given back so far.
    pub trimmed: u64,
    /// Readings so far.
    pub readings: u64,
}

/// The state that the guard and the thread share.
#[derive(Default)]
struct WatchShared {
    state: Mutex<WatchState>,
    stopped: Condvar,
}

#[derive(Default)]
struct WatchState {
    is_stopped: bool,
    status: MemoryStatus,
}

impl MemoryPressure {
    /// Watches for all groups of the [global registry](Registry::global), those of later on included,
    /// with default options.
    ///
    /// # Errors
    ///
    /// As for [`MemoryPressureBuilder::watch`].
    pub fn watch() -> Result<MemoryPressure> {
        MemoryPressure::builder().watch()
    }

    /// Options to watch with.
    pub fn builder() -> MemoryPressureBuilder {
        MemoryPressureBuilder {
            registries: Vec::new(),
            groups: Vec::new(),
            options: Options {
                floor: 0.25,
                reserve: None,
            },
            interval: Duration::from_millis(250),
        }
    }

    /// The state as of the last reading.
    pub fn status(&self) -> MemoryStatus {
        self.shared.state.lock().status
    }
}

impl MemoryPressureBuilder {
    /// Adds all groups of a registry, those of later on included. The guard keeps the registry alive.
    /// Default: the global registry, if neither a registry nor a group is added.
    pub fn registry(mut self, registry: &Registry) -> Self {
        self.registries.push(registry.clone());
        self
    }

    /// Adds a group. The guard keeps it alive.
    pub fn group(mut self, group: &Group) -> Self {
        self.groups.push(group.clone());
        self
    }

    /// The part of its capacity that each group keeps in any case, 0 to 1. Default: 0.25.
    pub fn floor(mut self, part: f64) -> Self {
        self.options.floor = part;
        self
    }

    /// The headroom to keep at each limit, in bytes, at most the limit itself. Default: three tenths of
    /// the limit, at most 64 MiB.
    pub fn reserve(mut self, bytes: u64) -> Self {
        self.options.reserve = Some(bytes);
        self
    }

    /// The time between two readings while memory may become short, 10 ms to 10 s. Default: 250 ms.
    pub fn interval(mut self, interval: Duration) -> Self {
        self.interval = interval;
        self
    }

    /// Starts to watch. The first reading has taken effect when this returns.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unsupported`] on other systems than Linux, and where `/proc` is not mounted;
    /// [`ErrorKind::InvalidOption`] if an option is out of its range; [`ErrorKind::Io`] if the thread
    /// cannot be started.
    pub fn watch(mut self) -> Result<MemoryPressure> {
        self.check()?;
        if self.registries.is_empty() && self.groups.is_empty() {
            self.registries.push(Registry::global().clone());
        }
        let shared = Arc::new(WatchShared::default());
        let mut watcher = Watcher {
            source: PressureSource::new()?,
            controller: Controller::new(self.options),
            builder: self,
            start: Instant::now(),
            limits: Vec::new(),
            shared: shared.clone(),
        };
        let pause = watcher.step();
        let thread =
            spawn_plain("larder-memory", None, move || watcher.run(pause)).map_err(|error| {
                Error::with_source(ErrorKind::Io, "cannot start the thread that watches", error)
            })?;
        Ok(MemoryPressure {
            shared,
            thread: Some(thread),
        })
    }

    fn check(&self) -> Result<()> {
        let invalid = |text: String| Err(Error::new(ErrorKind::InvalidOption, text));
        if !(0.0..=1.0).contains(&self.options.floor) {
            return invalid(format!(
                "a floor is 0 to 1, this one is {}",
                self.options.floor
            ));
        }
        if !(MIN_INTERVAL..=MAX_INTERVAL).contains(&self.interval) {
            return invalid(format!(
                "an interval is 10 ms to 10 s, this one is {:?}",
                self.interval
            ));
        }
        Ok(())
    }
}

const MIN_INTERVAL: Duration = Duration::from_millis(10);
const MAX_INTERVAL: Duration = Duration::from_secs(10);

/// The time between two readings while no limit is near.
const FAR_INTERVAL: Duration = Duration::from_secs(1);

/// Ends the thread, and lifts its limits before this returns.
impl Drop for MemoryPressure {
    fn drop(&mut self) {
        self.shared.state.lock().is_stopped = true;
        self.shared.stopped.notify_all();
        // An eviction listener may drop the guard on the thread itself.
        let thread = self.thread.take();
        let other = thread.filter(|thread| thread.thread().id() != thread::current().id());
        if let Some(Err(panic)) = other.map(JoinHandle::join) {
            panics::discard(panic);
        }
    }
}

impl fmt::Debug for MemoryPressure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryPressure")
            .field("status", &self.status())
            .finish_non_exhaustive()
    }
}

/// The thread's state.
struct Watcher {
    builder: MemoryPressureBuilder,
    source: PressureSource,
    controller: Controller,
    start: Instant,
    /// The watched groups and their limits in bytes; `u64::MAX` for none.
    limits: Vec<(TemporaryLimit, u64)>,
    shared: Arc<WatchShared>,
}

impl Watcher {
    fn run(mut self, mut pause: Duration) {
        while self.waits(pause) {
            // The last handle of a group may be dropped here, and its getter's drop may panic.
            pause = caught(|| self.step()).unwrap_or(pause);
        }
    }

    /// False if the guard was dropped.
    fn waits(&self, pause: Duration) -> bool {
        let end = Instant::now() + pause;
        let mut state = self.shared.state.lock();
        while !state.is_stopped {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return true;
            }
            state = self.shared.stopped.wait_timeout(state, left);
        }
        false
    }

    /// Reads, decides and acts. Returns the time to the next reading.
    fn step(&mut self) -> Duration {
        self.find_groups();
        let reading = self.source.read();
        let sizes: Vec<GroupSize> = self.limits.iter().map(size).collect();
        let decision = self
            .controller
            .decide(self.start.elapsed(), &reading, &sizes);
        let mut trimmed = 0;
        for ((group, limit), &new) in self.limits.iter_mut().zip(&decision.limits) {
            if new != *limit {
                *limit = new;
                let used = group.group().weighted_size();
                group.set(new);
                trimmed += used.saturating_sub(used.min(group.group().weighted_size()));
            }
        }
        let allowed =
            |(group, limit): &(TemporaryLimit, u64)| group.group().max_capacity().min(*limit);
        let mut state = self.shared.state.lock();
        state.status = MemoryStatus {
            headroom: decision.headroom,
            allowed: self.limits.iter().map(allowed).fold(0, u64::saturating_add),
            trimmed: state.status.trimmed + trimmed,
            readings: state.status.readings + 1,
        };
        drop(state);
        if decision.is_far {
            self.builder.interval.max(FAR_INTERVAL)
        } else {
            self.builder.interval
        }
    }

    /// Adds new groups, and lifts the limits of groups that left their registry.
    fn find_groups(&mut self) {
        let mut groups = self.builder.groups.clone();
        groups.extend(self.builder.registries.iter().flat_map(Registry::groups));
        self.limits
            .retain(|(limit, _)| groups.iter().any(|group| group.is(limit.group())));
        for group in groups {
            if !self
                .limits
                .iter()
                .any(|(limit, _)| limit.group().is(&group))
            {
                self.limits.push((TemporaryLimit::new(group), u64::MAX));
            }
        }
    }
}

fn size((group, limit): &(TemporaryLimit, u64)) -> GroupSize {
    GroupSize {
        capacity: group.group().max_capacity(),
        used: group.occupied(),
        limit: *limit,
    }
}
