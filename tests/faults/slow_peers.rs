//! Tests that peers with late answers do not make the gets of the other nodes slow.
//!
//! The nodes are in this process. A transport delays the requests to some of them.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use larder::http::{PeerState, TransportRequest};

use crate::cluster::{Node, Setup, connect, lateness, see_requests};
use crate::common::{PATIENCE, millis, seconds};

/// Counts the requests that the nodes send to each other, and delays those to some nodes.
#[derive(Default)]
struct Network {
    /// The shortest and the longest delay of each peer, by its URL.
    delays: Mutex<HashMap<String, (Duration, Duration)>>,
    /// The number of requests for one key.
    exchanges: AtomicU64,
    /// The number of batches, in which nodes ask for values that other nodes may have cached.
    peeks: AtomicU64,
    probes: AtomicU64,
}

impl Network {
    /// Gives these peers delays of `from` to `to`, and all others none.
    fn delay(&self, urls: &[&String], from: Duration, to: Duration) {
        let delays = urls.iter().map(|url| ((*url).clone(), (from, to)));
        *self.delays.lock().expect("no panic") = delays.collect();
    }

    /// Counts a request to the peer with this URL, and delays it if the peer has a delay.
    fn on_request(&self, url: &str, request: &TransportRequest<'_>) {
        // A node that has just started also asks for lists of peers, and sends batches to previous owners.
        let is_for_key = request.path().starts_with("/_groupcache/values/");
        let is_single = u64::from(request.method() == "GET" && is_for_key);
        let number = self.exchanges.fetch_add(is_single, Ordering::Relaxed);
        if request.method() == "POST" && request.path() == "/_groupcache/values" {
            self.peeks.fetch_add(1, Ordering::Relaxed);
        }
        if request.path() == "/_groupcache/" {
            self.probes.fetch_add(1, Ordering::Relaxed);
        }
        let delays = self.delays.lock().expect("no panic");
        let delay = delays.get(url).copied();
        drop(delays);
        if let Some((from, to)) = delay {
            let spread = u32::try_from(number * 7919 % 101).expect("small");
            thread::sleep(from + (to - from) * spread / 100);
        }
    }
}

const NODES: usize = 5;
const THREADS: usize = 2;

/// The time that the getter takes.
const LOAD: Duration = Duration::from_millis(10);

struct Cluster {
    nodes: Vec<Node>,
    network: Arc<Network>,
    loads: Arc<Mutex<HashMap<String, u64>>>,
}

/// The figures of one call of [`Cluster::load`].
#[derive(Debug)]
struct Figures {
    p99: Duration,
    /// The requests for one key beyond the one that each load by a peer needs, as a fraction of these loads.
    extra: f64,
    /// Like `extra`, with batches counted as requests.
    extra_with_peeks: f64,
    /// The mean runs of the getter for each key that it loaded.
    loads_a_key: f64,
}

impl Cluster {
    fn start() -> Cluster {
        let network = Arc::new(Network::default());
        let loads = Arc::new(Mutex::new(HashMap::new()));
        let wrap = network.clone();
        let setup = Setup {
            pool: Box::new(move |pool| {
                let network = wrap.clone();
                // With the default of 20 ms, a busy machine would make peers slow.
                let pool = pool.slow_after(millis(100));
                see_requests(pool, move |url, request| network.on_request(url, request))
            }),
            ..Setup::default()
        };
        let nodes = [(); NODES].map(|()| {
            let loads = loads.clone();
            setup.start(move |_, key, dest| {
                *loads
                    .lock()
                    .expect("no panic")
                    .entry(key.to_owned())
                    .or_default() += 1;
                thread::sleep(LOAD);
                Ok(dest.set_str(key)?)
            })
        });
        connect(&nodes);
        Cluster {
            nodes: nodes.into(),
            network,
            loads,
        }
    }

