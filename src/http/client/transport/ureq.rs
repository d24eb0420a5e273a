//! ureq, for servers of all kinds: one agent for each peer, with ureq's own pool and body reader.

use std::io::{self, Read, Write};
use std::time::{Duration, Instant};

use ureq::config::Config as AgentConfig;
use ureq::http::uri::Scheme;
use ureq::http::{self, Request, Response, Uri, Version};
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, Connector, LazyBuffers, NextTimeout, Transport as UreqIo,
};
use ureq::{Agent, AsSendBody, Body};

use crate::context::Context;
use crate::http::client::transport::connection::{MAX_IDLE_AGE, PeerConnection, StaleConnection};
use crate::http::client::transport::response::{
    BodyFraming, HeadBytes, MAX_HEAD, ResponseHead, ResponseReader, TOO_LONG,
};
use crate::http::client::transport::target::{MAX_LINE, Target};
use crate::http::client::transport::{
    IdleConnections, ResponseBytes, Transport, TransportRequest, TransportResponse,
};
use crate::http::config::Config;
use crate::sync::Arc;
use crate::sync::atomic::{AtomicU64, Ordering};

/// Sends requests to one peer by ureq.
pub(crate) struct UreqTransport {
    target: Arc<Target>,
    agent: Agent,
    generation: Arc<AtomicU64>,
}

impl UreqTransport {
    pub(crate) fn new(target: Arc<Target>) -> Self {
        let connector = PeerConnector {
            target: target.clone(),
            generation: Arc::default(),
        };
        UreqTransport {
            generation: connector.generation.clone(),
            agent: Agent::with_parts(agent_config(&target.config), connector, NoResolver),
            target,
        }
    }

    /// Sends the request on an idle connection, or else on a new one, and once more on a new one if the
    /// peer had closed the idle connection; see `DirectTransport::attempt`.
    fn attempt(
        &self,
        request: &TransportRequest<'_>,
        deadline: Instant,
    ) -> io::Result<TransportResponse> {
        let mut response = self.run(request, deadline);
        let stale = response.as_ref().err().and_then(StaleConnection::in_error);
        if stale.is_some() {
            self.close_idle();
        }
        if stale == Some(StaleConnection::Closed) {
            self.target.addresses().refresh();
            response = self.run(request, deadline);
        }
        let (parts, body) = response?.into_parts();
        let fields = parts.headers.iter();
        let fields = fields.map(|(name, value)| (name.as_str(), value.as_bytes()));
        let is_http_11 = parts.version == Version::HTTP_11;
        let head = ResponseHead::new(parts.status.as_u16(), is_http_11, fields)?;
        self.target.note_keyed(head.is_from_larder);
        // ureq refuses a body of exactly as many bytes as the limit.
        let limit = self.target.max_body().saturating_add(1);
        let body = UreqBody {
            reader: body.into_with_config().limit(limit).reader(),
            target: self.target.clone(),
        };
        Ok(TransportResponse::with_head(
            &head,
            HeadBytes::new(&head_of(&parts)),
            ResponseBytes::Reader(Box::new(body)),
        ))
    }

    fn run(&self, request: &TransportRequest<'_>, deadline: Instant) -> io::Result<Response<Body>> {
        match request.body() {
            [] => self.run_with(request, (), deadline),
            body => self.run_with(request, body, deadline),
        }
    }

    fn run_with(
        &self,
        request: &TransportRequest<'_>,
        body: impl AsSendBody,
        deadline: Instant,
    ) -> io::Result<Response<Body>> {
        let sent = self.request(request, body).map_err(io::Error::other)?;
        let left = deadline.saturating_duration_since(Instant::now());
        let sent = self.agent.configure_request(sent);
        let sent = sent.timeout_global(Some(left)).build();
        self.agent.run(sent).map_err(into_io)
    }

    fn request<B>(
        &self,
        request: &TransportRequest<'_>,
        body: B,
    ) -> Result<Request<B>, http::Error> {
        let authority = self.target.url.authority();
        let uri = url_of(authority, request.path())?;
        // Without the host, ureq would build the header itself.
        let mut sent = Request::builder().method(request.method()).uri(uri);
        if request.header("host").is_none() {
            sent = sent.header("host", authority);
        }
        request.each_header(|name, value| {
            sent = std::mem::take(&mut sent).header(name, value);
        });
        sent.body(body)
    }
}

