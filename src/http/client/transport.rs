//! The trait that carries requests to a peer, with its request and response.

use std::fmt;
use std::io::{Cursor, Read};
use std::time::Instant;

use ureq::http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, TRANSFER_ENCODING};
use ureq::http::{HeaderMap, HeaderName, HeaderValue};

use crate::context::Context;
use crate::error::{Error, ErrorKind, Result};
use crate::heap::SharedBytes;
use crate::http::client::response::ResponseHead;
use crate::wire;

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

/// A request on its way to a peer.
pub struct TransportRequest<'a> {
    method: &'static str,
    path: String,
    /// The header that was set first. It is stored here, because most requests have only this one.
    first_header: Option<Header>,
    /// The other headers. Each name is there once.
    headers: Vec<Header>,
    body: &'a [u8],
    /// When the last byte of the response must have arrived.
    deadline: Instant,
}

type Header = (HeaderName, HeaderValue);

impl<'a> TransportRequest<'a> {
    /// A request for one key.
    pub(crate) fn get(path: String, deadline: Instant) -> Self {
        TransportRequest {
            method: "GET",
            path,
            first_header: None,
            headers: Vec::new(),
            body: &[],
            deadline,
        }
    }

    /// A request for several keys, which are encoded in `body`.
    pub(crate) fn batch(path: String, body: &'a [u8], deadline: Instant) -> Self {
        TransportRequest {
            method: "POST",
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

    /// The body; empty for a GET.
    pub fn body(&self) -> &'a [u8] {
        self.body
    }

    /// The first header of this name, in any case, if its value is text.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut headers = self.headers();
        let (_, value) = headers.find(|(found, _)| found.as_str().eq_ignore_ascii_case(name))?;
        value.to_str().ok()
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
        let (name, value) = parse_header(name, value)?;
        if name.as_str().len() + value.len() > MAX_HEADER {
            let message = format!("the header {name:?} is over {MAX_HEADER} bytes");
            return Err(Error::new(ErrorKind::InvalidOption, message));
        }
        if name == CONTENT_LENGTH || name == TRANSFER_ENCODING {
            let message = format!("the header {name:?} is set by the transport");
            return Err(Error::new(ErrorKind::InvalidOption, message));
        }
        self.set_parsed(name, value);
        Ok(())
    }

    /// As [`set_header`](Self::set_header), for a name and a value that need no check.
    pub(crate) fn set_parsed(&mut self, name: HeaderName, value: HeaderValue) {
        let mut headers = self.first_header.iter_mut().chain(&mut self.headers);
        if let Some((_, old)) = headers.find(|(found, _)| *found == name) {
            *old = value;
        } else if self.first_header.is_none() {
            self.first_header = Some((name, value));
        } else {
            self.headers.push((name, value));
        }
    }

    pub(crate) fn headers(&self) -> impl Iterator<Item = &Header> {
        self.first_header.iter().chain(&self.headers)
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
            headers: ResponseHeaders::Parsed(Box::default()),
            is_from_larder: false,
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
        let value = self.headers.get(name)?;
        std::str::from_utf8(value)
            .ok()
            .filter(|text| text.is_ascii())
    }

    /// Sets a header, in place of those of the same name.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidOption`] if HTTP has no such name or value.
    pub fn set_header(&mut self, name: &str, value: &str) -> Result<()> {
        let (name, value) = parse_header(name, value)?;
        self.headers.parsed().insert(name, value);
        Ok(())
    }

    /// Whether the body is a protobuf message, by its content type, and has no content coding.
    pub(crate) fn is_protobuf(&self) -> bool {
        match &self.headers {
            ResponseHeaders::Head(_, is_protobuf) => *is_protobuf,
            ResponseHeaders::Parsed(map) => {
                let found = map.get(CONTENT_TYPE);
                found.is_some_and(|found| wire::is_protobuf(found.as_bytes())) && !self.is_encoded()
            }
        }
    }

    /// Whether the body has a content coding.
    pub(crate) fn is_encoded(&self) -> bool {
        match &self.headers {
            ResponseHeaders::Head(head, _) => fields_of(head).any(|(name, value)| {
                name.eq_ignore_ascii_case(b"content-encoding") && wire::is_encoded(value)
            }),
            ResponseHeaders::Parsed(map) => {
                let mut codings = map.get_all(CONTENT_ENCODING).iter();
                codings.any(|coding| wire::is_encoded(coding.as_bytes()))
            }
        }
    }

    /// Whether larder's own server sent the response, and no proxy forwarded it.
    pub(crate) fn is_from_larder(&self) -> bool {
        self.is_from_larder
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

/// The headers of a response.
pub(crate) enum ResponseHeaders {
    Parsed(Box<HeaderMap>),
    /// The bytes of a well-formed head, and whether it announces a protobuf message without a content
    /// coding. For most
    /// responses no other header is looked up.
    Head(Box<[u8]>, bool),
}

impl ResponseHeaders {
    fn get(&self, name: &str) -> Option<&[u8]> {
        match self {
            ResponseHeaders::Parsed(map) => map.get(name).map(HeaderValue::as_bytes),
            ResponseHeaders::Head(head, _) => {
                let mut fields = fields_of(head);
                let (_, value) =
                    fields.find(|(found, _)| found.eq_ignore_ascii_case(name.as_bytes()))?;
                Some(value)
            }
        }
    }

    fn parsed(&mut self) -> &mut HeaderMap {
        if let ResponseHeaders::Head(head, _) = self {
            let fields = fields_of(head).filter_map(|(name, value)| {
                let name = HeaderName::from_bytes(name).ok()?;
                Some((name, HeaderValue::from_bytes(value).ok()?))
            });
            let mut map = Box::<HeaderMap>::default();
            fields.for_each(|(name, value)| {
                map.append(name, value);
            });
            *self = ResponseHeaders::Parsed(map);
        }
        match self {
            ResponseHeaders::Parsed(map) => map,
            ResponseHeaders::Head(..) => unreachable!("it was parsed"),
        }
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

fn parse_header(name: &str, value: &str) -> Result<(HeaderName, HeaderValue)> {
    let refuse = |what: &str| {
        Error::new(
            ErrorKind::InvalidOption,
            format!("{what} of the header {name:?} cannot be sent over HTTP"),
        )
    };
    Ok((
        name.parse().map_err(|_| refuse("the name"))?,
        value.parse().map_err(|_| refuse("the value"))?,
    ))
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
        let headers = ResponseHeaders::Head(head[..].into(), false);
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
