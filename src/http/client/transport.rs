//! The trait that carries requests to a peer, with its request and response.

use std::borrow::Cow;
use std::fmt;
use std::io::{Cursor, Read};
use std::time::Instant;

use crate::context::Context;
use crate::error::{Error, ErrorKind, Result};
use crate::heap::SharedBytes;
use crate::http::client::response::ResponseHead;
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

/// A request on its way to a peer. It has each header once.
pub struct TransportRequest<'a> {
    method: &'static str,
    path: String,
    /// The headers that were set first. They are stored here, because most requests have no others.
    first_headers: [Option<RequestHeader<'a>>; 3],
    other_headers: Vec<RequestHeader<'a>>,
    /// Whether one of the headers is `host`.
    has_host: bool,
    body: &'a [u8],
    /// When the last byte of the response must have arrived.
    deadline: Instant,
}

impl<'a> TransportRequest<'a> {
    /// A request for one key.
    #[inline]
    pub(crate) fn get(path: String, deadline: Instant) -> Self {
        TransportRequest {
            method: "GET",
            path,
            first_headers: [None, None, None],
            other_headers: Vec::new(),
            has_host: false,
            body: &[],
            deadline,
        }
    }

    /// This request with its first two headers, which have different names in lower case and valid values.
    #[inline]
    pub(crate) fn with_headers(mut self, [one, two]: [RequestHeader<'a>; 2]) -> Self {
        debug_assert!(self.headers().next().is_none() && one.0 != two.0);
        self.first_headers = [Some(one), Some(two), None];
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
        &self.path
    }

    /// The body; empty for a GET and a DELETE.
    pub fn body(&self) -> &'a [u8] {
        self.body
    }

    /// The header of this name, in any case.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut headers = self.headers();
        let (_, value) = headers.find(|(found, _)| found.eq_ignore_ascii_case(name))?;
        Some(value)
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
        let timeout = wire::timeout_millis(left).to_string();
        self.set_checked(wire::TIMEOUT_HEADER.into(), timeout.into());
    }

    /// As [`set_header`](Self::set_header), for a valid name in lower case and a valid value.
    pub(crate) fn set_checked(&mut self, name: Cow<'a, str>, value: Cow<'a, str>) {
        let first_headers = self.first_headers.iter_mut().flatten();
        let mut headers = first_headers.chain(&mut self.other_headers);
        if let Some((_, old)) = headers.find(|(found, _)| *found == name) {
            *old = value;
            return;
        }
        self.has_host |= name == "host";
        match self.first_headers.iter_mut().find(|place| place.is_none()) {
            Some(place) => *place = Some((name, value)),
            None => self.other_headers.push((name, value)),
        }
    }

    pub(crate) fn has_host(&self) -> bool {
        self.has_host
    }

    pub(crate) fn headers(&self) -> impl Iterator<Item = &RequestHeader<'a>> {
        self.first_headers
            .iter()
            .flatten()
            .chain(&self.other_headers)
    }
}

impl fmt::Debug for TransportRequest<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without the values of headers: they may be secrets.
        f.debug_struct("TransportRequest")
            .field("method", &self.method)
            .field("path", &self.path)
            .field("body", &self.body.len())
            .finish_non_exhaustive()
    }
}

/// A peer's response: its head, and a reader of its body.
pub struct TransportResponse {
    status: u16,
    headers: ResponseHeaders,
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
            headers: ResponseHeaders::default(),
            is_from_larder: false,
            has_peers_mark: false,
            length,
            body,
        }
    }

    /// The response with this head. `headers` are those of the head.
    pub(crate) fn with_head(
        head: &ResponseHead,
        headers: ResponseHeaders,
        body: ResponseBytes,
    ) -> Self {
        TransportResponse {
            status: head.status,
            headers,
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

    /// The first header of this name, in any case, if its value is text.
    pub fn header(&self, name: &str) -> Option<&str> {
        let value = self.headers.all(name).next()?;
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
        self.headers.set(name, value);
        Ok(())
    }

    /// Whether the body is a protobuf message, by its content type, and has no content coding.
    pub(crate) fn is_protobuf(&self) -> bool {
        self.headers.is_protobuf
    }

    /// Whether the body has a content coding.
    pub(crate) fn is_encoded(&self) -> bool {
        self.headers.is_encoded()
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

/// The headers of a response. They are looked up in the bytes of the head, because few are looked up.
#[derive(Default)]
pub(crate) struct ResponseHeaders {
    /// A well-formed head, or nothing.
    head: Vec<u8>,
    /// Whether they announce a protobuf message without a content coding.
    is_protobuf: bool,
}

impl ResponseHeaders {
    /// The headers of a well-formed head.
    pub(crate) fn new(head: Box<[u8]>, is_protobuf: bool) -> Self {
        ResponseHeaders {
            head: head.into(),
            is_protobuf,
        }
    }

    /// The values of the headers of this name, in any case.
    fn all(&self, name: &str) -> impl Iterator<Item = &[u8]> {
        let fields = fields_of(&self.head);
        let found = fields.filter(|(found, _)| found.eq_ignore_ascii_case(name.as_bytes()));
        found.map(|(_, value)| value)
    }

    fn is_encoded(&self) -> bool {
        self.all("content-encoding").any(wire::is_encoded)
    }

    /// Sets a header that was checked, in place of those of the same name.
    fn set(&mut self, name: &str, value: &str) {
        let mut head = b"HTTP/1.1\r\n".to_vec();
        let kept = fields_of(&self.head);
        let kept = kept.filter(|(found, _)| !found.eq_ignore_ascii_case(name.as_bytes()));
        for (name, value) in kept.chain([(name.as_bytes(), value.as_bytes())]) {
            for part in [name, b": ", value, b"\r\n"] {
                head.extend_from_slice(part);
            }
        }
        self.head = head;
        let content_type = self.all("content-type").next();
        self.is_protobuf = content_type.is_some_and(wire::is_protobuf) && !self.is_encoded();
    }
}

/// Names and values of the fields of a well-formed head.
fn fields_of(head: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    let lines = head.trim_ascii_start().split(|&byte| byte == b'\n');
    lines.skip(1).filter_map(|line| {
        let (name, value) = line.split_at(line.iter().position(|&byte| byte == b':')?);
        Some((name, value[1..].trim_ascii()))
    })
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
        assert_eq!(request.headers().count(), 1);
    }

    #[test]
    fn headers_of_a_head_are_found_and_can_be_set() {
        let head = b"HTTP/1.1 200 a: b\r\nX-One:  1 \r\nx-two:2\r\nX-TWO: 3\r\nx-bad: \xff\r\n\r\n";
        let headers = ResponseHeaders::new(head[..].into(), false);
        let mut response = TransportResponse {
            headers,
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
        assert!(request.headers().next().is_none());
        request.set_header("x", &long[1..]).unwrap();
    }
}
