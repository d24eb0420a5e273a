//! Complete nodes in one process: pools, servers and groups.

mod bulk;
mod explain;
mod handoff;
mod hot_keys;
mod lists;
mod promise;
mod removal;
mod revalidation;
mod slow_getters;
mod stale_copies;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use larder::http::{
    HttpClient, HttpPool, HttpPoolBuilder, Server, Transport, TransportRequest, TransportResponse,
};
use larder::{BoxError, Context, Error, ErrorKind, Group, Registry, Sink};

use crate::server::support::eventually;

struct Node {
    pool: HttpPool,
    group: Group,
    server: Option<Server>,
    /// The keys that the getter has loaded.
    loads: Arc<Mutex<Vec<String>>>,
    /// While a test holds this lock, the getter blocks on keys that begin with `held`.
    hold: Arc<Mutex<()>>,
}

struct TraceId(String);

const PATIENCE: Duration = Duration::from_secs(20);

impl Node {
    fn start(options: impl Fn(HttpPoolBuilder) -> HttpPoolBuilder) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let registry = Registry::new();
        let builder = HttpPool::builder(&url).registry(&registry);
        // A slow machine makes no exchange fail.
        let builder = builder.connect_timeout(PATIENCE).exchange_timeout(PATIENCE);
        let pool = options(builder).build().unwrap();
        let loads = Arc::new(Mutex::new(Vec::new()));
        let loaded = loads.clone();
        let hold = Arc::<Mutex<()>>::default();
        let held = hold.clone();
        let getter = move |ctx: &Context, key: &str, dest: &mut dyn Sink| -> Result<(), BoxError> {
            loaded.lock().unwrap().push(key.to_owned());
            if key.starts_with("missing") {
                return Err(Error::not_found(format!("no color {key}")).into());
            }
            if key.starts_with("broken") {
                return Err("disk on fire".into());
            }
            if key.starts_with("held") {
                drop(held.lock().unwrap());
            }
            let trace = ctx.value::<TraceId>().map_or("none", |id| &id.0);
            Ok(dest.set_str(&format!("{key} {url} {trace}"))?)
        };
        let group = registry.new_group("colors", 1 << 20, getter).unwrap();
        let server = pool.server().serve_listener(listener).unwrap();
        Node {
            pool,
            group,
            server: Some(server),
            loads,
            hold,
        }
    }

    fn loads(&self) -> usize {
        self.loads.lock().unwrap().len()
    }
}

fn cluster(size: usize) -> Vec<Node> {
    let nodes: Vec<_> = (0..size).map(|_| Node::start(|builder| builder)).collect();
    let urls: Vec<_> = nodes.iter().map(|node| node.pool.self_url()).collect();
    for node in &nodes {
        node.pool.set(&urls).unwrap();
    }
    nodes
}

