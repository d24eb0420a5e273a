//! A map that evicts the least recently used entry.
//!
//! It is for programs that need a small cache of their own, on one thread or behind their own lock.
//! A group does not use it: a group's store is sharded and bounded by bytes.
//!
//! ```
//! use larder::lru::Cache;
//!
//! let mut cache = Cache::new(2).with_on_evicted(|key: &String, value: &u32| {
//!     println!("{key} = {value} was evicted");
//! });
//! cache.add("one".to_owned(), 1);
//! cache.add("two".to_owned(), 2);
//! cache.get("one");
//! cache.add("three".to_owned(), 3); // evicts "two"
//! assert_eq!(cache.peek("two"), None);
//! assert_eq!(cache.get("one"), Some(&1));
//! ```

use std::borrow::Borrow;
use std::fmt;
use std::hash::{BuildHasher, Hash};

use foldhash::fast::RandomState;
use hashbrown::HashTable;

/// A cache of a bounded number of entries, which evicts the least recently used one.
///
/// Every operation but [`clear`](Self::clear) and [`iter`](Self::iter) takes constant time. An
/// entry takes its key and value, 16 bytes of links and hash, and 5 to 10 bytes of the table.
/// Hashes are seeded anew in each process, so an attacker that chooses keys cannot force collisions.
///
/// Dropping the cache drops its entries without calling the function of
/// [`set_on_evicted`](Self::set_on_evicted).
pub struct Cache<K, V> {
    max_entries: usize,
    /// Has no gaps: a removal moves the last slot into the free place.
    slots: Vec<Slot<K, V>>,
    /// Indices of `slots`, by the hash of the key there.
    table: HashTable<u32>,
    hash_builder: RandomState,
    newest: u32,
    oldest: u32,
    on_evicted: Option<Box<OnEvicted<K, V>>>,
}

type OnEvicted<K, V> = dyn FnMut(&K, &V) + Send;

struct Slot<K, V> {
    key: K,
    value: V,
    /// Stored, so that moving slots and growing the table never call the key's `Hash`.
    hash: u64,
    newer: u32,
    older: u32,
}

impl<K, V> Cache<K, V> {
    /// An empty cache of at most `max_entries` entries; 0 means no limit.
    ///
    /// Nothing is allocated in advance. Even without a limit it holds at most 2^32 - 1 entries.
    pub fn new(max_entries: usize) -> Self {
        Cache {
            max_entries: match max_entries {
                0 => NONE as usize,
                limit => limit.min(NONE as usize),
            },
            slots: Vec::new(),
            table: HashTable::new(),
            hash_builder: RandomState::default(),
            newest: NONE,
            oldest: NONE,
            on_evicted: None,
        }
    }

    /// Sets the function of [`set_on_evicted`](Self::set_on_evicted), and returns the cache.
    #[must_use]
    pub fn with_on_evicted(mut self, on_evicted: impl FnMut(&K, &V) + Send + 'static) -> Self {
        self.set_on_evicted(on_evicted);
        self
    }

    /// Sets a function that is called with each entry that leaves: evicted by [`add`](Self::add),
    /// removed by [`remove`](Self::remove) or [`remove_oldest`](Self::remove_oldest), or dropped by
    /// [`clear`](Self::clear). It is not called with values that [`add`](Self::add) replaces.
    ///
    /// It is called after the entry has left the cache. If it panics, the panic reaches the caller
    /// and the cache stays usable.
    pub fn set_on_evicted(&mut self, on_evicted: impl FnMut(&K, &V) + Send + 'static) {
        self.on_evicted = Some(Box::new(on_evicted));
    }

    /// Removes the least recently used entry, and returns it.
    pub fn remove_oldest(&mut self) -> Option<(K, V)> {
        let slot = self.take_oldest()?;
        Some(self.report(slot))
    }

    /// The number of entries.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether there are no entries.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Drops all entries, and frees their memory. If there is a function of
    /// [`set_on_evicted`](Self::set_on_evicted), it is called with the least recently used entry first.
    ///
    /// If that function panics, the entries that it was not called with stay in the cache.
    pub fn clear(&mut self) {
        if self.on_evicted.is_some() {
            while self.remove_oldest().is_some() {}
        }
        self.table = HashTable::new();
        (self.newest, self.oldest) = (NONE, NONE);
        // Last, because dropping a value may panic.
        self.slots = Vec::new();
    }

