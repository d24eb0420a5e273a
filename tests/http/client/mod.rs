//! The client with servers of all kinds, also broken ones. The tests run with each of the HTTP clients.

mod answers;
#[cfg(feature = "ureq")]
mod auto;
mod batches;
mod connections;
#[cfg(target_os = "linux")]
mod fork;
mod hooks;
mod idle;
#[cfg(not(feature = "ureq"))]
mod larder_only;
mod other_keys;
mod picking;
pub(crate) mod raw_server;
mod removal;
mod revalidation;
mod time;

use std::borrow::Cow;
#[cfg(feature = "ureq")]
use std::process::Command;

use larder::http::{HttpClient, HttpPool, HttpPoolBuilder};
use larder::pb::GetRequest;
use larder::{Context, ErrorKind, PeerPicker, PeerResponse, Registry, Result};

/// A pool with one peer that owns every key, so that all requests go to that peer.
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

/// The text of the error, which must be of kind `Peer` and name the peer.
fn peer_error(pool: &HttpPool, key: &str) -> String {
    let error = get(pool, key).expect_err(key);
    assert_eq!(error.kind(), ErrorKind::Peer, "{error}");
    let url = &pool.urls()[0];
    assert!(error.to_string().contains(url.as_str()), "{error}");
    error.to_string()
}

/// Environment variable with the name of the client that a child process tests.
const CLIENT: &str = "LARDER_TEST_CLIENT";

fn client() -> HttpClient {
    match std::env::var(CLIENT).as_deref() {
        Ok("direct") => HttpClient::Direct,
        #[cfg(feature = "ureq")]
        Ok("ureq") => HttpClient::Ureq,
        #[cfg(feature = "ureq")]
        _ => HttpClient::Auto,
        // Without ureq, `Auto` refuses the answers of most servers of these tests.
        #[cfg(not(feature = "ureq"))]
        _ => HttpClient::Direct,
    }
}

#[cfg(feature = "ureq")]
#[test]
fn other_clients_pass_the_same_tests() {
    if std::env::var_os(CLIENT).is_some() {
        // This is a child process.
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
        // Without this check, a filter that matches no test would pass.
        assert!(text.contains("values_of_all_sizes_arrive ... ok"), "{text}");
    }
}
