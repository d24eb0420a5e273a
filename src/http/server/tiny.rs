//! Answers peers through a tiny_http server that the program runs already.
//!
//! Feature `tiny_http`, on by default. A program that has a [`tiny_http::Server`] of its own needs
//! no second port: it calls [`HttpPool::matches`] with each request's URL, passes the requests that
//! match to [`HttpPool::handle`], and answers the others itself. Several threads may do so with one
//! server.
//!
//! [`HttpPool::matches`]: crate::http::HttpPool::matches
//! [`HttpPool::handle`]: crate::http::HttpPool::handle
//!
//! Do this on loopback or on a trusted network only, and use [`Server`](super::Server) elsewhere.
//! tiny_http 0.12.0, the newest version, has faults that its callers cannot avoid, because they occur
//! before it returns a request or after the response:
//!
//! | a client | effect |
//! |---|---|
//! | opens several connections at once and keeps them | those that find no idle thread in tiny_http's pool may never be answered |
//! | announces a body of 200 TB | the process aborts when the request is dropped: the rest of a body is read into one allocation of its announced size |
//! | asks for `HTTP/2.0` | the thread that reads the connection deadlocks |
//! | holds so many connections that `accept` fails once because no descriptor is left | the listener is closed and never opened again |
//! | sends half a head, or does not read the response | a thread is blocked without a time limit; threads, heads and pipelined requests are unbounded |
//! | sends two lengths, or a signed one | the first is used, or none: behind a proxy that uses the other, one request becomes two |
//! | connects with TLS, where the program enabled it | tiny_http's TLS is rustls 0.20, in which a client can cause an endless loop (RUSTSEC-2024-0336), and client certificates are impossible |
//!
//! This module avoids one fault: tiny_http sends a response in two small writes on a socket without
//! TCP_NODELAY, which costs 40 ms each on a connection that is kept open. Here a response is one
//! buffer, and [`bind`] sets the option.

use std::cell::OnceCell;
use std::io::{self, Read, Write};
use std::net::{TcpListener, ToSocketAddrs};
use std::time::Duration;

use httparse::Header;

use super::endpoint::Endpoint;
use super::handler::Request;
use super::head::{BODY_TOO_LARGE, BadRequest, MAX_FIELDS, RequestHead, TOO_MANY_FIELDS, bad};
use super::limits::{DEFAULT_MAX_REQUEST_TIME, DEFAULT_SOCKET_BUFFER_SIZE, MAX_PEER_BODY};
use super::listener::{SocketOptions, prepare};
use super::response::{Response, ResponseOptions};
use super::wait::LoadLimits;
use crate::error::{Error, ErrorKind, Result};

/// Listens on `addr` as `tiny_http::Server::http` does, on a socket that is set up for small responses.
///
/// The connections inherit (on Linux) TCP_NODELAY, buffers of 64 KiB, and an SO_SNDTIMEO and a
/// TCP_USER_TIMEOUT of 30 s, which end the connection of a client that reads nothing. SO_RCVTIMEO is not
/// set, because an `accept` that times out makes tiny_http close its listener; so a client that sends
/// nothing can block a thread for any time.
///
/// # Errors
///
/// [`ErrorKind::Io`] if `addr` does not resolve or cannot be listened on.
pub fn bind(addr: impl ToSocketAddrs) -> Result<tiny_http::Server> {
    let listener = TcpListener::bind(addr)
        .map_err(|e| Error::with_source(ErrorKind::Io, "cannot listen", e))?;
    let options = SocketOptions {
        write_step: SEND_TIMEOUT,
        deaf_timeout: SEND_TIMEOUT,
        buffer_size: DEFAULT_SOCKET_BUFFER_SIZE,
    };
    prepare(&listener, options)
        .map_err(|e| Error::with_source(ErrorKind::Io, "cannot set up the listening socket", e))?;
    tiny_http::Server::from_listener(listener, None)
        .map_err(|e| Error::with_source(ErrorKind::Io, "cannot start tiny_http", e))
}

