//! Transports that the user supplies.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use larder::http::{HttpPool, Transport, TransportRequest, TransportResponse};
use larder::{Context, Error, ErrorKind, Registry, Result};

use super::raw_server::{RawServer, body, ok};
use super::{get, peer_error, pool_with};

struct Signed(Arc<dyn Transport>);

impl Transport for Signed {
    fn round_trip(
        &self,
        ctx: &Context,
        mut request: TransportRequest<'_>,
    ) -> Result<TransportResponse> {
        let signature = format!("{} {}", request.method(), request.path().len());
        request.set_header("X-Signature", &signature)?;
        self.0.round_trip(ctx, request)
    }
}

#[test]
fn transport_can_wrap_the_default() {
    let server = RawServer::answering(ok(&body(b"x")));
    let pool = pool_with(&server.url, |builder| {
        builder.transport(|_, default| Arc::new(Signed(default)))
    });
    assert_eq!(get(&pool, "k").unwrap().value, "x");
    assert!(
        server.heads()[0].contains("x-signature: GET 21\r\n"),
        "{:?}",
        server.heads()
    );
}

struct ForHost(Arc<dyn Transport>);

impl Transport for ForHost {
    fn round_trip(
        &self,
        ctx: &Context,
        mut request: TransportRequest<'_>,
    ) -> Result<TransportResponse> {
        request.set_header("Host", "cache.example")?;
        for name in ["Content-Length", "Transfer-Encoding"] {
            let error = request.set_header(name, "chunked").unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidOption);
        }
        self.0.round_trip(ctx, request)
    }
}

#[test]
fn transport_may_replace_the_host_header_but_not_the_length() {
    let server = RawServer::answering(ok(&body(b"x")));
    let pool = pool_with(&server.url, |builder| {
        builder.transport(|_, default| Arc::new(ForHost(default)))
    });
    assert_eq!(get(&pool, "k").unwrap().value, "x");
    let head = server.heads().remove(0).to_ascii_lowercase();
    assert!(head.contains("\r\nhost: cache.example\r\n"), "{head}");
    assert_eq!(head.matches("\r\nhost:").count(), 1, "{head}");
}

struct Canned(fn() -> Result<TransportResponse>);

impl Transport for Canned {
    fn round_trip(&self, _: &Context, _: TransportRequest<'_>) -> Result<TransportResponse> {
        (self.0)()
    }
}

fn canned(answer: fn() -> Result<TransportResponse>) -> HttpPool {
    pool_with("http://10.0.0.1", |builder| {
        builder.transport(move |_, _| Arc::new(Canned(answer)))
    })
}

fn protobuf(length: Option<u64>, value: &[u8]) -> Result<TransportResponse> {
    let body = std::io::Cursor::new(body(value));
    let mut response = TransportResponse::with_reader(200, length, body);
    response.set_header("content-type", "Application/X-Protobuf; charset=binary")?;
    Ok(response)
}

#[test]
fn transport_can_replace_the_default() {
    for answer in [|| protobuf(None, b"abc"), || protobuf(Some(5), b"abc")] {
        assert_eq!(get(&canned(answer), "k").unwrap().value, "abc");
    }
    let error = get(&canned(|| Err(Error::new(ErrorKind::Peer, "no wire"))), "k");
    assert_eq!(error.unwrap_err().to_string(), "no wire");
}

#[test]
fn wrong_length_is_an_error_for_any_transport() {
    for answer in [|| protobuf(Some(4), b"abc"), || protobuf(Some(6), b"abc")] {
        peer_error(&canned(answer), "k");
    }
    // Larger than the buffer that the client allocates in advance.
    peer_error(&canned(|| protobuf(Some(500_000), &[0; 400_000])), "k");
    peer_error(&canned(|| protobuf(Some(300_000), &[0; 400_000])), "k");
}

#[test]
fn hook_is_called_once_for_each_new_peer() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let calls = Arc::new(AtomicUsize::new(0));
    let (urls, count) = (seen.clone(), calls.clone());
    let pool = HttpPool::builder("http://a")
        .registry(&Registry::new())
        .transport(move |url, default| {
            urls.lock().unwrap().push(url.to_owned());
            count.fetch_add(1, Ordering::SeqCst);
            default
        })
        .build()
        .unwrap();
    pool.set(["http://a/", "http://10.0.0.1", "http://10.0.0.2"])
        .unwrap();
    pool.set(["http://10.0.0.2", "http://10.0.0.3", "http://a"])
        .unwrap();
    let mut seen = seen.lock().unwrap().clone();
    seen.sort();
    assert_eq!(
        seen,
        ["http://10.0.0.1", "http://10.0.0.2", "http://10.0.0.3"]
    );
    assert_eq!(
        calls.load(Ordering::SeqCst),
        3,
        "no call for this process itself"
    );
}
