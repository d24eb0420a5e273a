//! One request head, from bytes: what httparse accepts, less everything that two servers could read
//! in two ways.
//!
//! [`scan`] finds the end of a head as its bytes arrive, and refuses early what no head contains;
//! [`parse`] reads the head once it is complete. So it makes no difference how the network cuts a
//! head into pieces. Neither touches a socket.
//!
//! Whatever is refused here ends the connection: after a head that could be read in two ways,
//! nobody knows where the next request begins (request smuggling; RFC 9112, section 11.2).

use httparse::{EMPTY_HEADER, Header};

/// A head as far as the connection and the answer need it.
#[derive(Debug)]
pub(crate) struct Head<'h> {
    pub method: &'h str,
    /// Escaped as it came, without the query.
    pub path: &'h str,
    pub query: Option<&'h str>,
    pub fields: &'h [Header<'h>],
    /// Announced, not received: check it against a limit before anything is allocated.
    pub content_length: u64,
    pub keep_alive: bool,
    pub http_10: bool,
    /// The client waits for a `100 Continue` before it sends the body.
    pub expects_continue: bool,
}

/// Why a request is refused. The connection ends with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reject {
    pub status: u16,
    pub reason: &'static str,
}

/// How far [`scan`] came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scan {
    /// The head is this many bytes long.
    Complete(usize),
    /// More bytes are needed; the scan goes on from this position.
    Incomplete(usize),
}

impl<'h> Head<'h> {
    /// A head whose parts were taken apart already; applies every rule that is left to apply.
    pub(crate) fn new(
        method: &'h str,
        target: &'h str,
        http_10: bool,
        fields: &'h [Header<'h>],
    ) -> Result<Self, Reject> {
        let (path, query) = split_target(method, target)?;
        let mut head = Head {
            method,
            path,
            query,
            fields,
            content_length: 0,
            keep_alive: !http_10,
            http_10,
            expects_continue: false,
        };
        head.read_fields()?;
        Ok(head)
    }

    fn read_fields(&mut self) -> Result<(), Reject> {
        let mut hosts = 0;
        let mut length = None;
        let mut encoded = false;
        let (mut close, mut keep_alive) = (false, false);
        for field in self.fields {
            let is = |name: &str| field.name.eq_ignore_ascii_case(name);
            if is("host") {
                hosts += 1;
                if !field.value.iter().copied().all(is_host_byte) {
                    return Err(bad("the Host is not a host"));
                }
            } else if is("content-length") {
                // Two equal lengths are refused too: RFC 9112, section 6.3, allows it, and no
                // client sends them.
                if length.replace(parse_length(field.value)?).is_some() {
                    return Err(bad("two Content-Lengths"));
                }
            } else if is("transfer-encoding") {
                encoded = true;
            } else if is("connection") {
                close |= has_token(field.value, b"close");
                keep_alive |= has_token(field.value, b"keep-alive");
            } else if is("expect") {
                if !field.value.eq_ignore_ascii_case(b"100-continue") {
                    return Err(Reject {
                        status: 417,
                        reason: "the only expectation met here is 100-continue",
                    });
                }
                // RFC 9110, section 10.1.1: ignored from an HTTP/1.0 client.
                self.expects_continue = !self.http_10;
            }
        }
        if hosts > 1 || (hosts == 0 && !self.http_10) {
            return Err(bad("a request has one Host"));
        }
        if encoded {
            return Err(match length {
                Some(_) => bad("Content-Length with Transfer-Encoding"),
                None => Reject {
                    status: 411,
                    reason: "a body needs a Content-Length; no transfer coding is read here",
                },
            });
        }
        self.content_length = length.unwrap_or(0);
        self.keep_alive = !close && (keep_alive || !self.http_10);
        Ok(())
    }
}

/// Looks for the end of the head at the start of `bytes`, from `from` on: 0 at first, then what the
/// last call returned.
///
/// Empty lines before the head are passed over and counted as part of it (RFC 9112, section 2.2).
///
/// # Errors
///
/// At the first byte that cannot be in a head: a control character, a line end of LF or CR alone.
/// So a TLS handshake or a binary protocol is refused at once, not at the deadline.
pub(crate) fn scan(bytes: &[u8], from: usize) -> Result<Scan, Reject> {
    let mut start = 0;
    while bytes[start..].starts_with(b"\r\n") {
        start += 2;
    }
    let mut at = from.max(start);
    while let Some(offset) = bytes[at..].iter().position(|&byte| is_control(byte)) {
        at += offset;
        match bytes[at..] {
            [b'\r'] => return Ok(Scan::Incomplete(at)),
            [b'\r', b'\n', ..] if at > start && bytes[..at].ends_with(b"\r\n") => {
                return Ok(Scan::Complete(at + 2));
            }
            [b'\r', b'\n', ..] => at += 2,
            [b'\r' | b'\n', ..] => return Err(bad("a line ends in CR LF")),
            _ => return Err(bad("a control character in the head")),
        }
    }
    Ok(Scan::Incomplete(bytes.len()))
}

