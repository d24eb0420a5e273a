//! Serves one connection: reads requests and writes responses, one at a time, on the connection's own
//! thread.

use std::borrow::Cow;
use std::io;
use std::iter;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use super::connections::{Connection, Connections};
use super::endpoint::Endpoint;
use super::handler::{Handler, Request};
use super::head::{self, BODY_TOO_LARGE};
use super::limits::Limits;
use super::listener::tune_accepted;
use super::reader::{RequestError, RequestReader};
use super::response::{Response, ResponseOptions};
use super::writer::send;
use crate::sync::Arc;

/// The state that all connections of a server share.
pub(crate) struct Service {
    pub endpoint: Endpoint,
    pub fallback: Option<Arc<dyn Handler>>,
    pub limits: Limits,
    pub connections: Arc<Connections>,
}

/// Serves a connection until the client, a limit or a shutdown ends it.
///
/// Requests that the client sent ahead wait in the buffer, and in the kernel when that is full. They
/// are answered in order, each with a write of its own, so TCP stops a client that sends on without
/// reading.
pub(crate) fn serve(service: &Service, connection: &Connection) {
    let limits = &service.limits;
    if tune_accepted(&connection.stream, limits.write_timeout).is_err() {
        return;
    }
    let mut reader = RequestReader::new(&connection.stream, limits);
    // The first head has to arrive within the head time-out, counted from the accept.
    let mut deadline = Some(Instant::now() + limits.head_timeout);
    loop {
        connection.set_busy(false);
        if service.connections.is_stopping() {
            return;
        }
        let answered = reader.read_head(deadline.take()).and_then(|head_len| {
            connection.set_busy(true);
            answer(service, connection, &mut reader, head_len)
        });
        let bad = match answered {
            Ok(true) => continue,
            Ok(false) => return reader.linger(),
            Err(RequestError::Closed) => return,
            Err(RequestError::Bad(bad)) => bad,
        };
        let options = ResponseOptions {
            keep_alive: false,
            http_10: false,
            head_only: false,
        };
        if write(service, connection, &bad.into(), options).is_ok() {
            reader.linger();
        }
        return;
    }
}

/// Answers the request at the start of the reader's buffer, and returns whether the connection stays
/// open.
fn answer(
    service: &Service,
    connection: &Connection,
    reader: &mut RequestReader<'_>,
    head_len: usize,
) -> Result<bool, RequestError> {
    let limits = &service.limits;
    let (head, arrived, socket) = reader.split_at(head_len);
    let mut fields = head::NO_FIELDS;
    let head = head::parse(head, &mut fields)?;
    // Before any of the body is read or memory is allocated for it.
    let body_len = match usize::try_from(head.content_length) {
        Ok(len) if len <= limits.max_body_size => len,
        _ => return Err(BODY_TOO_LARGE.into()),
    };
    let arrived = &arrived[..body_len.min(arrived.len())];
    let body = if arrived.len() == body_len {
        Cow::Borrowed(arrived)
    } else {
        let deadline = Instant::now() + limits.body_timeout;
        if head.expects_continue {
            let stream = &connection.stream;
            send(stream, CONTINUE, iter::empty(), limits.write_timeout)
                .map_err(|_| RequestError::Closed)?;
        }
        Cow::Owned(socket.read_body(arrived, body_len, deadline)?)
    };
    let response = respond(service, &Request::new(&head, &body, Some(connection.addr)));
    let options = ResponseOptions {
        keep_alive: head.keep_alive && !service.connections.is_stopping(),
        http_10: head.http_10,
        head_only: head.method == "HEAD",
    };
    write(service, connection, &response, options).map_err(|_| RequestError::Closed)?;
    let consumed = head_len + arrived.len();
    reader.consume(consumed);
    Ok(options.keep_alive)
}

/// The response of the endpoint or of the fallback. Does not unwind.
fn respond(service: &Service, request: &Request<'_>) -> Response {
    let response = service.endpoint.respond(request);
    response.unwrap_or_else(|| match &service.fallback {
        Some(handler) => catch_unwind(AssertUnwindSafe(|| handler.handle(request)))
            .unwrap_or_else(|_| Response::text(500, "the handler panicked")),
        None => Response::text(404, "there is nothing here"),
    })
}

fn write(
    service: &Service,
    connection: &Connection,
    response: &Response,
    options: ResponseOptions,
) -> io::Result<()> {
    let (head, body) = (response.head(options), response.pieces(options));
    let timeout = service.limits.write_timeout;
    send(&connection.stream, head.as_bytes(), body, timeout)
}

const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";
