//! A response, and how its head is written.

use std::borrow::Cow;

use super::head::BadRequest;
use crate::error::{Error, ErrorKind, Result};
use crate::wire::{self, Body};

/// The response of a [`Handler`](super::Handler): a status, a content type and a body.
///
/// The server adds `Content-Length`, `Server: larder` unless there is one, and, where needed,
/// `Connection`. It sends no `Date`, because this crate also runs on boards without a reliable
/// clock.
#[derive(Clone, Debug)]
pub struct Response {
    status: u16,
    content_type: Cow<'static, str>,
    fields: Vec<(Cow<'static, str>, String)>,
    body: Body,
}

impl Response {
    /// A response with a body of the given type.
    ///
    /// A status that cannot end a request (below 200 or above 599) is sent as 500; a status that has
    /// no body (204, 304) is sent without it. A content type that is not a valid header value is sent
    /// as `application/octet-stream`.
    pub fn new(
        status: u16,
        content_type: impl Into<Cow<'static, str>>,
        body: impl Into<Body>,
    ) -> Self {
        let content_type = content_type.into();
        Response {
            status: if (200..=599).contains(&status) {
                status
            } else {
                500
            },
            content_type: if is_field_value(&content_type) {
                content_type
            } else {
                Cow::Borrowed("application/octet-stream")
            },
            fields: Vec::new(),
            body: body.into(),
        }
    }

    /// A response in plain text, UTF-8.
    pub fn text(status: u16, text: impl Into<Body>) -> Self {
        Response::new(status, "text/plain; charset=utf-8", text)
    }

    /// The same with one more header.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidOption`] if the name is not a token, if the value has a control character
    /// (a line break would start another header or another response), or if the server sets the
    /// header itself: `Content-Type`, `Content-Length`, `Transfer-Encoding`,
    /// `Connection`, `Keep-Alive`, `Trailer`, `Upgrade`.
    pub fn with_header(
        mut self,
        name: impl Into<Cow<'static, str>>,
        value: impl Into<String>,
    ) -> Result<Self> {
        let (name, value) = (name.into(), value.into());
        let refuse = |why: &str| {
            let message = format!("the header {name:?} {why}");
            Err(Error::new(ErrorKind::InvalidOption, message))
        };
        if name.is_empty() || !name.bytes().all(is_token_byte) {
            return refuse("has a name that is not a token");
        }
        if SET_BY_SERVER
            .iter()
            .any(|own| name.eq_ignore_ascii_case(own))
        {
            return refuse("is set by the server");
        }
        if !is_field_value(&value) {
            return refuse("has a value with a control character");
        }
        self.fields.push((name, value));
        Ok(self)
    }

    /// The same with one more header, whose name and value are valid.
    pub(crate) fn with_own_header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        let value = value.into();
        debug_assert!(name.bytes().all(is_token_byte) && is_field_value(&value));
        self.fields.push((Cow::Borrowed(name), value));
        self
    }

    /// The status that will be sent.
    pub fn status(&self) -> u16 {
        self.status
    }

    /// The content type that will be sent.
    pub fn content_type(&self) -> &str {
        &self.content_type
    }

    /// The body.
    pub fn body(&self) -> &[u8] {
        let mut pieces = self.body.iter();
        let body = pieces.next().unwrap_or_default();
        debug_assert!(
            pieces.next().is_none(),
            "only bodies of the endpoint have several pieces"
        );
        body
    }

    /// Appends the head as it is sent.
    pub(crate) fn push_head(&self, options: ResponseOptions, head: &mut Vec<u8>) {
        head.extend_from_slice(b"HTTP/1.1 ");
        head.extend([100, 10, 1].map(|unit| b'0' + (self.status / unit % 10) as u8));
        head.push(b' ');
        head.extend_from_slice(reason(self.status).as_bytes());
        let is_server = |(name, _): &(Cow<'_, str>, _)| name.eq_ignore_ascii_case("Server");
        if !self.fields.iter().any(is_server) {
            push_field(head, "Server", wire::SERVER);
        }
        if !self.is_bodiless() {
            push_field(head, "Content-Type", &self.content_type);
            push_field(head, "Content-Length", "");
            wire::push_decimal(head, self.body.len() as u64);
        }
        for (name, value) in &self.fields {
            push_field(head, name, value);
        }
        if !options.keep_alive {
            push_field(head, "Connection", "close");
        } else if options.http_10 {
            push_field(head, "Connection", "keep-alive");
        }
        head.extend_from_slice(b"\r\n\r\n");
    }

    /// The length of the body, in bytes.
    pub(crate) fn body_len(&self) -> usize {
        self.body.iter().map(<[u8]>::len).sum()
    }

    /// The pieces of the body that are sent after the head; none of them is empty.
    pub(crate) fn pieces(&self, options: ResponseOptions) -> impl Iterator<Item = &[u8]> {
        let is_sent = !options.head_only && !self.is_bodiless();
        self.body.iter().filter(move |_| is_sent)
    }

    /// RFC 9110, section 8.6: a 204 has no length, and a 304 would have that of the 200.
    fn is_bodiless(&self) -> bool {
        matches!(self.status, 204 | 304)
    }
}

impl From<BadRequest> for Response {
    fn from(bad: BadRequest) -> Self {
        Response::text(bad.status, bad.reason)
    }
}

/// The properties of the request and its connection that a response depends on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ResponseOptions {
    /// Whether the connection stays open.
    pub keep_alive: bool,
    /// Whether the request was HTTP/1.0, where a connection stays open only if a header asks for
    /// it.
    pub http_10: bool,
    /// Whether the request was `HEAD`.
    pub head_only: bool,
}

