//! The program of one node: a server, a group, and threads that get and remove. Each line of standard input is
//! a command: see [`Node::run_command`].

use std::collections::HashMap;
use std::io;
use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use larder::clock::Clock;
use larder::http::{HttpPool, Server};
use larder::{BoxError, Context, Group, Registry, RestoreOptions, Sink};

use super::clock;
use super::network::Network;
use super::process::MARK;
use super::source::Source;
use super::workload::Workload;

/// The options of a node. They are passed as words, such as `node=0`.
#[derive(Clone, Debug)]
pub struct Options {
    pub node: usize,
    /// How often the node was started before.
    pub run: usize,
    pub dir: PathBuf,
    pub addr: String,
    pub keys: u64,
    /// Whether the clock of the group can be advanced.
    pub adjustable_clock: bool,
    /// `max_unverified` in milliseconds, if it is set.
    pub unverified_ms: u64,
    pub seed: u64,
}

impl Options {
    pub fn to_words(&self) -> String {
        format!(
            "node={} run={} dir={} addr={} keys={} adjustable_clock={} unverified_ms={} seed={}",
            self.node,
            self.run,
            self.dir.display(),
            self.addr,
            self.keys,
            self.adjustable_clock,
            self.unverified_ms,
            self.seed
        )
    }

    fn of_words(words: &str) -> Options {
        let words: HashMap<&str, &str> = words
            .split(' ')
            .filter_map(|word| word.split_once('='))
            .collect();
        let number = |name: &str| words[name].parse().expect("a number");
        Options {
            node: number("node") as usize,
            run: number("run") as usize,
            dir: words["dir"].into(),
            addr: words["addr"].to_owned(),
            keys: number("keys"),
            adjustable_clock: words["adjustable_clock"] == "true",
            unverified_ms: number("unverified_ms"),
            seed: number("seed"),
        }
    }
}

struct Node {
    options: Options,
    group: Group,
    pool: HttpPool,
    network: Arc<Network>,
    workload: Arc<Workload>,
    /// The URLs of all nodes, also of those that are not in the list of peers.
    urls: Arc<OnceLock<Vec<String>>>,
    _server: Server,
}

/// Runs until standard input ends, so that no node outlives the program that started it.
pub fn run(words: &str) -> Result<(), BoxError> {
    let node = Node::start(Options::of_words(words))?;
    println!("{MARK}{}", node.pool.self_url());
    for line in io::stdin().lines() {
        println!("{MARK}{}", node.run_command(&line?)?);
    }
    std::process::exit(0)
}

impl Node {
    fn start(options: Options) -> Result<Node, BoxError> {
        let listener = listen(&options.addr)?;
        let url = format!("http://{}", listener.local_addr()?);
        let registry = Registry::new();
        let network = Arc::new(Network::default());
        let disturbed = network.clone();
        let pool = HttpPool::builder(&url)
            .registry(&registry)
            .transport(move |url, to| disturbed.transport(url, to))
            .build()?;
        let group = group(&registry, &options)?;
        let urls = Arc::new(OnceLock::new());
        Ok(Node {
            workload: Arc::new(Workload::new(
                group.clone(),
                pool.clone(),
                network.clone(),
                urls.clone(),
                options.clone(),
            )?),
            _server: pool.server().serve_listener(listener)?,
            options,
            group,
            pool,
            network,
            urls,
        })
    }

