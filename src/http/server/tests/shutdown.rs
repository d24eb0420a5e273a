//! How a server ends.

use std::net::TcpListener;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use super::support::{Client, ask, eventually, get, serve};
use crate::ErrorKind;
use crate::http::{Request, Response, Server};
use crate::sync::{Arc, Mutex};

/// A server whose `/wait` says that it was entered and answers when it is let go.
fn waiting_server() -> (Server, Receiver<()>, Sender<()>) {
    let (entered, entries) = channel();
    let (release, releases) = channel();
    let gate = Mutex::new((entered, releases));
    let server = serve(|server| {
        server.fallback(move |_: &Request| {
            let gate = gate.lock();
            gate.0.send(()).expect("the test listens");
            // Nobody left to release it counts as a release.
            let _ = gate.1.recv();
            Response::text(200, "released")
        })
    });
    (server, entries, release)
}

const WAIT: &str = "GET /wait HTTP/1.1\r\nHost: h\r\n\r\n";

#[test]
fn idle_connections_are_closed_at_once_and_the_port_is_free() {
    let server = serve(|server| server);
    let addr = server.local_addr();
    let mut asked = Client::sending(addr, get("k"));
    assert_eq!(asked.reply().value(), "k");
    let mut silent = Client::connect(addr);
    let mut half = Client::sending(addr, "GET / HT");
    eventually(|| server.connections() == 3);
    let started = Instant::now();
    server.shutdown(Duration::from_secs(9)).expect("in time");
    assert!(started.elapsed() < Duration::from_secs(4));
    assert_eq!(server.connections(), 0);
    for client in [&mut asked, &mut silent, &mut half] {
        assert!(client.is_closed());
    }
    TcpListener::bind(addr).expect("the port is free");
    server.shutdown(Duration::ZERO).expect("a second time");
}

#[test]
fn a_request_under_way_finishes() {
    let (server, entries, release) = waiting_server();
    let addr = server.local_addr();
    let mut client = Client::sending(addr, WAIT.repeat(2));
    entries.recv().expect("it is entered");
    let server = Arc::new(server);
    let stopping = {
        let server = server.clone();
        std::thread::spawn(move || server.shutdown(Duration::from_secs(9)))
    };
    // The listener is closed before the connections are waited for.
    eventually(|| TcpListener::bind(addr).is_ok());
    assert!(!stopping.is_finished());
    release.send(()).expect("the handler waits");
    let reply = client.reply();
    assert_eq!(
        (reply.text(), reply.header("Connection")),
        ("released", Some("close"))
    );
    assert!(client.is_closed(), "what was sent ahead is not answered");
    stopping.join().expect("no panic").expect("in time");
    server.wait();
}

#[test]
fn a_request_that_does_not_finish_is_cut_at_the_deadline() {
    let (server, entries, release) = waiting_server();
    let mut client = Client::sending(server.local_addr(), WAIT);
    entries.recv().expect("it is entered");
    let started = Instant::now();
    let error = server
        .shutdown(Duration::from_millis(100))
        .expect_err("it still runs");
    assert_eq!(error.kind(), ErrorKind::DeadlineExceeded);
    assert!(started.elapsed() < Duration::from_secs(4));
    assert!(client.is_closed());
    drop(release);
    eventually(|| server.connections() == 0);
}

#[test]
fn dropping_the_server_shuts_it_down() {
    let server = serve(|server| server);
    let addr = server.local_addr();
    let mut client = Client::sending(addr, get("k"));
    assert_eq!(client.reply().value(), "k");
    drop(server);
    assert!(client.is_closed());
    TcpListener::bind(addr).expect("the port is free");
}

#[test]
fn under_load_no_answer_is_torn() {
    let server = serve(|server| server);
    let addr = server.local_addr();
    let (progress, progressed) = channel();
    let clients: Vec<_> = (0..8)
        .map(|n| {
            let progress = progress.clone();
            std::thread::spawn(move || {
                let key = format!("{n}-{}", "x".repeat(400));
                let mut client = Client::connect(addr);
                let mut answered = 0;
                loop {
                    if client.try_send(get(&key).as_bytes()).is_err() {
                        return answered;
                    }
                    match client.try_reply(true) {
                        Ok(Some(reply)) => assert_eq!(reply.value(), key),
                        Ok(None) => return answered,
                        Err(error) => {
                            // A request that crossed with the close; nothing of an answer came.
                            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
                            return answered;
                        }
                    }
                    answered += 1;
                    if answered == 50 {
                        let _ = progress.send(());
                    }
                }
            })
        })
        .collect();
    for _ in 0..8 {
        progressed.recv().expect("all get answers");
    }
    server.shutdown(Duration::from_secs(5)).expect("in time");
    assert_eq!(server.connections(), 0);
    TcpListener::bind(addr).expect("the port is free");
    for client in clients {
        assert!(client.join().expect("no torn answer") >= 50);
    }
}

#[test]
fn a_server_that_is_shut_down_can_be_followed_by_another() {
    let server = serve(|server| server);
    let addr = server.local_addr();
    assert_eq!(ask(addr, get("k")).value(), "k");
    server.shutdown(Duration::from_secs(5)).expect("in time");
    let next = crate::http::server::ServerBuilder::new(Some(super::support::endpoint()))
        .bind(addr)
        .expect("the same port");
    assert_eq!(ask(addr, get("k")).value(), "k");
    drop(next);
}
