//! The connection that a request uses, and retries when an idle connection was closed.

use std::net::TcpListener;
use std::process::Command;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use larder::{Context, ErrorKind};

use super::raw_server::{RawServer, body, failure, key_of, ok};
use super::{ask, get, peer_error, pool_of, pool_with};
use crate::server::support::eventually;

#[test]
fn requests_reuse_one_connection() {
    let server = RawServer::answering(ok(&body(b"#f00")));
    let pool = pool_of(&server.url);
    for _ in 0..3 {
        assert_eq!(get(&pool, "red").unwrap().value, "#f00");
    }
    assert_eq!(server.connections(), 1);
}

#[test]
fn connection_is_reused_after_an_error_answer() {
    let text = "no such color\n".repeat(100);
    let headers = "larder-error: not-found\r\n";
    let server = RawServer::answering(failure("404 Not Found", headers, &text));
    let pool = pool_of(&server.url);
    for _ in 0..3 {
        assert!(get(&pool, "mauve").unwrap_err().is_not_found());
    }
    assert_eq!(server.connections(), 1);
}

#[test]
fn request_has_only_the_necessary_headers() {
    let server = RawServer::answering(ok(&body(b"x")));
    let pool = pool_of(&format!("{}/proxy/", server.url));
    get(&pool, "a b/c+d").unwrap();
    let head = server.heads().remove(0);
    let (line, headers) = head.split_once("\r\n").unwrap();
    assert_eq!(line, "GET /proxy/_groupcache/colors/a%20b%2Fc%2Bd HTTP/1.1");
    let mut names: Vec<_> = headers
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(name, _)| name.to_ascii_lowercase())
        .collect();
    names.sort();
    assert_eq!(names, ["host", "larder-peers", "larder-timeout-ms"]);
}

#[test]
fn connection_closed_while_idle_is_replaced() {
    let server = RawServer::answering_once(ok(&body(b"#0f0")));
    let pool = pool_of(&server.url);
    for _ in 0..5 {
        assert_eq!(get(&pool, "green").unwrap().value, "#0f0");
    }
    assert_eq!(server.heads().len(), 5, "each was answered once");
}

#[test]
fn request_is_retried_once() {
    let server = RawServer::start(|mut connection| {
        connection.read_head();
        if connection.number == 0 {
            connection.send(&ok(&body(b"#0f0")));
        }
    });
    let pool = pool_of(&server.url);
    get(&pool, "green").unwrap();
    let text = peer_error(&pool, "green");
    assert!(text.contains("closed without an answer"), "{text}");
    assert_eq!(server.connections(), 2);
}

#[test]
fn request_on_a_new_connection_is_not_retried() {
    let server = RawServer::answering_once(b"");
    peer_error(&pool_of(&server.url), "green");
    assert_eq!(server.connections(), 1);
}

#[test]
fn request_is_retried_after_a_reset_before_the_first_byte_but_not_later() {
    for (bytes, connections) in [(&b""[..], 2), (b"H", 1)] {
        let server = RawServer::start(move |mut connection| {
            connection.read_head();
            connection.send(&ok(&body(b"#0f0")));
            if connection.number == 0 {
                connection.reset_after(bytes);
            }
        });
        let pool = pool_of(&server.url);
        get(&pool, "green").unwrap();
        assert_eq!(get(&pool, "green").is_ok(), connections == 2);
        assert_eq!(server.connections(), connections);
    }
}

#[test]
fn request_is_not_retried_after_a_truncated_answer() {
    let server = RawServer::start(|mut connection| {
        connection.read_head();
        connection.send(&ok(&body(b"#0f0")));
        connection.read_head();
        connection.send(b"H");
    });
    let pool = pool_of(&server.url);
    get(&pool, "green").unwrap();
    peer_error(&pool, "green");
    assert_eq!(server.connections(), 1);
}