/// The URL of a peer with the path of a request, which is not changed.
fn url_of(authority: &str, path: &str) -> Result<Uri, http::Error> {
    let uri = Uri::builder().scheme(Scheme::HTTP).authority(authority);
    uri.path_and_query(path).build()
}

/// The fields of a response, after a line in place of its status line, which is not read again.
fn head_of(parts: &http::response::Parts) -> Vec<u8> {
    let mut head = b"HTTP/1.1\r\n".to_vec();
    for (name, value) in &parts.headers {
        for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
            head.extend_from_slice(part);
        }
    }
    head
}

impl IdleConnections for UreqTransport {
    fn close_idle(&self) {
        self.generation.fetch_add(1, Ordering::Relaxed);
    }
}

impl Transport for UreqTransport {
    fn round_trip(
        &self,
        ctx: &Context,
        request: TransportRequest<'_>,
    ) -> crate::Result<TransportResponse> {
        let deadline = self.target.deadline(ctx, &request)?;
        let response = self.attempt(&request, deadline);
        response.map_err(|error| self.target.explain(ctx, error))
    }
}

/// Reads a body by ureq, which then returns the connection to its pool.
struct UreqBody<R> {
    reader: R,
    target: Arc<Target>,
}

impl<R: Read> Read for UreqBody<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = self.reader.read(into);
        read.map_err(|error| self.target.explain_timeout(into_io(error.into())))
    }
}

fn into_io(error: ureq::Error) -> io::Error {
    match error {
        ureq::Error::Timeout(_) => io::ErrorKind::TimedOut.into(),
        error => error.into_io(),
    }
}

fn agent_config(config: &Config) -> AgentConfig {
    Agent::config_builder()
        // By default ureq takes a proxy from the environment.
        .proxy(None)
        // A redirect is an error: peers send none.
        .max_redirects(0)
        .http_status_as_error(false)
        .max_idle_connections(config.max_idle_per_peer)
        .max_idle_connections_per_host(config.max_idle_per_peer)
        .max_idle_age(MAX_IDLE_AGE)
        .max_response_header_size(MAX_HEAD)
        .input_buffer_size(INPUT_BUFFER)
        .output_buffer_size(MAX_LINE)
        // ureq sends these headers with each request by default, but no peer reads them.
        .user_agent("")
        .accept("")
        .accept_encoding("")
        .build()
}

/// Resolves nothing, because ureq resolves before each request, even if it has an idle connection.
/// The connector looks the addresses up when it needs them.
#[derive(Debug)]
struct NoResolver;

impl Resolver for NoResolver {
    fn resolve(
        &self,
        _uri: &Uri,
        _config: &AgentConfig,
        _timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, ureq::Error> {
        Ok(self.empty())
    }
}

/// Makes the connections to a peer for ureq.
#[derive(Debug)]
struct PeerConnector {
    target: Arc<Target>,
    generation: Arc<AtomicU64>,
}

impl Connector for PeerConnector {
    type Out = UreqStream;

    fn connect(
        &self,
        details: &ConnectionDetails<'_>,
        _chained: Option<()>,
    ) -> Result<Option<UreqStream>, ureq::Error> {
        // Read the generation before connecting. If another connection is found stale meanwhile, this
        // one is dropped, too.
        let made_in = self.generation.load(Ordering::Relaxed);
        Ok(Some(UreqStream {
            reader: ResponseReader::new(
                self.target
                    .connect(Instant::now() + limit_of(details.timeout))?,
            ),
            framing: None,
            buffers: LazyBuffers::new(INPUT_BUFFER, MAX_LINE),
            is_writing: false,
            has_body: false,
            unsent: None,
            is_closed: false,
            target: self.target.clone(),
            generation: self.generation.clone(),
            made_in,
        }))
    }
}

/// A connection as ureq uses it. Its reads and writes end by the deadline of the request.
///
/// The reader of the direct transport reads each response and passes it on to ureq's own parser. So both
/// transports accept the same responses. ureq alone would also accept lines that end in LF, any number of
/// interim responses, and other sizes of chunks.
#[derive(Debug)]
struct UreqStream {
    reader: ResponseReader<PeerConnection>,
    /// The rest of the body of the present response; `None` before its head.
    framing: Option<BodyFraming>,
    buffers: LazyBuffers,
    /// Whether the last operation was a write. The first write, or a write after a read, begins an
    /// exchange.
    is_writing: bool,
    /// Whether something was written after the head of the present request, so that it has a body.
    has_body: bool,
    /// The reason that the rest of the present request could not be sent. The server may have answered before
    /// it closed the connection.
    unsent: Option<io::Error>,
    /// Whether a write has failed because the server closed the connection.
    is_closed: bool,
    target: Arc<Target>,
    /// Incremented when an idle connection is found stale. The peer was probably restarted, so all
    /// connections made before are dropped.
    generation: Arc<AtomicU64>,
    /// The generation when this connection was made.
    made_in: u64,
}

impl UreqIo for UreqStream {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), ureq::Error> {
        self.has_body = std::mem::replace(&mut self.is_writing, true);
        if !self.has_body {
            self.reader.source.begin(Instant::now(), limit_of(timeout));
            self.framing = None;
        }
        if self.is_closed {
            return Ok(());
        }
        let output = &self.buffers.output()[..amount];
        match self.reader.source.write_all(output) {
            Err(error) if error.kind() != io::ErrorKind::TimedOut => {
                self.is_closed = true;
                self.unsent = Some(error);
                Ok(())
            }
            sent => Ok(sent?),
        }
    }