/// Adds the requests to peers for which `is_counted` returns true to `count`.
fn count_requests(
    builder: HttpPoolBuilder,
    count: &Arc<AtomicUsize>,
    is_counted: fn(&TransportRequest<'_>) -> bool,
) -> HttpPoolBuilder {
    struct Counted {
        inner: Arc<dyn Transport>,
        count: Arc<AtomicUsize>,
        is_counted: fn(&TransportRequest<'_>) -> bool,
    }

    impl Transport for Counted {
        fn round_trip(
            &self,
            ctx: &Context,
            request: TransportRequest<'_>,
        ) -> larder::Result<TransportResponse> {
            let counted = usize::from((self.is_counted)(&request));
            self.count.fetch_add(counted, Ordering::SeqCst);
            self.inner.round_trip(ctx, request)
        }
    }

    let count = count.clone();
    builder.transport(move |_, inner| {
        Arc::new(Counted {
            inner,
            count: count.clone(),
            is_counted,
        })
    })
}

fn total_loads(nodes: &[Node]) -> usize {
    nodes.iter().map(Node::loads).sum()
}

#[test]
fn key_is_loaded_once_by_its_owner() {
    let nodes = cluster(3);
    for n in 0..30 {
        let key = format!("a/b {n}+é");
        let owner = nodes[0].pool.owner(&key).unwrap();
        for node in &nodes {
            let value = node.group.get(&key).unwrap();
            assert_eq!(value, format!("{key} {owner} none"));
        }
    }
    assert_eq!(total_loads(&nodes), 30);
    assert!(nodes.iter().all(|node| node.loads() > 0));
}

#[test]
fn getter_error_of_the_owner_reaches_the_caller() {
    let nodes = cluster(2);
    for n in 0..10 {
        let mauve = nodes[0].group.get(&format!("missing-{n}")).unwrap_err();
        assert!(mauve.is_not_found());
        assert_eq!(mauve.to_string(), format!("no color missing-{n}"));
        let broken = nodes[0].group.get(&format!("broken-{n}")).unwrap_err();
        assert_eq!(broken.kind(), ErrorKind::Getter);
        assert_eq!(broken.to_string(), "disk on fire");
    }
    assert_eq!(
        total_loads(&nodes),
        20,
        "one load of each key in the cluster"
    );
    assert!(nodes[1].loads() > 0);
}

#[test]
fn get_many_sends_one_request_to_each_owner() {
    let exchanges = Arc::new(AtomicUsize::new(0));
    // The request for the list of peers does not count.
    let is_for_keys = |request: &TransportRequest<'_>| request.path().contains("/colors");
    let count = |builder| count_requests(builder, &exchanges, is_for_keys);
    let nodes = [
        Node::start(count),
        Node::start(|builder| builder),
        Node::start(|builder| builder),
    ];
    let urls: Vec<_> = nodes.iter().map(|node| node.pool.self_url()).collect();
    for node in &nodes {
        node.pool.set(&urls).unwrap();
    }
    let keys: Vec<_> = (0..100).map(|n| format!("key-{n}")).collect();
    for key in &keys {
        nodes[1].group.get(key).unwrap();
    }
    // Until now, the first node asked the previous owners of its own keys.
    exchanges.store(0, Ordering::SeqCst);
    let ctx = Context::background().with_timeout(Duration::from_secs(20));
    let values = nodes[0].group.get_many(&ctx, &keys);
    for (key, value) in keys.iter().zip(values) {
        let owner = nodes[0].pool.owner(key).unwrap();
        assert_eq!(value.unwrap(), format!("{key} {owner} none"));
    }
    assert_eq!(exchanges.load(Ordering::SeqCst), 2);
    assert_eq!(total_loads(&nodes), 100);
}

#[test]
fn slow_load_does_not_delay_requests_for_cached_keys() {
    let nodes = cluster(2);
    let owned = |prefix: &str, n: usize| {
        let mut keys = (0..).map(|n| format!("{prefix}-{n}"));
        let of_other =
            |key: &String| nodes[0].pool.owner(key).as_deref() != Some(nodes[0].pool.self_url());
        keys.by_ref().filter(of_other).nth(n).unwrap()
    };
    let cached: Vec<_> = (0..200).map(|n| owned("key", n)).collect();
    for key in &cached {
        nodes[1].group.get(key).unwrap();
    }
    let slow = owned("held", 0);
    let release = nodes[1].hold.lock().unwrap();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| nodes[0].group.get(&slow));
        eventually(|| nodes[1].loads() > cached.len());
        std::thread::scope(|scope| {
            for part in cached.chunks(25) {
                let asking = &nodes[0].group;
                scope.spawn(move || {
                    for key in part {
                        assert!(asking.get(key).unwrap().starts_with(key.as_bytes()));
                    }
                });
            }
        });
        assert!(!waiting.is_finished());
        drop(release);
        assert!(waiting.join().unwrap().is_ok());
    });
    assert_eq!(total_loads(&nodes), 201);
}