    /// The entries, most recently used first. Does not count as a use.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        std::iter::successors(self.slot(self.newest), |slot| self.slot(slot.older))
            .map(|slot| (&slot.key, &slot.value))
    }

    fn slot(&self, at: u32) -> Option<&Slot<K, V>> {
        // NONE is past the end.
        self.slots.get(at as usize)
    }

    /// Calls the user's function with a slot that has left the cache.
    fn report(&mut self, slot: Slot<K, V>) -> (K, V) {
        if let Some(on_evicted) = &mut self.on_evicted {
            on_evicted(&slot.key, &slot.value);
        }
        (slot.key, slot.value)
    }

    fn take_oldest(&mut self) -> Option<Slot<K, V>> {
        (self.oldest != NONE).then(|| self.take(self.oldest))
    }

    /// Removes a slot from the list, the table and the vector.
    fn take(&mut self, at: u32) -> Slot<K, V> {
        self.unlink(at);
        self.unmap(at);
        let slot = self.slots.swap_remove(at as usize);
        let was = self.slots.len() as u32;
        if at != was {
            // The last slot is now at `at`. Update the table and its neighbours.
            let Slot {
                hash, newer, older, ..
            } = self.slots[at as usize];
            if let Some(place) = self.table.find_mut(hash, |&place| place == was) {
                *place = at;
            }
            self.join(newer, at);
            self.join(at, older);
        }
        slot
    }

    fn unmap(&mut self, at: u32) {
        let hash = self.slots[at as usize].hash;
        if let Ok(entry) = self.table.find_entry(hash, |&place| place == at) {
            entry.remove();
        }
    }

    fn push_newest(&mut self, at: u32) {
        self.join(at, self.newest);
        self.join(NONE, at);
    }

    fn unlink(&mut self, at: u32) {
        let Slot { newer, older, .. } = self.slots[at as usize];
        self.join(newer, older);
    }

    /// Makes two slots neighbours. `NONE` is the end of the list on its side.
    fn join(&mut self, newer: u32, older: u32) {
        match self.slots.get_mut(newer as usize) {
            Some(slot) => slot.older = older,
            None => self.newest = older,
        }
        match self.slots.get_mut(older as usize) {
            Some(slot) => slot.newer = newer,
            None => self.oldest = newer,
        }
    }

    fn touch(&mut self, at: u32) {
        if at != self.newest {
            self.unlink(at);
            self.push_newest(at);
        }
    }
}

impl<K: Hash + Eq, V> Cache<K, V> {
    /// Inserts an entry as the most recently used, and evicts the least recently used if there are
    /// too many.
    ///
    /// Returns the value that it replaces, if the key was in the cache.
    pub fn add(&mut self, key: K, value: V) -> Option<V> {
        if let Some(at) = self.find(&key) {
            self.touch(at);
            let slot = &mut self.slots[at as usize];
            return Some(std::mem::replace(&mut slot.value, value));
        }
        let hash = self.hash_builder.hash_one(&key);
        let evicted = if self.slots.len() >= self.max_entries {
            self.take_oldest()
        } else {
            None
        };
        let at = self.slots.len() as u32;
        self.slots.push(Slot {
            key,
            value,
            hash,
            newer: NONE,
            older: NONE,
        });
        let slots = &self.slots;
        self.table
            .insert_unique(hash, at, |&place| slots[place as usize].hash);
        self.push_newest(at);
        if let Some(slot) = evicted {
            self.report(slot);
        }
        None
    }

    /// The value of `key`, which becomes the most recently used.
    pub fn get<Q>(&mut self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        self.get_mut(key).map(|value| &*value)
    }

    /// The value of `key`, mutable. The key becomes the most recently used.
    pub fn get_mut<Q>(&mut self, key: &Q) -> Option<&mut V>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        let at = self.find(key)?;
        self.touch(at);
        Some(&mut self.slots[at as usize].value)
    }

    /// The value of `key`. Does not count as a use.
    pub fn peek<Q>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        let at = self.find(key)?;
        Some(&self.slots[at as usize].value)
    }

    /// Whether `key` is in the cache. Does not count as a use.
    pub fn contains<Q>(&self, key: &Q) -> bool
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        self.find(key).is_some()
    }

    /// Removes `key`, and returns its value if it was in the cache.
    pub fn remove<Q>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        let at = self.find(key)?;
        let slot = self.take(at);
        Some(self.report(slot).1)
    }

    fn find<Q>(&self, key: &Q) -> Option<u32>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        let hash = self.hash_builder.hash_one(key);
        self.table
            .find(hash, |&at| self.slots[at as usize].key.borrow() == key)
            .copied()
    }
}

/// Writes the entries as a map, most recently used first.
impl<K: fmt::Debug, V: fmt::Debug> fmt::Debug for Cache<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

/// The index of no slot. It is also the limit of entries, because all indices are below it.
const NONE: u32 = u32::MAX;

#[cfg(test)]
mod tests;
