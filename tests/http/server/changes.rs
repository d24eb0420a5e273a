//! Requests that change data, on both fronts.

use std::net::SocketAddr;

use larder::ProtoMessage;
use larder::pb::{ClearRequest, SetRequest};

use super::conformance::{error_code, on_both};
use super::support::{Client, PROTOBUF, Reply, ask, get, pool};

fn request(addr: SocketAddr, method: &str, path: &str, body: &[u8]) -> Reply {
    let length = body.len();
    let head = format!(
        "{method} /_groupcache/{path} HTTP/1.1\r\nHost: h\r\nContent-Length: {length}\r\n\r\n"
    );
    ask(addr, [head.as_bytes(), body].concat())
}

fn set<'a>(key: &'a str, value: &'a [u8]) -> SetRequest<'a> {
    SetRequest {
        group: "echo".into(),
        key: key.into(),
        value: Some(value.into()),
        ..SetRequest::default()
    }
}

fn put(addr: SocketAddr, path: &str, set: &SetRequest<'_>) -> Reply {
    request(addr, "PUT", path, &set.encode().expect("it encodes"))
}

fn assert_done(reply: &Reply) {
    assert_eq!(
        (reply.status, &reply.body[..]),
        (200, &b""[..]),
        "{reply:?}"
    );
    assert_ne!(
        reply.header("Content-Type"),
        Some(PROTOBUF),
        "a GET's answer has this type"
    );
    assert_eq!(reply.header("Server"), Some("larder"));
}

#[test]
fn put_sets_and_delete_removes() {
    on_both(pool, |addr| {
        for (path, key) in [
            ("a%2Fb%20c", "a/b c"),
            ("", ""),
            ("..", ".."),
            ("_clear/", "_clear/"),
        ] {
            assert_done(&put(addr, &format!("echo/{path}"), &set(key, b"new")));
            assert_eq!(ask(addr, get(path)).value(), "new", "{key:?}");
            assert_done(&request(addr, "DELETE", &format!("echo/{path}"), b""));
            assert_eq!(ask(addr, get(path)).value(), key, "it was loaded again");
        }
    });
}

#[test]
fn value_that_expires_by_the_wall_clock_of_go_expires() {
    on_both(pool, |addr| {
        let soon = SetRequest {
            expire: Some(larder::Clock::system().unix_nanos() + 3_600_000_000_000),
            ..set("k", b"new")
        };
        assert_done(&put(addr, "echo/k", &soon));
        let reply = ask(addr, get("k"));
        assert_eq!(reply.value(), "new");
        let ttl = reply.decoded().ttl_nanos.expect("a time to live");
        assert!(
            (3_000_000_000_000..=3_600_000_000_000).contains(&ttl),
            "{ttl}"
        );
        let over = SetRequest {
            expire: Some(1),
            ..set("k", b"old")
        };
        assert_done(&put(addr, "echo/k", &over));
        assert_eq!(ask(addr, get("k")).value(), "k", "the value had expired");
    });
}

#[test]
fn several_keys_are_removed_as_groupcache_go_asks() {
    on_both(pool, |addr| {
        for key in ["a", "b", "c"] {
            assert_done(&put(addr, &format!("echo/{key}"), &set(key, b"new")));
        }
        let body = br#"{"group":"echo","keys":["a","\u0062","unknown"]}"#;
        assert_done(&request(addr, "POST", "echo/_remove-keys/", body));
        let values = ["a", "b", "c"].map(|key| ask(addr, get(key)).value());
        assert_eq!(values, ["a", "b", "new"]);
    });
}

#[test]
fn clear_removes_everything() {
    on_both(pool, |addr| {
        assert_done(&put(addr, "echo/a", &set("a", b"new")));
        let clear = ClearRequest {
            group: "echo".into(),
            removal_id: Some(7),
        };
        let body = clear.encode().expect("it encodes");
        assert_done(&request(addr, "POST", "echo/_clear/", &body));
        assert_eq!(ask(addr, get("a")).value(), "a");
    });
}

#[test]
fn malformed_changes_are_400_and_change_nothing() {
    on_both(pool, |addr| {
        assert_done(&put(addr, "echo/a", &set("a", b"new")));
        let other_group = SetRequest {
            group: "other".into(),
            ..set("a", b"bad")
        };
        for (status, reply) in [
            (400, request(addr, "DELETE", "echo", b"")),
            (400, request(addr, "DELETE", "echo/%zz", b"")),
            (400, request(addr, "PUT", "echo/a", b"<html>")),
            (400, put(addr, "echo/a", &set("b", b"bad"))),
            (400, put(addr, "echo/a", &other_group)),
            (400, request(addr, "POST", "echo/_remove-keys/", b"[\"a\"]")),
            (400, request(addr, "POST", "echo/_clear/", b"<html>")),
        ] {
            assert_eq!(
                (reply.status, error_code(&reply)),
                (status, None),
                "{reply:?}"
            );
        }
        let id = "DELETE /_groupcache/echo/a HTTP/1.1\r\nHost: h\r\nlarder-removal-id: x\r\n\r\n";
        assert_eq!(ask(addr, id).status, 400);
        let unknown = request(addr, "DELETE", "unknown/a", b"");
        assert_eq!(
            (unknown.status, error_code(&unknown)),
            (404, Some("unknown-group"))
        );
        let long = "k".repeat(5000);
        let reply = put(addr, "echo/a", &set(&long, b""));
        assert_eq!(reply.status, 400);
        assert_eq!(ask(addr, get("a")).value(), "new");
    });
}

#[test]
fn long_value_can_be_set_but_no_longer_body_is_read() {
    on_both(pool, |addr| {
        let value = vec![b'v'; 500_000];
        assert_done(&put(addr, "echo/a", &set("a", &value)));
        assert_eq!(ask(addr, get("a")).value().len(), value.len());
        let head =
            "PUT /_groupcache/echo/a HTTP/1.1\r\nHost: h\r\nContent-Length: 20000000\r\n\r\n";
        assert_eq!(ask(addr, head).status, 413);
        let head =
            "POST /_groupcache/echo/_clear/ HTTP/1.1\r\nHost: h\r\nContent-Length: 500000\r\n\r\n";
        let mut client = Client::sending(addr, head);
        assert_eq!(client.reply().status, 413);
    });
}
