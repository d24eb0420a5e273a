//! Batched requests. Each caller gets its own value, also when the batch fails.

use std::borrow::Cow;
use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex};
use std::time::{Duration, Instant};

use larder::http::{HttpPool, HttpPoolBuilder};
use larder::pb::{GetManyRequest, GetManyResponse};
use larder::{Context, ErrorKind, PeerPicker, ProtoMessage};
use quick_protobuf::{BytesReader, MessageRead};

use super::raw_server::{
    Connection, RawServer, body, failure, key_hash, key_of, keyed_body, ok, ok_with,
};
use super::{ask, get, pool_of, pool_with};
use crate::server::support::eventually;

/// A pool with one connection beside those for batches, so that the second of two requests is batched.
fn crowded(url: &str, options: impl FnOnce(HttpPoolBuilder) -> HttpPoolBuilder) -> HttpPool {
    pool_with(url, |builder| options(builder.max_connections_per_peer(3)))
}

/// The keys of a batched request.
fn keys_of(connection: &Connection) -> Vec<String> {
    let body = &connection.body;
    let request = GetManyRequest::from_reader(&mut BytesReader::from_bytes(body), body)
        .expect("a GetManyRequest");
    request.keys.iter().map(|key| key.to_string()).collect()
}

/// A response with each key as its own value, except those that are `missing`.
fn answer_to(keys: &[String], missing: impl Fn(&str) -> bool) -> Vec<u8> {
    let there = |key: &&String| !missing(key);
    let message = GetManyResponse {
        keyed_values: keys
            .iter()
            .filter(there)
            .map(|key| {
                let hash = key_hash("colors", key).to_le_bytes();
                Cow::Owned([&hash, key.as_bytes()].concat())
            })
            .collect(),
        found: Some(keys.iter().map(|key| u8::from(!missing(key))).collect()),
        ttl_nanos: Vec::new(),
        age_ms: Vec::new(),
        errors: Vec::new(),
        removals: None,
        ..GetManyResponse::default()
    };
    ok(&message.encode().expect("it encodes"))
}

/// Answers a GET with its key, and a POST by `post`, until `post` returns false.
fn echo(post: impl Fn(&mut Connection) -> bool + Send + Sync + 'static) -> RawServer {
    RawServer::start(move |mut connection| {
        while let Some(head) = connection.read_head() {
            if head.starts_with("POST ") {
                if !post(&mut connection) {
                    return;
                }
            } else {
                connection.send(&ok(&body(key_of(&head).as_bytes())));
            }
        }
    })
}

fn posts(server: &RawServer) -> usize {
    let heads = server.heads();
    heads
        .iter()
        .filter(|head| head.starts_with("POST "))
        .count()
}

/// Gets `rounds` keys on each of `threads` threads at once, and checks every value.
fn storm(pool: &HttpPool, threads: usize, rounds: usize) {
    let start = Barrier::new(threads);
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let start = &start;
            scope.spawn(move || {
                start.wait();
                for n in 0..rounds {
                    let key = format!("key-{thread}-{n}");
                    assert_eq!(get(pool, &key).expect("a value").value, key);
                }
            });
        }
    });
}

#[test]
fn concurrent_requests_are_batched_and_each_gets_its_own_value() {
    let most = Arc::new(AtomicUsize::new(0));
    let seen = most.clone();
    let server = echo(move |connection| {
        let keys = keys_of(connection);
        seen.fetch_max(keys.len(), Ordering::SeqCst);
        std::thread::sleep(Duration::from_millis(1));
        connection.send(&answer_to(&keys, |_| false))
    });
    storm(&crowded(&server.url, |builder| builder), 16, 20);
    assert!(most.load(Ordering::SeqCst) > 1, "nothing was batched");
    assert!(server.heads().len() < 320, "{}", server.heads().len());
}

#[test]
fn requests_of_few_threads_are_not_batched() {
    let server = echo(|connection| {
        let keys = keys_of(connection);
        connection.send(&answer_to(&keys, |_| false))
    });
    let pool = pool_with(&server.url, |builder| builder);
    storm(&pool, 8, 50);
    assert_eq!(posts(&server), 0);
    assert!(server.connections() <= 8, "{}", server.connections());
}

