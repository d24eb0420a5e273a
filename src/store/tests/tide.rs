//! Compares the eviction of Tide with a naive model: the algorithm written straight down, with its queues
//! in vectors.

use std::cmp::Reverse;

use super::*;

/// The exponent of 2^(1/4) in the factor of main queues, and the counts that it is learned from. The
/// counts are of small queues first, then of main ones.
struct Learned {
    exponent: i64,
    left: [u64; 2],
    back: [u64; 2],
}

struct Resident {
    key: u8,
    weight: u64,
    freq: u8,
    born: u64,
}

struct Tide {
    favor_objects: bool,
    capacity: u64,
    now: u64,
    /// By class, small queues first, then the main ones. The oldest entry is the first of its queue.
    queues: Vec<Vec<Resident>>,
    learned: Learned,
    theta: u64,
    /// The time, the queue and the second best score of the last search through all queues.
    last_search: (u64, usize, u64),
    /// By the low bits of the hash: the tag, the time, and whether the key left a main queue.
    ghost: Vec<Option<(u32, u64, bool)>>,
}

const MAIN: usize = 16;

impl Tide {
    fn new(capacity: u64, favor_objects: bool) -> Tide {
        Tide {
            favor_objects,
            capacity,
            now: 0,
            queues: (0..2 * MAIN).map(|_| Vec::new()).collect(),
            learned: Learned {
                exponent: -8,
                left: [0; 2],
                back: [0; 2],
            },
            theta: 0,
            last_search: (0, 0, u64::MAX),
            ghost: Vec::new(),
        }
    }

    fn len(&self) -> u64 {
        self.queues.iter().map(|queue| queue.len() as u64).sum()
    }

    fn used(&self) -> u64 {
        let all = self.queues.iter().flatten();
        all.map(|entry| entry.weight).sum()
    }

    fn cost(&self, weight: u64) -> u64 {
        match self.favor_objects {
            true => 4 * weight,
            false => {
                let log2 = weight.ilog2();
                let root = |log2: u32| [256, 362][log2 as usize % 2] * 2_u64.pow(log2 / 2);
                let (low, high) = (root(log2), root(log2 + 1));
                low + (high - low) * (weight - 2_u64.pow(log2)) / 2_u64.pow(log2)
            }
        }
    }

    fn by_factor(&self, cost: u64) -> u64 {
        let exponent = self.learned.exponent;
        let root = [4096, 4871, 5793, 6889][exponent.rem_euclid(4) as usize];
        let power = 1 << (8 + exponent.div_euclid(4));
        cost * root * power / (256 * 4096)
    }

    fn score(&self, queue: usize, entry: &Resident) -> u64 {
        let cost = self.cost(entry.weight);
        let cost = if queue >= MAIN {
            self.by_factor(cost)
        } else {
            cost
        };
        cost * (self.now - entry.born + 1)
    }

    fn push(&mut self, entry: Resident, in_main: bool) {
        let class = (entry.weight.ilog2() as usize).clamp(6, 21) - 6;
        let queue = if in_main { MAIN + class } else { class };
        self.queues[queue].push(entry);
    }

    /// Removes an entry, and returns whether it was in a main queue.
    fn remove(&mut self, key: u8) -> Option<(Resident, bool)> {
        let queues = self.queues.iter_mut().enumerate();
        for (number, queue) in queues {
            if let Some(at) = queue.iter().position(|entry| entry.key == key) {
                return Some((queue.remove(at), number >= MAIN));
            }
        }
        None
    }

    fn hit(&mut self, key: u8) {
        let mut all = self.queues.iter_mut().flatten();
        if let Some(entry) = all.find(|entry| entry.key == key) {
            entry.freq = (entry.freq + 1).min(4);
        }
    }

    fn haunt(&mut self, hash: u32, was_main: bool) {
        let needed = (self.len() as usize).max(16).next_power_of_two();
        while self.ghost.len() < needed {
            match self.ghost.len() {
                0 => self.ghost = vec![None; needed],
                _ => self.ghost.extend_from_within(..),
            }
        }
        let place = hash as usize % self.ghost.len();
        self.ghost[place] = Some((hash >> 17, self.now, was_main));
    }

