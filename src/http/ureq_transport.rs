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
use crate::error::Result;
use crate::http::exchange::{MAX_HEAD, NO_LENGTH, TWO_LENGTHS, Terms};
use crate::http::socket::{Generation, Stale};
use crate::http::tcp::TcpConnector;
use crate::http::transport::{Transport, TransportRequest, TransportResponse};
use crate::sync::Arc;

/// Sends requests to one peer over HTTP/1.1, keeping connections for the next.
pub(crate) struct UreqTransport {
    terms: Arc<Terms>,
    agent: Agent,
    /// For second attempts: each of its requests has a new connection.
    fresh: Agent,
    generation: Generation,
}

impl UreqTransport {
    pub(crate) fn new(terms: Terms) -> Self {
        let generation = Generation::default();
        let connector = TcpConnector::new(&terms, generation.clone());
        let config = config(&terms);
        UreqTransport {
            fresh: Agent::with_parts(config.clone(), connector.fresh(), NoResolver),
            agent: Agent::with_parts(config, connector, NoResolver),
            terms: Arc::new(terms),
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
        let uri = self.terms.url.with_path(request.path())?;
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
        *sent.headers_mut() = request.headers().iter().cloned().collect();
        // The agent has the common time-out already; another costs a copy of its configuration.
        if budget < self.terms.exchange_timeout {
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
            return Err(self.terms.refuse(TWO_LENGTHS));
        }
        // ureq has no length for a body that is announced to be empty.
        let length = body
            .content_length()
            .or((announced && !chunked).then_some(0));
        if head.status == 200 && length.is_none() && !chunked {
            // Such a body ends where the connection does: if the peer dies, what has arrived looks
            // whole.
            return Err(self.terms.refuse(NO_LENGTH));
        }
        let reader = BodyReader {
            // One more than is allowed: `limit(n)` refuses a body of exactly n bytes.
            reader: body
                .into_with_config()
                .limit(self.terms.max_body.saturating_add(1))
                .reader(),
            terms: self.terms.clone(),
        };
        Ok(
            TransportResponse::with_reader(head.status.as_u16(), length, reader)
                .with_headers(head.headers),
        )
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
        let mut budget = self.terms.budget(ctx, &request)?;
        let common = self.terms.exchange_timeout;
        if ctx.deadline().is_none() && budget >= common - common / 64 {
            // It waited a moment for others. A time-out of its own would cost more: see `send`.
            budget = common;
        }
        let mut result = self.attempt(&self.agent, &request, budget);
        let stale = matches!(&result, Err(ureq::Error::Io(error)) if Stale::is(error));
        if stale && request.is_repeatable() {
            self.generation.end();
            let left = budget.saturating_sub(begun.elapsed());
            result = self.attempt(&self.fresh, &request, left);
        }
        let response = result.map_err(|error| {
            let error = match error {
                ureq::Error::Timeout(_) => self.terms.too_late(),
                other => other.into_io(),
            };
            self.terms.explain(ctx, error)
        })?;
        self.respond(response)
    }
}

impl fmt::Debug for UreqTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UreqTransport")
            .field("terms", &self.terms)
            .finish_non_exhaustive()
    }
}

/// Reads a body, and puts ureq's errors in our words.
struct BodyReader {
    reader: ureq::BodyReader<'static>,
    terms: Arc<Terms>,
}

impl Read for BodyReader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.reader.read(buf).map_err(|error| {
            match error.get_ref().and_then(|inner| inner.downcast_ref()) {
                Some(ureq::Error::Timeout(_)) => self.terms.too_late(),
                _ => error,
            }
        })
    }
}

/// Whether the only transfer coding is `chunked`.
fn is_chunked(headers: &HeaderMap) -> bool {
    let mut codings = headers.get_all(http::header::TRANSFER_ENCODING).iter();
    codings
        .next()
        .is_some_and(|coding| coding.as_bytes().eq_ignore_ascii_case(b"chunked"))
        && codings.next().is_none()
}

fn config(terms: &Terms) -> Config {
    Agent::config_builder()
        // By default ureq takes a proxy from the environment.
        .proxy(None)
        // A peer has no reason to send us elsewhere: the answer is an error, not followed.
        .max_redirects(0)
        .http_status_as_error(false)
        .timeout_connect(Some(terms.connect_timeout))
        .timeout_global(Some(terms.exchange_timeout))
        // They are kept by `TcpConnector`.
        .max_idle_connections(0)
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