#[test]
fn batches_and_single_requests_use_the_same_connections() {
    let server = echo(|connection| {
        let keys = keys_of(connection);
        connection.send(&answer_to(&keys, |_| false));
        true
    });
    let pool = pool_of(&server.url);
    let peer = pool.pick_peer("a").expect("the key is the peer's");
    for _ in 0..3 {
        assert_eq!(get(&pool, "a").unwrap().value, "a");
        let ctx = Context::background();
        let answers = peer.get_many(&ctx, "colors", &["b", "c"]).unwrap();
        let values = answers.into_iter().map(|answer| answer.unwrap().value);
        assert!(values.eq(["b", "c"]));
    }
    assert_eq!((server.heads().len(), posts(&server)), (6, 3));
    assert_eq!(server.connections(), 1);
}

#[test]
fn keys_that_the_owner_has_not_cached_are_requested_one_by_one() {
    let lacks = |key: &str| key.ends_with(['1', '3', '5', '7', '9']);
    let server = echo(move |connection| {
        let keys = keys_of(connection);
        connection.send(&answer_to(&keys, lacks))
    });
    storm(&crowded(&server.url, |builder| builder), 8, 50);
    assert!(posts(&server) > 0);
}

#[test]
fn broken_connection_does_not_fail_32_batched_callers() {
    let asking = Arc::new(AtomicUsize::new(0));
    let killed = Arc::new(AtomicUsize::new(0));
    let (came, kills) = (asking.clone(), killed.clone());
    let server = echo(move |connection| {
        eventually(|| came.load(Ordering::SeqCst) >= 32);
        // The pause lets the last callers join the next batch.
        std::thread::sleep(Duration::from_millis(20));
        let keys = keys_of(connection);
        let answer = answer_to(&keys, |_| false);
        // The server sends nothing, then half a head, then all but a byte.
        let cut = [0, 10, answer.len() - 1];
        let kill = kills.fetch_add(1, Ordering::SeqCst);
        connection.send(&answer[..cut[kill % 3]]);
        false
    });
    let pool = crowded(&server.url, |builder| {
        builder.exchange_timeout(Duration::from_secs(20))
    });
    std::thread::scope(|scope| {
        for n in 0..32 {
            let (pool, asking) = (&pool, &asking);
            scope.spawn(move || {
                asking.fetch_add(1, Ordering::SeqCst);
                let key = format!("key-{n}");
                assert_eq!(get(pool, &key).expect("a value").value, key);
            });
        }
    });
    assert!(killed.load(Ordering::SeqCst) > 0, "nothing was batched");
}

#[test]
fn peer_without_batches_gets_single_requests_from_then_on() {
    let plain = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\nok";
    let answers = [
        failure("400 Bad Request", "", "bad request\n"),
        failure("404 Not Found", "", "404 page not found\n"),
        failure("405 Method Not Allowed", "Allow: GET\r\n", ""),
        ok(&body(b"colors")),
    ];
    for answer in answers {
        let server = echo(move |connection| connection.send(&answer));
        let pool = crowded(&server.url, |builder| builder);
        storm(&pool, 8, 5);
        let at_first = posts(&server);
        assert!((1..=8).contains(&at_first), "{at_first}");
        storm(&pool, 8, 20);
        assert_eq!(posts(&server), at_first);
    }
    // A response of a foreign or busy server affects only one batch.
    for answer in [
        plain.to_vec(),
        failure("503 Service Unavailable", "", "too many connections"),
    ] {
        let server = echo(move |connection| connection.send(&answer));
        storm(&crowded(&server.url, |builder| builder), 8, 20);
        assert!(posts(&server) > 8, "{}", posts(&server));
    }
}

/// A server of larder behind a proxy that refuses the first `refused` batches.
fn refusing(refused: usize, headers: &'static str) -> RawServer {
    let posts = AtomicUsize::new(0);
    RawServer::start(move |mut connection| {
        while let Some(head) = connection.read_head() {
            let key = key_of(&head);
            if head.starts_with("GET ") {
                connection.send(&ok_with(headers, &keyed_body(&key, key.as_bytes())));
            } else if posts.fetch_add(1, Ordering::SeqCst) < refused {
                connection.send(&failure("404 Not Found", "", "no such page"));
            } else {
                let keys = keys_of(&connection);
                connection.send(&answer_to(&keys, |_| false));
            }
        }
    })
}

/// Whether a batch is sent and brings values.
fn batch_works(pool: &HttpPool) -> bool {
    let peer = pool.pick_peer("a").expect("the key is the peer's");
    let answers = peer.get_many(&Context::background(), "colors", &["a", "b"]);
    answers.expect("no failure").iter().all(Option::is_some)
}

#[test]
fn batches_are_sent_again_after_an_answer_of_larder_itself() {
    let server = refusing(1, "Server: larder\r\n");
    let pool = pool_of(&server.url);
    assert!(!batch_works(&pool), "refused");
    assert!(!batch_works(&pool), "not sent");
    assert_eq!(posts(&server), 1);
    get(&pool, "a").unwrap();
    assert!(batch_works(&pool));
}

