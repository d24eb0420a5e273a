//! An answer to another request is never taken for the answer to this one.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use larder::ErrorKind;
use larder::pb::{GetManyResponse, GetResponse};
use larder::{Context, PeerPicker, ProtoMessage};

use super::raw_server::{RawServer, body, failure, key_hash, key_of, keyed_body, ok, ok_with};
use super::{get, peer_error, pool_of};

const LARDER: &str = "Server: larder\r\n";

/// Answers each request by `answer`, which gets its number and its key.
fn server(answer: impl Fn(usize, &str) -> Vec<u8> + Send + Sync + 'static) -> RawServer {
    let requests = AtomicUsize::new(0);
    RawServer::answering_by(move |head| {
        let number = requests.fetch_add(1, Ordering::SeqCst);
        answer(number, &key_of(head))
    })
}

fn right(key: &str) -> Vec<u8> {
    ok_with(LARDER, &keyed_body(key, key.as_bytes()))
}

#[test]
fn answer_for_another_key_is_refused_and_its_connection_closed() {
    // The answers are from larder itself, from behind a proxy, and from a server that hides its name.
    for headers in [LARDER, "Server: larder\r\nVia: 1.1 proxy\r\n", ""] {
        let server = server(move |number, key| match number {
            2 => ok_with(headers, &keyed_body("other", b"of another key")),
            _ => ok_with(headers, &keyed_body(key, key.as_bytes())),
        });
        let pool = pool_of(&server.url);
        for key in ["a", "b"] {
            assert_eq!(get(&pool, key).unwrap().value, key);
        }
        let before = server.connections();
        let text = peer_error(&pool, "c");
        assert!(text.contains("another key"), "{text}");
        assert_eq!(get(&pool, "c").unwrap().value, "c");
        assert_eq!(server.connections(), before + 1, "{headers}");
    }
}

#[test]
fn answer_of_larder_without_a_key_is_refused() {
    let server = server(|_, _| ok_with(LARDER, &body(b"of some key")));
    let pool = pool_of(&server.url);
    for _ in 0..3 {
        let text = peer_error(&pool, "k");
        assert!(text.contains("another key"), "{text}");
    }
}

#[test]
fn error_for_another_key_is_no_answer() {
    let hash = format!("{:016x}", key_hash("colors", "mauve"));
    let other = format!("{:016x}", key_hash("colors", "mauv"));
    for (headers, kind) in [
        (
            format!("{LARDER}larder-key: {hash}\r\n"),
            ErrorKind::NotFound,
        ),
        (format!("larder-key: {hash}\r\n"), ErrorKind::NotFound),
        (String::new(), ErrorKind::NotFound),
        (format!("{LARDER}larder-key: {other}\r\n"), ErrorKind::Peer),
        (format!("larder-key: {other}\r\n"), ErrorKind::Peer),
        (String::from(LARDER), ErrorKind::Peer),
    ] {
        let headers = format!("larder-error: not-found\r\n{headers}");
        let server = server(move |_, _| failure("404 Not Found", &headers, "no color mauve"));
        let error = get(&pool_of(&server.url), "mauve").unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
    }
}

/// Sends each answer twice, the second time after a pause. Without a pause, both are one write. The
/// receiver gets a message after each second answer.
fn stutter(millis: u64, answer: fn(&str) -> Vec<u8>) -> (RawServer, mpsc::Receiver<()>) {
    let (sender, sent) = mpsc::channel();
    let server = RawServer::start(move |mut connection| {
        while let Some(head) = connection.read_head() {
            let answer = answer(&key_of(&head));
            if millis == 0 {
                connection.send(&answer.repeat(2));
            } else {
                connection.send(&answer);
                std::thread::sleep(Duration::from_millis(millis));
                connection.send(&answer);
            }
            let _ = sender.send(());
        }
    });
    (server, sent)
}

