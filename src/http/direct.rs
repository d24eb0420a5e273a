//! A transport of our own: HTTP/1.1 as far as peers speak it, over std's sockets and httparse.

use std::fmt;
use std::io;
use std::time::Instant;

use ureq::http::header::HOST;

use crate::context::Context;
use crate::error::Result;
use crate::http::exchange::deadline_of;
use crate::http::peer_connection::{AnswerBody, Head, Home, PeerConnection};
use crate::http::response::push_decimal;
use crate::http::socket::Stale;
use crate::http::transport::{Transport, TransportRequest, TransportResponse};
use crate::sync::Arc;

/// Sends requests to one peer.
///
/// It takes the same answers as `UreqTransport` and holds to the same terms. What makes it fast is
/// what it leaves out: redirects, proxies, cookies, TLS, and headers as a map.
pub(crate) struct DirectTransport {
    home: Arc<Home>,
}

impl DirectTransport {
    pub(crate) fn new(home: Arc<Home>) -> Self {
        DirectTransport { home }
    }

    /// Sends the request and reads the head of its answer.
    fn attempt(
        &self,
        mut connection: Box<PeerConnection>,
        request: &TransportRequest<'_>,
        now: Instant,
        deadline: Instant,
    ) -> io::Result<(Box<PeerConnection>, Head, Box<[u8]>)> {
        write(
            &mut connection.output,
            self.home.terms.url.authority(),
            request,
        );
        connection.socket.begin();
        connection.flush(now, deadline)?;
        let (input, mut socket) = connection.until(deadline);
        let (head, bytes) = input.head(&mut socket)?;
        Ok((connection, head, bytes))
    }
}

impl Transport for DirectTransport {
    /// A request that fails because its connection had been closed while it was idle is tried once
    /// more, on a new connection, within the same deadline, as `UreqTransport` does.
    fn round_trip(
        &self,
        ctx: &Context,
        request: TransportRequest<'_>,
    ) -> Result<TransportResponse> {
        let home = &self.home;
        let budget = home.terms.budget(ctx, &request)?;
        // Read last: then the deadline is not before that of `ctx`, whose error is looked for when
        // time is up.
        let begun = Instant::now();
        let deadline = deadline_of(begun, budget);
        let on_new = || {
            let connection = home.connect(deadline)?;
            self.attempt(connection, &request, Instant::now(), deadline)
        };
        let mut answer = match home.take(begun) {
            Some(connection) => self.attempt(connection, &request, begun, deadline),
            None => on_new(),
        };
        if request.is_repeatable() && answer.as_ref().is_err_and(Stale::is) {
            home.generation.end();
            answer = on_new();
        }
        let (connection, head, bytes) = answer.map_err(|error| home.terms.explain(ctx, error))?;
        let Head {
            status,
            framing,
            keep,
            is_protobuf,
        } = head;
        let body = AnswerBody::new(home.clone(), connection, framing, keep, deadline);
        let response = TransportResponse::with_reader(status, framing.length(), body);
        Ok(response.with_head(bytes, is_protobuf))
    }
}

/// Writes head and body of a request, which go in one piece.
fn write(output: &mut Vec<u8>, authority: &str, request: &TransportRequest<'_>) {
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
        push_decimal(output, body.len());
    }
    output.extend_from_slice(b"\r\n\r\n");
    output.extend_from_slice(body);
}

impl fmt::Debug for DirectTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DirectTransport")
            .field("home", &self.home)
            .finish()
    }
}
