//! One process of the cluster: a group of files, its server, and its callers.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use larder::http::HttpPool;
use larder::{BoxError, CacheType, Group};

use crate::file_getter::FileGetter;

/// Larger files are left out. Each node keeps the other files in memory, to compare values with them.
const MAX_FILE: u64 = 4 << 20;

/// The threads of each node that get files.
const CALLERS: u64 = 2;

/// The numbers at the beginning of a report, in their order.
pub type Counts = [u64; 4];
pub const CALLS: usize = 0;
pub const ERRORS: usize = 1;
pub const DIFFERING: usize = 2;
pub const BYTES: usize = 3;

/// Runs a node: prints its port, then answers each line of standard input.
///
/// Standard input ends when the parent ends, also when it is killed. So no node outlives the parent.
pub fn run(dir: &Path, port: u16, cache: u64) -> Result<(), BoxError> {
    let listener = listen(port)?;
    let port = listener.local_addr()?.port();
    let pool = HttpPool::new(&format!("http://127.0.0.1:{port}"))?;
    let group = Group::builder("files")
        .max_capacity(cache)
        .build(FileGetter::new(dir, MAX_FILE)?)?;
    let _server = pool.server().serve_listener(listener)?;
    println!("{port}");

    let files = read_files(dir)?;
    let callers = Callers::default();
    let mut last = [0; 4];
    thread::scope(|scope| {
        for line in io::stdin().lines() {
            let line = line?;
            let mut words = line.split(' ');
            match words.next() {
                Some("peers") => {
                    pool.set(words)?;
                    for n in 1..=CALLERS {
                        let seed = n << 32 | u64::from(port);
                        let (callers, group, files) = (&callers, &group, &files);
                        scope.spawn(move || callers.run(group, files, seed));
                    }
                    println!("ready");
                }
                // After "stop" the server continues, because callers of other nodes may still ask it.
                Some(command @ ("report" | "stop")) => {
                    callers.stop.fetch_or(command == "stop", Ordering::Relaxed);
                    report(&callers, &group, &mut last);
                }
                _ => return Err(format!("unknown command {line:?}").into()),
            }
        }
        std::process::exit(0);
    })
}

/// Threads that get files until they are stopped.
#[derive(Default)]
struct Callers {
    stop: AtomicBool,
    counts: [AtomicU64; 4],
}

impl Callers {
    fn run(&self, group: &Group, files: &[File], mut random: u64) {
        let count = |at: usize, n: u64| self.counts[at].fetch_add(n, Ordering::Relaxed);
        while !self.stop.load(Ordering::Relaxed) {
            // xorshift64: Marsaglia, "Xorshift RNGs", 2003.
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let uniform = (random >> 11) as f64 / (1_u64 << 53) as f64;
            // A few files at the beginning are popular, most are not.
            let (name, bytes) = &files[(files.len() as f64 * uniform.powi(3)) as usize];
            count(CALLS, 1);
            match group.get(name) {
                Ok(value) if value == *bytes => drop(count(BYTES, bytes.len() as u64)),
                Ok(_) => {
                    count(DIFFERING, 1);
                    eprintln!("{name}: the value differs from the file");
                }
                Err(error) => {
                    count(ERRORS, 1);
                    eprintln!("{name}: {:?}: {error}", error.kind());
                }
            }
        }
    }
}

/// Prints the counts of the callers, then a row of the table. The group's counters are the way to
/// watch a node.
fn report(callers: &Callers, group: &Group, last: &mut [u64; 4]) {
    let stats = group.stats();
    let main_hits = group.cache_stats(CacheType::Main).hits;
    let hot_hits = group.cache_stats(CacheType::Hot).hits;
    let now = [stats.gets, main_hits, hot_hits, stats.peer_loads];
    let [gets, main, hot, peers] = std::array::from_fn(|i| now[i] - last[i]);
    *last = now;
    let (main, hot) = (
        main as f64 / gets.max(1) as f64,
        hot as f64 / gets.max(1) as f64,
    );
    for count in &callers.counts {
        print!("{} ", count.load(Ordering::Relaxed));
    }
    let (failed, disk) = (stats.peer_errors, stats.local_loads);
    println!("{gets:>9} {main:>8.3} {hot:>8.3} {peers:>8} {failed:>7} {disk:>7}");
}

/// The key, which is the path below the directory with forward slashes, and the bytes.
type File = (String, Vec<u8>);

/// The files below a directory, in the order of their names. Hidden files, symbolic links and files
/// over [`MAX_FILE`] are left out.
pub fn read_files(dir: &Path) -> Result<Vec<File>, BoxError> {
    let mut files = Vec::new();
    let mut folders = vec![String::new()];
    while let Some(folder) = folders.pop() {
        let path = dir.join(&folder);
        let entries =
            fs::read_dir(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        for entry in entries {
            let entry = entry?;
            let name = match entry.file_name().into_string() {
                Ok(name) if !name.starts_with('.') => format!("{folder}{name}"),
                _ => continue,
            };
            let kind = entry.file_type()?;
            if kind.is_dir() {
                folders.push(name + "/");
            } else if kind.is_file() && entry.metadata()?.len() <= MAX_FILE {
                files.push((name, fs::read(entry.path())?));
            }
        }
    }
    files.sort();
    match files.len() {
        0 => Err(format!("there are no files in {}", dir.display()).into()),
        _ => Ok(files),
    }
}

/// Listens on a loopback port. After a restart the port may be in use for a moment, by a connection
/// of another process.
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
