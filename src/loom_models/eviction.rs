//! Eviction across the shards of a store, while another thread changes the shard that gives room.

use std::time::Duration;

use super::groups::run;
use crate::byteview::ByteView;
use crate::clock::Clock;
use crate::stats::CacheType;
use crate::store::{EvictedEntries, Eviction, NewEntry, Store, StoreOptions};
use crate::sync::Arc;
use crate::sync::thread;

/// A store of two shards.
struct Model {
    store: Store,
    /// Two keys of the first shard and two of the second.
    keys: [String; 4],
    /// A short value for each key, and one that takes the whole store.
    short: [ByteView; 4],
    long: ByteView,
}

const SHORT: usize = 100;
const LONG: usize = 300;

/// A full store, which holds the first key of each shard. A thread that inserts another one has to evict.
fn full(eviction: Eviction) -> Arc<Model> {
    let options = StoreOptions {
        capacity: 400,
        eviction,
        favor_objects: false,
        hot_fraction: 0.0,
        shards: Some(2),
        retention: Duration::ZERO,
        forecast: false,
        clock: Clock::manual(),
    };
    let store = Store::seeded(options, 0);
    let mut of_shards = [Vec::new(), Vec::new()];
    for name in (0..).map(|n| format!("{n:04}")) {
        of_shards[store.hash(&name).get() as usize % 2].push(name);
        if of_shards.iter().all(|names| names.len() >= 2) {
            break;
        }
    }
    let [a, b] = of_shards;
    let keys = [a[0].clone(), a[1].clone(), b[0].clone(), b[1].clone()];
    let value = |key: &String, len: usize| {
        store
            .keyed(store.hash(key), key, &vec![0; len], None)
            .expect("it fits")
    };
    let short = keys.each_ref().map(|key| value(key, SHORT));
    let long = value(&keys[1], LONG);
    let model = Model {
        store,
        keys,
        short,
        long,
    };
    for present in [0, 2] {
        assert!(model.insert(present, &model.short[present]).is_empty());
    }
    Arc::new(model)
}

impl Model {
    /// Inserts a value, and evicts what has to leave for it.
    fn insert(&self, key: usize, value: &ByteView) -> Vec<EvictedEntries> {
        let (key, data) = (&self.keys[key], value.allocation().expect("bytes"));
        let hash = self.store.hash(key);
        let Err(loaded_at) = self.store.peek(hash, key) else {
            return Vec::new();
        };
        let new = NewEntry {
            hash,
            key,
            data: data.into(),
            share: CacheType::Main,
            expires: None,
            begun: None,
            has_etag: false,
            is_renewal: false,
            is_shortened: false,
            loaded_at,
            is_forgotten: &|| false,
        };
        let mut evicted = EvictedEntries::default();
        self.store.insert(new, &mut evicted);
        let mut all = vec![evicted];
        while let Some(pending) = all.last().and_then(EvictedEntries::pending) {
            all.push(self.store.finish_eviction(pending));
        }
        all.retain(|evicted| !evicted.is_empty());
        all
    }

    fn remove(&self, key: usize) -> Vec<EvictedEntries> {
        let key = &self.keys[key];
        vec![self.store.remove(self.store.hash(key), key, || ())]
    }

    fn has(&self, key: usize) -> bool {
        let key = &self.keys[key];
        self.store.peek(self.store.hash(key), key).is_ok()
    }

    /// Every entry that was inserted is cached or left once, and the sums are right. Tide may refuse one.
    fn check(&self, inserted: u64, may_refuse: u64, left: &[Vec<EvictedEntries>]) {
        let left: usize = left.iter().flatten().map(EvictedEntries::len).sum();
        let stats = self.store.stats(CacheType::Main);
        let cached = (0..4).filter(|&key| self.has(key)).count() as u64;
        assert_eq!(stats.items, cached);
        let known = cached + left as u64;
        assert!(
            (inserted - may_refuse..=inserted).contains(&known),
            "{cached} cached and {left} left of {inserted}, {stats:?}"
        );
        assert_eq!(stats.bytes, self.store.used());
        assert!(stats.bytes <= self.store.capacity());
        assert!(cached > 0, "something stays");
    }
}

/// Runs two operations on a full store at once, with up to two preemptions and for 5 s at most.
/// `inserted` is the number of entries that they insert.
fn explore(
    inserted: u64,
    one: fn(&Model) -> Vec<EvictedEntries>,
    other: fn(&Model) -> Vec<EvictedEntries>,
) {
    for eviction in [Eviction::Tide, Eviction::Lru] {
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = Some(2);
        builder.max_duration = Some(Duration::from_secs(5));
        run(&builder, move || {
            let model = full(eviction);
            let theirs = {
                let model = model.clone();
                thread::spawn(move || other(&model))
            };
            let left = [one(&model), theirs.join().unwrap()];
            model.check(2 + inserted, u64::from(eviction == Eviction::Tide), &left);
        });
    }
}

#[test]
fn insertions_into_two_shards_evict_at_once() {
    explore(
        2,
        |model| model.insert(1, &model.short[1]),
        |model| model.insert(3, &model.short[3]),
    );
}

#[test]
fn shard_takes_room_from_another_that_inserts() {
    explore(
        2,
        |model| model.insert(1, &model.long),
        |model| model.insert(3, &model.short[3]),
    );
}

#[test]
fn shard_takes_room_from_another_that_removes() {
    explore(
        1,
        |model| model.insert(1, &model.long),
        |model| model.remove(2),
    );
}
