//! The server and tiny_http answer the same requests with the same responses.

use std::net::SocketAddr;
#[cfg(feature = "tiny_http")]
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use larder::consistent_hash::Preset;
use larder::http::{HttpPool, Server};
use larder::pb::{GetManyRequest, GetManyResponse};
use larder::{Context, ProtoMessage};
use quick_protobuf::{BytesReader, MessageRead};

use super::support::{Client, PROTOBUF, Reply, RequestId, ask, get, pool, pool_with};
use crate::client::raw_server::key_hash;

/// A server of a pool. Dropping it stops it.
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
    fn start(pool: HttpPool) -> Self {
        let server = Arc::new(larder::http::tiny::bind("127.0.0.1:0").expect("bind"));
        let receiving = server.clone();
        let thread = std::thread::spawn(move || {
            for request in receiving.incoming_requests() {
                if pool.matches(request.url()) {
                    pool.handle(request)
                        .expect("a closed connection is not an error");
                } else {
                    let response = tiny_http::Response::empty(404);
                    request.respond(response).expect("the client is there");
                }
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

/// Runs `check` against both fronts, each with a pool of its own.
pub fn on_both(pool: impl Fn() -> HttpPool, check: impl Fn(SocketAddr)) {
    let server = pool().serve("127.0.0.1:0").expect("a server");
    #[cfg(feature = "tiny_http")]
    let tiny = Tiny::start(pool());
    let fronts: &[&dyn Front] = &[
        &server,
        #[cfg(feature = "tiny_http")]
        &tiny,
    ];
    for front in fronts {
        check(front.addr());
    }
}

pub fn error_code(reply: &Reply) -> Option<&str> {
    reply.header("larder-error")
}

#[test]
fn key_is_decoded_once_and_not_resolved() {
    on_both(pool, |addr| {
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
fn raw_plus_is_a_space_under_golangs_preset() {
    let golang = || pool_with(|builder| builder.preset(Preset::Golang));
    on_both(golang, |addr| {
        assert_eq!(ask(addr, get("a+b%2Bc")).value(), "a b+c");
    });
}

#[test]
fn malformed_path_is_400() {
    on_both(pool, |addr| {
        for path in ["", "echo", "/k", "echo/%zz", "echo/%", "echo/%ff", "%ff/k"] {
            let request = format!("GET /_groupcache/{path} HTTP/1.1\r\nHost: h\r\n\r\n");
            let reply = ask(addr, request);
            assert_eq!((reply.status, error_code(&reply)), (400, None), "{path}");
        }
    });
}

#[test]
fn absolute_target_is_reduced_to_its_path() {
    on_both(pool, |addr| {
        let request = "GET http://h:1/_groupcache/echo/k HTTP/1.1\r\nHost: h:1\r\n\r\n";
        assert_eq!(ask(addr, request).value(), "k");
    });
}

#[test]
fn path_outside_the_base_is_404_without_a_code() {
    on_both(pool, |addr| {
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
fn error_responses_have_kind_and_text() {
    on_both(pool, |addr| {
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
fn getter_panic_is_reported_and_connection_stays_open() {
    on_both(pool, |addr| {
        let mut client = Client::sending(addr, get("panic"));
        let reply = client.reply();
        assert_eq!((reply.status, error_code(&reply)), (503, Some("panicked")));
        client.send(get("next"));
        assert_eq!(client.reply().value(), "next");
    });
}

#[test]
fn other_methods_are_405_with_allow() {
    on_both(pool, |addr| {
        for method in ["POST", "OPTIONS", "BREW"] {
            let request = get("k").replace("GET", method);
            let reply = ask(addr, request);
            assert_eq!(
                (reply.status, reply.header("Allow")),
                (405, Some("GET, PUT, DELETE"))
            );
        }
        let mut client = Client::sending(addr, get("k").replace("GET", "HEAD"));
        assert_eq!(client.reply_head().status, 405);
        client.send(get("next"));
        assert_eq!(
            client.reply().value(),
            "next",
            "no body between the responses"
        );
    });
}

#[test]
fn timeout_header_becomes_a_deadline() {
    on_both(pool, |addr| {
        let within = |key: &str, timeout: &str| {
            let lines = format!("Host: h\r\nlarder-timeout-ms: {timeout}");
            ask(addr, get(key).replace("Host: h", &lines))
        };
        assert_eq!(within("deadline%3F", "10000").value(), "some");
        let spent = within("spent", "0");
        assert_eq!((spent.status, error_code(&spent)), (504, Some("deadline")));
        for timeout in ["", "-1", "1.5", "1s", "99999999999999999999"] {
            assert_eq!(within("k", timeout).status, 400, "{timeout:?}");
        }
    });
    on_both(pool, |addr| {
        assert_eq!(ask(addr, get("deadline%3F")).value(), "none");
    });
}

#[test]
fn expiring_value_has_ttl_and_wall_clock_expiry() {
    on_both(pool, |addr| {
        let reply = ask(addr, get("mortal"));
        let decoded = reply.decoded();
        let ttl = decoded.ttl_nanos.expect("a time to live");
        assert!((50_000_000_000..=60_000_000_000).contains(&ttl), "{ttl}");
        let expire = Duration::from_nanos(decoded.expire.expect("a time").unsigned_abs());
        let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let from_now = expire - since_epoch.expect("after 1970");
        assert!((50..=60).contains(&from_now.as_secs()), "{from_now:?}");
        let immortal = ask(addr, get("immortal"));
        let decoded = immortal.decoded();
        assert_eq!((decoded.ttl_nanos, decoded.expire), (None, None));
    });
}

#[test]
fn each_value_has_its_age() {
    on_both(pool, |addr| {
        let age = || ask(addr, get("aging")).decoded().age_ms.expect("an age");
        assert_eq!(age(), 0, "the load began after the request");
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_millis(20) {
            thread::sleep(Duration::from_millis(5));
        }
        assert!(age() >= 20);
        let reply = post(addr, "echo", &many_request(&["aging", "none"], 1000));
        let body = &reply.body;
        let message = GetManyResponse::from_reader(&mut BytesReader::from_bytes(body), body)
            .expect("a GetManyResponse");
        assert!(
            matches!(message.age_ms[..], [age] if age >= 20),
            "{:?}",
            message.age_ms
        );
    });
}

#[test]
fn connection_header_of_the_client_is_respected() {
    on_both(pool, |addr| {
        let mut client = Client::connect(addr);
        for key in ["a", "b", "missing", "c"] {
            client.send(get(key));
            let reply = client.reply();
            assert_eq!(reply.header("Connection"), None, "{key}");
        }
        client.send(get("last").replace("Host: h", "Host: h\r\nConnection: close"));
        let reply = client.reply();
        assert_eq!(
            (reply.value().as_str(), reply.header("Connection")),
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
fn pipelined_requests_are_answered_in_order() {
    on_both(pool, |addr| {
        let requests: String = (0..100).map(|n| get(&n.to_string())).collect();
        let mut client = Client::sending(addr, requests);
        for n in 0..100 {
            assert_eq!(client.reply().value(), n.to_string());
        }
    });
}

#[test]
fn body_of_a_get_is_skipped() {
    on_both(pool, |addr| {
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
fn ambiguous_requests_are_refused() {
    on_both(pool, |addr| {
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
fn announced_body_over_the_limit_is_refused_before_it_is_sent() {
    on_both(pool, |addr| {
        let announced = get("k").replace("Host: h", "Host: h\r\nContent-Length: 2000000");
        assert_eq!(ask(addr, announced).status, 413);
    });
}

#[test]
fn context_hook_gets_the_request() {
    let hooked = || {
        pool_with(|builder| {
            builder.context(|request| {
                let id = request.header("x-request-id").unwrap_or_default();
                assert!(id != "panic", "a hook that panics");
                Context::background().with_value(RequestId(id.to_owned()))
            })
        })
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

/// Sends a request for several keys of `group`, and returns the values of the response.
fn ask_many(addr: SocketAddr, group: &str, keys: &[&str], max_bytes: u64) -> Vec<Option<String>> {
    let reply = post(addr, group, &many_request(keys, max_bytes));
    assert_eq!(reply.status, 200, "{reply:?}");
    assert_eq!(reply.header("Content-Type"), Some(PROTOBUF));
    let message =
        GetManyResponse::from_reader(&mut BytesReader::from_bytes(&reply.body), &reply.body)
            .expect("a GetManyResponse");
    let found = message.found.expect("the states of the keys");
    assert_eq!(found.len(), keys.len());
    assert_eq!(
        found.iter().filter(|&&state| state == 2).count(),
        message.ttl_nanos.len(),
        "a time to live for each value that has one"
    );
    let mut values = message.keyed_values.iter();
    let mut value = |key: &str| {
        let value = values
            .next()?
            .strip_prefix(&key_hash(group, key).to_le_bytes())?;
        String::from_utf8(value.to_vec()).ok()
    };
    let slots = found.iter().zip(keys).map(|(&state, key)| {
        let value = (state > 0).then(|| value(key));
        value.map(|value| value.expect("a value for each key that was found"))
    });
    let slots = slots.collect();
    assert_eq!(values.next(), None, "no more values than keys");
    slots
}

fn many_request(keys: &[&str], max_bytes: u64) -> Vec<u8> {
    let message = GetManyRequest {
        keys: keys.iter().map(|&key| key.into()).collect(),
        max_bytes: Some(max_bytes),
        load: None,
        known: None,
    };
    message.encode().expect("it encodes")
}

fn post(addr: SocketAddr, group: &str, body: &[u8]) -> Reply {
    let length = body.len();
    let head = format!(
        "POST /_groupcache/{group} HTTP/1.1\r\nHost: h\r\nContent-Length: {length}\r\n\r\n"
    );
    ask(addr, [head.as_bytes(), body].concat())
}

#[test]
fn batch_is_answered_from_the_store_alone() {
    on_both(pool, |addr| {
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
fn batch_is_bounded_in_keys_and_bytes() {
    on_both(pool, |addr| {
        let (long, longer) = ("v".repeat(3000), "w".repeat(2000));
        for key in ["a", "b", &long, &longer] {
            ask(addr, get(key));
        }
        let count = |keys: &[&str], max_bytes| {
            let values = ask_many(addr, "echo", keys, max_bytes);
            values.into_iter().flatten().count()
        };
        // The pool allows 8 keys and 4096 bytes.
        assert_eq!(count(&["a"; 20], 10_000), 8);
        assert_eq!(count(&[&long, &longer, "a"], u64::MAX), 2);
        assert_eq!(count(&["a", "b"], 1), 1);
        assert_eq!(count(&["a", "b"], 0), 0);
    });
}

#[test]
fn malformed_batches_are_refused() {
    on_both(pool, |addr| {
        let body = many_request(&["a"], 1000);
        let reply = post(addr, "unknown", &body);
        assert_eq!(
            (reply.status, error_code(&reply)),
            (404, Some("unknown-group"))
        );
        let many = many_request(&[""; 5000], 1000);
        for wrong in [&b"<html>"[..], &body[..2], &many] {
            let reply = post(addr, "echo", wrong);
            assert_eq!((reply.status, error_code(&reply)), (400, None));
        }
        assert_eq!(post(addr, "%zz", &body).status, 400);
        assert_eq!(post(addr, "", &body).status, 405);
    });
}
