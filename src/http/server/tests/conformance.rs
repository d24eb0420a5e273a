//! The same requests get the same answers from our server and from tiny_http.

use std::net::SocketAddr;

use super::support::{Client, Reply, RequestId, ask, endpoint, get};
use crate::context::Context;
use crate::http::server::answer::Endpoint;
use crate::http::server::{Server, ServerBuilder};
use crate::sync::Arc;
use crate::wire;

/// Something that answers for an endpoint while it lives.
trait Front {
    fn addr(&self) -> SocketAddr;
}

impl Front for Server {
    fn addr(&self) -> SocketAddr {
        self.local_addr()
    }
}

/// A program that mounts the peer path in a tiny_http server.
#[cfg(feature = "tiny_http")]
struct Tiny {
    server: Arc<tiny_http::Server>,
    thread: Option<std::thread::JoinHandle<()>>,
}

#[cfg(feature = "tiny_http")]
impl Tiny {
    fn start(endpoint: Endpoint) -> Self {
        use crate::http::server::tiny::{bind, handle};
        let server = Arc::new(bind("127.0.0.1:0").expect("bind"));
        let receiving = server.clone();
        let thread = std::thread::spawn(move || {
            for request in receiving.incoming_requests() {
                let done = if endpoint.owns(request.url()) {
                    handle(&endpoint, request)
                } else {
                    request.respond(tiny_http::Response::empty(404))
                };
                done.expect("no error but that the client is gone");
            }
        });
        Tiny {
            server,
            thread: Some(thread),
        }
    }
}

#[cfg(feature = "tiny_http")]
impl Front for Tiny {
    fn addr(&self) -> SocketAddr {
        self.server.server_addr().to_ip().expect("an IP address")
    }
}

#[cfg(feature = "tiny_http")]
impl Drop for Tiny {
    fn drop(&mut self) {
        self.server.unblock();
        let ended = self.thread.take().map(|thread| thread.join().is_ok());
        assert!(std::thread::panicking() || ended == Some(true));
    }
}

/// Runs `check` against both fronts, each with an endpoint of its own.
fn on_both(endpoint: impl Fn() -> Endpoint, check: impl Fn(SocketAddr)) {
    let ours = ServerBuilder::new(Some(endpoint()))
        .bind("127.0.0.1:0")
        .expect("a server");
    #[cfg(feature = "tiny_http")]
    let tiny = Tiny::start(endpoint());
    let fronts: &[&dyn Front] = &[
        &ours,
        #[cfg(feature = "tiny_http")]
        &tiny,
    ];
    for front in fronts {
        check(front.addr());
    }
}

fn error_code(reply: &Reply) -> Option<&str> {
    reply.header(wire::ERROR_HEADER)
}

#[test]
fn a_key_is_decoded_once_and_never_resolved() {
    on_both(endpoint, |addr| {
        for (sent, key) in [
            ("red", "red"),
            ("", ""),
            ("a%20b", "a b"),
            ("a+b", "a+b"),
            ("a%2Bb", "a+b"),
            ("a%2Fb", "a/b"),
            ("a/b/", "a/b/"),
            ("..", ".."),
            ("%2e%2E", ".."),
            ("%252e", "%2e"),
            ("../../etc/passwd", "../../etc/passwd"),
            ("//x", "//x"),
            ("%00", "\0"),
            ("%E4%B8%96", "世"),
            ("k?x=y", "k"),
            ("k%3Fx", "k?x"),
            ("%23", "#"),
        ] {
            assert_eq!(ask(addr, get(sent)).value(), key, "{sent}");
        }
    });
}

#[test]
fn a_raw_plus_is_a_space_under_golangs_preset() {
    let golang = || Endpoint {
        plus_is_space: true,
        ..endpoint()
    };
    on_both(golang, |addr| {
        assert_eq!(ask(addr, get("a+b%2Bc")).value(), "a b+c");
    });
}

