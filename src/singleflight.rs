//! One call for many callers: the first caller of a key does the work, and callers that come
//! meanwhile wait for its result.

#[cfg(all(test, not(larder_loom)))]
mod tests;

use std::fmt;
use std::hash::BuildHasher;
use std::time::Instant;

use crossbeam_utils::CachePadded;
use foldhash::fast::RandomState;
use hashbrown::HashTable;

use crate::context::Context;
use crate::error::{Error, ErrorKind};
use crate::recursion::LoadId;
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock};

/// Merges concurrent calls for the same key into one.
///
/// ```
/// use larder::singleflight::Group;
///
/// let flights = Group::new();
/// let answer = flights.do_once("question", || 42);
/// assert_eq!(answer, Ok(42));
/// ```
pub struct Group<T> {
    /// Padded against false sharing between stripes.
    stripes: Box<[CachePadded<Stripe<T>>]>,
    hasher: RandomState,
}

/// The caller that did the work for this key panicked, so there is no result.
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
        Group {
            stripes: (0..STRIPES).map(|_| CachePadded::default()).collect(),
            hasher: RandomState::default(),
        }
    }

    /// Makes calls for `key` that begin from now on start a new flight. Calls that wait already get
    /// the result of the old one.
    pub fn forget(&self, key: &str) {
        self.forget_hashed(self.hash(key), key);
    }

    /// The number of flights under way that new calls can join.
    pub fn in_flight(&self) -> usize {
        let count = |stripe: &CachePadded<Stripe<T>>| {
            let stripe = stripe.lock();
            let joinable = |flight: &&Arc<Flight<T>>| !flight.is_forgotten.load(Ordering::Relaxed);
            stripe.flights.iter().filter(joinable).count()
        };
        self.stripes.iter().map(count).sum()
    }

    /// Starts a flight of `key` and leads it, or joins the one under way.
    pub(crate) fn join(&self, hash: u64, key: &str) -> Joined<'_, T> {
        let mut stripe = self.stripe(hash).lock();
        let StripeState { flights, spare } = &mut *stripe;
        if let Some(flight) = flights.find(hash, |flight| flight.is_for(hash, key)) {
            return Joined::Waiter(flight.clone());
        }
        let flight = Flight::begin(spare.take(), hash, key);
        let leader = self.lead(&flight);
        flights.insert_unique(hash, flight, |flight| flight.hash);
        Joined::Leader(leader, self.epoch(hash))
    }

    /// Changes when a flight of this hash's stripe ends or is forgotten. Takes no lock.
    ///
    /// Suppose a caller looks for a result under a lock, finds none, and reads the epoch before it
    /// releases that lock. Later it becomes the leader. If the epoch is the same then, no flight of
    /// the key has stored a result under that lock in between: such a flight would have ended after
    /// the first reading and before the second.
    #[inline]
    pub(crate) fn epoch(&self, hash: u64) -> Epoch {
        Epoch(self.stripe(hash).epoch.load(Ordering::Relaxed))
    }

    /// Leads a flight whose leader was [detached](Leader::detach).
    pub(crate) fn lead(&self, flight: &Arc<Flight<T>>) -> Leader<'_, T> {
        Leader {
            stripe: Some(self.stripe(flight.hash)),
            hash: flight.hash,
            id: LoadId::of(flight),
            left: None,
            end: FlightEnd::Panicked,
        }
    }

    pub(crate) fn forget_hashed(&self, hash: u64, key: &str) {
        let mut stripe = self.stripe(hash).lock_and_advance();
        let flights = &mut stripe.flights;
        if let Some(flight) = flights.find(hash, |flight| flight.is_for(hash, key)) {
            flight.is_forgotten.store(true, Ordering::Relaxed);
        }
    }

    /// As [`forget`](Self::forget), for every key.
    pub(crate) fn forget_all(&self) {
        for stripe in &self.stripes {
            for flight in &stripe.lock_and_advance().flights {
                flight.is_forgotten.store(true, Ordering::Relaxed);
            }
        }
    }

    /// The number of callers that wait for the flight of `key`.
    #[cfg(all(test, not(larder_loom)))]
    pub(crate) fn waiters(&self, hash: u64, key: &str) -> usize {
        let stripe = self.stripe(hash).lock();
        let flight = stripe.flights.find(hash, |flight| flight.is_for(hash, key));
        // The stripe holds one reference, too.
        flight.map_or(0, |flight| Arc::strong_count(flight).saturating_sub(1))
    }

    fn stripe(&self, hash: u64) -> &Stripe<T> {
        &self.stripes[(hash >> 32) as usize % STRIPES]
    }

    fn hash(&self, key: &str) -> u64 {
        self.hasher.hash_one(key)
    }
}