#[test]
fn second_answer_is_never_that_of_the_next_key() {
    for pause in [0, 1, 3, 9, 12, 30] {
        let (server, _) = stutter(pause, right);
        let pool = pool_of(&server.url);
        let mut values = 0;
        for n in 0..30 {
            let key = format!("key-{n}");
            match get(&pool, &key) {
                Ok(answer) => {
                    assert_eq!(answer.value, key, "{pause} ms");
                    values += 1;
                }
                Err(error) => assert_eq!(error.kind(), ErrorKind::Peer, "{error}"),
            }
        }
        assert!(values >= 10, "{values} values, {pause} ms");
    }
}

#[test]
fn second_answer_that_has_arrived_is_not_taken_even_without_hashes() {
    let plain = |key: &str| ok(&body(key.as_bytes()));
    for pause in [0, 1] {
        let (server, sent) = stutter(pause, plain);
        let pool = pool_of(&server.url);
        for n in 0..20 {
            let key = format!("key-{n}");
            assert_eq!(get(&pool, &key).unwrap().value, key, "{pause} ms");
            sent.recv_timeout(Duration::from_secs(20)).unwrap();
        }
    }
}

#[test]
fn batch_in_another_order_is_refused() {
    for order in [[1, 0, 2], [0, 2, 1], [2, 0, 1]] {
        let server = RawServer::start(move |mut connection| {
            while let Some(head) = connection.read_head() {
                if head.starts_with("GET ") {
                    let key = key_of(&head);
                    connection.send(&right(&key));
                    continue;
                }
                let keyed = |at: usize| {
                    let key = ["a", "b", "c"][at];
                    [&key_hash("colors", key).to_le_bytes(), key.as_bytes()]
                        .concat()
                        .into()
                };
                let message = GetManyResponse {
                    keyed_values: order.into_iter().map(keyed).collect(),
                    found: Some(vec![1; 3].into()),
                    ttl_nanos: Vec::new(),
                    removals: None,
                    age_ms: Vec::new(),
                    errors: Vec::new(),
                    ..GetManyResponse::default()
                };
                connection.send(&ok_with(LARDER, &message.encode().unwrap()));
            }
        });
        let pool = pool_of(&server.url);
        let peer = pool.pick_peer("a").unwrap();
        let answers = peer.get_many(&Context::background(), "colors", &["a", "b", "c"]);
        let found = answers.unwrap().into_iter().flatten().count();
        assert_eq!(found, 0, "{order:?}");
        assert_eq!(get(&pool, "a").unwrap().value, "a");
    }
}

#[test]
fn body_in_an_unrequested_coding_is_refused() {
    // The bytes of a zlib stream begin with the field of an empty value.
    let message = GetResponse {
        value: Some((&b""[..]).into()),
        ..GetResponse::default()
    };
    let bytes = message.encode().unwrap();
    for coding in [
        "deflate",
        "gzip",
        "br",
        "zstd",
        "compress",
        "identity, gzip",
        "x",
    ] {
        for name in ["Content-Encoding", "content-encoding"] {
            let headers = format!("{name}: {coding}\r\n");
            let bytes = bytes.clone();
            let server = server(move |_, _| ok_with(&headers, &bytes));
            let text = peer_error(&pool_of(&server.url), "k");
            assert!(text.contains("encoding"), "{coding}: {text}");
        }
    }
    for coding in ["identity", "Identity", ""] {
        let headers = format!("Content-Encoding: {coding}\r\n");
        let server = server(move |_, key| ok_with(&headers, &keyed_body(key, b"plain")));
        assert_eq!(get(&pool_of(&server.url), "k").unwrap().value, "plain");
    }
}

#[test]
fn coded_text_of_an_error_is_left_out() {
    let headers = "larder-error: getter\r\nContent-Encoding: gzip\r\n";
    let server = server(move |_, _| failure("503 Service Unavailable", headers, "\u{1f}garbage"));
    let error = get(&pool_of(&server.url), "k").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Getter);
    assert!(!error.to_string().contains("garbage"), "{error}");
}
