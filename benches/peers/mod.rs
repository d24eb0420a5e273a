//! Servers and clients in processes of their own, one pair for each implementation.
//!
//! A process is this benchmark with other arguments, or another program. The protocol has lines:
//!
//! - a server prints the address that it listens on, and ends when its input does;
//! - a client prints `ready`, then answers each line `run SIZE KEYS THREADS MILLIS SLOW_PERCENT` with
//!   `GETS SECONDS P50_US P99_US` of the gets that were not slow. The percentage is -1 for calls that
//!   get [`MANY`] keys each, which only larder has.
//!
//! Keys are `key-SIZE-N`, and `slow-SIZE-N`, which take 50 ms to load. The server keeps the values from
//! their first get on. A client keeps none.

pub mod larder;
pub mod memcached;
pub mod raw;

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use ::larder::http::HttpClient;

use crate::common::{Rng, chosen, result_file};

/// The get of one thread of a client. Returns the length of the key's value.
pub type Get<'a> = Box<dyn FnMut(&str) -> usize + Send + 'a>;

/// A get of many keys. Returns the sum of the lengths of their values.
pub type GetMany<'a> = dyn Fn(&[String]) -> usize + Sync + 'a;

/// The figures of one run of a client.
pub struct Measured {
    pub gets: f64,
    pub seconds: f64,
    pub p50_us: f64,
    pub p99_us: f64,
    /// CPU seconds of both sides.
    pub cpu: f64,
}

/// One run: `threads` threads get random keys.
#[derive(Clone, Copy)]
pub struct Load {
    pub size: usize,
    pub keys: usize,
    pub threads: usize,
    pub millis: u64,
    /// The percentage of gets of slow keys; [`MANY_AT_ONCE`] for calls of many keys.
    pub slow_percent: i32,
}

/// larder with ureq for everything.
pub const BY_UREQ: &str = "larder by ureq";

/// The keys of a call that gets many.
pub const MANY: usize = 100;

pub const MANY_AT_ONCE: i32 = -1;

/// A server and a client of one implementation.
pub struct Pair {
    pub name: &'static str,
    pub server: Process,
    pub client: Process,
}

impl Pair {
    /// The installed implementations.
    pub fn all() -> Vec<Pair> {
        let own = |name| {
            let server = Process::own(&[name, "server"]);
            Pair::of(name, server, |address| {
                Process::own(&[name, "client", address])
            })
        };
        let mut pairs = vec![own("larder"), own(BY_UREQ), own("raw")];
        if let Some(server) = memcached::start() {
            let client = |address: &str| Process::own(&["memcached", "client", address]);
            pairs.push(Pair::of("memcached", server, client));
        }
        let node = result_file("golang-node");
        if node.exists() {
            let start = |arguments: &[&str]| Process::start(Command::new(&node).args(arguments));
            pairs.push(Pair::of("golang", start(&["server"]), |address| {
                start(&["client", address])
            }));
        }
        pairs.retain(|pair| chosen(pair.name));
        pairs
    }

    fn of(name: &'static str, mut server: Process, client: impl Fn(&str) -> Process) -> Pair {
        let address = server.line();
        let mut client = client(&address);
        assert_eq!(client.line(), "ready");
        Pair {
            name,
            server,
            client,
        }
    }

    pub fn run(&mut self, load: Load) -> Measured {
        let cpu = |pair: &Pair| pair.server.cpu_seconds() + pair.client.cpu_seconds();
        let before = cpu(self);
        let answer = self.client.ask(&format!(
            "run {} {} {} {} {}",
            load.size, load.keys, load.threads, load.millis, load.slow_percent
        ));
        let numbers: Vec<f64> = answer
            .split(' ')
            .map(|number| number.parse().expect("a number"))
            .collect();
        Measured {
            gets: numbers[0],
            seconds: numbers[1],
            p50_us: numbers[2],
            p99_us: numbers[3],
            cpu: cpu(self) - before,
        }
    }
}

/// A child process, killed when it is dropped.
pub struct Process {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    /// The first line, for a program that does not print it.
    first_line: Option<String>,
}

impl Process {
    /// This program as a server or client.
    pub fn own(arguments: &[&str]) -> Process {
        let executable = std::env::current_exe().expect("this program has a path");
        Process::start(Command::new(executable).arg("--process").args(arguments))
    }

    pub fn start(command: &mut Command) -> Process {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the process starts");
        Process {
            input: child.stdin.take().expect("a pipe"),
            output: BufReader::new(child.stdout.take().expect("a pipe")),
            child,
            first_line: None,
        }
    }

    pub fn with_first_line(mut self, line: String) -> Process {
        self.first_line = Some(line);
        self
    }

    pub fn line(&mut self) -> String {
        if let Some(line) = self.first_line.take() {
            return line;
        }
        let mut line = String::new();
        self.output
            .read_line(&mut line)
            .expect("the process prints a line");
        line.trim_end().to_owned()
    }

    fn ask(&mut self, line: &str) -> String {
        writeln!(self.input, "{line}").expect("the process runs");
        self.line()
    }

