//! An answer that is not a cached value, and how any answer's head is written.

use std::borrow::Cow;
use std::io::Write;

use crate::byteview::ByteView;
use crate::error::{Error, ErrorKind, Result};
use crate::wire;

/// What a [`Handler`](super::Handler) answers: a status, a content type and a body.
///
/// The server adds `Content-Length`, `Server: larder` unless there is one, and, where needed,
/// `Connection`. It sends no `Date`: the boards that this crate also runs on have no clock to trust.
#[derive(Clone, Debug)]
pub struct Response {
    status: u16,
    content_type: Cow<'static, str>,
    fields: Vec<(Cow<'static, str>, String)>,
    body: Body,
}

impl Response {
    /// An answer with a body of the given type.
    ///
    /// A status that cannot end a request (below 200 or above 599) is sent as 500; one that has
    /// no body (204, 304) is sent without. A content type that cannot stand in a header is sent as
    /// `application/octet-stream`.
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

    /// An answer in plain text, UTF-8.
    pub fn text(status: u16, text: impl Into<Body>) -> Self {
        Response::new(status, "text/plain; charset=utf-8", text)
    }

    /// The same with one more header.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidOption`] if the name is not a token, if the value holds a control
    /// character (a line break would start a header or an answer of its own), or if the header
    /// is the server's to set: `Content-Type`, `Content-Length`, `Transfer-Encoding`,
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
        if SERVERS_OWN.iter().any(|own| name.eq_ignore_ascii_case(own)) {
            return refuse("is set by the server");
        }
        if !is_field_value(&value) {
            return refuse("has a value with a control character");
        }
        self.fields.push((name, value));
        Ok(self)
    }

    /// The same with a header of ours, whose name and value are known to be right.
    pub(crate) fn with_own_header(mut self, name: &'static str, value: &str) -> Self {
        debug_assert!(name.bytes().all(is_token_byte) && is_field_value(value));
        self.fields.push((Cow::Borrowed(name), value.to_owned()));
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
        self.body.bytes()
    }

    /// Appends the head to `out` and returns what has to be sent after it.
    pub(crate) fn encode(&self, framing: Framing, out: &mut Vec<u8>) -> &[u8] {
        let body = self.body();
        // RFC 9110, section 8.6: no length in a 204; one in a 304 would be that of the 200.
        let bodiless = matches!(self.status, 204 | 304);
        push_status(out, self.status);
        if !self
            .fields
            .iter()
            .any(|(name, _)| name.eq_ignore_ascii_case("Server"))
        {
            push_field(out, "Server", wire::SERVER);
        }
        if !bodiless {
            push_field(out, "Content-Type", &self.content_type);
            push_length(out, body.len());
        }
        for (name, value) in &self.fields {
            push_field(out, name, value);
        }
        framing.push(out);
        out.extend_from_slice(b"\r\n");
        if bodiless || framing.head_only {
            &[]
        } else {
            body
        }
    }
}

/// The bytes of a [`Response`]. A [`ByteView`] is sent as it is, without a copy.
#[derive(Clone, Debug)]
pub struct Body(Bytes);

#[derive(Clone, Debug)]
enum Bytes {
    Owned(Vec<u8>),
    Shared(ByteView),
}

impl Body {
    fn bytes(&self) -> &[u8] {
        match &self.0 {
            Bytes::Owned(bytes) => bytes,
            Bytes::Shared(view) => view,
        }
    }
}

impl From<ByteView> for Body {
    fn from(view: ByteView) -> Self {
        Body(Bytes::Shared(view))
    }
}

macro_rules! body_from {
    ($($bytes:ty),*) => {$(
        impl From<$bytes> for Body {
            fn from(bytes: $bytes) -> Self {
                Body(Bytes::Owned(bytes.into()))
            }
        }
    )*};
}

body_from!(Vec<u8>, String, &[u8], &str);

/// How an answer fits the request and the connection that it answers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Framing {
    /// Whether the connection stays open.
    pub keep_alive: bool,
    /// Whether the client speaks HTTP/1.0, where staying open has to be said.
    pub http_10: bool,
    /// Whether the request was `HEAD`.
    pub head_only: bool,
}

impl Framing {
    fn push(self, out: &mut Vec<u8>) {
        if !self.keep_alive {
            push_field(out, "Connection", "close");
        } else if self.http_10 {
            push_field(out, "Connection", "keep-alive");
        }
    }
}

