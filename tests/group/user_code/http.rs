//! User code in unusual places, over HTTP: pools that are dropped and made again, servers that are
//! shut down by their own requests, hooks and hashes that panic.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use larder::http::{HttpPool, HttpPoolBuilder, Request, Response, Server};
use larder::{Clock, Context, ErrorKind, Group, Registry, Sink, getter_fn};

use crate::common::*;

use super::{DropPanics, panic_quietly, texts};

const OWN: &str = "http://127.0.0.1:1";

fn builder(registry: &Registry) -> HttpPoolBuilder {
    HttpPool::builder(OWN).registry(registry)
}

/// A group whose value is the name of the process that ran the getter.
fn naming(registry: &Registry, name: &'static str) -> Group {
    let getter = move |_: &Context, _: &str, dest: &mut dyn Sink| Ok(dest.set_str(name)?);
    registry
        .new_group("names", 1 << 20, getter)
        .expect("a group")
}

/// A server that stands for another process, and its URL.
fn other() -> (Server, String) {
    let registry = Registry::new();
    naming(&registry, "the peer");
    let pool = builder(&registry).build().expect("a pool");
    let server = pool.serve("127.0.0.1:0").expect("a server");
    let url = format!("http://{}", server.local_addr());
    (server, url)
}

/// Sends a GET on a connection of its own. Returns the whole response.
fn fetch(addr: SocketAddr, path: &str, header: &str) -> String {
    let mut stream = TcpStream::connect(addr).expect("it listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("valid");
    let head = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{header}\r\n");
    stream.write_all(head.as_bytes()).expect("it reads");
    let mut response = Vec::new();
    // If the connection was cut, the response is the part that arrived before.
    let _ = stream.read_to_end(&mut response);
    String::from_utf8_lossy(&response).into_owned()
}

/// Does the same on another thread, so that a hang fails the test.
fn fetching(addr: SocketAddr, path: &'static str, header: &'static str) -> Call<String> {
    start(move || fetch(addr, path, header))
}

// Pools.

#[test]
fn second_pool_works_after_the_first_was_dropped() {
    let (_server, url) = other();
    let registry = Registry::new();
    let group = naming(&registry, "this process");
    for round in 0..3 {
        let pool = builder(&registry).build().expect("no pool is registered");
        let clone = pool.clone();
        pool.set([&url]).expect("a URL");
        assert_eq!(
            group.get(&format!("a{round}")).expect("a value"),
            "the peer"
        );
        let second = builder(&registry).build().map(drop);
        assert_eq!(kind(second), ErrorKind::AlreadyRegistered);
        drop(pool);
        assert_eq!(
            group.get(&format!("b{round}")).expect("a value"),
            "the peer"
        );
        drop(clone);
        assert_eq!(
            group.get(&format!("c{round}")).expect("a value"),
            "this process"
        );
    }
    registry
        .register_peer_picker(Arc::new(larder::NoPeers))
        .expect("no picker is registered");
    let pool = builder(&registry).build().map(drop);
    assert_eq!(kind(pool), ErrorKind::AlreadyRegistered);
}

#[test]
fn refused_pool_leaves_the_first_pool_registered() {
    let registry = Registry::new();
    let first = builder(&registry).build().expect("a pool");
    for _ in 0..2 {
        let second = builder(&registry).build().map(drop);
        assert_eq!(kind(second), ErrorKind::AlreadyRegistered);
    }
    drop(first);
    let invalid = HttpPool::builder(OWN)
        .base_path("x")
        .registry(&registry)
        .build();
    assert_eq!(kind(invalid.map(drop)), ErrorKind::InvalidBasePath);
    drop(builder(&registry).build().expect("no pool is registered"));
}

#[test]
fn server_keeps_the_pool_registered_until_its_shutdown() {
    let (_other, url) = other();
    let registry = Registry::new();
    let group = naming(&registry, "this process");
    let pool = builder(&registry).build().expect("a pool");
    pool.set([&url]).expect("a URL");
    let server = pool.serve("127.0.0.1:0").expect("a server");
    drop(pool);
    assert_eq!(group.get("one").expect("a value"), "the peer");
    let answer = fetch(server.local_addr(), "/_groupcache/names/key", "");
    assert!(answer.contains("this process"), "{answer}");
    assert_eq!(
        kind(builder(&registry).build().map(drop)),
        ErrorKind::AlreadyRegistered
    );
    server.shutdown(PATIENCE).expect("nothing is under way");
    // The handle of the server is not dropped yet.
    assert_eq!(group.get("two").expect("a value"), "this process");
    let pool = builder(&registry).build().expect("no pool is registered");
    let server = pool.serve("127.0.0.1:0").expect("a server");
    drop((pool, server));
    drop(builder(&registry).build().expect("no pool is registered"));
}

#[test]
fn hung_request_does_not_keep_the_pool_of_a_stopped_server_registered() {
    let registry = Registry::new();
    let (running, gate) = (Gate::new(), Gate::new());
    let (entered, end) = (running.clone(), gate.clone());
    let getter = move |_: &Context, _: &str, dest: &mut dyn Sink| {
        entered.open();
        end.pass();
        Ok(dest.set_str("late")?)
    };
    registry
        .new_group("hangs", 1 << 20, getter)
        .expect("a group");
    let pool = builder(&registry).build().expect("a pool");
    let server = pool.serve("127.0.0.1:0").expect("a server");
    let request = fetching(server.local_addr(), "/_groupcache/hangs/key", "");
    running.pass();
    drop(pool);
    assert_eq!(
        kind(server.shutdown(millis(10))),
        ErrorKind::DeadlineExceeded
    );
    drop(builder(&registry).build().expect("no pool is registered"));
    gate.open();
    request.end();
}

#[test]
fn get_that_asks_a_peer_succeeds_after_the_pool_was_dropped() {
    let theirs = Registry::new();
    let (running, gate) = (Gate::new(), Gate::new());
    let (entered, end) = (running.clone(), gate.clone());
    let getter = move |_: &Context, _: &str, dest: &mut dyn Sink| {
        entered.open();
        end.pass();
        Ok(dest.set_str("the peer")?)
    };
    theirs.new_group("names", 1 << 20, getter).expect("a group");
    let their_pool = builder(&theirs).build().expect("a pool");
    let server = their_pool.serve("127.0.0.1:0").expect("a server");

    let registry = Registry::new();
    let group = naming(&registry, "this process");
    let pool = builder(&registry)
        .exchange_timeout(PATIENCE)
        .build()
        .expect("a pool");
    pool.set([format!("http://{}", server.local_addr())])
        .expect("a URL");
    let call = start({
        let group = group.clone();
        move || group.get("key")
    });
    running.pass();
    drop(pool);
    assert_eq!(group.get("other").expect("a value"), "this process");
    gate.open();
    assert_eq!(call.end().expect("a value"), "the peer");
}

#[test]
fn pool_is_unregistered_after_peers_are_set_while_its_handles_are_dropped() {
    let (_server, url) = other();
    let registry = Registry::new();
    let group = naming(&registry, "this process");
    for round in 0..20 {
        let pool = builder(&registry).build().expect("no pool is registered");
        let calls = [0, 1, 2, 3].map(|n| {
            let (pool, url, group) = (pool.clone(), url.clone(), group.clone());
            start(move || {
                pool.set([url.as_str(), OWN]).expect("URLs");
                group.get(&format!("{round} {n}")).expect("a value");
                pool.set([url.as_str()]).expect("a URL");
                drop(pool);
            })
        });
        drop(pool);
        let [(), (), (), ()] = calls.map(Call::end);
        assert_eq!(
            group.get(&format!("{round}")).expect("a value"),
            "this process"
        );
    }
}

#[test]
fn last_handle_of_a_pool_may_be_dropped_in_a_getter_on_a_server_thread() {
    for header in ["", "larder-timeout-ms: 10000\r\n"] {
        let registry = Registry::new();
        let held: Arc<Mutex<Option<(HttpPool, Server)>>> = Arc::default();
        let own = held.clone();
        let getter = move |_: &Context, _: &str, dest: &mut dyn Sink| {
            let took = own.lock().expect("no panic").take();
            let (time, ()) = timed(|| drop(took));
            Ok(dest.set_str(&format!("dropped {}", time < seconds(2)))?)
        };
        registry
            .new_group("drops", 1 << 20, getter)
            .expect("a group");
        let pool = builder(&registry).build().expect("a pool");
        let server = pool.serve("127.0.0.1:0").expect("a server");
        let addr = server.local_addr();
        *held.lock().expect("no panic") = Some((pool, server));
        let answer = fetching(addr, "/_groupcache/drops/key", header).end();
        assert!(answer.contains("dropped true"), "{answer}");
        eventually("the registry is free", || {
            builder(&registry).build().is_ok()
        });
        assert!(TcpStream::connect(addr).is_err(), "the server has stopped");
    }
}

#[test]
fn pool_may_be_made_and_dropped_in_hooks_and_getters() {
    let registry = Registry::new();
    let own = registry.clone();
    let made: Arc<Mutex<Option<HttpPool>>> = Arc::default();
    let kept = made.clone();
    registry
        .register_server_start(move || {
            let pool = builder(&own).build().expect("no pool is registered");
            *kept.lock().expect("no panic") = Some(pool);
        })
        .expect("the first");
    let own = registry.clone();
    registry
        .register_new_group_hook(move |_| {
            assert_eq!(
                kind(builder(&own).build().map(drop)),
                ErrorKind::AlreadyRegistered
            );
        })
        .expect("the first");
    let own = registry.clone();
    let build = start({
        let registry = registry.clone();
        move || {
            registry.new_group(
                "group",
                1 << 20,
                getter_fn(move |_: &Context, key, dest| {
                    drop(made.lock().expect("no panic").take());
                    drop(builder(&own).build()?);
                    Ok(dest.set_str(key)?)
                }),
            )
        }
    });
    let group = build.end().expect("a group");
    let call = start(move || group.get("key"));
    assert_eq!(call.end().expect("a value"), "key");
    drop(builder(&registry).build().expect("no pool is registered"));
}

// Hooks that panic.

#[test]
fn hash_panic_of_a_refresh_does_not_fail_the_client_that_gets_the_old_value() {
    let (registry, clock) = (Registry::new(), Clock::manual());
    let group = Group::builder("names").registry(&registry);
    let group = group.clock(clock.clone()).time_to_live(seconds(1));
    let group = group.stale_while_revalidate(seconds(60)).build(texts());
    let panics = Arc::new(AtomicBool::new(false));
    let own = panics.clone();
    let hash = move |bytes: &[u8]| match own.load(SeqCst) {
        true => panic_quietly(),
        false => bytes.len() as u64,
    };
    let pool = builder(&registry).hash_fn(hash).build().expect("a pool");
    pool.set([OWN]).expect("a URL");
    let server = pool.serve("127.0.0.1:0").expect("a server");
    group.expect("a group").get("key").expect("a value");
    clock.advance(seconds(2));
    panics.store(true, SeqCst);
    let response = fetching(server.local_addr(), "/_groupcache/names/key", "").end();
    assert!(response.starts_with("HTTP/1.1 200"), "{response}");
}

#[test]
fn hash_panic_leaves_the_peers_unchanged() {
    let (_server, url) = other();
    let registry = Registry::new();
    let group = naming(&registry, "this process");
    let panics = Arc::new(Mutex::new(false));
    let own = panics.clone();
    let pool = builder(&registry)
        .hash_fn(move |bytes| {
            let panics = *own.lock().unwrap_or_else(|e| e.into_inner());
            if panics {
                panic_quietly()
            } else {
                bytes.len() as u64
            }
        })
        .build()
        .expect("a pool");
    pool.set([&url]).expect("a URL");
    let set_panics = |on: bool| *panics.lock().unwrap_or_else(|e| e.into_inner()) = on;
    set_panics(true);
    let set = start({
        let pool = pool.clone();
        move || pool.set([OWN])
    });
    assert!(set.outcome().is_err());
    assert_eq!(pool.urls(), [url.as_str()]);
    let get = |key: &'static str| {
        let group = group.clone();
        start(move || group.get(key))
    };
    assert!(get("key").outcome().is_err());
    set_panics(false);
    assert_eq!(get("key").end().expect("a value"), "the peer");
    pool.set([OWN]).expect("a URL");
    assert_eq!(get("other").end().expect("a value"), "this process");
}

