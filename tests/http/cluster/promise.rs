//! After a removal has returned, no get that begins later sees an older value, on any node, also if the
//! messages to one node are delayed.

use std::net::TcpListener;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use larder::http::{HttpPool, Server, Transport, TransportRequest, TransportResponse};
use larder::{Context, Group, Peer, Registry, Result, SetOptions, Sink};

use super::PATIENCE;

const KEYS: usize = 8;

/// The version of each key at its source.
type Source = [AtomicU64; KEYS];

/// The version of each key below which no get that begins now may see a value: see [`Judge::check`].
#[derive(Default)]
struct Judge {
    promised: Source,
    gets: AtomicUsize,
    violations: Mutex<Vec<String>>,
}

impl Judge {
    /// Gets a key. Its version is at least the one that was promised before the get began.
    fn check(&self, node: usize, group: &Group, key: usize) {
        let promised = self.promised[key].load(Ordering::SeqCst);
        let value = group.get(&key.to_string()).unwrap();
        let version: u64 = value.to_str().unwrap().parse().unwrap();
        self.gets.fetch_add(1, Ordering::Relaxed);
        if version < promised {
            let what = format!("node {node}, key {key}: {version} after {promised}");
            self.violations.lock().unwrap().push(what);
        }
    }
}

/// Delays the requests to one node.
struct Delaying {
    to: Arc<dyn Transport>,
    random: AtomicU64,
    max_millis: u64,
}

impl Transport for Delaying {
    fn round_trip(
        &self,
        ctx: &Context,
        request: TransportRequest<'_>,
    ) -> Result<TransportResponse> {
        // Gets are not delayed, because they have to overtake the removals.
        if request.method() != "GET" {
            let random = self
                .random
                .fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
            let millis = (random ^ random >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 40;
            std::thread::sleep(Duration::from_millis(millis % (self.max_millis + 1)));
        }
        self.to.round_trip(ctx, request)
    }
}

struct Node {
    pool: HttpPool,
    group: Group,
    _server: Server,
}

/// Three nodes. The requests to the last one are delayed.
fn cluster(source: &Arc<Source>, max_millis: u64) -> Vec<Node> {
    let listeners: Vec<_> = (0..3)
        .map(|_| TcpListener::bind("127.0.0.1:0").unwrap())
        .collect();
    let url = |listener: &TcpListener| format!("http://{}", listener.local_addr().unwrap());
    let urls: Vec<String> = listeners.iter().map(url).collect();
    let slow = urls[2].clone();
    // The ids choose the owners, so that these are the same whatever the ports are.
    let id = |n: usize| format!("node-{n}");
    let peer = |(n, url): (usize, &String)| Peer::new(url).with_id(id(n));
    let peers: Vec<Peer> = urls.iter().enumerate().map(peer).collect();
    let start = |(n, (listener, url)): (usize, (TcpListener, &String))| {
        let (registry, slow) = (Registry::new(), slow.clone());
        let pool = HttpPool::builder(url)
            .id(id(n))
            .registry(&registry)
            .connect_timeout(PATIENCE)
            .exchange_timeout(PATIENCE)
            .transport(move |url, to| match url == slow {
                true => Arc::new(Delaying {
                    to,
                    random: AtomicU64::new(1),
                    max_millis,
                }),
                false => to,
            })
            .build()
            .unwrap();
        let source = source.clone();
        let load = move |_: &Context, key: &str, dest: &mut dyn Sink| {
            let version = source[key.parse::<usize>()?].load(Ordering::SeqCst);
            std::thread::yield_now();
            Ok(dest.set_str(&version.to_string())?)
        };
        pool.set(peers.clone()).unwrap();
        Node {
            group: registry.new_group("promise", 1 << 20, load).unwrap(),
            _server: pool.server().serve_listener(listener).unwrap(),
            pool,
        }
    };
    let nodes = listeners.into_iter().zip(&urls).enumerate();
    nodes.map(start).collect()
}

/// Changes a key by the `n`th way. Returns once the change is promised.
fn change(n: u64, node: &Node, key: usize, version: u64) {
    let (ctx, key) = (Context::background(), key.to_string());
    match n % 4 {
        0 => node
            .group
            .set(&ctx, &key, version.to_string(), SetOptions::new()),
        1 => node.group.remove_many(&ctx, &[key.as_str(), "0"]),
        2 if n % 40 == 2 => node.group.clear(&ctx),
        _ => node.group.remove(&ctx, &key),
    }
    .unwrap();
}

#[test]
fn no_get_after_a_removal_sees_an_older_value() {
    let source = Arc::new(Source::default());
    let nodes = cluster(&source, if cfg!(debug_assertions) { 20 } else { 200 });
    assert!(
        (0..KEYS)
            .any(|key| nodes[0].pool.owner(&key.to_string())
                == Some(nodes[2].pool.self_url().into()))
    );
    let judge = Judge::default();
    let is_over = AtomicBool::new(false);
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for reader in 0..4 {
            let (nodes, judge, is_over) = (&nodes, &judge, &is_over);
            scope.spawn(move || {
                for n in reader.. {
                    if is_over.load(Ordering::Relaxed) {
                        return;
                    }
                    judge.check(n % 3, &nodes[n % 3].group, n / 3 % KEYS);
                }
            });
        }
        // Each changes keys of its own, because a set of an older version may follow a newer one.
        let writers: Vec<_> = (0..2)
            .map(|writer| {
                let (nodes, source, judge) = (&nodes, &source, &judge);
                scope.spawn(move || {
                    for n in 0.. {
                        if begun.elapsed() > Duration::from_secs(20)
                            || n > 20 && judge.gets.load(Ordering::Relaxed) > 100_000
                        {
                            return n;
                        }
                        let key = (n as usize % (KEYS / 2)) * 2 + writer;
                        let version = source[key].fetch_add(1, Ordering::SeqCst) + 1;
                        change(n, &nodes[n as usize % 3], key, version);
                        judge.promised[key].fetch_max(version, Ordering::SeqCst);
                    }
                    0
                })
            })
            .collect();
        let changes: u64 = writers
            .into_iter()
            .map(|writer| writer.join().unwrap())
            .sum();
        is_over.store(true, Ordering::Relaxed);
        println!(
            "{changes} changes, {} gets",
            judge.gets.load(Ordering::Relaxed)
        );
        assert!(changes > 20);
    });
    let violations = judge.violations.lock().unwrap();
    let (count, first) = (violations.len(), violations.first());
    assert!(count == 0, "{count} violations: {first:?}");
}
