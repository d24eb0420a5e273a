//! The client's result for each answer that a peer can give.

use larder::ErrorKind;

use super::raw_server::{RawServer, body, failure, keyed_body, ok};
use super::{get, peer_error, pool_of, pool_with};

const SERVER: &str = "Server: larder\r\n";
const PROTOBUF: &str = "Content-Type: application/x-protobuf\r\n";

#[test]
fn values_of_all_sizes_arrive() {
    for size in [0, 1, 100, 8000, 8192, 70_000, 262_144, 300_000, 3 << 20] {
        let value: Vec<u8> = (0..size).map(|n| (n % 251) as u8).collect();
        let server = RawServer::answering(ok(&body(&value)));
        let pool = pool_of(&server.url);
        for _ in 0..2 {
            assert!(get(&pool, "k").unwrap().value == value, "{size}");
        }
        assert_eq!(server.connections(), 1, "{size}");
    }
}

#[test]
fn chunked_answer_is_accepted() {
    let value = vec![b'x'; 100_000];
    let mut answer =
        format!("HTTP/1.1 200 OK\r\n{PROTOBUF}Transfer-Encoding: chunked\r\n\r\n").into_bytes();
    for chunk in body(&value).chunks(4096) {
        answer.extend(format!("{:x}\r\n", chunk.len()).as_bytes());
        answer.extend(chunk);
        answer.extend(b"\r\n");
    }
    answer.extend(b"0\r\n\r\n");
    let server = RawServer::answering(answer);
    let pool = pool_of(&server.url);
    for _ in 0..2 {
        assert_eq!(get(&pool, "k").unwrap().value, value);
    }
    assert_eq!(server.connections(), 1);
}

/// HTTP versions and headers with which a connection ends after the answer.
const CLOSING: [(&str, &str); 2] = [("HTTP/1.1", "Connection: close\r\n"), ("HTTP/1.0", "")];

#[test]
fn answer_with_close_is_complete_before_the_connection_is_closed() {
    for (version, close) in CLOSING {
        for value in [&b""[..], b"#f00", &[b'x'; 100_000]] {
            let whole = keyed_body("k", value);
            let length = whole.len();
            let head = format!(
                "{version} 200 OK\r\n{SERVER}{PROTOBUF}{close}Content-Length: {length}\r\n\r\n"
            );
            let answer = [head.as_bytes(), &whole].concat();
            let refusal = format!(
                "{version} 404 No\r\nlarder-error: not-found\r\n{close}Content-Length: 5\r\n\r\nmauve"
            );
            // The first answer names larder as the server. The others announce the end of their
            // connections, but the server keeps these open.
            let first = ok(&keyed_body("k", b"first"));
            let server = RawServer::start(move |mut connection| {
                connection.read_head();
                if connection.number == 0 {
                    connection.send(&first);
                    connection.read_head();
                }
                if connection.number == 2 {
                    connection.send(refusal.as_bytes());
                } else {
                    connection.send(&answer);
                }
                connection.wait_for_close();
            });
            let pool = pool_of(&server.url);
            assert_eq!(get(&pool, "k").unwrap().value, "first");
            for number in [1, 2] {
                assert!(get(&pool, "k").unwrap().value == *value, "{version}");
                assert_eq!(server.connections(), number, "{version}");
            }
            let error = get(&pool, "k").unwrap_err();
            assert!(error.is_not_found(), "{error}");
            assert!(error.to_string().contains("mauve"), "{error}");
        }
    }
}

#[test]
fn small_value_over_the_limit_is_refused() {
    let server = RawServer::answering(ok(&body(&[b'x'; 2000])));
    let pool = pool_with(&server.url, |builder| builder.max_value_size(100));
    for _ in 0..2 {
        let text = peer_error(&pool, "k");
        assert!(text.contains("max_value_size"), "{text}");
    }
}

#[test]
fn hundred_headers_are_accepted() {
    let whole = body(b"#f00");
    let (length, others) = (whole.len(), "x-proxy: 1\r\n".repeat(98));
    let head = format!("HTTP/1.1 200 OK\r\n{others}{PROTOBUF}Content-Length: {length}\r\n\r\n");
    let server = RawServer::answering([head.as_bytes(), &whole].concat());
    assert_eq!(get(&pool_of(&server.url), "k").unwrap().value, "#f00");
}

