//! The default transport: ureq over connections of our own.

use std::fmt;
use std::io::{self, Read};
use std::time::{Duration, Instant};

use ureq::config::Config;
use ureq::http::{self, HeaderMap, Response, Uri, Version};
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::NextTimeout;
use ureq::{Agent, AsSendBody, Body};

use crate::context::Context;
use crate::error::{Error, ErrorKind, Result};
use crate::http::buffers::OUTPUT;
use crate::http::resolve::Addresses;
use crate::http::tcp::{Generation, Stale, TcpConnector};
use crate::http::transport::{Transport, TransportRequest, TransportResponse};
use crate::http::url::PeerUrl;
use crate::sync::Arc;

/// The figures of a transport.
#[derive(Clone, Debug)]
pub(crate) struct TransportLimits {
    /// For looking up a name and connecting to one of its addresses.
    pub(crate) connect_timeout: Duration,
    /// For one exchange: connecting, sending, and the answer to its last byte.
    pub(crate) exchange_timeout: Duration,
    /// The most connections that are kept for the next request.
    pub(crate) max_idle: usize,
    /// The most bytes that are taken of the body of an answer.
    pub(crate) max_body: u64,
}

/// Sends requests to one peer over HTTP/1.1, keeping connections for the next.
pub(crate) struct UreqTransport {
    url: Arc<PeerUrl>,
    limits: TransportLimits,
    agent: Agent,
    /// For second attempts: it keeps no connections, so that each of its requests has a new one.
    fresh: Agent,
    generation: Generation,
}

impl UreqTransport {
    pub(crate) fn new(url: Arc<PeerUrl>, limits: TransportLimits) -> Self {
        let generation = Generation::default();
        let connector = TcpConnector::new(
            Addresses::new(&url),
            generation.clone(),
            limits.max_body.saturating_add(MAX_FRAMING),
        );
        let agent = |max_idle| {
            let config = config(&limits, max_idle);
            Agent::with_parts(config, connector.clone(), NoResolver)
        };
        UreqTransport {
            agent: agent(limits.max_idle),
            fresh: agent(0),
            url,
            limits,
            generation,
        }
    }

    /// One attempt, at most `budget` long.
    fn attempt(
        &self,
        agent: &Agent,
        request: &TransportRequest<'_>,
        budget: Duration,
    ) -> Result<Response<Body>, ureq::Error> {
        let uri = self.url.with_path(request.path())?;
        if request.body().is_empty() {
            self.send(agent, request, uri, (), budget)
        } else {
            self.send(agent, request, uri, request.body(), budget)
        }
    }

    fn send(
        &self,
        agent: &Agent,
        request: &TransportRequest<'_>,
        uri: Uri,
        body: impl AsSendBody,
        budget: Duration,
    ) -> Result<Response<Body>, ureq::Error> {
        let mut sent = http::Request::builder()
            .method(request.method())
            .uri(uri)
            .body(body)?;
        *sent.headers_mut() = request.headers().clone();
        // The agent has the common time-out already; another costs a copy of its configuration.
        if budget < self.limits.exchange_timeout {
            sent = agent
                .configure_request(sent)
                .timeout_global(Some(budget))
                .build();
        }
        agent.run(sent)
    }

    fn respond(&self, response: Response<Body>) -> Result<TransportResponse> {
        let (head, body) = response.into_parts();
        let announced = head.headers.contains_key(http::header::CONTENT_LENGTH);
        let chunked = head.headers.contains_key(http::header::TRANSFER_ENCODING);
        if chunked && (announced || head.version != Version::HTTP_11 || !is_chunked(&head.headers))
        {
            // ureq takes one reading, and who comes between may take another: then the two do not
            // agree on where the next answer begins (RFC 9112, section 6.3).
            return Err(self.refuse("the answer's length can be read in two ways"));
        }
        // ureq has no length for a body that is announced to be empty.
        let length = body
            .content_length()
            .or((announced && !chunked).then_some(0));
        if head.status == 200 && length.is_none() && !chunked {
            // Such a body ends where the connection does: if the peer dies, what has arrived looks
            // whole.
            return Err(self.refuse("the answer says neither its length nor that it is chunked"));
        }
        let reader = BodyReader {
            // One more than is allowed: `limit(n)` refuses a body of exactly n bytes.
            reader: body
                .into_with_config()
                .limit(self.limits.max_body.saturating_add(1))
                .reader(),
            exchange_timeout: self.limits.exchange_timeout,
        };
        Ok(
            TransportResponse::with_reader(head.status.as_u16(), length, reader)
                .with_headers(head.headers),
        )
    }

