//! One call for many callers: whoever asks for a key first does the work, those who ask meanwhile
//! wait for its result.

mod stripes;
#[cfg(all(test, not(larder_loom)))]
mod tests;

use std::borrow::Cow;
use std::fmt;
use std::hash::{BuildHasher, Hasher};
use std::time::Instant;

use foldhash::fast::RandomState;

use crate::context::Context;
use crate::error::{Error, ErrorKind};
use crate::recursion::LoadId;
use crate::sync::{Arc, Condvar, Mutex, OnceLock};
use stripes::{Stripe, Stripes};

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
    stripes: Arc<Stripes<T>>,
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
        Group {
            stripes: Arc::default(),
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
        let count = |stripe: &Stripe<T>| {
            let mut flights = stripe.lock();
            let joinable = flights.iter_mut().filter(|flight| !flight.is_forgotten);
            joinable.count()
        };
        self.stripes.0.iter().map(count).sum()
    }

    /// Leads the flight of `key`, or joins the one under way.
    pub(crate) fn join(&self, hash: u64, key: &str) -> Joined<'_, T> {
        let stripe = self.stripes.of(hash);
        let mut flights = stripe.lock();
        if let Some(flight) = flights.find(hash, key) {
            return Joined::Follower(flight.ticket());
        }
        let id = LoadId::new();
        flights.begin(id, hash, key);
        Joined::Leader(Lead {
            stripes: Cow::Borrowed(&self.stripes),
            hash,
            id,
            changes: stripe.changes(),
            has_left: false,
        })
    }

    /// A mark that tells whether flights of keys of this hash have ended, or were forgotten,
    /// before another begins: see [`Lead::is_next_after`]. Takes no lock.
    #[inline]
    pub(crate) fn mark(&self, hash: u64) -> Mark {
        Mark(self.stripes.of(hash).changes())
    }

    pub(crate) fn forget_hashed(&self, hash: u64, key: &str) {
        let stripe = self.stripes.of(hash);
        let mut flights = stripe.lock();
        if let Some(flight) = flights.find(hash, key) {
            flight.is_forgotten = true;
        }
        stripe.count_change(&flights);
    }

    /// As [`forget`](Self::forget), for every key.
    pub(crate) fn forget_all(&self) {
        for stripe in &self.stripes.0 {
            let mut flights = stripe.lock();
            for flight in flights.iter_mut() {
                flight.is_forgotten = true;
            }
            stripe.count_change(&flights);
        }
    }

    /// How many callers wait for the flight of `key`, for tests that must know.
    #[cfg(all(test, not(larder_loom)))]
    pub(crate) fn waiters(&self, hash: u64, key: &str) -> usize {
        let mut flights = self.stripes.of(hash).lock();
        // The flight holds it too.
        let queue = flights
            .find(hash, key)
            .and_then(|flight| flight.queue.as_ref());
        queue.map_or(0, |queue| Arc::strong_count(queue) - 1)
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
                lead.finish(&value);
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

/// What the followers of one flight share.
struct Queue<T> {
    /// Whether the flight is over. Set under the lock after `result`, so that a waiter that saw it
    /// unset under the lock is woken by `changed`.
    is_over: Mutex<bool>,
    changed: Condvar,
    /// The result; stays empty if the leader gave up. Not inside the lock, so that waiters clone
    /// it at the same time.
    result: OnceLock<T>,
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Queue {
            is_over: Mutex::new(false),
            changed: Condvar::new(),
            result: OnceLock::new(),
        }
    }
}

/// What [`Group::join`] makes of a caller.
pub(crate) enum Joined<'a, T> {
    Leader(Lead<'a, T>),
    Follower(Ticket<T>),
}

/// The duty to land a flight. Dropping it without [`finish`](Self::finish) abandons the flight: its
/// waiters are told that there is no result, and one of them may lead the next.
pub(crate) struct Lead<'a, T> {
    stripes: Cow<'a, Arc<Stripes<T>>>,
    hash: u64,
    id: LoadId,
    /// The stripe's when the flight began.
    changes: u64,
    has_left: bool,
}

