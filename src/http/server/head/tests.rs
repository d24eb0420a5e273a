//! Heads that servers could read in different ways, and heads in any pieces.

use proptest::prelude::*;

use super::*;
use crate::wire::{Scan, scan};

/// The result of parsing a head, without references to the buffers.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Outcome {
    Incomplete,
    Rejected(u16, &'static str),
    Head {
        len: usize,
        method: String,
        path: String,
        query: Option<String>,
        content_length: u64,
        keep_alive: bool,
    },
}

/// Scans and parses `bytes` as if they arrived in pieces that end at `cuts`.
fn feed(bytes: &[u8], cuts: &[usize]) -> Outcome {
    let mut from = 0;
    for &cut in cuts.iter().chain([&bytes.len()]) {
        let arrived = &bytes[..cut];
        match scan(arrived, from) {
            Err(reason) => return Outcome::Rejected(400, reason),
            Ok(Scan::Incomplete(at)) => from = at,
            Ok(Scan::Complete(len)) => {
                let mut fields = NO_FIELDS;
                return match parse(&arrived[..len], &mut fields) {
                    Err(bad) => Outcome::Rejected(bad.status, bad.reason),
                    Ok(head) => Outcome::Head {
                        len,
                        method: head.method.to_owned(),
                        path: head.path.to_owned(),
                        query: head.query.map(str::to_owned),
                        content_length: head.content_length,
                        keep_alive: head.keep_alive,
                    },
                };
            }
        }
    }
    Outcome::Incomplete
}

fn status(head: &str) -> u16 {
    match feed(head.as_bytes(), &[]) {
        Outcome::Incomplete => 0,
        Outcome::Rejected(status, _) => status,
        Outcome::Head { .. } => 200,
    }
}

/// The status of a request with these further lines; 0 if it is incomplete.
fn status_with(lines: &str) -> u16 {
    status(&format!("GET /k HTTP/1.1\r\nHost: h\r\n{lines}\r\n"))
}

/// All parts of a head.
fn parts(head: &RequestHead<'_>) -> String {
    let fields: Vec<_> = head.fields.iter().map(|f| (f.name, f.value)).collect();
    format!(
        "{:?} {fields:?}",
        RequestHead {
            fields: &[],
            ..*head
        }
    )
}

/// The length of a head and the result of reading it; `None` if it is incomplete, or not similar to
/// the head that it is compared with.
type Parsed = Option<(usize, Result<String, BadRequest>)>;

/// Reads the head at the start of `bytes` in two ways: by parsing it, and by comparing it with `first`.
fn parse_after(first: &[u8], bytes: &[u8]) -> (Parsed, Parsed) {
    let mut fields = NO_FIELDS;
    let complete = |bytes| match scan(bytes, 0) {
        Ok(Scan::Complete(len)) => Some(len),
        _ => None,
    };
    let compared = complete(first).and_then(|len| {
        let first = ParsedHead::parse(&first[..len], &mut fields).ok()?;
        let head = first.is_similar(bytes).then(|| first.with_path_of(bytes))?;
        Some((bytes.len(), head.map(|head| parts(&head))))
    });
    let mut fields = NO_FIELDS;
    let alone = complete(bytes).map(|len| {
        let head = parse(&bytes[..len], &mut fields);
        (len, head.map(|head| parts(&head)))
    });
    (alone, compared)
}

