//! Compares exact LRU with a naive model: a list of the keys in the order of use.

use super::*;

struct Lru {
    capacity: u64,
    /// The hot share's part of the capacity.
    hot_capacity: u64,
    /// From the least to the most recently used one.
    entries: Vec<(u8, u64, CacheType)>,
}

impl Lru {
    fn used(&self, share: CacheType) -> u64 {
        let of_share = self.entries.iter().filter(|entry| entry.2 == share);
        of_share.map(|entry| entry.1).sum()
    }

    fn take(&mut self, key: u8) -> Option<(u8, u64, CacheType)> {
        let at = self.entries.iter().position(|entry| entry.0 == key)?;
        Some(self.entries.remove(at))
    }

    fn hit(&mut self, key: u8) -> bool {
        let found = self.take(key);
        self.entries.extend(found);
        found.is_some()
    }

    fn insert(&mut self, key: u8, weight: u64, share: CacheType) {
        self.take(key);
        if weight <= self.capacity {
            // The new entry does not leave, but its weight counts.
            self.evict(weight, (share == CacheType::Hot).then_some(weight));
            self.entries.push((key, weight, share));
        }
    }

    /// Evicts the least recently used entries of the hot share while it is over its part, and else those
    /// of the main one. If a share has none, those of the other leave.
    fn evict(&mut self, incoming: u64, incoming_hot: Option<u64>) {
        let (main, hot) = (CacheType::Main, CacheType::Hot);
        while self.used(main) + self.used(hot) + incoming > self.capacity {
            let is_over = self.used(hot) + incoming_hot.unwrap_or(0) > self.hot_capacity;
            let share = if is_over { hot } else { main };
            let oldest = |share| self.entries.iter().position(|entry| entry.2 == share);
            let oldest = oldest(share).or_else(|| oldest(share.other()));
            self.entries.remove(oldest.expect("the new entry fits"));
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    /// A get loads the value if it is missing.
    Get(u8),
    Replace(u8, usize),
    Remove(u8),
    SetCapacity(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        60 => (0..60_u8).prop_map(Step::Get),
        6 => (0..60_u8, 0..3000_usize).prop_map(|(key, len)| Step::Replace(key, len)),
        3 => (0..60_u8).prop_map(Step::Remove),
        1 => (0..20_000_u64).prop_map(Step::SetCapacity),
    ];
    proptest::collection::vec(step, 1..1500)
}

/// Every third key is of another process.
fn share(key: u8) -> CacheType {
    if key % 3 == 0 {
        CacheType::Hot
    } else {
        CacheType::Main
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn lru_evicts_as_its_naive_model(steps in steps(), capacity in 3_000..30_000_u64) {
        let store = store(capacity, Eviction::Lru, 1, &Clock::manual());
        let hot_capacity = |capacity: u64| capacity / 8;
        let mut model = Lru { capacity, hot_capacity: hot_capacity(capacity), entries: Vec::new() };
        for step in steps {
            match step {
                Step::Get(key) => {
                    let name = format!("{key:03}");
                    let is_hit = get(&store, &name).is_some();
                    prop_assert_eq!(is_hit, model.hit(key), "key {}", key);
                    if !is_hit {
                        let len = 20 << (key % 8);
                        put(&store, &name, &vec![0; len], share(key), None);
                        model.insert(key, weight::of_entry(3 + len), share(key));
                    }
                }
                Step::Replace(key, len) => {
                    put(&store, &format!("{key:03}"), &vec![0; len], share(key), None);
                    model.insert(key, weight::of_entry(3 + len), share(key));
                }
                Step::Remove(key) => {
                    let name = format!("{key:03}");
                    store.remove(store.hash(&name), &name, || ());
                    model.take(key);
                }
                Step::SetCapacity(capacity) => {
                    store.set_capacity(capacity);
                    while store.evict_to_capacity().is_some() {}
                    (model.capacity, model.hot_capacity) = (capacity, hot_capacity(capacity));
                    model.evict(0, None);
                }
            }
            for share in [CacheType::Main, CacheType::Hot] {
                prop_assert_eq!(store.stats(share).bytes, model.used(share), "{:?}", share);
            }
        }
    }
}
