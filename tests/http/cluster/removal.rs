//! Tests removals, sets and clears in a cluster of three nodes.

use std::net::TcpListener;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::time::Duration;

use larder::http::{
    HttpClient, HttpPool, HttpPoolBuilder, Server, Transport, TransportRequest, TransportResponse,
};
use larder::{Context, ErrorKind, Group, Peer, Registry, SetOptions, Sink};

use super::{PATIENCE, count_requests};

struct Node {
    pool: HttpPool,
    group: Group,
    server: Option<Server>,
}

/// Starts three nodes that load from one source. The value of a key is the key and the version of the source,
/// which is returned.
fn cluster(options: impl Fn(HttpPoolBuilder) -> HttpPoolBuilder) -> (Vec<Node>, Arc<AtomicU64>) {
    let version = Arc::new(AtomicU64::new(0));
    let nodes: Vec<Node> = (0..3)
        .map(|_| {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let url = format!("http://{}", listener.local_addr().unwrap());
            let registry = Registry::new();
            let builder = HttpPool::builder(&url).registry(&registry);
            let builder = builder.connect_timeout(PATIENCE).exchange_timeout(PATIENCE);
            let pool = options(builder).build().unwrap();
            let version = version.clone();
            let load = move |_: &Context, key: &str, dest: &mut dyn Sink| {
                Ok(dest.set_str(&format!("{key} {}", version.load(Ordering::SeqCst)))?)
            };
            Node {
                pool: pool.clone(),
                group: Group::builder("g")
                    .registry(&registry)
                    .max_capacity(1 << 20)
                    .max_key_size(65_535)
                    .build(load)
                    .unwrap(),
                server: Some(pool.server().serve_listener(listener).unwrap()),
            }
        })
        .collect();
    let urls: Vec<_> = nodes.iter().map(|node| node.pool.self_url()).collect();
    for node in &nodes {
        node.pool.set(&urls).unwrap();
    }
    (nodes, version)
}

fn clients() -> Vec<HttpClient> {
    vec![
        HttpClient::Auto,
        #[cfg(feature = "ureq")]
        HttpClient::Ureq,
        HttpClient::Direct,
    ]
}

fn background() -> Context {
    Context::background()
}

#[test]
fn removed_keys_are_gone_from_all_nodes() {
    for client in clients() {
        let (nodes, version) = cluster(|builder| builder.http_client(client));
        let keys: Vec<String> = (0..30).map(|n| format!("a/b {n}+é\"")).collect();
        let all_have = |want: u64, keys: &[String]| {
            for (node, key) in nodes
                .iter()
                .flat_map(|node| keys.iter().map(move |key| (node, key)))
            {
                assert_eq!(
                    node.group.get(key).unwrap(),
                    format!("{key} {want}"),
                    "{client:?}"
                );
            }
        };
        all_have(0, &keys);
        version.store(1, Ordering::SeqCst);
        all_have(0, &keys);
        for (n, key) in keys[..10].iter().enumerate() {
            nodes[n % 3].group.remove(&background(), key).unwrap();
        }
        all_have(1, &keys[..10]);
        all_have(0, &keys[10..]);
        nodes[1]
            .group
            .remove_many(&background(), &keys[10..20])
            .unwrap();
        all_have(1, &keys[..20]);
        all_have(0, &keys[20..]);
        nodes[2].group.clear(&background()).unwrap();
        version.store(2, Ordering::SeqCst);
        all_have(2, &keys);
    }
}

#[test]
fn many_long_keys_are_removed_in_several_requests() {
    let requests = Arc::new(AtomicUsize::new(0));
    let is_change = |request: &TransportRequest<'_>| request.method() != "GET";
    let (nodes, version) = cluster(|builder| count_requests(builder, &requests, is_change));
    let keys: Vec<String> = (0..300)
        .map(|n| format!("{n}{}", "\u{1}".repeat(500)))
        .collect();
    for node in &nodes {
        node.group.get_many(&background(), &keys);
    }
    version.store(1, Ordering::SeqCst);
    requests.store(0, Ordering::SeqCst);
    nodes[0].group.remove_many(&background(), &keys).unwrap();
    let requests = requests.load(Ordering::SeqCst);
    assert!(requests > 2, "{requests} requests to two nodes");
    for (node, key) in nodes
        .iter()
        .flat_map(|node| keys.iter().map(move |key| (node, key)))
    {
        assert_eq!(node.group.get(key).unwrap(), format!("{key} 1"));
    }
}

