//! Without the feature `ureq`, the default client asks larder's own servers alone.

use std::error::Error as _;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};

use larder::http::{HttpClient, HttpPool};

use super::raw_server::{RawServer, key_of, keyed_body, ok_with};
use super::{get, peer_error, pool_with};

fn auto_pool(url: &str) -> HttpPool {
    pool_with(url, |builder| builder.http_client(HttpClient::Auto))
}

/// Answers every request with these headers.
fn server_with(headers: &'static str) -> RawServer {
    RawServer::answering_by(|head| ok_with(headers, &keyed_body(&key_of(head), b"value")))
}

#[test]
fn larder_server_answers() {
    let server = server_with("Server: larder\r\n");
    let pool = auto_pool(&server.url);
    for _ in 0..3 {
        assert_eq!(get(&pool, "k").unwrap().value, "value");
    }
    assert_eq!(server.connections(), 1);
}

#[test]
fn answer_that_is_not_directly_from_larder_is_an_error_that_names_the_feature() {
    for headers in [
        "",
        "Server: nginx\r\n",
        "Server: larder\r\nVia: 1.1 proxy\r\n",
    ] {
        let server = server_with(headers);
        let pool = auto_pool(&server.url);
        let error = get(&pool, "k").expect_err(headers);
        let cause = error.source().and_then(|cause| cause.downcast_ref());
        let kind = cause.map(|cause: &io::Error| cause.kind());
        assert_eq!(kind, Some(io::ErrorKind::Unsupported), "{headers:?}");
        let text = peer_error(&pool, "k");
        assert!(text.contains("feature `ureq`"), "{text}");
    }
}

#[test]
fn peer_that_becomes_a_larder_server_is_asked_again() {
    let answers = AtomicUsize::new(0);
    let server = RawServer::answering_by(move |head| {
        let headers = match answers.fetch_add(1, Ordering::SeqCst) {
            0 => "",
            _ => "Server: larder\r\n",
        };
        ok_with(headers, &keyed_body(&key_of(head), b"value"))
    });
    let pool = auto_pool(&server.url);
    peer_error(&pool, "k");
    assert_eq!(get(&pool, "k").unwrap().value, "value");
}
