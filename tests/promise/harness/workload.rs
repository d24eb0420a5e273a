//! The threads of a node: some get all keys, and one changes those of which it is the only writer.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use larder::http::HttpPool;
use larder::{ByteView, Context, Group, Result, SetOptions};

use super::clock;
use super::network::Network;
use super::node::Options;
use super::random::Random;
use super::records::{Record, Records};
use super::source::Source;

pub struct Workload {
    group: Group,
    pool: HttpPool,
    network: Arc<Network>,
    urls: Arc<OnceLock<Vec<String>>>,
    options: Options,
    source: Source,
    /// Held during a change.
    is_changing: Mutex<bool>,
    changes: AtomicU64,
    /// Changes that some nodes did not confirm.
    partial: AtomicU64,
    /// Gets without a value.
    errors: AtomicU64,
}

impl Workload {
    pub fn new(
        group: Group,
        pool: HttpPool,
        network: Arc<Network>,
        urls: Arc<OnceLock<Vec<String>>>,
        options: Options,
    ) -> io::Result<Workload> {
        Ok(Workload {
            source: Source::open(&options.dir)?,
            group,
            pool,
            network,
            urls,
            options,
            is_changing: Mutex::new(true),
            changes: AtomicU64::new(0),
            partial: AtomicU64::new(0),
            errors: AtomicU64::new(0),
        })
    }

    /// Lets changes pause or go on. Waits for one that is under way.
    pub fn set_changing(&self, yes: bool) {
        *self.is_changing.lock().expect("no panic") = yes;
    }

    /// Numbers, such as `changes=10 partial=0 errors=0 loads=90`.
    pub fn status(&self) -> String {
        format!(
            "changes={} partial={} errors={} loads={}",
            self.changes.load(Relaxed),
            self.partial.load(Relaxed),
            self.errors.load(Relaxed),
            self.group.stats().local_loads
        )
    }

    fn records(&self, thread: &str) -> io::Result<Records> {
        let Options { dir, node, run, .. } = &self.options;
        Records::create(dir, &format!("{node}-{run}-{thread}"))
    }

    fn random(&self, thread: u64) -> Random {
        let Options {
            seed, node, run, ..
        } = self.options;
        Random(seed << 24 ^ (node as u64) << 16 ^ (run as u64) << 8 ^ thread)
    }

    /// Gets keys at random, and notes each value.
    pub fn get_all(&self, thread: u64) -> io::Result<()> {
        let mut records = self.records(&format!("get{thread}"))?;
        let mut random = self.random(thread);
        loop {
            thread::sleep(PAUSE);
            let count = if random.below(16) == 0 { 8 } else { 1 };
            let numbers: Vec<u64> = (0..count)
                .map(|_| random.below(self.options.keys))
                .collect();
            let keys: Vec<String> = numbers.iter().map(|&number| name(number)).collect();
            let begun = clock::now();
            let values = match &keys[..] {
                [key] => vec![self.group.get(key)],
                keys => self.group.get_many(&Context::background(), keys),
            };
            for (&key, value) in numbers.iter().zip(values) {
                match version(key, value) {
                    Some(version) => records.push(Record::Get {
                        node: self.options.node,
                        begun,
                        key,
                        version,
                    })?,
                    None => drop(self.errors.fetch_add(1, Relaxed)),
                }
            }
        }
    }

    /// Notes when other nodes have answered.
    pub fn note_exchanges(&self) -> io::Result<()> {
        let mut records = self.records("exchanges")?;
        loop {
            thread::sleep(Duration::from_millis(5));
            let answered = self.network.answered();
            let with = self.mask(|url| answered.contains(url));
            if with != 0 {
                let (node, at) = (self.options.node, clock::now());
                records.push(Record::Exchange { node, at, with })?;
            }
        }
    }

