//! A transport of our own: HTTP/1.1 as far as peers speak it, over std's sockets and httparse.

mod body;
mod framing;
mod head;
mod input;
#[cfg(any(test, larder_fuzz))]
pub(super) mod pieces;

use std::fmt;
use std::io::{self, Read};
use std::time::Instant;

use ureq::http::header::HOST;

use crate::context::Context;
use crate::error::Result;
use crate::http::exchange::{Terms, deadline_of};
use crate::http::idle::{Carrier, Idle};
use crate::http::resolve::Addresses;
use crate::http::response::push_decimal;
use crate::http::socket::{Generation, Socket, Stale};
use crate::http::transport::{Transport, TransportRequest, TransportResponse};
use crate::sync::Arc;
use body::DirectBody;
use head::Head;
use input::Input;

/// Sends requests to one peer, keeping connections for the next.
///
/// It takes the same answers as `UreqTransport` and holds to the same terms. What makes it fast is
/// what it leaves out: redirects, proxies, cookies, TLS, and a copy of long bodies.
pub(crate) struct DirectTransport {
    addresses: Addresses,
    home: Arc<Home>,
}

/// Where the connections of a peer go back to.
struct Home {
    terms: Terms,
    generation: Generation,
    idle: Idle<Box<Connection>>,
}

/// A connection with what has been read from it.
struct Connection {
    socket: Socket,
    input: Input,
    output: Vec<u8>,
}

impl DirectTransport {
    pub(crate) fn new(terms: Terms) -> Self {
        DirectTransport {
            addresses: Addresses::new(&terms.url),
            home: Arc::new(Home {
                idle: Idle::new(terms.max_idle),
                terms,
                generation: Generation::default(),
            }),
        }
    }

    fn connect(&self, deadline: Instant) -> io::Result<Box<Connection>> {
        let Home {
            terms, generation, ..
        } = &*self.home;
        let by = deadline.min(deadline_of(Instant::now(), terms.connect_timeout));
        let max_answer = terms.max_answer();
        let socket = Socket::connect(&self.addresses, generation, max_answer, by)?;
        Ok(Box::new(Connection {
            socket,
            input: Input::new(),
            output: Vec::with_capacity(OUTPUT_SMALL),
        }))
    }

    /// Sends the request and reads the head of its answer.
    fn attempt(
        &self,
        mut connection: Box<Connection>,
        request: &TransportRequest<'_>,
        now: Instant,
        deadline: Instant,
    ) -> io::Result<(Box<Connection>, Head, Box<[u8]>)> {
        connection.send(self.home.terms.url.authority(), request, now, deadline)?;
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
            let connection = self.connect(deadline)?;
            self.attempt(connection, &request, Instant::now(), deadline)
        };
        let mut answer = match home.idle.take(begun) {
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
            is_protobuf,
            ..
        } = head;
        let body = DirectBody::new(home.clone(), connection, head, bytes.len(), deadline);
        let response = TransportResponse::with_reader(status, framing.length(), body);
        Ok(response.with_head(bytes, is_protobuf))
    }
}

impl Home {
    /// Takes a connection back whose answer was read to its end, and was so many bytes long.
    fn give(&self, mut connection: Box<Connection>, len: Option<u64>) {
        // Bytes behind the answer answer nothing.
        if connection.input.len() == 0 {
            // The next answer is probably like this one.
            connection.input.expect(len.unwrap_or(0));
            connection.output.clear();
            connection.output.shrink_to(OUTPUT_SMALL);
            self.idle.give(connection);
        }
    }
}

impl Carrier for Box<Connection> {
    fn socket(&self) -> &Socket {
        &self.socket
    }
}

impl Connection {
    /// Sends head and body of a request in one piece.
    fn send(
        &mut self,
        authority: &str,
        request: &TransportRequest<'_>,
        now: Instant,
        deadline: Instant,
    ) -> io::Result<()> {
        let output = &mut self.output;
        output.clear();
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
        self.socket.begin();
        self.socket.send(output, now, deadline)
    }

    /// What was read from it, and where more comes from until `deadline`.
    fn until(&mut self, deadline: Instant) -> (&mut Input, Until<'_>) {
        let socket = &mut self.socket;
        (&mut self.input, Until { socket, deadline })
    }
}

/// A socket whose reads end by a deadline.
struct Until<'s> {
    socket: &'s mut Socket,
    deadline: Instant,
}

impl Read for Until<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.socket.read(into, self.deadline)
    }
}

impl fmt::Debug for DirectTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DirectTransport")
            .field("terms", &self.home.terms)
            .finish_non_exhaustive()
    }
}

/// Why an answer is none.
struct Refusal(&'static str);

impl Refusal {
    fn error(&self) -> io::Error {
        io::Error::new(io::ErrorKind::InvalidData, self.0)
    }
}

const NOT_HTTP: Refusal = Refusal("the answer is not HTTP/1.1");

/// Holds most requests.
const OUTPUT_SMALL: usize = 512;