/// Answers `request` as [`Server`](super::Server) does, as far as that is possible without the
/// connection.
///
/// A request that is not below the base path gets 404; the program calls [`Endpoint::owns`] first.
/// A client that has disconnected is not an error.
pub(crate) fn handle(endpoint: &Endpoint, mut request: tiny_http::Request) -> io::Result<()> {
    let most = endpoint.max_body(
        request.method().as_str(),
        request.remote_addr().copied(),
        MAX_PEER_BODY,
    );
    let written = match read_body(&mut request, most) {
        Err(bad) => refuse(request, bad),
        Ok(body) => {
            let response = respond(endpoint, &request, &body);
            let mut writer = request.into_writer();
            // tiny_http buffers 1 KiB and writes longer slices directly: one write either way.
            writer.write_all(&response).and_then(|()| writer.flush())
        }
    };
    match written {
        Err(error) if is_gone(&error) => Ok(()),
        result => result,
    }
}

/// The body, unless its announced length is over the limit; it grows as bytes arrive.
///
/// `as_reader` makes tiny_http send the `100 Continue` that a client may wait for.
fn read_body(request: &mut tiny_http::Request, most: usize) -> Result<Vec<u8>, BadRequest> {
    let mut body = Vec::new();
    let len = request.body_length().unwrap_or(0);
    if len > most {
        return Err(BODY_TOO_LARGE);
    }
    if len > 0 {
        let read = request.as_reader().take(len as u64).read_to_end(&mut body);
        if read.is_err() || body.len() < len {
            return Err(bad("the body is shorter than announced"));
        }
    }
    Ok(body)
}

/// The bytes of the whole response.
fn respond(endpoint: &Endpoint, request: &tiny_http::Request, body: &[u8]) -> Vec<u8> {
    let mut options = ResponseOptions {
        keep_alive: stays_open(request),
        http_10: is_http_10(request),
        head_only: *request.method() == tiny_http::Method::Head,
    };
    let response = fields_of(request).and_then(|fields| {
        let method = request.method().as_str();
        let head = RequestHead::new(method, request.url(), options.http_10, &fields)?;
        // tiny_http ignores a second `Connection` header. The response announces the close all the
        // same.
        options.keep_alive &= head.keep_alive;
        let peer_addr = request.remote_addr().copied();
        let limits = LoadLimits {
            max_request_time: DEFAULT_MAX_REQUEST_TIME,
            began: &OnceCell::new(),
            connection: None,
        };
        if !endpoint.is_below_base(head.path) {
            return Ok(Response::text(404, "there is nothing here"));
        }
        let request = Request {
            head: &head,
            body,
            peer_addr,
        };
        Ok(endpoint.respond(&request, limits).into_response())
    });
    let response = response.unwrap_or_else(|bad| {
        options.keep_alive = false;
        bad.into()
    });
    let mut bytes = Vec::with_capacity(HEAD_LEN + response.body_len());
    response.push_head(options, &mut bytes);
    for piece in response.pieces(options) {
        bytes.extend_from_slice(piece);
    }
    bytes
}

/// Answers a request whose body is not read.
///
/// `into_writer` cannot be used, because it reads the rest of the body before it returns: a client
/// that waits for the response before it sends the body would wait for ever.
fn refuse(request: tiny_http::Request, bad: BadRequest) -> io::Result<()> {
    let response = tiny_http::Response::from_string(bad.reason);
    request.respond(response.with_status_code(bad.status))
}

/// The headers, as `head::parse` returns them. Its rules are applied where tiny_http has none.
fn fields_of(request: &tiny_http::Request) -> Result<Vec<Header<'_>>, BadRequest> {
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
    // A bare LF does not end a line in tiny_http, but does in other servers.
    let mut values = fields.iter().map(|field| field.value);
    let odd = |bytes: &[u8]| bytes.iter().copied().any(is_control);
    if odd(request.url().as_bytes()) || values.any(odd) {
        return Err(bad("a control character in the head"));
    }
    Ok(fields)
}

/// Whether tiny_http will read another request from this connection. This is exactly its own rule,
/// because the response's `Connection` header has to agree with it.
fn stays_open(request: &tiny_http::Request) -> bool {
    let connection = request
        .headers()
        .iter()
        .find(|header| header.field.equiv("Connection"))
        .map(|header| header.value.as_str().to_ascii_lowercase())
        .unwrap_or_default();
    let has = |word| connection.contains(word);
    !has("close") && !has("upgrade") && (has("keep-alive") || !is_http_10(request))
}

/// Whether a byte is not allowed within a line of a head.
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

/// About the length of a response's head, in bytes.
const HEAD_LEN: usize = 256;

const SEND_TIMEOUT: Duration = Duration::from_secs(30);
