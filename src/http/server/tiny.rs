//! The peer path inside a tiny_http server that the program runs already.
//!
//! Feature `tiny_http`, on by default. A program that has a [`tiny_http::Server`] of its own needs
//! no second port: it asks [`HttpPool::matches`] of each request's URL, gives what matches to
//! [`HttpPool::handle`], and answers the rest itself. Several threads may do so with one server.
//!
//! [`HttpPool::matches`]: super::HttpPool::matches
//! [`HttpPool::handle`]: super::HttpPool::handle
//!
//! Do this on loopback or on a trusted network, and let [`Server`](super::Server) face all others.
//! tiny_http 0.12.0, the newest, has faults that no caller of it can mend, because they lie before
//! the request is handed out or after it is answered:
//!
//! | what a client does | what the program sees |
//! |---|---|
//! | opens several connections at once and keeps them | those that find no idle thread in tiny_http's pool may never be answered |
//! | announces a body of 200 TB | the process aborts when the request is dropped: the rest of a body is read into one allocation of its announced size |
//! | asks for `HTTP/2.0` | the thread that reads the connection waits for itself, for ever |
//! | holds so many connections that `accept` fails once for want of a descriptor | the listener is closed and never opened again |
//! | sends half a head, or reads no answer | a thread is held without a time limit; threads, heads and requests sent ahead have no bound |
//! | sends two lengths, or a signed one | the first is taken, or none: behind a proxy that reads it the other way, one request becomes two |
//! | connects with TLS, where the program enabled it | tiny_http's TLS is rustls 0.20, which a client can send into an endless loop (RUSTSEC-2024-0336) and which it cannot be made to ask for a client's certificate |
//!
//! Answers in two small writes on a socket without TCP_NODELAY, which cost 40 ms each on a
//! connection that is kept, are the one fault that this module does away with: an answer is one
//! buffer, and [`bind`] sets the option.

use std::io::{self, Read, Write};
use std::net::{TcpListener, ToSocketAddrs};
use std::time::Duration;

use httparse::Header;

use super::answer::{Answer, Endpoint, Rest};
use super::handler::Request;
use super::head::{BODY_TOO_LARGE, Head, MAX_FIELDS, Reject, TOO_MANY_FIELDS};
use super::limits::DEFAULT_MAX_BODY_SIZE;
use super::listener::prepare;
use super::response::{Framing, Response};
use crate::error::{Error, ErrorKind, Result};

/// Listens on `addr` as `tiny_http::Server::http` does, on a socket that suits small answers.
///
/// The connections inherit (on Linux) TCP_NODELAY, and SO_SNDTIMEO of 30 s: a client that reads
/// nothing is given up. SO_RCVTIMEO is not set, because an `accept` that times out makes tiny_http
/// close its listener; so a client that sends nothing holds a thread for as long as it likes.
///
/// # Errors
///
/// [`ErrorKind::Io`] if `addr` does not resolve or cannot be listened on.
pub fn bind(addr: impl ToSocketAddrs) -> Result<tiny_http::Server> {
    let listener = TcpListener::bind(addr)
        .map_err(|e| Error::with_source(ErrorKind::Io, "cannot listen", e))?;
    prepare(&listener, SEND_TIMEOUT)
        .map_err(|e| Error::with_source(ErrorKind::Io, "cannot set up the listening socket", e))?;
    tiny_http::Server::from_listener(listener, None)
        .map_err(|e| Error::with_source(ErrorKind::Io, "cannot start tiny_http", e))
}

/// Answers `request` as our own server would, but for what only the owner of a connection can do.
///
/// A request that is not below the base path gets 404: the program asks [`Endpoint::owns`] first.
/// A client that is gone is no error.
pub(crate) fn handle(endpoint: &Endpoint, mut request: tiny_http::Request) -> io::Result<()> {
    let written = match read_body(&mut request) {
        Err(reject) => refuse(request, reject),
        Ok(body) => {
            let answer = answer(endpoint, &request, &body);
            let mut writer = request.into_writer();
            // tiny_http buffers 1 KiB and sends what is larger as it is: one write either way.
            writer.write_all(&answer).and_then(|()| writer.flush())
        }
    };
    match written {
        Err(error) if is_gone(&error) => Ok(()),
        result => result,
    }
}

