//! A node with the presets for small boards, and clients that try to use up its memory.
//!
//! ```text
//! board node 127.0.0.1:8080 127.0.0.2:8081     listens at the first address; 64 peers at the second port
//! board load 127.0.0.1:8080 127.0.0.2:8081 60  is those peers, and attacks the node for 60 s
//! ```
//!
//! The peers are 127.0.0.2, 127.0.0.3, and so on. Each of them asks the node too, over a connection that
//! it keeps. Beside them, 500 connections of other addresses send half a head, or half a body, or read
//! no response. `load` prints what the peers received, and fails if a get failed or was wrong.
//! `.ci/small.sh` runs the node in a cgroup with a limit of 32 MiB. Linux only: other systems have no
//! such loopback addresses.

mod load;

use std::error::Error;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use larder::http::{HttpPool, HttpPoolBuilder, ServerLimits};
use larder::{Group, Registry, getter_fn};

/// How many peers the node has.
const PEERS: u8 = 64;

/// The length of the longest value.
const MAX_VALUE: usize = 256 << 10;

/// How many threads of the node ask for keys that peers own.
const ASKING: u64 = 2;

type Failed = Box<dyn Error + Send + Sync>;

fn main() -> Result<(), Failed> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(|arg| &**arg).collect();
    match args[..] {
        ["node", node, peers] => run_node(node.parse()?, peers.parse()?),
        ["load", node, peers, seconds] => load::run(
            node.parse()?,
            peers.parse()?,
            Duration::from_secs(seconds.parse()?),
        ),
        _ => Err("usage: board node NODE PEERS, or board load NODE PEERS SECONDS".into()),
    }
}

/// The addresses of the peers.
fn peer_ips() -> impl Iterator<Item = IpAddr> {
    (2..PEERS + 2).map(|host| Ipv4Addr::new(127, 0, 0, host).into())
}

/// A pool with the node and all peers, and its group.
fn member(
    own: SocketAddr,
    node: SocketAddr,
    peers: SocketAddr,
    preset: fn(HttpPoolBuilder) -> HttpPoolBuilder,
) -> Result<(HttpPool, Group), Failed> {
    let registry = Registry::new();
    let url = |addr: SocketAddr| format!("http://{addr}");
    let pool = preset(HttpPool::builder(&url(own)))
        .registry(&registry)
        .build()?;
    let all = peer_ips().map(|ip| url(SocketAddr::new(ip, peers.port())));
    pool.set(all.chain([url(node)]).collect::<Vec<_>>())?;
    let group = Group::builder("values")
        .registry(&registry)
        .small()
        .build(getter_fn(|_ctx, key, dest| {
            Ok(dest.set_bytes(&value_of(key.parse()?))?)
        }))?;
    Ok((pool, group))
}

fn run_node(own: SocketAddr, peers: SocketAddr) -> Result<(), Failed> {
    let (pool, group) = member(own, own, peers, HttpPoolBuilder::small)?;
    let server = pool.server().limits(ServerLimits::small()).bind(own)?;
    let began = Instant::now();
    println!("listening at {}", server.local_addr());
    for thread in 0..ASKING {
        let group = group.clone();
        std::thread::Builder::new()
            .stack_size(128 << 10)
            .spawn(move || ask_peers(&group, thread))?;
    }
    loop {
        std::thread::sleep(Duration::from_secs(5));
        println!(
            "{} s: {} connections, the group has {} KiB, the process {} KiB",
            began.elapsed().as_secs(),
            server.connections(),
            group.weighted_size() >> 10,
            resident() >> 10,
        );
    }
}

/// Gets keys of all owners, for ever.
fn ask_peers(group: &Group, seed: u64) {
    let mut random = Random(seed);
    loop {
        let number = random.key();
        match group.get(&number.to_string()) {
            Ok(value) if *value == *value_of(number) => {}
            Ok(_) => println!("wrong: {number}"),
            Err(error) => println!("failed: {number}: {error}"),
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The value of a key: up to [`MAX_VALUE`] bytes.
fn value_of(number: u64) -> Vec<u8> {
    let len = Random(number).next() as usize % MAX_VALUE + 1;
    (0..len).map(|at| (at as u64 * 31 + number) as u8).collect()
}

/// A generator of numbers (splitmix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A key. Small numbers are more frequent, and all values together take sixteen times the cache.
    fn key(&mut self) -> u64 {
        let (a, b) = (self.next() % 2000, self.next() % 2000);
        a * b / 2000
    }
}

/// The resident set of this process, in bytes.
fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = statm.split(' ').nth(1).and_then(|pages| pages.parse().ok());
    pages.unwrap_or(0) * 4096
}