#[test]
fn head_with_another_path_is_read_as_by_the_parser() {
    let lines = " HTTP/1.1\r\nHost: h\r\nlarder-timeout-ms: 1000\r\nX: y\r\n\r\n";
    for start in ["GET ", "\r\nGET ", "BREW "] {
        let first = format!("{start}/one{lines}");
        for path in ["/", "/two/three", "/\u{e9}"] {
            let bytes = format!("{start}{path}{lines}");
            let (alone, compared) = parse_after(first.as_bytes(), bytes.as_bytes());
            assert!(compared.is_some(), "{path}");
            assert_eq!(compared, alone, "{path}");
        }
    }
    let first = format!("GET /one{lines}");
    for other in [
        "GET /two?three HTTP/1.1",
        "GET http://h/x HTTP/1.1",
        "GET * HTTP/1.1",
        "GET /a b HTTP/1.1",
        "GET  /a HTTP/1.1",
        "GET  HTTP/1.1",
        "GET /a\t HTTP/1.1",
        "GET /a HTTP/1.0",
        "PUT /a HTTP/1.1",
        "GET /a HTTP/1.1\r\nContent-Length: 5",
    ] {
        let bytes = format!("{other}{}", &lines[9..]);
        let (_, compared) = parse_after(first.as_bytes(), bytes.as_bytes());
        assert_eq!(compared, None, "{other}");
    }
}

#[test]
fn head_with_its_own_path_is_itself() {
    for line in [
        "GET /",
        "GET /a?b?c",
        "GET http://h/a",
        "GET http://h?b",
        "OPTIONS *",
    ] {
        let bytes = format!("{line} HTTP/1.1\r\nHost: h\r\n\r\n");
        let mut fields = NO_FIELDS;
        let first = ParsedHead::parse(bytes.as_bytes(), &mut fields).expect(line);
        let mut fields = NO_FIELDS;
        let alone = parse(bytes.as_bytes(), &mut fields).expect(line);
        let own = first.with_path_of(bytes.as_bytes()).expect(line);
        assert_eq!((own.path, own.query), (alone.path, alone.query), "{line}");
    }
}

#[test]
fn ambiguous_lengths_are_refused() {
    for lines in [
        "Content-Length: 5\r\nContent-Length: 6\r\n",
        "Content-Length: 5\r\ncontent-length: 5\r\n",
        "Content-Length: 5, 5\r\n",
        "Content-Length: +5\r\n",
        "Content-Length: -5\r\n",
        "Content-Length: 5x\r\n",
        "Content-Length: 0x5\r\n",
        "Content-Length: 5 5\r\n",
        "Content-Length: 5.0\r\n",
        "Content-Length:\r\n",
        "Content-Length: \u{0665}\r\n",
        "Content-Length: 35184372088832\r\n",
        "Content-Length: 200000000000000\r\n",
        "Content-Length: 18446744073709551615\r\n",
        "Content-Length: 18446744073709551616\r\n",
        "Content-Length: 99999999999999999999999999\r\n",
        "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
        "Transfer-Encoding: identity\r\nContent-Length: 0\r\n",
    ] {
        assert_eq!(status_with(lines), 400, "{lines:?}");
    }
    assert_eq!(status_with("Content-Length: 5\r\n"), 200);
    assert_eq!(status_with("Content-Length: 005\r\n"), 200);
    assert_eq!(status_with("Content-Length: \t 5 \r\n"), 200);
    assert_eq!(status_with("Transfer-Encoding: chunked\r\n"), 411);
}

#[test]
fn malformed_headers_are_refused() {
    for lines in [
        "A: b\r\n c\r\n",
        "A: b\r\n\tc\r\n",
        "A : b\r\n",
        " A: b\r\n",
        ": b\r\n",
        "A\r\n",
        "A: b\rc\r\n",
        "A: b\nC: d\r\n",
        "A: \0\r\n",
        "A: \x7f\r\n",
        "A\0: b\r\n",
        "A\u{e9}: b\r\n",
        "Host: h\r\n",
        "Host: i\r\n",
    ] {
        assert_eq!(status_with(lines), 400, "{lines:?}");
    }
    assert_eq!(status_with("A:\r\nB: \t c \t\r\nC: \u{e9}\r\n"), 200);
}

