//! Tests the miniatures by random operations, and beside a store.

use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::random::{GOLDEN_RATIO, mix};
use crate::stats::CacheType;
use crate::store::{EvictedEntries, Eviction, NewEntry, Store, StoreOptions};

const EVERY_COST: [Cost; 3] = [Cost::Constant, Cost::SquareRoot, Cost::Weight];

/// A key that a sample of one key in 2^level contains, and one in 2^(level + 1) does not.
fn key(n: u64, level: u32) -> SampledKey {
    let hash = mix(n.wrapping_mul(GOLDEN_RATIO)) & !KeyHash::sample_mask(HIGHEST_LEVEL);
    let lowest = KeyHash::sample_mask(level + 1) & !KeyHash::sample_mask(level);
    SampledKey::new(KeyHash::new(hash | lowest))
}

fn value(weight: u64, expires: Option<Tick>) -> SampledValue {
    SampledValue { weight, expires }
}

impl Miniatures {
    /// Checks that table, slots and queues agree, and that no cache is over its capacity.
    fn audit(&self) {
        let used = |cache: usize| {
            let slots = self.samples.slots.iter();
            slots.filter(move |slot| usize::from(slot.cache) == cache)
        };
        for cache in 0..CACHES {
            let policy = &self.caches[cache].policy;
            let weights = used(cache).map(|slot| slot.link.weight());
            assert_eq!(weights.sum::<u64>(), policy.bytes());
            assert_eq!(used(cache).count(), policy.len() as usize);
            assert!(policy.bytes() <= self.caches[cache].capacity);
            assert!(used(cache).all(|slot| u32::from(slot.level) >= self.level));
        }
        let lens = self.caches.iter().map(|cache| cache.policy.len());
        assert_eq!(self.table.len(), lens.sum::<u32>() as usize);
        assert!(self.samples.slots.len() <= SLOTS);
        assert!((LOWEST_LEVEL..=HIGHEST_LEVEL).contains(&self.level));
    }

    /// The bytes of the tables, without those of the ghosts.
    fn table_bytes(&self) -> usize {
        self.samples.slots.capacity() * size_of::<Sample>() + self.table.allocation_size()
    }
}

#[derive(Clone, Debug)]
enum Operation {
    Get(u64, bool),
    Load(u64),
    Remove(u64),
    Clear,
    SetCapacity(u64),
    Wait(u64),
}

