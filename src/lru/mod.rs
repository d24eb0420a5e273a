//! A map that forgets what was used least recently.
//!
//! For programs that need a small cache of their own, on one thread or behind their own lock; a
//! group's store is another thing, sharded and bounded by bytes.
//!
//! ```
//! use larder::lru::Cache;
//!
//! let mut cache = Cache::new(2).with_on_evicted(|key: &String, value: &u32| {
//!     println!("{key} = {value} is gone");
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

/// A cache of at most a number of entries, which evicts the least recently used.
///
/// Every operation but [`clear`](Self::clear) and [`iter`](Self::iter) takes constant time. An
/// entry costs its key and value, 16 bytes of links and hash, and 5 to 10 bytes of the table.
/// Hashes are seeded anew in each process, so strangers who choose keys cannot aim for collisions.
///
/// Dropping the cache drops its entries without calling the function of
/// [`set_on_evicted`](Self::set_on_evicted).
pub struct Cache<K, V> {
    max_entries: usize,
    /// Dense: a removal moves the last slot into the gap.
    slots: Vec<Slot<K, V>>,
    /// Places in `slots`, by the hash of the key there.
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
    /// Kept, so that moving slots and growing the table never run the key's own code.
    hash: u64,
    newer: u32,
    older: u32,
}

impl<K, V> Cache<K, V> {
    /// An empty cache that keeps `max_entries` entries; 0 stands for no limit.
    ///
    /// Nothing is allocated ahead. Even without a limit it holds no more than 2^32 - 1 entries.
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

    /// The same, with a function as for [`set_on_evicted`](Self::set_on_evicted).
    #[must_use]
    pub fn with_on_evicted(mut self, on_evicted: impl FnMut(&K, &V) + Send + 'static) -> Self {
        self.set_on_evicted(on_evicted);
        self
    }

    /// Has `on_evicted` called with each entry that leaves: evicted by [`add`](Self::add), taken
    /// by [`remove`](Self::remove) or [`remove_oldest`](Self::remove_oldest), or dropped by
    /// [`clear`](Self::clear). Not with values that [`add`](Self::add) replaces. (As in Go.)
    ///
    /// It is called when the entry has left and the cache is in order again, so a panic in it
    /// reaches the caller and leaves the cache usable.
    pub fn set_on_evicted(&mut self, on_evicted: impl FnMut(&K, &V) + Send + 'static) {
        self.on_evicted = Some(Box::new(on_evicted));
    }

    /// Takes the least recently used entry out.
    pub fn remove_oldest(&mut self) -> Option<(K, V)> {
        let slot = self.take_oldest()?;
        Some(self.let_go(slot))
    }

    /// The number of entries.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether there are no entries.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Drops all entries, the least recently used first, and gives their memory back.
    ///
    /// If the function of [`set_on_evicted`](Self::set_on_evicted) panics, the entries that it
    /// was not called with stay.
    pub fn clear(&mut self) {
        if self.on_evicted.is_some() {
            while self.remove_oldest().is_some() {}
        }
        self.table = HashTable::new();
        (self.newest, self.oldest) = (NONE, NONE);
        // Last, as values may panic when they are dropped.
        self.slots = Vec::new();
    }

    /// The entries, most recently used first. Uses none of them.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        std::iter::successors(self.slot(self.newest), |slot| self.slot(slot.older))
            .map(|slot| (&slot.key, &slot.value))
    }

    fn slot(&self, at: u32) -> Option<&Slot<K, V>> {
        // NONE lies past the end.
        self.slots.get(at as usize)
    }

    /// Calls the user's function with a slot that is out of the cache.
    fn let_go(&mut self, slot: Slot<K, V>) -> (K, V) {
        if let Some(on_evicted) = &mut self.on_evicted {
            on_evicted(&slot.key, &slot.value);
        }
        (slot.key, slot.value)
    }

    fn take_oldest(&mut self) -> Option<Slot<K, V>> {
        (self.oldest != NONE).then(|| self.take(self.oldest))
    }

    /// Takes a slot out of list, table and slab.
    fn take(&mut self, at: u32) -> Slot<K, V> {
        self.unlink(at);
        self.unmap(at);
        let slot = self.slots.swap_remove(at as usize);
        let was = self.slots.len() as u32;
        if at != was {
            // The last slot is now at `at`: whoever knew it by its old place is told.
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

    /// Makes two slots neighbours. `NONE` stands for the end of the list on its side.
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
    /// Puts an entry in as the most recently used, and evicts the least recently used if there
    /// are too many.
    ///
    /// Returns the value that it replaces, if the key was there.
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
            self.let_go(slot);
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

    /// The value of `key`, to be changed in place. The key becomes the most recently used.
    pub fn get_mut<Q>(&mut self, key: &Q) -> Option<&mut V>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        let at = self.find(key)?;
        self.touch(at);
        Some(&mut self.slots[at as usize].value)
    }

    /// The value of `key`, which does not count as used.
    pub fn peek<Q>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        let at = self.find(key)?;
        Some(&self.slots[at as usize].value)
    }

    /// Whether `key` is there; it does not count as used.
    pub fn contains<Q>(&self, key: &Q) -> bool
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        self.find(key).is_some()
    }

    /// Takes `key` out; returns its value if it was there.
    pub fn remove<Q>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        let at = self.find(key)?;
        let slot = self.take(at);
        Some(self.let_go(slot).1)
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

/// The place of no slot. Places below it are all that fit, hence the limit of entries.
const NONE: u32 = u32::MAX;

#[cfg(test)]
mod tests;