#[test]
fn slow_load_runs_once_for_the_callers_of_all_nodes() {
    let node = || Node::start(|builder| builder.exchange_timeout(Duration::from_secs(2)));
    let nodes: Vec<_> = (0..3).map(|_| node()).collect();
    let urls: Vec<_> = nodes.iter().map(|node| node.pool.self_url()).collect();
    for node in &nodes {
        node.pool.set(&urls).unwrap();
    }
    let held: Vec<_> = nodes.iter().map(|node| node.hold.lock().unwrap()).collect();
    std::thread::scope(|scope| {
        let callers: Vec<_> = (0..99)
            .map(|n| {
                let group = &nodes[n % 3].group;
                let ctx = match n % 2 {
                    0 => Context::background(),
                    _ => Context::background().with_timeout(Duration::from_secs(20)),
                };
                scope.spawn(move || group.get_with(&ctx, "held"))
            })
            .collect();
        // The load takes as long as three exchanges.
        std::thread::sleep(Duration::from_secs(6));
        drop(held);
        for caller in callers {
            caller.join().unwrap().expect("a value");
        }
    });
    assert_eq!(total_loads(&nodes), 1);
}

#[test]
fn callers_get_values_when_the_owner_is_dead() {
    let mut nodes = cluster(3);
    let dead = nodes.remove(2);
    drop(dead.server);
    for n in 0..30 {
        let key = format!("key-{n}");
        for node in &nodes {
            assert!(node.group.get(&key).unwrap().starts_with(key.as_bytes()));
        }
    }
    assert!(nodes[0].group.stats().peer_errors > 0);
}

#[test]
fn group_that_the_peer_does_not_have_is_loaded_here() {
    let nodes = cluster(2);
    let lone = nodes[0].pool.clone();
    let registry = Registry::new();
    let pool = HttpPool::builder("http://127.0.0.1:1")
        .registry(&registry)
        .build()
        .unwrap();
    pool.set([lone.self_url()]).unwrap();
    let group = registry
        .new_group(
            "shapes",
            0,
            |_: &Context, key: &str, dest: &mut dyn Sink| Ok(dest.set_str(key)?),
        )
        .unwrap();
    assert_eq!(group.get("square").unwrap(), "square");
    assert_eq!(total_loads(&nodes), 0);
}

#[test]
fn nodes_that_take_each_other_for_the_owner_do_not_wait_for_each_other() {
    let nodes = [Node::start(|b| b), Node::start(|b| b)];
    nodes[0].pool.set([nodes[1].pool.self_url()]).unwrap();
    nodes[1].pool.set([nodes[0].pool.self_url()]).unwrap();
    for node in &nodes {
        let ctx = Context::background().with_timeout(Duration::from_secs(5));
        let value = node.group.get_with(&ctx, "red").unwrap();
        assert!(value.starts_with(b"red"));
    }
    assert!(total_loads(&nodes) <= 2);
}

#[test]
fn context_hook_passes_a_request_header_to_the_getter() {
    let owner = Node::start(|builder| {
        builder.context(|request| {
            let id = request.header("x-trace").unwrap_or("absent").to_owned();
            Context::background().with_value(TraceId(id))
        })
    });
    let asking = Node::start(|builder| builder.transport(|_, default| Arc::new(Traced(default))));
    asking.pool.set([owner.pool.self_url()]).unwrap();
    let value = asking.group.get("red").unwrap();
    assert_eq!(value, format!("red {} 42", owner.pool.self_url()));
}

struct Traced(Arc<dyn larder::http::Transport>);

impl larder::http::Transport for Traced {
    fn round_trip(
        &self,
        ctx: &Context,
        mut request: larder::http::TransportRequest<'_>,
    ) -> larder::Result<larder::http::TransportResponse> {
        request.set_header("x-trace", "42")?;
        self.0.round_trip(ctx, request)
    }
}

#[test]
fn pool_matches_only_paths_below_its_base_path() {
    let pool = HttpPool::builder("http://a")
        .registry(&Registry::new())
        .base_path("/cache/")
        .build()
        .unwrap();
    assert!(pool.matches("/cache/colors/red"));
    assert!(!pool.matches("/_groupcache/colors/red"));
    assert!(!pool.matches("/cache"));
}

/// A proxy between a node and its peer: changes the path of each request, and passes everything else on.
fn proxy_to(peer: &str, change: fn(&str) -> String) -> String {
    let to = peer.strip_prefix("http://").unwrap().to_owned();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let (client, server) = (client.unwrap(), TcpStream::connect(&to).unwrap());
            let (mut back, mut answers) =
                (client.try_clone().unwrap(), server.try_clone().unwrap());
            std::thread::spawn(move || std::io::copy(&mut answers, &mut back));
            std::thread::spawn(move || pass_on(client, server, change));
        }
    });
    url
}

