//! Deadlines of requests, and the time to live of values.

use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use larder::http::PeerState;
use larder::pb::GetResponse;
use larder::{Context, ErrorKind, PeerPicker, ProtoMessage};

use super::raw_server::{RawServer, body, ok};
use super::{ask, get, peer_error, pool_of, pool_with};

/// Sends a byte every 10 ms, for longer than any deadline of these tests.
fn drip(head_first: bool) -> RawServer {
    RawServer::start(move |mut connection| {
        connection.read_head();
        let answer = ok(&vec![0; 100_000]);
        let head = answer.len() - 100_000;
        let at_once = if head_first { head } else { 0 };
        connection.send(&answer[..at_once]);
        for byte in &answer[at_once..] {
            if !connection.send(&[*byte]) {
                return;
            }
            thread::sleep(Duration::from_millis(10));
        }
    })
}

#[test]
fn exchange_timeout_is_not_extended_by_a_slow_stream_of_bytes() {
    for head_first in [false, true] {
        let server = drip(head_first);
        let pool = pool_with(&server.url, |builder| {
            builder.exchange_timeout(Duration::from_millis(200))
        });
        let begun = Instant::now();
        let text = peer_error(&pool, "k");
        assert!(text.contains("200ms"), "{text}");
        let took = begun.elapsed().as_millis();
        assert!((200..800).contains(&took), "{took} ms");
    }
}

#[test]
fn request_to_a_silent_peer_ends_at_the_exchange_timeout() {
    let server = RawServer::silent();
    let pool = pool_with(&server.url, |builder| {
        builder.exchange_timeout(Duration::from_millis(100))
    });
    let begun = Instant::now();
    peer_error(&pool, "k");
    let took = begun.elapsed().as_millis();
    assert!((100..700).contains(&took), "{took} ms");
}

#[test]
fn request_ends_at_an_earlier_deadline_of_the_caller() {
    for server in [RawServer::silent(), drip(true)] {
        let pool = pool_of(&server.url);
        let ctx = Context::background().with_timeout(Duration::from_millis(100));
        let begun = Instant::now();
        let error = ask(&pool, &ctx, "k").unwrap_err();
        let took = begun.elapsed().as_millis();
        assert_eq!(error.kind(), ErrorKind::DeadlineExceeded, "{error}");
        assert!((100..700).contains(&took), "{took} ms");
    }
}

#[test]
fn late_answers_of_a_previous_owner_do_not_make_it_count_as_down() {
    let server = RawServer::silent();
    let exchange_timeout = Duration::from_millis(25);
    let pool = pool_with(&server.url, |builder| {
        builder.exchange_timeout(exchange_timeout)
    });
    let peer = pool.pick_peer("k").expect("the key is the peer's");
    let begun = Instant::now();
    for _ in 0..4 {
        // A load waits this long for a previous owner.
        let ctx = Context::background().with_timeout(Duration::from_millis(10));
        let error = peer.get_many(&ctx, "colors", &["k"]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::DeadlineExceeded, "{error}");
    }
    let took = begun.elapsed();
    assert!(took > exchange_timeout, "{took:?}");
    assert_eq!(pool.peers()[0].state, PeerState::Healthy);
    // After time-outs of usual requests, the peer counts as down.
    let is_down = || {
        let ctx = Context::background().with_timeout(Duration::from_millis(10));
        ask(&pool, &ctx, "k").unwrap_err();
        pool.peers()[0].state == PeerState::Down
    };
    assert!((0..100).any(|_| is_down()));
}

#[test]
fn short_deadline_does_not_affect_the_next_request_of_the_connection() {
    // The first caller sets a short time-out on the socket. The second has ten times as long.
    let server = RawServer::start(|mut connection| {
        connection.read_head();
        connection.send(&ok(&body(b"quick")));
        connection.read_head();
        thread::sleep(Duration::from_millis(400));
        connection.send(&ok(&body(b"slow")));
    });
    let pool = pool_of(&server.url);
    let ctx = Context::background().with_timeout(Duration::from_millis(100));
    assert_eq!(ask(&pool, &ctx, "k").unwrap().value, "quick");
    assert_eq!(get(&pool, "k").unwrap().value, "slow");
    assert_eq!(server.connections(), 1);
}

#[test]
fn long_deadline_does_not_affect_the_next_request_of_the_connection() {
    let server = RawServer::start(|mut connection| {
        connection.read_head();
        connection.send(&ok(&body(b"quick")));
        connection.wait_for_close();
    });
    let pool = pool_of(&server.url);
    get(&pool, "k").unwrap();
    let ctx = Context::background().with_timeout(Duration::from_millis(100));
    let begun = Instant::now();
    let error = ask(&pool, &ctx, "k").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DeadlineExceeded);
    let took = begun.elapsed().as_millis();
    assert!((100..700).contains(&took), "{took} ms");
    assert_eq!(server.connections(), 1);
}