    /// Gets keys at these nodes while `during` runs. Every second key is new. The others are among the last
    /// thousand.
    fn load(&self, nodes: &[Node], prefix: &str, during: impl FnOnce()) -> Figures {
        let (stop, count) = (AtomicBool::new(false), AtomicU64::new(0));
        let peer_loads = || -> u64 {
            let loads = self.nodes.iter().map(|node| node.group.stats().peer_loads);
            loads.sum()
        };
        let exchanges = || self.network.exchanges.load(Ordering::Relaxed);
        self.loads.lock().expect("no panic").clear();
        let peeks = || self.network.peeks.load(Ordering::Relaxed);
        let before = (exchanges(), peer_loads(), peeks());
        let run = |node: &Node| {
            let mut times = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                let number = count.fetch_add(1, Ordering::Relaxed);
                let place = match number % 2 {
                    0 => number,
                    _ => number.saturating_sub(number * 7919 % 1000),
                };
                let key = format!("{prefix}{place}");
                let start = Instant::now();
                assert_eq!(node.group.get(&key).expect("a value"), key.as_str());
                times.push(start.elapsed());
            }
            times
        };
        let mut times: Vec<Duration> = thread::scope(|scope| {
            let run = &run;
            let nodes = nodes.iter().flat_map(|node| [node; THREADS]);
            let threads: Vec<_> = nodes.map(|node| scope.spawn(move || run(node))).collect();
            during();
            stop.store(true, Ordering::Relaxed);
            let times = threads
                .into_iter()
                .map(|thread| thread.join().expect("no panic"));
            times.flatten().collect()
        });
        times.sort_unstable();
        let useful = (peer_loads() - before.1) as f64;
        let loads = self.loads.lock().expect("no panic");
        Figures {
            p99: times[times.len() * 99 / 100],
            extra: (exchanges() - before.0) as f64 / useful - 1.0,
            extra_with_peeks: (exchanges() - before.0 + peeks() - before.2) as f64 / useful - 1.0,
            loads_a_key: loads.values().sum::<u64>() as f64 / loads.len() as f64,
        }
    }

    /// Whether all other nodes report that the node with this URL is in this state.
    fn all_see(&self, url: &str, state: PeerState) -> bool {
        let sees = |node: &Node| {
            let mut peers = node.pool.peers().into_iter();
            let peer = peers.find(|peer| peer.peer.url == url).expect("a peer");
            peer.state == state && peer.cause.is_some() == (state != PeerState::Healthy)
        };
        let mut others = self.nodes.iter().filter(|node| node.url != url);
        others.all(sees)
    }
}

/// Waits for a condition, and sleeps between checks, so that the load has the processors.
fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "never: {what}");
        thread::sleep(millis(20));
    }
}

#[test]
fn slow_peer_is_reported_and_bypassed_until_it_recovers() {
    let cluster = Cluster::start();
    let slow = &cluster.nodes[0].url;
    // Callers at the slow node itself see no delay for the keys that it owns.
    let (all, others) = (&cluster.nodes[..], &cluster.nodes[1..]);
    let before = cluster.load(all, "before ", || thread::sleep(seconds(2)));

    cluster.network.delay(&[slow], millis(300), millis(700));
    let start = Instant::now();
    let (late, named) = lateness(seconds(3), || {
        cluster.load(all, "named ", || {
            let is_named = || cluster.all_see(slow, PeerState::Slow);
            wait_until("the peer is reported as slow", is_named);
        });
        start.elapsed()
    });
    // A peer is reported as slow after three seconds of late answers, and the first of these is itself late.
    // Its answers are compared with those of the others. If these are late, too, fewer of its answers count.
    let usual = before.p99.max(millis(80)).as_secs_f64() / millis(80).as_secs_f64();
    assert!(
        named <= seconds(6).mul_f64(usual) + 20 * late,
        "{named:?}, control {late:?}, {before:?}"
    );
    let during = cluster.load(others, "during ", || thread::sleep(seconds(4)));
    let all_callers = cluster.load(all, "all ", || thread::sleep(seconds(2)));
    println!("with the callers of the slow node: {all_callers:?}");
    println!("named after {named:?}; before {before:?}; during {during:?}");
    // On a busy machine gets take longer, but none of them waits for a slow answer.
    for figures in [&during, &all_callers] {
        assert!(
            figures.p99 <= 3 * before.p99.max(millis(80)),
            "{before:?} {figures:?}"
        );
        assert!(figures.extra <= 0.05, "{figures:?}");
    }
    assert!(during.loads_a_key <= 1.02, "{during:?}");
    assert!(during.extra_with_peeks <= 0.05, "{during:?}");

    cluster.network.delay(&[], millis(0), millis(0));
    cluster.load(all, "after ", || {
        wait_until("the peer is healthy again", || {
            cluster.all_see(slow, PeerState::Healthy)
        });
    });
    let served = cluster.nodes[0].group.stats().server_requests;
    cluster.load(all, "later ", || thread::sleep(millis(500)));
    assert!(
        cluster.nodes[0].group.stats().server_requests > served,
        "the peer is asked again"
    );
}

#[test]
fn nodes_send_no_extra_requests_if_all_peers_are_slow() {
    let cluster = Cluster::start();
    let urls: Vec<&String> = cluster.nodes.iter().map(|node| &node.url).collect();
    cluster.network.delay(&urls, millis(200), millis(200));
    let figures = cluster.load(&cluster.nodes, "key ", || thread::sleep(seconds(6)));
    println!("{figures:?}");
    assert!(
        urls.iter()
            .all(|url| cluster.all_see(url, PeerState::Healthy))
    );
    assert_eq!(cluster.network.probes.load(Ordering::Relaxed), 0);
    assert!(figures.extra <= 0.01, "{figures:?}");
    assert!(figures.loads_a_key <= 1.02, "{figures:?}");
}
