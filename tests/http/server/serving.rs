//! Correct clients, and the fallback handler.

use std::time::Duration;

use larder::http::{HttpPool, Request, Response, ServerBuilder};
use larder::{Clock, ErrorKind, Group, Registry, Value};

use super::support::{Client, ask, get, pool, pool_with, serve};

/// Responds with the request as text.
fn mirror(request: &Request<'_>) -> Response {
    if request.path() == "/panic" {
        panic!("a handler that panics");
    }
    let text = format!(
        "{} {} {:?} {:?} {}",
        request.method(),
        request.path(),
        request.query(),
        request.header("X-ASKED"),
        String::from_utf8_lossy(request.body()),
    );
    Response::text(200, text)
        .with_header("X-Answered", "yes")
        .expect("a valid header")
}

#[test]
fn fallback_gets_requests_outside_the_base_path() {
    let server = serve(|server| server.fallback(mirror));
    let mut client = Client::connect(server.local_addr());
    client.send(
        "POST /a%20b?c=%2F HTTP/1.1\r\nHost: h\r\nx-asked: why\r\nContent-Length: 4\r\n\r\nbody",
    );
    let reply = client.reply();
    assert_eq!(
        reply.text(),
        "POST /a%20b Some(\"c=%2F\") Some(\"why\") body"
    );
    assert_eq!(reply.header("X-Answered"), Some("yes"));
    client.send(get("red"));
    assert_eq!(client.reply().value(), "red");
    client.send("OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n");
    assert_eq!(client.reply().text(), "OPTIONS * None None ");
}

#[test]
fn fallback_gets_the_default_base_path_if_the_pool_has_another() {
    let server = pool_with(|builder| builder.base_path("/elsewhere/"))
        .server()
        .fallback(mirror)
        .bind("127.0.0.1:0")
        .expect("a server");
    let reply = ask(server.local_addr(), get("k"));
    assert_eq!(reply.text(), "GET /_groupcache/echo/k None None ");
}

#[test]
fn head_is_answered_without_the_body() {
    let server = serve(|server| server.fallback(mirror));
    let mut client = Client::sending(server.local_addr(), "HEAD / HTTP/1.1\r\nHost: h\r\n\r\n");
    let reply = client.reply_head();
    let length = "HEAD / None None ".len().to_string();
    assert_eq!(reply.header("Content-Length"), Some(&*length));
    client.send(get("k"));
    assert_eq!(client.reply().value(), "k");
}

#[test]
fn handler_panic_is_500_and_connection_stays_open() {
    let server = serve(|server| server.fallback(mirror));
    let mut client = Client::sending(
        server.local_addr(),
        "GET /panic HTTP/1.1\r\nHost: h\r\n\r\n",
    );
    assert_eq!(client.reply().status, 500);
    client.send(get("k"));
    assert_eq!(client.reply().value(), "k");
}

#[test]
fn client_that_expects_continue_gets_it() {
    let server = serve(|server| server.fallback(mirror));
    let mut client = Client::sending(
        server.local_addr(),
        "PUT / HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n",
    );
    assert_eq!(client.reply_head().status, 100);
    client.send("abc");
    assert_eq!(client.reply().text(), "PUT / None None abc");
    // A client that did not wait gets no 100.
    client.send("PUT / HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\nd");
    assert_eq!(client.reply().text(), "PUT / None None d");
}

#[test]
fn requests_and_bodies_may_arrive_in_any_pieces() {
    let server = serve(|server| server.fallback(mirror));
    let body = "x".repeat(3000);
    let put = format!("PUT /p HTTP/1.1\r\nHost: h\r\nContent-Length: 3000\r\n\r\n{body}");
    let stream = format!("{}{put}\r\n{}{put}", get("a"), get(&"long".repeat(500)));
    for size in [1, 7, 100, 1024, 1500, stream.len()] {
        let mut client = Client::connect(server.local_addr());
        for piece in stream.as_bytes().chunks(size) {
            client.send(piece);
        }
        assert_eq!(client.reply().value(), "a");
        let mirrored = format!("PUT /p None None {body}");
        assert_eq!(client.reply().text(), mirrored);
        assert_ne!(client.reply().status, 431);
        assert_eq!(client.reply().text(), mirrored);
    }
}

#[test]
fn two_hundred_loopback_clients_are_served_at_once() {
    let server = serve(|server| server);
    let addr = server.local_addr();
    let mut clients: Vec<_> = (0..200).map(|_| Client::connect(addr)).collect();
    for (n, client) in clients.iter_mut().enumerate() {
        client.send(get(&n.to_string()));
    }
    for (n, client) in clients.iter_mut().enumerate() {
        assert_eq!(client.reply().value(), n.to_string());
    }
}

#[test]
fn limits_out_of_range_are_refused() {
    let refused = |set_up: fn(ServerBuilder) -> ServerBuilder| {
        let error = set_up(pool().server())
            .bind("127.0.0.1:0")
            .expect_err("refused");
        assert_eq!(error.kind(), ErrorKind::InvalidOption);
    };
    refused(|server| server.max_connections(0));
    refused(|server| server.max_connections_per_addr(0));
    refused(|server| server.max_head_size(1023));
    refused(|server| server.stack_size(65_535));
    refused(|server| server.idle_timeout(Duration::ZERO));
    refused(|server| server.write_timeout(Duration::MAX));
}

#[test]
fn hits_are_answered_although_the_listener_of_expired_entries_panics() {
    let (registry, clock) = (Registry::new(), Clock::manual());
    let group = Group::builder("echo")
        .registry(&registry)
        .clock(clock.clone())
        .eviction_listener(|_, _, _| std::panic::resume_unwind(Box::new("in the listener")))
        .build_with(|_, key| {
            let seconds = if key == "lasting" { 3600 } else { 1 };
            let value = Value::new(key.to_owned()).expire_in(Duration::from_secs(seconds));
            Ok::<_, larder::Error>(value)
        })
        .expect("a group");
    for key in (0..1000).map(|n| n.to_string()).chain(["lasting".into()]) {
        group.get(&key).expect("a value");
    }
    clock.advance(Duration::from_secs(2));
    let pool = HttpPool::builder("http://127.0.0.1:1").registry(&registry);
    let pool = pool.build().expect("a pool");
    let server = pool.serve("127.0.0.1:0").expect("a server");
    let mut client = Client::connect(server.local_addr());
    // One hit in 256 removes some of the expired entries.
    for _ in 0..1000 {
        client.send(get("lasting"));
        assert_eq!(client.reply().value(), "lasting");
    }
    assert!(group.entry_count() < 1000);
}
