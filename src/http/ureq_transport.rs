//! The default transport: ureq over connections of our own.

use std::fmt;
use std::io::{self, Read};
use std::time::Instant;

use ureq::config::Config;
use ureq::http::header::{CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HOST, TRANSFER_ENCODING};
use ureq::http::{self, HeaderMap, Method, Response, Uri, Version};
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::NextTimeout;
use ureq::{Agent, AsSendBody, Body};

use crate::context::Context;
use crate::error::Result;
use crate::http::exchange::{MAX_HEAD, NO_LENGTH, TWO_LENGTHS, deadline_of};
use crate::http::peer_connection::{AnswerBody, Framing, Home};
use crate::http::rest::take_back;
use crate::http::socket::Stale;
use crate::http::transport::{Transport, TransportRequest, TransportResponse};
use crate::http::ureq_connector::{self, Exchange, UreqConnector};
use crate::sync::Arc;
use crate::wire;

/// Sends requests to one peer over HTTP/1.1, keeping connections for the next.
pub(crate) struct UreqTransport {
    home: Arc<Home>,
    agent: Agent,
    /// For second attempts: each of its requests has a new connection.
    fresh: Agent,
}

impl UreqTransport {
    pub(crate) fn new(home: Arc<Home>) -> Self {
        let connector = UreqConnector::new(home.clone());
        let config = config();
        UreqTransport {
            fresh: Agent::with_parts(config.clone(), connector.fresh(), NoResolver),
            agent: Agent::with_parts(config, connector, NoResolver),
            home,
        }
    }

    /// One attempt, which ends by `deadline`.
    fn attempt(
        &self,
        agent: &Agent,
        request: &TransportRequest<'_>,
        deadline: Instant,
    ) -> Result<Response<Body>, ureq::Error> {
        let uri = self.home.terms.url.with_path(request.path())?;
        ureq_connector::by(deadline, || {
            if request.body().is_empty() {
                agent.run(self.with_head(request, uri, ())?)
            } else {
                agent.run(self.with_head(request, uri, request.body())?)
            }
        })
    }

    fn with_head<B: AsSendBody>(
        &self,
        request: &TransportRequest<'_>,
        uri: Uri,
        body: B,
    ) -> Result<http::Request<B>, ureq::Error> {
        let mut sent = http::Request::new(body);
        *sent.method_mut() = match request.method() {
            "GET" => Method::GET,
            "POST" => Method::POST,
            other => Method::from_bytes(other.as_bytes()).map_err(http::Error::from)?,
        };
        *sent.uri_mut() = uri;
        let headers = sent.headers_mut();
        headers.reserve(request.headers().len() + 1);
        // ureq would put it together anew for each request.
        headers.insert(HOST, self.home.terms.url.host_header().clone());
        for (name, value) in request.headers() {
            headers.insert(name, value.clone());
        }
        Ok(sent)
    }

    fn respond(&self, response: Response<Body>) -> Result<TransportResponse> {
        let terms = &self.home.terms;
        let (head, body) = response.into_parts();
        // One pass: looking a name up costs more than there are headers.
        let (mut announced, mut chunked, mut content_type) = (false, false, None);
        let mut stays_open = head.version == Version::HTTP_11;
        for (name, value) in &head.headers {
            announced |= *name == CONTENT_LENGTH;
            chunked |= *name == TRANSFER_ENCODING;
            // Whatever it says: most answers have none.
            stays_open &= *name != CONNECTION;
            if *name == CONTENT_TYPE {
                content_type = content_type.or(Some(value));
            }
        }
        let is_protobuf = content_type.is_some_and(|found| wire::is_protobuf(found.as_bytes()));
        if chunked && (announced || head.version != Version::HTTP_11 || !is_chunked(&head.headers))
        {
            // ureq takes one reading, and who comes between may take another: then the two do not
            // agree on where the next answer begins (RFC 9112, section 6.3).
            return Err(terms.refuse(TWO_LENGTHS));
        }
        // ureq has no length for a body that is announced to be empty.
        let length = body
            .content_length()
            .or((announced && !chunked).then_some(0));
        if head.status == 200 && length.is_none() && !chunked {
            // Such a body ends where the connection does: if the peer dies, what has arrived looks
            // whole.
            return Err(terms.refuse(NO_LENGTH));
        }
        let status = head.status.as_u16();
        let known = length.filter(|&length| status == 200 && stays_open && length > 0);
        if let Some(length) = known {
            let Exchange {
                connection,
                deadline,
                home,
            } = take_back(body).ok_or_else(|| terms.refuse(GONE))?;
            let framing = Framing::Length(length);
            let body = AnswerBody::new(home, connection, framing, true, deadline);
            let response = TransportResponse::with_reader(status, Some(length), body);
            return Ok(response.with_headers(head.headers, is_protobuf));
        }
        let reader = BodyReader {
            // One more than is allowed: `limit(n)` refuses a body of exactly n bytes.
            reader: body
                .into_with_config()
                .limit(terms.max_body.saturating_add(1))
                .reader(),
            home: self.home.clone(),
        };
        Ok(TransportResponse::with_reader(status, length, reader)
            .with_headers(head.headers, is_protobuf))
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
        let terms = &self.home.terms;
        let budget = terms.budget(ctx, &request)?;
        // Read last: then the deadline is not before that of `ctx`, whose error is looked for when
        // time is up.
        let deadline = deadline_of(Instant::now(), budget);
        let mut result = self.attempt(&self.agent, &request, deadline);
        let stale = matches!(&result, Err(ureq::Error::Io(error)) if Stale::is(error));
        if stale && request.is_repeatable() {
            self.home.generation.end();
            result = self.attempt(&self.fresh, &request, deadline);
        }
        let response = result.map_err(|error| terms.explain(ctx, error.into_io()))?;
        self.respond(response)
    }
}