    /// User and system time so far (proc(5): fields 14 and 15 of `stat`, in ticks of 10 ms).
    pub fn cpu_seconds(&self) -> f64 {
        let stat = self.proc("stat");
        let after_name = stat.rsplit(')').next().expect("a name in brackets");
        let ticks = after_name.split_whitespace().skip(11).take(2);
        ticks
            .map(|ticks| ticks.parse::<f64>().expect("a number") / 100.0)
            .sum()
    }

    /// The resident set, in MiB.
    pub fn rss_mib(&self) -> f64 {
        let status = self.proc("status");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
        kib.expect("a size").parse::<f64>().expect("a number") / 1024.0
    }

    fn proc(&self, file: &str) -> String {
        let path = format!("/proc/{}/{file}", self.child.id());
        std::fs::read_to_string(path).expect("the process runs")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // The process may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The main function of a process that [`Process::own`] started.
pub fn run_process(arguments: &[String]) {
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["larder" | BY_UREQ, "server"] => larder::serve(),
        ["larder", "client", address] => larder::ask(address, HttpClient::default()),
        [BY_UREQ, "client", address] => larder::ask(address, HttpClient::Ureq),
        ["raw", "server"] => raw::serve(),
        ["raw", "client", address] => client(|| raw::connect(address), None),
        ["memcached", "client", address] => client(|| memcached::connect(address), None),
        _ => panic!("no such process: {words:?}"),
    }
}

/// A client's side of the protocol. `connect` is called once for each thread of a run.
pub fn client<'a>(connect: impl Fn() -> Get<'a>, get_many: Option<&GetMany<'_>>) {
    println!("ready");
    for line in std::io::stdin().lines() {
        let line = line.expect("text");
        let numbers: Vec<i64> = line
            .split(' ')
            .skip(1)
            .map(|number| number.parse().expect("a number"))
            .collect();
        let load = Load {
            size: numbers[0] as usize,
            keys: numbers[1] as usize,
            threads: numbers[2] as usize,
            millis: numbers[3] as u64,
            slow_percent: numbers[4] as i32,
        };
        let begun = Instant::now();
        let mut taken: Vec<u32> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..load.threads)
                .map(|thread| {
                    let get = connect();
                    scope.spawn(move || match get_many {
                        Some(get_many) if load.slow_percent == MANY_AT_ONCE => {
                            asking_many(get_many, load)
                        }
                        _ => asking(get, load, thread),
                    })
                })
                .collect();
            let joined = threads.into_iter().map(|thread| thread.join());
            joined.flat_map(|taken| taken.expect("no panic")).collect()
        });
        let seconds = begun.elapsed().as_secs_f64();
        taken.sort_unstable();
        let at = |part: f64| f64::from(taken[(part * (taken.len() - 1) as f64) as usize]) / 1e3;
        println!("{} {seconds} {} {}", taken.len(), at(0.50), at(0.99));
    }
}

/// Gets random keys until the time is over. Returns the nanoseconds of each get that was not slow.
fn asking(mut get: Get<'_>, load: Load, thread: usize) -> Vec<u32> {
    let begun = Instant::now();
    let length = Duration::from_millis(load.millis);
    let seed = std::process::id() as u64 * 1000 + thread as u64;
    let mut rng = Rng(seed.wrapping_add(begun.elapsed().subsec_nanos().into()));
    let mut taken = Vec::with_capacity(1 << 16);
    let mut now = begun;
    while now - begun < length {
        let slow = (rng.below(100) as i32) < load.slow_percent;
        let key = if slow {
            format!("slow-{}-{}", load.size, rng.next())
        } else {
            format!("key-{}-{}", load.size, rng.below(load.keys))
        };
        let asked = Instant::now();
        let len = get(&key);
        now = Instant::now();
        assert_eq!(len, load.size, "{key}");
        if !slow {
            taken.push(u32::try_from((now - asked).as_nanos()).unwrap_or(u32::MAX));
        }
    }
    taken
}

/// Gets many keys a call. Returns the nanoseconds of each key: its share of the call.
fn asking_many(get_many: &GetMany<'_>, load: Load) -> Vec<u32> {
    let keys: Vec<String> = (0..load.keys)
        .map(|n| format!("key-{}-{n}", load.size))
        .collect();
    let begun = Instant::now();
    let mut taken = Vec::with_capacity(1 << 16);
    for some in keys.chunks_exact(MANY).cycle() {
        let asked = Instant::now();
        assert_eq!(get_many(some), MANY * load.size);
        let each = asked.elapsed().as_nanos() as usize / MANY;
        taken.extend([each as u32; MANY]);
        if begun.elapsed() > Duration::from_millis(load.millis) {
            break;
        }
    }
    taken
}

/// The length of a key's value, and whether it takes long to load.
pub fn describe(key: &str) -> (usize, bool) {
    let mut words = key.split('-');
    let slow = words.next() == Some("slow");
    let size = words.next().and_then(|size| size.parse().ok());
    (size.expect("a key of this benchmark"), slow)
}

/// The time to load a slow key.
pub const SLOW: Duration = Duration::from_millis(50);

/// Returns when the process that started this one ends, or drops its handle.
pub fn wait_for_the_end() {
    let _ = std::io::stdin().lines().count();
}
