//! One call for many callers: whoever asks for a key first does the work, those who ask meanwhile
//! wait for its result.

#[cfg(all(test, not(larder_loom)))]
mod tests;

use std::fmt;
use std::hash::{BuildHasher, Hasher};
use std::time::Instant;

use foldhash::fast::RandomState;
use hashbrown::HashTable;

use crate::context::Context;
use crate::error::{Error, ErrorKind};
use crate::recursion::LoadId;
use crate::sync::{Arc, Condvar, Mutex, OnceLock};

/// Merges calls for the same key at the same time into one.
///
/// ```
/// use larder::singleflight::Group;
///
/// let flights = Group::new();
/// let answer = flights.do_once("question", || 42);
/// assert_eq!(answer, Ok(42));
/// ```
pub struct Group<T> {
    map: Arc<Map<T>>,
    hasher: RandomState,
}

/// The caller that did the work for this key panicked; nothing is known of the result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaderPanicked;

impl fmt::Display for LeaderPanicked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the caller that did the work for this key panicked")
    }
}

impl std::error::Error for LeaderPanicked {}

impl<T> Group<T> {
    /// A group with no flight under way.
    pub fn new() -> Self {
        let stripes = (0..STRIPES).map(|_| Mutex::new(HashTable::new()));
        Group {
            map: Arc::new(Map {
                stripes: stripes.collect(),
            }),
            hasher: RandomState::default(),
        }
    }

    /// Lets calls for `key` that begin from now on start a flight of their own. Those that wait
    /// already get the result of the old one.
    pub fn forget(&self, key: &str) {
        self.forget_hashed(self.hash(key), key);
    }

    /// The number of flights under way.
    pub fn in_flight(&self) -> usize {
        let stripes = self.map.stripes.iter();
        stripes.map(|stripe| stripe.lock().len()).sum()
    }

    /// Leads the flight of `key`, or joins the one under way.
    pub(crate) fn join(&self, hash: u64, key: &str) -> Joined<T> {
        let mut flights = self.map.stripe(hash).lock();
        if let Some(flight) = flights.find(hash, |flight| flight.is_for(hash, key)) {
            return Joined::Follower(Ticket {
                flight: flight.clone(),
            });
        }
        let flight = Arc::new(Flight {
            id: LoadId::new(),
            hash,
            key: key.into(),
            landed: Mutex::new(Landed::default()),
            changed: Condvar::new(),
            result: OnceLock::new(),
        });
        flights.insert_unique(hash, flight.clone(), |flight| flight.hash);
        Joined::Leader(Lead {
            map: self.map.clone(),
            flight,
        })
    }

    pub(crate) fn forget_hashed(&self, hash: u64, key: &str) {
        let mut flights = self.map.stripe(hash).lock();
        // The leader holds the flight too, so no value is dropped here, under the lock.
        if let Ok(entry) = flights.find_entry(hash, |flight| flight.is_for(hash, key)) {
            entry.remove();
        }
    }

    /// As [`forget`](Self::forget), for every key.
    pub(crate) fn forget_all(&self) {
        for stripe in &self.map.stripes {
            let forgotten = std::mem::take(&mut *stripe.lock());
            drop(forgotten);
        }
    }

    /// How many callers wait for the flight of `key`, for tests that must know.
    #[cfg(all(test, not(larder_loom)))]
    pub(crate) fn waiters(&self, hash: u64, key: &str) -> usize {
        let flights = self.map.stripe(hash).lock();
        let flight = flights.find(hash, |flight| flight.is_for(hash, key));
        // The map and the leader hold it too.
        flight.map_or(0, |flight| Arc::strong_count(flight) - 2)
    }

    fn hash(&self, key: &str) -> u64 {
        let mut hasher = self.hasher.build_hasher();
        hasher.write(key.as_bytes());
        hasher.finish()
    }
}

impl<T: Clone> Group<T> {
    /// Runs `work` and returns its result; or, while a call for the same key is under way, waits
    /// for that one's and returns a clone of it.
    ///
    /// `work` runs on the calling thread with no lock held. It must not call `do_once` for its own
    /// key: it would wait for itself.
    ///
    /// # Errors
    ///
    /// If the caller that did the work panicked. The next call does the work again.
    ///
    /// # Panics
    ///
    /// If `work` panics, in the caller that ran it.
    pub fn do_once(&self, key: &str, work: impl FnOnce() -> T) -> Result<T, LeaderPanicked> {
        match self.join(self.hash(key), key) {
            // A panic drops the lead, which tells the followers.
            Joined::Leader(lead) => {
                let value = work();
                lead.finish(value.clone());
                Ok(value)
            }
            Joined::Follower(ticket) => match ticket.wait_unsubscribed(&Context::background()) {
                Waited::Landed(value) => Ok(value),
                Waited::Abandoned | Waited::Left(_) => Err(LeaderPanicked),
            },
        }
    }
}

impl<T> Default for Group<T> {
    fn default() -> Self {
        Group::new()
    }
}

impl<T> fmt::Debug for Group<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Group")
            .field("in_flight", &self.in_flight())
            .finish()
    }
}