#[test]
fn a_malformed_path_is_400() {
    on_both(endpoint, |addr| {
        for path in ["", "echo", "/k", "echo/%zz", "echo/%", "echo/%ff", "%ff/k"] {
            let request = format!("GET /_groupcache/{path} HTTP/1.1\r\nHost: h\r\n\r\n");
            let reply = ask(addr, request);
            assert_eq!((reply.status, error_code(&reply)), (400, None), "{path}");
        }
    });
}

#[test]
fn an_absolute_target_is_its_path() {
    on_both(endpoint, |addr| {
        let request = "GET http://h:1/_groupcache/echo/k HTTP/1.1\r\nHost: h:1\r\n\r\n";
        assert_eq!(ask(addr, request).value(), "k");
    });
}

#[test]
fn what_is_outside_the_base_path_is_404_without_a_code() {
    on_both(endpoint, |addr| {
        for path in [
            "/",
            "/_groupcache",
            "/_groupcach/echo/k",
            "//_groupcache/echo/k",
        ] {
            let reply = ask(addr, format!("GET {path} HTTP/1.1\r\nHost: h\r\n\r\n"));
            assert_eq!((reply.status, error_code(&reply)), (404, None), "{path}");
        }
    });
}

#[test]
fn errors_come_with_their_kind_and_their_text() {
    on_both(endpoint, |addr| {
        for (key, status, code, text) in [
            ("missing", 404, "not-found", "no key called missing"),
            ("broken", 503, "getter", "out of\r\npaint"),
        ] {
            let reply = ask(addr, get(key));
            assert_eq!(
                (reply.status, error_code(&reply), reply.text()),
                (status, Some(code), text)
            );
            assert_eq!(
                reply.header("Content-Type"),
                Some("text/plain; charset=utf-8")
            );
        }
        let unknown = "GET /_groupcache/no%0Dgroup/k HTTP/1.1\r\nHost: h\r\n\r\n";
        let reply = ask(addr, unknown);
        assert_eq!(
            (reply.status, error_code(&reply)),
            (404, Some("unknown-group"))
        );
    });
}

#[test]
fn a_getters_panic_is_an_answer_and_the_connection_goes_on() {
    on_both(endpoint, |addr| {
        let mut client = Client::sending(addr, get("panic"));
        let reply = client.reply();
        let (status, code) = wire::status_of(crate::ErrorKind::GetterPanicked);
        assert_eq!((reply.status, error_code(&reply)), (status, Some(code)));
        client.send(get("next"));
        assert_eq!(client.reply().value(), "next");
    });
}

#[test]
fn other_methods_are_405_and_told_what_is_allowed() {
    on_both(endpoint, |addr| {
        for method in ["POST", "DELETE", "OPTIONS", "BREW"] {
            let request = get("k").replace("GET", method);
            let reply = ask(addr, request);
            assert_eq!((reply.status, reply.header("Allow")), (405, Some("GET")));
        }
        let mut client = Client::sending(addr, get("k").replace("GET", "HEAD"));
        assert_eq!(client.reply_head().status, 405);
        client.send(get("next"));
        assert_eq!(client.reply().value(), "next", "no body came between");
    });
}

#[test]
fn the_callers_remaining_time_becomes_a_deadline() {
    on_both(endpoint, |addr| {
        let within = |key: &str, timeout: &str| {
            let lines = format!("Host: h\r\n{}: {timeout}", wire::TIMEOUT_HEADER);
            ask(addr, get(key).replace("Host: h", &lines))
        };
        assert_eq!(within("deadline%3F", "10000").value(), "some");
        let spent = within("spent", "0");
        assert_eq!((spent.status, error_code(&spent)), (504, Some("deadline")));
        for timeout in ["", "-1", "1.5", "1s", "99999999999999999999"] {
            assert_eq!(within("k", timeout).status, 400, "{timeout:?}");
        }
    });
    on_both(endpoint, |addr| {
        assert_eq!(ask(addr, get("deadline%3F")).value(), "none");
    });
}

