//! The peer that is picked for a key, and the effect of a new list of peers.

use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use larder::consistent_hash::Preset;
use larder::http::{HttpPool, HttpPoolBuilder, Transport, TransportRequest, TransportResponse};
use larder::{Context, Error, ErrorKind, Peer, PeerPicker, PeerSet, ProtoGetter, Registry, Result};

use super::raw_server::{RawServer, body, ok};
use super::{client, get, pool_of};

const NODES: [&str; 3] = [
    "http://10.0.0.1:8080",
    "http://10.0.0.2:8080",
    "http://10.0.0.3:8080",
];

/// A transport whose error text is the URL of its peer.
struct Named(String);

impl Transport for Named {
    fn round_trip(&self, _: &Context, _: TransportRequest<'_>) -> Result<TransportResponse> {
        Err(Error::new(ErrorKind::Peer, self.0.as_str()))
    }
}

fn builder(self_url: &str) -> HttpPoolBuilder {
    HttpPool::builder(self_url)
        .registry(&Registry::new())
        .transport(|url, _| Arc::new(Named(url.to_owned())))
}

fn url_of(peer: Option<Arc<dyn ProtoGetter>>) -> Option<String> {
    let request = larder::pb::GetRequest {
        group: "g".into(),
        key: "k".into(),
    };
    let answer = peer?.get(&Context::background(), &request);
    Some(answer.expect_err("the URL").to_string())
}

#[test]
fn owners_equal_those_of_go_clusters() {
    let keys = [
        "foo", "bar", "", "12345", "user:42", "Ben", "key-0", "a b/c,d",
    ];
    for (preset, owners) in [
        (Preset::Golang, [1, 2, 1, 3, 1, 2, 3, 1]),
        (Preset::Mailgun, [2, 2, 2, 3, 1, 3, 2, 3]),
        (Preset::GroupcacheGo, [1, 1, 1, 3, 3, 1, 1, 3]),
    ] {
        let pool = builder(NODES[0]).preset(preset).build().unwrap();
        pool.set(NODES).unwrap();
        for (key, owner) in keys.iter().zip(owners) {
            let owner = NODES[owner - 1];
            assert_eq!(pool.owner(key).as_deref(), Some(owner), "{preset:?} {key}");
            let asked = url_of(pool.pick_peer(key));
            let expected = (owner != NODES[0]).then_some(owner);
            assert_eq!(asked.as_deref(), expected, "{preset:?} {key}");
        }
    }
}

#[test]
fn replica_is_the_next_owner_and_there_is_only_one() {
    for builder in [builder(NODES[0]), builder(NODES[0]).replicas(50)] {
        check_replicas(&builder.build().unwrap());
    }
}

fn check_replicas(pool: &HttpPool) {
    let (mut own, mut alone, mut both) = (0, 0, 0);
    for n in 0..300 {
        let key = format!("key-{n}");
        pool.set(NODES).unwrap();
        let owner = pool.owner(&key).unwrap();
        let asked: Vec<_> = (0..4)
            .map(|attempt| url_of(pool.pick_replica(&key, attempt)))
            .collect();
        pool.set(NODES.iter().filter(|url| **url != owner)).unwrap();
        let next = pool.owner(&key).unwrap();
        let expected = if owner == NODES[0] {
            own += 1;
            [None, None]
        } else if next == NODES[0] {
            alone += 1;
            [Some(owner), None]
        } else {
            both += 1;
            [Some(owner), Some(next)]
        };
        assert_eq!(asked[..2], expected, "{key}");
        assert_eq!(asked[2..], [None, None], "{key}");
    }
    assert!(own > 0 && alone > 0 && both > 0);
}

