//! Carries requests to a peer: the trait, with its request and response, and the transports of this crate.
//!
//! - This file: the trait. `default`: makes the transport of a peer.
//! - `direct`: HTTP/1.1 over this crate's own sockets, for larder's servers.
//! - `ureq`: the HTTP client ureq, for servers of all kinds.
//! - `auto`: chooses between these two. `larder_only`: takes its place in builds without ureq.
//! - `target`: the URL, the limits and the addresses of the peer.
//! - `url`: which URLs are valid. `resolve`: looks up the addresses.
//! - `connection`: a connection to the peer. `socket_timeout`: its time-outs. `response`: reads responses from
//!   it. Both transports use them.
//! - `pool`: the idle connections of `direct`.

#[cfg(feature = "ureq")]
mod auto;
mod connection;
pub(crate) mod default;
mod direct;
#[cfg(not(feature = "ureq"))]
mod larder_only;
mod pool;
pub(crate) mod resolve;
pub(crate) mod response;
mod socket_timeout;
pub(crate) mod target;
#[cfg(feature = "ureq")]
mod ureq;
pub(crate) mod url;

use std::borrow::Cow;
use std::fmt;
use std::io::{Cursor, Read};
use std::sync::OnceLock;
use std::time::Instant;

use crate::context::Context;
use crate::error::{Error, ErrorKind, Result};
use crate::heap::SharedBytes;
use crate::http::client::transport::response::{HeadBytes, ResponseHead};
use crate::sync::Arc;
use crate::wire::{self, PeersMark};

/// Carries requests to one peer; the counterpart of Go's `http.RoundTripper`.
///
/// The builder's `transport` option gets the default transport of each peer and returns the one to
/// use: the same, one that wraps it (to trace, to sign, to count), or another.
///
/// Many threads call a transport at the same time.
///
/// ```
/// use larder::http::{Transport, TransportRequest, TransportResponse};
/// use larder::{Context, Result};
/// use std::sync::Arc;
///
/// struct WithToken(Arc<dyn Transport>);
///
/// impl Transport for WithToken {
///     fn round_trip(&self, ctx: &Context, mut request: TransportRequest<'_>) -> Result<TransportResponse> {
///         request.set_header("x-token", "sesame")?;
///         self.0.round_trip(ctx, request)
///     }
/// }
/// ```
pub trait Transport: Send + Sync {
    /// Sends `request` and returns the head of the response; its body is read afterwards.
    ///
    /// This call and the reading of the body must end by the deadline of `ctx`: callers rely on it.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Peer`] if the peer could not be reached or did not answer;
    /// [`ErrorKind::DeadlineExceeded`] if the deadline of `ctx` passed. A response is not an error,
    /// whatever its status.
    fn round_trip(&self, ctx: &Context, request: TransportRequest<'_>)
    -> Result<TransportResponse>;
}

/// The idle connections of a default transport.
pub(crate) trait IdleConnections: Send + Sync {
    /// Closes them, because one of them brought the response to another request.
    fn close_idle(&self);
}

/// A transport that this crate made, and its idle connections.
#[derive(Clone)]
pub(crate) struct DefaultTransport {
    pub(crate) transport: Arc<dyn Transport>,
    pub(crate) connections: Arc<dyn IdleConnections>,
}

impl DefaultTransport {
    pub(crate) fn of<T: Transport + IdleConnections + 'static>(made: T) -> Self {
        let made = Arc::new(made);
        DefaultTransport {
            transport: made.clone(),
            connections: made,
        }
    }
}

/// Name, in lower case, and value of a header that can be sent as it is.
pub(crate) type RequestHeader<'a> = (Cow<'a, str>, Cow<'a, str>);

/// The path of a request.
enum RequestPath<'a> {
    Written(String),
    /// The path of a key, which is written directly into the request. The cell holds it as text for other code
    /// that asks for it.
    OfKey(wire::KeyPath<'a>, OnceLock<String>),
}

/// A request on its way to a peer. It has each header once.
pub struct TransportRequest<'a> {
    method: &'static str,
    path: RequestPath<'a>,
    /// The values of [`wire::PEERS_HEADER`] and [`wire::TIMEOUT_HEADER`]. They have fields of their own,
    /// because most requests have these two headers and no others.
    peers_mark: Option<Cow<'a, str>>,
    timeout: Option<Cow<'a, str>>,
    other_headers: Vec<RequestHeader<'a>>,
    /// Whether one of the headers is `host`.
    has_host: bool,
    body: &'a [u8],
    /// When the last byte of the response must have arrived.
    deadline: Instant,
}

