//! Forecasts the hit ratio at other capacities, from caches in miniature.

pub(super) mod miniature;

use crate::sync::plain_atomic::{AtomicU64, Ordering};

use self::miniature::{CACHES, Miniatures, REAL, SampledKey, SampledValue};
use super::entry::key_hash::KeyHash;
use super::policy::Cost;
use crate::clock::Clock;
use crate::sync::Mutex;

/// The hit ratios that a group's cache would have at other capacities, by
/// [`Group::forecast`](crate::Group::forecast).
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Forecast {
    /// The forecasts for ¼, ½, 1, 2 and 4 times the capacity, in this order. The one in the middle is not
    /// a forecast but the group's own hit ratio.
    pub points: [ForecastPoint; CACHES],
    /// The number of gets that the ratios are about, which are the last ones.
    pub gets: u64,
}

/// A capacity and the hit ratio there.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct ForecastPoint {
    /// In bytes.
    pub capacity: u64,
    /// The part of the gets that the cache would answer, 0 to 1.
    pub hit_ratio: f64,
}

/// Observes the gets of a store. Does nothing if the group was built without forecasts.
#[derive(Debug)]
pub(super) struct Forecaster {
    /// A key is sampled if its hash has none of these bits.
    mask: AtomicU64,
    state: Option<Mutex<Box<Observations>>>,
}

#[derive(Debug)]
struct Observations {
    miniatures: Miniatures,
    /// The look-ups of the store before those that the counts are about.
    before: Lookups,
}

/// A number of look-ups, and of those that found an entry.
type Lookups = (u64, u64);

/// The counts are halved at this number of sampled gets, so that the past counts less and less.
const MAX_SAMPLED_GETS: u64 = 1 << 17;

/// Below these numbers of sampled gets and of entries there is no forecast: chance would decide too
/// much.
const MIN_SAMPLED_GETS: u64 = 1 << 10;
const MIN_ENTRIES: u64 = 4000;

/// Below this number of misses in the miniature of the real cache, its ratio to the real one is chance.
const MIN_SAMPLED_MISSES: u64 = 64;

impl Forecaster {
    /// `cost` is that of the store's policy. `None` makes a forecaster that does nothing.
    pub(super) fn new(capacity: u64, cost: Option<Cost>, clock: &Clock) -> Forecaster {
        let state = cost.map(|cost| Observations::new(capacity, cost, clock));
        Forecaster {
            mask: AtomicU64::new(state.as_ref().map_or(u64::MAX, |state| state.mask())),
            state: state.map(Mutex::new),
        }
    }

    /// Whether the key with this hash is sampled. Without forecasts this is true for one hash in 2^64.
    #[inline]
    pub(super) fn samples(&self, hash: KeyHash) -> bool {
        hash.get() & self.mask.load(Ordering::Relaxed) == 0
    }

    /// Observes a get of a sampled key, with its value if it was cached.
    #[cold]
    pub(super) fn observe_get(
        &self,
        hash: KeyHash,
        value: Option<SampledValue>,
        clock: &Clock,
        lookups: impl Fn() -> Lookups,
    ) {
        self.observe(|state| {
            state.miniatures.get(SampledKey::new(hash), value, clock);
            if state.sampled(state.miniatures.counts().gets) >= MAX_SAMPLED_GETS {
                state.miniatures.halve_counts();
                let ((gets, hits), now) = (state.before, lookups());
                state.before = (gets.midpoint(now.0), hits.midpoint(now.1));
            }
        });
    }

    /// Observes the load of a sampled key's value.
    #[cold]
    pub(super) fn observe_load(&self, hash: KeyHash, value: SampledValue, clock: &Clock) {
        let key = SampledKey::new(hash);
        self.observe(|state| state.miniatures.insert(key, value, clock));
    }

    /// Observes the removal of a sampled key.
    #[cold]
    pub(super) fn observe_removal(&self, hash: KeyHash) {
        self.observe(|state| state.miniatures.remove(SampledKey::new(hash)));
    }

