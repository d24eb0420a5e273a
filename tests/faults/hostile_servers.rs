//! Peers whose answers are slow, broken or endless.

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use larder::http::HttpClient;
use larder::{Context, ErrorKind, Group, Sink};

use crate::cluster::{Node, Setup, assert_on_time, lateness};
use crate::common::{Count, PATIENCE, kind, millis, timed, within};
use crate::raw_server::{RawServer, body, failure, ok};

const EXCHANGE: Duration = Duration::from_millis(400);

/// The clients that accept the responses of any server.
const CLIENTS: &[HttpClient] = &[
    HttpClient::Direct,
    #[cfg(feature = "ureq")]
    HttpClient::Auto,
    #[cfg(feature = "ureq")]
    HttpClient::Ureq,
];

/// A node that asks `server` for every key, and counts the runs of its own getter.
fn node_of(server: &RawServer, client: HttpClient) -> (Node, Count) {
    let runs = Count::default();
    let counted = runs.clone();
    let setup = Setup {
        pool: Box::new(move |pool| {
            pool.http_client(client)
                .exchange_timeout(EXCHANGE)
                .max_value_size(1 << 20)
        }),
        ..Setup::default()
    };
    let node = setup.start(move |_: &Context, key: &str, dest: &mut dyn Sink| {
        counted.add(1);
        Ok(dest.set_str(&format!("{key}, loaded here"))?)
    });
    node.pool.set([&server.url]).expect("a URL");
    (node, runs)
}

fn value(group: &Group, key: &str) -> String {
    group
        .get(key)
        .expect("a value")
        .to_str()
        .expect("text")
        .to_owned()
}

#[test]
fn answer_that_arrives_byte_by_byte_ends_by_the_total_deadline() {
    for &client in CLIENTS {
        let server = RawServer::start(|mut connection| {
            connection.read_head();
            for byte in ok(&body(&[b'x'; 1000])) {
                if !connection.send(&[byte]) {
                    return;
                }
                thread::sleep(millis(20));
            }
        });
        let (node, runs) = node_of(&server, client);
        let get = || timed(|| node.group.get_with(&within(millis(200)), "dripping"));
        let (late, (took, result)) = lateness(millis(200), get);
        assert_eq!(kind(result), ErrorKind::DeadlineExceeded);
        assert_on_time(took, millis(200), late);
        // Without a deadline of its own, the caller goes on at the end of the exchange time-out.
        let get = || timed(|| value(&node.group, "key"));
        let (late, (took, value)) = lateness(EXCHANGE, get);
        assert_eq!(value, "key, loaded here");
        assert_on_time(took, EXCHANGE, late);
        assert_eq!(runs.get(), 1);
    }
}

/// A table of answers that are no values, each with a name.
fn bad_answers() -> Vec<(&'static str, Vec<u8>)> {
    let html = "<!DOCTYPE html><html><title>Sign in</title></html>";
    let whole = body(b"a stranger's value");
    let with = |fields: &str| {
        let head = format!("HTTP/1.1 200 OK\r\n{fields}\r\n\r\n");
        [head.as_bytes(), &whole].concat()
    };
    let chunked = "Content-Type: application/x-protobuf\r\nTransfer-Encoding: chunked\r\n";
    let length = format!("Content-Length: {}", whole.len());
    vec![
        ("corrupt protobuf", ok(b"\x0a\xff")),
        ("truncated body", ok(&body(&[b'x'; 1000]))[..300].to_vec()),
        (
            "wrong type",
            with(&format!("Content-Type: text/plain\r\n{length}")),
        ),
        ("no type", with(&length)),
        ("HTML", ok(html.as_bytes())),
        (
            "a page with its own type",
            failure("200 OK", "Content-Type: text/html\r\n", html),
        ),
        ("chunked garbage", with(&format!("{chunked}\r\nzz"))),
        ("a gateway's error", failure("502 Bad Gateway", "", html)),
        ("not HTTP", b"SSH-2.0-OpenSSH_9.6\r\n".to_vec()),
        ("nothing", Vec::new()),
    ]
}

