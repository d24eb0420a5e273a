//! Tests peers that do not answer, answer late or wrongly, or have dead connections.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex};
use std::time::{Duration, Instant};

use larder::http::HttpClient;
use larder::{BoxError, Context, Sink};

use crate::cluster::{Node, Setup, lateness, socket_lateness};
use crate::common::{PATIENCE, millis, seconds, start, timed, within};
use crate::process::Process;
use crate::raw_server::{RawServer, failure, key_of, keyed_body, ok_with};

/// The name of the group for which `keyed_body` makes answers.
const COLORS: &str = "colors";

/// The field that only larder's server sends.
const SERVER_FIELD: &str = "Server: larder\r\n";

/// The answer of larder's server to a request for this key.
fn answer(key: &str) -> Vec<u8> {
    ok_with(SERVER_FIELD, &keyed_body(key, b"from the peer"))
}

/// A node whose requests to peers time out after `exchange`.
fn caller(exchange: Duration) -> Node {
    caller_with(exchange, |_, _, dest| Ok(dest.set_str("loaded here")?))
}

fn caller_with(
    exchange: Duration,
    getter: impl Fn(&Context, &str, &mut dyn Sink) -> Result<(), BoxError> + Send + Sync + 'static,
) -> Node {
    let setup = Setup {
        name: COLORS,
        pool: Box::new(move |pool| pool.connect_timeout(exchange).exchange_timeout(exchange)),
        ..Setup::default()
    };
    setup.start(getter)
}

#[test]
fn at_most_one_get_waits_for_connections_that_a_middlebox_forgot() {
    // `Auto` would not use the old connections again: it changes to the direct client after the first answers.
    let check = |client| {
        let waited = waits_for_forgotten_connections(client);
        assert!(
            waited <= 1,
            "{client:?}: {waited} of 30 gets waited for a time-out"
        );
    };
    check(HttpClient::Direct);
    #[cfg(feature = "ureq")]
    check(HttpClient::Ureq);
}

/// Opens connections that are silent after their first answer, as if a middlebox between the nodes had
/// forgotten them. Returns how many of 30 gets wait for the time-out of such a connection.
fn waits_for_forgotten_connections(client: HttpClient) -> usize {
    const FROZEN: usize = 8;
    let together = Arc::new(Barrier::new(FROZEN));
    let server = RawServer::start(move |mut connection| {
        let mut asked = 0;
        while let Some(head) = connection.read_head() {
            asked += 1;
            let is_old = connection.number < FROZEN;
            if is_old && asked == 1 {
                // No answer is sent before each request has a connection of its own.
                together.wait();
            } else if is_old {
                connection.wait_for_close();
                return;
            }
            connection.send(&answer(&key_of(&head)));
        }
    });
    let exchange = millis(500);
    let setup = Setup {
        name: COLORS,
        pool: Box::new(move |pool| pool.exchange_timeout(exchange).http_client(client)),
        ..Setup::default()
    };
    let node = setup.start(|_, _, dest| Ok(dest.set_str("loaded here")?));
    node.pool.set([&server.url]).expect("a URL");
    let calls: Vec<_> = (0..FROZEN)
        .map(|n| {
            let group = node.group.clone();
            start(move || group.get(&format!("early{n}")).map(drop))
        })
        .collect();
    for call in calls {
        call.end().expect("a value");
    }
    let mut waited = 0;
    for n in 0..30 {
        let key = format!("later{n}");
        let (took, value) = timed(|| node.group.get(&key));
        value.expect("a value");
        waited += usize::from(took >= exchange);
    }
    waited
}

#[test]
fn slow_peer_is_asked_once_for_a_key() {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let noted = asked.clone();
    let server = RawServer::start(move |mut connection| {
        while let Some(head) = connection.read_head() {
            let key = key_of(&head);
            noted.lock().expect("no panic").push(key.clone());
            if key.starts_with("slow") {
                connection.wait_for_close();
                return;
            }
            connection.send(&answer(&key));
        }
    });
    let node = caller(millis(200));
    node.pool.set([&server.url]).expect("a URL");
    for n in 0..5 {
        node.group.get(&format!("fast{n}")).expect("a value");
        let slow = format!("slow{n}");
        assert_eq!(node.group.get(&slow).expect("a value"), "loaded here");
        let asked = asked.lock().expect("no panic");
        assert_eq!(
            asked.iter().filter(|key| **key == slow).count(),
            1,
            "{asked:?}"
        );
    }
}

