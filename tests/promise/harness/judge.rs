//! Finds gets that returned a value older than a removal had promised.

use std::collections::{BTreeMap, HashMap};
use std::io::Result;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::clock::nanos;
use super::records::{PREFIX, Record, RecordReader};

/// Reads the records of all processes, and judges them.
pub struct Judge {
    dir: PathBuf,
    files: BTreeMap<PathBuf, RecordReader>,
    gets: Vec<Get>,
    /// By key. In the order of their times after [`judge`](Self::judge).
    promises: Vec<Vec<Promise>>,
    /// By node: when it got answers, and from which nodes.
    exchanges: Vec<Vec<(u64, u64)>>,
    /// By node: when it was started again, with nothing in its cache but what it took from a dump.
    restarts: Vec<Vec<u64>>,
    /// When nodes were cut off.
    cuts: Vec<u64>,
    /// The gets that were judged once.
    judged: usize,
}

#[derive(Clone, Copy, Debug)]
struct Get {
    begun: u64,
    version: u32,
    key: u16,
    node: u16,
}

#[derive(Clone, Copy, Debug)]
struct Promise {
    at: u64,
    version: u32,
    failed: u64,
    stale_until: Option<u64>,
}

/// The numbers of all processes since the start.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    pub gets: usize,
    pub promises: usize,
}

impl Judge {
    pub fn new(dir: &Path, nodes: usize, keys: u64) -> Judge {
        Judge {
            dir: dir.to_owned(),
            files: BTreeMap::new(),
            gets: Vec::new(),
            promises: (0..keys).map(|_| Vec::new()).collect(),
            exchanges: vec![Vec::new(); nodes],
            restarts: vec![Vec::new(); nodes],
            cuts: Vec::new(),
            judged: 0,
        }
    }

    pub fn note_restart(&mut self, node: usize, at: u64) {
        self.restarts[node].push(at);
    }

    pub fn note_cut(&mut self, at: u64) {
        self.cuts.push(at);
    }

    /// Reads the records that were written since the last call.
    pub fn read(&mut self) -> Result<Counts> {
        for entry in std::fs::read_dir(&self.dir)? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if name.starts_with(PREFIX) && !self.files.contains_key(&path) {
                let reader = RecordReader::open(&path)?;
                self.files.insert(path, reader);
            }
        }
        for file in self.files.values_mut() {
            file.read(|record| match record {
                Record::Get {
                    node,
                    begun,
                    key,
                    version,
                } => self.gets.push(Get {
                    begun,
                    version: version as u32,
                    key: key as u16,
                    node: node as u16,
                }),
                Record::Promise {
                    at,
                    key,
                    version,
                    failed,
                    stale_until,
                } => self.promises[key as usize].push(Promise {
                    at,
                    version: version as u32,
                    failed,
                    stale_until,
                }),
                Record::Exchange { node, at, with } => self.exchanges[node].push((at, with)),
            })?;
        }
        Ok(Counts {
            gets: self.gets.len(),
            promises: self.promises.iter().map(Vec::len).sum(),
        })
    }

    /// The number of violations among the gets up to number `read` that were not judged before. It is
    /// provisional, because a promise for these gets may not be known yet: see [`judge_all`](Self::judge_all).
    pub fn judge_new(&mut self, read: usize, grace: Duration) -> usize {
        let from = std::mem::replace(&mut self.judged, read);
        self.judge(from..read, grace).len()
    }

    /// The final verdict: all violations, each as a sentence.
    pub fn judge_all(&mut self, grace: Duration) -> Vec<String> {
        self.judge(0..self.gets.len(), grace)
    }

    fn judge(&mut self, gets: std::ops::Range<usize>, grace: Duration) -> Vec<String> {
        for promises in &mut self.promises {
            promises.sort_by_key(|promise| promise.at);
        }
        let begins = self.begins(nanos(grace));
        let of = |get: &Get| self.broken_promise(get, &begins);
        let broken = self.gets[gets]
            .iter()
            .filter_map(|get| Some((get, of(get)?)));
        broken
            .map(|(get, promise)| {
                format!(
                    "node {} got version {} of key {}, {} µs after version {} was promised (failed: {:b})",
                    get.node,
                    get.version,
                    get.key,
                    (get.begun - promise.at) / 1000,
                    promise.version,
                    promise.failed,
                )
            })
            .collect()
    }

    /// For each node, and each set of nodes that did not confirm a promise: the times when the node got an
    /// answer from a node that did confirm it. An answer at about the time of a cut does not count, because the
    /// two nodes could not compare their removals after it.
    fn informed(&self, grace: u64) -> Informed {
        let is_cut = |at: u64| self.cuts.iter().any(|cut| cut.abs_diff(at) <= grace);
        let mut informed = Informed::new();
        for failed in self.promises.iter().flatten().map(|promise| promise.failed) {
            for node in (0..self.exchanges.len()).filter(|node| failed >> node & 1 == 1) {
                informed.entry((node, failed)).or_insert_with(|| {
                    let exchanges = self.exchanges[node].iter();
                    let with_one = exchanges.filter(|(_, with)| with & !failed != 0);
                    let times = with_one.map(|&(at, _)| at);
                    times.filter(|&at| !is_cut(at)).collect()
                });
            }
        }
        informed
    }

    /// For each key and each promise, the time from which it holds at each node.
    fn begins(&self, grace: u64) -> Vec<Vec<Vec<u64>>> {
        let informed = self.informed(grace);
        let nodes = 0..self.exchanges.len();
        let at_nodes = |promise: &Promise| {
            let at = |node| self.holds_from(promise, node, &informed, grace);
            nodes.clone().map(at).collect()
        };
        let of_key = |promises: &Vec<Promise>| promises.iter().map(at_nodes).collect();
        self.promises.iter().map(of_key).collect()
    }

    /// The last promise that held when the get began, if the get broke it.
    fn broken_promise(&self, get: &Get, begins: &[Vec<Vec<u64>>]) -> Option<Promise> {
        let (key, node) = (usize::from(get.key), usize::from(get.node));
        let promises = &self.promises[key];
        let before = promises.partition_point(|promise| promise.at < get.begun);
        // Versions grow with time, because each key has one writer.
        let last = (0..before).rfind(|&n| begins[key][n][node] < get.begun)?;
        (get.version < promises[last].version).then_some(promises[last])
    }

    /// The time from which a promise holds at a node; `u64::MAX` if it does not.
    fn holds_from(&self, promise: &Promise, node: usize, informed: &Informed, grace: u64) -> u64 {
        if promise.failed >> node & 1 == 0 {
            return promise.at;
        }
        let after = |times: &[u64], n: usize| {
            let first = times.partition_point(|&time| time <= promise.at);
            times.get(first + n).copied()
        };
        // The first record after the promise can be of an answer before it.
        let exchanged = after(&informed[&(node, promise.failed)], 1);
        let repaired = exchanged.map(|at| at + grace);
        let restarted = after(&self.restarts[node], 0);
        let begins = [repaired, restarted, promise.stale_until];
        begins.into_iter().flatten().min().unwrap_or(u64::MAX)
    }
}

/// Times in order, by node and by the nodes that did not confirm.
type Informed = HashMap<(usize, u64), Vec<u64>>;