impl<'a> TransportRequest<'a> {
    /// A request for one key, with the mark of this process's list of peers, and the time in milliseconds
    /// after which the peer need not answer any more.
    #[inline]
    pub(crate) fn get_key(
        path: wire::KeyPath<'a>,
        peers_mark: &'a str,
        timeout: Cow<'a, str>,
        deadline: Instant,
    ) -> Self {
        TransportRequest {
            method: "GET",
            path: RequestPath::OfKey(path, OnceLock::new()),
            peers_mark: Some(peers_mark.into()),
            timeout: Some(timeout),
            other_headers: Vec::new(),
            has_host: false,
            body: &[],
            deadline,
        }
    }

    /// A request for something else.
    pub(crate) fn get(path: String, deadline: Instant) -> Self {
        TransportRequest {
            method: "GET",
            path: RequestPath::Written(path),
            peers_mark: None,
            timeout: None,
            other_headers: Vec::new(),
            has_host: false,
            body: &[],
            deadline,
        }
    }

    /// This request with the mark of this process's list of peers.
    pub(crate) fn with_peers_mark(mut self, mark: &'a str) -> Self {
        self.peers_mark = Some(mark.into());
        self
    }

    /// A request for several keys, which are encoded in `body`.
    pub(crate) fn batch(path: String, body: &'a [u8], deadline: Instant) -> Self {
        TransportRequest {
            method: "POST",
            body,
            ..TransportRequest::get(path, deadline)
        }
    }

    /// A request that changes data.
    pub(crate) fn change(
        method: &'static str,
        path: String,
        body: &'a [u8],
        deadline: Instant,
    ) -> Self {
        TransportRequest {
            method,
            body,
            ..TransportRequest::get(path, deadline)
        }
    }

    /// When the exchange has to be over: the earlier of the caller's deadline and the end of the pool's
    /// exchange time-out.
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// The method, in upper case.
    pub fn method(&self) -> &'static str {
        self.method
    }

    /// The path as it is sent: escaped, and with the path of the peer's URL and the base path.
    pub fn path(&self) -> &str {
        match &self.path {
            RequestPath::Written(path) => path,
            RequestPath::OfKey(path, written) => written.get_or_init(|| path.to_text()),
        }
    }

    pub(crate) fn path_len(&self) -> usize {
        match &self.path {
            RequestPath::Written(path) => path.len(),
            RequestPath::OfKey(path, _) => path.len(),
        }
    }

    /// Appends the path.
    #[inline]
    pub(crate) fn push_path(&self, out: &mut Vec<u8>) {
        match &self.path {
            RequestPath::Written(path) => out.extend_from_slice(path.as_bytes()),
            RequestPath::OfKey(path, _) => path.push_to(out),
        }
    }

    /// The body; empty for a GET and a DELETE.
    pub fn body(&self) -> &'a [u8] {
        self.body
    }

    /// The header of this name, in upper or lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut header = None;
        self.each_header(|found, value| {
            if found.eq_ignore_ascii_case(name) {
                header = Some(value);
            }
        });
        header
    }

    /// Sets a header, in place of those of the same name. The transport itself adds `Host`, if it is
    /// not set, and `Content-Length`.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidOption`] if the name or the value is not valid in HTTP, if both together
    /// are over 4 KiB, or if the name is `Content-Length` or `Transfer-Encoding`. A second one of
    /// these two would make the end of the body ambiguous.
    pub fn set_header(&mut self, name: &str, value: &str) -> Result<()> {
        check_header(name, value)?;
        if name.len() + value.len() > MAX_HEADER {
            let message = format!("the header {name:?} is over {MAX_HEADER} bytes");
            return Err(Error::new(ErrorKind::InvalidOption, message));
        }
        let name = name.to_ascii_lowercase();
        if matches!(&*name, "content-length" | "transfer-encoding") {
            let message = format!("the header {name:?} is set by the transport");
            return Err(Error::new(ErrorKind::InvalidOption, message));
        }
        self.set_checked(name.into(), value.to_owned().into());
        Ok(())
    }

    /// Sends the time that is left, after which the peer need not load the keys of the request.
    pub(crate) fn set_time_left(&mut self) {
        let left = self.deadline.saturating_duration_since(Instant::now());
        self.timeout = Some(wire::timeout_millis(left).to_string().into());
    }

    /// Like [`set_header`](Self::set_header), for a valid name in lower case and a valid value.
    pub(crate) fn set_checked(&mut self, name: Cow<'a, str>, value: Cow<'a, str>) {
        match &*name {
            wire::PEERS_HEADER => self.peers_mark = Some(value),
            wire::TIMEOUT_HEADER => self.timeout = Some(value),
            _ => {
                let mut others = self.other_headers.iter_mut();
                if let Some((_, old)) = others.find(|(found, _)| *found == name) {
                    *old = value;
                    return;
                }
                self.has_host |= name == "host";
                self.other_headers.push((name, value));
            }
        }
    }

    pub(crate) fn has_host(&self) -> bool {
        self.has_host
    }

    /// Calls `each` with the name, in lower case, and the value of each header. Inlined, so that the names
    /// of the common ones are constants.
    #[inline(always)]
    pub(crate) fn each_header<'s>(&'s self, mut each: impl FnMut(&'s str, &'s str)) {
        if let Some(mark) = &self.peers_mark {
            each(wire::PEERS_HEADER, mark);
        }
        if let Some(timeout) = &self.timeout {
            each(wire::TIMEOUT_HEADER, timeout);
        }
        for (name, value) in &self.other_headers {
            each(name, value);
        }
    }
}