impl<T: Clone> Group<T> {
    /// Runs `work` and returns its result. If a call for the same key is under way, waits for that
    /// call instead, and returns a clone of its result.
    ///
    /// `work` runs on the calling thread with no lock held. It must not call `do_once` for its own
    /// key, because it would wait for itself.
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
            // If `work` panics, the leader is dropped, which releases the waiters.
            Joined::Leader(leader, _) => {
                let value = work();
                leader.finish(&value);
                Ok(value)
            }
            Joined::Waiter(flight) => match flight.wait_unsubscribed(&Context::background()) {
                Waited::Finished(value) => Ok(value),
                Waited::Panicked | Waited::Abandoned | Waited::Left(_) => Err(LeaderPanicked),
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

/// The flights of a part of the keys, including forgotten ones.
struct Stripe<T> {
    state: Mutex<StripeState<T>>,
    /// Changed under the lock, and read without it.
    epoch: AtomicU64,
}

impl<T> Default for Stripe<T> {
    fn default() -> Self {
        Stripe {
            state: Mutex::default(),
            epoch: AtomicU64::new(0),
        }
    }
}

impl<T> Stripe<T> {
    fn lock(&self) -> MutexGuard<'_, StripeState<T>> {
        self.state.lock()
    }

    /// Locks the stripe to end or forget flights, and advances the epoch.
    fn lock_and_advance(&self) -> MutexGuard<'_, StripeState<T>> {
        let state = self.state.lock();
        let epoch = self.epoch.load(Ordering::Relaxed);
        self.epoch.store(epoch + 1, Ordering::Relaxed);
        state
    }
}

/// See [`Group::epoch`].
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Epoch(u64);

struct StripeState<T> {
    flights: HashTable<Arc<Flight<T>>>,
    /// A flight that ended without waiters. The next flight reuses it, so most loads allocate no
    /// flight.
    spare: Option<Arc<Flight<T>>>,
}

impl<T> Default for StripeState<T> {
    fn default() -> Self {
        StripeState {
            flights: HashTable::new(),
            spare: None,
        }
    }
}

/// The longest key that a spare flight keeps room for, in bytes.
const MAX_SPARE_KEY: usize = 256;

/// The number of stripes. With 16, threads that load different keys rarely contend for a lock. Under
/// loom there is one, because loom would explore each.
const STRIPES: usize = if cfg!(larder_loom) { 1 } else { 16 };

/// The role of a caller of [`Group::join`].
pub(crate) enum Joined<'a, T> {
    /// The caller leads a new flight, which began in this [epoch](Group::epoch).
    Leader(Leader<'a, T>, Epoch),
    Waiter(Arc<Flight<T>>),
}

/// A call under way. Its stripe and its waiters hold references to it.
pub(crate) struct Flight<T> {
    hash: u64,
    key: String,
    /// Whether new callers start another flight. Changed and read under the stripe's lock.
    is_forgotten: AtomicBool,
    /// `None` while the flight is under way. Set under the lock, after `result`. A waiter checks it
    /// under the same lock before it waits, so it does not miss the wake-up of `changed`.
    end: Mutex<Option<FlightEnd>>,
    changed: Condvar,
    /// The result of a finished flight. It is outside the lock, so that waiters clone it in parallel.
    result: OnceLock<T>,
}

/// How a flight ended.
#[derive(Clone, Copy)]
enum FlightEnd {
    Finished,
    Abandoned,
    Panicked,
}

/// How a wait ended.
#[derive(Debug)]
pub(crate) enum Waited<T> {
    /// The flight has this result.
    Finished(T),
    /// The leader abandoned the flight. The waiter has to join again.
    Abandoned,
    /// The leader panicked.
    Panicked,
    /// This waiter's own deadline or cancellation came first. The flight goes on.
    Left(Error),
}

impl<T> Flight<T> {
    /// A flight of `key`: the spare one if there is one, else a new one.
    fn begin(spare: Option<Arc<Self>>, hash: u64, key: &str) -> Arc<Self> {
        if let Some(mut flight) = spare {
            // It had no waiters, so `end` and `result` are unset and no other reference is left.
            if let Some(reused) = Arc::get_mut(&mut flight) {
                reused.hash = hash;
                reused.key.clear();
                reused.key.push_str(key);
                reused.is_forgotten.store(false, Ordering::Relaxed);
                return flight;
            }
        }
        Arc::new(Flight {
            hash,
            key: key.to_owned(),
            is_forgotten: AtomicBool::new(false),
            end: Mutex::default(),
            changed: Condvar::new(),
            result: OnceLock::new(),
        })
    }