    /// Changes keys at random, and notes what is promised then.
    pub fn change_all(&self) -> io::Result<()> {
        let mut records = self.records("changes")?;
        let mut random = self.random(u64::MAX);
        // The keys whose set failed, with the time. The request of such a set may still arrive.
        let mut uncertain = HashMap::new();
        loop {
            thread::sleep(CHANGE_PAUSE);
            let is_changing = self.is_changing.lock().expect("no panic");
            if !*is_changing {
                continue;
            }
            uncertain.retain(|_, at: &mut Instant| at.elapsed() < LATEST_SET);
            let nodes = self.urls.get().map_or(1, Vec::len) as u64;
            let mut keys: Vec<u64> = (0..self.options.keys)
                .filter(|key| key % nodes == self.options.node as u64)
                .filter(|key| !uncertain.contains_key(key))
                .collect();
            if keys.is_empty() {
                continue;
            }
            let one = keys[random.below(keys.len() as u64) as usize];
            let kind = random.below(256);
            if (1..200).contains(&kind) {
                keys = vec![one];
            }
            if kind != 0 {
                keys.truncate(4);
            }
            let mut versions = Vec::new();
            for &key in &keys {
                versions.push((key, self.source.change(key)?));
            }
            let unlisted = self.unlisted();
            let result = self.change(kind, &versions);
            let at = clock::now();
            // The list may have changed meanwhile.
            let unlisted = unlisted | self.unlisted();
            self.changes.fetch_add(1, Relaxed);
            let Some((failed, stale_until)) = self.failed(&result, unlisted) else {
                uncertain.insert(one, Instant::now());
                continue;
            };
            for (key, version) in versions {
                records.push(Record::Promise {
                    at,
                    key,
                    version,
                    failed,
                    stale_until,
                })?;
            }
        }
    }

    fn change(&self, kind: u64, versions: &[(u64, u64)]) -> Result<()> {
        let ctx = Context::background();
        let keys: Vec<String> = versions.iter().map(|&(key, _)| name(key)).collect();
        match (kind, versions) {
            (0, _) => self.group.clear(&ctx),
            (1..32, &[(key, version)]) => {
                let value = format!("{key} {version}");
                self.group.set(&ctx, &keys[0], value, SetOptions::new())
            }
            (_, [_]) => self.group.remove(&ctx, &keys[0]),
            _ => self.group.remove_many(&ctx, &keys),
        }
    }

    /// The nodes for whose URLs `is_in` is true: bit n is node n.
    fn mask(&self, is_in: impl Fn(&String) -> bool) -> u64 {
        let all = self.urls.get().map_or(&[][..], Vec::as_slice);
        let bits = all
            .iter()
            .enumerate()
            .map(|(n, url)| u64::from(is_in(url)) << n);
        bits.sum()
    }

    /// The nodes that are not in the list of this one.
    fn unlisted(&self) -> u64 {
        let listed = self.pool.urls();
        self.mask(|url| !listed.contains(url))
    }

    /// The nodes for which the promise does not hold yet, and until when. `None` if there is none at all.
    fn failed(&self, result: &Result<()>, unlisted: u64) -> Option<(u64, Option<u64>)> {
        let Err(error) = result else {
            return Some((unlisted, None));
        };
        let partial = error.partial()?;
        self.partial.fetch_add(1, Relaxed);
        let failed = self.mask(|url| partial.failed.iter().any(|failed| failed.peer == *url));
        let stale_until = partial.stale_until.map(clock::reading_at);
        Some((unlisted | failed, stale_until.filter(|_| unlisted == 0)))
    }
}

fn name(key: u64) -> String {
    format!("key-{key}")
}

/// The version in the value of a key.
fn version(key: u64, value: Result<ByteView>) -> Option<u64> {
    let value = value.ok()?;
    let (number, version) = value.to_str().ok()?.split_once(' ')?;
    assert_eq!(number.parse(), Ok(key), "the value of another key");
    version.parse().ok()
}

/// The pause between two gets of a thread.
const PAUSE: Duration = Duration::from_micros(100);

/// The pause between two changes of a node.
const CHANGE_PAUSE: Duration = Duration::from_millis(4);

/// The longest time after a failed set in which its request may still arrive.
const LATEST_SET: Duration = Duration::from_secs(20);