/// With a mark of its own, a node could accept an old value from a peer that has applied a part of the removal.
#[test]
fn removal_of_many_keys_gives_all_nodes_the_same_marks() {
    let long = |n: usize| format!("{n}{}", "\u{1}".repeat(500));
    for client in clients() {
        for keys in [
            (0..5).map(|n| n.to_string()).collect::<Vec<_>>(),
            (0..100).map(long).collect(),
        ] {
            let (nodes, _) = cluster(|builder| builder.http_client(client));
            // These are the node's first requests to its peers. Only the responses show that these are larder's
            // servers.
            nodes[0].group.remove_many(&background(), &keys).unwrap();
            for key in &keys {
                let mark = |node: &Node| {
                    let answer = node.group.serve_peer(&background(), key);
                    answer.unwrap().removals
                };
                let marks: Vec<_> = nodes.iter().map(mark).collect();
                assert_eq!(marks, vec![marks[0]; 3], "{client:?} {key:?}");
                assert_ne!(marks[0], Some(0));
            }
        }
    }
}

#[test]
fn first_requests_to_peers_remove_many_keys_together() {
    for client in clients() {
        let (nodes, _) = cluster(|builder| builder.http_client(client));
        let requests = Arc::new(AtomicUsize::new(0));
        let registry = Registry::new();
        let builder = HttpPool::builder("http://127.0.0.1:1").registry(&registry);
        let builder = builder.connect_timeout(PATIENCE).exchange_timeout(PATIENCE);
        let is_change = |request: &TransportRequest<'_>| request.method() != "GET";
        let builder = count_requests(builder.http_client(client), &requests, is_change);
        let pool = builder.build().unwrap();
        pool.set(nodes[0].pool.urls()).unwrap();
        let load = |_: &Context, key: &str, dest: &mut dyn Sink| Ok(dest.set_str(key)?);
        let group = registry.new_group("g", 1 << 20, load).unwrap();
        let keys: Vec<String> = (0..1000).map(|n| format!("key {n}")).collect();
        group.remove_many(&background(), &keys).unwrap();
        let requests = requests.load(Ordering::SeqCst);
        // Each of the three nodes gets a request for the first key, whose response shows which server it is, and
        // one for all keys.
        assert_eq!(requests, 6, "{client:?}");
    }
}

#[test]
fn set_value_is_seen_by_all_nodes_and_kept_by_the_owner_only() {
    for client in clients() {
        let (nodes, _) = cluster(|builder| builder.http_client(client));
        let long = vec![7; 300_000];
        for n in 0..12 {
            let key = format!("key {n}");
            for node in &nodes {
                node.group.get(&key).unwrap();
            }
            let value = if n == 0 {
                long.clone()
            } else {
                format!("set {n}").into()
            };
            let options = SetOptions::new().expire_in(Duration::from_secs(60));
            nodes[n % 3]
                .group
                .set(&background(), &key, value.clone(), options)
                .unwrap();
            let owner = nodes[0].pool.owner(&key).unwrap();
            for node in &nodes {
                let is_owner = node.pool.self_url() == owner;
                assert_eq!(node.group.contains_key(&key), is_owner, "{client:?}");
            }
            for node in &nodes {
                assert_eq!(node.group.get(&key).unwrap(), value);
            }
        }
    }
}

#[test]
fn concurrent_sets_leave_the_same_value_at_all_nodes() {
    let (nodes, _) = cluster(|builder| builder);
    for round in 0..50 {
        std::thread::scope(|scope| {
            for (n, node) in nodes.iter().enumerate() {
                scope.spawn(move || {
                    for step in 0..4 {
                        let value = format!("{round} {n} {step}");
                        node.group
                            .set(&background(), "key", value, SetOptions::new())
                            .unwrap();
                        node.group.get("key").unwrap();
                    }
                });
            }
        });
        let values: Vec<_> = nodes
            .iter()
            .map(|node| node.group.get("key").unwrap())
            .collect();
        assert!(
            values[0].ends_with(b" 3") && values.iter().all(|value| *value == values[0]),
            "{values:?}"
        );
    }
}

