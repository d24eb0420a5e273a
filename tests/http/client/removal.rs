//! Removals that are sent to servers of several kinds.

use std::sync::atomic::{AtomicUsize, Ordering};

use larder::pb::RemoveKeysRequest;
use larder::{Context, PeerPicker};

use super::pool_of;
use super::raw_server::{RawServer, failure, key_of};

/// Larder's server takes number 0 for a removal that it counts later.
#[test]
fn removal_of_several_keys_is_counted_for_each_whatever_server_answers() {
    let ok = |headers| failure("200 OK", headers, "");
    let larder = "Server: larder\r\n";
    // A Go program; larder's server behind a proxy; larder's server, in whose place a Go program starts.
    let proxied = "Server: larder\r\nVia: 1.1 proxy\r\n";
    for [first, others] in [["", ""], [proxied, proxied], [larder, ""]] {
        let requests = AtomicUsize::new(0);
        let server =
            RawServer::answering_by(move |_| match requests.fetch_add(1, Ordering::SeqCst) {
                0 => ok(first),
                _ => ok(others),
            });
        let pool = pool_of(&server.url);
        let peer = pool.pick_peer("a").expect("the key is the peer's");
        let removal = RemoveKeysRequest {
            group: "colors".into(),
            keys: vec!["a".into(), "b".into(), "c".into()],
            removal_id: Some(7 << 32 | 1),
            unless_applied: None,
        };
        let removed = peer.remove(&Context::background(), &removal);
        removed.expect("it is confirmed");
        for key in ["a", "b", "c"] {
            let is_counted = |head: &String| {
                head.starts_with("DELETE") && key_of(head) == key && !head.contains("removal-id: 0")
            };
            assert!(
                server.heads().iter().any(is_counted),
                "{key} {first:?} {others:?}"
            );
        }
    }
}