#[test]
fn transport_hook_may_panic_or_set_peers_itself() {
    let (_server, url) = other();
    let registry = Registry::new();
    let group = naming(&registry, "this process");
    let own: Arc<OnceLock<HttpPool>> = Arc::default();
    let itself = own.clone();
    let pool = builder(&registry)
        .transport(move |peer, default| {
            let pool = itself.get().expect("the pool is made");
            match peer {
                "http://panics.example" => panic_quietly(),
                "http://sets.example" => pool.set([OWN]).expect("a URL"),
                _ => {}
            }
            default
        })
        .build()
        .expect("a pool");
    assert!(own.set(pool.clone()).is_ok());
    let set = |peers: Vec<String>| {
        let pool = pool.clone();
        start(move || pool.set(peers))
    };
    set(vec![url.clone()]).end().expect("a URL");
    let panicked = set(vec![OWN.into(), "http://panics.example".into()]);
    assert!(panicked.outcome().is_err());
    assert_eq!(pool.urls(), [url.as_str()]);
    assert_eq!(group.get("key").expect("a value"), "the peer");
    set(vec!["http://sets.example".into(), url.clone()])
        .end()
        .expect("URLs");
    assert_eq!(
        pool.urls().len(),
        2,
        "the last call that returns sets the list"
    );
}

