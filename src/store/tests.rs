//! Tests the store against a model, and the behaviour that its callers depend on.
//!
//! ```text
//!   tests.rs   a store against a model; inserts, removals, limits
//!   tide.rs    Tide against a model        lru.rs     exact LRU against a model
//!   fits.rs    a working set that fits     shares.rs  the main and the hot share
//!   room.rs    many evictions at once      expired.rs expired entries leave first
//! ```

use std::collections::HashMap;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::byteview::ByteView;
use crate::clock::Tick;
use crate::heap::SharedBytes;

mod expired;
mod fits;
mod lru;
mod room;
mod shares;
mod tide;

/// A store whose keys are in the same shards in each run.
fn store(capacity: u64, eviction: Eviction, shards: usize, clock: &Clock) -> Store {
    seeded_store(0, capacity, eviction, shards, clock)
}

/// A store whose keys are in the shards that `seed` chooses.
fn seeded_store(
    seed: u64,
    capacity: u64,
    eviction: Eviction,
    shards: usize,
    clock: &Clock,
) -> Store {
    let options = StoreOptions {
        capacity,
        eviction,
        favor_objects: false,
        hot_fraction: 0.125,
        shards: Some(shards),
        retention: Duration::ZERO,
        forecast: false,
        clock: clock.clone(),
    };
    Store::seeded(options, seed)
}

fn put(
    store: &Store,
    key: &str,
    value: &[u8],
    share: CacheType,
    ttl: Option<Duration>,
) -> EvictedEntries {
    let mut evicted = put_pending(store, key, value, share, ttl);
    let mut next = evicted.pending();
    while let Some(pending) = next {
        let more = store.finish_eviction(pending);
        next = more.pending();
        evicted.append(more);
    }
    evicted
}

fn put_pending(
    store: &Store,
    key: &str,
    value: &[u8],
    share: CacheType,
    ttl: Option<Duration>,
) -> EvictedEntries {
    let hash = store.hash(key);
    let view = store.keyed(hash, key, value, None);
    let view = view.unwrap_or_else(|| ByteView::from(value));
    let data = SharedBytes::concat([key.as_bytes(), value]);
    let data = if view.is_keyed(key, <[u8]>::is_empty) {
        view.allocation().expect("bytes")
    } else {
        &data
    };
    let new = NewEntry {
        hash,
        key,
        data: data.into(),
        has_etag: false,
        is_renewal: false,
        is_shortened: false,
        share,
        expires: ttl.map(|ttl| store.clock().now().after(ttl)),
        begun: None,
        loaded_at: store.shard(hash).read().generation(hash),
        is_forgotten: &|| false,
    };
    let mut evicted = EvictedEntries::default();
    store.insert(new, &mut evicted);
    evicted
}

fn get(store: &Store, key: &str) -> Option<ByteView> {
    store
        .get(store.hash(key), key, || (), || ())
        .ok()
        .map(|hit| hit.view)
}

fn total_bytes(store: &Store) -> u64 {
    store.stats(CacheType::Main).bytes + store.stats(CacheType::Hot).bytes
}

fn total_items(store: &Store) -> u64 {
    store.stats(CacheType::Main).items + store.stats(CacheType::Hot).items
}

#[derive(Clone, Debug)]
enum Op {
    Put {
        key: u8,
        len: usize,
        hot: bool,
        ttl: Option<u8>,
    },
    Get(u8),
    Remove(u8),
    Advance(u8),
    SetCapacity(u64),
    Clear,
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let len = prop_oneof![4 => 0..200_usize, 1 => 200..5000_usize];
    let op = prop_oneof![
        8 => (any::<u8>(), len, any::<bool>(), proptest::option::weighted(0.3, 1..20_u8))
            .prop_map(|(key, len, hot, ttl)| Op::Put { key, len, hot, ttl }),
        8 => any::<u8>().prop_map(Op::Get),
        2 => any::<u8>().prop_map(Op::Remove),
        2 => (1..10_u8).prop_map(Op::Advance),
        1 => (0..30_000_u64).prop_map(Op::SetCapacity),
        1 => Just(Op::Clear),
    ];
    proptest::collection::vec(op, 1..400)
}

fn eviction() -> impl Strategy<Value = Eviction> {
    prop_oneof![Just(Eviction::Tide), Just(Eviction::Lru)]
}

