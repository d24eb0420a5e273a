//! A larder node for the interoperability tests. `tests/interop/go/node.go` is its counterpart on
//! golang/groupcache. Tests control both by the same HTTP requests.

mod front;
mod hammer;
mod source;

use std::collections::HashMap;
use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use larder::consistent_hash::Preset;
use larder::http::HttpPool;
use larder::{BoxError, Context, Group, HotAdmission, getter_fn};

use front::Front;
use source::Source;

/// Serves until its standard input ends, so that no node outlives the test that started it.
fn main() -> Result<(), BoxError> {
    let flags = Flags::parse()?;
    let listener = std::net::TcpListener::bind(flags.get("listen", "127.0.0.1:0"))?;
    let default_self = format!("http://{}", listener.local_addr()?);
    let self_url = flags.get("self", &default_self);

    let serve_timeout = flags.millis("serve-timeout-ms", 1000)?;
    let mut pool = HttpPool::builder(self_url)
        .exchange_timeout(flags.millis("exchange-timeout-ms", 1000)?)
        // A Go node sends no deadline with its requests. This time-out limits how long it waits for this node.
        .context(move |_request| Context::background().with_timeout(serve_timeout))
        .preset(match flags.get("preset", "golang") {
            "golang" => Preset::Golang,
            "mailgun" => Preset::Mailgun,
            "larder" => Preset::Larder,
            other => return Err(format!("no preset is called {other:?}").into()),
        });
    if let Some(replicas) = flags.0.get("replicas") {
        pool = pool.replicas(replicas.parse()?);
    }
    match flags.get("hash", "") {
        "" => {}
        "fnv1a" => pool = pool.hash_fn(|bytes| source::fnv1a_32(bytes).into()),
        other => return Err(format!("no hash is called {other:?}").into()),
    }
    let pool = pool.build()?;
    if let Some(peers) = flags.0.get("peers") {
        pool.set(peers.split(','))?;
    }

    let source = Arc::new(Source::new(flags.millis("delay-ms", 0)?));
    build_groups(&source)?;
    let mut server = pool.server().fallback(Front::new(pool.clone(), source));
    if let Some(bytes) = flags.0.get("max-head-size") {
        server = server.max_head_size(bytes.parse()?);
    }
    let server = server
        // The bodies of the tests' requests have long lists of keys.
        .max_body_size(16 << 20)
        .idle_timeout(flags.millis("idle-timeout-ms", 60_000)?)
        .serve_listener(listener)?;
    println!("listening {self_url}");
    std::io::stdin().read_to_end(&mut Vec::new())?;
    // The test has ended, so nothing waits for the requests in flight.
    let _ = server.shutdown(Duration::ZERO);
    Ok(())
}

fn build_groups(source: &Arc<Source>) -> Result<(), BoxError> {
    let group = |name: &str| {
        let source = source.clone();
        let getter = getter_fn(move |ctx, key, dest| source.get(ctx, key, dest));
        (Group::builder(name).max_capacity(256 << 20), getter)
    };
    for name in ["values", "only-larder"] {
        let (builder, getter) = group(name);
        builder.build(getter)?;
    }
    // The node caches keys of this group only if it owns them. It asks for the others with each get.
    let (builder, getter) = group("uncached");
    builder.hot_admission(HotAdmission::Never).build(getter)?;
    let (builder, getter) = group("expiring");
    builder.time_to_live(EXPIRING_TTL).build(getter)?;
    Ok(())
}

/// The flags of the command line: `--name value` pairs.
struct Flags(HashMap<String, String>);

impl Flags {
    fn parse() -> Result<Self, BoxError> {
        let mut flags = HashMap::new();
        let mut args = std::env::args().skip(1);
        while let Some(name) = args.next() {
            let name = name.strip_prefix("--").ok_or("flags begin with --")?;
            if !NAMES.contains(&name) {
                return Err(format!("no flag is called --{name}").into());
            }
            let value = args
                .next()
                .ok_or_else(|| format!("--{name} has no value"))?;
            flags.insert(name.to_owned(), value);
        }
        Ok(Flags(flags))
    }

    fn get<'a>(&'a self, name: &str, default: &'a str) -> &'a str {
        self.0.get(name).map_or(default, String::as_str)
    }

    fn millis(&self, name: &str, default: u64) -> Result<Duration, BoxError> {
        let millis = match self.0.get(name) {
            Some(text) => text.parse()?,
            None => default,
        };
        Ok(Duration::from_millis(millis))
    }
}

/// The time to live of the group `expiring`. In a Go node, values do not expire.
const EXPIRING_TTL: Duration = Duration::from_millis(300);

/// The names of all flags.
const NAMES: [&str; 11] = [
    "listen",
    "self",
    "peers",
    "preset",
    "replicas",
    "hash",
    "delay-ms",
    "exchange-timeout-ms",
    "serve-timeout-ms",
    "idle-timeout-ms",
    "max-head-size",
];