impl fmt::Debug for TransportRequest<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without the values of headers: they may be secrets.
        f.debug_struct("TransportRequest")
            .field("method", &self.method)
            .field("path", &self.path())
            .field("body", &self.body.len())
            .finish_non_exhaustive()
    }
}

/// A peer's response: its head, and a reader of its body.
pub struct TransportResponse {
    status: u16,
    /// Few headers are looked up, so they are looked up in the bytes of the head.
    headers: HeadBytes,
    /// Whether the headers announce a protobuf message without a content coding.
    is_protobuf: bool,
    is_from_larder: bool,
    has_peers_mark: bool,
    length: Option<u64>,
    body: ResponseBytes,
}

/// The body of a response.
pub(crate) enum ResponseBytes {
    /// It arrived with the head, and its connection is back in the pool.
    Whole(SharedBytes),
    Reader(Box<dyn Read + Send>),
}

impl TransportResponse {
    /// A response with a body of known length, for custom transports and for tests.
    pub fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        let body = body.into();
        let length = body.len() as u64;
        TransportResponse::with_reader(status, Some(length), Cursor::new(body))
    }

    /// A response whose body is read from `body`. If `length` is given, a shorter or longer body is
    /// an error.
    pub fn with_reader(status: u16, length: Option<u64>, body: impl Read + Send + 'static) -> Self {
        TransportResponse::with_bytes(status, length, ResponseBytes::Reader(Box::new(body)))
    }

    fn with_bytes(status: u16, length: Option<u64>, body: ResponseBytes) -> Self {
        TransportResponse {
            status,
            headers: HeadBytes::default(),
            is_protobuf: false,
            is_from_larder: false,
            has_peers_mark: false,
            length,
            body,
        }
    }

    /// The response with this head. `headers` are those of the head.
    pub(crate) fn with_head(head: &ResponseHead, headers: HeadBytes, body: ResponseBytes) -> Self {
        TransportResponse {
            status: head.status,
            headers,
            is_protobuf: head.is_protobuf,
            is_from_larder: head.is_from_larder,
            has_peers_mark: head.has_peers_mark,
            length: head.framing.length(),
            body,
        }
    }

    /// The status code.
    pub fn status(&self) -> u16 {
        self.status
    }

    /// The first header of this name, in upper or lower case, if its value is ASCII text.
    pub fn header(&self, name: &str) -> Option<&str> {
        let value = self.all(name).next()?;
        let text = std::str::from_utf8(value).ok();
        text.filter(|text| text.is_ascii())
    }

    /// Sets a header, in place of those of the same name.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidOption`] if HTTP has no such name or value.
    pub fn set_header(&mut self, name: &str, value: &str) -> Result<()> {
        check_header(name, value)?;
        let mut head = b"HTTP/1.1\r\n".to_vec();
        let kept = self.headers.fields();
        let kept = kept.filter(|(found, _)| !found.eq_ignore_ascii_case(name.as_bytes()));
        for (name, value) in kept.chain([(name.as_bytes(), value.as_bytes())]) {
            for part in [name, b": ", value, b"\r\n"] {
                head.extend_from_slice(part);
            }
        }
        self.headers = HeadBytes::new(&head);
        let content_type = self.all("content-type").next();
        self.is_protobuf = content_type.is_some_and(wire::is_protobuf) && !self.is_encoded();
        Ok(())
    }

    /// The values of the headers of this name, in any case.
    fn all(&self, name: &str) -> impl Iterator<Item = &[u8]> {
        let fields = self.headers.fields();
        let found = fields.filter(|(found, _)| found.eq_ignore_ascii_case(name.as_bytes()));
        found.map(|(_, value)| value)
    }

    /// Whether the body is a protobuf message, by its content type, and has no content coding.
    pub(crate) fn is_protobuf(&self) -> bool {
        self.is_protobuf
    }

    /// Whether the body has a content coding.
    pub(crate) fn is_encoded(&self) -> bool {
        self.all("content-encoding").any(wire::is_encoded)
    }

    /// Whether larder's own server sent the response, and no proxy forwarded it.
    pub(crate) fn is_from_larder(&self) -> bool {
        self.is_from_larder
    }

    /// The mark of the peer's list of peers, if the response has it.
    pub(crate) fn peers_mark(&self) -> Option<PeersMark> {
        let header = self.has_peers_mark.then(|| self.header(wire::PEERS_HEADER));
        header.flatten().and_then(PeersMark::parse)
    }

    /// The length of the body in bytes, if it is known before the body is read.
    pub fn length(&self) -> Option<u64> {
        self.length
    }

    /// The body. Its connection is used again only if it is read to its end.
    pub fn into_body(self) -> Box<dyn Read + Send> {
        match self.body {
            ResponseBytes::Whole(bytes) => Box::new(Cursor::new(bytes)),
            ResponseBytes::Reader(reader) => reader,
        }
    }

    pub(crate) fn into_bytes(self) -> ResponseBytes {
        self.body
    }
}