#[test]
fn retry_after_a_stale_connection_uses_a_new_connection() {
    // Four connections at once, all closed after their first answer, as by a restart of the peer.
    let together = std::sync::Arc::new(Barrier::new(4));
    let server = RawServer::start(move |mut connection| {
        connection.read_head();
        if connection.number < 4 {
            together.wait();
            connection.send(&ok(&body(b"old")));
            return;
        }
        connection.send(&ok(&body(b"new")));
        while connection.read_head().is_some() {
            connection.send(&ok(&body(b"new")));
        }
    });
    let pool = pool_with(&server.url, |builder| builder.max_batch_keys(0));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| assert_eq!(get(&pool, "k").unwrap().value, "old"));
        }
    });
    for _ in 0..6 {
        assert_eq!(get(&pool, "k").unwrap().value, "new");
    }
    // The retry takes one new connection, and all later requests another one. There is no retry if the pool
    // has already detected that the idle connections are closed.
    let connections = server.connections();
    assert!((5..=6).contains(&connections), "{connections}");
}

#[test]
fn connection_is_closed_after_an_answer_that_was_not_read_to_its_end() {
    let huge = "HTTP/1.1 200 OK\r\nContent-Type: application/x-protobuf\r\n\
                Content-Length: 10000000000\r\n\r\n";
    let server = RawServer::answering([huge.as_bytes(), &[0; 100]].concat());
    let pool = pool_of(&server.url);
    let text = peer_error(&pool, "a");
    assert!(text.contains("max_value_size"), "{text}");
    peer_error(&pool, "b");
    assert_eq!(server.connections(), 2);
}

#[test]
fn bytes_after_an_answer_are_not_taken_for_the_next_answer() {
    let server = RawServer::answering_by(|head| {
        let value = if head.contains("/a ") { b"A" } else { b"B" };
        [ok(&body(value)), ok(&body(b"forged"))].concat()
    });
    let pool = pool_of(&server.url);
    assert_eq!(get(&pool, "a").unwrap().value, "A");
    assert_eq!(get(&pool, "b").unwrap().value, "B");
}

#[test]
fn bytes_that_arrive_on_an_idle_connection_are_not_taken_for_an_answer() {
    // The answer of a proxy that closes the connection, and a second answer without a request.
    let timeout = failure("408 Request Timeout", "Connection: close\r\n", "");
    for surplus in [timeout, ok(&body(b"forged"))] {
        let (sent, surplus_sent) = std::sync::mpsc::channel();
        let (returned, has_returned) = std::sync::mpsc::channel();
        let has_returned = std::sync::Mutex::new(has_returned);
        let server = RawServer::start(move |mut connection| {
            connection.read_head();
            connection.send(&ok(&body(b"A")));
            if connection.number == 0 {
                has_returned
                    .lock()
                    .unwrap()
                    .recv_timeout(Duration::from_secs(20))
                    .unwrap();
                connection.send(&surplus);
                sent.send(()).unwrap();
            }
            connection.wait_for_close();
        });
        let pool = pool_of(&server.url);
        assert_eq!(get(&pool, "a").unwrap().value, "A");
        returned.send(()).unwrap();
        surplus_sent.recv_timeout(Duration::from_secs(20)).unwrap();
        // Nothing shows when the bytes have arrived at the client's idle socket.
        std::thread::sleep(Duration::from_millis(30));
        assert_eq!(get(&pool, "b").unwrap().value, "A");
        assert_eq!(server.connections(), 2);
    }
}

#[test]
fn threads_get_their_own_answers_and_few_connections() {
    let server = RawServer::answering_by(|head| ok(&body(key_of(head).as_bytes())));
    let pool = pool_of(&server.url);
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let pool = &pool;
            scope.spawn(move || {
                for n in 0..50 {
                    let key = format!("key-{thread}-{n}");
                    assert_eq!(get(pool, &key).unwrap().value, key);
                }
            });
        }
    });
    assert!(server.connections() <= 8, "{}", server.connections());
}