#[test]
fn keys_follow_the_id_and_not_the_address() {
    let peers = |host: &str| {
        let peer = |n| Peer::new(format!("http://{host}.{n}:8080")).with_id(format!("node-{n}"));
        [1, 2, 3].map(peer)
    };
    let pool = builder("http://10.0.0.1:8080")
        .id("node-1")
        .build()
        .unwrap();
    let owners = |pool: &HttpPool| -> Vec<_> {
        let owner = |n| pool.owner(&format!("key-{n}")).unwrap();
        let digit = |url: String| url.strip_suffix(":8080").unwrap().chars().last();
        (0..300).map(|n| digit(owner(n))).collect()
    };
    pool.set(peers("10.0.0")).unwrap();
    let before = owners(&pool);
    pool.set(peers("192.168.7")).unwrap();
    assert_eq!(owners(&pool), before);
    let own = (0..300)
        .map(|n| format!("key-{n}"))
        .find(|key| pool.owner(key).unwrap().contains(".1:"));
    assert!(
        pool.pick_peer(&own.unwrap()).is_none(),
        "this process knows its id at another address"
    );
}

#[test]
fn weight_gives_more_keys_and_a_ring_refuses_it() {
    let heavy = || [Peer::new(NODES[0]), Peer::new(NODES[1]).with_weight(3)];
    let pool = builder(NODES[0]).build().unwrap();
    pool.set(heavy()).unwrap();
    let keys = 0..2000;
    let owned = keys.filter(|n| pool.pick_peer(&format!("key-{n}")).is_some());
    let owned = owned.count();
    assert!(
        (1400..1600).contains(&owned),
        "{owned} of 2000 at the node of weight 3"
    );

    let ring = builder(NODES[0]).preset(Preset::Golang).build().unwrap();
    let error = ring.set(heavy()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidPeer);
    assert!(ring.peers().is_empty());
}

#[test]
fn next_peer_is_in_the_zone_of_this_process() {
    let zones = ["east", "west", "west", "east", "west"];
    let peers = || {
        let peer = |(n, zone)| Peer::new(format!("http://10.0.0.{n}:8080")).with_zone(zone);
        zones.into_iter().enumerate().map(peer)
    };
    let pool = builder("http://10.0.0.0:8080").build().unwrap();
    pool.set(peers()).unwrap();
    let mut seen = 0;
    for key in (0..200).map(|n| format!("key-{n}")) {
        let Some(owner) = url_of(pool.pick_peer(&key)) else {
            continue;
        };
        // This process and 10.0.0.3 are the only nodes of its zone.
        match url_of(pool.pick_replica(&key, 1)).as_deref() {
            None => {}
            Some("http://10.0.0.3:8080") => seen += 1,
            Some(other) => panic!("{key}: {other} of another zone is the next after {owner}"),
        }
    }
    assert!(seen > 20, "{seen}");
}

/// A replica that is a Go process would ask the owner, which has just failed.
#[test]
fn cluster_with_go_peers_has_no_failover_by_default() {
    for (preset, failover, expected) in [
        (Preset::Larder, None, true),
        (Preset::Larder, Some(false), false),
        (Preset::Golang, None, false),
        (Preset::Mailgun, None, false),
        (Preset::GroupcacheGo, None, false),
        (Preset::Golang, Some(true), true),
    ] {
        let mut builder = builder("http://10.0.0.9:8080").preset(preset);
        if let Some(failover) = failover {
            builder = builder.failover(failover);
        }
        let pool = builder.build().unwrap();
        pool.set(NODES).unwrap();
        assert!(pool.pick_replica("foo", 0).is_some(), "{preset:?}");
        let second = pool.pick_replica("foo", 1);
        assert_eq!(second.is_some(), expected, "{preset:?} {failover:?}");
    }
}

#[test]
fn without_peers_this_process_owns_every_key() {
    let pool = builder(NODES[0]).build().unwrap();
    assert!(pool.pick_peer("k").is_none());
    assert!(pool.pick_replica("k", 1).is_none());
    assert_eq!(pool.owner("k"), None);
    pool.set([NODES[1]]).unwrap();
    assert!(pool.pick_peer("k").is_some());
    pool.set([NODES[0]]).unwrap();
    assert!(pool.pick_peer("k").is_none());
}

#[test]
fn this_process_is_found_in_the_list_by_any_form_of_its_url() {
    for (own, listed) in [
        ("http://10.0.0.1:8080/", "http://10.0.0.1:8080"),
        ("http://cache-1", "http://Cache-1:80/"),
        ("http://[::1]:8080", "http://[0:0:0::1]:8080/"),
    ] {
        let pool = builder(own).build().unwrap();
        pool.set([listed]).unwrap();
        assert!(pool.pick_peer("k").is_none(), "{own} {listed}");
        assert_eq!(pool.owner("k").as_deref(), Some(listed));
        assert_eq!(pool.self_url(), own);
    }
}

