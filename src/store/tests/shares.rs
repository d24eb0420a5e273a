//! The main and the hot share of a store.

use super::*;

#[test]
fn hot_share_over_its_part_is_evicted_first() {
    let store = store(40_000, Eviction::Tide, 1, &Clock::manual());
    for n in 0..1000 {
        put(&store, &format!("main{n}"), &[0; 50], CacheType::Main, None);
        put(&store, &format!("hot{n}"), &[0; 50], CacheType::Hot, None);
    }
    let hot = store.stats(CacheType::Hot).bytes;
    // It gives room only when room is needed, so it can be over its part by one entry.
    let part = 5_000 + weight::of_entry("hot999".len() + 50);
    assert!((4_000..part).contains(&hot), "hot holds {hot} of 40000");
    assert!(store.stats(CacheType::Main).bytes > 34_000);
}

#[test]
fn hot_share_uses_the_free_room_of_the_main_one() {
    let store = store(40_000, Eviction::Tide, 1, &Clock::manual());
    for n in 0..1000 {
        put(&store, &format!("hot{n}"), &[0; 50], CacheType::Hot, None);
    }
    assert!(store.stats(CacheType::Hot).bytes > 39_000);
}

#[test]
fn large_values_of_one_share_evict_small_ones_of_the_other() {
    for share in [CacheType::Main, CacheType::Hot] {
        let other = match share {
            CacheType::Main => CacheType::Hot,
            CacheType::Hot => CacheType::Main,
        };
        let store = store(100_000, Eviction::Tide, 1, &Clock::manual());
        for n in 0..1000 {
            put(&store, &format!("small{n}"), &[0; 50], other, None);
        }
        // Larger than the small queue of their share, which is empty.
        let large = match share {
            CacheType::Main => vec![0; 25_000],
            CacheType::Hot => vec![0; 5_000],
        };
        for key in ["a", "a", "b", "b"] {
            put(&store, key, &large, share, None);
        }
        let kept = ["a", "b"].map(|key| get(&store, key).is_some());
        assert_eq!(kept, [true, true], "{share:?}");
    }
}

#[test]
fn lookups_are_counted_by_share() {
    let store = store(10_000, Eviction::Tide, 4, &Clock::manual());
    put(&store, "mine", b"1", CacheType::Main, None);
    put(&store, "theirs", b"2", CacheType::Hot, None);
    for key in ["mine", "mine", "theirs"] {
        get(&store, key);
    }
    assert!(get(&store, "nobody's").is_none());
    store.count_miss(store.hash("nobody's"));
    let (main, hot) = (store.stats(CacheType::Main), store.stats(CacheType::Hot));
    assert_eq!((main.gets, main.hits), (4, 2));
    assert_eq!((hot.gets, hot.hits), (2, 1));
    assert_eq!(store.lookups(), (4, 3));
}