    /// Observes the removal of all keys.
    pub(super) fn observe_clear(&self) {
        self.observe(|state| state.miniatures.clear());
    }

    /// Changes the capacity. The counts so far were for the old one and are forgotten.
    pub(super) fn set_capacity(&self, capacity: u64, lookups: Lookups) {
        let Some(state) = &self.state else {
            return;
        };
        let mut state = state.lock();
        state.miniatures.set_capacity(capacity);
        state.before = lookups;
        self.mask.store(state.mask(), Ordering::Relaxed);
    }

    /// Runs `observe`, unless another thread is observing: then this observation is lost, so that no get
    /// waits for another one.
    fn observe(&self, observe: impl FnOnce(&mut Observations)) {
        let Some(mut state) = self.state.as_ref().and_then(Mutex::try_lock) else {
            return;
        };
        observe(&mut state);
        let mask = state.mask();
        if mask != self.mask.load(Ordering::Relaxed) {
            self.mask.store(mask, Ordering::Relaxed);
        }
    }

    /// The forecast after this number of look-ups. `None` if there are too few entries or sampled gets.
    pub(super) fn forecast(&self, lookups: Lookups) -> Option<Forecast> {
        let state = self.state.as_ref()?.lock();
        let miniatures = &state.miniatures;
        let counts = miniatures.counts();
        let entries = u64::from(miniatures.len()) << miniatures.level();
        if state.sampled(counts.gets) < MIN_SAMPLED_GETS || entries < MIN_ENTRIES {
            return None;
        }
        let gets = lookups.0.saturating_sub(state.before.0).max(1);
        let hits = lookups.1.saturating_sub(state.before.1).min(gets);
        let miss_ratio = (gets - hits) as f64 / gets as f64;
        let modelled = |cache: usize| counts.misses[cache] as f64 / counts.gets as f64;
        // A few popular keys, sampled or not, move the ratios of all miniatures in the same direction. So
        // they are compared with each other, and not with the real one.
        let is_measured = state.sampled(counts.misses[REAL]) >= MIN_SAMPLED_MISSES;
        let misses_at = |cache| match is_measured {
            true => miss_ratio * modelled(cache) / modelled(REAL),
            false => miss_ratio + modelled(cache) - modelled(REAL),
        };
        let mut points = std::array::from_fn(|cache| ForecastPoint {
            capacity: miniatures.capacity(cache),
            hit_ratio: 1.0 - misses_at(cache).clamp(0.0, 1.0),
        });
        // Where the ratios are close together, chance can give a smaller cache the higher one.
        for (smaller, larger) in [(1, 2), (0, 1)] {
            points[smaller].hit_ratio = points[smaller].hit_ratio.min(points[larger].hit_ratio);
        }
        for (smaller, larger) in [(2, 3), (3, 4)] {
            points[larger].hit_ratio = points[larger].hit_ratio.max(points[smaller].hit_ratio);
        }
        Some(Forecast { points, gets })
    }
}

impl Observations {
    /// Not inlined: it is large, and a stack frame of a store without forecasts has no room for it.
    #[inline(never)]
    fn new(capacity: u64, cost: Cost, clock: &Clock) -> Box<Observations> {
        Box::new(Observations {
            miniatures: Miniatures::new(capacity, cost, clock.now()),
            before: (0, 0),
        })
    }

    fn mask(&self) -> u64 {
        KeyHash::sample_mask(self.miniatures.level())
    }

    /// The sampled gets that stand for this number of gets.
    fn sampled(&self, gets: u64) -> u64 {
        gets >> self.miniatures.level()
    }
}

