//! How often keys are requested: rates of the keys that are requested most.

use std::f64::consts::E;

use super::{Group, Inner, LoadKey};
use crate::clock::Tick;
use crate::sync::Mutex;

/// A key and its rate: an item of [`Group::hottest_keys`].
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct KeyRate {
    /// The key, or its beginning if it is longer than 128 bytes.
    pub key: String,
    /// Requests per second, the mean of about the last minute.
    pub qps: f64,
}

impl Group {
    /// The keys that this process gets most often, the hottest first, at most `n`. Requests of peers count,
    /// also those for keys without a value. Empty unless the group
    /// [measures rates](crate::GroupBuilder::measure_rates).
    ///
    /// The rates are estimates: only one in 256 hits of this process's own gets is counted, and it counts as
    /// 256. So a key with 1,000 hits per second has an error of a few per cent. A key with a few hits per
    /// minute can be missing, or its rate can be too high. Requests of peers and misses are counted one by
    /// one. A get that a peer answers from a copy of its own is not counted here.
    ///
    /// ```
    /// use larder::Group;
    /// # let registry = larder::Registry::new();
    ///
    /// let colors = Group::builder("colors")
    ///     # .registry(&registry)
    ///     .measure_rates(true)
    ///     .build_with(|_ctx, name| Ok::<_, larder::Error>(format!("the color {name}")))?;
    /// for _ in 0..10_000 {
    ///     colors.get("red")?;
    /// }
    /// assert_eq!(colors.hottest_keys(3)[0].key, "red");
    /// # Ok::<(), larder::Error>(())
    /// ```
    pub fn hottest_keys(&self, n: usize) -> Vec<KeyRate> {
        let now = self.inner.store.clock().now();
        let hottest = |rates: &KeyRates| rates.hottest(n, now);
        self.inner.rates.as_ref().map_or_else(Vec::new, hottest)
    }
}

impl Inner {
    /// Called for one hit in [`SAMPLED_ONE_IN`](crate::store::SAMPLED_ONE_IN) of this process's own gets.
    #[cold]
    pub(super) fn sample_hit(&self, key: &LoadKey<'_>) {
        if let Some(rates) = &self.rates {
            let now = self.store.clock().now();
            rates.add(key, crate::store::SAMPLED_ONE_IN as f64, now);
        }
        self.purge_some();
    }

    /// Counts one request for a key, and returns the key's rate. `None` if the group does not measure rates, or
    /// if another thread is counting right now.
    pub(super) fn count_request(&self, key: &LoadKey<'_>) -> Option<f64> {
        self.rates.as_ref()?.add(key, 1.0, self.store.clock().now())
    }
}

/// The counters of the hottest keys: a table of fixed size (the Space-Saving algorithm, in sets of a few
/// counters).
///
/// A key that has no counter takes over the one with the lowest count in its set. The count stays, and is also
/// noted as excess, because those requests were for other keys. So a key with more requests than others of its
/// set keeps its counter.
///
/// All counts fall by half in 42 s, so that a count is about a minute's requests. The counters are not changed
/// for this. Instead a new request adds more than older ones did, by a factor that grows with time.
pub(super) struct KeyRates {
    sketch: Mutex<Sketch>,
}

struct Sketch {
    /// A request at this time adds 1 to a count; a later one adds more.
    origin: Tick,
    sets: Box<[[Counter; WAYS]]>,
}

#[derive(Default)]
struct Counter {
    hash: u64,
    key: Box<str>,
    count: f64,
    /// The count when this key took over the counter. Those requests were for other keys.
    excess: f64,
}

impl Counter {
    /// The requests that are certainly this key's.
    fn certain(&self) -> f64 {
        self.count - self.excess
    }
}

impl KeyRates {
    pub(super) fn new(now: Tick) -> KeyRates {
        let sets = (0..SETS).map(|_| Default::default()).collect();
        let sketch = Mutex::new(Sketch { origin: now, sets });
        KeyRates { sketch }
    }

    /// Counts `requests` for a key, and returns its rate. Does nothing if another thread is counting right
    /// now: a get never waits for that.
    fn add(&self, key: &LoadKey<'_>, requests: f64, now: Tick) -> Option<f64> {
        let mut sketch = self.sketch.try_lock()?;
        let worth = sketch.worth(now);
        let hash = key.hash.get();
        let set = &mut sketch.sets[hash as usize % SETS];
        let at = match set.iter().position(|counter| counter.hash == hash) {
            Some(at) => at,
            None => {
                let by_count = |a: &usize, b: &usize| set[*a].count.total_cmp(&set[*b].count);
                let lowest = (0..WAYS).min_by(by_count)?;
                let counter = &mut set[lowest];
                counter.hash = hash;
                counter.key = beginning(key.key).into();
                counter.excess = counter.count;
                lowest
            }
        };
        set[at].count += requests * worth;
        Some(set[at].certain() / worth / MEMORY_SECONDS)
    }