#[test]
fn panic_within_a_request_affects_only_that_request() {
    let registry = Registry::new();
    let getter = getter_fn(|_: &Context, key, dest| match key {
        "panics" => panic_quietly(),
        "payload" => resume_unwind(Box::new(DropPanics)),
        _ => Ok(dest.set_str("fine")?),
    });
    registry
        .new_group("group", 1 << 20, getter)
        .expect("a group");
    let pool = builder(&registry)
        .context(|request| match request.query() {
            Some("panic") => panic_quietly(),
            Some("payload") => resume_unwind(Box::new(DropPanics)),
            Some("value") => Context::background().with_value(DropPanics),
            _ => Context::background(),
        })
        .build()
        .expect("a pool");
    let server = pool
        .server()
        .fallback(|request: &Request<'_>| match request.path() {
            "/payload" => resume_unwind(Box::new(DropPanics)),
            _ => Response::text(200, "page"),
        })
        .bind("127.0.0.1:0")
        .expect("a server");
    // All requests use one connection, which stays open.
    let mut stream = TcpStream::connect(server.local_addr()).expect("it listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("valid");
    for (path, status) in [
        ("/_groupcache/group/panics", "503"),
        ("/_groupcache/group/payload", "503"),
        ("/_groupcache/group/key?panic", "500"),
        ("/_groupcache/group/key?payload", "500"),
        ("/_groupcache/group/key?value", "200"),
        ("/payload", "500"),
        ("/page", "200"),
        ("/_groupcache/group/key", "200"),
    ] {
        let head = format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n");
        stream.write_all(head.as_bytes()).expect("it reads");
        let mut buffer = [0; 4096];
        let len = stream.read(&mut buffer).expect("a response");
        let line = String::from_utf8_lossy(&buffer[..len.min(12)]).into_owned();
        assert_eq!(line, format!("HTTP/1.1 {status}"), "{path}");
    }
    assert_eq!(server.connections(), 1);
}

