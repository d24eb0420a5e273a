//! The program of a node process: a server and a group, driven by the lines of standard input.
//!
//! Options are words such as `port=0 exchange_ms=1000`. The commands are the arms of [`Node::run`].
//! The first word of a key decides how the getter behaves: see [`load`].

use std::collections::HashMap;
use std::io;
use std::net::TcpListener;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, LazyLock, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use larder::http::{HttpPool, Server, Transport, TransportRequest, TransportResponse};
use larder::{BoxError, Context, Error, Group, Registry, Sink};

use crate::cluster::GROUP;
use crate::common::{Gate, PATIENCE};
use crate::late_peeks::only_peeks_are_posts;
use crate::load::Load;
use crate::process::MARK;

struct Node {
    group: Group,
    pool: HttpPool,
    server: Option<Server>,
    loads: Arc<Loads>,
    running: Arc<Running>,
    requests: Arc<Requests>,
    load: Option<Load>,
}

/// The requests for keys.
#[derive(Default)]
struct Requests {
    /// The requests to each peer, by its URL.
    sent: Mutex<HashMap<String, u64>>,
    /// The gets to all peers that failed, without peeks.
    failed_gets: AtomicUsize,
}

/// A connection whose requests for keys are counted.
struct Counted {
    requests: Arc<Requests>,
    url: String,
    inner: Arc<dyn Transport>,
}

impl Transport for Counted {
    fn round_trip(
        &self,
        ctx: &Context,
        request: TransportRequest<'_>,
    ) -> larder::Result<TransportResponse> {
        let is_for_keys = request.path().starts_with("/_groupcache/values");
        if is_for_keys {
            let mut sent = self.requests.sent.lock().expect("no panic");
            *sent.entry(self.url.clone()).or_default() += 1;
        }
        let is_get = is_for_keys && request.method() == "GET";
        let result = self.inner.round_trip(ctx, request);
        if is_get && result.is_err() {
            self.requests.failed_gets.fetch_add(1, Ordering::SeqCst);
        }
        result
    }
}

/// The runs of the getter now, and the most at the same time.
#[derive(Default)]
struct Running {
    now: AtomicUsize,
    most: AtomicUsize,
}

/// The runs of the getter for each key.
#[derive(Default)]
struct Loads(Mutex<HashMap<String, u64>>);

/// The options of a node, as `name=value`.
struct Options<'a>(HashMap<&'a str, &'a str>);

impl<'a> Options<'a> {
    fn parse(words: &'a str) -> Options<'a> {
        let pairs = words.split_whitespace();
        Options(pairs.filter_map(|word| word.split_once('=')).collect())
    }

    fn number(&self, name: &str) -> Option<u64> {
        let number = self.0.get(name)?;
        Some(number.parse().expect("a number"))
    }

    fn count(&self, name: &str) -> Option<usize> {
        let number = self.number(name)?;
        Some(usize::try_from(number).expect("a small number"))
    }

    fn millis(&self, name: &str, default: Duration) -> Duration {
        self.number(name).map_or(default, Duration::from_millis)
    }
}

/// Runs until standard input ends, so that no node outlives the test.
pub fn run(options: &str) {
    let options = Options::parse(options);
    if options.0.get("logger") == Some(&"panics") {
        log::set_logger(&PanickingLogger).expect("the first logger");
        log::set_max_level(log::LevelFilter::Trace);
    }
    let port = options.number("port").unwrap_or(0);
    let addr = options.0.get("addr").map(|addr| (*addr).to_owned());
    let addr = addr.unwrap_or_else(|| format!("127.0.0.1:{port}"));
    let listener = TcpListener::bind(addr).expect("the port is free");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let mut node = Node::start(&options, &url, listener);
    println!("{MARK}{url}");
    for line in io::stdin().lines().map_while(Result::ok) {
        println!("{MARK}{}", node.run(&line));
    }
    std::process::exit(0);
}

/// A group that counts the runs of its getter.
fn counting_group(
    options: &Options<'_>,
    registry: &Registry,
    loads: &Arc<Loads>,
    running: &Arc<Running>,
) -> Group {
    let (loads, running) = (loads.clone(), running.clone());
    let mut builder = Group::builder(GROUP).registry(registry);
    if let Some(most) = options.count("max_loads") {
        builder = builder.max_concurrent_loads(most);
    }
    if let Some(most) = options.count("loader_threads") {
        builder = builder.max_loader_threads(most);
    }
    let group = builder.build(move |ctx: &Context, key: &str, dest: &mut dyn Sink| {
        let mut counts = loads.0.lock().expect("no panic");
        *counts.entry(key.into()).or_default() += 1;
        drop(counts);
        let now = running.now.fetch_add(1, Ordering::SeqCst) + 1;
        running.most.fetch_max(now, Ordering::SeqCst);
        let loaded = load(ctx, key, dest);
        running.now.fetch_sub(1, Ordering::SeqCst);
        loaded
    });
    group.expect("a group")
}

/// A pool that counts the requests for keys.
fn counting_pool(
    options: &Options<'_>,
    registry: &Registry,
    url: &str,
    requests: &Arc<Requests>,
) -> HttpPool {
    let requests = requests.clone();
    let pool = HttpPool::builder(url)
        .registry(registry)
        .connect_timeout(options.millis("connect_ms", PATIENCE))
        .exchange_timeout(options.millis("exchange_ms", PATIENCE))
        .absent_after(options.millis("absent_ms", Duration::from_secs(60)))
        .slow_after(options.millis("slow_ms", Duration::from_millis(20)));
    let pool = pool.transport(move |url, inner| {
        Arc::new(Counted {
            requests: requests.clone(),
            url: url.to_owned(),
            inner,
        })
    });
    let pool = match options.number("single_gets") {
        Some(1) => only_peeks_are_posts(pool),
        _ => pool,
    };
    pool.build().expect("a pool")
}

/// A logger that panics for each record of larder.
struct PanickingLogger;

impl log::Log for PanickingLogger {
    fn enabled(&self, record: &log::Metadata<'_>) -> bool {
        record.target().starts_with("larder")
    }