#[test]
fn bare_line_feeds_are_refused_before_the_head_is_complete() {
    for head in [
        "GET / HTTP/1.1\nHost: h\n\n",
        "GET / HTTP/1.1\r\nHost: h\n\r\n",
        "GET / HTTP/1.1\r\nHost: h\r\n\n",
        "\nGET / HTTP/1.1\r\nHost: h\r\n\r\n",
        "GET / HTTP/1.1\rHost: h\r\r",
        "GET / HTTP/1.1\n",
        "\x16\x03\x01\x02",
    ] {
        assert_eq!(status(head), 400, "{head:?}");
    }
}

#[test]
fn request_has_exactly_one_valid_host() {
    assert_eq!(status("GET / HTTP/1.1\r\n\r\n"), 400);
    assert_eq!(status("GET / HTTP/1.0\r\n\r\n"), 200);
    assert_eq!(status("GET / HTTP/1.0\r\nHost: a\r\nHost: a\r\n\r\n"), 400);
    for host in ["a b", "a/b", "user@h", "h?", "h#", "<h>", "h\\i", "\u{e9}"] {
        let head = format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n");
        assert_eq!(status(&head), 400, "{host}");
    }
    for host in ["", "h", "h:80", "10.0.0.1:8080", "[::1]:80", "a_b.c-d"] {
        let head = format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n");
        assert_eq!(status(&head), 200, "{host}");
    }
}