/// The body, unless its announced length is over the limit; grows as bytes arrive.
///
/// Asking for the reader makes tiny_http send the `100 Continue` that a client may wait for.
fn read_body(request: &mut tiny_http::Request) -> Result<Vec<u8>, Reject> {
    let mut body = Vec::new();
    let len = request.body_length().unwrap_or(0);
    if len > DEFAULT_MAX_BODY_SIZE {
        return Err(BODY_TOO_LARGE);
    }
    if len > 0 {
        let read = request.as_reader().take(len as u64).read_to_end(&mut body);
        if read.is_err() || body.len() < len {
            return Err(Reject {
                status: 400,
                reason: "the body is shorter than announced",
            });
        }
    }
    Ok(body)
}

/// The whole answer, ready to be written at once.
fn answer(endpoint: &Endpoint, request: &tiny_http::Request, body: &[u8]) -> Vec<u8> {
    let mut framing = Framing {
        keep_alive: stays_open(request),
        http_10: is_http_10(request),
        head_only: *request.method() == tiny_http::Method::Head,
    };
    let answer = fields_of(request).and_then(|fields| {
        let method = request.method().as_str();
        let head = Head::new(method, request.url(), framing.http_10, &fields)?;
        // A client that says it in a second header is not heard by tiny_http, but told to close.
        framing.keep_alive &= head.keep_alive;
        let peer_addr = request.remote_addr().copied();
        let answer = endpoint.answer(&Request::new(&head, body, peer_addr));
        Ok(answer.unwrap_or_else(|| Answer::Other(Response::text(404, "there is nothing here"))))
    });
    let answer = answer.unwrap_or_else(|reject| {
        framing.keep_alive = false;
        Answer::Other(reject.into())
    });
    let mut out = Vec::with_capacity(256);
    match answer.encode(framing, &mut out) {
        Rest::One(bytes) => out.extend_from_slice(bytes),
        Rest::Many(body) => body.pieces().for_each(|piece| out.extend_from_slice(piece)),
    }
    out
}

/// Answers a request whose body is not read.
///
/// Not by way of `into_writer`, which reads the rest of the body before it returns: a client that
/// waits for the answer before it sends the body would wait for ever.
fn refuse(request: tiny_http::Request, reject: Reject) -> io::Result<()> {
    let response = tiny_http::Response::from_string(reject.reason);
    request.respond(response.with_status_code(reject.status))
}

/// The headers as our own parser gives them, under its rules where tiny_http has none.
fn fields_of(request: &tiny_http::Request) -> Result<Vec<Header<'_>>, Reject> {
    let headers = request.headers();
    if headers.len() > MAX_FIELDS {
        return Err(TOO_MANY_FIELDS);
    }
    let fields: Vec<_> = headers
        .iter()
        .map(|header| Header {
            name: header.field.as_str().as_str(),
            value: header.value.as_str().as_bytes(),
        })
        .collect();
    // A bare LF ends no line in tiny_http, and does in others.
    let mut values = fields.iter().map(|field| field.value);
    let odd = |bytes: &[u8]| bytes.iter().copied().any(is_control);
    if odd(request.url().as_bytes()) || values.any(odd) {
        return Err(Reject {
            status: 400,
            reason: "a control character in the head",
        });
    }
    Ok(fields)
}

/// Whether tiny_http will read another request from this connection: its rule, to the letter,
/// since the answer has to say the same.
fn stays_open(request: &tiny_http::Request) -> bool {
    let connection = request
        .headers()
        .iter()
        .find(|header| header.field.equiv("Connection"))
        .map(|header| header.value.as_str().to_ascii_lowercase())
        .unwrap_or_default();
    let says = |word| connection.contains(word);
    !says("close") && !says("upgrade") && (says("keep-alive") || !is_http_10(request))
}

/// What is in no head, but for the line ends between its lines.
fn is_control(byte: u8) -> bool {
    (byte < b' ' && byte != b'\t') || byte == 0x7f
}

fn is_http_10(request: &tiny_http::Request) -> bool {
    *request.http_version() == (1, 0)
}

fn is_gone(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::BrokenPipe
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
    )
}

const SEND_TIMEOUT: Duration = Duration::from_secs(30);
