//! What is said at the end.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use larder::BoxError;

use crate::latency::Histogram;
use crate::protocol::Counts;
use crate::table::{grouped, short};

/// Where in the run something happened.
#[derive(Clone, Copy)]
pub enum Phase {
    /// Before the kill.
    Before,
    /// While the node was down.
    Down,
    /// After it came back.
    After,
}

/// How often each file was read from the disk, and when.
#[derive(Default)]
pub struct DiskReads {
    by_file: BTreeMap<String, u64>,
    by_phase: [u64; 3],
}

impl DiskReads {
    pub fn add(&mut self, name: String, phase: Phase) {
        *self.by_file.entry(name).or_default() += 1;
        self.by_phase[phase as usize] += 1;
    }

    fn total(&self) -> u64 {
        self.by_phase.iter().sum()
    }
}

pub struct Summary {
    pub seconds: f64,
    pub callers: usize,
    pub files: usize,
    /// Of all nodes; of the killed process, up to its last report.
    pub counts: Counts,
    pub latency: Histogram,
    pub disk: DiskReads,
    /// The number of the node that was killed, and when, in seconds.
    pub victim: usize,
    pub kill_at: u64,
    pub back_at: u64,
    pub ready_after: Duration,
}

impl Summary {
    /// Whether the cluster did what it is for.
    pub fn verdict(&self) -> Result<(), BoxError> {
        let Counts {
            errors, differing, ..
        } = self.counts;
        if errors > 0 || differing > 0 {
            return Err(format!("{errors} errors, {differing} values that differ").into());
        }
        if self.counts.calls == 0 {
            return Err("the callers got nothing".into());
        }
        Ok(())
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = &self.counts;
        let (seconds, callers) = (self.seconds, self.callers);
        let percent = |n: u64| 100.0 * n as f64 / counts.gets.max(1) as f64;
        let quantile = |q| self.latency.quantile(q).map_or("-".into(), short);
        writeln!(f)?;
        writeln!(
            f,
            "callers   {} gets by {callers} threads in {seconds:.1} s, {} errors",
            grouped(counts.calls),
            grouped(counts.errors),
        )?;
        writeln!(
            f,
            "values    {} compared with the files, {} values differ",
            bytes(counts.bytes_equal),
            grouped(counts.differing),
        )?;
        writeln!(
            f,
            "latency   p50 {}, p99 {}, p99.9 {}",
            quantile(0.50),
            quantile(0.99),
            quantile(0.999),
        )?;
        let known = counts.main_hits + counts.hot_hits + counts.peer_loads + counts.local_loads;
        writeln!(
            f,
            "answered  main {:.2} %, hot {:.2} %, peer {:.2} %, disk {:.2} %, shared {:.2} %",
            percent(counts.main_hits),
            percent(counts.hot_hits),
            percent(counts.peer_loads),
            percent(counts.local_loads),
            percent(counts.gets.saturating_sub(known)),
        )?;
        writeln!(
            f,
            "          (shared: waited for a load that another caller had begun)"
        )?;
        self.write_disk(f)?;
        let (victim, kill_at, back_at) = (self.victim, self.kill_at, self.back_at);
        writeln!(
            f,
            "node {victim}    killed at {kill_at} s, started again at {back_at} s, ready {} ms later",
            self.ready_after.as_millis(),
        )?;
        write!(
            f,
            "          {} exchanges between nodes failed",
            grouped(counts.peer_errors)
        )
    }
}

impl Summary {
    fn write_disk(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (disk, files) = (&self.disk, self.files);
        let [before, down, after] = disk.by_phase.map(grouped);
        let most = disk.by_file.iter().max_by_key(|(_, reads)| **reads);
        let (most_name, most) = most.map_or(("none", 0), |(name, reads)| (name, *reads));
        let distinct = disk.by_file.len();
        writeln!(
            f,
            "disk      {} reads of {distinct} of {files} files: {:.2} a file",
            grouped(disk.total()),
            disk.total() as f64 / distinct.max(1) as f64,
        )?;
        writeln!(
            f,
            "          {before} before the kill, {down} while node {} was down, {after} after",
            self.victim,
        )?;
        writeln!(f, "          most often {most_name}: {}", grouped(most))
    }
}

/// A number of bytes in its unit, of 1,024 of the one before.
pub fn bytes(n: u64) -> String {
    let n = n as f64;
    match n {
        ..1024.0 => format!("{n} B"),
        ..1048576.0 => format!("{:.1} KiB", n / 1024.0),
        ..1073741824.0 => format!("{:.1} MiB", n / 1048576.0),
        _ => format!("{:.1} GiB", n / 1073741824.0),
    }
}
