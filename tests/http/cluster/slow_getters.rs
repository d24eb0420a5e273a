//! Getters that take longer than an exchange, and that stop at the end of their context.

use std::net::TcpListener;
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;

use larder::http::{HttpPool, Server};
use larder::{BoxError, ByteView, Context, Group, Registry, Sink, bulk_fn};

use super::PATIENCE;
use crate::server::support::eventually;

/// The source of the values, which answers once it is open.
#[derive(Default)]
struct Origin {
    state: Mutex<OriginState>,
    opened: Condvar,
}

#[derive(Default)]
struct OriginState {
    is_open: bool,
    runs: usize,
}

impl Origin {
    /// Waits until the origin is open, or the context of the getter has ended.
    fn wait(&self, ctx: &Context) -> Result<(), BoxError> {
        let mut state = self.state.lock().unwrap();
        state.runs += 1;
        while !state.is_open {
            if let Some(ended) = ctx.err() {
                return Err(ended.into());
            }
            let step = Duration::from_millis(5);
            state = self.opened.wait_timeout(state, step).unwrap().0;
        }
        Ok(())
    }

    fn open(&self) {
        self.state.lock().unwrap().is_open = true;
        self.opened.notify_all();
    }

    fn runs(&self) -> usize {
        self.state.lock().unwrap().runs
    }
}

struct Node {
    pool: HttpPool,
    group: Group,
    _server: Server,
}

fn node(origin: &Arc<Origin>, is_bulk: bool) -> Node {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let registry = Registry::new();
    let pool = HttpPool::builder(&url).registry(&registry);
    let pool = pool.exchange_timeout(Duration::from_secs(1));
    let pool = pool.connect_timeout(PATIENCE).build().unwrap();
    let group = Group::builder("colors").registry(&registry);
    let origin = origin.clone();
    let group = match is_bulk {
        true => group.build_bulk(bulk_fn(move |ctx, keys, sinks| {
            origin.wait(ctx)?;
            for (key, sink) in keys.iter().zip(sinks) {
                sink.set_str(key)?;
            }
            Ok(())
        })),
        false => group.build(
            move |ctx: &Context, key: &str, dest: &mut dyn Sink| -> Result<(), BoxError> {
                origin.wait(ctx)?;
                Ok(dest.set_str(key)?)
            },
        ),
    };
    Node {
        group: group.unwrap(),
        _server: pool.server().serve_listener(listener).unwrap(),
        pool,
    }
}

/// Runs `get` at one node for keys of another one. The origin opens after the owner has been asked three
/// times. Returns the runs of the getter.
fn runs(is_bulk: bool, get: fn(&Group, &[String]) -> Vec<larder::Result<ByteView>>) -> usize {
    let origin = Arc::<Origin>::default();
    let nodes = [(); 2].map(|()| node(&origin, is_bulk));
    let urls = nodes.each_ref().map(|node| node.pool.self_url());
    for node in &nodes {
        node.pool.set(&urls).unwrap();
    }
    let of_other = |key: &String| nodes[0].pool.owner(key).as_deref() == Some(&*urls[1]);
    let keys: Vec<String> = (0..100)
        .map(|n| format!("key {n}"))
        .filter(of_other)
        .collect();
    let asked = || nodes[1].group.stats().server_requests;
    thread::scope(|scope| {
        let got = scope.spawn(|| get(&nodes[0].group, &keys));
        eventually(|| asked() >= if is_bulk { 3 * keys.len() as u64 } else { 3 });
        origin.open();
        let values = got.join().unwrap();
        for (value, key) in values.into_iter().zip(&keys) {
            assert_eq!(value.unwrap(), key.as_str());
        }
    });
    origin.runs()
}

#[test]
fn getter_that_stops_at_its_deadline_runs_once_for_a_patient_caller() {
    let without_deadline = |group: &Group, keys: &[String]| vec![group.get(&keys[0])];
    assert_eq!(runs(false, without_deadline), 1);
    let with_deadline = |group: &Group, keys: &[String]| {
        let ctx = Context::background().with_timeout(PATIENCE);
        vec![group.get_with(&ctx, &keys[0])]
    };
    assert_eq!(runs(false, with_deadline), 1);
}

#[test]
fn bulk_getter_that_stops_at_its_deadline_runs_once_for_a_patient_caller() {
    let get = |group: &Group, keys: &[String]| group.get_many(&Context::background(), keys);
    assert_eq!(runs(true, get), 1);
}