// Servers that are shut down by their own requests.

/// A server whose page `/quit` runs a function with the server itself.
fn quitting(quit: fn(Server) -> String) -> (SocketAddr, Arc<Mutex<Option<Server>>>) {
    let held: Arc<Mutex<Option<Server>>> = Arc::default();
    let own = held.clone();
    let registry = Registry::new();
    let server = builder(&registry)
        .build()
        .expect("a pool")
        .server()
        .fallback(move |_: &Request<'_>| {
            let server = own.lock().expect("no panic").take();
            Response::text(200, server.map_or("gone".into(), quit))
        })
        .bind("127.0.0.1:0")
        .expect("a server");
    let addr = server.local_addr();
    *held.lock().expect("no panic") = Some(server);
    (addr, held)
}

#[test]
fn handler_may_shut_down_or_drop_its_own_server() {
    let quits: [fn(Server) -> String; 3] = [
        |server| format!("ended {:?}", server.shutdown(PATIENCE).is_ok()),
        |server| {
            drop(server);
            "ended true".into()
        },
        |server| {
            let first = server.shutdown(Duration::MAX);
            let second = server.shutdown(Duration::ZERO);
            server.wait();
            format!("ended {:?}", first.is_ok() && second.is_ok())
        },
    ];
    for quit in quits {
        let (addr, _held) = quitting(quit);
        let (time, answer) = timed(|| fetching(addr, "/quit", "").end());
        assert!(
            answer.contains("200 OK") && answer.ends_with("ended true"),
            "{answer}"
        );
        assert!(time < seconds(2), "{time:?}");
        assert!(TcpStream::connect(addr).is_err(), "the server has stopped");
    }
}

