//! The client against servers of all kinds, also broken ones. The tests run under each of the HTTP clients.

mod answers;
mod auto;
mod connections;
mod hooks;
mod picking;
mod raw_server;
mod shared;
mod time;

use std::borrow::Cow;
use std::process::Command;

use larder::http::{HttpClient, HttpPool, HttpPoolBuilder};
use larder::pb::GetRequest;
use larder::{Context, ErrorKind, PeerPicker, PeerResponse, Registry, Result};

/// A pool that knows one peer and owns nothing, so that every key is asked for at that peer.
fn pool_of(url: &str) -> HttpPool {
    pool_with(url, |builder| builder)
}

fn pool_with(url: &str, options: impl FnOnce(HttpPoolBuilder) -> HttpPoolBuilder) -> HttpPool {
    let builder = HttpPool::builder("http://127.0.0.1:1")
        .registry(&Registry::new())
        .http_client(client());
    let pool = options(builder).build().expect("a pool");
    pool.set([url]).expect("a peer");
    pool
}

fn ask(pool: &HttpPool, ctx: &Context, key: &str) -> Result<PeerResponse> {
    let peer = pool.pick_peer(key).expect("the key is the peer's");
    peer.get(
        ctx,
        &GetRequest {
            group: Cow::Borrowed("colors"),
            key: Cow::Borrowed(key),
        },
    )
}

fn get(pool: &HttpPool, key: &str) -> Result<PeerResponse> {
    ask(pool, &Context::background(), key)
}

/// The text of the error, which must be the peer's and name it.
fn peer_error(pool: &HttpPool, key: &str) -> String {
    let error = get(pool, key).expect_err(key);
    assert_eq!(error.kind(), ErrorKind::Peer, "{error}");
    let url = &pool.peers()[0];
    assert!(error.to_string().contains(url.as_str()), "{error}");
    error.to_string()
}

/// Names the client that is tested in a child process, instead of the default one.
const CLIENT: &str = "LARDER_TEST_CLIENT";

fn client() -> HttpClient {
    match std::env::var(CLIENT).as_deref() {
        Ok("direct") => HttpClient::Direct,
        Ok("ureq") => HttpClient::Ureq,
        _ => HttpClient::default(),
    }
}

#[test]
fn other_clients_pass_the_same_tests() {
    if std::env::var_os(CLIENT).is_some() {
        // This is a child.
        return;
    }
    for name in ["direct", "ureq"] {
        let output = Command::new(std::env::current_exe().unwrap())
            .arg("client::")
            .env(CLIENT, name)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{name}: {text}");
        // Without it, a filter that matches nothing would pass.
        assert!(text.contains("values_of_all_sizes_arrive ... ok"), "{text}");
    }
}
