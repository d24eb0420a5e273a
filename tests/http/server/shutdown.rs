//! Shutdown and drop of a server.

use std::net::TcpListener;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use larder::http::{Request, Response, Server};
use larder::{ByteView, ErrorKind};

use super::support::{Client, ask, eventually, get, pool, serve};

const PATIENCE: Duration = Duration::from_secs(60);

/// A server whose handler signals that it was called, and returns when it is released.
fn waiting_server() -> (Server, Receiver<()>, Sender<()>) {
    let (entered, entries) = channel();
    let (release, releases) = channel();
    let gate = Mutex::new((entered, releases));
    let server = serve(|server| {
        server.fallback(move |_: &Request| {
            let gate = gate.lock().expect("no panic");
            gate.0.send(()).expect("the test receives");
            // Dropping the sender releases the handler too.
            let _ = gate.1.recv_timeout(Duration::from_secs(20));
            Response::text(200, "released")
        })
    });
    (server, entries, release)
}

const WAIT: &str = "GET /wait HTTP/1.1\r\nHost: h\r\n\r\n";

#[test]
fn shutdown_closes_idle_connections_at_once_and_frees_the_port() {
    let server = serve(|server| server);
    let addr = server.local_addr();
    let mut asked = Client::sending(addr, get("k"));
    assert_eq!(asked.reply().value(), "k");
    let mut silent = Client::connect(addr);
    let mut half = Client::sending(addr, "GET / HT");
    eventually(|| server.connections() == 3);
    let started = Instant::now();
    server.shutdown(Duration::from_secs(9)).expect("in time");
    let took = started.elapsed();
    assert!(took < Duration::from_secs(4), "{took:?}");
    assert_eq!(server.connections(), 0);
    for client in [&mut asked, &mut silent, &mut half] {
        assert!(client.is_closed());
    }
    TcpListener::bind(addr).expect("the port is free");
    server.shutdown(Duration::ZERO).expect("a second time");
}

#[test]
fn shutdown_lets_a_request_finish() {
    let (server, entries, release) = waiting_server();
    let addr = server.local_addr();
    let mut client = Client::sending(addr, WAIT.repeat(2));
    entries
        .recv_timeout(Duration::from_secs(20))
        .expect("the handler is called");
    let server = Arc::new(server);
    let stopping = {
        let server = server.clone();
        std::thread::spawn(move || server.shutdown(Duration::from_secs(9)))
    };
    // The server closes the listener before it waits for the connections.
    eventually(|| TcpListener::bind(addr).is_ok());
    assert!(!stopping.is_finished());
    release.send(()).expect("the handler waits");
    let reply = client.reply();
    assert_eq!(
        (reply.text(), reply.header("Connection")),
        ("released", Some("close"))
    );
    assert!(client.is_closed(), "pipelined requests are not answered");
    stopping.join().expect("no panic").expect("in time");
    server.wait();
}

#[test]
fn shutdown_cuts_a_request_off_at_the_deadline() {
    let (server, entries, release) = waiting_server();
    let mut client = Client::sending(server.local_addr(), WAIT);
    entries
        .recv_timeout(Duration::from_secs(20))
        .expect("the handler is called");
    let started = Instant::now();
    let error = server
        .shutdown(Duration::from_millis(100))
        .expect_err("the handler still runs");
    assert_eq!(error.kind(), ErrorKind::DeadlineExceeded);
    let took = started.elapsed();
    assert!(took < Duration::from_secs(4), "{took:?}");
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
fn shutdown_under_load_sends_no_partial_response() {
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
                            // The server closed the connection before it read this request. No
                            // byte of a response arrived.
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
        progressed
            .recv_timeout(Duration::from_secs(20))
            .expect("all get responses");
    }
    server.shutdown(Duration::from_secs(5)).expect("in time");
    assert_eq!(server.connections(), 0);
    TcpListener::bind(addr).expect("the port is free");
    for client in clients {
        assert!(client.join().expect("no partial response") >= 50);
    }
}

#[test]
fn port_can_be_bound_again_after_shutdown() {
    let server = serve(|server| server);
    let addr = server.local_addr();
    assert_eq!(ask(addr, get("k")).value(), "k");
    server.shutdown(Duration::from_secs(5)).expect("in time");
    let next = pool().serve(addr).expect("the same port");
    assert_eq!(ask(addr, get("k")).value(), "k");
    drop(next);
}

#[test]
fn shutdown_lets_a_client_that_reads_in_pauses_finish() {
    let value: ByteView = vec![b'v'; 4_000_000].into();
    let server = serve(|server| {
        let value = value.clone();
        server
            .write_timeout(PATIENCE)
            .min_write_rate(0)
            .fallback(move |_: &Request| Response::new(200, "x/y", value.clone()))
    });
    let addr = server.local_addr();
    let mut client = Client::sending(addr, "GET / HTTP/1.1\r\nHost: h\r\n\r\n");
    // After this time, the server has tried twice to write more of the response.
    std::thread::sleep(Duration::from_millis(2500));
    let stopping = std::thread::spawn(move || server.shutdown(PATIENCE));
    eventually(|| TcpListener::bind(addr).is_ok());
    // During the shutdown, it tries once more.
    std::thread::sleep(Duration::from_millis(1500));
    assert!(client.reply().body == *value);
    stopping.join().expect("no panic").expect("in time");
}