proptest! {
    /// Look-ups find only the newest value, and only before it expires. The used bytes are the sum of
    /// the entries' weights, and stay within the capacity.
    #[test]
    fn stays_within_capacity_and_never_returns_an_old_value(
        ops in ops(),
        eviction in eviction(),
        shards in prop_oneof![Just(1), Just(4)],
        mut capacity in prop_oneof![Just(0_u64), Just(500), 2_000..30_000_u64],
    ) {
        let clock = Clock::manual();
        let store = store(capacity, eviction, shards, &clock);
        let mut model: HashMap<String, (Vec<u8>, Option<Tick>)> = HashMap::new();
        for (step, op) in ops.into_iter().enumerate() {
            match op {
                Op::Put { key, len, hot, ttl } => {
                    let key = format!("k{key}");
                    let value = vec![step as u8; len];
                    let share = if hot { CacheType::Hot } else { CacheType::Main };
                    let ttl = ttl.map(|s| Duration::from_secs(s.into()));
                    put(&store, &key, &value, share, ttl);
                    model.insert(key, (value, ttl.map(|ttl| clock.now().after(ttl))));
                }
                Op::Get(key) => {
                    let key = format!("k{key}");
                    if let Some(found) = get(&store, &key) {
                        let (value, expires) = &model[&key];
                        prop_assert_eq!(&found, value);
                        prop_assert!(expires.is_none_or(|at| clock.now() < at), "expired");
                    }
                }
                Op::Remove(key) => {
                    let key = format!("k{key}");
                    store.remove(store.hash(&key), &key, || ());
                    model.remove(&key);
                    prop_assert!(get(&store, &key).is_none());
                }
                Op::Advance(seconds) => clock.advance(Duration::from_secs(seconds.into())),
                Op::SetCapacity(bytes) => {
                    capacity = bytes;
                    store.set_capacity(bytes);
                    while store.evict_to_capacity().is_some() {}
                }
                Op::Clear => {
                    store.clear();
                    model.clear();
                    prop_assert_eq!(total_items(&store), 0);
                }
            }
            let used: u64 = store.shards.iter().map(|shard| shard.read().table.audit()).sum();
            prop_assert_eq!(used, total_bytes(&store));
            prop_assert_eq!(used, store.budget.used());
            prop_assert!(used <= capacity, "{} of {}", used, capacity);
        }
    }
}

/// Shards, samples, stripes and tags take bits of the hash that hardly any other one uses.
#[test]
fn keys_spread_evenly_by_each_group_of_bits() {
    let keys = |name: fn(u64) -> String| (0..2000).map(name).collect::<Vec<_>>();
    let families = [
        keys(|n| n.to_string()),
        keys(|n| format!("key:{n:08}")),
        keys(|n| format!("/api/v1/users/{n}/profile")),
    ];
    for seed in 0..100 {
        let store = seeded_store(seed, 1 << 20, Eviction::Tide, 8, &Clock::manual());
        for (family, shift) in (0..3).flat_map(|n| [0, 8, 16, 32, 49, 61].map(|shift| (n, shift))) {
            let mut counts = [0.0; 8];
            for key in &families[family] {
                counts[(store.hash(key).get() >> shift) as usize % 8] += 1.0;
            }
            // The sum of squares in the chi-squared test. It is above 40 once in a million times. The hash
            // multiplies shorter words on 32 bits: one of the 1,800 sums is 40.2 there.
            let limit = if usize::BITS == 64 { 40.0 } else { 48.0 };
            let expected = 2000.0 / 8.0;
            let squares = counts.map(|count: f64| (count - expected).powi(2) / expected);
            let sum: f64 = squares.iter().sum();
            assert!(
                sum < limit,
                "seed {seed}, {}: {counts:?}",
                families[family][1]
            );
        }
    }
}

#[test]
fn replacing_keeps_the_weight_exact() {
    let store = store(1 << 20, Eviction::Tide, 1, &Clock::manual());
    for len in [100, 5000, 0, 100] {
        put(&store, "key", &vec![7; len], CacheType::Main, None);
        assert_eq!(total_bytes(&store), weight::of_entry(3 + len));
        assert_eq!(total_items(&store), 1);
        assert_eq!(get(&store, "key").expect("kept").len(), len);
    }
}

