//! The bytes of responses and of bodies that all connections share, and the limits of small boards.

use std::time::Duration;

use larder::http::{HttpPool, Request, Response, Server, ServerBuilder, ServerLimits};
use larder::{Context, Group, Registry, Sink};

use super::support::{Client, ask, eventually, get, serve};

/// A server whose values are as long as their keys say.
fn serve_sizes(set_up: impl FnOnce(ServerBuilder) -> ServerBuilder) -> Server {
    let registry = Registry::new();
    let load = |_: &Context, key: &str, dest: &mut dyn Sink| {
        let size = key.parse()?;
        Ok(dest.set_bytes(&vec![b'v'; size])?)
    };
    let group = Group::builder("echo").registry(&registry).build(load);
    group.expect("a new group");
    let pool = HttpPool::builder("http://127.0.0.1:1").registry(&registry);
    let pool = pool.build().expect("a pool");
    set_up(pool.server()).bind("127.0.0.1:0").expect("a server")
}

#[test]
fn response_over_the_budget_waits_and_is_refused_at_the_end_of_its_time() {
    let server = serve_sizes(|server| {
        server
            .max_response_bytes(4 << 20)
            .max_request_time(Duration::from_millis(100))
    });
    let addr = server.local_addr();
    // They read nothing, so the response of the first one whose load is in time stays under way.
    let mut unread = Vec::new();
    eventually(|| {
        unread.push(Client::sending(addr, get("3000000")));
        ask(addr, get("3000001")).status == 503
    });
    // Short responses are not affected, if their load is in time.
    eventually(|| ask(addr, get("100")).status == 200);
    drop(unread);
    eventually(|| ask(addr, get("3000001")).status == 200);
}

#[test]
fn response_over_the_budget_is_sent_when_there_is_room() {
    let server = serve_sizes(|server| {
        server
            .max_response_bytes(4 << 20)
            .write_timeout(Duration::from_secs(3))
    });
    let addr = server.local_addr();
    let _unread: Vec<_> = (0..3)
        .map(|_| Client::sending(addr, get("3000000")))
        .collect();
    // The clients that do not read are reset after three seconds each, and the others get their values.
    for key in ["3000001", "3000002"] {
        let reply = ask(addr, get(key));
        assert_eq!(reply.status, 200);
        assert!(reply.body.len() > 3_000_000);
    }
}

#[test]
fn wait_for_room_ends_in_the_time_of_its_client_and_when_the_client_has_left() {
    let server = serve_sizes(|server| {
        server
            .max_response_bytes(4 << 20)
            .min_write_rate(0)
            .write_timeout(Duration::from_secs(3600))
            .max_request_time(Duration::from_secs(3600))
    });
    let addr = server.local_addr();
    let mut unread = Client::sending(addr, get("3000000"));
    assert_eq!(unread.reply_head().status, 200);
    let in_time = get("3000001").replace("\r\n\r\n", "\r\nlarder-timeout-ms: 200\r\n\r\n");
    assert_eq!(ask(addr, in_time).status, 503);
    let left = Client::sending(addr, get("3000002"));
    eventually(|| server.connections() == 2);
    drop(left);
    eventually(|| server.connections() == 1);
}

#[test]
fn bodies_over_their_budget_are_answered_with_503() {
    let server = serve(|server| {
        server
            .max_body_bytes(64 << 10)
            .fallback(|request: &Request<'_>| Response::text(200, request.body().len().to_string()))
    });
    let addr = server.local_addr();
    let head = |len: usize| format!("POST /x HTTP/1.1\r\nHost: h\r\nContent-Length: {len}\r\n\r\n");
    let whole = |len: usize| head(len) + &"b".repeat(len);
    assert_eq!(ask(addr, whole(20_000)).text(), "20000");
    // Half a body is refused itself if it is read after the whole one.
    let mut halves = Vec::new();
    eventually(|| {
        halves.push(Client::sending(addr, head(40_000) + &"b".repeat(20_000)));
        ask(addr, whole(20_000)).status == 503
    });
    // A body that arrives with its head takes none of the budget.
    assert_eq!(ask(addr, whole(100)).text(), "100");
    drop(halves);
    eventually(|| ask(addr, whole(20_000)).status == 200);
}

#[test]
fn small_board_serves_loads_and_refuses_long_values() {
    let registry = Registry::new();
    let group = Group::builder("echo").small().registry(&registry);
    let group = group.build(|_: &Context, key: &str, dest: &mut dyn Sink| {
        let size = key.parse()?;
        Ok(dest.set_bytes(&vec![b'v'; size])?)
    });
    let group = group.expect("a new group");
    let pool = HttpPool::builder("http://127.0.0.1:1").small();
    let pool = pool.registry(&registry).build().expect("a pool");
    let server = pool.server().limits(ServerLimits::small());
    let server = server.bind("127.0.0.1:0").expect("a server");
    let addr = server.local_addr();
    assert!(ask(addr, get("1000000")).body.len() > 1_000_000);
    let refused = ask(addr, get("2000000"));
    assert!(refused.text().contains("max_value_size"), "{refused:?}");
    assert_eq!(group.max_capacity(), 16 << 20);
    let long = "k".repeat(5 << 10);
    assert_eq!(ask(addr, get(&long)).status, 431);
}
