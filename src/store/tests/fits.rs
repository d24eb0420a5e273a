//! A working set that fits the capacity stays in the cache, whatever the sizes and the shards.

use super::*;

/// Gets a value as a group does: inserts it if it is missing. Returns whether it was.
fn load(store: &Store, key: &str, len: usize, share: CacheType) -> bool {
    let missing = get(store, key).is_none();
    if missing {
        put(store, key, &vec![0; len], share, None);
    }
    missing
}

/// The misses in late rounds over `count` values of `len` bytes, after cold values of 900 bytes have
/// filled the cache.
fn late_misses(store: &Store, count: usize, len: usize, share: CacheType) -> usize {
    let capacity = store.capacity();
    for n in 0..capacity / 1000 + 1000 {
        load(
            store,
            &format!("cold{n}"),
            900.min(len / 4),
            CacheType::Main,
        );
    }
    let keys: Vec<String> = (0..count).map(|n| format!("warm{n}")).collect();
    let round = || {
        let missed = keys
            .iter()
            .filter(|key| load(store, key, len, share))
            .count();
        assert!(total_bytes(store) <= capacity);
        missed
    };
    for _ in 0..6 {
        round();
    }
    (0..10).map(|_| round()).sum()
}

/// Repeats a case with stores of several numbers of shards and both policies. Each store has a hasher
/// with another seed, so the values meet in other shards.
fn assert_stays(capacity: u64, count: usize, len: usize) {
    for eviction in [Eviction::Tide, Eviction::Lru] {
        for shards in [1, 8, 16, 64] {
            for seed in 0..5 {
                let store = seeded_store(seed, capacity, eviction, shards, &Clock::manual());
                let missed = late_misses(&store, count, len, CacheType::Main);
                assert_eq!(missed, 0, "{eviction:?}, {shards} shards, {count} of {len}");
            }
        }
    }
}

#[test]
fn few_large_values_that_fit_stay() {
    // These are the large cases below, in 1/64 of their size.
    for (count, len) in [(13, 47_000), (8, 78_000), (40, 15_600), (16, 39_000)] {
        assert_stays(1 << 20, count, len);
    }
}

#[test]
fn values_that_fill_most_of_a_small_cache_stay() {
    assert_stays(1 << 20, 10, 64 << 10);
}

#[test]
#[ignore = "takes minutes and much memory"]
fn large_values_that_fit_stay() {
    assert_stays(64 << 20, 13, 3_000_000);
    assert_stays(64 << 20, 8, 5_000_000);
    assert_stays(64 << 20, 40, 1_000_000);
    assert_stays(256 << 20, 16, 10_000_000);
    assert_stays(512 << 20, 26, 12_000_000);
}
