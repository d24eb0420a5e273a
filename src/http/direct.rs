//! A transport of our own: HTTP/1.1 as far as peers speak it, over std's sockets and httparse.

mod body;
mod head;

use std::fmt;
use std::io;
use std::time::Instant;

use ureq::http::header::HOST;

use crate::context::Context;
use crate::error::Result;
use crate::http::exchange::{MAX_HEAD, Terms, deadline_of};
use crate::http::head::{Scan, scan};
use crate::http::idle::{Carrier, Idle};
use crate::http::resolve::Addresses;
use crate::http::response::push_decimal;
use crate::http::socket::{Generation, Socket, Stale};
use crate::http::transport::{Transport, TransportRequest, TransportResponse};
use crate::sync::Arc;
use body::DirectBody;
use head::Head;

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
    /// Initialised to its length; what was read and not used is `start..end`.
    input: Vec<u8>,
    start: usize,
    end: usize,
    output: Vec<u8>,
    /// The bytes of the present answer, if they are known and few: the input has room for the next.
    wanted: usize,
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
            input: vec![0; INPUT_SMALL],
            start: 0,
            end: 0,
            output: Vec::with_capacity(OUTPUT_SMALL),
            wanted: 0,
        }))
    }

    /// Sends the request and reads the head of its answer.
    fn attempt(
        &self,
        mut connection: Box<Connection>,
        request: &TransportRequest<'_>,
        now: Instant,
        deadline: Instant,
    ) -> io::Result<(Box<Connection>, Head)> {
        connection.send(self.home.terms.url.authority(), request, now, deadline)?;
        let head = connection.head(deadline)?;
        Ok((connection, head))
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
        let (mut connection, head) = answer.map_err(|error| home.terms.explain(ctx, error))?;
        let length = head.framing.length();
        let from = connection.start;
        connection.start += head.len;
        connection.wanted = length
            .and_then(|length| usize::try_from(length).ok()?.checked_add(head.len))
            .filter(|&wanted| wanted <= INPUT_LARGE)
            .unwrap_or(0);
        let bytes: Box<[u8]> = connection.input[from..connection.start].into();
        let body = DirectBody::new(home.clone(), connection, head.framing, head.keep, deadline);
        Ok(TransportResponse::with_reader(head.status, length, body).with_head(bytes))
    }
}

impl Home {
    /// Takes a connection back whose answer was read to its end.
    fn give(&self, mut connection: Box<Connection>) {
        // Bytes behind the answer answer nothing.
        if connection.start == connection.end {
            connection.rest();
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

    /// Reads the head of an answer, past those that only say that it takes a while (RFC 9110,
    /// section 15.2).
    fn head(&mut self, deadline: Instant) -> io::Result<Head> {
        let mut scanned = 0;
        let mut skipped = 0;
        loop {
            match scan(&self.input[self.start..self.end], scanned).map_err(|_| NOT_HTTP.error())? {
                Scan::Complete(len) if skipped + len > MAX_HEAD => return Err(LONG_HEAD.error()),
                Scan::Complete(len) => {
                    let bytes = &self.input[self.start..self.start + len];
                    if let Some(head) = Head::parse(bytes)? {
                        return Ok(head);
                    }
                    self.start += len;
                    skipped += len;
                    scanned = 0;
                }
                Scan::Incomplete(at) => {
                    scanned = at;
                    if self.fill(deadline)? == 0 {
                        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, BROKE_OFF));
                    }
                }
            }
        }
    }

    /// Reads more into the input.
    ///
    /// # Errors
    ///
    /// Those of the socket; and if nothing of [`MAX_HEAD`] bytes could be used yet.
    fn fill(&mut self, deadline: Instant) -> io::Result<usize> {
        if self.start > 0 {
            self.input.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        if self.end >= MAX_HEAD {
            return Err(LONG_HEAD.error());
        }
        if self.end == self.input.len() {
            self.input.resize(MAX_HEAD, 0);
        }
        let read = self.socket.read(&mut self.input[self.end..], deadline)?;
        self.end += read;
        Ok(read)
    }

    /// Sees to it that the next answer, if it is like the last, is read in one go.
    fn rest(&mut self) {
        (self.start, self.end) = (0, 0);
        if self.wanted > self.input.len() {
            self.input.resize(self.wanted.next_power_of_two(), 0);
        }
        self.output.clear();
        self.output.shrink_to(OUTPUT_SMALL);
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

const BROKE_OFF: &str = "the connection was closed in the middle of the answer";
const NOT_HTTP: Refusal = Refusal("the answer is not HTTP/1.1");
const LONG_HEAD: Refusal = Refusal("the head or a line of the answer is too long");

/// Holds answers with small values, and most heads.
const INPUT_SMALL: usize = 8 * 1024;

/// The longest answer that is read as a whole before its body is taken from it. The rest of longer
/// ones is read to where it stays.
const INPUT_LARGE: usize = 64 * 1024;

/// Holds most requests.
const OUTPUT_SMALL: usize = 512;