    fn log(&self, record: &log::Record<'_>) {
        if self.enabled(record.metadata()) {
            std::panic::resume_unwind(Box::new("a panic of the logger"));
        }
    }

    fn flush(&self) {}
}

impl Node {
    fn start(options: &Options<'_>, url: &str, listener: TcpListener) -> Node {
        let registry = Registry::new();
        let (loads, running, requests) = <(Arc<Loads>, Arc<Running>, Arc<Requests>)>::default();
        let group = counting_group(options, &registry, &loads, &running);
        let pool = counting_pool(options, &registry, url, &requests);
        let mut server = pool.server();
        if let Some(most) = options.count("max_connections") {
            server = server.max_connections(most);
        }
        if let Some(ms) = options.number("max_request_ms") {
            server = server.max_request_time(Duration::from_millis(ms));
        }
        let server = server.serve_listener(listener).expect("a server");
        Node {
            group,
            pool,
            server: Some(server),
            loads,
            running,
            requests,
            load: None,
        }
    }

    /// Runs a command, and returns its answer.
    fn run(&mut self, line: &str) -> String {
        let words: Vec<&str> = line.split(' ').collect();
        match words[..] {
            ["peers", ..] => {
                self.pool.set(&words[1..]).expect("good URLs");
                "ready".into()
            }
            // Returns the value, or the kind of the error.
            ["get", key] => shown(self.group.get(key)),
            ["get", key, ms] => shown(self.group.get_with(&within(ms), key)),
            // Gets one key by this number of threads, half of them after these peers are set, if any are given.
            // The result is the number of right values.
            ["herd", threads, key, ref peers @ ..] => {
                self.herd(threads.parse().expect("a number"), key, peers)
            }
            // Gets keys in the background until `end`: see `Load`.
            ["load", ..] => {
                self.load = Some(Load::start(&self.group, &self.pool, &words[1..]));
                "started".into()
            }
            ["end"] => self.load.take().expect("a load").end().figures(),
            ["end", "times"] => self.load.take().expect("a load").end().times(),
            // Writes dumps one after the other, until the process ends.
            ["dump", path] => {
                let (group, path) = (self.group.clone(), path.to_owned());
                thread::spawn(move || {
                    loop {
                        group.dump(&path, 0).expect("written");
                    }
                });
                "started".into()
            }
            // Lets the getter go on with the keys of `gate`.
            ["open"] => {
                GATE.open();
                "ready".into()
            }
            // Returns the milliseconds that the shutdown took.
            ["shutdown", ms] => {
                let server = self.server.take().expect("it runs");
                let start = Instant::now();
                let timeout = Duration::from_millis(ms.parse().expect("a number"));
                let ended = server.shutdown(timeout);
                let took = start.elapsed().as_millis();
                ended.map_or_else(|error| error.to_string(), |()| took.to_string())
            }
            _ => self.figure(line),
        }
    }

