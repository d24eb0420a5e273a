//! Clients that do not read their responses.
#![cfg(target_os = "linux")]

use std::thread;
use std::time::{Duration, Instant};

use larder::ByteView;
use larder::http::{Request, Response};

use super::room::Sockets;
use super::support::{Client, ask, eventually, get, serve};

const CLIENTS: usize = 300;

#[test]
fn clients_that_never_read_hold_little_memory_and_are_reset() {
    let value: ByteView = vec![b'v'; 1_000_000].into();
    let server = serve(|server| {
        server.fallback(move |_: &Request| Response::new(200, "x/y", value.clone()))
    });
    let addr = server.local_addr();
    let began = Instant::now();
    // A wait of 10 s beside the test. On a busy machine it takes longer, and so may the test.
    let limit = thread::spawn(move || {
        thread::sleep(Duration::from_secs(10));
        began.elapsed()
    });
    let large = "GET /large HTTP/1.1\r\nHost: h\r\n\r\n";
    let clients: Vec<_> = (0..CLIENTS).map(|_| Client::sending(addr, large)).collect();
    eventually(|| Sockets::of(addr.port()).unsent > CLIENTS * 10_000);
    let mut most = 0;
    loop {
        assert_eq!(ask(addr, get("k")).value(), "k");
        let sockets = Sockets::of(addr.port());
        most = most.max(sockets.unsent);
        if sockets.open + sockets.orphans == 0 {
            break;
        }
        thread::sleep(Duration::from_millis(20));
        assert!(began.elapsed() < Duration::from_secs(60), "{sockets:?}");
    }
    let took = began.elapsed();
    assert!(most <= 64 << 20, "{most} bytes");
    assert_eq!(server.connections(), 0);
    let limit = limit.join().expect("no panic");
    assert!(took <= limit, "{took:?}");
    drop(clients);
}

#[test]
fn client_that_reads_in_pauses_gets_the_whole_response() {
    let value: ByteView = vec![b'v'; 1_000_000].into();
    let server = serve(|server| {
        let value = value.clone();
        server.fallback(move |_: &Request| Response::new(200, "x/y", value.clone()))
    });
    let mut client = Client::sending(server.local_addr(), "GET / HTTP/1.1\r\nHost: h\r\n\r\n");
    // The server checks the client's progress twice in this time.
    thread::sleep(Duration::from_millis(2500));
    assert!(client.reply().body == *value);
    client.send(get("k"));
    assert_eq!(client.reply().value(), "k");
}