impl fmt::Debug for UreqTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UreqTransport")
            .field("home", &self.home)
            .finish_non_exhaustive()
    }
}

/// Reads a body, and puts its errors in our words.
struct BodyReader<R> {
    reader: R,
    home: Arc<Home>,
}

impl<R: Read> Read for BodyReader<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.reader.read(buf).map_err(|error| match error.kind() {
            io::ErrorKind::TimedOut => self.home.terms.too_late(),
            _ => error,
        })
    }
}

/// Whether the only transfer coding is `chunked`.
fn is_chunked(headers: &HeaderMap) -> bool {
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    codings
        .next()
        .is_some_and(|coding| coding.as_bytes().eq_ignore_ascii_case(b"chunked"))
        && codings.next().is_none()
}

fn config() -> Config {
    Agent::config_builder()
        // By default ureq takes a proxy from the environment.
        .proxy(None)
        // A peer has no reason to send us elsewhere: the answer is an error, not followed.
        .max_redirects(0)
        .http_status_as_error(false)
        // `UreqConnector` keeps the connections, and its connections the deadlines.
        .max_idle_connections(0)
        .max_response_header_size(MAX_HEAD)
        // Headers that would be sent with each request and that no peer reads.
        .user_agent("")
        .accept("")
        .accept_encoding("")
        .build()
}

const GONE: &str = "the connection of the answer is gone";

/// Resolves nothing: ureq resolves before each request, also one that has a connection already.
/// [`UreqConnector`] knows the addresses, and is asked only when a connection is to be made.
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

#[cfg(all(test, not(larder_loom)))]
mod tests {
    use super::*;
    use crate::http::exchange::Terms;
    use crate::http::url::PeerUrl;
    use std::io::Write;
    use std::net::TcpListener;
    use std::time::Duration;

    /// Shared exchanges, which have bodies, go by another transport.
    #[test]
    fn a_body_is_sent_whole_with_its_head() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let transport = UreqTransport::new(Home::new(Terms {
            url: Arc::new(PeerUrl::parse(&url).unwrap()),
            connect_timeout: Duration::from_secs(20),
            exchange_timeout: Duration::from_secs(20),
            max_idle: 1,
            max_body: 100,
        }));
        for length in [1, 50_000] {
            let body = vec![b'x'; length];
            let ending = [b"\r\n\r\n", &body[..]].concat();
            let mut came = Vec::new();
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    let (mut stream, _) = listener.accept().unwrap();
                    let mut piece = [0; 4096];
                    while !came.ends_with(&ending) {
                        let read = stream.read(&mut piece).unwrap();
                        assert!(read > 0, "it waits for an answer");
                        came.extend_from_slice(&piece[..read]);
                    }
                    let answer = b"HTTP/1.1 204 Done\r\nConnection: close\r\n\r\n";
                    stream.write_all(answer).unwrap();
                });
                let request = TransportRequest::new("POST", "/x".into()).for_keys(&body);
                let response = transport.round_trip(&Context::background(), request);
                assert_eq!(response.unwrap().status(), 204);
            });
            let head = String::from_utf8_lossy(&came[..came.len() - length]).to_lowercase();
            assert!(head.starts_with("post /x http/1.1\r\n"), "{head}");
            assert!(
                head.contains(&format!("content-length: {length}\r\n")),
                "{head}"
            );
        }
    }
}
