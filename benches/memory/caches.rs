//! The caches, with one interface. A value's bytes come from a buffer, so that the figures do not include
//! memory of the program that fills the cache.

use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

use larder::{Context, Group, Registry, Sink};

/// The length of the value of the n-th key.
pub type Size = fn(u64) -> usize;

/// A cache whose values can be held.
pub trait Cache: Send + Sync {
    /// Inserts the n-th key. Returns its value.
    fn put(&self, n: u64) -> Box<dyn Any + Send>;

    /// Inserts the n-th key again, in place of its old value.
    fn replace(&self, n: u64) -> Box<dyn Any + Send> {
        self.put(n)
    }

    fn remove(&self, n: u64);

    fn entries(&self) -> u64;

    fn clear(&self);
}

/// The options of a cache.
#[derive(Clone, Copy)]
pub struct Options {
    pub capacity: u64,
    pub size: Size,
    pub time_to_live: Option<Duration>,
}

pub const ALL: [&str; 3] = ["larder", "quick_cache", "moka"];

/// `None` if the cache lacks an option.
pub fn cache(implementation: &str, options: Options) -> Option<Box<dyn Cache>> {
    match implementation {
        "larder" => Some(Box::new(larder(options))),
        "quick_cache" if options.time_to_live.is_none() => Some(Box::new(quick_cache(options))),
        "moka" => Some(Box::new(moka(options))),
        _ => None,
    }
}

fn key(n: u64) -> String {
    format!("key-{n:012}")
}

/// The source of all values.
static BYTES: [u8; 1 << 20] = [7; 1 << 20];

fn larder(options: Options) -> Group {
    let builder = Group::builder("memory")
        .registry(&Registry::new())
        .max_capacity(options.capacity);
    let builder = match options.time_to_live {
        Some(ttl) => builder.time_to_live(ttl),
        None => builder,
    };
    let size = options.size;
    builder
        .build(move |_: &Context, key: &str, dest: &mut dyn Sink| {
            Ok(dest.set_bytes(&BYTES[..size(key[4..].parse()?)])?)
        })
        .expect("the options are right")
}

impl Cache for Group {
    fn put(&self, n: u64) -> Box<dyn Any + Send> {
        Box::new(self.get(&key(n)).expect("the getter answers"))
    }

    fn replace(&self, n: u64) -> Box<dyn Any + Send> {
        self.invalidate(&key(n));
        self.put(n)
    }

    fn remove(&self, n: u64) {
        self.invalidate(&key(n));
    }

    fn entries(&self) -> u64 {
        self.entry_count()
    }

    fn clear(&self) {
        Group::clear_local(self);
    }
}

type Shared = Arc<[u8]>;

#[derive(Clone)]
struct Payload;

impl quick_cache::Weighter<String, Shared> for Payload {
    fn weight(&self, key: &String, value: &Shared) -> u64 {
        (key.len() + value.len()) as u64
    }
}

struct QuickCache(quick_cache::sync::Cache<String, Shared, Payload>, Size);

fn quick_cache(options: Options) -> QuickCache {
    let sample = (0..1000).map(|n| 16 + (options.size)(n * 1009) as u64);
    let items = (1000 * options.capacity / sample.sum::<u64>()) as usize;
    let cache = quick_cache::sync::Cache::with_weighter(items, options.capacity, Payload);
    QuickCache(cache, options.size)
}

impl Cache for QuickCache {
    fn put(&self, n: u64) -> Box<dyn Any + Send> {
        let value = Shared::from(&BYTES[..self.1(n)]);
        self.0.insert(key(n), value.clone());
        Box::new(value)
    }

    fn remove(&self, n: u64) {
        self.0.remove(&key(n));
    }

    fn entries(&self) -> u64 {
        self.0.len() as u64
    }

    fn clear(&self) {
        self.0.clear();
    }
}

struct Moka(moka::sync::Cache<String, Shared>, Size);

fn moka(options: Options) -> Moka {
    let builder = moka::sync::Cache::builder()
        .max_capacity(options.capacity)
        .weigher(|key: &String, value: &Shared| (key.len() + value.len()) as u32);
    let builder = match options.time_to_live {
        Some(ttl) => builder.time_to_live(ttl),
        None => builder,
    };
    Moka(builder.build(), options.size)
}

impl Cache for Moka {
    fn put(&self, n: u64) -> Box<dyn Any + Send> {
        let value = Shared::from(&BYTES[..self.1(n)]);
        self.0.insert(key(n), value.clone());
        Box::new(value)
    }

    fn remove(&self, n: u64) {
        self.0.invalidate(&key(n));
    }

    fn entries(&self) -> u64 {
        self.0.run_pending_tasks();
        self.0.entry_count()
    }

    fn clear(&self) {
        self.0.invalidate_all();
        self.0.run_pending_tasks();
    }
}