/// Appends the head of a 200 with `len` bytes of `content_type`.
pub(crate) fn push_ok_head(out: &mut Vec<u8>, content_type: &str, len: usize, framing: Framing) {
    out.extend_from_slice(b"HTTP/1.1 200 OK\r\n");
    push_field(out, "Server", wire::SERVER);
    push_field(out, "Content-Type", content_type);
    push_length(out, len);
    framing.push(out);
    out.extend_from_slice(b"\r\n");
}

fn push_status(out: &mut Vec<u8>, status: u16) {
    // Writing to a vector cannot fail.
    let _ = write!(out, "HTTP/1.1 {status} {}\r\n", reason(status));
}

fn push_field(out: &mut Vec<u8>, name: &str, value: &str) {
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value.as_bytes());
    out.extend_from_slice(b"\r\n");
}

fn push_length(out: &mut Vec<u8>, len: usize) {
    out.extend_from_slice(b"Content-Length: ");
    push_decimal(out, len);
    out.extend_from_slice(b"\r\n");
}

/// Without the machinery of `fmt`, which costs as much as the rest of a head.
pub(crate) fn push_decimal(out: &mut Vec<u8>, mut number: usize) {
    let mut digits = [0; 20];
    let mut from = digits.len();
    loop {
        from -= 1;
        // The remainder is one digit.
        digits[from] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[from..]);
}

/// RFC 9110, section 15. The words are for people; clients read the number.
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

/// RFC 9110, section 5.5: no control characters but the tab; bytes from 128 on are opaque.
fn is_field_value(value: &str) -> bool {
    !value
        .bytes()
        .any(|byte| (byte < b' ' && byte != b'\t') || byte == 0x7f)
}

/// RFC 9110, section 5.6.2.
fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

const SERVERS_OWN: [&str; 7] = [
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

    const OPEN: Framing = Framing {
        keep_alive: true,
        http_10: false,
        head_only: false,
    };

    fn sent(response: &Response, framing: Framing) -> String {
        let mut out = Vec::new();
        let rest = response.encode(framing, &mut out);
        out.extend_from_slice(rest);
        String::from_utf8(out).expect("UTF-8")
    }

    #[test]
    fn a_server_of_the_programs_own_name_is_the_only_one() {
        let named = Response::new(204, "", "").with_header("server", "kitchen");
        let sent = sent(&named.expect("a good header"), OPEN);
        assert_eq!(sent, "HTTP/1.1 204 No Content\r\nserver: kitchen\r\n\r\n");
    }

    #[test]
    fn an_answer_has_its_length_its_type_and_its_headers() {
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
    fn the_answer_to_head_keeps_the_length_and_loses_the_body() {
        let framing = Framing {
            head_only: true,
            ..OPEN
        };
        let text = sent(&Response::text(200, "12345"), framing);
        assert!(text.ends_with("Content-Length: 5\r\n\r\n"), "{text}");
    }

    #[test]
    fn staying_open_is_said_to_http_10_and_closing_to_everybody() {
        let connection = |keep_alive, http_10| {
            let framing = Framing {
                keep_alive,
                http_10,
                head_only: false,
            };
            sent(&Response::text(200, ""), framing)
                .lines()
                .find_map(|line| line.strip_prefix("Connection: ").map(str::to_owned))
        };
        assert_eq!(connection(true, false), None);
        assert_eq!(connection(true, true).as_deref(), Some("keep-alive"));
        assert_eq!(connection(false, false).as_deref(), Some("close"));
        assert_eq!(connection(false, true).as_deref(), Some("close"));
    }

    #[test]
    fn a_status_without_a_body_is_sent_without() {
        let text = sent(&Response::text(204, "not sent"), OPEN);
        assert_eq!(text, "HTTP/1.1 204 No Content\r\nServer: larder\r\n\r\n");
    }

    #[test]
    fn a_status_that_ends_no_request_becomes_500() {
        for status in [0, 99, 100, 199, 600, u16::MAX] {
            assert_eq!(Response::text(status, "").status(), 500);
        }
        assert_eq!(Response::text(599, "").status(), 599);
    }

    #[test]
    fn a_header_cannot_smuggle_another() {
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
    fn numbers_are_written_in_decimal() {
        for number in [0, 9, 10, 99, 100, 65_535, 1_000_000, usize::MAX] {
            let mut out = Vec::new();
            push_decimal(&mut out, number);
            assert_eq!(out, number.to_string().into_bytes());
        }
    }

    #[test]
    fn a_view_is_shared_not_copied() {
        let view = ByteView::from("red");
        let response = Response::new(200, "text/plain", view.clone());
        assert_eq!(response.body().as_ptr(), view.as_bytes().as_ptr());
    }
}