#[test]
fn bad_answer_leads_to_a_local_load_and_is_never_cached() {
    for &client in CLIENTS {
        for (name, answer) in bad_answers() {
            // Some of the answers are complete only at the end of the connection.
            let server = RawServer::answering_once(answer);
            let (node, runs) = node_of(&server, client);
            for key in ["one", "two", "one"] {
                let local = format!("{key}, loaded here");
                assert_eq!(value(&node.group, key), local, "{client:?}: {name}");
            }
            assert_eq!(runs.get(), 2, "{client:?}: {name}");
            // A peer that closes the connection without an answer is not asked for the second key.
            let failed = if name == "nothing" { 1 } else { 2 };
            let errors = node.group.stats().peer_errors;
            assert!(errors >= failed, "{client:?}: {name}: {errors}");
        }
    }
}

#[test]
fn bad_answer_leads_to_the_next_peer_and_three_in_a_row_open_the_breaker() {
    for &client in CLIENTS {
        for (name, answer) in bad_answers() {
            let server = RawServer::answering_once(answer);
            let (node, runs) = node_of(&server, client);
            let next = Setup::default().start(|_: &Context, key: &str, dest: &mut dyn Sink| {
                Ok(dest.set_str(&format!("{key}, loaded by the next peer"))?)
            });
            node.pool.set([&server.url, &next.url]).expect("URLs");
            for n in 0..6 {
                let key = node.key_of(&server.url, &format!("{n} "));
                let theirs = format!("{key}, loaded by the next peer");
                assert_eq!(value(&node.group, &key), theirs, "{client:?}: {name}");
            }
            assert_eq!(runs.get(), 0, "{client:?}: {name}");
            // A connection that ends without a byte opens it at once.
            let asked = if name == "nothing" { 1 } else { 3 };
            let heads = server.heads();
            let keys = heads.iter().filter(|head| head.contains("/values/"));
            assert_eq!(keys.count(), asked, "{client:?}: {name}: {heads:?}");
        }
    }
}

#[test]
fn endless_answer_is_read_to_the_limit_and_no_further() {
    let announced = "HTTP/1.1 200 OK\r\nContent-Type: application/x-protobuf\r\n\
                     Content-Length: 10000000000\r\n\r\n";
    let chunked = "HTTP/1.1 200 OK\r\nContent-Type: application/x-protobuf\r\n\
                   Transfer-Encoding: chunked\r\n\r\n";
    let chunk = [b"4000\r\n", &[b'x'; 0x4000][..], b"\r\n"].concat();
    for &client in CLIENTS {
        for (head, piece) in [(announced, vec![b'x'; 0x4000]), (chunked, chunk.clone())] {
            // Pieces that are under way when the client closes the connection.
            let limit = (1 << 20) + (64 << 10) + 4 * piece.len();
            // A client that gets no processor for a while leaves more in the buffers of its socket.
            let sent: Vec<usize> = (0..5).map(|_| bytes_sent(client, head, &piece)).collect();
            assert!(
                sent.iter().any(|sent| *sent <= limit),
                "{client:?}: {sent:?} bytes, not {limit}"
            );
        }
    }
}

/// The bytes that a server sends of an answer without an end, until the client closes the connection.
/// It sends piece by piece, so that the client reads one before the next is sent.
fn bytes_sent(client: HttpClient, head: &'static str, piece: &[u8]) -> usize {
    let (sender, sent) = mpsc::channel();
    let piece = piece.to_owned();
    let server = RawServer::start(move |mut connection| {
        connection.read_head();
        connection.send(head.as_bytes());
        let mut sent = 0;
        while connection.send(&piece) {
            sent += piece.len();
            thread::sleep(Duration::from_micros(500));
        }
        sender.send(sent).expect("the test waits");
    });
    let (node, _) = node_of(&server, client);
    assert_eq!(value(&node.group, "key"), "key, loaded here");
    sent.recv_timeout(PATIENCE)
        .expect("the client closes the connection")
}
