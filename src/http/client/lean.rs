//! An exchange by a client of our own: HTTP/1.1 as far as peers speak it, over httparse. What it leaves
//! out, to be lean: redirects, proxies, TLS, headers as a map.

use std::io;
use std::time::Instant;

use ureq::http::header::HOST;

use crate::http::client::peer_connection::{AnswerBody, Head, Home, PeerConnection};
use crate::http::client::transport::{TransportRequest, TransportResponse};
use crate::sync::Arc;

/// Sends the request, at `now`, and reads the head of its answer.
pub(crate) fn exchange(
    home: &Arc<Home>,
    connection: Option<Box<PeerConnection>>,
    request: &TransportRequest<'_>,
    now: Instant,
    deadline: Instant,
) -> io::Result<TransportResponse> {
    let (mut connection, now) = match connection {
        Some(connection) => (connection, now),
        None => (home.connect(deadline)?, Instant::now()),
    };
    write(&mut connection.output, home.terms.url.authority(), request);
    connection.socket.begin();
    connection.flush(now, deadline)?;
    let (input, mut socket) = connection.until(deadline);
    let (head, bytes) = input.head(&mut socket)?;
    let Head {
        status,
        framing,
        keep,
        is_protobuf,
        is_ours,
    } = head;
    connection.is_ours = is_ours;
    if is_ours {
        // The next exchange is not ureq's either.
        connection.line = Box::default();
    }
    if let Some(body) = connection.input.whole(framing) {
        // Most are: the connection is free before the value is looked at.
        if keep {
            home.give(connection);
        }
        return Ok(TransportResponse::whole(status, bytes, is_protobuf, body));
    }
    let body = AnswerBody::new(home.clone(), connection, framing, keep, deadline);
    let response = TransportResponse::with_reader(status, framing.length(), body);
    Ok(response.with_head(bytes, is_protobuf))
}

/// Writes head and body of a request, which go in one piece, to an empty `output`.
fn write(output: &mut Vec<u8>, authority: &str, request: &TransportRequest<'_>) {
    debug_assert!(output.is_empty());
    // The path is escaped, and http's types keep line ends out of the headers.
    for part in [request.method(), " ", request.path(), " HTTP/1.1"] {
        output.extend_from_slice(part.as_bytes());
    }
    if !request.headers().iter().any(|(name, _)| name == HOST) {
        output.extend_from_slice(b"\r\nhost: ");
        output.extend_from_slice(authority.as_bytes());
    }
    for (name, value) in request.headers() {
        output.extend_from_slice(b"\r\n");
        output.extend_from_slice(name.as_str().as_bytes());
        output.extend_from_slice(b": ");
        output.extend_from_slice(value.as_bytes());
    }
    let body = request.body();
    if !body.is_empty() {
        output.extend_from_slice(b"\r\ncontent-length: ");
        output.extend_from_slice(body.len().to_string().as_bytes());
    }
    output.extend_from_slice(b"\r\n\r\n");
    output.extend_from_slice(body);
}