/// Discovery that fails can return an empty list. A process must not take all keys for its own then.
#[test]
fn empty_list_changes_nothing() {
    let pool = builder(NODES[0]).build().unwrap();
    for urls in [Vec::new(), NODES.to_vec()] {
        if !urls.is_empty() {
            pool.set(&urls).unwrap();
        }
        let error = pool.set([""; 0]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NoPeers);
        assert_eq!(pool.urls(), urls);
    }
    pool.set(&NODES[..1]).unwrap();
    assert_eq!(pool.owner("k").as_deref(), Some(NODES[0]));
}

#[test]
fn invalid_list_changes_nothing() {
    let pool = builder(NODES[0]).build().unwrap();
    pool.set(NODES).unwrap();
    for (list, kind, named) in [
        (["http://a", "htp://b"], ErrorKind::InvalidPeer, "htp://b"),
        (["http://a", "https://b"], ErrorKind::InvalidPeer, "TLS"),
        (
            ["http://a", "http://A:80/"],
            ErrorKind::DuplicatePeer,
            "http://A:80/",
        ),
    ] {
        let peers: &dyn PeerSet = &pool;
        let error = peers.set_peers(&list.map(Peer::from)).unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(named), "{error}");
        assert_eq!(pool.urls(), NODES);
    }
    for (peer, kind, named) in [
        (
            Peer::new("http://a").with_id(NODES[0]),
            ErrorKind::DuplicatePeer,
            NODES[0],
        ),
        (
            Peer::new("http://a").with_id(""),
            ErrorKind::InvalidPeer,
            "id",
        ),
        (
            Peer::new("http://a").with_weight(0),
            ErrorKind::InvalidPeer,
            "weight",
        ),
    ] {
        let error = pool.set([Peer::new(NODES[0]), peer]).unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(named), "{error}");
        assert_eq!(pool.urls(), NODES);
    }
}

#[test]
fn invalid_option_is_an_error_and_registers_nothing() {
    let registry = Registry::new();
    let builder = || HttpPool::builder(NODES[0]).registry(&registry);
    for (builder, kind) in [
        (builder().base_path("cache"), ErrorKind::InvalidBasePath),
        (builder().replicas(0), ErrorKind::InvalidOption),
        (
            builder().hash_fn(|_| 0).replicas(1 << 20),
            ErrorKind::InvalidOption,
        ),
        (
            builder().connect_timeout(Duration::ZERO),
            ErrorKind::InvalidOption,
        ),
        (
            builder().exchange_timeout(Duration::MAX),
            ErrorKind::InvalidOption,
        ),
        (builder().max_value_size(0), ErrorKind::InvalidOption),
        (builder().max_batch_bytes(0), ErrorKind::InvalidOption),
        (
            HttpPool::builder("10.0.0.1").registry(&registry),
            ErrorKind::InvalidPeer,
        ),
    ] {
        assert_eq!(builder.build().unwrap_err().kind(), kind);
    }
    let _first = builder().build().unwrap();
    let error = builder().build().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyRegistered);
}

#[test]
fn custom_hash_determines_the_owners() {
    // The points of node 5 are 05 and 15, those of node 8 are 08 and 18.
    let hash = |bytes: &[u8]| {
        let digits = bytes.iter().filter(|c| c.is_ascii_digit());
        digits.fold(0, |n, c| n * 10 + u64::from(c - b'0'))
    };
    let pool = builder("http://a")
        .hash_fn(hash)
        .replicas(2)
        .build()
        .unwrap();
    pool.set(["http://n5", "http://n8"]).unwrap();
    for (key, owner) in [
        ("3", "http://n5"),
        ("6", "http://n8"),
        ("16", "http://n8"),
        ("19", "http://n5"),
    ] {
        assert_eq!(pool.owner(key).as_deref(), Some(owner), "{key}");
    }
}