    fn await_input(&mut self, _timeout: NextTimeout) -> Result<bool, ureq::Error> {
        self.is_writing = false;
        let room = self.buffers.input_append_buf();
        if room.len() < MIN_ROOM {
            return Err(io::Error::from(TOO_LONG).into());
        }
        let read = match &mut self.framing {
            None => {
                let (head, bytes) = match self.unsent.take() {
                    None => self.reader.read_head()?,
                    Some(error) if self.has_body => self.reader.read_early_head(error)?,
                    Some(error) => return Err(error.into()),
                };
                let bytes = bytes.to_vec();
                self.framing = Some(head.framing);
                let room = room.get_mut(..bytes.len());
                room.ok_or(io::Error::from(TOO_LONG))?
                    .copy_from_slice(&bytes);
                bytes.len()
            }
            Some(framing @ BodyFraming::Chunked(_)) if !framing.is_over() => {
                read_chunk(&mut self.reader, framing, room)?
            }
            Some(framing) => self.reader.read_body(framing, room)?,
        };
        self.buffers.input_appended(read);
        Ok(read > 0)
    }

    /// ureq calls this before it uses an idle connection, and before it keeps one.
    fn is_open(&mut self) -> bool {
        !self.is_closed
            && self.made_in == self.generation.load(Ordering::Relaxed)
            && self.reader.is_empty()
            && self.target.may_use(&self.reader.source, Instant::now())
    }
}

/// Reads some of a chunked body, and writes it as one chunk, or as the end of the body.
fn read_chunk(
    reader: &mut ResponseReader<PeerConnection>,
    framing: &mut BodyFraming,
    room: &mut [u8],
) -> io::Result<usize> {
    let (head, room) = room.split_at_mut(CHUNK_HEAD);
    let most = room.len() - CHUNK_END.len();
    let read = reader.read_body(framing, &mut room[..most])?;
    head.copy_from_slice(format!("{read:08x}\r\n").as_bytes());
    room[read..read + CHUNK_END.len()].copy_from_slice(CHUNK_END);
    Ok(CHUNK_HEAD + read + CHUNK_END.len())
}

fn limit_of(timeout: NextTimeout) -> Duration {
    (*timeout.after).min(LONGEST)
}

/// The bytes of the line before a chunk: eight digits and the line end.
const CHUNK_HEAD: usize = 10;

/// The end of a chunk, and of the body after a chunk of size 0.
const CHUNK_END: &[u8] = b"\r\n";

/// If ureq's buffer has less room than this, the response is too long for it.
const MIN_ROOM: usize = 64;

/// Keeps the sum of an `Instant` and a time-out from overflowing. The time-outs of requests are far
/// shorter.
const LONGEST: Duration = Duration::from_secs(86_400);

/// Holds the longest head of a response, and most bodies.
const INPUT_BUFFER: usize = 32 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn path_is_joined_unchanged() {
        let uri = url_of("a:81", "/x/_groupcache/g/a%2Fb%20c").unwrap();
        assert_eq!(uri.to_string(), "http://a:81/x/_groupcache/g/a%2Fb%20c");
        assert!(url_of("a", "/with a space").is_err());
        assert!(url_of("a", &"/a".repeat(40_000)).is_err());
    }
}
