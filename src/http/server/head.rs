//! Parses the head of a request: as httparse does, but refuses everything that two servers could read
//! in two ways.
//!
//! [`scan`](crate::wire::scan) finds the end of a head as its bytes arrive; [`parse`] reads the head
//! once it is complete. So it makes no difference how the network cuts a head into pieces.
//!
//! A refused head ends the connection: if it could be read in two ways, it is not certain where the
//! next request begins (request smuggling; RFC 9112, section 11.2).

use std::mem::MaybeUninit;
use std::time::Duration;

use httparse::Header;

use crate::wire::{self, has_token, parse_length};

/// The parts of a head that the connection and the response depend on.
#[derive(Debug)]
pub(crate) struct RequestHead<'h> {
    pub method: &'h str,
    /// Still escaped, without the query.
    pub path: &'h str,
    pub query: Option<&'h str>,
    pub fields: &'h [Header<'h>],
    /// The announced length: compare it with a limit before anything is allocated.
    pub content_length: u64,
    pub keep_alive: bool,
    pub http_10: bool,
    /// The client waits for a `100 Continue` before it sends the body.
    pub expects_continue: bool,
    /// The first [`wire::PEERS_HEADER`].
    pub peers_mark: Option<&'h str>,
    /// The first [`wire::TIMEOUT_HEADER`]; `Some(None)` if it is malformed.
    pub timeout: Option<Option<Duration>>,
    /// The hash of the first [`wire::KNOWN_HEADER`] that has one.
    pub known_value: Option<u64>,
}

/// The reason that a request is refused. The connection ends with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BadRequest {
    pub status: u16,
    pub reason: &'static str,
}

impl<'h> RequestHead<'h> {
    /// Checks a head that was split into its parts already, here or by tiny_http.
    pub(crate) fn new(
        method: &'h str,
        target: &'h str,
        http_10: bool,
        fields: &'h [Header<'h>],
    ) -> Result<Self, BadRequest> {
        let (path, query) = split_target(method, target)?;
        let mut head = RequestHead {
            method,
            path,
            query,
            fields,
            content_length: 0,
            keep_alive: !http_10,
            http_10,
            expects_continue: false,
            peers_mark: None,
            timeout: None,
            known_value: None,
        };
        head.read_fields()?;
        Ok(head)
    }

    fn read_fields(&mut self) -> Result<(), BadRequest> {
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
                // Two equal lengths are refused too: RFC 9112, section 6.3, allows them, but no client
                // sends them.
                let found = parse_length(field.value).map_err(bad)?;
                if length.replace(found).is_some() {
                    return Err(bad("two Content-Lengths"));
                }
            } else if is("transfer-encoding") {
                encoded = true;
            } else if is("connection") {
                close |= has_token(field.value, b"close");
                keep_alive |= has_token(field.value, b"keep-alive");
            } else if is(wire::PEERS_HEADER) {
                self.peers_mark = self.peers_mark.or(std::str::from_utf8(field.value).ok());
            } else if is(wire::TIMEOUT_HEADER) {
                self.timeout = self.timeout.or(Some(wire::parse_timeout(field.value)));
            } else if is(wire::KNOWN_HEADER) {
                let known = std::str::from_utf8(field.value).ok();
                self.known_value = self.known_value.or(known.and_then(wire::parse_known));
            } else if is("expect") {
                if !field.value.eq_ignore_ascii_case(b"100-continue") {
                    return Err(BadRequest {
                        status: 417,
                        reason: "the only supported expectation is 100-continue",
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
                None => BadRequest {
                    status: 411,
                    reason: "a body needs a Content-Length; transfer codings are not supported",
                },
            });
        }
        self.content_length = length.unwrap_or(0);
        self.keep_alive = !close && (keep_alive || !self.http_10);
        Ok(())
    }
}

/// A head that later heads of its connection are compared with.
///
/// Successive requests of a peer differ only in the key, which is in the path.
pub(crate) struct ParsedHead<'h> {
    head: RequestHead<'h>,
    before_path: &'h [u8],
    /// With the query, if there is one.
    after_path: &'h [u8],
}