#[test]
fn handlers_that_shut_down_at_the_same_time_do_not_wait_for_each_other() {
    let server: Arc<OnceLock<Server>> = Arc::default();
    let (own, both) = (server.clone(), std::sync::Barrier::new(2));
    let made = builder(&Registry::new())
        .build()
        .expect("a pool")
        .server()
        .fallback(move |_: &Request<'_>| {
            both.wait();
            let server = own.get().expect("it is made");
            Response::text(200, format!("ended {}", server.shutdown(PATIENCE).is_ok()))
        })
        .bind("127.0.0.1:0")
        .expect("a server");
    let addr = made.local_addr();
    assert!(server.set(made).is_ok());
    let (time, answers) = timed(|| {
        let calls = [(); 2].map(|()| fetching(addr, "/quit", ""));
        calls.map(Call::end)
    });
    for answer in answers {
        assert!(answer.ends_with("ended true"), "{answer}");
    }
    assert!(time < seconds(2), "{time:?}");
    server
        .get()
        .expect("set")
        .shutdown(PATIENCE)
        .expect("all have ended");
    assert_eq!(server.get().expect("set").connections(), 0);
}

#[test]
fn shutdown_waits_for_a_shutdown_by_a_request_of_the_server() {
    let server: Arc<OnceLock<Server>> = Arc::default();
    let (own, (running, gate)) = (server.clone(), (Gate::new(), Gate::new()));
    let (entered, end) = (running.clone(), gate.clone());
    let made = builder(&Registry::new())
        .build()
        .expect("a pool")
        .server()
        .fallback(move |_: &Request<'_>| {
            let done = own.get().expect("it is made").shutdown(PATIENCE).is_ok();
            entered.open();
            end.pass();
            Response::text(200, format!("ended {done}"))
        })
        .bind("127.0.0.1:0")
        .expect("a server");
    let addr = made.local_addr();
    assert!(server.set(made).is_ok());
    let answer = fetching(addr, "/quit", "");
    running.pass();
    let early = server.get().expect("set").shutdown(millis(10));
    assert_eq!(kind(early), ErrorKind::DeadlineExceeded);
    gate.open();
    // The connection was cut.
    answer.end();
    eventually("the thread has ended", || {
        server.get().expect("set").shutdown(millis(10)).is_ok()
    });
}

#[test]
fn getter_may_shut_down_the_server_of_its_request() {
    for header in ["", "larder-timeout-ms: 15000\r\n"] {
        let held: Arc<Mutex<Option<Server>>> = Arc::default();
        let own = held.clone();
        let registry = Registry::new();
        let getter = move |_: &Context, _: &str, dest: &mut dyn Sink| {
            let server = own.lock().expect("no panic").take().expect("one request");
            let (time, result) = timed(|| server.shutdown(PATIENCE));
            Ok(dest.set_str(&format!("ended {}", result.is_ok() && time < seconds(2)))?)
        };
        registry
            .new_group("quits", 1 << 20, getter)
            .expect("a group");
        let pool = builder(&registry).build().expect("a pool");
        let server = pool.serve("127.0.0.1:0").expect("a server");
        let addr = server.local_addr();
        *held.lock().expect("no panic") = Some(server);
        let answer = fetching(addr, "/_groupcache/quits/key", header).end();
        assert!(
            answer.contains("200 OK") && answer.contains("ended true"),
            "{answer}"
        );
    }
}