    fn take_ghost(&mut self, hash: u32) -> Option<(u64, bool)> {
        let place = hash as usize % self.ghost.len().max(1);
        let cell = self.ghost.get_mut(place)?;
        let (_, time, was_main) = cell.take_if(|(tag, ..)| *tag == hash >> 17)?;
        Some((self.now - time, was_main))
    }

    /// A miss of a key, or the replacement of its value.
    fn insert(&mut self, hashes: &[u32], key: u8, weight: u64) {
        let replaced = self.remove(key);
        if weight > self.capacity {
            return;
        }
        self.now += 1;
        let hash = hashes[usize::from(key)];
        let (n, used, cost) = (self.len(), self.used(), self.cost(weight));
        let departure = self.take_ghost(hash);
        let proven = departure
            .filter(|(age, _)| *age < n.max(16) && self.by_factor(cost) * age <= self.theta / 2);
        if let Some((_, was_main)) = proven {
            self.learned.back[usize::from(was_main)] += 1;
        }
        self.learned.learn(n);
        let mut limit = match proven {
            _ if weight * n < 2 * used => 0,
            Some((age, _)) => 2 * self.by_factor(cost) * (age + 1),
            None => cost * 8,
        };
        let (mut in_main, mut freq) = (proven.is_some(), 0);
        if let Some((old, was_in_main)) = replaced {
            in_main |= was_in_main;
            freq = old.freq;
            if weight / 2 <= old.weight {
                limit = 0;
            }
        }
        while self.used() + weight > self.capacity {
            if !self.evict(hashes, limit) {
                self.haunt(hash, false);
                return;
            }
        }
        let born = self.now;
        let entry = Resident {
            key,
            weight,
            freq,
            born,
        };
        self.push(entry, in_main);
    }

    /// The queue whose tail has the highest score. Within one miss, the same queue again while its tail
    /// has at least 7/8 of the second best score of the last search.
    fn search(&mut self) -> (usize, u64) {
        let (at, queue, second) = self.last_search;
        if let Some(tail) = self.queues[queue].first().filter(|_| at == self.now) {
            let score = self.score(queue, tail);
            if score >= second - second / 8 {
                return (queue, score);
            }
        }
        let mut scores: Vec<(u64, Reverse<usize>)> = (0..2 * MAIN)
            .filter_map(|queue| {
                let tail = self.queues[queue].first()?;
                Some((self.score(queue, tail), Reverse(queue)))
            })
            .collect();
        scores.sort_unstable_by_key(|score| Reverse(*score));
        let (score, Reverse(queue)) = scores[0];
        let second = scores.get(1).map_or(0, |(score, _)| *score);
        self.last_search = (self.now, queue, second);
        (queue, score)
    }

    fn evict(&mut self, hashes: &[u32], limit: u64) -> bool {
        let mut moves = 0;
        loop {
            let (queue, score) = self.search();
            let is_main = queue >= MAIN;
            if score < limit && self.queues[queue][0].freq == 0 {
                return false;
            }
            let mut entry = self.queues[queue].remove(0);
            if entry.freq > 0 && moves < 32 {
                entry.freq = match self.learned.exponent {
                    _ if !is_main => 0,
                    2.. => 0,
                    -1.. => entry.freq / 2,
                    _ => entry.freq - 1,
                };
                entry.born = self.now;
                self.push(entry, true);
                moves += 1;
                continue;
            }
            self.theta = score;
            self.learned.left[usize::from(is_main)] += 1;
            self.haunt(hashes[usize::from(entry.key)], is_main);
            return true;
        }
    }

    fn set_capacity(&mut self, hashes: &[u32], capacity: u64) {
        self.capacity = capacity;
        while self.used() > capacity {
            self.evict(hashes, 0);
        }
    }

