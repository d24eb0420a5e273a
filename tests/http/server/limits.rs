//! Hostile and slow clients: the responses they get, and the resources they use.

use std::time::{Duration, Instant};

use larder::ByteView;
use larder::http::{Request, Response};

use super::support::{Client, ask, eventually, get, serve};

const SHORT: Duration = Duration::from_millis(150);

/// Longer than a wait of [`SHORT`] takes on a busy machine, and shorter than any default.
const SOON: Duration = Duration::from_secs(4);

#[test]
fn incomplete_head_is_refused_at_the_deadline_however_it_arrives() {
    let server = serve(|server| server.head_timeout(SHORT));
    let started = Instant::now();
    let mut still = Client::sending(server.local_addr(), "GET / HTTP/1.1\r\nHost: h\r\n");
    let mut dripping = Client::connect(server.local_addr());
    for byte in b"GET /a-path-that-is-never-whole".iter().cycle() {
        // Each byte arrives well within the time limit. All of them together take longer.
        std::thread::sleep(SHORT / 10);
        if started.elapsed() > 2 * SHORT || dripping.try_send(&[*byte]).is_err() {
            break;
        }
    }
    for client in [&mut still, &mut dripping] {
        assert_eq!(client.reply().status, 408);
        assert!(client.is_closed());
    }
    assert!(started.elapsed() >= SHORT, "refused before the deadline");
    assert!(started.elapsed() < SOON, "{:?}", started.elapsed());
}

#[test]
fn incomplete_body_is_refused_at_the_deadline() {
    let server = serve(|server| server.body_timeout(SHORT));
    let head = get("k").replace("Host: h", "Host: h\r\nContent-Length: 4000");
    let started = Instant::now();
    let mut client = Client::sending(server.local_addr(), head + "half");
    assert_eq!(client.reply().status, 408);
    assert!(client.is_closed());
    let took = started.elapsed();
    assert!((SHORT..SOON).contains(&took), "{took:?}");
}

#[test]
fn silent_connection_is_closed_without_a_response() {
    let server = serve(|server| server.head_timeout(SHORT));
    let started = Instant::now();
    assert!(Client::connect(server.local_addr()).is_closed());
    let took = started.elapsed();
    assert!((SHORT..SOON).contains(&took), "{took:?}");
}

#[test]
fn idle_connection_is_closed_also_after_a_head_in_pieces() {
    let server = serve(|server| {
        server
            .idle_timeout(2 * SHORT)
            .head_timeout(Duration::from_secs(9))
    });
    let mut client = Client::connect(server.local_addr());
    let request = get("k");
    let (first, second) = request.split_at(20);
    client.send(first);
    std::thread::sleep(SHORT / 5);
    client.send(second);
    assert_eq!(client.reply().value(), "k");
    let started = Instant::now();
    assert!(client.is_closed());
    let took = started.elapsed();
    assert!((SHORT..SOON).contains(&took), "{took:?}");
}

#[test]
fn connection_is_refused_if_no_thread_can_be_started() {
    // The stack fills the address space. The error is the same as when threads run out.
    let server = serve(|server| server.stack_size(usize::MAX - (1 << 20)));
    for _ in 0..20 {
        assert_eq!(ask(server.local_addr(), get("k")).status, 503);
    }
    assert_eq!(server.connections(), 0);
}

#[test]
fn heads_over_the_limit_are_refused_and_not_buffered() {
    let server = serve(|server| server);
    let addr = server.local_addr();
    let long_key = "k".repeat(9 << 10);
    let mut client = Client::sending(addr, get(&long_key));
    assert_eq!(client.reply().status, 431);
    assert!(client.is_closed());
    let fields = "A: b\r\n".repeat(65);
    let head = get("k").replace("Host: h", &format!("{fields}Host: h"));
    assert_eq!(ask(addr, head).status, 431);

    // A field that does not end. The server stops reading long before 100 MB.
    let mut client = Client::sending(addr, "GET / HTTP/1.1\r\nHost: h\r\nA: ");
    let megabyte = vec![b'a'; 1 << 20];
    let sent = (0..100).take_while(|_| client.try_send(&megabyte).is_ok());
    assert!(sent.count() < 100);

    let fits = "k".repeat(8 << 10);
    let fits = &fits[..fits.len() - get("").len()];
    assert_eq!(get(fits).len(), 8 << 10);
    // The status shows that the head was read, whether or not the group accepts the key.
    assert_ne!(ask(addr, get(fits)).status, 431);
}

#[test]
fn lengths_are_checked_before_reading_or_allocating() {
    let server = serve(|server| server.max_body_size(100));
    let addr = server.local_addr();
    for (length, status) in [
        ("101", 413),
        ("4294967296", 413),
        ("1099511627775", 413),
        ("35184372088832", 400),
        ("200000000000000", 400),
        ("18446744073709551615", 400),
        ("18446744073709551616", 400),
    ] {
        let lines = format!("Host: h\r\nExpect: 100-continue\r\nContent-Length: {length}");
        let mut client = Client::sending(addr, get("k").replace("Host: h", &lines));
        assert_eq!(client.reply().status, status, "{length}");
        assert!(client.is_closed(), "{length}");
    }
}