fn operation() -> impl Strategy<Value = Operation> {
    let key = 0..4000_u64;
    prop_oneof![
        300 => (key.clone(), any::<bool>()).prop_map(|(key, hit)| Operation::Get(key, hit)),
        200 => key.clone().prop_map(Operation::Load),
        20 => key.prop_map(Operation::Remove),
        1 => Just(Operation::Clear),
        2 => (0..1_u64 << 26).prop_map(Operation::SetCapacity),
        20 => (0..2000_u64).prop_map(Operation::Wait),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn caches_stay_consistent(
        cost in prop::sample::select(&EVERY_COST[..]),
        operations in prop::collection::vec(operation(), 1..3000),
    ) {
        let clock = Clock::manual();
        let mut miniatures = Miniatures::new(1 << 22, cost, clock.now());
        for operation in operations {
            let key_of = |n: u64| key(n, LOWEST_LEVEL + (n % 8) as u32);
            let value_of = |n: u64| {
                let ttl = Duration::from_secs(n % 5);
                let expires = (n % 3 == 0).then(|| clock.now().after(ttl));
                value(64 << (n % 12), expires)
            };
            match operation {
                Operation::Get(n, hit) => {
                    let value = hit.then(|| value_of(n));
                    miniatures.get(key_of(n), value, &clock);
                }
                Operation::Load(n) => miniatures.insert(key_of(n), value_of(n), &clock),
                Operation::Remove(n) => miniatures.remove(key_of(n)),
                Operation::Clear => miniatures.clear(),
                Operation::SetCapacity(bytes) => miniatures.set_capacity(bytes),
                Operation::Wait(millis) => clock.advance(Duration::from_millis(millis)),
            }
        }
        miniatures.audit();
    }
}

#[test]
fn expiry_at_the_end_of_the_range_is_not_now() {
    let clock = Clock::manual();
    let mut miniatures = Miniatures::new(1 << 22, Cost::SquareRoot, clock.now());
    let last = Duration::from_nanos(u64::from(u32::MAX) << EXPIRY_UNIT_LOG2);
    let expires = Some(clock.now().after(last));
    miniatures.insert(key(1, LOWEST_LEVEL), value(100, expires), &clock);
    miniatures.get(key(1, LOWEST_LEVEL), None, &clock);
    assert_eq!(miniatures.counts().misses, [0; CACHES]);
}

/// The store and the miniature have the same capacity and get the same keys, which are all sampled.
/// Their hashes differ, so the ghosts forget different keys now and then.
#[test]
fn miniature_hits_as_often_as_a_store() {
    let clock = Clock::manual();
    for (eviction, cost) in [
        (Eviction::Tide, Cost::SquareRoot),
        (Eviction::Lru, Cost::Constant),
    ] {
        let options = StoreOptions {
            capacity: 24_000,
            eviction,
            favor_objects: false,
            hot_fraction: 0.0,
            shards: Some(1),
            retention: Duration::ZERO,
            forecast: false,
            clock: clock.clone(),
        };
        let store = Store::seeded(options, 0);
        let mut miniatures = Miniatures::new(24_000 << LOWEST_LEVEL, cost, clock.now());
        let gets = 30_000_u64;
        for n in 0..gets {
            // Popular keys are small numbers.
            let id = mix(n) % (1 + mix(n + gets) % 1000);
            let (name, bytes) = (format!("{id}"), vec![0; 1 << (mix(id) % 12)]);
            let hash = store.hash(&name);
            let view = store.keyed(hash, &name, &bytes, None).expect("it fits");
            let value = SampledValue::new(view.allocation().expect("bytes").len(), None);
            miniatures.get(key(id, LOWEST_LEVEL), Some(value), &clock);

            let Err((generation, ())) = store.get(hash, &name, || (), || ()) else {
                continue;
            };
            store.count_miss(hash);
            let new = NewEntry {
                hash,
                key: &name,
                data: view.allocation().expect("bytes").into(),
                has_etag: false,
                is_renewal: false,
                is_shortened: false,
                share: CacheType::Main,
                expires: None,
                begun: None,
                loaded_at: generation,
                is_forgotten: &|| false,
            };
            store.insert(new, &mut EvictedEntries::default());
        }
        assert_eq!(miniatures.level(), LOWEST_LEVEL);
        let expected = gets - store.lookups().1;
        let misses = miniatures.counts().misses[REAL] >> LOWEST_LEVEL;
        assert!(
            expected.abs_diff(misses) < gets / 50,
            "{misses}, not {expected}"
        );
    }
}

#[test]
fn sample_shrinks_with_more_keys_and_grows_with_fewer() {
    let clock = Clock::manual();
    let mut miniatures = Miniatures::new(1 << 30, Cost::SquareRoot, clock.now());
    for n in 0..100_000_u64 {
        let level = mix(n).trailing_zeros().min(HIGHEST_LEVEL - 1);
        miniatures.insert(key(n, level), value(100, None), &clock);
    }
    // Of five times 100,000 keys, one in 512 fills 976 of the 1280 slots.
    assert_eq!(miniatures.level(), 9);
    miniatures.audit();
    miniatures.set_capacity(1 << 20);
    for n in 0..1_000_000_u64 {
        let level = mix(n).trailing_zeros().min(HIGHEST_LEVEL - 1);
        if level >= miniatures.level() {
            miniatures.insert(key(n, level), value(2000, None), &clock);
        }
    }
    // 4 MiB hold 2,100 values.
    assert_eq!(miniatures.level(), LOWEST_LEVEL);
    miniatures.audit();
}

#[test]
fn expired_key_is_a_miss_in_every_cache() {
    let clock = Clock::manual();
    let mut miniatures = Miniatures::new(1 << 20, Cost::SquareRoot, clock.now());
    let key = key(1, LOWEST_LEVEL);
    let expires = Some(clock.now().after(Duration::from_secs(1)));
    miniatures.insert(key, value(100, expires), &clock);
    miniatures.get(key, None, &clock);
    assert_eq!(miniatures.counts().misses, [0; CACHES]);
    clock.advance(Duration::from_millis(1100));
    miniatures.get(key, None, &clock);
    assert_eq!(miniatures.counts().misses, [1 << LOWEST_LEVEL; CACHES]);
    miniatures.audit();
}

#[test]
fn removed_key_is_a_miss_in_every_cache() {
    let clock = Clock::manual();
    let mut miniatures = Miniatures::new(1 << 20, Cost::SquareRoot, clock.now());
    let (removed, other) = (key(1, LOWEST_LEVEL), key(2, LOWEST_LEVEL));
    for key in [removed, other] {
        miniatures.insert(key, value(100, None), &clock);
    }
    miniatures.remove(removed);
    miniatures.get(other, None, &clock);
    assert_eq!(miniatures.counts().misses, [0; CACHES]);
    miniatures.get(removed, None, &clock);
    assert_eq!(miniatures.counts().misses, [1 << LOWEST_LEVEL; CACHES]);
}

#[test]
fn tables_take_no_more_than_52_kib() {
    let clock = Clock::manual();
    let mut miniatures = Miniatures::new(1 << 40, Cost::SquareRoot, clock.now());
    for n in 0..2000 {
        miniatures.insert(key(n, LOWEST_LEVEL + 2), value(100, None), &clock);
    }
    assert!(miniatures.table_bytes() <= 52 << 10);
    // The ghosts of 1280 entries in five caches take 4 bytes for each, at most doubled by rounding.
    let ghosts = 2 * 4 * SLOTS;
    let all = miniatures.table_bytes() + ghosts + size_of::<Miniatures>();
    assert!(all <= 64 << 10, "{all} bytes");
}