    fn contains(&self, key: u8) -> bool {
        self.queues.iter().flatten().any(|entry| entry.key == key)
    }
}

impl Learned {
    fn learn(&mut self, n: u64) {
        let Learned {
            exponent,
            left,
            back,
        } = self;
        let (n, all_left, all_back) = (n.max(64), left[0] + left[1], back[0] + back[1]);
        if all_left < n {
            return;
        }
        if all_back >= 8 {
            let main = 2 * back[1] * (left[0] + 1);
            let small = (2 * back[0] + 1) * left[1];
            if main > small {
                *exponent = (*exponent - 1).max(-32);
            } else if 3 * small > 4 * main {
                *exponent = (*exponent + 1).min(8);
            }
        }
        if all_back >= 8 || all_left >= 8 * n {
            left.iter_mut().chain(back).for_each(|count| *count /= 2);
        }
    }
}

/// A get loads the value if it is missing, with the length that the key has.
#[derive(Clone, Debug)]
enum Step {
    Get(u8),
    Replace(u8, usize),
    Remove(u8),
    SetCapacity(u64),
}

/// Few enough that the tables never shrink, because the ghost may then forget its keys.
const KEYS: u8 = 64;

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let popular = (0..KEYS, 0..KEYS).prop_map(|(a, b)| a.min(b));
    let step = prop_oneof![
        60 => popular.prop_map(Step::Get),
        60 => (0..KEYS).prop_map(Step::Get),
        4 => (0..KEYS, 0..3000_usize).prop_map(|(key, len)| Step::Replace(key, len)),
        3 => (0..KEYS).prop_map(Step::Remove),
        1 => (0..20_000_u64).prop_map(Step::SetCapacity),
    ];
    proptest::collection::vec(step, 1..3000)
}

/// Most values are small, and a few are large.
fn length(key: u8) -> usize {
    let exponent = u32::from(key) * 37 % 17;
    if exponent < 8 {
        50
    } else {
        1 << (exponent - 4)
    }
}

fn name(key: u8) -> String {
    format!("{key:03}")
}

fn weight_of(len: usize) -> u64 {
    weight::of_entry(3 + len)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn tide_evicts_as_its_naive_model(
        steps in steps(),
        capacity in 3_000..30_000_u64,
        favor_objects in any::<bool>(),
        seed in any::<u64>(),
    ) {
        let options = StoreOptions {
            capacity,
            eviction: Eviction::Tide,
            favor_objects,
            hot_fraction: 0.125,
            shards: Some(1),
            retention: Duration::ZERO,
 forecast: false,
            clock: Clock::manual(),
        };
        let store = Store::seeded(options, seed);
        let hashes: Vec<u32> = (0..KEYS).map(|key| store.hash(&name(key)).short()).collect();
        let mut model = Tide::new(capacity, favor_objects);
        for (number, step) in steps.into_iter().enumerate() {
            match step {
                Step::Get(key) if get(&store, &name(key)).is_some() => model.hit(key),
                Step::Get(key) => {
                    let len = length(key);
                    put(&store, &name(key), &vec![0; len], CacheType::Main, None);
                    model.insert(&hashes, key, weight_of(len));
                }
                Step::Replace(key, len) => {
                    put(&store, &name(key), &vec![0; len], CacheType::Main, None);
                    model.insert(&hashes, key, weight_of(len));
                }
                Step::Remove(key) => {
                    store.remove(store.hash(&name(key)), &name(key), || ());
                    model.remove(key);
                }
                Step::SetCapacity(capacity) => {
                    store.set_capacity(capacity);
                    while store.evict_to_capacity().is_some() {}
                    model.set_capacity(&hashes, capacity);
                }
            }
            prop_assert_eq!(total_items(&store), model.len());
            prop_assert_eq!(total_bytes(&store), model.used());
            for key in (0..KEYS).filter(|_| number % 50 == 0) {
                let cached = store.peek(store.hash(&name(key)), &name(key)).is_ok();
                prop_assert_eq!(cached, model.contains(key), "key {}", key);
            }
        }
    }
}