/// What [`Group::mark`] made a note of.
#[derive(Clone, Copy)]
pub(crate) struct Mark(u64);

impl<T> Lead<'_, T> {
    pub(crate) fn id(&self) -> LoadId {
        self.id
    }

    /// Whether no flight of the key ended or was forgotten between the mark and this one.
    ///
    /// For a caller that takes the mark before it lets go of a lock under which it found nothing: a
    /// flight that puts its result there under the same lock does so after the mark, and ends later
    /// still. So its end is counted after the mark, and before this flight began, since that was
    /// under the lock that ends are counted under.
    pub(crate) fn is_next_after(&self, mark: Mark) -> bool {
        self.changes == mark.0
    }

    /// A way to wait for the flight that somebody else will land.
    pub(crate) fn ticket(&self) -> Ticket<T> {
        let mut flights = self.stripes.of(self.hash).lock();
        let flight = flights.find_by(self.hash, |flight| flight.id == self.id);
        flight.expect("a flight stays while it is led").ticket()
    }

    /// The same duty, for another thread.
    pub(crate) fn into_owned(mut self) -> Lead<'static, T> {
        self.has_left = true;
        Lead {
            stripes: Cow::Owned(Arc::clone(&self.stripes)),
            hash: self.hash,
            id: self.id,
            changes: self.changes,
            has_left: false,
        }
    }

    /// Lands the flight: callers from now on start another, those waiting get clones of `value`.
    pub(crate) fn finish(mut self, value: &T)
    where
        T: Clone,
    {
        if let Some(over) = self.leave() {
            // An error would mean that a result is there already; a lead finishes once. If the
            // clone panics, the waiters learn that there is no result.
            let _ = over.0.result.set(value.clone());
        }
    }

    /// Takes the flight out of its map. Who waits for it is told of what there is when the returned
    /// value is dropped: a waiter that is told "abandoned" and asks again must not find this flight
    /// once more.
    fn leave(&mut self) -> Option<Over<T>> {
        self.has_left = true;
        self.stripes.of(self.hash).end(self.hash, self.id).map(Over)
    }
}

impl<T> Drop for Lead<'_, T> {
    fn drop(&mut self) {
        if !self.has_left {
            self.leave();
        }
    }
}

/// Tells a queue, when it is dropped, that its flight is over.
struct Over<T>(Arc<Queue<T>>);

impl<T> Drop for Over<T> {
    fn drop(&mut self) {
        *self.0.is_over.lock() = true;
        self.0.changed.notify_all();
    }
}

/// A place in the queue of waiters of one flight.
pub(crate) struct Ticket<T> {
    id: LoadId,
    queue: Arc<Queue<T>>,
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
        self.id
    }

    /// Waits until the flight is over or `ctx` is.
    pub(crate) fn wait(&self, ctx: &Context) -> Waited<T>
    where
        T: Send + Sync + 'static,
    {
        // A cancellation wakes all waiters of the flight; each looks at its own context. The
        // callback takes the lock, so it cannot run between a waiter's look and its wait.
        let _subscription = ctx.cancellable().then(|| {
            let queue = self.queue.clone();
            ctx.on_cancel(move || {
                let _is_over = queue.is_over.lock();
                queue.changed.notify_all();
            })
        });
        self.wait_unsubscribed(ctx)
    }

    /// The wait itself; a cancellation is seen only when something else wakes it.
    fn wait_unsubscribed(&self, ctx: &Context) -> Waited<T> {
        let mut is_over = self.queue.is_over.lock();
        while !*is_over {
            if ctx.is_cancelled() {
                return Waited::Left(ErrorKind::Cancelled.into());
            }
            is_over = match ctx.deadline() {
                None => self.queue.changed.wait(is_over),
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Waited::Left(ErrorKind::DeadlineExceeded.into());
                    }
                    self.queue.changed.wait_timeout(is_over, left)
                }
            };
        }
        drop(is_over);
        match self.queue.result.get() {
            Some(value) => Waited::Landed(value.clone()),
            None => Waited::Abandoned,
        }
    }
}