#[test]
fn peer_that_stays_keeps_its_connections() {
    let server = RawServer::answering(ok(&body(b"x")));
    let pool = pool_of(&server.url);
    get(&pool, "k").unwrap();
    pool.set(["http://127.0.0.1:2", &server.url]).unwrap();
    pool.set([&server.url]).unwrap();
    get(&pool, "k").unwrap();
    assert_eq!(server.connections(), 1);
}

#[test]
fn request_in_flight_succeeds_after_the_removal_of_its_peer() {
    let (arrived, has_arrived) = mpsc::channel();
    let (release, released) = mpsc::channel::<()>();
    let (arrived, released) = (Mutex::new(arrived), Mutex::new(released));
    let server = RawServer::start(move |mut connection| {
        connection.read_head();
        arrived.lock().unwrap().send(()).unwrap();
        released
            .lock()
            .unwrap()
            .recv_timeout(Duration::from_secs(20))
            .unwrap();
        connection.send(&ok(&body(b"late")));
        connection.wait_for_close();
    });
    let pool = pool_of(&server.url);
    thread::scope(|scope| {
        let request = scope.spawn(|| get(&pool, "k"));
        has_arrived.recv_timeout(Duration::from_secs(20)).unwrap();
        pool.set([pool.self_url()]).unwrap();
        release.send(()).unwrap();
        assert_eq!(request.join().unwrap().unwrap().value, "late");
    });
}

#[test]
fn concurrent_set_calls_leave_one_complete_list() {
    let pool = builder("http://self").build().unwrap();
    let lists: Vec<Vec<String>> = (0..4)
        .map(|list| (0..5).map(|n| format!("http://peer-{list}-{n}")).collect())
        .collect();
    thread::scope(|scope| {
        for list in &lists {
            let pool = &pool;
            scope.spawn(move || (0..20).for_each(|_| pool.set(list).unwrap()));
        }
    });
    let peers = pool.urls();
    assert!(lists.contains(&peers), "{peers:?}");
    let asked = url_of(pool.pick_peer("k")).unwrap();
    assert_eq!(pool.owner("k"), Some(asked));
}

/// Go's client opens a connection for each request in flight.
#[test]
fn server_for_go_peers_takes_more_connections_from_an_address() {
    for (preset, expected) in [
        (Preset::Larder, "max_connections_per_addr: 32,"),
        (Preset::Golang, "max_connections_per_addr: 128,"),
        (Preset::Mailgun, "max_connections_per_addr: 128,"),
        (Preset::GroupcacheGo, "max_connections_per_addr: 128,"),
    ] {
        let pool = builder(NODES[0]).preset(preset).build().unwrap();
        let server = format!("{:?}", pool.server());
        assert!(server.contains(expected), "{preset:?}: {server}");
    }
}

#[test]
fn list_of_thousands_of_peers_is_read_as_a_whole_at_the_start() {
    let server = RawServer::start(|mut connection| {
        while let Some(head) = connection.read_head() {
            let host = head
                .split("host: ")
                .nth(1)
                .and_then(|rest| rest.lines().next());
            let others = (0..3000).map(|n| format!("http://10.0.{}.{}:8080\n", n / 250, n % 250));
            let own = format!("http://{} weight=60000\n", host.expect("a host"));
            let page: String = others.chain([own]).collect();
            let head = format!(
                "HTTP/1.1 200 OK\r\nServer: larder\r\nContent-Length: {}",
                page.len()
            );
            connection.send(format!("{head}\r\n\r\n{page}").as_bytes());
        }
    });
    let pool = HttpPool::builder(NODES[0])
        .registry(&Registry::new())
        .http_client(client())
        .exchange_timeout(Duration::from_secs(20))
        .build()
        .unwrap();
    pool.set([NODES[0], &server.url]).unwrap();
    let begun = Instant::now();
    let had = |n: usize| pool.previous_owner(&format!("key-{n}")).is_some();
    // By that list, the server owned most keys before.
    while !(0..20).any(had) {
        assert!(
            begun.elapsed() < Duration::from_secs(20),
            "the list is not read"
        );
        thread::sleep(Duration::from_millis(1));
    }
}