#[test]
fn what_expires_says_when_by_both_clocks() {
    on_both(endpoint, |addr| {
        let reply = ask(addr, get("mortal"));
        let decoded = wire::decode_response(&reply.body).expect("a GetResponse");
        let ttl = decoded.ttl_nanos.expect("a time to live");
        assert!((50_000_000_000..=60_000_000_000).contains(&ttl), "{ttl}");
        let expire = decoded.expire_unix_nanos.expect("a time");
        let from_now = expire - crate::Clock::system().unix_nanos();
        assert!((50_000_000_000..=60_000_000_000).contains(&from_now));
        let immortal = ask(addr, get("immortal"));
        let decoded = wire::decode_response(&immortal.body).expect("a GetResponse");
        assert_eq!((decoded.ttl_nanos, decoded.expire_unix_nanos), (None, None));
    });
}

#[test]
fn a_connection_is_kept_and_closed_as_the_client_says() {
    on_both(endpoint, |addr| {
        let mut client = Client::connect(addr);
        for key in ["a", "b", "missing", "c"] {
            client.send(get(key));
            let reply = client.reply();
            assert_eq!(reply.header("Connection"), None, "{key}");
        }
        client.send(get("last").replace("Host: h", "Host: h\r\nConnection: close"));
        let reply = client.reply();
        assert_eq!(
            (reply.value(), reply.header("Connection")),
            ("last", Some("close"))
        );
        assert!(client.is_closed());

        let old = get("k").replace("1.1\r\nHost: h", "1.0");
        let mut client = Client::sending(addr, &old);
        assert_eq!(client.reply().header("Connection"), Some("close"));
        assert!(client.is_closed());

        let kept = old.replace("1.0", "1.0\r\nConnection: keep-alive");
        let mut client = Client::connect(addr);
        for _ in 0..2 {
            client.send(&kept);
            assert_eq!(client.reply().header("Connection"), Some("keep-alive"));
        }
    });
}

#[test]
fn requests_sent_ahead_are_answered_in_turn() {
    on_both(endpoint, |addr| {
        let requests: String = (0..100).map(|n| get(&n.to_string())).collect();
        let mut client = Client::sending(addr, requests);
        for n in 0..100 {
            assert_eq!(client.reply().value(), n.to_string());
        }
    });
}

#[test]
fn a_body_that_came_with_a_get_is_passed_over() {
    on_both(endpoint, |addr| {
        for len in [1, 5000] {
            let head =
                get("k").replacen("\r\n\r\n", &format!("\r\nContent-Length: {len}\r\n\r\n"), 1);
            let mut client = Client::sending(addr, head + &"x".repeat(len));
            assert_eq!(client.reply().value(), "k");
            client.send(get("next"));
            assert_eq!(client.reply().value(), "next");
        }
    });
}

#[test]
fn requests_that_read_in_two_ways_are_refused() {
    on_both(endpoint, |addr| {
        for (lines, status) in [
            ("Host: h\r\nContent-Length: 1\r\nContent-Length: 1\r\n", 400),
            ("Host: h\r\nContent-Length: +0\r\n", 400),
            ("Host: h\r\nContent-Length: 0x\r\n", 400),
            ("Host: h\r\nTransfer-Encoding: chunked\r\n", 411),
            (
                "Host: h\r\nContent-Length: 1\r\nTransfer-Encoding: x\r\n",
                400,
            ),
            ("Host: h\r\nHost: h\r\n", 400),
            ("", 400),
            ("Host: h\r\nA: b\nC: d\r\n", 400),
            ("Host: h\r\nA : b\r\n", 400),
            ("Host: h\r\nExpect: a cake\r\n", 417),
        ] {
            let request = format!("GET /_groupcache/echo/k HTTP/1.1\r\n{lines}\r\n0\r\n\r\n");
            let mut client = Client::sending(addr, request);
            client.end();
            assert_eq!(client.reply().status, status, "{lines:?}");
        }
    });
}

#[test]
fn an_announced_body_over_the_limit_is_refused_before_it_is_sent() {
    on_both(endpoint, |addr| {
        let announced = get("k").replace("Host: h", "Host: h\r\nContent-Length: 2000000");
        assert_eq!(ask(addr, announced).status, 413);
    });
}