#[inline]
fn push_field(head: &mut Vec<u8>, name: &str, value: &str) {
    for part in ["\r\n", name, ": ", value] {
        head.extend_from_slice(part.as_bytes());
    }
}

/// The reason phrases of RFC 9110, section 15. Clients ignore them.
fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        201 => "Created",
        202 => "Accepted",
        204 => "No Content",
        301 => "Moved Permanently",
        302 => "Found",
        303 => "See Other",
        304 => "Not Modified",
        307 => "Temporary Redirect",
        308 => "Permanent Redirect",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        409 => "Conflict",
        411 => "Length Required",
        413 => "Content Too Large",
        414 => "URI Too Long",
        415 => "Unsupported Media Type",
        417 => "Expectation Failed",
        422 => "Unprocessable Content",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        _ => "",
    }
}

/// RFC 9110, section 5.5: no control characters except the tab.
fn is_field_value(value: &str) -> bool {
    !value
        .bytes()
        .any(|byte| (byte < b' ' && byte != b'\t') || byte == 0x7f)
}

/// RFC 9110, section 5.6.2.
fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

const SET_BY_SERVER: [&str; 7] = [
    "content-type",
    "content-length",
    "transfer-encoding",
    "connection",
    "keep-alive",
    "trailer",
    "upgrade",
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::byteview::ByteView;

    const OPEN: ResponseOptions = ResponseOptions {
        keep_alive: true,
        http_10: false,
        head_only: false,
    };

    fn sent(response: &Response, options: ResponseOptions) -> String {
        let mut bytes = Vec::new();
        response.push_head(options, &mut bytes);
        bytes.extend(response.pieces(options).flatten());
        String::from_utf8(bytes).expect("UTF-8")
    }

    #[test]
    fn server_header_of_the_handler_replaces_the_default() {
        let named = Response::new(204, "", "").with_header("server", "kitchen");
        let sent = sent(&named.expect("a good header"), OPEN);
        assert_eq!(sent, "HTTP/1.1 204 No Content\r\nserver: kitchen\r\n\r\n");
    }

    #[test]
    fn response_has_length_type_and_headers() {
        let response = Response::text(404, "no such page")
            .with_header("X-Why", "typo")
            .expect("a good header");
        assert_eq!(
            sent(&response, OPEN),
            "HTTP/1.1 404 Not Found\r\nServer: larder\r\n\
             Content-Type: text/plain; charset=utf-8\r\nContent-Length: 12\r\nX-Why: typo\r\n\r\nno such page"
        );
    }

    #[test]
    fn response_to_head_has_the_length_but_no_body() {
        let options = ResponseOptions {
            head_only: true,
            ..OPEN
        };
        let text = sent(&Response::text(200, "12345"), options);
        assert!(text.ends_with("Content-Length: 5\r\n\r\n"), "{text}");
    }

    #[test]
    fn connection_header_depends_on_version_and_keep_alive() {
        let connection = |keep_alive, http_10| {
            let options = ResponseOptions {
                keep_alive,
                http_10,
                head_only: false,
            };
            sent(&Response::text(200, ""), options)
                .lines()
                .find_map(|line| line.strip_prefix("Connection: ").map(str::to_owned))
        };
        assert_eq!(connection(true, false), None);
        assert_eq!(connection(true, true).as_deref(), Some("keep-alive"));
        assert_eq!(connection(false, false).as_deref(), Some("close"));
        assert_eq!(connection(false, true).as_deref(), Some("close"));
    }

    #[test]
    fn status_without_a_body_is_sent_without_it() {
        let text = sent(&Response::text(204, "not sent"), OPEN);
        assert_eq!(text, "HTTP/1.1 204 No Content\r\nServer: larder\r\n\r\n");
    }

    #[test]
    fn status_out_of_range_becomes_500() {
        for status in [0, 99, 100, 199, 600, u16::MAX] {
            assert_eq!(Response::text(status, "").status(), 500);
        }
        assert_eq!(Response::text(599, "").status(), 599);
    }

    #[test]
    fn invalid_headers_are_refused() {
        for value in ["a\r\nSet-Cookie: b", "a\nb", "a\rb", "a\0b", "a\x7fb"] {
            let error = Response::text(302, "")
                .with_header("Location", value)
                .expect_err(value);
            assert_eq!(error.kind(), ErrorKind::InvalidOption);
        }
        for name in [
            "",
            "a b",
            "a:",
            "a\r\nb",
            "é",
            "Content-Length",
            "CONNECTION",
        ] {
            assert!(
                Response::text(200, "").with_header(name, "1").is_err(),
                "{name}"
            );
        }
        let text = sent(&Response::new(200, "text/html\r\nX: y", ""), OPEN);
        assert!(text.contains("Content-Type: application/octet-stream\r\n"));
    }

    #[test]
    fn view_is_shared_not_copied() {
        let view = ByteView::from("red");
        let response = Response::new(200, "text/plain", view.clone());
        assert_eq!(response.body().as_ptr(), view.as_bytes().as_ptr());
    }
}