    fn refuse(&self, why: &str) -> Error {
        Error::new(ErrorKind::Peer, format!("peer {}: {why}", self.url))
    }

    fn explain(&self, ctx: &Context, error: ureq::Error) -> Error {
        let url = &self.url;
        if let Some(ended) = ctx.err() {
            return Error::new(ended.kind(), format!("{ended}, while peer {url} was asked"));
        }
        let error = match error {
            ureq::Error::Timeout(_) => too_late(self.limits.exchange_timeout),
            other => other.into_io(),
        };
        Error::with_source(ErrorKind::Peer, format_args!("peer {url}"), error)
    }
}

impl Transport for UreqTransport {
    /// A request that fails because its connection had been closed while it was idle is tried once
    /// more, on a new connection, within the same deadline. ureq itself never tries again.
    ///
    /// Only a connection that has carried an exchange before can be such a one, only before the
    /// first byte of the answer, and only requests that change nothing at the peer are repeated.
    fn round_trip(
        &self,
        ctx: &Context,
        request: TransportRequest<'_>,
    ) -> Result<TransportResponse> {
        let begun = Instant::now();
        if let Some(ended) = ctx.err() {
            return Err(ended);
        }
        if request.path().len() > MAX_PATH {
            return Err(self.refuse("the key is too long for the path of a URL"));
        }
        let common = self.limits.exchange_timeout;
        let common = request.budget().map_or(common, |own| own.min(common));
        let budget = ctx.remaining().map_or(common, |left| left.min(common));
        let mut result = self.attempt(&self.agent, &request, budget);
        if request.is_repeatable() && result.as_ref().is_err_and(Stale::is) {
            self.generation.end();
            let left = budget.saturating_sub(begun.elapsed());
            result = self.attempt(&self.fresh, &request, left);
        }
        let response = result.map_err(|error| self.explain(ctx, error))?;
        self.respond(response)
    }
}

impl fmt::Debug for UreqTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UreqTransport")
            .field("url", &self.url)
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

/// Reads a body, and puts ureq's errors in our words.
struct BodyReader {
    reader: ureq::BodyReader<'static>,
    exchange_timeout: Duration,
}

impl Read for BodyReader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.reader.read(buf).map_err(|error| {
            match error.get_ref().and_then(|inner| inner.downcast_ref()) {
                Some(ureq::Error::Timeout(_)) => too_late(self.exchange_timeout),
                _ => error,
            }
        })
    }
}

fn too_late(exchange_timeout: Duration) -> io::Error {
    io::Error::new(
        io::ErrorKind::TimedOut,
        format!("no whole answer within {exchange_timeout:?}"),
    )
}

/// Whether the only transfer coding is `chunked`.
fn is_chunked(headers: &HeaderMap) -> bool {
    let mut codings = headers.get_all(http::header::TRANSFER_ENCODING).iter();
    codings
        .next()
        .is_some_and(|coding| coding.as_bytes().eq_ignore_ascii_case(b"chunked"))
        && codings.next().is_none()
}

fn config(limits: &TransportLimits, max_idle: usize) -> Config {
    Agent::config_builder()
        // By default ureq takes a proxy from the environment.
        .proxy(None)
        // A peer has no reason to send us elsewhere: the answer is an error, not followed.
        .max_redirects(0)
        .http_status_as_error(false)
        .timeout_connect(Some(limits.connect_timeout))
        .timeout_global(Some(limits.exchange_timeout))
        .max_idle_connections(max_idle)
        .max_idle_connections_per_host(max_idle)
        .max_idle_age(MAX_IDLE_AGE)
        .max_response_header_size(MAX_HEAD)
        // Headers that would be sent with each request and that no peer reads.
        .user_agent("")
        .accept("")
        .accept_encoding("")
        .build()
}

/// Resolves nothing: ureq resolves before each request, also one that has a connection already.
/// [`TcpConnector`] knows the addresses, and is asked only when a connection is to be made.
#[derive(Debug)]
struct NoResolver;

impl Resolver for NoResolver {
    fn resolve(
        &self,
        _uri: &Uri,
        _config: &Config,
        _timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, ureq::Error> {
        Ok(self.empty())
    }
}

/// How long a connection is kept without being used. Servers keep theirs longer (ours a minute),
/// so that few are closed by the other side.
const MAX_IDLE_AGE: Duration = Duration::from_secs(15);

/// The longest head of an answer.
const MAX_HEAD: usize = 16 * 1024;

/// What an answer may have on top of its body: the head, and the lines between chunks.
const MAX_FRAMING: u64 = 63 * 1024;

/// The longest path: the request line, with method and version, must fit into the output buffer.
const MAX_PATH: usize = OUTPUT - 32;