#[test]
fn other_http_versions_are_505_and_garbage_is_400() {
    for version in [
        "HTTP/2.0",
        "HTTP/2",
        "HTTP/0.9",
        "HTTP/3.0",
        "HTTP/1.2",
        "HTTP/10.1",
    ] {
        let head = format!("GET / {version}\r\nHost: h\r\n\r\n");
        assert_eq!(status(&head), 505, "{version}");
    }
    assert_eq!(status("\r\nPRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), 505);
    for version in [
        "",
        "HTTP/",
        "HTTP/x.y",
        "http/1.1",
        "HTTP/1.1 ",
        "HTTP /1.1",
        "FTP/1.1",
    ] {
        let head = format!("GET / {version}\r\nHost: h\r\n\r\n");
        assert_eq!(status(&head), 400, "{version}");
    }
}

#[test]
fn request_line_is_three_words_with_single_spaces() {
    for line in [
        "GET",
        "GET /",
        "GET  / HTTP/1.1",
        "GET /  HTTP/1.1",
        " GET / HTTP/1.1",
        "GET / a HTTP/1.1",
        "GET\t/\tHTTP/1.1",
        "G(T / HTTP/1.1",
        "GET k HTTP/1.1",
        "GET * HTTP/1.1",
        "GET h:80 HTTP/1.1",
        "CONNECT h:80 HTTP/1.1",
        "GET ftp://h/k HTTP/1.1",
        "GET http:///k HTTP/1.1",
    ] {
        let head = format!("{line}\r\nHost: h\r\n\r\n");
        assert_eq!(status(&head), 400, "{line}");
    }
    let not_utf8 = b"GET /\xff HTTP/1.1\r\nHost: h\r\n\r\n";
    assert!(matches!(feed(not_utf8, &[]), Outcome::Rejected(400, _)));
}

#[test]
fn targets_are_split_and_not_resolved() {
    for (method, target, path, query) in [
        ("GET", "/", "/", None),
        ("GET", "/a/../b//c%2F?x=1?y", "/a/../b//c%2F", Some("x=1?y")),
        ("GET", "//x", "//x", None),
        ("GET", "/?", "/", Some("")),
        ("GET", "/a#b", "/a#b", None),
        ("GET", "http://h:1/a?b", "/a", Some("b")),
        ("GET", "HTTPS://h", "/", None),
        ("GET", "http://h?b", "/", Some("b")),
        ("OPTIONS", "*", "*", None),
    ] {
        assert_eq!(split_target(method, target), Ok((path, query)), "{target}");
    }
}

#[test]
fn more_than_64_fields_are_refused() {
    let lines = |count| "A: b\r\n".repeat(count);
    assert_eq!(status_with(&lines(63)), 200);
    assert_eq!(status_with(&lines(64)), 431);
}

#[test]
fn keep_alive_depends_on_version_and_connection_header() {
    let keeps = |version, lines| {
        let head = format!("GET / HTTP/1.{version}\r\nHost: h\r\n{lines}\r\n");
        match feed(head.as_bytes(), &[]) {
            Outcome::Head { keep_alive, .. } => keep_alive,
            other => panic!("{head:?}: {other:?}"),
        }
    };
    assert!(keeps(1, ""));
    assert!(!keeps(0, ""));
    assert!(!keeps(1, "Connection: Close\r\n"));
    assert!(!keeps(1, "Connection: a, close ,b\r\n"));
    assert!(!keeps(1, "Connection: keep-alive\r\nConnection: close\r\n"));
    assert!(keeps(1, "Connection: closed\r\n"));
    assert!(keeps(0, "Connection: keep-alive\r\n"));
    assert!(!keeps(0, "Connection: keep-alive, close\r\n"));
}

#[test]
fn unknown_expectation_is_refused() {
    assert_eq!(status_with("Expect: 100-Continue\r\n"), 200);
    assert_eq!(status_with("Expect: more\r\n"), 417);
}

#[test]
fn bytes_after_the_head_are_ignored() {
    let head = b"\r\n\r\nPOST /a?b HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\n";
    let bytes = [&head[..], b"a\0\nGET /"].concat();
    let expected = Outcome::Head {
        len: head.len(),
        method: "POST".to_owned(),
        path: "/a".to_owned(),
        query: Some("b".to_owned()),
        content_length: 3,
        keep_alive: true,
    };
    assert_eq!(feed(&bytes, &[]), expected);
}

/// Bytes that resemble a head, mostly with an error in it.
fn head_like() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop::sample::select(vec![
        "GET ",
        "/k",
        " HTTP/1.1",
        " HTTP/2.0",
        "\r\n",
        "\r\n",
        "\n",
        "\r",
        " ",
        "\t",
        ":",
        "Host: h\r\n",
        "Content-Length: 5\r\n",
        "Content-Length: 5x\r\n",
        "A: b\r\n",
        "\0",
        "Transfer-Encoding: chunked\r\n",
        "GET / HTTP/1.1\r\nHost: h\r\n",
        "\u{e9}",
        "?",
        "*",
    ]);
    let words = prop::collection::vec(piece, 0..12).prop_map(|words| words.concat().into());
    prop_oneof![words, prop::collection::vec(any::<u8>(), 0..64)]
}

proptest! {
    #[test]
    fn similar_head_is_read_as_by_the_parser(
        method in "[A-Z]{1,4}",
        lines in prop::sample::select(vec![
            " HTTP/1.1\r\nHost: h\r\n\r\n",
            " HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\n",
            " HTTP/1.0\r\nA:\tb\r\n\r\n",
        ]),
        first in prop::sample::select(vec!["/", "/?a", "http://h", "http://h?a"]),
        target in prop_oneof![
            "[ /a?%\r\n\t\x7f\u{e9}*]{0,6}".prop_map(String::into_bytes),
            prop::collection::vec(any::<u8>(), 0..6),
        ],
        cut in any::<prop::sample::Index>(),
    ) {
        let first = format!("{method} {first}{lines}");
        let second = [method.as_bytes(), b" ", &target, lines.as_bytes()].concat();
        for bytes in [&second[..], &second[..cut.index(second.len() + 1)]] {
            let (alone, compared) = parse_after(first.as_bytes(), bytes);
            if compared.is_some() {
                prop_assert_eq!(&compared, &alone, "{:?}", second);
            }
        }
    }

    #[test]
    fn result_does_not_depend_on_how_the_bytes_are_cut(
        bytes in head_like(),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..4),
    ) {
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
        cuts.sort_unstable();
        prop_assert_eq!(feed(&bytes, &cuts), feed(&bytes, &[]));
        let each: Vec<usize> = (0..bytes.len()).collect();
        prop_assert_eq!(feed(&bytes, &each), feed(&bytes, &[]));
    }
}
