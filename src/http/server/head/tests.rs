//! Every way to make a head that somebody could read differently.

use super::*;
use proptest::prelude::*;

/// What is left of a head when the buffers are gone.
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

/// Feeds `bytes` as they would arrive if the network cut them at `cuts`.
fn feed(bytes: &[u8], cuts: &[usize]) -> Outcome {
    let mut from = 0;
    for &cut in cuts.iter().chain([&bytes.len()]) {
        let arrived = &bytes[..cut];
        match scan(arrived, from) {
            Err(reject) => return Outcome::Rejected(reject.status, reject.reason),
            Ok(Scan::Incomplete(at)) => from = at,
            Ok(Scan::Complete(len)) => {
                let mut fields = NO_FIELDS;
                return match parse(&arrived[..len], &mut fields) {
                    Err(reject) => Outcome::Rejected(reject.status, reject.reason),
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

/// Everything that is read of a head.
fn all_of(head: &Head<'_>) -> String {
    let fields = head.fields.iter().map(|field| (field.name, field.value));
    let fields: Vec<_> = fields.collect();
    let Head {
        method,
        path,
        query,
        content_length,
        keep_alive,
        http_10,
        expects_continue,
        ..
    } = head;
    let words = (method, path, query, fields);
    format!("{words:?} {content_length} {keep_alive} {http_10} {expects_continue}")
}

/// What is read of `bytes` by themselves, and behind a head that was kept; each with its length.
type Readings = (Option<(usize, String)>, Option<(usize, String)>);

fn read_behind(first: &[u8], bytes: &[u8]) -> Readings {
    let mut last = LastHead::new();
    let mut fields = NO_FIELDS;
    if let Ok(Scan::Complete(len)) = scan(first, 0) {
        if let Ok(head) = parse(&first[..len], &mut fields) {
            last.keep(&first[..len], &head);
        }
    }
    let mut few = NO_FEW_FIELDS;
    let repeated = last.find(bytes).and_then(|Arrived { len, target }| {
        let head = last.read(&bytes[..len], target?, &mut few)?;
        Some((len, all_of(&head)))
    });
    let mut fields = NO_FIELDS;
    let alone = match scan(bytes, 0) {
        Ok(Scan::Complete(len)) => parse(&bytes[..len], &mut fields)
            .ok()
            .map(|head| (len, all_of(&head))),
        _ => None,
    };
    (alone, repeated)
}

#[test]
fn a_head_that_repeats_the_last_is_read_as_if_it_were_the_first() {
    let lines = " HTTP/1.1\r\nHost: h\r\nlarder-timeout-ms: 1000\r\nX: y\r\n\r\n";
    let first = format!("GET /one{lines}");
    for target in ["/", "/two?three", "/\u{e9}", "http://h/x", "*"] {
        let bytes = format!("GET {target}{lines}GET / HTTP/1.1\r\n");
        let (alone, repeated) = read_behind(first.as_bytes(), bytes.as_bytes());
        assert_eq!(repeated, alone, "{target}");
    }
    for other in [
        "GET /a b HTTP/1.1",
        "GET  /a HTTP/1.1",
        "GET /a\t HTTP/1.1",
        "GET /a HTTP/1.0",
        "PUT /a HTTP/1.1",
        "GET /a HTTP/1.1\r\nContent-Length: 5",
    ] {
        let bytes = format!("{other}{}", &lines[9..]);
        let (_, repeated) = read_behind(first.as_bytes(), bytes.as_bytes());
        assert_eq!(repeated, None, "{other}");
    }
}

#[test]
fn heads_that_peers_do_not_send_are_not_kept() {
    let many = "X: y\r\n".repeat(8);
    for first in [
        format!("GET /a HTTP/1.1\r\nHost: h\r\n{many}\r\n"),
        "BREW /a HTTP/1.1\r\nHost: h\r\n\r\n".to_owned(),
        format!(
            "GET /a HTTP/1.1\r\nHost: h\r\nX: {}\r\n\r\n",
            "y".repeat(600)
        ),
    ] {
        let (alone, repeated) = read_behind(first.as_bytes(), first.as_bytes());
        assert!(alone.is_some() && repeated.is_none(), "{first}");
    }
}

fn status(head: &str) -> u16 {
    match feed(head.as_bytes(), &[]) {
        Outcome::Incomplete => 0,
        Outcome::Rejected(status, _) => status,
        Outcome::Head { .. } => 200,
    }
}

/// The status that a request with these further lines gets; 0 while it is incomplete.
fn status_with(lines: &str) -> u16 {
    status(&format!("GET /k HTTP/1.1\r\nHost: h\r\n{lines}\r\n"))
}

#[test]
fn lengths_that_could_be_read_in_two_ways_are_refused() {
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
fn a_bare_line_feed_is_refused_where_it_stands() {
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
fn an_http_11_request_has_one_host() {
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
fn other_versions_are_named_and_garbage_is_not() {
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
fn request_lines_are_three_words_with_single_spaces() {
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
fn sixty_four_fields_are_enough() {
    let lines = |count| "A: b\r\n".repeat(count);
    assert_eq!(status_with(&lines(63)), 200);
    assert_eq!(status_with(&lines(64)), 431);
}

#[test]
fn connections_stay_open_as_the_version_and_the_client_say() {
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
fn an_unknown_expectation_is_refused() {
    assert_eq!(status_with("Expect: 100-Continue\r\n"), 200);
    assert_eq!(status_with("Expect: more\r\n"), 417);
}

#[test]
fn what_follows_a_head_is_left_alone() {
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

/// Bytes that look like a head, most of the time with something wrong in it.
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
    fn whatever_came_before_a_head_is_read_in_one_way(
        before in a_head(),
        (target, cut) in ("[ /a?%\r\n\t\x7f\u{e9}*]{0,6}", any::<prop::sample::Index>()),
    ) {
        let lines = before.find(" HTTP").map_or("", |at| &before[at..]);
        let second = format!("GET {target}{lines}");
        let cut = &second.as_bytes()[..cut.index(second.len() + 1)];
        for bytes in [second.as_bytes(), cut] {
            let (alone, repeated) = read_behind(before.as_bytes(), bytes);
            if repeated.is_some() {
                prop_assert_eq!(&repeated, &alone, "{:?}", second);
            }
        }
    }

    #[test]
    fn any_bytes_parse_or_not_however_they_are_cut(
        bytes in head_like(),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..4),
    ) {
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
        cuts.sort_unstable();
        prop_assert_eq!(feed(&bytes, &cuts), feed(&bytes, &[]));
        let each: Vec<usize> = (0..bytes.len()).collect();
        prop_assert_eq!(feed(&bytes, &each), feed(&bytes, &[]));
    }

    #[test]
    fn lengths_are_read_as_numbers(length in 0..ABSURD_LENGTH) {
        prop_assert_eq!(parse_length(length.to_string().as_bytes()), Ok(length));
    }
}

/// A head, mostly of a kind that is kept.
fn a_head() -> impl Strategy<Value = String> {
    let line = prop::sample::select(vec![
        "larder-timeout-ms: 1000",
        "Connection: close",
        "Content-Length: 7",
        "Expect: 100-continue",
        "X:y",
        "x:  y ",
        "Host: again",
        "",
    ]);
    let lines = prop::collection::vec(line, 0..10);
    let methods = prop::sample::select(vec!["GET", "GET", "POST", "\r\nGET", "PUT"]);
    (methods, lines, any::<bool>()).prop_map(|(method, lines, old)| {
        let lines: String = lines.iter().map(|line| format!("{line}\r\n")).collect();
        let version = if old { "1.0" } else { "1.1" };
        format!("{method} /key HTTP/{version}\r\nHost: h\r\n{lines}\r\n")
    })
}