#[test]
fn empty_body_is_an_empty_value() {
    let server = RawServer::answering(ok(b""));
    let pool = pool_of(&server.url);
    for _ in 0..2 {
        assert!(get(&pool, "k").unwrap().value.is_empty());
    }
    assert_eq!(server.connections(), 1);
}

/// Answers that the client rejects, each with a name.
fn rejected_answers() -> Vec<(&'static str, Vec<u8>)> {
    let mut answers = answers_with_bad_bodies();
    answers.extend(answers_with_bad_lengths());
    answers.extend(answers_with_bad_chunks());
    answers.extend(answers_with_bad_heads());
    answers
}

/// An answer with the value `#f00`, its length and these header fields.
fn answer_with(fields: &str) -> Vec<u8> {
    let whole = body(b"#f00");
    let head = format!(
        "HTTP/1.1 200 OK\r\n{fields}Content-Length: {}\r\n\r\n",
        whole.len()
    );
    [head.as_bytes(), &whole].concat()
}

const HTML: &str = "<!DOCTYPE html><html><title>Sign in</title></html>";

fn answers_with_bad_bodies() -> Vec<(&'static str, Vec<u8>)> {
    let truncated = ok(&[b'x'; 1000])[..200].to_vec();
    vec![
        ("corrupt protobuf", ok(b"\x0a\xff")),
        ("corrupt in the middle", ok(b"\x0a\x01x\x0a\x05y")),
        ("truncated body", truncated),
        ("HTML page with status 200", ok(HTML.as_bytes())),
        ("HTML page with its own type", {
            let head = "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 50\r\n\r\n";
            [head, HTML].concat().into_bytes()
        }),
        (
            "another type",
            answer_with("Content-Type: application/json\r\n"),
        ),
        (
            "a longer type",
            answer_with("Content-Type: application/x-protobuf2\r\n"),
        ),
        ("no type", answer_with("")),
    ]
}

fn answers_with_bad_lengths() -> Vec<(&'static str, Vec<u8>)> {
    let whole = body(b"#f00");
    vec![
        ("no length", {
            let head = format!("HTTP/1.1 200 OK\r\n{PROTOBUF}\r\n");
            [head.as_bytes(), &whole].concat()
        }),
        ("no length, HTTP/1.0", {
            let head = format!("HTTP/1.0 200 OK\r\n{PROTOBUF}\r\n");
            [head.as_bytes(), &whole].concat()
        }),
        (
            "two lengths",
            answer_with(&format!("{PROTOBUF}Content-Length: 5\r\n")),
        ),
        ("a length with a sign", {
            let head = format!("HTTP/1.1 200 OK\r\n{PROTOBUF}Content-Length: +6\r\n\r\n");
            [head.as_bytes(), &whole].concat()
        }),
        ("a length and chunks", {
            let head = format!(
                "HTTP/1.1 200 OK\r\n{PROTOBUF}Content-Length: 3\r\nTransfer-Encoding: chunked\r\n"
            );
            [head.as_bytes(), b"\r\n3\r\n\x0a\x01x\r\n0\r\n\r\n"].concat()
        }),
        (
            "a length and another coding",
            answer_with(&format!("{PROTOBUF}Transfer-Encoding: gzip\r\n")),
        ),
        ("chunks with another coding", {
            let head = format!("HTTP/1.1 200 OK\r\n{PROTOBUF}Transfer-Encoding: chunked, gzip\r\n");
            [head.as_bytes(), b"\r\n3\r\n\x0a\x01x\r\n0\r\n\r\n"].concat()
        }),
        ("chunks, HTTP/1.0", {
            let head = format!("HTTP/1.0 200 OK\r\n{PROTOBUF}Transfer-Encoding: chunked\r\n");
            [head.as_bytes(), b"\r\n3\r\n\x0a\x01x\r\n0\r\n\r\n"].concat()
        }),
    ]
}

