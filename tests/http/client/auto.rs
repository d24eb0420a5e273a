//! The default client chooses a transport for each peer. Each transport has its own connections, so the
//! connection on which a request arrives shows the choice.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use larder::http::{HttpClient, HttpPool};

use super::raw_server::{RawServer, body, key_of, keyed_body, ok, ok_with};
use super::{get, peer_error, pool_with};

const LARDER: &str = "Server: larder\r\n";

fn auto_pool(url: &str) -> HttpPool {
    pool_with(url, |builder| builder.http_client(HttpClient::Auto))
}

/// Gets a value, which is the number of the connection on which the request arrived.
fn connection_of(pool: &HttpPool, key: &str) -> String {
    let value = get(pool, key).unwrap().value;
    value.to_str().unwrap().to_owned()
}

/// Answers each request with the number of its connection, and with the next of `headers`. The last of
/// them is used for all later requests.
fn server_with(headers: &'static [&'static str]) -> RawServer {
    let requests = Arc::new(AtomicUsize::new(0));
    RawServer::start(move |mut connection| {
        while let Some(head) = connection.read_head() {
            let request = requests.fetch_add(1, Ordering::SeqCst);
            let headers = headers[request.min(headers.len() - 1)];
            let number = connection.number.to_string();
            connection.send(&ok_with(
                headers,
                &keyed_body(&key_of(&head), number.as_bytes()),
            ));
        }
    })
}

#[test]
fn direct_client_is_used_after_an_answer_of_a_larder_server() {
    let server = server_with(&["Server: nginx\r\n", "", LARDER]);
    let pool = auto_pool(&server.url);
    let connections: Vec<_> = (0..6).map(|_| connection_of(&pool, "k")).collect();
    assert_eq!(connections, ["0", "0", "0", "1", "1", "1"]);
}

#[test]
fn ureq_is_used_again_after_an_answer_that_is_not_directly_from_larder() {
    let others = [
        "",
        "Server: nginx\r\n",
        "Server: larder/9\r\n",
        "Server: larder\r\nVia: 1.1 proxy\r\n",
        "Via: 1.1 proxy\r\nServer: larder\r\n",
        "Server: larder\r\nVia: \u{e9}\r\n",
    ];
    for other in others {
        let server = server_with(Box::leak(Box::new([LARDER, LARDER, other, other, LARDER])));
        let pool = auto_pool(&server.url);
        let connections: Vec<_> = (0..7).map(|_| connection_of(&pool, "k")).collect();
        assert_eq!(connections, ["0", "1", "1", "2", "2", "3", "3"], "{other}");
    }
}

#[test]
fn each_peer_has_a_transport_of_its_own() {
    let (larder, other) = (server_with(&[LARDER]), server_with(&[""]));
    let pool = auto_pool(&larder.url);
    pool.set([&larder.url, &other.url]).unwrap();
    let key_of = |url: &str| {
        let mut keys = (0..).map(|n| format!("key-{n}"));
        keys.find(|key| pool.owner(key).as_deref() == Some(url))
            .unwrap()
    };
    let (at_larder, at_other) = (key_of(&larder.url), key_of(&other.url));
    for expected in ["0", "1", "1"] {
        assert_eq!(connection_of(&pool, &at_larder), expected);
        assert_eq!(connection_of(&pool, &at_other), "0");
    }
}

#[test]
fn ureq_is_used_again_for_a_peer_that_restarts_as_another_server() {
    let server = RawServer::start(|mut connection| {
        let number = connection.number;
        let headers = if number < 2 { LARDER } else { "" };
        while let Some(head) = connection.read_head() {
            connection.send(&ok_with(
                headers,
                &keyed_body(&key_of(&head), number.to_string().as_bytes()),
            ));
            if number == 1 {
                // The server closes this connection after its first answer.
                return;
            }
        }
    });
    let pool = auto_pool(&server.url);
    let connections: Vec<_> = (0..5).map(|_| connection_of(&pool, "k")).collect();
    // The third request finds the connection closed and is sent again on a new one.
    assert_eq!(connections, ["0", "1", "2", "3", "3"]);
}

#[test]
fn ureq_is_used_again_after_a_protocol_error() {
    let server = RawServer::start(|mut connection| {
        while let Some(head) = connection.read_head() {
            match connection.number {
                0 => connection.send(&ok_with(LARDER, &keyed_body(&key_of(&head), b"by ureq"))),
                1 => connection.send(b"SSH-2.0-OpenSSH_9.6\r\n\r\n"),
                _ => connection.send(&ok(&body(b"by ureq again"))),
            };
        }
    });
    let pool = auto_pool(&server.url);
    assert_eq!(get(&pool, "k").unwrap().value, "by ureq");
    peer_error(&pool, "k");
    for _ in 0..2 {
        assert_eq!(get(&pool, "k").unwrap().value, "by ureq again");
    }
    assert_eq!(server.connections(), 3);
}

#[test]
fn transport_that_is_no_longer_used_closes_its_connections() {
    let (sender, closed) = mpsc::channel();
    let answers = Arc::new(AtomicUsize::new(0));
    let server = RawServer::start(move |mut connection| {
        while let Some(head) = connection.read_head() {
            let is_larder = answers.fetch_add(1, Ordering::SeqCst) < 2;
            let headers = if is_larder { LARDER } else { "" };
            connection.send(&ok_with(headers, &keyed_body(&key_of(&head), b"x")));
        }
        sender.send(connection.number).unwrap();
    });
    let pool = auto_pool(&server.url);
    for expected in [0, 1] {
        get(&pool, "a").unwrap();
        get(&pool, "b").unwrap();
        let number = closed.recv_timeout(Duration::from_secs(20)).unwrap();
        assert_eq!(number, expected);
    }
}
