//! A get of 100 keys that no node has cached, in a cluster of three nodes over loopback, all in this
//! process. A getter takes 10 ms.
//!
//! `bulk` is one `get_many` with a bulk getter, which takes 10 ms for any number of keys; `getter` is one
//! `get_many` with a getter for single keys; `single` is 100 gets one after the other. Each round uses new
//! keys.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use super::common::{Report, rounds};
use larder::http::{HttpPool, Server};
use larder::{BoxError, Context, Group, Registry, Sink, bulk_fn, value_fn};

const KEYS: usize = 100;
const LOAD: Duration = Duration::from_millis(10);

struct Node {
    bulk: Group,
    getter: Group,
    _pool: HttpPool,
    _server: Server,
}

pub fn run(report: &mut Report) {
    let nodes = cluster();
    let ctx = Context::background().with_timeout(Duration::from_secs(60));
    let mut round_of_keys = 0;
    let mut keys = || {
        round_of_keys += 1;
        let key = |n| format!("key {n} of round {round_of_keys}");
        (0..KEYS).map(key).collect::<Vec<String>>()
    };
    let mut time = |implementation, report: Option<&mut Report>, get: &dyn Fn(&[String])| {
        let keys = keys();
        let began = Instant::now();
        get(&keys);
        let ms = began.elapsed().as_secs_f64() * 1000.0;
        if let Some(report) = report {
            report.add("cold-many-100", implementation, "ms", "ms", ms);
        }
    };
    let all = |group: &Group, keys: &[String]| {
        let values = group.get_many(&ctx, keys);
        assert!(values.iter().all(Result::is_ok), "a value for each key");
    };
    let bulk = |keys: &[String]| all(&nodes[0].bulk, keys);
    let getter = |keys: &[String]| all(&nodes[0].getter, keys);
    let single = |keys: &[String]| {
        for key in keys {
            nodes[0].getter.get_with(&ctx, key).expect("a value");
        }
    };
    // Opens the connections, and starts the threads.
    time("bulk", None, &bulk);
    time("getter", None, &getter);
    for _ in 0..rounds() {
        time("bulk", Some(report), &bulk);
        time("getter", Some(report), &getter);
        time("single", Some(report), &single);
    }
}

fn cluster() -> Vec<Node> {
    let listen = |_| TcpListener::bind("127.0.0.1:0").expect("a port");
    let listeners: Vec<_> = (0..3).map(listen).collect();
    let url = |listener: &TcpListener| format!("http://{}", listener.local_addr().expect("bound"));
    let urls: Vec<String> = listeners.iter().map(url).collect();
    let node = |(listener, url): (TcpListener, &String)| {
        let registry = Registry::new();
        let builder = HttpPool::builder(url).registry(&registry);
        let pool = builder.build().expect("a pool");
        pool.set(&urls).expect("peers");
        let bulk = bulk_fn(|_, keys, sinks| {
            std::thread::sleep(LOAD);
            for (key, sink) in keys.iter().zip(sinks) {
                sink.set_str(key)?;
            }
            Ok(())
        });
        let getter = value_fn(|_, key| {
            std::thread::sleep(LOAD);
            Ok::<_, BoxError>(key.to_owned())
        });
        let group = |name| Group::builder(name).registry(&registry);
        Node {
            bulk: group("bulk").build_bulk(bulk).expect("a group"),
            getter: group("getter").build(getter).expect("a group"),
            _server: pool.server().serve_listener(listener).expect("a server"),
            _pool: pool,
        }
    };
    listeners.into_iter().zip(&urls).map(node).collect()
}