fn answers_with_bad_chunks() -> Vec<(&'static str, Vec<u8>)> {
    let chunked = format!("HTTP/1.1 200 OK\r\n{PROTOBUF}Transfer-Encoding: chunked\r\n\r\n");
    let whole = body(b"#f00");
    vec![
        (
            "chunked garbage",
            [chunked.as_bytes(), b"zz\r\nhello\r\n"].concat(),
        ),
        (
            "a chunk cut off",
            [chunked.as_bytes(), b"10\r\n\x0a\x01x"].concat(),
        ),
        (
            "chunks without an end",
            [chunked.as_bytes(), b"3\r\n\x0a\x01x\r\n"].concat(),
        ),
        (
            "a chunk whose line ends in LF",
            [chunked.as_bytes(), b"6\n", &whole, b"\n0\n\n"].concat(),
        ),
        (
            "a chunk size with a sign",
            [chunked.as_bytes(), b"+6\r\n", &whole, b"\r\n0\r\n\r\n"].concat(),
        ),
        (
            "a chunk size after a space",
            [chunked.as_bytes(), b" 6\r\n", &whole, b"\r\n0\r\n\r\n"].concat(),
        ),
        ("trailers without end", {
            let mut answer = [chunked.as_bytes(), b"6\r\n", &whole, b"\r\n0\r\n"].concat();
            answer.extend(b"x: y\r\n".repeat(10_000));
            answer
        }),
        ("a trailer without end", {
            let mut answer = [chunked.as_bytes(), b"6\r\n", &whole, b"\r\n0\r\n"].concat();
            answer.extend(&[b'y'; 100_000]);
            answer
        }),
    ]
}

fn answers_with_bad_heads() -> Vec<(&'static str, Vec<u8>)> {
    let whole = body(b"#f00");
    vec![
        (
            "a redirect",
            failure("302 Found", "Location: http://127.0.0.1:1/\r\n", ""),
        ),
        (
            "a redirect to itself",
            failure("301 Moved", "Location: /\r\n", "over there"),
        ),
        (
            "a redirect without end",
            b"HTTP/1.1 302 Found\r\nLocation: /\r\n".to_vec(),
        ),
        (
            "a server's failure",
            failure("500 Internal Server Error", "", HTML),
        ),
        ("a gateway's failure", failure("502 Bad Gateway", "", "")),
        ("no content", b"HTTP/1.1 204 No Content\r\n\r\n".to_vec()),
        (
            "another protocol",
            b"HTTP/1.1 101 Switching Protocols\r\n\r\n".to_vec(),
        ),
        ("status 0", b"HTTP/1.1 000 Nothing\r\n\r\n".to_vec()),
        ("not HTTP", b"SSH-2.0-OpenSSH_9.6\r\n".to_vec()),
        ("half a head", b"HTTP/1.1 200 OK\r\nContent-Le".to_vec()),
        ("a huge head", {
            let line = format!("x: {}\r\n", "y".repeat(1000));
            [b"HTTP/1.1 200 OK\r\n", line.repeat(100).as_bytes()].concat()
        }),
        (
            "a huge line",
            [b"HTTP/1.1 200 ", &[b'y'; 100_000][..]].concat(),
        ),
        (
            "a line that ends in LF",
            [b"HTTP/1.1 200 OK\n", &ok(&whole)[17..]].concat(),
        ),
        (
            "interim responses without end",
            b"HTTP/1.1 103 Early Hints\r\nx: y\r\n\r\n".repeat(10_000),
        ),
    ]
}

#[test]
fn unusual_but_valid_answers_are_accepted() {
    let whole = body(b"#f00");
    let chunked = format!("HTTP/1.1 200 OK\r\n{PROTOBUF}Transfer-Encoding: chunked\r\n\r\n");
    let interim = b"HTTP/1.1 103 Early Hints\r\nx: y\r\n\r\n";
    let extension = format!("00006;name=\"{}\"\r\n", "v".repeat(100));
    for (name, answer) in [
        (
            "interim responses",
            [&interim.repeat(20), &*ok(&whole)].concat(),
        ),
        ("an empty line first", [b"\r\n", &*ok(&whole)].concat()),
        (
            "a chunk with a long extension",
            [
                chunked.as_bytes(),
                extension.as_bytes(),
                &whole,
                b"\r\n0\r\n\r\n",
            ]
            .concat(),
        ),
        (
            "some trailers",
            [
                chunked.as_bytes(),
                b"6\r\n",
                &whole,
                b"\r\n0\r\na: b\r\nc: d\r\n\r\n",
            ]
            .concat(),
        ),
    ] {
        let server = RawServer::answering(answer);
        let pool = pool_of(&server.url);
        for _ in 0..2 {
            assert_eq!(get(&pool, "k").expect(name).value, "#f00", "{name}");
        }
        assert_eq!(server.connections(), 1, "{name}");
    }
}