    fn hottest(&self, n: usize, now: Tick) -> Vec<KeyRate> {
        let mut sketch = self.sketch.lock();
        let worth = sketch.worth(now);
        let counters = sketch.sets.iter().flatten();
        let mut counters: Vec<_> = counters.filter(|counter| counter.count > 0.0).collect();
        counters.sort_unstable_by(|a, b| b.certain().total_cmp(&a.certain()));
        let rate = |counter: &&Counter| KeyRate {
            key: (*counter.key).into(),
            qps: counter.certain() / worth / MEMORY_SECONDS,
        };
        counters.iter().take(n).map(rate).collect()
    }
}

impl Sketch {
    /// The amount that one request adds to a count now.
    fn worth(&mut self, now: Tick) -> f64 {
        let age = now.since(self.origin).as_secs_f64() / MEMORY_SECONDS;
        if age < MAX_EXPONENT {
            return exp(age);
        }
        // Scale all counts down, so that none overflows.
        let kept = 1.0 / exp(age);
        for counter in self.sets.iter_mut().flatten() {
            counter.count *= kept;
            counter.excess *= kept;
        }
        self.origin = now;
        1.0
    }
}

/// e to the power of `x`, which is not negative, to 9 digits.
///
/// std's function links libm, which takes 288 KiB of memory in each process and is needed for nothing else.
fn exp(x: f64) -> f64 {
    let whole = x as i32;
    let y = (x - f64::from(whole)) / 8.0;
    let tail = 1.0 + y / 4.0 * (1.0 + y / 5.0 * (1.0 + y / 6.0));
    let eighth_root = 1.0 + y * (1.0 + y / 2.0 * (1.0 + y / 3.0 * tail));
    let fourth_root = eighth_root * eighth_root;
    let root = fourth_root * fourth_root;
    E.powi(whole) * root * root
}

/// The beginning of a key, as much as a counter keeps.
fn beginning(key: &str) -> &str {
    let mut end = key.len().min(MAX_KEY);
    while !key.is_char_boundary(end) {
        end -= 1;
    }
    &key[..end]
}

/// There are [`SETS`] times [`WAYS`] counters.
const SETS: usize = 32;

/// The counters of one set, which are searched one by one.
const WAYS: usize = 8;

/// The documentation of `GroupBuilder::measure_rates` gives the size of all counters.
const _: () = assert!(SETS * WAYS * size_of::<Counter>() <= 10 << 10);

/// A request that was this long ago counts 1/e of a new one.
const MEMORY_SECONDS: f64 = 60.0;

/// The logarithm of the most that one request adds to a count.
const MAX_EXPONENT: f64 = 100.0;

/// The most bytes of a key that are kept.
const MAX_KEY: usize = 128;

