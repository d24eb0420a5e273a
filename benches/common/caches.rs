//! Caches that fill themselves on a miss, each with its own API, with room for the same number of
//! entries.
//!
//! A value has 100 bytes, a key 16. Each cache weighs an entry in its own way: larder includes the
//! memory of the allocator and the tables, the others get the lengths of key and value. The capacity
//! is the weight of one entry times the number of entries, so all keep about the same number.

use std::cell::Cell;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use larder::{Context, Group, Registry, Sink};

/// The common interface of the caches.
pub trait Cache: Sync {
    /// The length of the key's value, loaded if it was missing. By `&String`, because mini-moka
    /// cannot look up a `&str`.
    #[allow(clippy::ptr_arg, reason = "see above")]
    fn get(&self, key: &String) -> usize;

    /// The number of entries now.
    fn entries(&self) -> u64;
}

/// Makes a cache for `entries` entries that calls `load` for each miss.
pub type Make = fn(entries: usize, load: Load) -> Box<dyn Cache>;

/// Makes a value, on the thread of the caller.
pub type Load = fn();

/// All caches. In the first three, callers of one key share a load.
pub const ALL: [(&str, Make); 5] = [
    ("larder", larder),
    ("quick_cache", quick_cache),
    ("moka", moka),
    ("mini-moka", mini_moka),
    ("lru+Mutex", lru),
];

/// The number of caches in [`ALL`] that share loads.
pub const SHARING: usize = 3;

pub const VALUE: [u8; 100] = [7; 100];

/// The length of a key.
pub const KEY: usize = 16;

thread_local! {
    static LOADS: Cell<u64> = const { Cell::new(0) };
}

/// The loads of this thread so far, by all caches. Threads do not share a counter, because it would be
/// the slowest part of a fill.
pub fn loads() -> u64 {
    LOADS.get()
}

/// The cheapest load: it only counts.
pub fn count_load() {
    LOADS.set(LOADS.get() + 1);
}

/// The `n`th key of a kind, which is a letter. It has 16 bytes.
pub fn key(kind: char, n: u64) -> String {
    format!("{kind}{n:015}")
}

fn larder(entries: usize, load: Load) -> Box<dyn Cache> {
    let group = |capacity, load: Load| {
        Group::builder("bench")
            .registry(&Registry::new())
            .max_capacity(capacity)
            .build(move |_: &Context, _: &str, dest: &mut dyn Sink| {
                load();
                Ok(dest.set_bytes(&VALUE)?)
            })
            .expect("the options are right")
    };
    let one = group(1 << 20, || {});
    one.get(&key('k', 0)).expect("the getter answers");
    Box::new(group(entries as u64 * one.weighted_size(), load))
}

impl Cache for Group {
    fn get(&self, key: &String) -> usize {
        Group::get(self, key).expect("the getter answers").len()
    }

    fn entries(&self) -> u64 {
        self.entry_count()
    }
}

/// The value of the other caches: one allocation, and a clone is a new reference, as with larder.
type Shared = Arc<[u8]>;

fn bytes_of(entries: usize) -> u64 {
    (entries * (KEY + VALUE.len())) as u64
}

struct QuickCache {
    cache: quick_cache::sync::Cache<String, Shared, Lengths>,
    load: Load,
}

#[derive(Clone)]
struct Lengths;

impl quick_cache::Weighter<String, Shared> for Lengths {
    fn weight(&self, key: &String, value: &Shared) -> u64 {
        (key.len() + value.len()) as u64
    }
}

fn quick_cache(entries: usize, load: Load) -> Box<dyn Cache> {
    let cache = quick_cache::sync::Cache::with_weighter(entries, bytes_of(entries), Lengths);
    Box::new(QuickCache { cache, load })
}

impl Cache for QuickCache {
    fn get(&self, key: &String) -> usize {
        let value = self.cache.get_or_insert_with(key.as_str(), || {
            (self.load)();
            Ok::<_, Infallible>(Shared::from(&VALUE[..]))
        });
        value.expect("infallible").len()
    }

    fn entries(&self) -> u64 {
        self.cache.len() as u64
    }
}

fn length(key: &impl AsRef<str>, value: &Shared) -> u32 {
    (key.as_ref().len() + value.len()) as u32
}

struct Moka {
    cache: moka::sync::Cache<String, Shared>,
    load: Load,
}

fn moka(entries: usize, load: Load) -> Box<dyn Cache> {
    let cache = moka::sync::Cache::builder()
        .max_capacity(bytes_of(entries))
        .weigher(length)
        .build();
    Box::new(Moka { cache, load })
}

impl Cache for Moka {
    fn get(&self, key: &String) -> usize {
        let value = self.cache.try_get_with_by_ref(key.as_str(), || {
            (self.load)();
            Ok::<_, Infallible>(Shared::from(&VALUE[..]))
        });
        value.expect("infallible").len()
    }

    fn entries(&self) -> u64 {
        self.cache.run_pending_tasks();
        self.cache.entry_count()
    }
}

struct MiniMoka {
    cache: mini_moka::sync::Cache<String, Shared>,
    load: Load,
}

fn mini_moka(entries: usize, load: Load) -> Box<dyn Cache> {
    let cache = mini_moka::sync::Cache::builder()
        .max_capacity(bytes_of(entries))
        .weigher(length)
        .build();
    Box::new(MiniMoka { cache, load })
}

impl Cache for MiniMoka {
    fn get(&self, key: &String) -> usize {
        if let Some(value) = self.cache.get(key) {
            return value.len();
        }
        (self.load)();
        let value = Shared::from(&VALUE[..]);
        self.cache.insert(key.clone(), value.clone());
        value.len()
    }

    fn entries(&self) -> u64 {
        mini_moka::sync::ConcurrentCacheExt::sync(&self.cache);
        self.cache.entry_count()
    }
}

struct Lru {
    kept: Mutex<Kept>,
    capacity: u64,
    load: Load,
}

struct Kept {
    entries: lru::LruCache<String, Shared>,
    bytes: u64,
}

fn lru(entries: usize, load: Load) -> Box<dyn Cache> {
    let kept = Kept {
        entries: lru::LruCache::unbounded(),
        bytes: 0,
    };
    Box::new(Lru {
        kept: Mutex::new(kept),
        capacity: bytes_of(entries),
        load,
    })
}

impl Cache for Lru {
    fn get(&self, key: &String) -> usize {
        let cached = self.lock().entries.get(key).cloned();
        if let Some(value) = cached {
            return value.len();
        }
        (self.load)();
        let (key, value) = (key.clone(), Shared::from(&VALUE[..]));
        let mut kept = self.lock();
        kept.bytes += u64::from(length(&key, &value));
        if let Some(other) = kept.entries.put(key, value.clone()) {
            kept.bytes -= (KEY + other.len()) as u64;
        }
        while kept.bytes > self.capacity {
            let Some((key, value)) = kept.entries.pop_lru() else {
                break;
            };
            kept.bytes -= u64::from(length(&key, &value));
        }
        value.len()
    }

    fn entries(&self) -> u64 {
        self.lock().entries.len() as u64
    }
}

impl Lru {
    fn lock(&self) -> std::sync::MutexGuard<'_, Kept> {
        self.kept.lock().expect("no panic under the lock")
    }
}