#[test]
fn body_below_the_base_path_is_limited_to_the_keys_of_a_batch() {
    let server = serve(|server| server.fallback(|_: &Request| Response::text(200, "page")));
    let addr = server.local_addr();
    let lines = |length: usize| format!("Host: h\r\nContent-Length: {length}");
    for (length, status) in [(128 << 10, 400), ((128 << 10) + 1, 413)] {
        let head = get("").replace("GET", "POST").replace("echo/", "echo");
        let mut client = Client::sending(addr, head.replace("Host: h", &lines(length)));
        // The server may have refused the request already.
        let _ = client.try_send(&vec![0xff; length]);
        assert_eq!(client.reply().status, status, "{length}");
    }
    let page = "POST /page HTTP/1.1\r\nHost: h\r\n\r\n".replace("Host: h", &lines(1 << 20));
    let mut client = Client::sending(addr, page);
    client.send(vec![0xff; 1 << 20]);
    assert_eq!(client.reply().text(), "page");
}

#[test]
fn refused_request_gets_one_response_and_ends_the_connection() {
    let server = serve(|server| server);
    for smuggled in [
        "GET / HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\nContent-Length: 0\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "GET / HTTP/1.1\nHost: h\n\n",
        "GET / HTTP/2.0\r\nHost: h\r\n\r\n",
        "\0",
    ] {
        let mut client = Client::sending(server.local_addr(), smuggled.to_owned() + &get("k"));
        assert!(client.reply().status >= 400, "{smuggled:?}");
        assert!(client.is_closed(), "{smuggled:?}");
    }
}

#[test]
fn endless_pipelining_is_bounded_by_tcp() {
    let server = serve(|server| server);
    let mut sender = Client::connect(server.local_addr());
    let mut receiver = sender.stream().try_clone().expect("a second handle");
    let one = get("k");
    let body = ask(server.local_addr(), &one).body;
    let receiving = std::thread::spawn(move || {
        use std::io::Read;
        let mut received = Vec::new();
        receiver.read_to_end(&mut received).expect("answers");
        received
    });
    const ROUNDS: usize = 40;
    const PIPELINED: usize = 500;
    let batch = one.repeat(PIPELINED);
    for _ in 0..ROUNDS {
        sender.send(&batch);
    }
    sender.end();
    let received = receiving.join().expect("no panic");
    let head = b"HTTP/1.1 200 ";
    let heads = received.windows(head.len()).filter(|bytes| bytes == head);
    assert_eq!(heads.count(), ROUNDS * PIPELINED);
    // The value is the last field of a body.
    assert!(body.ends_with(b"k") && received.ends_with(b"k"));
}

#[test]
fn connection_of_a_client_that_reads_nothing_is_closed() {
    let server = serve(|server| server.write_timeout(SHORT));
    let mut client = Client::connect(server.local_addr());
    let batch = get("k").repeat(500);
    // Sends until the buffers of both sides are full. Then the server waits to write, and closes the
    // connection at its time limit.
    while client.try_send(batch.as_bytes()).is_ok() {}
    eventually(|| server.connections() == 0);
}

#[test]
fn large_response_is_complete_for_a_slow_reader_and_cut_for_a_too_slow_reader() {
    let value: ByteView = (0..8 << 20)
        .map(|n: u32| (n % 251) as u8)
        .collect::<Vec<u8>>()
        .into();
    let large = |timeout| {
        let value = value.clone();
        serve(|server| {
            server
                .write_timeout(timeout)
                .fallback(move |_: &Request| Response::new(200, "x/y", value.clone()))
        })
    };
    let request = "GET /large HTTP/1.1\r\nHost: h\r\n\r\n";

    let server = large(Duration::from_secs(30));
    let mut client = Client::sending(server.local_addr(), request);
    let mut received = client.reply_head();
    assert_eq!(received.header("Content-Length"), Some("8388608"));
    let mut chunk = vec![0; 256 << 10];
    while received.body.len() < value.len() {
        std::thread::sleep(Duration::from_millis(1));
        let n = client.read(&mut chunk).expect("more");
        assert_ne!(n, 0, "cut short");
        received.body.extend_from_slice(&chunk[..n]);
    }
    assert!(value == received.body);

    let server = large(SHORT);
    let mut client = Client::sending(server.local_addr(), request);
    assert_eq!(client.reply_head().status, 200);
    eventually(|| server.connections() == 0);
    let mut rest = Vec::new();
    while let Ok(n @ 1..) = client.read(&mut chunk) {
        rest.extend_from_slice(&chunk[..n]);
    }
    assert!(rest.len() < value.len(), "the response was cut off");
}

#[test]
fn largest_numbers_mean_no_limit() {
    let most = usize::MAX;
    let server = serve(|server| {
        server
            .max_connections(most)
            .max_connections_per_addr(most)
            .max_abandoned_loads(most)
            .max_head_size(most)
            .max_body_size(most)
            .max_response_bytes(most)
            .max_body_bytes(most)
    });
    for n in 0..3 {
        let key = format!("k{n}");
        assert_eq!(ask(server.local_addr(), get(&key)).value(), key);
    }
}
