//! One call for many callers: the first caller of a key does the work, and callers that come
//! meanwhile wait for its result.

mod flight_key;
#[cfg(all(test, not(larder_loom)))]
mod tests;
mod wait;

use std::fmt;
use std::hash::BuildHasher;

use crossbeam_utils::CachePadded;
use foldhash::fast::RandomState;
use hashbrown::HashTable;

use crate::context::Context;
use crate::random::mix;
use crate::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use crate::sync::{Arc, Mutex, MutexGuard};
use crate::threads::recursion::LoadId;
use flight_key::FlightKey;
use wait::{FlightEnd, Outcome, WakeWaiters};

pub(crate) use wait::{Waited, Waiter};

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
            let mut stripe = stripe.lock();
            stripe.live().filter(|flight| !flight.is_forgotten).count()
        };
        self.stripes.iter().map(count).sum()
    }

    /// Starts a flight of `key` and leads it, or joins the one under way.
    pub(crate) fn join(&self, hash: u64, key: &str) -> Joined<'_, T> {
        let stripe = self.stripe(hash);
        let mut state = stripe.lock();
        if let Some(flight) = state.find(hash, key) {
            return Joined::Waiter(flight.waiter(stripe));
        }
        let number = state.begin(hash, key);
        let leader = Leader { stripe, number };
        Joined::Leader(leader, self.epoch(hash), self.forgets(hash))
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

    /// Changes when a flight of this hash is forgotten. Takes no lock.
    ///
    /// A leader stores its result elsewhere, under another lock, only if this is the same there as
    /// when its flight began. Then no forgotten flight replaces the result of a newer flight of its
    /// key: the newer one began after the change, so its leader's unlock of that lock makes the
    /// change visible to the older leader.
    #[inline]
    pub(crate) fn forgets(&self, hash: u64) -> ForgetCount {
        ForgetCount(self.stripe(hash).forgets[forget_slot(hash)].load(Ordering::Relaxed))
    }

    /// Leads a flight whose leader was [detached](Leader::detach).
    pub(crate) fn lead(&self, hash: u64, id: LoadId) -> Leader<'_, T> {
        let (stripe, number) = (self.stripe(hash), id.number());
        Leader { stripe, number }
    }

    pub(crate) fn forget_hashed(&self, hash: u64, key: &str) {
        let stripe = self.stripe(hash);
        let mut state = stripe.lock_and_advance();
        stripe.forgets[forget_slot(hash)].fetch_add(1, Ordering::Relaxed);
        if let Some(flight) = state.find(hash, key) {
            flight.is_forgotten = true;
        }
    }

    /// Like [`forget`](Self::forget), for every key.
    pub(crate) fn forget_all(&self) {
        for stripe in &self.stripes {
            let mut state = stripe.lock_and_advance();
            for count in &stripe.forgets {
                count.fetch_add(1, Ordering::Relaxed);
            }
            for flight in state.live() {
                flight.is_forgotten = true;
            }
        }
    }

    /// The number of callers that wait for the flight of `key`.
    #[cfg(all(test, not(larder_loom)))]
    pub(crate) fn waiters(&self, hash: u64, key: &str) -> usize {
        let mut stripe = self.stripe(hash).lock();
        let outcome = stripe
            .find(hash, key)
            .and_then(|flight| flight.outcome.as_ref());
        // The flight holds one reference, too.
        outcome.map_or(0, |outcome| Arc::strong_count(outcome) - 1)
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
            Joined::Leader(leader, ..) => {
                let value = work();
                leader.finish(&value);
                Ok(value)
            }
            Joined::Waiter(waiter) => {
                match waiter.wait_unsubscribed(&Context::background(), None) {
                    Waited::Finished(value) => Ok(value),
                    Waited::Panicked | Waited::Abandoned | Waited::Refused | Waited::Left(_) => {
                        Err(LeaderPanicked)
                    }
                }
            }
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
    /// Changed under the lock, and read without it.
    epoch: AtomicU64,
    state: Mutex<StripeState<T>>,
    /// Like `epoch`. See [`Group::forgets`].
    forgets: [AtomicU32; FORGET_SLOTS],
}

