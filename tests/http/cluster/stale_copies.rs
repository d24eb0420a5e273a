//! Copies that came in an answer for several keys, served after their time to live.

use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use larder::http::{HttpPool, Server};
use larder::{Clock, Context, ErrorKind, Group, PeerPicker, Registry, Result};

use super::PATIENCE;

const SECOND: Duration = Duration::from_secs(1);

struct Node {
    pool: HttpPool,
    group: Group,
    server: Option<Server>,
}

/// A node whose values are fresh for 10 s, and stale for `stale` after that.
fn node(clock: &Clock, stale: Duration, fails: &Arc<AtomicBool>) -> Node {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let registry = Registry::new();
    let builder = HttpPool::builder(&url).registry(&registry);
    let builder = builder.connect_timeout(PATIENCE).exchange_timeout(PATIENCE);
    let pool = builder.build().unwrap();
    let fails = fails.clone();
    let group = Group::builder("colors")
        .registry(&registry)
        .clock(clock.clone())
        .time_to_live(10 * SECOND)
        .time_to_live_jitter(0.0)
        .stale_if_error(stale)
        .build_with(move |_, key| match fails.load(SeqCst) {
            true => Err("the origin is down".into()),
            false => Ok::<_, larder::BoxError>(format!("the color {key}")),
        })
        .unwrap();
    let server = pool.server().serve_listener(listener).unwrap();
    Node {
        pool,
        group,
        server: Some(server),
    }
}

#[test]
fn copies_of_several_keys_are_served_for_as_long_as_their_owner_serves_them() {
    let (clock, fails) = (Clock::manual(), Arc::new(AtomicBool::new(false)));
    let asking = node(&clock, 100 * SECOND, &fails);
    let mut owner = node(&clock, 20 * SECOND, &fails);
    let urls = [asking.pool.self_url(), owner.pool.self_url()];
    asking.pool.set(urls).unwrap();
    owner.pool.set(urls).unwrap();
    let keys = (0..).map(|n: u32| format!("key-{n}"));
    let of_owner = |key: &String| asking.pool.pick_peer(key).is_some();
    let keys: Vec<String> = keys.filter(of_owner).take(3).collect();
    let get = || asking.group.get_many(&Context::background(), &keys);
    let all_are_values = |results: Vec<Result<larder::ByteView>>| {
        for (key, result) in keys.iter().zip(results) {
            assert_eq!(result.expect("a value"), format!("the color {key}"));
        }
    };
    all_are_values(get());
    assert_eq!(owner.group.stats().local_loads, 3);

    // Neither the owner nor the origin answers any more.
    drop(owner.server.take());
    fails.store(true, SeqCst);
    clock.advance(29 * SECOND);
    all_are_values(get());
    assert_eq!(asking.group.stats().stale_hits, 3);
    clock.advance(2 * SECOND);
    for result in get() {
        assert_eq!(result.expect_err("no value").kind(), ErrorKind::Getter);
    }
}