fn pass_on(client: TcpStream, mut server: TcpStream, change: fn(&str) -> String) -> Option<()> {
    let mut requests = BufReader::new(client);
    loop {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if requests.read_line(&mut head).ok()? == 0 {
                return None;
            }
        }
        let path = head.split(' ').nth(1)?.to_owned();
        let length = head.split_once("content-length: ").map_or(0, |(_, rest)| {
            let digits = rest.split("\r\n").next().unwrap_or_default();
            digits.parse().expect("a length")
        });
        let mut body = vec![0; length];
        requests.read_exact(&mut body).ok()?;
        let head = head.replacen(&path, &change(&path), 1);
        server.write_all(&[head.as_bytes(), &body].concat()).ok()?;
    }
}

#[test]
fn proxy_that_changes_paths_never_brings_the_value_of_another_key() {
    let decode: fn(&str) -> String = |path| path.replace("%2F", "/").replace("%2E", ".");
    let merge: fn(&str) -> String = |path| {
        let decoded = path.replace("%2F", "/");
        let parts: Vec<_> = decoded.split('/').filter(|part| !part.is_empty()).collect();
        format!("/{}", parts.join("/"))
    };
    let lower: fn(&str) -> String = |path| path.to_ascii_lowercase();
    let cut: fn(&str) -> String = |path| path.trim_end_matches("%20").to_owned();
    let keys = [
        "a/b", "a//b", "/a/b", "a/b/", "A/B", "a/B", "Red", "red", "red ", "..", "a/../b",
        "missing", "MISSING", "missing ", "broken", "Broken",
    ];
    let clients = [
        HttpClient::Auto,
        HttpClient::Direct,
        #[cfg(feature = "ureq")]
        HttpClient::Ureq,
    ];
    for client in clients {
        for change in [decode, merge, lower, cut] {
            let nodes: Vec<_> = (0..2)
                .map(|_| Node::start(|builder| builder.http_client(client)))
                .collect();
            // Node 0 asks node 1 for every key, through the proxy.
            let behind = proxy_to(nodes[1].pool.self_url(), change);
            nodes[0].pool.set([&behind]).unwrap();
            for round in 0..3 {
                for key in keys {
                    check_own_value(key, nodes[0].group.get(key), round);
                }
                let many = nodes[0].group.get_many(&Context::background(), &keys);
                for (key, result) in keys.iter().zip(many) {
                    check_own_value(key, result, round);
                }
                nodes[0].group.clear_local();
            }
        }
    }
}

/// Checks that the value or error is what a getter returns for this key.
fn check_own_value(key: &str, result: larder::Result<larder::ByteView>, round: usize) {
    match result {
        Ok(value) => {
            let text = value.to_str().unwrap();
            assert!(
                text.starts_with(&format!("{key} http")),
                "{key}: {text}, round {round}"
            );
        }
        Err(error) if key.starts_with("missing") => assert!(error.is_not_found(), "{error}"),
        Err(error) => {
            assert!(key.starts_with("broken"), "{key}: {error}");
            assert_eq!(error.kind(), ErrorKind::Getter, "{error}");
        }
    }
}

#[cfg(feature = "tiny_http")]
#[test]
fn tiny_http_server_can_host_the_pool() {
    let host = larder::http::tiny::bind("127.0.0.1:0").unwrap();
    let port = host.server_addr().to_ip().unwrap().port();
    let owner = Node::start(|builder| builder);
    let asking = Node::start(|builder| builder);
    let url = format!("http://127.0.0.1:{port}");
    asking.pool.set([&url]).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for request in host.incoming_requests() {
                assert!(owner.pool.matches(request.url()));
                owner.pool.handle(request).unwrap();
            }
        });
        for n in 0..5 {
            let key = format!("key {n}");
            let value = asking.group.get(&key).unwrap();
            assert_eq!(value, format!("{key} {} none", owner.pool.self_url()));
        }
        assert!(asking.group.get("missing").unwrap_err().is_not_found());
        host.unblock();
    });
    assert_eq!((owner.loads(), asking.loads()), (6, 0));
}