#[test]
fn batches_that_are_refused_again_are_not_sent_after_every_answer() {
    let server = refusing(usize::MAX, "Server: larder\r\n");
    let pool = pool_of(&server.url);
    for _ in 0..10 {
        assert!(!batch_works(&pool));
        get(&pool, "a").unwrap();
    }
    assert_eq!(posts(&server), 2);
}

#[test]
fn batches_are_sent_again_after_the_list_of_peers_is_set() {
    let server = refusing(1, "");
    let pool = pool_of(&server.url);
    assert!(!batch_works(&pool));
    get(&pool, "a").unwrap();
    assert!(!batch_works(&pool), "not sent");
    pool.set([&server.url]).unwrap();
    assert!(batch_works(&pool));
}

#[test]
fn silent_peer_is_not_asked_key_by_key_after_a_batch() {
    let server = RawServer::silent();
    let pool = crowded(&server.url, |builder| {
        builder.exchange_timeout(Duration::from_millis(300))
    });
    let start = Barrier::new(8);
    std::thread::scope(|scope| {
        for n in 0..8 {
            let (pool, start) = (&pool, &start);
            scope.spawn(move || {
                start.wait();
                let error = get(pool, &format!("key-{n}")).expect_err("silence");
                assert_eq!(error.kind(), ErrorKind::Peer, "{error}");
            });
        }
    });
    let keys = ["a", "b", "c"];
    let peer = pool.pick_peer("a").expect("the key is the peer's");
    let error = peer.get_many(&Context::background(), "colors", &keys);
    assert_eq!(error.expect_err("silence").kind(), ErrorKind::Peer);
    let heads = server.heads();
    assert!(heads.len() < 8, "batched: {}", heads.len());
}

/// Calls `ask` on `threads` threads at once, until the server has got a batch.
fn until_batched(server: &RawServer, threads: usize, ask: impl Fn(usize) + Sync) {
    for _ in 0..100 {
        let start = Barrier::new(threads);
        std::thread::scope(|scope| {
            for thread in 0..threads {
                let (start, ask) = (&start, &ask);
                scope.spawn(move || {
                    start.wait();
                    ask(thread);
                });
            }
        });
        if posts(server) > 0 {
            return;
        }
    }
    panic!("nothing was batched");
}

#[test]
fn unknown_group_is_the_error_of_all_batched_callers() {
    let headers = "larder-error: unknown-group\r\n";
    let server = RawServer::answering(failure("404 Not Found", headers, "no group"));
    let pool = crowded(&server.url, |builder| builder);
    until_batched(&server, 8, |thread| {
        let error = get(&pool, &format!("{thread}")).expect_err("no group");
        assert_eq!(error.kind(), ErrorKind::UnknownGroup);
    });
}

#[test]
fn batched_callers_return_at_their_own_deadlines() {
    // Batches hang. Their waiters and leaders still return at their deadlines.
    let server = echo(|connection| {
        connection.wait_for_close();
        false
    });
    let pool = crowded(&server.url, |builder| {
        builder.exchange_timeout(Duration::from_secs(20))
    });
    let limit = Duration::from_millis(200);
    let failed = AtomicUsize::new(0);
    until_batched(&server, 12, |thread| {
        let begun = Instant::now();
        let ctx = Context::background().with_timeout(limit);
        if let Err(error) = ask(&pool, &ctx, &format!("{thread}")) {
            assert_eq!(error.kind(), ErrorKind::DeadlineExceeded, "{error}");
            failed.fetch_add(1, Ordering::SeqCst);
        }
        assert!(begun.elapsed() < 5 * limit, "{:?}", begun.elapsed());
    });
    assert!(failed.into_inner() > 0, "no batched caller timed out");
}

#[test]
fn batch_has_at_most_max_batch_keys() {
    let sizes = Arc::new(Mutex::new(HashSet::new()));
    let seen = sizes.clone();
    let server = echo(move |connection| {
        let keys = keys_of(connection);
        seen.lock().expect("no panic").insert(keys.len());
        std::thread::sleep(Duration::from_millis(1));
        connection.send(&answer_to(&keys, |_| false))
    });
    let pool = crowded(&server.url, |builder| builder.max_batch_keys(3));
    storm(&pool, 24, 10);
    let sizes = sizes.lock().expect("no panic");
    assert!(
        sizes.contains(&3) && sizes.iter().all(|&size| size <= 3),
        "{sizes:?}"
    );
}