#[test]
fn value_larger_than_a_shard_is_cached_if_the_store_can_hold_it() {
    let store = store(64_000, Eviction::Tide, 4, &Clock::manual());
    for n in 0..200 {
        put(&store, &format!("k{n}"), &[0; 200], CacheType::Main, None);
    }
    let large = vec![1; 30_000];
    put(&store, "large", &large, CacheType::Main, None);
    assert!(
        get(&store, "large").is_none(),
        "a value as large as a hundred others is not cached on its first request"
    );
    put(&store, "large", &large, CacheType::Main, None);
    assert!(get(&store, "large").is_some());
    assert!(total_bytes(&store) <= 64_000);
    assert!(
        total_items(&store) > 50,
        "the small entries keep the remaining room"
    );
}

#[test]
fn value_larger_than_the_store_is_not_cached_and_evicts_nothing() {
    for eviction in [Eviction::Tide, Eviction::Lru] {
        let store = store(10_000, eviction, 1, &Clock::manual());
        put(&store, "small", b"value", CacheType::Main, None);
        put(&store, "large", &[0; 10_000], CacheType::Main, None);
        assert!(get(&store, "large").is_none());
        assert!(get(&store, "small").is_some());
    }
}

#[test]
fn entry_used_again_survives_a_scan() {
    let store = store(40_000, Eviction::Tide, 1, &Clock::manual());
    put(&store, "wanted", b"value", CacheType::Main, None);
    for n in 0..5000 {
        assert!(get(&store, "wanted").is_some(), "gone after {n}");
        put(&store, &format!("scan{n}"), &[0; 50], CacheType::Main, None);
    }
}

#[test]
fn lru_evicts_the_least_recently_used() {
    let room_for_three = 3 * weight::of_entry(3);
    let store = store(room_for_three, Eviction::Lru, 1, &Clock::manual());
    for key in ["a", "b", "c"] {
        put(&store, key, b"xx", CacheType::Main, None);
    }
    get(&store, "a");
    put(&store, "d", b"xx", CacheType::Main, None);
    let kept = ["a", "b", "c", "d"].map(|key| get(&store, key).is_some());
    assert_eq!(kept, [true, false, true, true]);
    assert_eq!(store.stats(CacheType::Main).evictions, 1);
}

#[test]
fn entry_expires_on_the_tick() {
    let clock = Clock::manual();
    let store = store(10_000, Eviction::Tide, 1, &clock);
    put(
        &store,
        "key",
        b"value",
        CacheType::Main,
        Some(Duration::from_secs(5)),
    );
    clock.advance(Duration::from_nanos(4_999_999_999));
    clock.shift_wall_clock(3_600_000_000_000);
    assert!(get(&store, "key").is_some());
    clock.advance(Duration::from_nanos(1));
    assert!(get(&store, "key").is_none());
}

#[test]
fn insertions_sweep_expired_entries() {
    let clock = Clock::manual();
    let store = store(1 << 20, Eviction::Tide, 1, &clock);
    for n in 0..1000 {
        put(
            &store,
            &format!("old{n}"),
            &[0; 50],
            CacheType::Main,
            Some(Duration::from_secs(1)),
        );
    }
    clock.advance(Duration::from_secs(2));
    for n in 0..130 {
        put(&store, &format!("new{n}"), &[0; 50], CacheType::Main, None);
    }
    assert_eq!(total_items(&store), 130);
    assert_eq!(
        store.stats(CacheType::Main).evictions,
        0,
        "expiry does not count as an eviction"
    );
}

#[test]
fn entry_has_the_start_of_its_own_load() {
    let clock = Clock::manual();
    let store = store(1 << 20, Eviction::Tide, 1, &clock);
    let keys: Vec<String> = (0..10).map(|n| format!("key{n}")).collect();
    let begins: Vec<Tick> = (0..10)
        .map(|n| clock.now().after(Duration::from_secs(n)))
        .collect();
    for (key, &begun) in keys.iter().zip(&begins) {
        let hash = store.hash(key);
        let view = store.keyed(hash, key, b"value", None).expect("it fits");
        let new = NewEntry {
            hash,
            key,
            data: view.allocation().expect("bytes").into(),
            has_etag: false,
            is_renewal: false,
            is_shortened: false,
            share: CacheType::Main,
            expires: None,
            begun: Some(begun),
            loaded_at: store.shard(hash).read().generation(hash),
            is_forgotten: &|| false,
        };
        store.insert(new, &mut EvictedEntries::default());
    }
    for (key, &begun) in keys.iter().zip(&begins) {
        let hash = store.hash(key);
        let hit = store.get(hash, key, || (), || ()).expect("a value");
        assert_eq!(hit.begun.tick(), Some(begun));
        let (looked, _) = store.look(hash, key);
        assert_eq!(looked.expect("a value").begun.tick(), Some(begun));
        let (kept, _) = store.kept(hash, key);
        assert_eq!(kept.expect("a value").begun, Some(begun));
    }
}

