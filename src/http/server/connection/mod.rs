//! Serves one connection: reads requests and writes responses, one at a time, on the connection's own
//! thread.
//!
//! `reader` reads a head and a body, `writer` writes a response.

pub(crate) mod reader;
mod writer;

use std::borrow::Cow;
use std::cell::OnceCell;
use std::io::Write;
use std::time::Instant;

use crate::group::ClientWaiter;
use crate::http::config::KnownPeers;
use crate::http::server::abandoned::AbandonedLoads;
use crate::http::server::byte_budget::{ByteBudget, ByteGuard};
use crate::http::server::connection::reader::{NO_ROOM, RequestError, RequestReader};
use crate::http::server::connection::writer::ResponseWriter;
use crate::http::server::connections::{Activity, Connection, Connections};
use crate::http::server::endpoint::Endpoint;
use crate::http::server::endpoint::reply::Reply;
use crate::http::server::handler::{Handler, Request};
use crate::http::server::head::{self, BODY_TOO_LARGE, ParsedHead, RequestHead};
use crate::http::server::limits::ServerLimits;
use crate::http::server::listener::tune_accepted;
use crate::http::server::response::{Response, ResponseOptions};
use crate::http::server::wait::{LoadLimits, LoadWait};
use crate::panics::caught;
use crate::sync::Arc;

/// The state that all connections of a server share.
pub(crate) struct Service {
    pub endpoint: Endpoint,
    pub fallback: Option<Arc<dyn Handler>>,
    pub limits: ServerLimits,
    pub response_bytes: ByteBudget,
    pub body_bytes: ByteBudget,
    pub peers: Arc<dyn KnownPeers>,
    pub abandoned: Arc<AbandonedLoads>,
    pub connections: Arc<Connections>,
}

/// Serves a connection until the client, a limit or a shutdown ends it.
///
/// Pipelined requests wait in the buffer, and in the kernel when the buffer is full. They are
/// answered in order, each with a write of its own. So TCP's flow control stops a client that sends
/// requests without reading the responses.
pub(crate) fn serve(service: &Service, connection: &Connection) {
    let (stream, limits) = (&connection.stream, &service.limits);
    if tune_accepted(stream, limits.socket_options()).is_err() {
        return;
    }
    let mut session = Session {
        service,
        connection,
        reader: RequestReader::new(stream, limits),
        writer: ResponseWriter::new(connection, limits),
    };
    match session.serve() {
        Ok(()) => session.reader.linger(),
        Err(RequestError::Closed) => {}
        Err(RequestError::Bad(bad)) => {
            let options = ResponseOptions {
                keep_alive: false,
                http_10: false,
                head_only: false,
            };
            if session.writer.send(&bad.into(), options).is_ok() {
                session.reader.linger();
            }
        }
    }
}

/// A connection while it is served.
struct Session<'s> {
    service: &'s Service,
    connection: &'s Connection,
    reader: RequestReader<'s>,
    writer: ResponseWriter<'s>,
}