#[test]
fn requests_over_the_connection_limit_wait_and_succeed() {
    let server = RawServer::answering_by(|_| {
        std::thread::sleep(Duration::from_millis(2));
        ok(&body(b"x"))
    });
    let pool = pool_with(&server.url, |builder| {
        builder
            .max_connections_per_peer(3)
            .max_batch_keys(0)
            .exchange_timeout(Duration::from_secs(30))
    });
    std::thread::scope(|scope| {
        for thread in 0..16 {
            let pool = &pool;
            scope.spawn(move || {
                for n in 0..10 {
                    get(pool, &format!("{thread}-{n}")).unwrap();
                }
            });
        }
    });
    assert!(server.connections() <= 3, "{}", server.connections());
    assert_eq!(server.heads().len(), 160);
}

#[test]
fn caller_that_waits_for_a_connection_returns_at_its_deadline() {
    let server = RawServer::silent();
    let limit = Duration::from_millis(300);
    let pool = pool_with(&server.url, |builder| {
        builder
            .max_connections_per_peer(1)
            .exchange_timeout(Duration::from_secs(20))
    });
    std::thread::scope(|scope| {
        let ctx = Context::background().with_timeout(2 * limit);
        let pool = &pool;
        scope.spawn(move || ask(pool, &ctx, "a"));
        eventually(|| !server.heads().is_empty());
        let begun = Instant::now();
        let ctx = Context::background().with_timeout(limit);
        let error = ask(pool, &ctx, "b").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::DeadlineExceeded, "{error}");
        assert!(begun.elapsed() < 2 * limit, "{:?}", begun.elapsed());
    });
    assert_eq!(server.heads().len(), 1, "the second request was not sent");
}

#[test]
fn without_idle_connections_each_request_opens_a_new_one() {
    let server = RawServer::answering(ok(&body(b"x")));
    let pool = pool_with(&server.url, |builder| builder.max_idle_per_peer(0));
    for _ in 0..3 {
        get(&pool, "k").unwrap();
    }
    assert_eq!(server.connections(), 3);
}

#[test]
fn refused_connection_is_an_error_at_once() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let begun = Instant::now();
    let text = peer_error(&pool_of(&format!("http://{address}")), "k");
    assert!(text.contains("refused"), "{text}");
    let took = begun.elapsed();
    assert!(took < Duration::from_millis(900), "{took:?}");
}

#[test]
fn host_name_is_resolved() {
    let server = RawServer::answering(ok(&body(b"x")));
    let port = server.url.rsplit(':').next().unwrap();
    // If the name resolves to ::1 first, that address refuses, and the client tries 127.0.0.1.
    let pool = pool_with(&format!("http://localhost:{port}"), |builder| {
        builder
            .connect_timeout(Duration::from_secs(5))
            .exchange_timeout(Duration::from_secs(10))
    });
    assert_eq!(get(&pool, "k").unwrap().value, "x");
    assert!(server.heads()[0].contains(&format!("host: localhost:{port}")));
}

#[test]
fn unresolved_host_name_is_an_error_of_that_peer_only() {
    let server = RawServer::answering(ok(&body(b"x")));
    let pool = pool_of(&server.url);
    pool.set(["http://nobody.invalid:1", &server.url]).unwrap();
    let key_of = |url: &str| {
        (0..)
            .map(|n| format!("key-{n}"))
            .find(|key| pool.owner(key).as_deref() == Some(url))
            .unwrap()
    };
    assert_eq!(get(&pool, &key_of(&server.url)).unwrap().value, "x");
    let begun = Instant::now();
    let text = peer_error(&pool, &key_of("http://nobody.invalid:1"));
    assert!(text.contains("nobody.invalid"), "{text}");
    let took = begun.elapsed();
    assert!(took < Duration::from_millis(900), "{took:?}");
}

#[test]
fn proxy_of_the_environment_is_ignored() {
    if std::env::var_os("http_proxy").is_some() {
        // This is the child process.
        return requests_reuse_one_connection();
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "client::connections::proxy_of_the_environment_is_ignored",
        ])
        .envs(["http_proxy", "HTTP_PROXY", "ALL_PROXY"].map(|name| (name, "http://127.0.0.1:1")))
        .env_remove("no_proxy")
        .env_remove("NO_PROXY")
        .output()
        .unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && stdout.contains("1 passed"),
        "{stdout}"
    );
}
