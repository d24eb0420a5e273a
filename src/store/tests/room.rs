//! Eviction of many entries: for one large value, and for a smaller capacity.

use std::time::Instant;

use super::*;

#[test]
fn value_that_replaces_thousands_evicts_them_in_steps() {
    for (eviction, shards) in [
        (Eviction::Lru, 1),
        (Eviction::Lru, 4),
        (Eviction::Tide, 1),
        (Eviction::Tide, 4),
    ] {
        let store = store(1 << 20, eviction, shards, &Clock::manual());
        for n in 0..20_000 {
            put(&store, &n.to_string(), &[0; 50], CacheType::Main, None);
        }
        let full = total_items(&store);
        let large = || put_pending(&store, "large", &[1; 900_000], CacheType::Main, None);
        let mut gone = large();
        assert!(
            get(&store, "large").is_some(),
            "it is cached before all others have left"
        );
        let mut evicted = 0;
        loop {
            let batch = gone.iter().count();
            assert!(batch <= EVICTED_AT_ONCE, "{batch} at once");
            evicted += batch as u64;
            let Some(pending) = gone.pending() else {
                break;
            };
            assert_eq!(batch, EVICTED_AT_ONCE, "it stops only at the limit");
            gone = store.finish_eviction(pending);
        }
        assert!(evicted > 10 * EVICTED_AT_ONCE as u64, "{evicted}");
        assert_eq!(total_items(&store), full + 1 - evicted);
        assert!(total_bytes(&store) <= 1 << 20);
        let left = (1 << 20) - total_bytes(&store);
        assert!(left < 200, "{eviction:?} {shards}: {left} more than needed");
        assert!(get(&store, "large").is_some());
    }
}

#[test]
fn insertion_finishes_a_pending_eviction_of_another() {
    let store = store(1 << 20, Eviction::Lru, 1, &Clock::manual());
    for n in 0..20_000 {
        put(&store, &n.to_string(), &[0; 50], CacheType::Main, None);
    }
    let gone = put_pending(&store, "large", &[1; 900_000], CacheType::Main, None);
    assert!(gone.pending().is_some());
    assert!(total_bytes(&store) > 1 << 20);
    put(&store, "next", &[0; 50], CacheType::Main, None);
    assert!(total_bytes(&store) <= 1 << 20);
    assert!(get(&store, "large").is_some());
}

#[test]
fn evicts_to_smaller_capacity_and_uses_larger_one() {
    for eviction in [Eviction::Tide, Eviction::Lru] {
        let store = store(1 << 20, eviction, 4, &Clock::manual());
        let fill = |from: u64| {
            for n in from..from + 20_000 {
                put(&store, &n.to_string(), &[0; 50], CacheType::Main, None);
            }
        };
        fill(0);
        let full = total_items(&store);
        store.set_capacity(1 << 16);
        let mut evicted = 0;
        while let Some(gone) = store.evict_to_capacity() {
            let batch = gone.iter().count();
            assert!(batch <= 4 * EVICTED_AT_ONCE, "{batch} at once");
            assert!(gone.iter().all(|one| one.cause == RemovalCause::Size));
            evicted += batch as u64;
        }
        assert_eq!(total_items(&store), full - evicted);
        assert!(total_bytes(&store) <= 1 << 16);
        assert!(total_bytes(&store) > (1 << 16) - 200, "no more than needed");
        let slots: usize = store.shards.iter().map(|shard| shard.read().slots()).sum();
        assert!(slots < full as usize / 4, "the tables shrink too");
        store.set_capacity(1 << 21);
        fill(20_000);
        assert!(total_items(&store) > full, "the new room is used");
        store.set_capacity(0);
        while store.evict_to_capacity().is_some() {}
        fill(40_000);
        assert_eq!((total_items(&store), store.budget.used()), (0, 0));
    }
}

/// The microseconds of each step of a large insertion. Look-ups wait for a step at most.
fn steps(store: &Store, large: &[u8]) -> Vec<u128> {
    let (mut steps, mut gone) = (Vec::new(), EvictedEntries::default());
    let hash = store.hash("large");
    let view = store.keyed(hash, "large", large, None).expect("it fits");
    let new = NewEntry {
        hash,
        key: "large",
        data: view.allocation().expect("bytes").into(),
        has_etag: false,
        is_renewal: false,
        is_shortened: false,
        share: CacheType::Main,
        expires: None,
        begun: None,
        loaded_at: store.shard(hash).read().generation(hash),
        is_forgotten: &|| false,
    };
    let mut began = Instant::now();
    store.insert(new, &mut gone);
    loop {
        steps.push(began.elapsed().as_micros());
        let Some(pending) = gone.pending() else {
            return steps;
        };
        drop(gone);
        began = Instant::now();
        gone = store.finish_eviction(pending);
    }
}

#[test]
#[ignore = "measures time, which takes a quiet machine"]
fn lookups_do_not_wait_for_large_displacements() {
    for eviction in [Eviction::Tide, Eviction::Lru] {
        for shards in [1, 8] {
            let rounds = (0..7).map(|_| {
                let store = store(64 << 20, eviction, shards, &Clock::manual());
                for n in 0..80_000 {
                    put(&store, &n.to_string(), &[0; 900], CacheType::Main, None);
                }
                let steps = (0..3).flat_map(|n| steps(&store, &vec![n; 16 << 20]));
                steps.collect::<Vec<_>>()
            });
            // A round in which the thread was preempted does not count.
            let longest = rounds.map(|steps| steps.into_iter().max()).min().flatten();
            println!("{eviction:?}, {shards} shards: {longest:?} µs");
            assert!(longest.is_some_and(|longest| longest < 2_000));
        }
    }
}