#[cfg(all(test, not(larder_loom)))]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::clock::Clock;
    use crate::store::{Eviction, SAMPLED_ONE_IN, Store, StoreOptions};

    #[test]
    fn exponential_is_close_to_that_of_std() {
        for x in (0..4_000).map(|n| f64::from(n) / 16.0) {
            assert!((exp(x) / x.exp() - 1.0).abs() < 2e-9, "{x}");
        }
        assert_eq!(1.0 / exp(f64::MAX), 0.0);
    }

    fn store(seed: u64) -> Store {
        let options = StoreOptions {
            capacity: 0,
            eviction: Eviction::Lru,
            favor_objects: false,
            hot_fraction: 0.0,
            shards: Some(1),
            retention: Duration::ZERO,
            forecast: false,
            clock: Clock::manual(),
        };
        Store::seeded(options, seed)
    }

    fn key<'k>(store: &Store, key: &'k str) -> LoadKey<'k> {
        LoadKey {
            hash: store.hash(key),
            key,
        }
    }

    /// A random stream of keys. The probability of key i is proportional to 1 / (i + 1). Each seed has the same
    /// stream in each run.
    struct Zipf {
        sums: Vec<f64>,
        state: u64,
    }

    impl Zipf {
        fn new(keys: usize, seed: u64) -> Zipf {
            let mut sum = 0.0;
            let add = |i: usize| {
                sum += 1.0 / (i + 1) as f64;
                sum
            };
            let sums = (0..keys).map(add).collect();
            Zipf { sums, state: seed }
        }

        fn share(&self, i: usize) -> f64 {
            1.0 / (i + 1) as f64 / self.sums[self.sums.len() - 1]
        }

        fn next(&mut self) -> usize {
            self.state = self.state.wrapping_mul(6_364_136_223_846_793_005);
            self.state = self.state.wrapping_add(1_442_695_040_888_963_407);
            let unit = (self.state >> 11) as f64 / (1_u64 << 53) as f64;
            let at = unit * self.sums[self.sums.len() - 1];
            self.sums.partition_point(|&sum| sum < at)
        }
    }

    /// Ten minutes of 5,000 gets per second, of which one in `one_in` is counted.
    fn rates_of_stream(seed: u64, one_in: u64) -> (Vec<KeyRate>, Zipf) {
        let (store, clock) = (store(seed), Clock::manual());
        let rates = KeyRates::new(clock.now());
        let mut zipf = Zipf::new(10_000, seed);
        for get in 1..=600 * 5_000 {
            let name = zipf.next().to_string();
            if one_in == 1 || crate::store::is_sampled(get) {
                let counted = rates.add(&key(&store, &name), one_in as f64, clock.now());
                assert!(counted.is_some());
            }
            if get % 500 == 0 {
                clock.advance(Duration::from_millis(100));
            }
        }
        (rates.hottest(10, clock.now()), zipf)
    }

    fn worst_error(hottest: &[KeyRate], zipf: &Zipf) -> f64 {
        let error = |rate: &KeyRate| {
            let expected = 5_000.0 * zipf.share(rate.key.parse().expect("a number"));
            (rate.qps / expected - 1.0).abs()
        };
        hottest.iter().map(error).fold(0.0, f64::max)
    }

    #[test]
    fn rates_of_a_zipf_stream_are_right() {
        for seed in 0..3 {
            let (hottest, zipf) = rates_of_stream(seed, 1);
            let error = worst_error(&hottest[..5], &zipf);
            assert!(error < 0.08, "{error}: {hottest:?}");
            let keys: Vec<&str> = hottest[..4].iter().map(|rate| &*rate.key).collect();
            assert_eq!(keys, ["0", "1", "2", "3"]);
        }
    }

    #[test]
    fn rates_of_sampled_hits_are_about_right() {
        for seed in 0..3 {
            let (hottest, zipf) = rates_of_stream(seed, SAMPLED_ONE_IN);
            let error = worst_error(&hottest[..3], &zipf);
            assert!(error < 0.35, "{error}: {hottest:?}");
            assert_eq!(hottest[0].key, "0");
        }
    }

    #[test]
    fn rate_falls_by_a_factor_of_e_each_minute() {
        let (store, clock) = (store(1), Clock::manual());
        let rates = KeyRates::new(clock.now());
        let red = key(&store, "red");
        let of_burst = rates.add(&red, 600.0, clock.now()).expect("not contended");
        assert!(
            (of_burst - 10.0).abs() < 0.01,
            "600 in a minute: {of_burst}"
        );
        for minute in 1..300 {
            clock.advance(Duration::from_secs(60));
            let rate = rates.add(&red, 0.0, clock.now()).expect("not contended");
            let expected = 10.0 * f64::exp(-f64::from(minute));
            assert!(
                (rate - expected).abs() <= expected * 1e-6,
                "{minute}: {rate}"
            );
        }
        clock.advance(Duration::MAX);
        assert_eq!(rates.add(&red, 0.0, clock.now()), Some(0.0));
        let again = rates.add(&red, 60.0, clock.now()).expect("not contended");
        assert!((again - 1.0).abs() < 1e-6, "{again}");
    }

    #[test]
    fn rate_of_a_new_key_has_no_requests_of_the_key_it_replaces() {
        let (store, clock) = (store(1), Clock::manual());
        let rates = KeyRates::new(clock.now());
        let names: Vec<String> = (0..10_000).map(|i| i.to_string()).collect();
        for name in &names {
            let rate = rates.add(&key(&store, name), 6.0, clock.now());
            let rate = rate.expect("not contended");
            assert!((rate - 0.1).abs() < 1e-6, "{name}: {rate}");
        }
        assert_eq!(
            rates.add(&key(&store, "other"), 0.0, clock.now()),
            Some(0.0)
        );
        assert_eq!(rates.hottest(usize::MAX, clock.now()).len(), SETS * WAYS);
    }

    #[test]
    fn long_keys_are_cut() {
        let (store, clock) = (store(1), Clock::manual());
        let rates = KeyRates::new(clock.now());
        let long = "é".repeat(4_000);
        rates.add(&key(&store, &format!("x{long}")), 2.0, clock.now());
        rates.add(&key(&store, &format!("x{long}x")), 1.0, clock.now());
        let hottest = rates.hottest(9, clock.now());
        assert_eq!(hottest.len(), 2, "they are different keys");
        assert_eq!(hottest[0].key, format!("x{}", "é".repeat(63)));
    }

    #[test]
    fn a_get_does_not_wait_for_another_count() {
        let (store, clock) = (store(1), Clock::manual());
        let rates = KeyRates::new(clock.now());
        let counting = rates.sketch.lock();
        assert_eq!(rates.add(&key(&store, "red"), 1.0, clock.now()), None);
        drop(counting);
        assert!(rates.add(&key(&store, "red"), 1.0, clock.now()).is_some());
    }
}
