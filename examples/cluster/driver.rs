//! The callers of a node: threads that get files and compare every byte.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use larder::Group;

use crate::latency::{Histogram, Recorder};
use crate::protocol::{Counts, FromNode};
use crate::zipf::{Random, Zipf};

/// A file as it is on the disk.
pub struct Reference {
    pub name: String,
    pub bytes: Vec<u8>,
}

/// Takes what callers have to tell the parent.
pub type Tell = dyn Fn(FromNode) + Send + Sync;

/// Threads that read until they are stopped.
pub struct Drivers {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    tallies: Vec<Arc<Tally>>,
}

/// What one thread counts: it alone writes, the reporter reads.
struct Tally {
    calls: AtomicU64,
    errors: AtomicU64,
    bytes_equal: AtomicU64,
    differing: AtomicU64,
    latency: Recorder,
}

impl Drivers {
    /// Starts `threads` threads that read `files` through `group`.
    pub fn start(
        threads: usize,
        seed: u64,
        group: &Group,
        files: Vec<Reference>,
        tell: Arc<Tell>,
    ) -> std::io::Result<Drivers> {
        let mut drivers = Drivers {
            stop: Arc::default(),
            threads: Vec::new(),
            tallies: Vec::new(),
        };
        let files = Arc::new(files);
        let zipf = Arc::new(Zipf::new(files.len()));
        for number in 0..threads {
            let tally = Arc::new(Tally::new());
            drivers.tallies.push(tally.clone());
            let mut caller = Caller {
                group: group.clone(),
                files: files.clone(),
                zipf: zipf.clone(),
                random: Random::new(seed << 32 | number as u64),
                tally,
                tell: tell.clone(),
            };
            let stop = drivers.stop.clone();
            let thread = thread::Builder::new()
                .name(format!("caller-{number}"))
                .spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        caller.get_one();
                    }
                })?;
            drivers.threads.push(thread);
        }
        Ok(drivers)
    }

    /// Lets every thread end its get, and waits for them.
    pub fn stop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                eprintln!("a caller panicked");
                std::process::exit(1);
            }
        }
    }

    /// What the threads counted so far.
    pub fn counts(&self) -> Counts {
        let sum = |field: fn(&Tally) -> &AtomicU64| {
            let tallies = self.tallies.iter();
            tallies
                .map(|tally| field(tally).load(Ordering::Relaxed))
                .sum()
        };
        Counts {
            calls: sum(|tally| &tally.calls),
            errors: sum(|tally| &tally.errors),
            bytes_equal: sum(|tally| &tally.bytes_equal),
            differing: sum(|tally| &tally.differing),
            ..Counts::default()
        }
    }

    /// The times of all gets so far.
    pub fn latency(&self) -> Histogram {
        let mut all = Histogram::default();
        for tally in &self.tallies {
            all.merge(&tally.latency.snapshot());
        }
        all
    }
}

impl Tally {
    fn new() -> Self {
        Tally {
            calls: AtomicU64::new(0),
            errors: AtomicU64::new(0),
            bytes_equal: AtomicU64::new(0),
            differing: AtomicU64::new(0),
            latency: Recorder::new(),
        }
    }
}

struct Caller {
    group: Group,
    files: Arc<Vec<Reference>>,
    zipf: Arc<Zipf>,
    random: Random,
    tally: Arc<Tally>,
    tell: Arc<Tell>,
}

impl Caller {
    fn get_one(&mut self) {
        let file = &self.files[self.zipf.next(&mut self.random)];
        let start = Instant::now();
        let result = self.group.get(&file.name);
        self.tally.latency.record(start.elapsed());

        let add = |count: &AtomicU64, n: u64| count.fetch_add(n, Ordering::Relaxed);
        match result {
            Ok(view) if view == file.bytes => {
                add(&self.tally.bytes_equal, view.len() as u64);
            }
            Ok(view) => {
                let before = add(&self.tally.differing, 1);
                if before < MAX_TOLD {
                    let (got, want) = (view.len(), file.bytes.len());
                    let name = &file.name;
                    (self.tell)(FromNode::Differs(format!(
                        "{name}: got {got} bytes, the file had {want}"
                    )));
                }
            }
            Err(error) => {
                let before = add(&self.tally.errors, 1);
                if before < MAX_TOLD {
                    let (name, kind) = (&file.name, error.kind());
                    (self.tell)(FromNode::Failed(format!("{name}: {kind:?}: {error}")));
                }
            }
        }
        add(&self.tally.calls, 1);
    }
}

/// So many errors of a thread are told with their text; all are counted.
const MAX_TOLD: u64 = 5;
