//! Where flights under way are found by their keys.

use hashbrown::HashTable;

use super::{Queue, Ticket};
use crate::recursion::LoadId;
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::{Arc, Mutex, MutexGuard};

/// Enough that threads loading different keys seldom meet at a lock; one under loom, which would
/// explore each.
const STRIPES: usize = if cfg!(larder_loom) { 1 } else { 16 };

/// Flights under way, by key.
pub(super) struct Stripes<T>(pub(super) Box<[Stripe<T>]>);

impl<T> Default for Stripes<T> {
    fn default() -> Self {
        Stripes((0..STRIPES).map(|_| Stripe::default()).collect())
    }
}

impl<T> Stripes<T> {
    #[inline]
    pub(super) fn of(&self, hash: u64) -> &Stripe<T> {
        &self.0[(hash >> 32) as usize % STRIPES]
    }
}

/// A part of the flights on cache lines of its own: threads at different stripes write to
/// different lines.
#[repr(align(128))]
pub(super) struct Stripe<T> {
    flights: Mutex<Flights<T>>,
    /// Flights that ended here, and calls of `forget`. Changes under the lock, and is read without.
    changes: AtomicU64,
}

impl<T> Default for Stripe<T> {
    fn default() -> Self {
        Stripe {
            flights: Mutex::default(),
            changes: AtomicU64::new(0),
        }
    }
}

impl<T> Stripe<T> {
    pub(super) fn lock(&self) -> MutexGuard<'_, Flights<T>> {
        self.flights.lock()
    }

    /// Takes a flight out, before its result is told: callers from now on start another. Returns
    /// the queue of those who wait, if anybody does; nobody can join it any more.
    pub(super) fn end(&self, hash: u64, id: LoadId) -> Option<Arc<Queue<T>>> {
        let mut flights = self.lock();
        self.count_change(&flights);
        flights.end(hash, id)
    }

    #[inline]
    pub(super) fn changes(&self) -> u64 {
        self.changes.load(Ordering::Relaxed)
    }

    pub(super) fn count_change(&self, _lock: &MutexGuard<'_, Flights<T>>) {
        self.changes.store(self.changes() + 1, Ordering::Relaxed);
    }
}

pub(super) struct Flights<T> {
    /// A flight that began when there was no other here, which is what most do: it costs no
    /// hashing, its place is beside the lock, and its key is written where the last one's was, so
    /// that it allocates nothing. Is over unless `has_first`.
    first: Flight<T>,
    has_first: bool,
    others: HashTable<Flight<T>>,
}

/// What is kept for the key of a first flight once it is over, in bytes.
pub(super) const MAX_SPARE_KEY: usize = 256;

impl<T> Default for Flights<T> {
    fn default() -> Self {
        Flights {
            first: Flight::new(LoadId::new(), 0, ""),
            has_first: false,
            others: HashTable::new(),
        }
    }
}

impl<T> Flights<T> {
    /// The flight that callers for `key` join.
    #[inline]
    pub(super) fn find(&mut self, hash: u64, key: &str) -> Option<&mut Flight<T>> {
        self.find_by(hash, |flight| flight.is_for(hash, key))
    }

    #[inline]
    pub(super) fn find_by(
        &mut self,
        hash: u64,
        mut same: impl FnMut(&Flight<T>) -> bool,
    ) -> Option<&mut Flight<T>> {
        if self.has_first && same(&self.first) {
            return Some(&mut self.first);
        }
        if self.others.is_empty() {
            return None;
        }
        self.others.find_mut(hash, same)
    }

    #[inline]
    pub(super) fn begin(&mut self, id: LoadId, hash: u64, key: &str) {
        if self.has_first {
            let flight = Flight::new(id, hash, key);
            self.others
                .insert_unique(hash, flight, |flight| flight.hash);
            return;
        }
        self.has_first = true;
        let first = &mut self.first;
        first.id = id;
        first.hash = hash;
        first.key.clear();
        first.key.push_str(key);
        first.is_forgotten = false;
    }

    #[inline]
    fn end(&mut self, hash: u64, id: LoadId) -> Option<Arc<Queue<T>>> {
        if !(self.has_first && self.first.id == id) {
            let own = |flight: &Flight<T>| flight.id == id;
            return self.others.find_entry(hash, own).ok()?.remove().0.queue;
        }
        self.has_first = false;
        if self.spare_key() > MAX_SPARE_KEY {
            self.first.key = String::new();
        }
        self.first.queue.take()
    }

    /// The bytes kept for the key of the first flight.
    pub(super) fn spare_key(&self) -> usize {
        self.first.key.capacity()
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Flight<T>> {
        let first = self.has_first.then_some(&mut self.first);
        first.into_iter().chain(&mut self.others)
    }
}

/// A flight under way, from its leader's coming to its leader's going.
pub(super) struct Flight<T> {
    pub(super) id: LoadId,
    hash: u64,
    key: String,
    /// Whether nobody may join any more. The flight stays, for its leader to find its queue.
    pub(super) is_forgotten: bool,
    /// Where its followers wait. Made by the first of them: most flights have none.
    pub(super) queue: Option<Arc<Queue<T>>>,
}

impl<T> Flight<T> {
    fn new(id: LoadId, hash: u64, key: &str) -> Flight<T> {
        Flight {
            id,
            hash,
            key: key.to_owned(),
            is_forgotten: false,
            queue: None,
        }
    }

    fn is_for(&self, hash: u64, key: &str) -> bool {
        self.hash == hash && *self.key == *key && !self.is_forgotten
    }

    pub(super) fn ticket(&mut self) -> Ticket<T> {
        let queue = self.queue.get_or_insert_with(Arc::default);
        Ticket {
            id: self.id,
            queue: queue.clone(),
        }
    }
}