/// Reads a head that [`scan`] found complete; `fields` is where its headers are put.
pub(crate) fn parse<'h>(
    bytes: &'h [u8],
    fields: &'h mut [Header<'h>; MAX_FIELDS],
) -> Result<Head<'h>, Reject> {
    let mut request = httparse::Request::new(fields);
    match request.parse(bytes) {
        // No byte may be left over: `scan` and httparse agree on where a head ends.
        Ok(httparse::Status::Complete(len)) if len == bytes.len() => {}
        Ok(_) => return Err(bad("not an HTTP request")),
        Err(httparse::Error::TooManyHeaders) => return Err(TOO_MANY_FIELDS),
        Err(httparse::Error::Version) if names_other_version(bytes) => {
            return Err(Reject {
                status: 505,
                reason: "HTTP/1.1 and HTTP/1.0 are spoken here",
            });
        }
        Err(httparse::Error::HeaderName | httparse::Error::HeaderValue) => {
            return Err(bad("a malformed header"));
        }
        Err(_) => return Err(bad("not an HTTP request")),
    }
    let (Some(method), Some(target), Some(minor)) = (request.method, request.path, request.version)
    else {
        return Err(bad("not an HTTP request"));
    };
    Head::new(method, target, minor == 0, request.headers)
}

/// Room for the headers of one head.
pub(crate) const NO_FIELDS: [Header<'static>; MAX_FIELDS] = [EMPTY_HEADER; MAX_FIELDS];

/// The most header fields of a request. More are answered with 431.
pub(crate) const MAX_FIELDS: usize = 64;

/// What more than [`MAX_FIELDS`] are answered with.
pub(crate) const TOO_MANY_FIELDS: Reject = Reject {
    status: 431,
    reason: "more than 64 header fields",
};

/// What a body over the server's limit is answered with.
pub(crate) const BODY_TOO_LARGE: Reject = Reject {
    status: 413,
    reason: "the body of the request is too large",
};

/// Takes path and query out of a request's target (RFC 9112, section 3.2).
pub(super) fn split_target<'t>(
    method: &str,
    target: &'t str,
) -> Result<(&'t str, Option<&'t str>), Reject> {
    if target == "*" && method == "OPTIONS" {
        return Ok((target, None));
    }
    let from_path = if target.starts_with('/') {
        target
    } else {
        after_authority(target).ok_or(bad("the target is neither a path nor an http URL"))?
    };
    let (path, query) = match from_path.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (from_path, None),
    };
    Ok((if path.is_empty() { "/" } else { path }, query))
}

/// What follows the authority of an http URL; `None` if `target` is not one.
fn after_authority(target: &str) -> Option<&str> {
    let (scheme, rest) = target.split_once("://")?;
    if !scheme.eq_ignore_ascii_case("http") && !scheme.eq_ignore_ascii_case("https") {
        return None;
    }
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    (end > 0).then(|| &rest[end..])
}

/// Digits only: no sign, no list, no space inside. Rust's own parser takes a plus sign.
fn parse_length(value: &[u8]) -> Result<u64, Reject> {
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return Err(bad("the Content-Length is not a number"));
    }
    let length = value.iter().try_fold(0_u64, |sum, digit| {
        sum.checked_mul(10)?.checked_add(u64::from(digit - b'0'))
    });
    match length {
        Some(length) if length < ABSURD_LENGTH => Ok(length),
        _ => Err(bad("the Content-Length is absurd")),
    }
}

/// Whether the request line is one but for the HTTP version, which is not 1.0 or 1.1.
fn names_other_version(head: &[u8]) -> bool {
    let mut lines = head.split(|&byte| byte == b'\r' || byte == b'\n');
    let line = lines.find(|line| !line.is_empty()).unwrap_or_default();
    let mut words = line.split(|&byte| byte == b' ');
    let (Some(version), None) = (words.nth(2), words.next()) else {
        return false;
    };
    version.strip_prefix(b"HTTP/").is_some_and(|digits| {
        digits.first().is_some_and(u8::is_ascii_digit)
            && digits.iter().all(|b| b.is_ascii_digit() || *b == b'.')
    })
}

fn has_token(list: &[u8], token: &[u8]) -> bool {
    list.split(|&byte| byte == b',')
        .any(|element| element.trim_ascii().eq_ignore_ascii_case(token))
}

/// RFC 3986, section 3.2, without user information: a name or address, and perhaps a port.
fn is_host_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=%:[]".contains(&byte)
}

/// What is in no head, but for the line ends between its lines.
pub(super) fn is_control(byte: u8) -> bool {
    (byte < b' ' && byte != b'\t') || byte == 0x7f
}

const fn bad(reason: &'static str) -> Reject {
    Reject {
        status: 400,
        reason,
    }
}

/// A length that no request has: 1 TiB. Less, but over the server's limit, is a body that is too
/// large (413); this is not meant to be a body.
const ABSURD_LENGTH: u64 = 1 << 40;

#[cfg(test)]
mod tests {
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
}
