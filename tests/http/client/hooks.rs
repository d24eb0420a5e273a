//! Transports that the user supplies.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use larder::http::{HttpPool, Transport, TransportRequest, TransportResponse};
use larder::{Context, Error, ErrorKind, PeerPicker, Registry, Result, Route};

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

/// Refuses all requests, and sends the time that each may take.
struct Refusing(Sender<(String, Duration)>);

impl Transport for Refusing {
    fn round_trip(&self, _: &Context, request: TransportRequest<'_>) -> Result<TransportResponse> {
        let left = request.deadline() - Instant::now();
        let _ = self.0.send((request.path().to_owned(), left));
        let refused = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
        Err(Error::with_source(ErrorKind::Peer, "refused", refused))
    }
}

#[test]
fn probe_of_a_peer_takes_a_few_seconds_at_most_where_getters_take_long() {
    let (sender, requests) = channel();
    let minute = Duration::from_secs(60);
    let pool = pool_with("http://10.0.0.1", |builder| {
        let refusing =
            move |_: &str, _| -> Arc<dyn Transport> { Arc::new(Refusing(sender.clone())) };
        builder.exchange_timeout(minute).transport(refusing)
    });
    get(&pool, "k").unwrap_err();
    let next = || requests.recv_timeout(minute).expect("a request");
    let (path, left) = next();
    assert!(
        path.ends_with("/k") && left > minute / 2,
        "{path}: {left:?}"
    );
    // One peer that hangs must not keep others from being probed for longer.
    let (path, left) = next();
    assert!(
        path.ends_with("_groupcache/") && left < minute / 10,
        "{path}: {left:?}"
    );
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
    // These are longer than the buffer that the client allocates in advance.
    peer_error(&canned(|| protobuf(Some(500_000), &[0; 400_000])), "k");
    peer_error(&canned(|| protobuf(Some(300_000), &[0; 400_000])), "k");
}

/// Panics, or notes the paths of requests.
struct Noting(bool, Arc<Mutex<Vec<String>>>);

impl Transport for Noting {
    fn round_trip(&self, _: &Context, request: TransportRequest<'_>) -> Result<TransportResponse> {
        self.1.lock().unwrap().push(request.path().to_owned());
        match self.0 {
            true => std::panic::resume_unwind(Box::new("in the transport")),
            false => Ok(TransportResponse::new(200, "")),
        }
    }
}

#[test]
fn transport_that_panics_for_one_peer_does_not_keep_a_process_from_leaving() {
    let paths: Arc<Mutex<Vec<String>>> = Arc::default();
    let noted = paths.clone();
    let pool = HttpPool::builder("http://a")
        .registry(&Registry::new())
        .transport(move |url, _| Arc::new(Noting(url.ends_with(".1"), noted.clone())))
        .build()
        .unwrap();
    pool.set(["http://a", "http://10.0.0.1", "http://10.0.0.2"])
        .unwrap();
    pool.leave(Duration::ZERO);
    let paths = paths.lock().unwrap().clone();
    let announced = paths.iter().filter(|path| path.ends_with("_leave/"));
    assert_eq!(announced.count(), 2, "{paths:?}");
    // The peers own its keys now.
    let reasons = pool.explain("key").reasons;
    assert!(
        reasons.iter().any(|reason| reason == "this process leaves"),
        "{reasons:?}"
    );
    // The same holds if the program asks the pool itself.
    for n in 0..30 {
        let route = pool.route(&format!("key-{n}"));
        assert!(matches!(route, Route::Peer(_)));
    }
}

#[test]
fn transport_that_panics_for_one_peer_does_not_keep_others_from_being_asked_for_the_list() {
    let paths: Arc<Mutex<Vec<String>>> = Arc::default();
    let noted = paths.clone();
    let pool = HttpPool::builder("http://a")
        .registry(&Registry::new())
        .transport(move |url, _| Arc::new(Noting(url.ends_with(".1"), noted.clone())))
        .build()
        .unwrap();
    pool.set(["http://a", "http://10.0.0.1", "http://10.0.0.2"])
        .unwrap();
    let begun = Instant::now();
    while paths.lock().unwrap().len() < 2 {
        assert!(begun.elapsed() < Duration::from_secs(20), "one was asked");
        std::thread::yield_now();
    }
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
