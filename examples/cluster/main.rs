//! Three processes share a cache of files; one is killed under load, and no caller notices.
//!
//! ```text
//! cargo run --release --example cluster [-- --dir DIR --seconds 10 --threads 2 --cache KIB]
//! ```
//!
//! Starts three processes on free ports of the loopback address. In each, threads get files of a
//! directory (by default this crate's sources) through a group, popular ones much more often than
//! others, and compare every byte with the file as it was at the start. Half way one process is
//! killed (SIGKILL), and at three quarters it is started again on its port. Prints a table once a
//! second and a summary at the end. The exit status is 1 if a byte differed or a caller saw an
//! error.
//!
//! A process's cache has room for all of the files by default: its own third, copies of the
//! popular ones of others, and half of the third of a process that is gone. With less (`--cache`)
//! more gets go to peers, and while a process is gone, to the files.

mod corpus;
mod driver;
#[path = "../getter_file/file_getter.rs"]
mod file_getter;
mod fleet;
mod latency;
mod node;
mod parent;
mod protocol;
mod summary;
mod table;
mod zipf;

use std::path::PathBuf;

use larder::BoxError;
use lexopt::prelude::*;

fn main() -> Result<(), BoxError> {
    match Command::parse()? {
        Command::Help => println!("{USAGE}"),
        Command::Node(options) => node::run(&options)?,
        Command::Cluster(options) => parent::run(&options)?,
    }
    Ok(())
}

enum Command {
    Help,
    Cluster(parent::Options),
    /// What the parent starts: this program again, with the hidden word `node`.
    Node(node::Options),
}

impl Command {
    fn parse() -> Result<Command, lexopt::Error> {
        let mut dir: PathBuf = concat!(env!("CARGO_MANIFEST_DIR"), "/../src").into();
        let mut seconds: u64 = 10;
        let mut threads: usize = 2;
        let mut cache_kib: Option<u64> = None;
        let mut is_node = false;
        let mut port = 0;

        let mut parser = lexopt::Parser::from_env();
        while let Some(arg) = parser.next()? {
            match arg {
                Long("dir") => dir = parser.value()?.into(),
                Long("seconds") => seconds = parser.value()?.parse()?,
                Long("threads") => threads = parser.value()?.parse()?,
                Long("cache") => cache_kib = Some(parser.value()?.parse()?),
                Value(word) if word == "node" && !is_node => is_node = true,
                Long("port") if is_node => port = parser.value()?.parse()?,
                Short('h') | Long("help") => return Ok(Command::Help),
                _ => return Err(arg.unexpected()),
            }
        }
        if !(MIN_SECONDS..=3600).contains(&seconds) {
            return Err(format!("--seconds is {MIN_SECONDS} to 3600").into());
        }
        if !(1..=64).contains(&threads) {
            return Err("--threads is 1 to 64".into());
        }
        let cache = cache_kib.map(|kib| kib.saturating_mul(1024));
        if is_node {
            let cache = cache.ok_or("a node is told its --cache")?;
            return Ok(Command::Node(node::Options {
                dir,
                port,
                threads,
                cache,
            }));
        }
        Ok(Command::Cluster(parent::Options {
            dir,
            seconds,
            threads,
            cache,
        }))
    }
}

const USAGE: &str = "\
usage: cluster [--dir DIR] [--seconds 10] [--threads 2] [--cache KIB]

  --dir      the directory whose files are served
  --seconds  how long the callers read, at least 4
  --threads  callers in each of the three processes
  --cache    the cache of each process; by default as large as the files";

/// The kill, the time without the node, and the time after need a second each.
const MIN_SECONDS: u64 = 4;