    /// Runs a command, and returns its result in one line.
    fn run_command(&self, line: &str) -> Result<String, BoxError> {
        let words: Vec<&str> = line.split(' ').collect();
        match words[..] {
            // Sets the URLs of all nodes of the cluster.
            ["nodes", ..] => {
                let urls = words[1..].iter().map(|&url| url.to_owned());
                let _ = self.urls.set(urls.collect());
            }
            // Sets the list of peers.
            ["peers", ..] => self.pool.set(&words[1..])?,
            // Starts the threads that get.
            ["get", threads] => {
                for thread in 0..threads.parse()? {
                    let workload = self.workload.clone();
                    thread::spawn(move || workload.get_all(thread).expect("a file for records"));
                }
                let workload = self.workload.clone();
                thread::spawn(move || workload.note_exchanges().expect("a file for records"));
            }
            // Starts the thread that removes and sets.
            ["change"] => {
                let workload = self.workload.clone();
                thread::spawn(move || workload.change_all().expect("a file for records"));
            }
            // Lets that thread pause or go on.
            ["changing", yes] => self.workload.set_changing(yes == "yes"),
            // Delays half of the requests to a node, by up to this time.
            ["delay", url, ms] => self.network.delay(url, ms.parse()?),
            // Cuts the node off from these peers, and from no others.
            ["cut", ..] => self.network.cut(&words[1..]),
            ["advance", ms] => {
                let time = Duration::from_millis(ms.parse()?);
                self.group.clock().advance(time);
            }
            // Removes this many keys that no other thread gets.
            ["storm", keys] => return Ok(self.storm(keys.parse()?)),
            ["dump"] => return Ok(format!("{:?}", self.group.dump(self.dump_path(), 0)?)),
            ["restore"] => {
                let options = RestoreOptions::new(0);
                let restored = self.group.restore(self.dump_path(), options);
                return Ok(format!("{restored:?}"));
            }
            ["status"] => return Ok(self.workload.status()),
            _ => return Err(format!("unknown command {line:?}").into()),
        }
        Ok("done".into())
    }

    fn storm(&self, keys: usize) -> String {
        let ctx = Context::background();
        let keys: Vec<String> = (0..keys).map(|n| format!("other-{n}")).collect();
        let results = keys
            .chunks(1000)
            .map(|keys| self.group.remove_many(&ctx, keys));
        let confirmed = results.filter(Result::is_ok).count();
        format!(
            "{confirmed} of {} calls confirmed",
            keys.len().div_ceil(1000)
        )
    }

    fn dump_path(&self) -> PathBuf {
        let name = format!("dump-{}", self.options.node);
        self.options.dir.join(name)
    }
}

/// Listens on an address. Tries for 10 s, because a connection of another process may be using the port of the
/// killed node for a while.
fn listen(addr: &str) -> io::Result<TcpListener> {
    let begun = Instant::now();
    loop {
        match TcpListener::bind(addr) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                if begun.elapsed() > Duration::from_secs(10) {
                    return Err(error);
                }
                thread::sleep(Duration::from_millis(10));
            }
            result => return result,
        }
    }
}

fn group(registry: &Registry, options: &Options) -> Result<Group, BoxError> {
    let source = Source::open(&options.dir)?;
    let load = move |_: &Context, key: &str, dest: &mut dyn Sink| -> Result<(), BoxError> {
        let Some(number) = key.strip_prefix("key-") else {
            return Ok(dest.set_str(key)?);
        };
        let number = number.parse()?;
        let version = source.version(number)?;
        if number % 2 == 1 {
            dest.expire_in(Duration::from_millis(300));
        }
        // Some loads are slow, so that a removal is under way at the same time.
        let random = clock::now() / 64;
        if random & 3 == 0 {
            thread::sleep(Duration::from_micros(random % 4000));
        }
        Ok(dest.set_str(&format!("{number} {version}"))?)
    };
    let clock = match options.adjustable_clock {
        // A thread would have to move a manual clock. On a busy machine the thread is late, and then values
        // seem younger to another node than they are.
        true => Clock::adjustable(),
        false => Clock::system(),
    };
    let mut builder = Group::builder("promise")
        .registry(registry)
        .max_capacity(4 << 20)
        .stale_while_revalidate(Duration::from_millis(100))
        .refresh_at(0.8)
        .clock(clock);
    if options.unverified_ms > 0 {
        builder = builder.max_unverified(Duration::from_millis(options.unverified_ms));
    }
    Ok(builder.build(load)?)
}