#[test]
fn removals_and_sets_name_a_dead_peer_and_reach_the_others() {
    let (mut nodes, version) = cluster(|builder| builder);
    let dead = nodes.pop().unwrap();
    for node in nodes.iter().chain([&dead]) {
        node.group.get("key").unwrap();
    }
    // The server may still answer requests by which the other nodes take values over.
    let patience = Duration::from_secs(20);
    dead.server.unwrap().shutdown(patience).unwrap();
    version.store(1, Ordering::SeqCst);
    let error = nodes[0].group.remove(&background(), "key").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Partial);
    let failed = &error.partial().unwrap().failed;
    assert_eq!(failed.len(), 1);
    assert_eq!(failed[0].peer, dead.pool.self_url());
    for node in &nodes {
        assert_eq!(node.group.get("key").unwrap(), "key 1");
    }
    let keys = (0..).map(|n| format!("key {n}"));
    let of_dead = |key: &String| nodes[0].pool.owner(key).as_deref() == Some(dead.pool.self_url());
    let lost = keys.clone().find(of_dead).unwrap();
    nodes[1].group.get(&lost).unwrap();
    let result = nodes[0]
        .group
        .set(&background(), &lost, "new", SetOptions::new());
    assert_eq!(result.unwrap_err().kind(), ErrorKind::Peer);
    assert_eq!(nodes[1].group.peek(&lost), Some(format!("{lost} 1").into()));
    let error = nodes[0]
        .group
        .set(&background(), &own(&nodes[0]), "new", SetOptions::new());
    assert_eq!(error.unwrap_err().kind(), ErrorKind::Partial);
    assert_eq!(nodes[1].group.get(&own(&nodes[0])).unwrap(), "new");
}

/// Returns a key that the node owns.
fn own(node: &Node) -> String {
    let mut keys = (0..).map(|n| format!("own {n}"));
    keys.find(|key| node.pool.owner(key).as_deref() == Some(node.pool.self_url()))
        .unwrap()
}

/// Systems other than Linux may drop an answer that the client has not read when the connection is reset.
#[cfg(target_os = "linux")]
#[test]
fn owner_refuses_a_long_value_with_413_before_it_has_read_all_of_it() {
    for client in clients() {
        let (nodes, _) = cluster(|builder| {
            let builder = builder.http_client(client);
            builder.max_value_size(1000).max_batch_bytes(1000)
        });
        let (first, urls) = (&nodes[0], nodes[0].pool.urls());
        let mut keys = (0..).map(|n| n.to_string());
        let key = keys.find(|key| first.pool.owner(key).as_deref() == Some(&*urls[1]));
        let key = key.expect("a key of another node");
        let value = vec![7_u8; 12 << 20];
        for _ in 0..3 {
            let set = (first.group).set(&background(), &key, value.clone(), SetOptions::default());
            let error = set.expect_err("it is too long");
            assert!(error.to_string().contains("413"), "{client:?}: {error}");
        }
    }
}

#[test]
fn key_that_is_too_long_for_a_path_is_removed_from_all_nodes() {
    let options = SetOptions::default;
    for client in clients() {
        let (nodes, version) = cluster(|builder| builder.http_client(client));
        // As JSON, the key of 65,535 bytes is over the limit for bodies.
        let keys = [
            ("\u{1}", 65_535),
            ("\u{e9}", 10),
            ("\u{e9}", 600),
            ("\u{e9}", 3000),
        ];
        for (unit, len) in keys {
            let key = unit.repeat(len);
            let all_have = |want: u64| {
                for node in &nodes {
                    let value = node.group.get(&key).expect("loaded");
                    assert_eq!(value, format!("{key} {want}"));
                }
            };
            let old = version.load(Ordering::SeqCst);
            all_have(old);
            version.store(old + 1, Ordering::SeqCst);
            all_have(old);
            let removed = nodes[0].group.remove(&background(), &key);
            removed.unwrap_or_else(|error| panic!("{client:?}, {len}: {error}"));
            all_have(old + 1);
        }
        // The request of a set has the key in its path, so this set fails. It changes nothing.
        let key = "\u{e9}".repeat(3000);
        let node = nodes
            .iter()
            .find(|node| node.pool.owner(&key).as_deref() != Some(node.pool.self_url()));
        let set = (node.expect("another node").group).set(&background(), &key, "x", options());
        set.expect_err("the key is too long");
        let old = format!("{key} {}", version.load(Ordering::SeqCst));
        for node in &nodes {
            assert_eq!(node.group.get(&key).expect("loaded"), old);
        }
    }
}