impl<'h> ParsedHead<'h> {
    /// Parses a head that [`scan`](crate::wire::scan) found complete. Its headers are stored in
    /// `fields`.
    pub(crate) fn parse(
        bytes: &'h [u8],
        fields: &'h mut [MaybeUninit<Header<'h>>; MAX_FIELDS],
    ) -> Result<Self, BadRequest> {
        let head = parse(bytes, fields)?;
        // One space ends the method, and one the target. Neither contains a space.
        let method_len = bytes.iter().take_while(|byte| **byte != b' ').count();
        let (before_path, rest) = bytes.split_at(method_len + 1);
        let is_path = |byte: &&u8| !matches!(**byte, b' ' | b'?');
        let path_len = rest.iter().take_while(is_path).count();
        Ok(ParsedHead {
            head,
            before_path,
            after_path: &rest[path_len..],
        })
    }

    /// Whether `bytes` are one complete head that differs from this one in its path only.
    ///
    /// The path has no space, no control character and no query. So the lines end where those of this
    /// head end.
    pub(crate) fn is_similar(&self, bytes: &[u8]) -> bool {
        let rest = bytes.strip_prefix(self.before_path);
        let path = rest.and_then(|rest| rest.strip_suffix(self.after_path));
        let is_end = |byte: u8| byte <= b' ' || byte == b'?' || byte == 0x7f;
        // A loop without an early exit is compiled to vector instructions.
        let has_end = |path: &[u8]| path.iter().fold(false, |found, b| found | is_end(*b));
        path.is_some_and(|path| path.first() == Some(&b'/') && !has_end(path))
    }

    /// This head with the path of `similar`, which may be this head itself.
    #[inline]
    pub(crate) fn with_path_of<'s>(
        &'s self,
        similar: &'s [u8],
    ) -> Result<RequestHead<'s>, BadRequest> {
        let end = similar.len() - self.after_path.len();
        let path = std::str::from_utf8(&similar[self.before_path.len()..end]);
        let path = path.map_err(|_| NOT_HTTP)?;
        Ok(RequestHead {
            // Only in this head itself, an authority or nothing but a `*` can stand there.
            path: match path.starts_with('/') {
                true => path,
                false => self.head.path,
            },
            ..self.head
        })
    }
}

/// Parses a head that [`scan`](crate::wire::scan) found complete. Its headers are stored in `fields`.
pub(crate) fn parse<'h>(
    bytes: &'h [u8],
    fields: &'h mut [MaybeUninit<Header<'h>>; MAX_FIELDS],
) -> Result<RequestHead<'h>, BadRequest> {
    let mut request = httparse::Request::new(&mut []);
    match request.parse_with_uninit_headers(bytes, fields) {
        // No byte may be left over: `scan` and httparse agree on where a head ends.
        Ok(httparse::Status::Complete(len)) if len == bytes.len() => {}
        Err(httparse::Error::TooManyHeaders) => return Err(TOO_MANY_FIELDS),
        Err(httparse::Error::Version) if names_other_version(bytes) => {
            return Err(BadRequest {
                status: 505,
                reason: "the supported versions are HTTP/1.1 and HTTP/1.0",
            });
        }
        Err(httparse::Error::HeaderName | httparse::Error::HeaderValue) => {
            return Err(bad("a malformed header"));
        }
        Ok(_) | Err(_) => return Err(NOT_HTTP),
    }
    match (request.method, request.path, request.version) {
        (Some(method), Some(target), Some(minor)) => {
            RequestHead::new(method, target, minor == 0, request.headers)
        }
        _ => Err(NOT_HTTP),
    }
}

const NOT_HTTP: BadRequest = bad("not an HTTP request");

/// Room for the headers of one head.
pub(crate) const NO_FIELDS: [MaybeUninit<Header<'static>>; MAX_FIELDS] =
    [const { MaybeUninit::uninit() }; MAX_FIELDS];

/// The most header fields of a request. More are answered with 431.
pub(crate) const MAX_FIELDS: usize = 64;

/// The response to a request with more than [`MAX_FIELDS`] header fields.
pub(crate) const TOO_MANY_FIELDS: BadRequest = BadRequest {
    status: 431,
    reason: "more than 64 header fields",
};

/// The response to a request whose body is over the server's limit.
pub(crate) const BODY_TOO_LARGE: BadRequest = BadRequest {
    status: 413,
    reason: "the body of the request is too large",
};

/// Splits a request's target into path and query (RFC 9112, section 3.2).
pub(crate) fn split_target<'t>(
    method: &str,
    target: &'t str,
) -> Result<(&'t str, Option<&'t str>), BadRequest> {
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

/// The part of an http URL after its authority; `None` if `target` is not such a URL.
fn after_authority(target: &str) -> Option<&str> {
    let (scheme, rest) = target.split_once("://")?;
    if !scheme.eq_ignore_ascii_case("http") && !scheme.eq_ignore_ascii_case("https") {
        return None;
    }
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    (end > 0).then(|| &rest[end..])
}

/// Whether the request line is valid except for its HTTP version, which is not 1.0 or 1.1.
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

/// Whether a byte can be in a `Host`: RFC 3986, section 3.2, without user information.
fn is_host_byte(byte: u8) -> bool {
    matches!(byte, b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b';' | b'&'..=b'.')
        || matches!(byte, b'_' | b'~' | b'!' | b'$' | b'=' | b'%' | b'[' | b']')
}

pub(super) const fn bad(reason: &'static str) -> BadRequest {
    BadRequest {
        status: 400,
        reason,
    }
}

#[cfg(test)]
mod tests;