#[test]
fn load_that_began_before_a_removal_is_not_cached() {
    let store = store(10_000, Eviction::Tide, 1, &Clock::manual());
    for remove in [
        (|store, hash| drop(store.remove(hash, "key", || ()))) as fn(&Store, KeyHash),
        |store, _| drop(store.clear()),
    ] {
        let hash = store.hash("key");
        let generation = store.peek(hash, "key").expect_err("nothing there");
        remove(&store, hash);
        let [old, new] = ["old", "new"].map(|value| {
            store
                .keyed(hash, "key", value.as_bytes(), None)
                .expect("it fits")
        });
        let loaded = |view: &ByteView, loaded_at| {
            let new = NewEntry {
                hash,
                key: "key",
                data: view.allocation().expect("bytes").into(),
                has_etag: false,
                is_renewal: false,
                is_shortened: false,
                share: CacheType::Main,
                expires: None,
                begun: None,
                loaded_at,
                is_forgotten: &|| false,
            };
            store.insert(new, &mut EvictedEntries::default());
        };
        loaded(&old, generation);
        let generation = store.peek(hash, "key").expect_err("still nothing");
        loaded(&new, generation);
        assert_eq!(store.peek(hash, "key").expect("kept").view, "new");
        store.clear();
    }
}

/// Without that, the next allocation would free the blocks of all cleared entries, under its arena's lock.
#[test]
fn memory_of_cleared_entries_is_freed_part_by_part() {
    let store = store(8 << 20, Eviction::Tide, 1, &Clock::manual());
    for n in 0..20_000 {
        put(&store, &n.to_string(), &[0; 100], CacheType::Main, None);
    }
    let full = store.heap.resident();
    let mut cleared = store.clear();
    for _ in 0..10_000 / EVICTED_AT_ONCE {
        store.take_cleared(&mut cleared).expect("more entries");
    }
    let left = store.heap.resident();
    assert!((full / 3..full * 2 / 3).contains(&left), "{left} of {full}");
}

#[test]
fn key_too_long_for_a_slot_evicts_nothing() {
    let store = store(200_000, Eviction::Lru, 1, &Clock::manual());
    for n in 0..2000 {
        put(&store, &format!("key{n}"), b"value", CacheType::Main, None);
    }
    let before = total_items(&store);
    let gone = put(&store, &"k".repeat(70_000), b"value", CacheType::Main, None);
    assert!(gone.is_empty());
    assert_eq!(total_items(&store), before);
}

#[test]
fn evicted_entries_have_key_value_and_cause() {
    let clock = Clock::manual();
    let store = store(2_000, Eviction::Tide, 1, &clock);
    let list = |evicted: EvictedEntries| -> Vec<(String, ByteView, RemovalCause)> {
        evicted
            .iter()
            .map(|d| (d.entry.key().to_string(), d.entry.value(), d.cause))
            .collect()
    };
    put(&store, "a", b"1", CacheType::Main, None);
    let replaced = list(put(&store, "a", b"2", CacheType::Main, None));
    assert_eq!(replaced, [("a".into(), "1".into(), RemovalCause::Replaced)]);
    let removed = list(store.remove(store.hash("a"), "a", || ()));
    assert_eq!(removed, [("a".into(), "2".into(), RemovalCause::Explicit)]);
    put(
        &store,
        "b",
        b"3",
        CacheType::Main,
        Some(Duration::from_secs(1)),
    );
    clock.advance(Duration::from_secs(1));
    let swept = list(put(&store, "c", b"4", CacheType::Main, None));
    assert_eq!(swept, [("b".into(), "3".into(), RemovalCause::Expired)]);
    let evicted: Vec<_> = (0..100)
        .flat_map(|n| {
            list(put(
                &store,
                &format!("d{n}"),
                &[0; 50],
                CacheType::Main,
                None,
            ))
        })
        .collect();
    assert!(!evicted.is_empty());
    assert!(
        evicted
            .iter()
            .all(|(_, _, cause)| *cause == RemovalCause::Size)
    );
}