#[test]
fn deadline_is_not_overshot() {
    // The first exchange sets a time-out on the socket. The second one keeps it or sets another, which depends
    // on the difference.
    for (earlier, limit) in [(1000, 20), (70, 67), (310, 300), (330, 300), (1000, 700)] {
        let (earlier, limit) = (Duration::from_millis(earlier), Duration::from_millis(limit));
        let excess = || {
            let server = RawServer::start(|mut connection| {
                connection.read_head();
                connection.send(&ok(&body(b"quick")));
                connection.wait_for_close();
            });
            let pool = pool_of(&server.url);
            // On a slow machine, this request may fail.
            let _ = ask(&pool, &Context::background().with_timeout(earlier), "k");
            // Measures how much later than asked a wait of this length ends on this machine.
            let control = thread::spawn(move || {
                let begun = Instant::now();
                thread::sleep(limit);
                begun.elapsed()
            });
            let begun = Instant::now();
            let ctx = Context::background().with_deadline(begun + limit);
            let error = ask(&pool, &ctx, "k").unwrap_err();
            let took = begun.elapsed();
            assert_eq!(error.kind(), ErrorKind::DeadlineExceeded, "{error}");
            assert!(took >= limit, "{took:?}");
            took.saturating_sub(control.join().unwrap())
        };
        // A busy machine can be late more than once.
        let is_punctual = (0..15).any(|_| excess() <= Duration::from_millis(8));
        assert!(is_punctual, "{limit:?}");
    }
}

#[test]
fn ended_context_sends_no_request() {
    let server = RawServer::silent();
    let pool = pool_of(&server.url);
    let (ctx, canceller) = Context::background().with_cancel();
    canceller.cancel();
    assert_eq!(
        ask(&pool, &ctx, "k").unwrap_err().kind(),
        ErrorKind::Cancelled
    );
    let ctx = Context::background().with_timeout(Duration::ZERO);
    assert_eq!(
        ask(&pool, &ctx, "k").unwrap_err().kind(),
        ErrorKind::DeadlineExceeded
    );
    assert_eq!(server.connections(), 0);
}

#[test]
fn request_has_the_remaining_time_of_the_caller() {
    let server = RawServer::answering(ok(&body(b"x")));
    let pool = pool_of(&server.url);
    get(&pool, "k").unwrap();
    let ctx = Context::background().with_timeout(Duration::from_millis(300));
    ask(&pool, &ctx, "k").unwrap();
    let sent: Vec<u64> = server
        .heads()
        .iter()
        .filter_map(|head| {
            head.split("larder-timeout-ms: ")
                .nth(1)?
                .lines()
                .next()?
                .parse()
                .ok()
        })
        .collect();
    assert_eq!(sent[0], 1000, "{sent:?}");
    assert!((1..=300).contains(&sent[1]), "{sent:?}");
}

#[test]
fn age_of_a_response_is_read() {
    for (age_ms, age) in [
        (None, None),
        (Some(0), Some(Duration::ZERO)),
        (Some(1500), Some(Duration::from_millis(1500))),
        (Some(u64::MAX), Some(Duration::from_millis(u64::MAX))),
    ] {
        let message = GetResponse {
            value: Some(b"x"[..].into()),
            age_ms,
            ..GetResponse::default()
        };
        let server = RawServer::answering(ok(&message.encode().unwrap()));
        assert_eq!(get(&pool_of(&server.url), "k").unwrap().age, age);
    }
}

#[test]
fn remaining_ttl_takes_precedence_over_wall_clock_expiry() {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_nanos() as i64;
    let second = 1_000_000_000;
    let cases = [
        (None, None, None),
        (
            Some(now - 60 * second),
            Some(5 * second as u64),
            Some(5..=5),
        ),
        (Some(now + 60 * second), None, Some(50..=60)),
        (Some(now - 60 * second), None, Some(0..=0)),
        (None, Some(0), Some(0..=0)),
        (Some(0), None, None),
        (Some(i64::MIN), None, Some(0..=0)),
    ];
    for (expire, ttl_nanos, want) in cases {
        let message = GetResponse {
            value: Some(b"x"[..].into()),
            expire,
            ttl_nanos,
            ..GetResponse::default()
        };
        let server = RawServer::answering(ok(&message.encode().unwrap()));
        let answer = get(&pool_of(&server.url), "k").unwrap();
        assert_eq!(answer.value, "x");
        match (answer.ttl, want) {
            (None, None) => {}
            (Some(ttl), Some(range)) => assert!(range.contains(&ttl.as_secs()), "{ttl:?}"),
            (found, want) => panic!("{found:?} instead of {want:?}"),
        }
    }
}
