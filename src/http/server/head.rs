//! One request head, from bytes: what httparse accepts, less everything that two servers could read
//! in two ways.
//!
//! [`scan`] finds the end of a head as its bytes arrive, and refuses early what no head contains;
//! [`parse`] reads the head once it is complete. So it makes no difference how the network cuts a
//! head into pieces. Neither touches a socket.
//!
//! Whatever is refused here ends the connection: after a head that could be read in two ways,
//! nobody knows where the next request begins (request smuggling; RFC 9112, section 11.2).

use std::mem::MaybeUninit;

use httparse::Header;

use crate::wire::{find_byte, find_control};

mod repeat;

pub(crate) use repeat::{Arrived, LastHead, NO_FEW_FIELDS};

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
    while let Some(offset) = find_control(&bytes[at..]) {
        at += offset;
        match bytes[at..] {
            [b'\t', ..] => at += 1,
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
    fields: &'h mut [MaybeUninit<Header<'h>>; MAX_FIELDS],
) -> Result<Head<'h>, Reject> {
    let mut request = httparse::Request::new(&mut []);
    match request.parse_with_uninit_headers(bytes, fields) {
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
pub(crate) const NO_FIELDS: [MaybeUninit<Header<'static>>; MAX_FIELDS] =
    [const { MaybeUninit::uninit() }; MAX_FIELDS];

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
pub(crate) fn split_target<'t>(
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
    let (path, query) = match find_byte(from_path.as_bytes(), b'?') {
        Some(at) => (&from_path[..at], Some(&from_path[at + 1..])),
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
pub(crate) fn parse_length(value: &[u8]) -> Result<u64, Reject> {
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

pub(crate) fn has_token(list: &[u8], token: &[u8]) -> bool {
    list.split(|&byte| byte == b',')
        .any(|element| element.trim_ascii().eq_ignore_ascii_case(token))
}

/// RFC 3986, section 3.2, without user information: a name or address, and perhaps a port.
fn is_host_byte(byte: u8) -> bool {
    matches!(byte, b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b';' | b'&'..=b'.')
        || matches!(byte, b'_' | b'~' | b'!' | b'$' | b'=' | b'%' | b'[' | b']')
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
mod tests;
