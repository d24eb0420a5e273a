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
            flights: Mutex::new(Flights {
                first: None,
                others: HashTable::new(),
                spare_key: String::new(),
            }),
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
    /// hashing, and its place is beside the lock.
    first: Option<Flight<T>>,
    others: HashTable<Flight<T>>,
    /// The key of a flight that is over, in whose place the next one is written: most flights
    /// allocate nothing.
    pub(super) spare_key: String,
}

/// Longer keys are not kept as spare ones, in bytes.
pub(super) const MAX_SPARE_KEY: usize = 256;

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
        match &mut self.first {
            Some(first) if same(first) => Some(first),
            _ if self.others.is_empty() => None,
            _ => self.others.find_mut(hash, same),
        }
    }

    pub(super) fn begin(&mut self, id: LoadId, hash: u64, key: &str) {
        let mut own_key = std::mem::take(&mut self.spare_key);
        own_key.clear();
        own_key.push_str(key);
        let flight = Flight {
            id,
            hash,
            key: own_key,
            is_forgotten: false,
            queue: None,
        };
        if self.first.is_none() {
            self.first = Some(flight);
        } else {
            self.others
                .insert_unique(hash, flight, |flight| flight.hash);
        }
    }

    fn end(&mut self, hash: u64, id: LoadId) -> Option<Arc<Queue<T>>> {
        let own = |flight: &Flight<T>| flight.id == id;
        let flight = match self.first.take_if(|first| own(first)) {
            Some(first) => first,
            None => self.others.find_entry(hash, own).ok()?.remove().0,
        };
        if flight.key.capacity() <= MAX_SPARE_KEY {
            self.spare_key = flight.key;
        }
        flight.queue
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Flight<T>> {
        self.first.iter_mut().chain(&mut self.others)
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