impl fmt::Debug for TransportResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TransportResponse")
            .field("status", &self.status)
            .field("length", &self.length)
            .finish_non_exhaustive()
    }
}

/// The longest header of a request: half of the head that larder's server accepts by default.
const MAX_HEADER: usize = 4096;

/// Checks that the name is a token, and that the value is visible ASCII text (RFC 9110, section 5).
fn check_header(name: &str, value: &str) -> Result<()> {
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    let is_text = |byte: u8| matches!(byte, b'\t' | b' '..=b'~');
    let wrong = if name.is_empty() || !name.bytes().all(is_token) {
        "the name"
    } else if !value.bytes().all(is_text) {
        "the value"
    } else {
        return Ok(());
    };
    let message = format!("{wrong} of the header {name:?} cannot be sent over HTTP");
    Err(Error::new(ErrorKind::InvalidOption, message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_found_in_any_case_and_set_once() {
        let mut request = TransportRequest::get("/x".into(), Instant::now());
        request.set_header("X-Token", "one").unwrap();
        request.set_header("x-token", "two").unwrap();
        assert_eq!(request.header("X-TOKEN"), Some("two"));
        let mut count = 0;
        request.each_header(|_, _| count += 1);
        assert_eq!(count, 1);
    }

    #[test]
    fn path_of_a_key_is_shown_as_it_is_sent() {
        let path = wire::KeyPath::new("/base/", "g", "a/b");
        let request = TransportRequest::get_key(path, "mark", "7".into(), Instant::now());
        let mut sent = Vec::new();
        request.push_path(&mut sent);
        assert_eq!(sent, b"/base/g/a%2Fb");
        assert_eq!(request.path().as_bytes(), sent);
        assert_eq!(request.path_len(), sent.len());
        assert_eq!(request.header(wire::PEERS_HEADER), Some("mark"));
        assert_eq!(request.header(wire::TIMEOUT_HEADER), Some("7"));
    }

    #[test]
    fn headers_of_a_head_are_found_and_can_be_set() {
        let head = b"HTTP/1.1 200 a: b\r\nX-One:  1 \r\nx-two:2\r\nX-TWO: 3\r\nx-bad: \xff\r\n\r\n";
        let mut response = TransportResponse {
            headers: HeadBytes::new(head),
            ..TransportResponse::new(200, "")
        };
        assert_eq!(response.header("x-one"), Some("1"));
        assert_eq!(response.header("X-Two"), Some("2"));
        assert_eq!(response.header("x-bad"), None);
        assert_eq!(response.header("http/1.1 200 a"), None);
        response.set_header("x-two", "4").unwrap();
        assert_eq!(response.header("x-two"), Some("4"));
        assert_eq!(response.header("x-one"), Some("1"));
    }

    #[test]
    fn headers_that_were_set_decide_whether_the_body_is_protobuf() {
        let mut response = TransportResponse::new(200, "");
        for (name, value, is_protobuf) in [
            ("X", "1", false),
            ("Content-Type", wire::CONTENT_TYPE, true),
            ("content-encoding", "gzip", false),
            ("Content-Encoding", "identity", true),
            ("content-type", "text/plain", false),
        ] {
            response.set_header(name, value).unwrap();
            assert_eq!(response.is_protobuf(), is_protobuf, "{name}: {value}");
            assert_eq!(response.header(name), Some(value));
        }
    }

    #[test]
    fn invalid_or_too_long_header_is_refused() {
        let mut request = TransportRequest::get("/x".into(), Instant::now());
        for (name, value) in [("x", "a\r\nb: c"), ("x\r\n", "a"), ("", "a"), ("x y", "a")] {
            let error = request.set_header(name, value).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidOption);
        }
        let long = "a".repeat(MAX_HEADER);
        let error = request.set_header("x", &long).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidOption);
        assert_eq!(request.header("x"), None);
        request.set_header("x", &long[1..]).unwrap();
    }
}