#[test]
fn get_many_with_a_silent_owner_ends_within_two_exchange_timeouts() {
    let silent = RawServer::silent();
    let exchange = millis(600);
    let loaded = Arc::new(Mutex::new(Vec::new()));
    let noted = loaded.clone();
    let node = caller_with(exchange, move |_, key, dest| {
        dest.set_str("loaded here")?;
        let load = (key.to_owned(), Instant::now());
        noted.lock().expect("no panic").push(load);
        Ok(())
    });
    // As a control, the node gets as many keys, and owns all of them.
    let own: Vec<String> = (0..4).map(|n| format!("first{n}")).collect();
    let (control, _) = timed(|| node.group.get_many(&within(millis(2500)), &own));
    loaded.lock().expect("no panic").clear();
    node.pool.set([&silent.url, &node.url]).expect("URLs");
    let keys: Vec<String> = (0..12)
        .map(|n| node.key_of(&silent.url, &format!("theirs{n} ")))
        .chain((0..4).map(|n| node.key_of(&node.url, &format!("own{n} "))))
        .collect();
    let ctx = within(millis(2500));
    let start = Instant::now();
    let (late, (took, values)) = lateness(exchange, || timed(|| node.group.get_many(&ctx, &keys)));
    for (key, value) in keys.iter().zip(values) {
        assert_eq!(value.expect(key), "loaded here");
    }
    assert!(
        took <= 2 * exchange + millis(100) + 10 * late,
        "{took:?}, control {late:?}"
    );
    // The node's own keys are loaded at once, not after the wait for the owner of the others.
    for (key, at) in &loaded.lock().expect("no panic")[..4] {
        assert!(key.starts_with("own"), "{key} was loaded first");
        let took = *at - start;
        assert!(
            took <= millis(10) + 10 * (late + control),
            "{key}: {took:?}, control {control:?}"
        );
    }

    // If the deadline is before the time-out of the exchange, the node's own keys are loaded nevertheless.
    let keys = keys.iter().map(|key| format!("{key}again"));
    let keys: Vec<String> = keys
        .filter(|key| node.pool.owner(key).as_ref() == Some(&node.url))
        .collect();
    let theirs = (0..12).map(|n| node.key_of(&silent.url, &format!("more{n} ")));
    let all: Vec<String> = theirs.chain(keys.iter().cloned()).collect();
    let values = node.group.get_many(&within(millis(300)), &all);
    for (key, value) in all.iter().zip(values) {
        if keys.contains(key) {
            assert_eq!(value.expect(key), "loaded here");
        }
    }
}

#[test]
fn get_many_whose_next_peers_are_silent_too_ends_within_two_exchange_timeouts() {
    let silent = [(); 3].map(|()| RawServer::silent());
    let exchange = millis(600);
    let node = caller(exchange);
    let [owner, ..] = &silent;
    let urls: Vec<&String> = silent.iter().map(|peer| &peer.url).collect();
    node.pool
        .set(urls.into_iter().chain([&node.url]))
        .expect("URLs");
    // The first peer owns all keys. The next owner of a key is the second peer, the third peer or the node
    // itself, each for about a third of the keys.
    let keys: Vec<String> = (0..24)
        .map(|n| node.key_of(&owner.url, &format!("key{n} ")))
        .collect();
    for ctx in [within(seconds(10)), Context::background()] {
        let many = || timed(|| node.group.get_many(&ctx, &keys));
        let (late, (took, values)) = lateness(exchange, many);
        for (key, value) in keys.iter().zip(values) {
            assert_eq!(value.expect(key), "loaded here");
        }
        assert!(
            took <= 2 * exchange + millis(100) + 10 * late,
            "{took:?}, control {late:?}"
        );
        node.group.clear_local();
    }
}

