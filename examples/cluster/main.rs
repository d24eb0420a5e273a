//! Three processes share a cache of files. One is killed under load, and no caller gets an error.
//!
//! ```text
//! cargo run --release -p cluster [-- --dir DIR --seconds 10]
//! ```
//!
//! Starts three processes on free ports of the loopback address. In each, threads get files of a
//! directory (by default the library's sources) through a group, popular files much more often than
//! others. They compare every byte with the file as it was at the start. Half way, one process is
//! killed with SIGKILL; at three quarters, it is started again on its port. A table shows once a
//! second what each process did. The exit status is 1 if a byte differed or a caller got an error.
//!
//! `node.rs` is a process of the cluster, as a program of yours would be. `process.rs` starts and
//! kills processes. This file is the operator of the cluster.

#[path = "../getter_file/file_getter.rs"]
mod file_getter;
mod node;
mod process;

use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use larder::BoxError;
use lexopt::prelude::*;

use node::Counts;
use process::Process;

const NODES: usize = 3;
/// The node that is killed, counted from 0.
const VICTIM: usize = 1;
/// Long enough for a report before the kill, one without the node, and one after its restart.
const MIN_SECONDS: u64 = 4;

fn main() -> Result<(), BoxError> {
    let mut dir: PathBuf = concat!(env!("CARGO_MANIFEST_DIR"), "/../../src").into();
    let mut seconds: u64 = 10;
    let mut node = None;
    let mut parser = lexopt::Parser::from_env();
    while let Some(arg) = parser.next()? {
        match arg {
            Long("dir") => dir = parser.value()?.into(),
            Long("seconds") => seconds = parser.value()?.parse()?,
            // A node has two arguments: its port, and the bytes of its cache.
            Long("node") => node = Some((parser.value()?.parse()?, parser.value()?.parse()?)),
            Short('h') | Long("help") => {
                println!("usage: cluster [--dir DIR] [--seconds 10]");
                return Ok(());
            }
            _ => return Err(arg.unexpected().into()),
        }
    }
    match node {
        Some((port, cache)) => node::run(&dir, port, cache),
        None => operate(&dir, seconds.max(MIN_SECONDS)),
    }
}

/// Runs the cluster and prints what happens.
fn operate(dir: &Path, seconds: u64) -> Result<(), BoxError> {
    let files = node::read_files(dir)?;
    let size: usize = files.iter().map(|(_, bytes)| bytes.len()).sum();
    let (count, kib) = (files.len(), size >> 10);
    println!("{NODES} nodes share {count} files, {kib} KiB");
    // The cache is an eighth larger than the files, so that it has room for keys and the overhead of entries.
    let cache = (size / 8 * 9).max(16 << 10);

    let mut nodes = Vec::new();
    let mut ports = Vec::new();
    let mut peers = "peers".to_owned();
    for number in 1..=NODES {
        let node = Process::start(dir, 0, cache)?;
        println!("node {number} listens on 127.0.0.1:{}", node.port);
        ports.push(node.port);
        peers += &format!(" http://127.0.0.1:{}", node.port);
        nodes.push(Some(node));
    }
    // Each process is given the same list of URLs.
    for node in nodes.iter_mut().flatten() {
        node.ask(&peers)?;
    }

    println!("{HEADER}");
    let began = Instant::now();
    let mut sum = Counts::default();
    for second in 1..=seconds {
        let next = began + Duration::from_secs(second);
        thread::sleep(next.saturating_duration_since(Instant::now()));
        for (n, node) in nodes.iter_mut().enumerate() {
            let Some(node) = node else {
                println!("{second:>4} s    {}  down", n + 1);
                continue;
            };
            let (_, row) = node.report("report")?;
            println!("{second:>4} s    {}  up   {row}", n + 1);
        }
        if second == seconds / 2 {
            // The process is killed when its handle is dropped.
            let victim = nodes[VICTIM].take();
            sum = victim.ok_or("it is not running")?.report("report")?.0;
            println!("{second} s: node {} is killed (SIGKILL)", VICTIM + 1);
        }
        if second == seconds * 3 / 4 {
            let mut node = Process::start(dir, ports[VICTIM], cache)?;
            node.ask(&peers)?;
            nodes[VICTIM] = Some(node);
            println!("{second} s: node {} is started again", VICTIM + 1);
        }
    }
    for node in nodes.iter_mut().flatten() {
        for (sum, count) in sum.iter_mut().zip(node.report("stop")?.0) {
            *sum += count;
        }
    }
    summarize(&sum, began.elapsed())
}

/// Returns an error if a caller got an error or a wrong value.
fn summarize(sum: &Counts, time: Duration) -> Result<(), BoxError> {
    let (calls, errors, differing) = (sum[node::CALLS], sum[node::ERRORS], sum[node::DIFFERING]);
    let (seconds, mib) = (time.as_secs_f64(), sum[node::BYTES] >> 20);
    println!("\ncallers   {calls} gets in {seconds:.1} s, {errors} errors");
    println!("values    {mib} MiB compared with the files, {differing} values differ");
    match (calls, errors + differing) {
        (0, _) => Err("the callers got nothing".into()),
        (_, 0) => Ok(()),
        _ => Err(format!("{errors} errors, {differing} values differ").into()),
    }
}

const HEADER: &str = "
gets/s   gets of the node's own callers and of other nodes
main     share of these found in the share of the cache for keys that the node owns
hot      share of these found in the share for copies of other nodes' keys
peers/s  gets that another node answered
failed   requests to other nodes that failed, so far
disk     files read, so far

  time node  state   gets/s     main      hot  peers/s  failed    disk";