/// The address of a node that moved can lead to another one, which is in the list as well.
#[test]
fn change_that_reaches_another_node_than_its_own_is_not_confirmed() {
    for client in clients() {
        let (nodes, version) = cluster(|builder| builder.http_client(client));
        let ids = ["a", "b", "c"];
        let port = |n: usize| nodes[n].pool.self_url().rsplit(':').next().unwrap();
        let by_name = |n: usize| format!("http://localhost:{}", port(n));
        let peer = |n: usize, url: String| Peer::new(url).with_id(ids[n]);
        let own = |n: usize| peer(n, nodes[n].pool.self_url().to_owned());
        for node in &nodes[1..] {
            node.pool.set([own(0), own(1), own(2)]).unwrap();
        }
        // The address of "b" leads to "c", or to the node itself.
        for of_b in [2, 0] {
            let list = [own(0), peer(1, by_name(of_b)), own(2)];
            nodes[0].pool.set(list).unwrap();
            for (n, node) in nodes.iter().enumerate() {
                node.group
                    .get("key")
                    .unwrap_or_else(|error| panic!("{n}: {error}"));
            }
            version.fetch_add(1, Ordering::SeqCst);
            let group = &nodes[0].group;
            let changes: [&dyn Fn() -> larder::Result<()>; 4] = [
                &|| group.remove(&background(), "key"),
                &|| group.remove_many(&background(), &["key", "other"]),
                &|| group.clear(&background()),
                &|| {
                    let own_key = (0..).map(|n| format!("{n}"));
                    let is_own = |key: &String| {
                        nodes[0].pool.owner(key).as_deref() == Some(nodes[0].pool.self_url())
                    };
                    let key = own_key.into_iter().find(is_own).unwrap();
                    group.set(&background(), &key, "x", SetOptions::new())
                },
            ];
            for change in changes {
                let error = change().expect_err("b does not get it");
                let partial = error
                    .partial()
                    .unwrap_or_else(|| panic!("{client:?}: {error}"));
                let failed: Vec<_> = partial.failed.iter().map(|failed| &*failed.peer).collect();
                assert_eq!(failed, [by_name(of_b)], "{client:?}, {of_b}: {error}");
            }
        }
        nodes[0].pool.set([own(0), own(1), own(2)]).unwrap();
        for n in [0, 1, 2, 0, 1, 2] {
            nodes[n]
                .group
                .remove(&background(), "key")
                .unwrap_or_else(|error| panic!("{client:?}: {error}"));
        }
    }
}

/// Holds each set until it is released.
struct HeldSets {
    inner: Arc<dyn Transport>,
    held: Arc<Barrier>,
}

impl Transport for HeldSets {
    fn round_trip(
        &self,
        ctx: &Context,
        request: TransportRequest<'_>,
    ) -> larder::Result<TransportResponse> {
        if request.method() == "PUT" {
            self.held.wait();
            self.held.wait();
        }
        self.inner.round_trip(ctx, request)
    }
}

/// The value of the set may be older than the removal, whichever call ends first.
#[test]
fn set_under_way_during_a_removal_does_not_bring_its_value_back() {
    let held = Arc::new(Barrier::new(2));
    let (nodes, version) = cluster(|builder| {
        let held = held.clone();
        builder.transport(move |_, inner| {
            let held = held.clone();
            Arc::new(HeldSets { inner, held })
        })
    });
    let owner = |key: &str| {
        nodes
            .iter()
            .position(|node| Some(node.pool.self_url()) == node.pool.owner(key).as_deref())
    };
    type Remove = dyn Fn(&Group, &str) -> larder::Result<()>;
    let removals: [&Remove; 3] = [
        &|group, key| group.remove(&background(), key),
        &|group, key| group.remove_many(&background(), &[key, "other"]),
        &|group, _| group.clear(&background()),
    ];
    for (n, remove) in removals.iter().enumerate() {
        for remover in 0..3 {
            let key = format!("{n} {remover}");
            let setter = (owner(&key).expect("an owner") + 1) % 3;
            let now = version.fetch_add(1, Ordering::SeqCst) + 1;
            std::thread::scope(|scope| {
                let set = || {
                    nodes[setter]
                        .group
                        .set(&background(), &key, "old", SetOptions::new())
                };
                let set = scope.spawn(set);
                held.wait();
                version.fetch_add(1, Ordering::SeqCst);
                remove(&nodes[remover].group, &key).expect("all nodes are there");
                held.wait();
                set.join()
                    .expect("no panic")
                    .expect("the owner has applied it");
            });
            for node in &nodes {
                let value = node.group.get(&key).expect("a value");
                assert_eq!(value, format!("{key} {}", now + 1), "{n}, {remover}");
            }
            // A set that begins after the removal is kept.
            std::thread::scope(|scope| {
                scope.spawn(|| (held.wait(), held.wait()));
                nodes[setter]
                    .group
                    .set(&background(), &key, "new", SetOptions::new())
                    .expect("the owner is there");
            });
            for node in &nodes {
                assert_eq!(node.group.get(&key).expect("a value"), "new");
            }
        }
    }
}

/// With the other fields, the head of such a DELETE is over the limit of the server.
#[test]
fn key_whose_path_fills_a_head_is_removed_at_nodes_that_were_not_asked_before() {
    for client in clients() {
        for len in [2600, 2700, 2714] {
            let (nodes, _) = cluster(|builder| builder.http_client(client));
            let key = "%".repeat(len);
            let removed = nodes[0].group.remove(&background(), &key);
            removed.unwrap_or_else(|error| panic!("{client:?}, {len}: {error}"));
        }
    }
}
