//! Idle connections that died, and peers that give them up.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::time::Duration;

use larder::http::HttpPool;

use super::raw_server::{RawServer, body, failure, key_of, keyed_body, ok, ok_with};
use super::{get, peer_error, pool_of, pool_with};

const GIVEN_UP: &str = "408 Request Timeout";

/// Opens `count` connections, which are idle afterwards.
fn open(pool: &HttpPool, count: usize) {
    std::thread::scope(|scope| {
        for n in 0..count {
            scope.spawn(move || get(pool, &format!("open-{n}")).unwrap());
        }
    });
}

#[test]
fn status_408_on_an_idle_connection_is_no_answer_and_the_request_is_sent_once_more() {
    for then in [ok(&body(b"#0f0")), failure(GIVEN_UP, "", "")] {
        let is_value = then.starts_with(b"HTTP/1.1 200");
        let server = RawServer::start(move |mut connection| {
            connection.read_head();
            if connection.number == 0 {
                connection.send(&ok(&body(b"#0f0")));
                connection.read_head();
                connection.send(&failure(GIVEN_UP, "Connection: close\r\n", ""));
            } else {
                connection.send(&then);
            }
        });
        let pool = pool_of(&server.url);
        assert_eq!(get(&pool, "green").unwrap().value, "#0f0");
        match get(&pool, "green") {
            Ok(answer) => assert!(is_value && answer.value == "#0f0"),
            Err(error) => assert!(!is_value && error.to_string().contains("408"), "{error}"),
        }
        assert_eq!(server.connections(), 2);
    }
}

#[test]
fn status_408_on_a_new_connection_is_an_error() {
    let server = RawServer::answering(failure(GIVEN_UP, "", ""));
    let text = peer_error(&pool_of(&server.url), "green");
    assert!(text.contains("408"), "{text}");
    assert_eq!(server.heads().len(), 1);
}

#[test]
fn one_timeout_closes_the_connections_that_a_middlebox_dropped() {
    const FROZEN: usize = 8;
    for headers in ["", "Server: larder\r\n"] {
        let together = Arc::new(Barrier::new(FROZEN));
        let opened = Arc::new(AtomicUsize::new(0));
        let frozen_requests = Arc::new(AtomicUsize::new(0));
        let counted = frozen_requests.clone();
        let server = RawServer::start(move |mut connection| {
            let number = opened.fetch_add(1, Ordering::SeqCst);
            while let Some(head) = connection.read_head() {
                let key = key_of(&head);
                let answer = keyed_body(&key, b"x");
                let is_first = key.starts_with("open");
                if is_first {
                    together.wait();
                } else if number < FROZEN {
                    counted.fetch_add(1, Ordering::SeqCst);
                    continue;
                }
                connection.send(&ok_with(headers, &answer));
            }
        });
        // `Auto` chooses its client by the header of the first answers, so all frozen connections are of one
        // client.
        let pool = pool_with(&server.url, |builder| {
            builder.exchange_timeout(Duration::from_secs(1))
        });
        open(&pool, FROZEN);
        let failed = (0..30)
            .filter(|n| get(&pool, &format!("key-{n}")).is_err())
            .count();
        assert!(failed <= 1, "{failed} time-outs, {headers:?}");
        assert_eq!(
            frozen_requests.load(Ordering::SeqCst),
            failed,
            "asked once each"
        );
    }
}

#[test]
fn slow_peer_is_not_asked_twice() {
    let server = RawServer::start(|mut connection| {
        connection.read_head();
        connection.send(&ok(&body(b"first")));
        connection.wait_for_close();
    });
    let pool = pool_with(&server.url, |builder| {
        builder.exchange_timeout(Duration::from_millis(300))
    });
    get(&pool, "k").unwrap();
    let text = peer_error(&pool, "k");
    assert!(text.contains("300ms"), "{text}");
    assert_eq!((server.connections(), server.heads().len()), (1, 2));
}
