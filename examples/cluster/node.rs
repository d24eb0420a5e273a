//! One process of the cluster: a group of files, its server, and its callers.

use std::fs;
use std::io::{self, BufRead, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use larder::http::HttpPool;
use larder::{BoxError, CacheType, Context, Getter, Group, Sink};

use crate::corpus::MAX_FILE;
use crate::driver::{Drivers, Reference};
use crate::file_getter::FileGetter;
use crate::latency::Histogram;
use crate::protocol::{Counts, FromNode, Report, ToNode};

pub struct Options {
    pub dir: PathBuf,
    /// 0 to let the system choose one.
    pub port: u16,
    pub threads: usize,
    /// The capacity of the group, in bytes.
    pub cache: u64,
}

/// Does what the parent says until it says no more.
///
/// Standard input ends when the parent does, however it does: so no node is left behind.
pub fn run(options: &Options) -> Result<(), BoxError> {
    let listener = listen(options.port)?;
    let port = listener.local_addr()?.port();
    let pool = HttpPool::new(&format!("http://127.0.0.1:{port}"))?;
    let group = Group::builder("files")
        .max_capacity(options.cache)
        .build(TellingGetter(FileGetter::new(&options.dir, MAX_FILE)?))?;
    let _server = pool.server().serve_listener(listener)?;
    tell(FromNode::Listening(port));

    let mut files = Vec::new();
    let mut callers: Option<Drivers> = None;
    let mut latency_told = Histogram::default();
    for line in io::stdin().lock().lines() {
        match line?.parse()? {
            ToNode::File(name) => files.push(Reference {
                bytes: read(&options.dir, &name)?,
                name,
            }),
            ToNode::Peers(urls) => {
                pool.set(&urls)?;
                tell(FromNode::Ready);
            }
            ToNode::Run => {
                let files = std::mem::take(&mut files);
                let seed = u64::from(port) << 16 | u64::from(std::process::id());
                let started = Drivers::start(options.threads, seed, &group, files, Arc::new(tell))?;
                callers = Some(started);
            }
            ToNode::Report => report(&group, callers.as_ref(), &mut latency_told),
            ToNode::Stop => {
                if let Some(callers) = &mut callers {
                    callers.stop();
                }
                report(&group, callers.as_ref(), &mut latency_told);
                tell(FromNode::Stopped);
            }
        }
    }
    // The parent is done with this node, or gone: nobody is left to finish a get for.
    std::process::exit(0);
}

/// Reads files, and tells the parent of each.
struct TellingGetter(FileGetter);

impl Getter for TellingGetter {
    fn get(&self, ctx: &Context, key: &str, dest: &mut dyn Sink) -> Result<(), BoxError> {
        tell(FromNode::Loaded(key.to_owned()));
        self.0.get(ctx, key, dest)
    }
}

fn report(group: &Group, callers: Option<&Drivers>, latency_told: &mut Histogram) {
    let callers_counts = callers.map(Drivers::counts).unwrap_or_default();
    let latency = callers.map(Drivers::latency).unwrap_or_default();
    let stats = group.stats();
    let report = Report {
        counts: Counts {
            gets: stats.gets,
            main_hits: group.cache_stats(CacheType::Main).hits,
            hot_hits: group.cache_stats(CacheType::Hot).hits,
            peer_loads: stats.peer_loads,
            peer_errors: stats.peer_errors,
            local_loads: stats.local_loads,
            ..callers_counts
        },
        latency: latency.since(latency_told),
    };
    *latency_told = latency;
    tell(FromNode::Report(Box::new(report)));
}

/// Writes a line to the parent. Without a parent there is nothing left to do.
fn tell(message: FromNode) {
    let line = format!("{message}\n");
    let mut out = io::stdout().lock();
    if out
        .write_all(line.as_bytes())
        .and_then(|()| out.flush())
        .is_err()
    {
        std::process::exit(0);
    }
}

fn read(dir: &Path, name: &str) -> Result<Vec<u8>, BoxError> {
    fs::read(dir.join(name)).map_err(|error| format!("{name}: {error}").into())
}

/// Listens on a loopback port.
///
/// A port that was ours a moment ago is free, but for a connection of some process that the system
/// may have given this port in the meantime: those come and go.
fn listen(port: u16) -> io::Result<TcpListener> {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        match TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && Instant::now() < deadline => {
                thread::sleep(Duration::from_millis(50));
            }
            result => return result,
        }
    }
}
