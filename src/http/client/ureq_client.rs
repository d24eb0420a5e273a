//! An exchange by ureq, over a connection of our own.

use std::io::{self, Read};
use std::time::Instant;

use ureq::config::Config;
use ureq::http::header::{
    CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HOST, SERVER, TRANSFER_ENCODING, VIA,
};
use ureq::http::{self, HeaderMap, Method, Response, Uri, Version};
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::NextTimeout;
use ureq::{Agent, AsSendBody, Body};

use crate::http::client::exchange::{MAX_HEAD, NO_LENGTH, Refusal, TWO_LENGTHS};
use crate::http::client::peer_connection::{AnswerBody, Exchange, Framing, Home, PeerConnection};
use crate::http::client::take_back::take_back;
use crate::http::client::transport::{TransportRequest, TransportResponse};
use crate::http::client::ureq_connector::{UreqConnector, over};
use crate::sync::Arc;
use crate::wire;

/// Asks by ureq, over connections of our own.
pub(crate) struct UreqClient(Agent);

impl UreqClient {
    pub(crate) fn new() -> Self {
        UreqClient(Agent::with_parts(config(), UreqConnector, NoResolver))
    }

    /// Sends the request on `connection`, or on a new one, and reads the head of its answer.
    pub(crate) fn exchange(
        &self,
        home: &Arc<Home>,
        connection: Option<Box<PeerConnection>>,
        request: &TransportRequest<'_>,
        deadline: Instant,
    ) -> io::Result<TransportResponse> {
        let body = request.body();
        let response = if body.is_empty() {
            self.run(home, connection, with_head(home, request, ()), deadline)
        } else {
            self.run(home, connection, with_head(home, request, body), deadline)
        };
        respond(home, response?)
    }

    fn run<B: AsSendBody>(
        &self,
        home: &Arc<Home>,
        connection: Option<Box<PeerConnection>>,
        request: Result<http::Request<B>, ureq::Error>,
        deadline: Instant,
    ) -> io::Result<Response<Body>> {
        let request = request.map_err(ureq::Error::into_io)?;
        let connection = match connection {
            Some(connection) => connection,
            None => home.connect(deadline)?,
        };
        let exchange = Exchange {
            connection,
            deadline,
            home: home.clone(),
        };
        over(exchange, || self.0.run(request)).map_err(ureq::Error::into_io)
    }
}

fn with_head<B: AsSendBody>(
    home: &Home,
    request: &TransportRequest<'_>,
    body: B,
) -> Result<http::Request<B>, ureq::Error> {
    let uri = home.terms.url.with_path(request.path())?;
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
    headers.insert(HOST, home.terms.url.host_header().clone());
    for (name, value) in request.headers() {
        headers.insert(name, value.clone());
    }
    Ok(sent)
}

fn respond(home: &Arc<Home>, response: Response<Body>) -> io::Result<TransportResponse> {
    let (head, body) = response.into_parts();
    // One pass: looking a name up costs more than there are headers.
    let (mut announced, mut chunked, mut content_type) = (false, false, None);
    let mut stays_open = head.version == Version::HTTP_11;
    let (mut is_ours, mut forwarded) = (false, false);
    for (name, value) in &head.headers {
        announced |= *name == CONTENT_LENGTH;
        chunked |= *name == TRANSFER_ENCODING;
        // Whatever it says: most answers have none.
        stays_open &= *name != CONNECTION;
        is_ours |= *name == SERVER && value.as_bytes() == wire::SERVER.as_bytes();
        forwarded |= *name == VIA;
        if *name == CONTENT_TYPE {
            content_type = content_type.or(Some(value));
        }
    }
    let is_protobuf = content_type.is_some_and(|found| wire::is_protobuf(found.as_bytes()));
    if chunked && (announced || head.version != Version::HTTP_11 || !is_chunked(&head.headers)) {
        // ureq takes one reading, and who comes between may take another: then the two do not
        // agree on where the next answer begins (RFC 9112, section 6.3).
        return Err(TWO_LENGTHS.error());
    }
    // ureq has no length for a body that is announced to be empty.
    let length = body
        .content_length()
        .or((announced && !chunked).then_some(0));
    if head.status == 200 && length.is_none() && !chunked {
        // Such a body ends where the connection does: if the peer dies, what has arrived looks
        // whole.
        return Err(NO_LENGTH.error());
    }
    let status = head.status.as_u16();
    let known = length.filter(|&length| status == 200 && stays_open && length > 0);
    if let Some(length) = known {
        let Exchange {
            mut connection,
            deadline,
            home,
        } = take_back(body).ok_or_else(|| GONE.error())?;
        connection.is_ours = is_ours && !forwarded;
        let framing = Framing::Length(length);
        let body = AnswerBody::new(home, connection, framing, true, deadline);
        let response = TransportResponse::with_reader(status, Some(length), body);
        return Ok(response.with_headers(head.headers, is_protobuf));
    }
    let reader = BodyReader {
        // One more than is allowed: `limit(n)` refuses a body of exactly n bytes.
        reader: body
            .into_with_config()
            .limit(home.terms.max_body.saturating_add(1))
            .reader(),
        home: home.clone(),
    };
    Ok(TransportResponse::with_reader(status, length, reader)
        .with_headers(head.headers, is_protobuf))
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
        // `Home` keeps the connections, and they the deadlines.
        .max_idle_connections(0)
        .max_response_header_size(MAX_HEAD)
        // Headers that would be sent with each request and that no peer reads.
        .user_agent("")
        .accept("")
        .accept_encoding("")
        .build()
}

const GONE: Refusal = Refusal("the connection of the answer is gone");

/// Resolves nothing: ureq resolves before each request, also one that has a connection already.
/// [`UreqConnector`] is handed a connection.
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
    use std::io::Write;
    use std::net::TcpListener;
    use std::time::Duration;

    /// By default shared exchanges, which have bodies, do not come here.
    #[test]
    fn a_body_is_sent_whole_with_its_head() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let home = Home::behind(&listener);
        let client = UreqClient::new();
        let deadline = Instant::now() + Duration::from_secs(20);
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
                let request = TransportRequest::batch("/x".into(), &body, deadline);
                let response = client.exchange(&home, None, &request, deadline);
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
