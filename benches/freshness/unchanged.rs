//! The bytes between three nodes for values that expire, and have not changed or have hardly changed.
//!
//! Each node is reached through a relay that counts bytes. All nodes share a clock, a manual one unless
//! `LARDER_REAL_TIME` is 1. In each round all values expire, and each node gets all of them.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::thread;
use std::time::Duration;

use larder::http::{HttpPool, Server, Transport, TransportRequest, TransportResponse};
use larder::{BoxError, Clock, Context, Group, Registry, Result, Value};

use super::common::Report;
use super::number;

const LEN: usize = 100 << 10;
const TTL: Duration = Duration::from_secs(1);

/// The rounds with transfers of all values. Each moves 200 MB by default.
const PLAIN_ROUNDS: usize = 2;

pub fn run(report: &mut Report) {
    let values = number("LARDER_VALUES", 1000);
    let expiries = number("LARDER_EXPIRIES", 60);
    let plain = Cluster::start(values, false).bytes_of_round(PLAIN_ROUNDS, 0);
    let cluster = Cluster::start(values, true);
    let unchanged = cluster.bytes_of_round(expiries, 0);
    let sent = cluster.origin.sent.load(SeqCst) - values as u64;
    let changing = cluster.bytes_of_round(expiries, values.div_ceil(100));
    let mut add = |metric, unit, value| report.add("unchanged", "larder", metric, unit, value);
    add("wire_ratio", "ratio", unchanged / plain);
    add("wire_ratio_changing", "ratio", changing / plain);
    add("plain_mb", "MB", plain / 1e6);
    add("getter_values", "values", sent as f64);
}

fn is_real_time() -> bool {
    number("LARDER_REAL_TIME", 0) == 1
}

/// The source: a version of each value, which is its etag.
struct Origin {
    versions: Vec<AtomicU64>,
    /// The values that the getters of all nodes have set.
    sent: AtomicU64,
}

impl Origin {
    fn load(&self, ctx: &Context, key: &str) -> Result<Value, BoxError> {
        let version = self.versions[key.parse::<usize>()?].load(SeqCst);
        let etag = version.to_string();
        if ctx.etag() == Some(&etag) {
            return Ok(Value::not_modified());
        }
        self.sent.fetch_add(1, SeqCst);
        Ok(Value::new(vec![version as u8; LEN]).etag(etag))
    }
}

struct Cluster {
    clock: Clock,
    origin: Arc<Origin>,
    groups: Vec<Group>,
    bytes: Arc<AtomicU64>,
    _nodes: Vec<(HttpPool, Server)>,
}

impl Cluster {
    /// `is_conditional` is whether nodes ask each other, and the source, for changes only.
    fn start(values: usize, is_conditional: bool) -> Cluster {
        let clock = match is_real_time() {
            true => Clock::system(),
            false => Clock::manual(),
        };
        let bytes = Arc::<AtomicU64>::default();
        let origin = Arc::new(Origin {
            versions: (0..values).map(|_| AtomicU64::new(0)).collect(),
            sent: AtomicU64::new(0),
        });
        let listen = || TcpListener::bind("127.0.0.1:0").expect("a port");
        let relays: Vec<TcpListener> = (0..3).map(|_| listen()).collect();
        let url = |relay: &TcpListener| format!("http://{}", relay.local_addr().expect("bound"));
        let urls: Vec<String> = relays.iter().map(url).collect();
        let (mut groups, mut nodes) = (Vec::new(), Vec::new());
        for (relay, url) in relays.into_iter().zip(&urls) {
            let registry = Registry::new();
            let mut pool = HttpPool::builder(url).registry(&registry);
            if !is_conditional {
                pool = pool.transport(|_, inner| Arc::new(Unconditional(inner)));
            }
            let pool = pool.build().expect("a pool");
            pool.set(&urls).expect("peers");
            let loading = origin.clone();
            let group = Group::builder("values")
                .registry(&registry)
                .clock(clock.clone())
                .max_capacity((values * LEN * 2) as u64 + (64 << 20))
                .hot_fraction(0.9)
                .time_to_live(TTL)
                .keep_for_revalidation(60 * TTL)
                .build_with(move |ctx, key| loading.load(ctx, key));
            groups.push(group.expect("a group"));
            let behind = listen();
            relay_to(relay, behind.local_addr().expect("bound"), &bytes);
            let server = pool.server().serve_listener(behind).expect("a server");
            nodes.push((pool, server));
        }
        let cluster = Cluster {
            clock,
            origin,
            groups,
            bytes,
            _nodes: nodes,
        };
        cluster.get_all();
        cluster
    }

    /// Ends the time to live of all values.
    fn expire(&self) {
        match is_real_time() {
            true => thread::sleep(TTL),
            false => self.clock.advance(TTL),
        }
    }

    /// Gets all values at all nodes, and checks that they are the present ones.
    fn get_all(&self) {
        for group in &self.groups {
            for (key, version) in self.origin.versions.iter().enumerate() {
                let value = group.get(&key.to_string()).expect("a value");
                assert_eq!((value.len(), value[0]), (LEN, version.load(SeqCst) as u8));
            }
        }
    }

    /// The mean number of bytes between the nodes in a round, if `changed` values change before
    /// each round.
    fn bytes_of_round(&self, rounds: usize, changed: usize) -> f64 {
        let before = self.bytes.load(SeqCst);
        let versions = self.origin.versions.iter().cycle();
        let mut changing = versions.clone();
        for _ in 0..rounds {
            let changed = changing.by_ref().take(changed);
            changed.for_each(|version| _ = version.fetch_add(1, SeqCst));
            self.expire();
            self.get_all();
        }
        (self.bytes.load(SeqCst) - before) as f64 / rounds as f64
    }
}

/// Asks for each value as if none were known.
struct Unconditional(Arc<dyn Transport>);

impl Transport for Unconditional {
    fn round_trip(
        &self,
        ctx: &Context,
        mut request: TransportRequest<'_>,
    ) -> Result<TransportResponse> {
        request.set_header("if-none-match", "none")?;
        self.0.round_trip(ctx, request)
    }
}

/// Passes on what arrives at a listener, and counts the bytes of both directions.
fn relay_to(relay: TcpListener, to: SocketAddr, bytes: &Arc<AtomicU64>) {
    let bytes = bytes.clone();
    thread::spawn(move || {
        for client in relay.incoming().flatten() {
            let Ok(server) = TcpStream::connect(to) else {
                continue;
            };
            for stream in [&client, &server] {
                stream.set_nodelay(true).expect("an option");
            }
            let pairs = [(&client, &server), (&server, &client)];
            for (from, to) in pairs {
                let from = from.try_clone().expect("a handle");
                let to = to.try_clone().expect("a handle");
                let bytes = bytes.clone();
                thread::spawn(move || pass_on(from, to, &bytes));
            }
        }
    });
}

fn pass_on(mut from: TcpStream, mut to: TcpStream, bytes: &AtomicU64) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(len @ 1..) = from.read(&mut buffer) {
        bytes.fetch_add(len as u64, SeqCst);
        if to.write_all(&buffer[..len]).is_err() {
            break;
        }
    }
    // The other side may have closed already.
    let _ = to.shutdown(Shutdown::Write);
}
