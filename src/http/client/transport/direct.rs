//! HTTP/1.1 over this crate's own sockets, with the parts that peers use: no redirects, proxies or
//! TLS.

use std::io::{self, Read};
use std::time::Instant;

use crate::context::Context;
use crate::error::Result;
use crate::http::client::transport::connection::StaleConnection;
use crate::http::client::transport::pool::{ConnectionPool, PooledConnection};
use crate::http::client::transport::response::{BodyFraming, ResponseReader};
use crate::http::client::transport::target::Target;
use crate::http::client::transport::{
    IdleConnections, ResponseBytes, Transport, TransportRequest, TransportResponse,
};
use crate::sync::Arc;
use crate::wire;

/// Sends requests to one peer, over connections of its own.
pub(crate) struct DirectTransport {
    pool: Arc<ConnectionPool>,
}

impl DirectTransport {
    pub(crate) fn new(target: Arc<Target>) -> Self {
        DirectTransport {
            pool: Arc::new(ConnectionPool::new(target)),
        }
    }

    /// Sends the request on an idle connection, or else on a new one.
    ///
    /// A request that fails because the peer had closed the connection while it was idle is sent
    /// once more, on a new one. This is safe: a get and a batch change nothing at the peer, and a
    /// removal or a set has the same effect if it arrives twice while its caller waits. The other idle
    /// connections are probably dead too, so they are closed: all of them if the peer closed this one, and if
    /// it stayed silent, those that were not used meanwhile.
    fn attempt(
        &self,
        request: &TransportRequest<'_>,
        deadline: Instant,
    ) -> io::Result<TransportResponse> {
        let now = Instant::now();
        if let Some(mut connection) = self.pool.take(now) {
            let left = deadline.saturating_duration_since(now);
            connection.source.begin(now, left);
            let response = self.exchange(connection, request);
            let Err(error) = &response else {
                return response;
            };
            match StaleConnection::in_error(error) {
                Some(StaleConnection::Closed) => {
                    self.pool.clear();
                    self.pool.target.addresses().refresh();
                }
                Some(StaleConnection::Silent) => {
                    self.pool.close_unused_since(now);
                    return response;
                }
                None => return response,
            }
        }
        let mut connection = self.pool.target.connect(deadline)?;
        let now = Instant::now();
        connection.begin(now, deadline.saturating_duration_since(now));
        self.exchange(Box::new(ResponseReader::new(connection)), request)
    }

    fn exchange(
        &self,
        mut connection: PooledConnection,
        request: &TransportRequest<'_>,
    ) -> io::Result<TransportResponse> {
        let authority = self.pool.target.url.authority();
        let sent = connection
            .source
            .send(|bytes| encode(authority, request, bytes));
        let (head, headers) = match sent {
            Ok(()) => connection.read_head()?,
            Err(error) if !request.body().is_empty() && error.kind() != io::ErrorKind::TimedOut => {
                connection.read_early_head(error)?
            }
            Err(error) => return Err(error),
        };
        self.pool.target.note_keyed(head.is_from_larder);
        let body = match connection.take_whole(head.framing) {
            Some(bytes) => {
                if head.keep_alive {
                    self.pool.give_back(connection);
                }
                ResponseBytes::Whole(bytes)
            }
            None => ResponseBytes::Reader(Box::new(ResponseBody {
                pool: self.pool.clone(),
                connection: Some(connection),
                framing: head.framing,
                keep_alive: head.keep_alive,
            })),
        };
        Ok(TransportResponse::with_head(&head, headers, body))
    }
}

impl IdleConnections for DirectTransport {
    fn close_idle(&self) {
        self.pool.clear();
    }
}

impl Transport for DirectTransport {
    fn round_trip(
        &self,
        ctx: &Context,
        request: TransportRequest<'_>,
    ) -> Result<TransportResponse> {
        let deadline = self.pool.target.deadline(ctx, &request)?;
        let response = self.attempt(&request, deadline);
        response.map_err(|error| self.pool.target.explain(ctx, error))
    }
}

/// Appends a request, head and body, which are sent in one piece.
fn encode(authority: &str, request: &TransportRequest<'_>, bytes: &mut Vec<u8>) {
    let body = request.body();
    bytes.reserve(EXPECTED_HEAD + body.len());
    // No part can contain a line end: the path is escaped, and the types of the headers exclude it.
    bytes.extend_from_slice(request.method().as_bytes());
    bytes.push(b' ');
    request.push_path(bytes);
    bytes.extend_from_slice(b" HTTP/1.1");
    if !request.has_host() {
        push_header(bytes, "host", authority);
    }
    request.each_header(|name, value| push_header(bytes, name, value));
    if !body.is_empty() {
        bytes.extend_from_slice(b"\r\ncontent-length: ");
        wire::push_decimal(bytes, body.len() as u64);
    }
    bytes.extend_from_slice(b"\r\n\r\n");
    bytes.extend_from_slice(body);
}

/// Appends the end of a line and a header. Constants of few bytes are written without a call.
#[inline]
fn push_header(bytes: &mut Vec<u8>, name: &str, value: &str) {
    bytes.extend_from_slice(b"\r\n");
    bytes.extend_from_slice(name.as_bytes());
    bytes.extend_from_slice(b": ");
    bytes.extend_from_slice(value.as_bytes());
}

/// Reads a body to its end, and then returns the connection to the pool. If it is dropped before
/// the end, the connection is closed.
struct ResponseBody {
    pool: Arc<ConnectionPool>,
    /// `None` once the body was read to its end, or a read failed.
    connection: Option<PooledConnection>,
    framing: BodyFraming,
    keep_alive: bool,
}

impl Read for ResponseBody {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if into.is_empty() || self.framing.is_over() {
            return Ok(0);
        }
        let Some(connection) = &mut self.connection else {
            return Err(io::ErrorKind::NotConnected.into());
        };
        let read = connection.read_body(&mut self.framing, into);
        if read.is_err() {
            self.connection = None;
        }
        if self.framing.is_over() {
            if let Some(connection) = self.connection.take().filter(|_| self.keep_alive) {
                self.pool.give_back(connection);
            }
        }
        read.map_err(|error| self.pool.target.explain_timeout(error))
    }
}

/// Holds most heads of requests.
const EXPECTED_HEAD: usize = 512;