#[cfg(all(test, not(larder_loom)))]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::random::{GOLDEN_RATIO, mix};
    use crate::stats::CacheType;
    use crate::store::{EvictedEntries, Eviction, NewEntry, Store, StoreOptions};

    const ENTRY: u64 = 144;

    fn store(entries: u64, eviction: Eviction, clock: &Clock) -> Store {
        seeded_store(0, entries, eviction, clock)
    }

    fn seeded_store(seed: u64, entries: u64, eviction: Eviction, clock: &Clock) -> Store {
        let options = StoreOptions {
            capacity: entries * ENTRY,
            eviction,
            favor_objects: false,
            hot_fraction: 0.125,
            shards: Some(4),
            retention: Duration::ZERO,
            forecast: true,
            clock: clock.clone(),
        };
        Store::seeded(options, seed)
    }

    /// A get that loads if it misses. Values have 74 bytes with their keys, and weigh about [`ENTRY`].
    fn get(store: &Store, n: u64, ttl: Option<Duration>) {
        let key = format!("{n:010}");
        let hash = store.hash(&key);
        let Err((generation, ())) = store.get(hash, &key, || (), || ()) else {
            return;
        };
        store.count_miss(hash);
        let view = store.keyed(hash, &key, &[0; 64], None).expect("it fits");
        let new = NewEntry {
            hash,
            key: &key,
            data: view.allocation().expect("the view has bytes").into(),
            has_etag: false,
            is_renewal: false,
            is_shortened: false,
            share: CacheType::Main,
            expires: ttl.map(|ttl| store.clock().now().after(ttl)),
            begun: None,
            loaded_at: generation,
            is_forgotten: &|| false,
        };
        let mut evicted = EvictedEntries::default();
        store.insert(new, &mut evicted);
        while let Some(pending) = evicted.pending() {
            evicted = store.finish_eviction(pending);
        }
    }

    /// Gets of `keys` keys at random, each as often.
    fn get_uniformly(store: &Store, keys: u64, gets: u64) {
        let before = store.lookups().0;
        for n in before..before + gets {
            get(store, mix(n.wrapping_mul(GOLDEN_RATIO)) % keys, None);
        }
    }

    fn ratios(store: &Store) -> [f64; CACHES] {
        let forecast = store.forecast().expect("there is a forecast");
        forecast.points.map(|point| point.hit_ratio)
    }

    /// The forecasts are of several stores, because each samples other keys, and more or fewer of them.
    #[test]
    fn hit_ratio_of_random_gets_is_proportional_to_the_capacity() {
        const STORES: u64 = 4;
        for eviction in [Eviction::Tide, Eviction::Lru] {
            let mut off = [0.0; 4];
            for seed in 0..STORES {
                let store = seeded_store(seed, 8000, eviction, &Clock::manual());
                get_uniformly(&store, 32_000, 20_000);
                store.set_capacity(store.capacity());
                get_uniformly(&store, 32_000, 100_000);
                let entries = store.stats(CacheType::Main).items as f64;
                let times = [0.25, 0.5, 1.0, 2.0].into_iter().zip(ratios(&store));
                for ((times, ratio), off) in times.zip(&mut off) {
                    *off += (ratio - times * entries / 32_000.0) / STORES as f64;
                }
            }
            let is_near = off.iter().all(|off| off.abs() < 0.04);
            assert!(is_near, "{eviction:?}: off by {off:?}");
        }
    }

    #[test]
    fn middle_of_the_forecast_is_the_real_hit_ratio() {
        let store = store(10_000, Eviction::Tide, &Clock::manual());
        get_uniformly(&store, 30_000, 100_000);
        let forecast = store.forecast().expect("there is a forecast");
        let (gets, hits) = store.lookups();
        let real = forecast.points[REAL];
        assert!((real.hit_ratio - hits as f64 / gets as f64).abs() < 1e-9);
        assert_eq!((forecast.gets, real.capacity), (gets, store.capacity()));
        assert_eq!(forecast.points[0].capacity, store.capacity() / 4);
        assert_eq!(forecast.points[4].capacity, store.capacity() * 4);
    }

    #[test]
    fn more_memory_does_not_help_against_expiry() {
        let clock = Clock::manual();
        let store = store(20_000, Eviction::Tide, &clock);
        for n in 0..200_000_u64 {
            get(&store, n % 8000, Some(Duration::from_secs(3)));
            if n % 8000 == 0 {
                clock.advance(Duration::from_secs(1));
            }
        }
        let ratios = ratios(&store);
        assert!((0.6..0.8).contains(&ratios[REAL]), "{ratios:?}");
        for ratio in &ratios[REAL..] {
            assert!((ratio - ratios[REAL]).abs() < 0.04, "{ratios:?}");
        }
    }

    #[test]
    fn full_hit_ratio_forecasts_the_loss_of_less_memory() {
        let store = store(20_000, Eviction::Tide, &Clock::manual());
        get_uniformly(&store, 16_000, 100_000);
        // From now on there are no misses, so there is no real ratio of misses to go by.
        store.set_capacity(store.capacity());
        get_uniformly(&store, 16_000, 150_000);
        let ratios = ratios(&store);
        assert!(
            ratios[REAL..].iter().all(|ratio| *ratio > 0.99),
            "{ratios:?}"
        );
        assert!((0.4..0.8).contains(&ratios[1]), "{ratios:?}");
        assert!(ratios[0] < ratios[1] - 0.1, "{ratios:?}");
    }

    #[test]
    fn older_gets_count_less() {
        let clock = Clock::manual();
        let forecaster = Forecaster::new(1 << 20, Some(Cost::SquareRoot), &clock);
        let value = SampledValue::new(74, None);
        let (mut gets, mut hits) = (0, 0);
        let observe = |key: u64, is_hit: bool, gets: &mut u64, hits: &mut u64| {
            *gets += 32;
            *hits += if is_hit { 32 } else { 0 };
            // Only the upper bits differ, so the key is in every sample.
            let hash = KeyHash::new(mix(key) & !KeyHash::sample_mask(24));
            let lookups = || (*gets, *hits);
            forecaster.observe_get(hash, is_hit.then_some(value), &clock, lookups);
            if !is_hit {
                forecaster.observe_load(hash, value, &clock);
            }
        };
        for n in 0..MAX_SAMPLED_GETS / 2 {
            observe(n + 1000, false, &mut gets, &mut hits);
        }
        let before = forecaster.forecast((gets, hits)).expect("a forecast");
        assert!(before.points.iter().all(|point| point.hit_ratio == 0.0));
        for n in 0..2 * MAX_SAMPLED_GETS {
            observe(n % 100, true, &mut gets, &mut hits);
        }
        let after = forecaster.forecast((gets, hits)).expect("a forecast");
        assert!(after.gets < 2 * gets / 3, "{} of {gets}", after.gets);
        assert!(after.points[REAL].hit_ratio > 0.9, "{after:?}");
    }

    #[test]
    fn there_is_no_forecast_without_entries_or_gets() {
        let clock = Clock::manual();
        let small = store(1000, Eviction::Tide, &clock);
        get_uniformly(&small, 2000, 100_000);
        assert_eq!(small.forecast(), None, "with 1000 entries");
        let large = store(10_000, Eviction::Tide, &clock);
        get_uniformly(&large, 20_000, 10_000);
        assert_eq!(large.forecast(), None, "after 10,000 gets");
        get_uniformly(&large, 20_000, 100_000);
        assert!(large.forecast().is_some());
        large.set_capacity(large.capacity() / 2);
        assert_eq!(large.forecast(), None, "with a new capacity");
    }

    #[test]
    fn concurrent_gets_do_not_wait_and_are_forecast() {
        let store = store(10_000, Eviction::Tide, &Clock::manual());
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| get_uniformly(&store, 20_000, 100_000));
            }
            for _ in 0..100 {
                store.forecast();
            }
        });
        let ratios = ratios(&store);
        assert!(ratios.iter().all(|ratio| (0.0..=1.0).contains(ratio)));
    }
}