#[test]
fn malformed_or_foreign_answer_is_an_error_of_the_peer() {
    for (name, answer) in rejected_answers() {
        let server = RawServer::answering_once(answer);
        let text = peer_error(&pool_of(&server.url), "k");
        println!("{name}: {text}");
        assert_eq!(server.connections(), 1, "{name}");
    }
}

#[test]
fn value_of_max_value_size_is_accepted_and_a_larger_one_is_refused() {
    for (size, accepted) in [(50_000, true), (50_001, false), (51_100, false)] {
        let chunk = body(&vec![b'x'; size]);
        let head = format!("HTTP/1.1 200 OK\r\n{PROTOBUF}Transfer-Encoding: chunked\r\n\r\n");
        let chunked = [
            head.as_bytes(),
            format!("{:x}\r\n", chunk.len()).as_bytes(),
            &chunk,
            b"\r\n0\r\n\r\n",
        ]
        .concat();
        for answer in [ok(&chunk), chunked] {
            let server = RawServer::answering(answer);
            let pool = pool_with(&server.url, |builder| builder.max_value_size(50_000));
            if accepted {
                assert_eq!(get(&pool, "k").unwrap().value.len(), size);
            } else {
                let text = peer_error(&pool, "k");
                assert!(text.contains("max_value_size"), "{text}");
            }
        }
    }
}

#[test]
fn client_stops_reading_an_endless_answer() {
    for (chunk, why) in [
        // The limit counts the bytes on the wire: six for each byte of the body.
        ("1\r\nx\r\n".repeat(10_000), "the answer is too long"),
        (format!("ffff\r\n{:65535}\r\n", ""), "max_value_size"),
    ] {
        let server = RawServer::start(move |mut connection| {
            connection.read_head();
            let head = format!("HTTP/1.1 200 OK\r\n{PROTOBUF}Transfer-Encoding: chunked\r\n\r\n");
            connection.send(head.as_bytes());
            // Ends when the client closes.
            while connection.send(chunk.as_bytes()) {}
        });
        let pool = pool_with(&server.url, |builder| {
            let builder = builder.max_value_size(1 << 20);
            builder.exchange_timeout(std::time::Duration::from_secs(60))
        });
        let text = peer_error(&pool, "k");
        assert!(text.contains(why), "{text}");
    }
}

#[test]
fn error_of_the_owner_reaches_the_caller_with_kind_and_text() {
    let cases = [
        (
            "404 Not Found",
            "larder-error: not-found\r\n",
            "no color mauve",
            ErrorKind::NotFound,
        ),
        (
            "503 Service Unavailable",
            "larder-error: getter\r\n",
            "disk on fire",
            ErrorKind::Getter,
        ),
        (
            "503 Service Unavailable",
            "Larder-Error: panicked\r\n",
            "the getter panicked",
            ErrorKind::GetterPanicked,
        ),
    ];
    for (status, header, text, kind) in cases {
        let server = RawServer::answering(failure(status, header, text));
        let error = get(&pool_of(&server.url), "mauve").unwrap_err();
        assert_eq!((error.kind(), error.to_string().as_str()), (kind, text));
    }
}

#[test]
fn not_found_without_larder_header_is_an_unknown_group() {
    let unknown = "larder-error: unknown-group\r\n";
    for header in ["", unknown] {
        let server = RawServer::answering(failure("404 Not Found", header, "no such group: c\n"));
        let error = get(&pool_of(&server.url), "mauve").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::UnknownGroup);
        let text = error.to_string();
        assert!(
            text.contains(&server.url) && text.contains("no such group: c"),
            "{text}"
        );
    }
}

#[test]
fn deadline_status_is_an_error_of_the_peer() {
    let server = RawServer::answering(failure(
        "504 Gateway Timeout",
        "larder-error: deadline\r\n",
        "the caller's deadline passed",
    ));
    peer_error(&pool_of(&server.url), "k");
}

#[test]
fn key_too_long_for_a_url_is_not_sent() {
    let server = RawServer::answering(ok(&body(b"x")));
    let pool = pool_of(&server.url);
    let text = peer_error(&pool, &"k".repeat(100_000));
    assert!(text.contains("too long"), "{text}");
    assert_eq!(server.connections(), 0);
    get(&pool, &"k".repeat(8000)).unwrap();
}