/// Enough that threads loading different keys seldom meet at a lock; one under loom, which would
/// explore each.
const STRIPES: usize = if cfg!(larder_loom) { 1 } else { 16 };

/// Flights under way, by key. A flight leaves its map before its result is told.
struct Map<T> {
    stripes: Box<[Mutex<Stripe<T>>]>,
}

type Stripe<T> = HashTable<Arc<Flight<T>>>;

impl<T> Map<T> {
    /// Takes this flight out of its map, if a `forget` has not done so already.
    fn remove(&self, flight: &Arc<Flight<T>>) {
        let mut flights = self.stripe(flight.hash).lock();
        let same = |other: &Arc<Flight<T>>| Arc::ptr_eq(other, flight);
        if let Ok(entry) = flights.find_entry(flight.hash, same) {
            entry.remove();
        }
    }

    fn stripe(&self, hash: u64) -> &Mutex<Stripe<T>> {
        &self.stripes[(hash >> 32) as usize % STRIPES]
    }
}

struct Flight<T> {
    id: LoadId,
    hash: u64,
    key: Box<str>,
    /// Whether the flight is over. Set under the lock after `result`, so that a waiter that saw it
    /// unset under the lock is woken by `changed`.
    landed: Mutex<Landed>,
    changed: Condvar,
    /// The result; stays empty if the leader gave up. Not inside the lock, so that waiters clone
    /// it at the same time.
    result: OnceLock<T>,
}

#[derive(Default)]
struct Landed {
    is_over: bool,
    /// Whether anybody has ever waited.
    is_awaited: bool,
}

impl<T> Flight<T> {
    fn is_for(&self, hash: u64, key: &str) -> bool {
        self.hash == hash && *self.key == *key
    }
}

/// What [`Group::join`] makes of a caller.
pub(crate) enum Joined<T> {
    Leader(Lead<T>),
    Follower(Ticket<T>),
}

/// The duty to land a flight. Dropping it without [`finish`](Self::finish) abandons the flight: its
/// waiters are told that there is no result, and one of them may lead the next.
pub(crate) struct Lead<T> {
    map: Arc<Map<T>>,
    flight: Arc<Flight<T>>,
}

impl<T> Lead<T> {
    pub(crate) fn id(&self) -> LoadId {
        self.flight.id
    }

    /// A way to wait for the flight that somebody else will land.
    pub(crate) fn ticket(&self) -> Ticket<T> {
        Ticket {
            flight: self.flight.clone(),
        }
    }

    /// Lands the flight: callers from now on start another, those waiting get clones of `value`.
    pub(crate) fn finish(self, value: T) {
        // An error would mean that a result is there already; a lead finishes once.
        let _ = self.flight.result.set(value);
        // Dropping takes the flight out of the map, then wakes the waiters.
    }
}

impl<T> Drop for Lead<T> {
    fn drop(&mut self) {
        // First out of the map, then the news: a waiter that is told "abandoned" and asks again
        // must not find this flight once more.
        self.map.remove(&self.flight);
        let awaited = {
            let mut landed = self.flight.landed.lock();
            landed.is_over = true;
            landed.is_awaited
        };
        // To wake nobody costs a system call.
        if awaited {
            self.flight.changed.notify_all();
        }
    }
}

/// A place in the queue of waiters of one flight.
pub(crate) struct Ticket<T> {
    flight: Arc<Flight<T>>,
}

/// How a wait ended.
#[derive(Debug)]
pub(crate) enum Waited<T> {
    /// The flight landed with this result.
    Landed(T),
    /// The leader gave up; ask again.
    Abandoned,
    /// This waiter's own deadline or cancellation came first. The flight goes on.
    Left(Error),
}

impl<T: Clone> Ticket<T> {
    pub(crate) fn id(&self) -> LoadId {
        self.flight.id
    }

    /// Waits until the flight is over or `ctx` is.
    pub(crate) fn wait(&self, ctx: &Context) -> Waited<T>
    where
        T: Send + Sync + 'static,
    {
        // A cancellation wakes all waiters of the flight; each looks at its own context. The
        // callback takes the lock, so it cannot run between a waiter's look and its wait.
        let _subscription = ctx.cancellable().then(|| {
            let flight = self.flight.clone();
            ctx.on_cancel(move || {
                let _landed = flight.landed.lock();
                flight.changed.notify_all();
            })
        });
        self.wait_unsubscribed(ctx)
    }

    /// The wait itself; a cancellation is seen only when something else wakes it.
    fn wait_unsubscribed(&self, ctx: &Context) -> Waited<T> {
        let mut landed = self.flight.landed.lock();
        landed.is_awaited = true;
        while !landed.is_over {
            if ctx.is_cancelled() {
                return Waited::Left(ErrorKind::Cancelled.into());
            }
            landed = match ctx.deadline() {
                None => self.flight.changed.wait(landed),
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Waited::Left(ErrorKind::DeadlineExceeded.into());
                    }
                    self.flight.changed.wait_timeout(landed, left)
                }
            };
        }
        drop(landed);
        match self.flight.result.get() {
            Some(value) => Waited::Landed(value.clone()),
            None => Waited::Abandoned,
        }
    }
}
