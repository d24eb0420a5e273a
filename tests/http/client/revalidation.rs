//! Requests for values that are cached already.

use std::borrow::Cow;

use larder::pb::{GetRequest, GetResponse};
use larder::{
    ByteView, Clock, Context, ErrorKind, Group, PeerPicker, PeerResponse, ProtoMessage, Registry,
    Result, getter_fn,
};

use super::raw_server::{RawServer, key_hash, keyed_body, ok, ok_with};
use super::{client, pool_of};
use larder::http::HttpPool;

const VALUE: [u8; 600] = [7; 600];

fn revalidate(pool: &HttpPool, old: &[u8]) -> Result<PeerResponse> {
    let peer = pool.pick_peer("key").expect("the key is the peer's");
    let request = GetRequest {
        group: Cow::Borrowed("colors"),
        key: Cow::Borrowed("key"),
    };
    peer.revalidate(&Context::background(), &request, &ByteView::from(old))
}

/// The header `larder-unchanged` for a key: fields in hexadecimal digits.
fn unchanged(key: &str, ttl_nanos: u64) -> String {
    let message = GetResponse {
        key_hash: Some(key_hash("colors", key)),
        ttl_nanos: Some(ttl_nanos),
        ..GetResponse::default()
    };
    let bytes = message.encode().expect("it encodes");
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A server that answers conditional requests with a 304 with these headers, and others with [`VALUE`].
fn server(headers: String) -> RawServer {
    RawServer::answering_by(move |head| {
        match head.to_ascii_lowercase().contains("\r\nif-none-match: \"") {
            true => format!("HTTP/1.1 304 Not Modified\r\n{headers}\r\n").into_bytes(),
            false => ok_with("Server: larder\r\n", &keyed_body("key", &VALUE)),
        }
    })
}

#[test]
fn not_modified_brings_the_old_value_with_new_times() {
    let server = server(format!(
        "Server: larder\r\nlarder-unchanged: {}\r\n",
        unchanged("key", 5_000)
    ));
    let pool = pool_of(&server.url);
    for _ in 0..3 {
        let response = revalidate(&pool, &VALUE).expect("the old value");
        assert_eq!(response.value, VALUE);
        assert_eq!(response.ttl.map(|ttl| ttl.as_nanos()), Some(5_000));
        assert_eq!(response.removals, Some(0));
    }
    assert_eq!(server.heads().len(), 3);
    assert!(server.connections() <= 2, "connections are used again");
}

#[test]
fn key_is_requested_again_after_not_modified_of_other_servers() {
    for headers in ["", "ETag: \"1\"\r\n", "larder-unchanged: nonsense\r\n"] {
        let server = server(headers.to_owned());
        let response = revalidate(&pool_of(&server.url), &VALUE).expect("the value");
        assert_eq!((response.value, response.ttl), ((&VALUE).into(), None));
        assert_eq!(server.heads().len(), 2);
    }
}

#[test]
fn not_modified_for_another_key_is_refused() {
    let server = server(format!(
        "larder-unchanged: {}\r\n",
        unchanged("other", 5_000)
    ));
    let error = revalidate(&pool_of(&server.url), &VALUE).expect_err("another key");
    assert_eq!(error.kind(), ErrorKind::Peer);
    assert!(error.to_string().contains("another key"), "{error}");
}

#[test]
fn short_values_are_requested_without_a_condition() {
    let server = server(String::new());
    revalidate(&pool_of(&server.url), &VALUE[..511]).expect("the value");
    assert!(
        !server.heads()[0]
            .to_ascii_lowercase()
            .contains("if-none-match")
    );
}

#[test]
fn value_of_a_server_that_is_not_larder_is_requested_without_a_condition() {
    if client() == larder::http::HttpClient::Direct {
        return;
    }
    let message = GetResponse {
        value: Some(Cow::Borrowed(&VALUE)),
        ttl_nanos: Some(10_000_000_000),
        ..GetResponse::default()
    };
    let server = RawServer::answering(ok(&message.encode().expect("it encodes")));
    let (registry, clock) = (Registry::new(), Clock::manual());
    let pool = HttpPool::builder("http://127.0.0.1:1").registry(&registry);
    let pool = pool.http_client(client()).build().expect("a pool");
    pool.set([&server.url]).expect("a peer");
    let group = Group::builder("colors")
        .registry(&registry)
        .clock(clock.clone())
        .keep_for_revalidation(std::time::Duration::from_secs(60))
        .build(getter_fn(|_, _, _| Err("the peer owns all keys".into())))
        .expect("a group");
    for _ in 0..2 {
        assert_eq!(group.get("key").expect("a value"), VALUE);
        clock.advance(std::time::Duration::from_secs(10));
    }
    let heads = server.heads().join("").to_ascii_lowercase();
    assert_eq!(heads.matches("get /_groupcache/colors/key").count(), 2);
    assert!(!heads.contains("if-none-match"), "{heads}");
}