    /// A figure of the node.
    fn figure(&self, line: &str) -> String {
        let words: Vec<&str> = line.split(' ').collect();
        match words[..] {
            ["loads", key] => {
                let loads = self.loads.0.lock().expect("no panic");
                loads.get(key).copied().unwrap_or_default().to_string()
            }
            // Returns the numbers of the keys with this prefix, each as often as the key was loaded here.
            ["loaded", prefix] => self.loaded(prefix),
            // Returns the requests for keys to this peer, those to all, and the loads by peers.
            ["requests", url] => {
                let requests = self.requests.sent.lock().expect("no panic");
                let (to_one, to_all) = (requests.get(url), requests.values().sum::<u64>());
                let (to_one, loads) = (to_one.copied(), self.group.stats().peer_loads);
                let to_one = to_one.unwrap_or_default();
                format!("to_one={to_one} to_all={to_all} loads={loads}")
            }
            ["most-at-once"] => self.running.most.load(Ordering::SeqCst).to_string(),
            ["peer", url] => {
                let mut peers = self.pool.peers().into_iter();
                let found = peers.find(|peer| peer.peer.url == url).expect("a peer");
                format!("{found:?}")
            }
            ["served"] => self.group.stats().server_requests.to_string(),
            ["failed-gets"] => {
                let failed = self.requests.failed_gets.load(Ordering::SeqCst);
                failed.to_string()
            }
            ["memory"] => of_process("VmRSS:").to_string(),
            // Returns the number of threads whose names begin with `name`.
            ["threads", name] => threads(name).to_string(),
            ["descriptors"] => descriptors().to_string(),
            ["connections"] => self
                .server
                .as_ref()
                .map_or(0, Server::connections)
                .to_string(),
            _ => panic!("unknown command {line:?}"),
        }
    }

    fn loaded(&self, prefix: &str) -> String {
        let loads = self.loads.0.lock().expect("no panic");
        let of_prefix = loads.iter();
        let of_prefix =
            of_prefix.filter_map(|(key, &runs)| Some((key.strip_prefix(prefix)?, runs)));
        let numbers = of_prefix.flat_map(|(number, runs)| (0..runs).map(move |_| number));
        numbers.collect::<Vec<_>>().join(" ")
    }

    fn herd(&self, threads: usize, key: &str, peers: &[&str]) -> String {
        let early = if peers.is_empty() {
            threads
        } else {
            threads / 2
        };
        let (first, second) = (Barrier::new(early), Barrier::new(threads - early));
        let get = |together: &Barrier| {
            together.wait();
            let value = self.group.get(key);
            value.is_ok_and(|value| value == value_of(key).as_slice())
        };
        let right = thread::scope(|scope| {
            let mut calls: Vec<_> = (0..early).map(|_| scope.spawn(|| get(&first))).collect();
            if !peers.is_empty() {
                // The load of the first ones is under way.
                thread::sleep(Duration::from_millis(100));
                self.pool.set(peers).expect("good URLs");
                calls.extend((early..threads).map(|_| scope.spawn(|| get(&second))));
            }
            let ended = calls.into_iter().map(|call| call.join().unwrap_or(false));
            ended.filter(|right| *right).count()
        });
        right.to_string()
    }
}

fn shown(result: larder::Result<larder::ByteView>) -> String {
    match result {
        Ok(value) => String::from_utf8_lossy(&value).into_owned(),
        Err(error) => format!("{:?}: {error}", error.kind()),
    }
}

static GATE: LazyLock<Gate> = LazyLock::new(Gate::new);

fn within(ms: &str) -> Context {
    let ms = ms.parse().expect("a number");
    Context::background().with_timeout(Duration::from_millis(ms))
}

/// The getter of a node. Keys are words with colons between them. The first one decides how it behaves:
/// `slow:MS`, `gate`, `hang`, `fail`, `missing`, `panic`. For all others it returns [`value_of`] at once.
pub fn load(_: &Context, key: &str, dest: &mut dyn Sink) -> Result<(), BoxError> {
    match key.split(':').collect::<Vec<_>>()[..] {
        ["slow", ms, ..] => thread::sleep(Duration::from_millis(ms.parse()?)),
        ["gate", ..] => GATE.pass(),
        ["hang", ..] => loop {
            thread::park();
        },
        ["fail", ..] => return Err("no paint left".into()),
        ["missing", ..] => return Err(Error::not_found("no such color").into()),
        ["panic", ..] => std::panic::resume_unwind(Box::new("a panic of the test")),
        _ => {}
    }
    Ok(dest.set_bytes(&value_of(key))?)
}

/// The value of a key: `large:BYTES:...` has as many bytes, others a short text.
pub fn value_of(key: &str) -> Vec<u8> {
    let mut value = format!("value of {key}").into_bytes();
    if let ["large", bytes, ..] = key.split(':').collect::<Vec<_>>()[..] {
        value.resize(bytes.parse().expect("a number"), b'.');
    }
    value
}

/// A number of /proc/self/status; memory in KiB.
fn of_process(field: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    let number = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    number.expect("a number")
}

fn threads(name: &str) -> usize {
    let tasks = std::fs::read_dir("/proc/self/task").expect("Linux");
    let names =
        tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok());
    names.filter(|comm| comm.starts_with(name)).count()
}

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").expect("Linux").count() - 1
}