#[test]
fn the_context_hook_sees_the_request() {
    let hooked = || Endpoint {
        context: Some(Arc::new(|request| {
            let id = request.header("x-request-id").unwrap_or_default();
            assert!(id != "panic", "a hook that panics");
            Context::background().with_value(RequestId(id.to_owned()))
        })),
        ..endpoint()
    };
    on_both(hooked, |addr| {
        let mut client = Client::connect(addr);
        let with_id = |id: &str| {
            get("request%20id%3F").replace("Host: h", &format!("Host: h\r\nX-Request-Id: {id}"))
        };
        client.send(with_id("panic"));
        assert_eq!(client.reply().status, 500);
        client.send(with_id("r7"));
        assert_eq!(client.reply().value(), "r7");
    });
}

/// A request for several keys of `group`, and the values in the answer.
fn ask_many(addr: SocketAddr, group: &str, keys: &[&str], max_bytes: usize) -> Vec<Option<String>> {
    let body = wire::many_request(keys, max_bytes).expect("it encodes");
    let reply = post(addr, group, &body);
    assert_eq!(reply.status, 200, "{reply:?}");
    assert_eq!(reply.header("Content-Type"), Some(wire::CONTENT_TYPE));
    let slots = wire::decode_many_response(&reply.body, keys.len()).expect("a GetManyResponse");
    let text =
        |value: wire::ManyValue| String::from_utf8(reply.body[value.range].to_vec()).expect("text");
    slots.into_iter().map(|slot| slot.map(text)).collect()
}

fn post(addr: SocketAddr, group: &str, body: &[u8]) -> Reply {
    let length = body.len();
    let head = format!(
        "POST /_groupcache/{group} HTTP/1.1\r\nHost: h\r\nContent-Length: {length}\r\n\r\n"
    );
    ask(addr, [head.as_bytes(), body].concat())
}

#[test]
fn several_keys_are_answered_from_the_store_alone() {
    on_both(endpoint, |addr| {
        let long = "v".repeat(3000);
        for key in ["a", "b", "mortal", "", &long] {
            assert_eq!(ask(addr, get(key)).value(), key);
        }
        let some = |text: &str| Some(text.to_owned());
        let keys = ["a", "not loaded", "mortal", "", &long, "a", "panic"];
        let want = [
            some("a"),
            None,
            some("mortal"),
            some(""),
            some(&long),
            some("a"),
            None,
        ];
        assert_eq!(ask_many(addr, "echo", &keys, 10_000), want);
        assert_eq!(
            ask_many(addr, "echo", &keys, 10_000),
            want,
            "nothing was loaded"
        );
        assert!(ask_many(addr, "echo", &[], 1).is_empty());
    });
}

#[test]
fn an_answer_with_several_values_has_its_bounds() {
    on_both(endpoint, |addr| {
        let (long, longer) = ("v".repeat(3000), "w".repeat(2000));
        for key in ["a", "b", &long, &longer] {
            ask(addr, get(key));
        }
        let count = |keys: &[&str], max_bytes| {
            let values = ask_many(addr, "echo", keys, max_bytes);
            values.into_iter().flatten().count()
        };
        // The endpoint allows 8 keys and 4096 bytes.
        assert_eq!(count(&["a"; 20], 10_000), 8);
        assert_eq!(count(&[&long, &longer, "a"], usize::MAX), 2);
        assert_eq!(count(&["a", "b"], 1), 1);
        assert_eq!(count(&["a", "b"], 0), 0);
    });
}

#[test]
fn a_request_for_several_keys_can_be_wrong() {
    on_both(endpoint, |addr| {
        let body = wire::many_request(&["a"], 1000).expect("it encodes");
        let reply = post(addr, "nobody", &body);
        assert_eq!(
            (reply.status, error_code(&reply)),
            (404, Some("unknown-group"))
        );
        let many = wire::many_request(&[""; 5000], 1000).expect("it encodes");
        for wrong in [&b"<html>"[..], &body[..2], &many] {
            let reply = post(addr, "echo", wrong);
            assert_eq!((reply.status, error_code(&reply)), (400, None));
        }
        assert_eq!(post(addr, "%zz", &body).status, 400);
        assert_eq!(post(addr, "", &body).status, 405);
    });
}