#[test]
fn tables_shrink_when_few_large_entries_replace_many_small_ones() {
    for eviction in [Eviction::Tide, Eviction::Lru] {
        let clock = Clock::manual();
        let store = store(1 << 20, eviction, 1, &clock);
        let ttl = |n: usize| (n % 3 == 0).then_some(Duration::from_secs(n as u64));
        for n in 0..8000 {
            put(&store, &format!("small{n}"), b"x", CacheType::Main, ttl(n));
        }
        let slots = || store.shards[0].read().slots();
        let many = slots();
        assert!(many > 5000, "{many} slots");
        for n in 0..2000 {
            let share = [CacheType::Main, CacheType::Hot][n % 2];
            put(
                &store,
                &format!("large{n}"),
                &[n as u8; 10_000],
                share,
                ttl(n),
            );
        }
        assert!(slots() < many / 8, "{} slots", slots());
        let used = store.shards[0].read().table.audit();
        assert_eq!(used, store.budget.used());
        for n in 0..2000 {
            let hash = store.hash(&format!("large{n}"));
            if let Ok(hit) = store.peek(hash, &format!("large{n}")) {
                assert_eq!(hit.view, vec![n as u8; 10_000]);
                assert_eq!(hit.expires, ttl(n).map(|ttl| clock.now().after(ttl)));
            }
        }
    }
}

#[test]
fn longest_time_to_live_never_expires() {
    let clock = Clock::manual();
    let store = store(1 << 20, Eviction::Tide, 1, &clock);
    put(&store, "key", b"x", CacheType::Main, Some(Duration::MAX));
    clock.advance(Duration::from_secs(1 << 33));
    assert_eq!(get(&store, "key").expect("it does not expire"), "x");
}

#[test]
fn used_bytes_stay_exact_under_many_threads() {
    let store = store(100_000, Eviction::Tide, 4, &Clock::manual());
    std::thread::scope(|scope| {
        for thread in 0..4_usize {
            let store = &store;
            scope.spawn(move || {
                for n in 0..5000_usize {
                    let key = format!("k{}", (n * 7 + thread) % 900);
                    match n % 5 {
                        0 | 1 => drop(put(store, &key, &vec![0; n % 700], CacheType::Main, None)),
                        2 => drop(store.remove(store.hash(&key), &key, || ())),
                        _ => drop(get(store, &key)),
                    }
                }
            });
        }
    });
    let used: u64 = store
        .shards
        .iter()
        .map(|shard| shard.read().table.audit())
        .sum();
    assert_eq!(used, store.budget.used());
    assert!(used <= 100_000, "{used}");
}

#[test]
fn iter_returns_all_live_entries_and_no_other() {
    let clock = Clock::manual();
    let store = store(1 << 20, Eviction::Tide, 4, &clock);
    for n in 0..100_u64 {
        let share = [CacheType::Main, CacheType::Hot][n as usize % 2];
        let ttl = (n % 3 == 0).then_some(Duration::from_secs(1));
        put(&store, &format!("key{n}"), &n.to_le_bytes(), share, ttl);
    }
    store.remove(store.hash("key1"), "key1", || ());
    clock.advance(Duration::from_secs(1));
    let mut found: Vec<_> = store
        .iter()
        .map(|entry| (entry.key().to_owned(), entry.value(), entry.cache_type()))
        .collect();
    found.sort_by_key(|(key, ..)| key[3..].parse::<u64>().expect("a number"));
    let live = (2..100_u64).filter(|n| n % 3 != 0);
    let expected: Vec<_> = live
        .map(|n| {
            let share = [CacheType::Main, CacheType::Hot][n as usize % 2];
            (
                format!("key{n}"),
                ByteView::from(n.to_le_bytes().to_vec()),
                share,
            )
        })
        .collect();
    assert_eq!(found, expected);
    let stats = store.lookups();
    assert_eq!(stats, (0, 0), "iterating does not count as a look-up");
}