    fn is_for(&self, hash: u64, key: &str) -> bool {
        self.hash == hash && *self.key == *key && !self.is_forgotten.load(Ordering::Relaxed)
    }
}

impl<T: Clone> Flight<T> {
    /// Waits until the flight is over or `ctx` has ended.
    pub(crate) fn wait(self: &Arc<Self>, ctx: &Context) -> Waited<T>
    where
        T: Send + Sync + 'static,
    {
        // A cancellation wakes all waiters of the flight, and each checks its own context. The
        // callback takes the lock, so it cannot run between a waiter's check and its wait.
        let _subscription = ctx.cancellable().then(|| {
            let flight = self.clone();
            ctx.on_cancel(move || {
                let _end = flight.end.lock();
                flight.changed.notify_all();
            })
        });
        self.wait_unsubscribed(ctx)
    }

    /// As [`wait`](Self::wait), but a cancellation does not wake the waiter.
    fn wait_unsubscribed(&self, ctx: &Context) -> Waited<T> {
        let mut end = self.end.lock();
        while end.is_none() {
            if ctx.is_cancelled() {
                return Waited::Left(ErrorKind::Cancelled.into());
            }
            end = match ctx.deadline() {
                None => self.changed.wait(end),
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Waited::Left(ErrorKind::DeadlineExceeded.into());
                    }
                    self.changed.wait_timeout(end, left)
                }
            };
        }
        let panicked = matches!(*end, Some(FlightEnd::Panicked));
        drop(end);
        match self.result.get() {
            Some(value) => Waited::Finished(value.clone()),
            None if panicked => Waited::Panicked,
            None => Waited::Abandoned,
        }
    }
}

/// Held by the caller that does the work of a flight. If it is dropped without
/// [`finish`](Self::finish) or [`abandon`](Self::abandon), the leader panicked: the waiters get
/// [`Waited::Panicked`].
pub(crate) struct Leader<'a, T> {
    /// `None` once the flight has left its stripe, or another thread leads it.
    stripe: Option<&'a Stripe<T>>,
    hash: u64,
    id: LoadId,
    /// The flight, if it had waiters when it left the stripe.
    left: Option<Arc<Flight<T>>>,
    end: FlightEnd,
}

impl<T> Leader<'_, T> {
    /// Gives up the lead. The caller waits for the returned flight, and another thread
    /// [leads](Group::lead) it.
    pub(crate) fn detach(mut self) -> Arc<Flight<T>> {
        let stripe = self.stripe.take().expect("a leader is detached once");
        let stripe = stripe.lock();
        let flight = stripe
            .flights
            .find(self.hash, |flight| LoadId::of(flight) == self.id);
        flight
            .expect("a flight stays in its stripe while it is led")
            .clone()
    }

    pub(crate) fn id(&self) -> LoadId {
        self.id
    }

    /// Ends the flight: callers from now on start another, and the waiters get clones of `value`.
    pub(crate) fn finish(mut self, value: &T)
    where
        T: Clone,
    {
        self.leave();
        if let Some(flight) = &self.left {
            // The result is unset, because a flight has one leader. If the clone panics, the waiters
            // get [`Waited::Panicked`].
            let _ = flight.result.set(value.clone());
        }
        self.end = FlightEnd::Finished;
    }

    /// Ends the flight without a result: one of the waiters leads the next flight.
    pub(crate) fn abandon(mut self) {
        self.end = FlightEnd::Abandoned;
    }

    /// Removes the flight from its stripe. This comes before the waiters wake up, because a waiter
    /// that joins again must not find this flight.
    fn leave(&mut self) {
        let Some(stripe) = self.stripe.take() else {
            return;
        };
        let mut stripe = stripe.lock_and_advance();
        let this = |flight: &Arc<Flight<T>>| LoadId::of(flight) == self.id;
        if let Ok(flight) = stripe.flights.find_entry(self.hash, this) {
            let (flight, _) = flight.remove();
            if Arc::strong_count(&flight) > 1 {
                self.left = Some(flight);
            } else if flight.key.capacity() <= MAX_SPARE_KEY {
                stripe.spare = Some(flight);
            }
        }
    }
}

impl<T> Drop for Leader<'_, T> {
    fn drop(&mut self) {
        self.leave();
        if let Some(flight) = &self.left {
            *flight.end.lock() = Some(self.end);
            flight.changed.notify_all();
        }
    }
}