#[test]
fn batches_to_a_peer_resume_after_one_wrong_answer() {
    let (posts, refuse) = (
        Arc::new(AtomicUsize::new(0)),
        Arc::new(AtomicBool::new(true)),
    );
    let (counted, refuses) = (posts.clone(), refuse.clone());
    let server = RawServer::start(move |mut connection| {
        while let Some(head) = connection.read_head() {
            if head.starts_with("POST") {
                counted.fetch_add(1, Ordering::SeqCst);
                // A proxy sends such a page. After it, the node sends no more batches.
                connection.send(&failure(
                    "404 Not Found",
                    "Content-Type: text/html\r\n",
                    "no",
                ));
            } else if refuses.load(Ordering::SeqCst) {
                connection.send(&failure("502 Bad Gateway", "", "no"));
            } else {
                connection.send(&answer(&key_of(&head)));
            }
        }
    });
    let node = caller(PATIENCE);
    node.pool.set([&server.url]).expect("a URL");
    let many = |name: &str| {
        let keys = [0, 1, 2].map(|n| format!("{name}{n}"));
        let values = node.group.get_many(&Context::background(), &keys);
        assert!(values.iter().all(Result::is_ok));
        posts.load(Ordering::SeqCst)
    };
    assert_eq!(many("first"), 1);
    assert_eq!(
        many("second"),
        1,
        "a batch was sent to a peer that refused one"
    );
    node.pool.set([&server.url]).expect("a URL");
    assert_eq!(
        many("third"),
        2,
        "no batch was sent after the list of peers was set"
    );
    assert_eq!(many("fourth"), 2);
    refuse.store(false, Ordering::SeqCst);
    node.group.get("single").expect("a value of the peer");
    assert_eq!(
        many("fifth"),
        3,
        "no batch was sent after an answer of larder's server"
    );
}

#[test]
fn caller_of_a_hung_peer_returns_at_its_deadline() {
    let silent = RawServer::silent();
    // The exchange time-out is longer than the test. After a time-out, the node would not ask the peer again.
    let node = caller(seconds(60));
    node.pool.set([&silent.url]).expect("a URL");
    for limit in [20, 50, 100, 300, 700].map(millis) {
        let mut overshoots = Vec::new();
        for round in 0..5 {
            let key = format!("{limit:?} {round}");
            let ctx = within(limit);
            let get = || timed(|| node.group.get_with(&ctx, &key));
            let (late, (took, result)) = lateness(limit, get);
            let error = result.expect_err("the peer is silent");
            assert_eq!(error.kind(), larder::ErrorKind::DeadlineExceeded);
            overshoots.push(took.saturating_sub(limit + 4 * late));
        }
        overshoots.sort();
        let most = millis(8) + socket_lateness();
        assert!(
            overshoots[2] <= most,
            "{limit:?}: {overshoots:?} over it, more than {most:?}"
        );
    }
}

#[test]
fn getter_that_takes_longer_than_an_exchange_runs_once_for_all_callers() {
    let mut nodes = [(); 3].map(|()| Process::start("exchange_ms=1000 connect_ms=1000"));
    let urls = nodes.each_ref().map(|node| node.url.clone()).join(" ");
    for node in &mut nodes {
        assert_eq!(node.ask(&format!("peers {urls}")), "ready");
    }
    let mut herds = |key: &str| {
        timed(|| {
            for node in &mut nodes {
                node.begin(&format!("herd 34 {key}"));
            }
            for node in &mut nodes {
                assert_eq!(node.line(), "34");
            }
        })
    };
    // As a control, the same callers get a key whose getter returns at once.
    let (control, ()) = herds("k");
    let key = "slow:3000:k";
    let (late, (took, ())) = lateness(seconds(3), || herds(key));
    let loads: Vec<u64> = nodes
        .iter_mut()
        .map(|node| node.number(&format!("loads {key}")))
        .collect();
    assert_eq!(loads.iter().sum::<u64>(), 1, "{loads:?}");
    assert!(
        took <= millis(3200) + 10 * late + 2 * control,
        "{took:?}, control {late:?} and {control:?}"
    );
}
