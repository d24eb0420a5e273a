//! The head of an answer: what it says of the body, and of the connection.

use std::io;
use std::mem::MaybeUninit;

use httparse::{ParserConfig, Status};

use super::NOT_HTTP;
use super::framing::Framing;
use crate::http::client::exchange::{NO_LENGTH, Refusal, TWO_LENGTHS};
use crate::wire::{self, has_token, parse_length};

/// What a head says of the answer, besides its headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) status: u16,
    pub(crate) framing: Framing,
    /// Whether the connection can carry another exchange.
    pub(crate) keep: bool,
    /// Whether the body is said to be protobuf.
    pub(crate) is_protobuf: bool,
    /// Whether a server of ours wrote it.
    pub(crate) is_ours: bool,
}

/// A head, and the text of its Content-Length.
type Found<'b> = (Head, Option<&'b [u8]>);

impl Head {
    /// Reads a whole head; `None` if it only announces another.
    pub(crate) fn parse(bytes: &[u8]) -> io::Result<Option<Found<'_>>> {
        let mut fields = [const { MaybeUninit::uninit() }; MAX_FIELDS];
        let mut response = httparse::Response::new(&mut []);
        let parsed = ParserConfig::default().parse_response_with_uninit_headers(
            &mut response,
            bytes,
            &mut fields,
        );
        let (Ok(Status::Complete(len)), Some(version), Some(status)) =
            (parsed, response.version, response.code)
        else {
            return Err(NOT_HTTP.error());
        };
        // `scan` and httparse agree on where a head ends.
        if len != bytes.len() || status < 100 || status == 101 {
            return Err(NOT_HTTP.error());
        }
        if status < 200 {
            return Ok(None);
        }
        let (mut length, mut length_at, mut content_type) = (None, None, None);
        let (mut codings, mut chunked, mut close) = (0, false, false);
        let (mut is_ours, mut forwarded) = (false, false);
        for field in response.headers.iter() {
            let is = |name: &str| field.name.eq_ignore_ascii_case(name);
            if is("content-length") {
                let found = parse_length(field.value).map_err(|_| BAD_LENGTH.error())?;
                if length.replace(found).is_some() {
                    return Err(TWO_LENGTHS.error());
                }
                length_at = Some(field.value);
            } else if is("content-type") {
                content_type = content_type.or(Some(field.value));
            } else if is("transfer-encoding") {
                codings += 1;
                chunked = field.value.eq_ignore_ascii_case(b"chunked");
            } else if is("server") {
                is_ours |= field.value == wire::SERVER.as_bytes();
            } else if is("via") {
                forwarded = true;
            } else if is("connection") {
                close |= has_token(field.value, b"close");
            }
        }
        let framing = match length {
            // One reader takes one meaning, one between the other: then the two do not agree on
            // where the next answer begins (RFC 9112, section 6.3).
            _ if codings > 1
                || (codings == 1 && (!chunked || length.is_some() || version == 0)) =>
            {
                return Err(TWO_LENGTHS.error());
            }
            _ if matches!(status, 204 | 304) => {
                close |= chunked || length.is_some_and(|length| length > 0);
                Framing::Length(0)
            }
            _ if chunked => Framing::chunked(),
            Some(length) => Framing::Length(length),
            // Such a body ends where the connection does: if the peer dies, what has arrived looks
            // whole.
            None if status == 200 => return Err(NO_LENGTH.error()),
            None => {
                close = true;
                Framing::UntilClosed
            }
        };
        let head = Head {
            status,
            framing,
            keep: version == 1 && !close,
            is_protobuf: content_type.is_some_and(wire::is_protobuf),
            is_ours: is_ours && !forwarded,
        };
        Ok(Some((head, length_at)))
    }

    /// The same head with another length, as far as it is known from [`parse`](Self::parse): none of
    /// its other words may depend on the length.
    pub(crate) fn with_length(self, digits: &[u8]) -> Option<Head> {
        let framing = Framing::Length(parse_length(digits).ok()?);
        Some(Head { framing, ..self })
    }

    /// Whether a head that differs in its length alone says the same.
    pub(crate) fn can_repeat(&self) -> bool {
        self.status == 200 && matches!(self.framing, Framing::Length(_))
    }
}

const BAD_LENGTH: Refusal = Refusal("the Content-Length of the answer is no length");

/// The most header fields of an answer, as many as ureq takes.
const MAX_FIELDS: usize = 128;

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(head: &str) -> io::Result<Option<Head>> {
        Ok(Head::parse(head.as_bytes())?.map(|(head, _)| head))
    }

    #[test]
    fn the_body_ends_where_the_head_says() {
        for (lines, framing, keep) in [
            (
                "1.1 200 OK\r\nContent-Length: 5\r\n",
                Framing::Length(5),
                true,
            ),
            ("1.1 200 \r\ncontent-length:5\r\n", Framing::Length(5), true),
            (
                "1.0 200 OK\r\nContent-Length: 5\r\n",
                Framing::Length(5),
                false,
            ),
            (
                "1.1 200 OK\r\nContent-Length: 5\r\nConnection: x, Close\r\n",
                Framing::Length(5),
                false,
            ),
            (
                "1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n",
                Framing::chunked(),
                true,
            ),
            ("1.1 404 No\r\n", Framing::UntilClosed, false),
            ("1.1 204 No\r\n", Framing::Length(0), true),
            (
                "1.1 204 No\r\nContent-Length: 5\r\n",
                Framing::Length(0),
                false,
            ),
            (
                "1.1 304 No\r\nContent-Length: 0\r\n",
                Framing::Length(0),
                true,
            ),
        ] {
            let head = parse(&format!("HTTP/{lines}\r\n")).unwrap().expect(lines);
            assert_eq!((head.framing, head.keep), (framing, keep), "{lines}");
        }
    }

    #[test]
    fn a_head_that_can_be_read_in_two_ways_is_refused() {
        for lines in [
            "1.1 200 OK\r\n",
            "1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n",
            "1.1 200 OK\r\nContent-Length: 5, 5\r\n",
            "1.1 200 OK\r\nContent-Length: -5\r\n",
            "1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n",
            "1.1 404 No\r\nTransfer-Encoding: gzip\r\n",
            "1.1 404 No\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
            "1.0 404 No\r\nTransfer-Encoding: chunked\r\n",
            "1.1 101 Switching\r\n",
            "1.1 099 Odd\r\n",
            "2.0 200 OK\r\nContent-Length: 5\r\n",
        ] {
            assert!(parse(&format!("HTTP/{lines}\r\n")).is_err(), "{lines}");
        }
    }

    #[test]
    fn a_head_that_announces_another_is_none_itself() {
        for status in [100, 102, 103] {
            assert_eq!(
                parse(&format!("HTTP/1.1 {status} Soon\r\n\r\n")).unwrap(),
                None
            );
        }
    }
}
