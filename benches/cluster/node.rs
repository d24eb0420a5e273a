//! A node of the cluster: a process that answers the lines of its parent.
//!
//! It begins with the line `at URL`. Then, each answered by a line of numbers:
//!
//! - `peers URL URL …` sets the peers. Answer: `OWNED`, the number of keys that the node owns
//! - `run GETS` does this number of gets. Answer: `ASKED FAILED LOADS` since the start, which are the
//!   requests to other nodes, the failed ones among them, and the runs of the getter
//! - `loaded`. Answer: the numbers of the keys that were loaded here, once for each load
//!
//! The process ends when its input does.

use std::net::TcpListener;
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use larder::http::HttpPool;
use larder::{Context, Group, HotAdmission, Registry, Sink};

use crate::common::{Rng, Zipf};
use crate::{KEYS, OWNED_KEYS};

/// Runs a node. The arguments are the name of its admission, its room in shares of the data,
/// the number of nodes, and a seed for the choice of keys.
pub fn be(arguments: &[String]) {
    let [admission, room, nodes, seed] = arguments else {
        panic!("not the arguments of a node: {arguments:?}");
    };
    let number = |text: &str| -> f64 { text.parse().expect("a number") };
    let entries = number(room) * KEYS as f64 / number(nodes);
    let lines = lines();

    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let registry = Registry::new();
    // The time-outs are long enough for the slowest machine, because slow peers are not measured here.
    let pool = HttpPool::builder(&url)
        .registry(&registry)
        .connect_timeout(Duration::from_secs(5))
        .exchange_timeout(Duration::from_secs(10))
        .build()
        .expect("a pool");
    let _server = pool.server().serve_listener(listener).expect("a server");
    let loaded = Arc::new(Mutex::new(Vec::new()));
    let capacity = (entries * weight() as f64) as u64;
    let group = group(&registry, admission_of(admission), capacity, loaded.clone());

    let mut rng = Rng(number(seed) as u64);
    let zipf = Zipf::new(KEYS, 1.0);
    println!("at {url}");
    for line in lines {
        let mut words = line.split(' ');
        match words.next() {
            Some("peers") => {
                pool.set(words).expect("good URLs");
                let own = |n: &usize| pool.owner(&key(*n)).as_ref() == Some(&url);
                println!("{}", (0..OWNED_KEYS).filter(own).count());
            }
            Some("run") => {
                let gets = words.next().map_or(0.0, number) as usize;
                for _ in 0..gets {
                    let value = group.get(&key(zipf.draw(&mut rng))).expect("a value");
                    assert_eq!(value.len(), VALUE.len());
                }
                let stats = group.stats();
                let loads = stats.local_loads;
                println!(
                    "{} {} {loads}",
                    stats.peer_loads + stats.peer_errors,
                    stats.peer_errors
                );
            }
            Some("loaded") => {
                let loaded = loaded.lock().expect("no panic");
                let numbers: Vec<String> = loaded.iter().map(usize::to_string).collect();
                println!("{}", numbers.join(" "));
            }
            _ => panic!("unknown command {line}"),
        }
    }
}

/// The lines of the parent, read on a thread that ends the process after the last.
fn lines() -> Receiver<String> {
    let (send, lines) = mpsc::channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lines() {
            let Ok(line) = line else { break };
            if send.send(line).is_err() {
                break;
            }
        }
        std::process::exit(0);
    });
    lines
}

fn admission_of(name: &str) -> HotAdmission {
    match name {
        "always" => HotAdmission::Always,
        "never" => HotAdmission::Never,
        "coin" => HotAdmission::Probability(0.1),
        _ => panic!("no admission named {name}"),
    }
}

type Loaded = Arc<Mutex<Vec<usize>>>;

fn group(registry: &Registry, admission: HotAdmission, capacity: u64, loaded: Loaded) -> Group {
    Group::builder("cluster")
        .registry(registry)
        .max_capacity(capacity)
        .hot_admission(admission)
        .build(move |_: &Context, key: &str, dest: &mut dyn Sink| {
            loaded.lock().expect("no panic").push(key[1..].parse()?);
            Ok(dest.set_bytes(&VALUE)?)
        })
        .expect("the options are right")
}

/// The weight of an entry.
fn weight() -> u64 {
    let group = group(
        &Registry::new(),
        HotAdmission::Always,
        1 << 20,
        Loaded::default(),
    );
    group.get(&key(0)).expect("the getter answers");
    group.weighted_size()
}

fn key(n: usize) -> String {
    crate::common::caches::key('k', n as u64)
}

const VALUE: [u8; 100] = [7; 100];