impl Session<'_> {
    /// Answers requests until one of them ends the connection. A head is parsed if it differs from the last
    /// parsed one in more than the path.
    fn serve(&mut self) -> Result<(), RequestError> {
        let mut head_len = self.next_head(None)?.0;
        loop {
            let bytes = self.reader.split_at(head_len).0.to_vec();
            let mut fields = head::NO_FIELDS;
            let parsed = ParsedHead::parse(&bytes, &mut fields)?;
            let mut is_similar = true;
            while is_similar {
                if !self.answer(&parsed, head_len)? {
                    return Ok(());
                }
                (head_len, is_similar) = self.next_head(Some(&parsed))?;
            }
        }
    }

    /// Waits for a request; see [`RequestReader::read_head`].
    fn next_head(&mut self, last: Option<&ParsedHead<'_>>) -> Result<(usize, bool), RequestError> {
        self.connection.set_activity(Activity::Idle);
        if is_ending(self.service, self.connection) {
            return Err(RequestError::Closed);
        }
        let next = self.reader.read_head(last)?;
        self.connection.set_activity(Activity::Busy);
        Ok(next)
    }

    /// Answers the request at the start of the reader's buffer, whose head differs from `similar`
    /// in its path only. Returns whether the connection stays open.
    fn answer(&mut self, similar: &ParsedHead<'_>, head_len: usize) -> Result<bool, RequestError> {
        let (service, limits) = (self.service, &self.service.limits);
        let (head, arrived, socket) = self.reader.split_at(head_len);
        let head = similar.with_path_of(head)?;
        // Check the length before any of the body is read or memory is allocated for it.
        let body_len = match usize::try_from(head.content_length) {
            Ok(0) => 0,
            Ok(len) if len <= max_body(service, self.connection, &head) => len,
            _ => return Err(BODY_TOO_LARGE.into()),
        };
        let arrived = &arrived[..body_len.min(arrived.len())];
        let mut body_guard = None;
        let body = if arrived.len() == body_len {
            Cow::Borrowed(arrived)
        } else {
            let deadline = Instant::now() + limits.body_timeout;
            if head.expects_continue {
                let written = (&self.connection.stream).write_all(CONTINUE);
                written.map_err(|_| RequestError::Closed)?;
            }
            let budget = service.body_bytes.take(0, is_stranger(self.connection));
            let guard = body_guard.insert(budget.ok_or(NO_ROOM)?);
            self.connection.set_activity(Activity::Receiving);
            let body = socket.read_body(arrived, body_len, deadline, guard)?;
            self.connection.set_activity(Activity::Busy);
            Cow::Owned(body)
        };
        let request = Request {
            head: &head,
            body: &body,
            peer_addr: Some(self.connection.addr),
        };
        let load_limits = LoadLimits {
            max_request_time: limits.max_request_time,
            began: &OnceCell::new(),
            connection: Some((self.connection, &service.abandoned)),
        };
        let mut reply = respond(service, &request, load_limits);
        let _reply_guard = match reply.body_len() {
            ..=UNCOUNTED_RESPONSE => None,
            _ => wait_for_budget(service, self.connection, &request, load_limits, &mut reply),
        };
        let options = ResponseOptions {
            keep_alive: head.keep_alive && !is_ending(service, self.connection),
            http_10: head.http_10,
            head_only: head.method == "HEAD",
        };
        let sent = match &reply {
            Reply::Value(value) if options.keep_alive && !options.http_10 => {
                self.writer.send_value(value)
            }
            _ => self.writer.send(&reply.into_response(), options),
        };
        sent.map_err(|_| RequestError::Closed)?;
        let consumed = head_len + arrived.len();
        self.reader.consume(consumed);
        Ok(options.keep_alive)
    }
}

/// The longest body that is read of the request with this head.
fn max_body(service: &Service, connection: &Connection, head: &RequestHead<'_>) -> usize {
    let endpoint = &service.endpoint;
    let is_for_peers = endpoint.is_below_base(head.path);
    let most = service.limits.max_body(is_for_peers);
    match is_for_peers {
        true => endpoint.max_body(head.method, Some(connection.addr), most),
        false => most,
    }
}

/// Whether the connection has to end, because the server stops or another client needs the room.
fn is_ending(service: &Service, connection: &Connection) -> bool {
    service.connections.is_stopping() || connection.is_evicted()
}

/// Takes the bytes of a response from the budget. One that does not fit is made again when there is room,
/// so that its value is not held meanwhile. Without room in the time of its client, it becomes an error.
fn wait_for_budget<'s>(
    service: &'s Service,
    connection: &Connection,
    request: &Request<'_>,
    limits: LoadLimits<'_>,
    reply: &mut Reply,
) -> Option<ByteGuard<'s>> {
    let is_for_peers = service.endpoint.is_below_base(request.head.path);
    let (budget, is_stranger) = (&service.response_bytes, is_stranger(connection));
    let (mut wait, mut guard) = (None, None::<ByteGuard<'_>>);
    loop {
        let len = reply.body_len();
        if len <= UNCOUNTED_RESPONSE {
            return None;
        }
        // The value may be another one than before the wait.
        guard = guard.filter(|guard| len <= guard.bytes());
        guard = guard.or_else(|| budget.take(len, is_stranger));
        if guard.is_some() {
            return guard;
        }
        *reply = Response::from(NO_ROOM).into();
        let timeout = request.head.timeout.flatten();
        let wait = wait.get_or_insert_with(|| LoadWait::new(limits, timeout));
        if is_for_peers {
            guard = budget.wait_for(len, is_stranger, || wait.next_step());
        }
        guard.as_ref()?;
        *reply = respond(service, request, limits);
    }
}

fn is_stranger(connection: &Connection) -> bool {
    !connection.is_from_peer()
}

/// The response of the endpoint or of the fallback. Does not unwind. Inlined, because a reply is large: a
/// call would copy it once more.
#[inline]
fn respond(service: &Service, request: &Request<'_>, limits: LoadLimits<'_>) -> Reply {
    if service.endpoint.is_below_base(request.head.path) {
        return service.endpoint.respond(request, limits);
    }
    let response = match &service.fallback {
        Some(handler) => caught(|| handler.handle(request))
            .unwrap_or_else(|| Response::text(500, "the handler panicked")),
        None => Response::text(404, "there is nothing here"),
    };
    response.into()
}

/// The longest response that takes nothing of the budget. Those of changes are shorter, so that no
/// change is made twice.
const UNCOUNTED_RESPONSE: usize = 4 << 10;

const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";