impl<T> Default for Stripe<T> {
    fn default() -> Self {
        Stripe {
            epoch: AtomicU64::new(0),
            state: Mutex::default(),
            forgets: std::array::from_fn(|_| AtomicU32::new(0)),
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

/// See [`Group::forgets`].
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct ForgetCount(u32);

/// The number of counts in a stripe. A `forget` in the same slot only keeps the result of another
/// key's flight from being stored.
const FORGET_SLOTS: usize = if cfg!(larder_loom) { 1 } else { 64 };

fn forget_slot(hash: u64) -> usize {
    (hash >> 40) as usize % FORGET_SLOTS
}

struct StripeState<T> {
    /// The number of flights that began here.
    begun: u64,
    /// Most stripes have one flight at most. It lies in the stripe, not in memory of its own, so that a thread waits
    /// for few cache lines that another one wrote last.
    first: Flight<T>,
    /// The other flights, by [`place_of`]. A call of a bulk getter leads a flight for each of its keys, so there
    /// may be many.
    others: HashTable<Flight<T>>,
}

impl<T> Default for StripeState<T> {
    fn default() -> Self {
        StripeState {
            begun: 0,
            first: Flight::default(),
            others: HashTable::new(),
        }
    }
}

impl<T> StripeState<T> {
    /// The flights under way.
    fn live(&mut self) -> impl Iterator<Item = &mut Flight<T>> {
        let first = Some(&mut self.first).filter(|flight| flight.number != 0);
        first.into_iter().chain(&mut self.others)
    }

    /// The flight that callers of this key join.
    fn find(&mut self, hash: u64, key: &str) -> Option<&mut Flight<T>> {
        let joins =
            |flight: &Flight<T>| flight.hash == hash && flight.key.is(key) && !flight.is_forgotten;
        if self.first.number != 0 && joins(&self.first) {
            return Some(&mut self.first);
        }
        if self.others.is_empty() {
            return None;
        }
        self.others.find_mut(place_of(hash), joins)
    }

    /// A flight that is led.
    fn led(&mut self, number: u64) -> Option<&mut Flight<T>> {
        if self.first.number == number {
            return Some(&mut self.first);
        }
        let is_it = |flight: &Flight<T>| flight.number == number;
        self.others.find_mut(place_of(number), is_it)
    }

    /// Begins a flight, and returns its number.
    fn begin(&mut self, hash: u64, key: &str) -> u64 {
        self.begun += 1;
        let number = self.begun << HASH_BITS | hash & HASH_MASK;
        // Written in place. If it was moved right after it was written, the move would stall (no store
        // forwarding).
        let mut other;
        let flight = if self.first.number == 0 {
            &mut self.first
        } else {
            let place = |flight: &Flight<T>| place_of(flight.number);
            other = self
                .others
                .insert_unique(place_of(hash), Flight::default(), place);
            other.get_mut()
        };
        flight.number = number;
        flight.hash = hash;
        flight.key.set(key);
        flight.is_forgotten = false;
        number
    }

    /// Ends a flight. Returns its outcome if it has waiters.
    fn end(&mut self, number: u64) -> Option<Arc<Outcome<T>>> {
        if self.first.number == number {
            self.first.number = 0;
            self.first.key.clear();
            return self.first.outcome.take();
        }
        let is_it = |flight: &Flight<T>| flight.number == number;
        let entry = self.others.find_entry(place_of(number), is_it).ok()?;
        let (ended, _) = entry.remove();
        if self.others.is_empty() {
            self.others = HashTable::new();
        }
        ended.outcome
    }
}

/// The bits of a key's hash that its flight's number ends with. So a flight is found by its key and by its number.
const HASH_BITS: u32 = 16;
const HASH_MASK: u64 = (1 << HASH_BITS) - 1;

/// The hash for the table of flights, of a key's hash or of a flight's number.
fn place_of(hash_or_number: u64) -> u64 {
    mix(hash_or_number & HASH_MASK)
}

/// The number of stripes. With 16, threads that load different keys rarely contend for a lock. Under
/// loom there is one, because loom would explore each.
const STRIPES: usize = if cfg!(larder_loom) { 1 } else { 16 };

/// The role of a caller of [`Group::join`].
pub(crate) enum Joined<'a, T> {
    /// The caller leads a new flight, which began in this [epoch](Group::epoch) and with this [count
    /// of forgets](Group::forgets).
    Leader(Leader<'a, T>, Epoch, ForgetCount),
    Waiter(Waiter<T>),
}

/// A call under way, or the place of one.
struct Flight<T> {
    /// Its number in the stripe, with the lowest bits of its hash; 0 if there is none.
    number: u64,
    hash: u64,
    /// Made for the first waiter. Most flights have none.
    outcome: Option<Arc<Outcome<T>>>,
    /// Whether new callers start another flight.
    is_forgotten: bool,
    key: FlightKey,
}

impl<T> Default for Flight<T> {
    fn default() -> Self {
        Flight {
            number: 0,
            hash: 0,
            outcome: None,
            is_forgotten: false,
            key: FlightKey::default(),
        }
    }
}

impl<T> Flight<T> {
    fn waiter(&mut self, stripe: &Stripe<T>) -> Waiter<T> {
        Waiter {
            id: LoadId::new(stripe, self.number),
            outcome: self.outcome.get_or_insert_default().clone(),
        }
    }
}

/// Held by the caller that does the work of a flight. If it is dropped without
/// [`finish`](Self::finish) or [`abandon`](Self::abandon), the leader panicked: the waiters get
/// [`Waited::Panicked`].
///
/// It has two words, which are passed in registers. A larger one would be copied at each call.
pub(crate) struct Leader<'a, T> {
    stripe: &'a Stripe<T>,
    /// The number of the flight in its stripe. 0 once the flight has ended, or another thread leads it.
    number: u64,
}

impl<T> Leader<'_, T> {
    /// Gives up the lead. The caller waits for the flight, and another thread [leads](Group::lead)
    /// it.
    pub(crate) fn detach(mut self) -> Waiter<T> {
        let number = std::mem::take(&mut self.number);
        let mut state = self.stripe.lock();
        let flight = state.led(number);
        let flight = flight.expect("a flight stays in its stripe while it is led");
        flight.waiter(self.stripe)
    }

    pub(crate) fn id(&self) -> LoadId {
        LoadId::new(self.stripe, self.number)
    }

    /// Ends the flight: callers from now on start another, and the waiters get clones of `value`.
    pub(crate) fn finish(mut self, value: &T)
    where
        T: Clone,
    {
        if let Some(mut waiters) = self.leave() {
            // The result is unset, because a flight has one leader. If the clone panics, the waiters
            // get [`Waited::Panicked`].
            let _ = waiters.outcome.result.set(value.clone());
            waiters.end = FlightEnd::Finished;
        }
    }

    /// Ends the flight without a result: one of the waiters leads the next flight.
    pub(crate) fn abandon(mut self) {
        if let Some(mut waiters) = self.leave() {
            waiters.end = FlightEnd::Abandoned;
        }
    }

    /// Like [`abandon`](Self::abandon), because the work may not begin.
    pub(crate) fn refuse(mut self) {
        if let Some(mut waiters) = self.leave() {
            waiters.end = FlightEnd::Refused;
        }
    }

    /// Removes the flight from its stripe. This comes before the waiters wake up, because a waiter
    /// that joins again must not find this flight.
    fn leave(&mut self) -> Option<WakeWaiters<T>> {
        let number = std::mem::take(&mut self.number);
        let outcome = self.stripe.lock_and_advance().end(number)?;
        Some(WakeWaiters {
            outcome,
            end: FlightEnd::Panicked,
        })
    }
}

impl<T> Drop for Leader<'_, T> {
    #[inline]
    fn drop(&mut self) {
        if self.number != 0 {
            self.leave();
        }
    }
}
