//! A request id in a get: the caller sets it, a header carries it, and the getter reads it.
//!
//! ```text
//! cargo run --example custom_transport
//! ```
//!
//! There are two nodes in this process, `a` and `b`. A caller at `a` gets keys that `b` owns. The
//! transport of `a` adds the id from the caller's context to the request. The context hook of `b` reads
//! it from the request, and the getter at `b` reads it from its context. Each step prints a line.

use std::error::Error;
use std::net::{Ipv4Addr, TcpListener};
use std::sync::Arc;
use std::time::{Duration, Instant};

use larder::http::{HttpPool, Request, Server, Transport, TransportRequest, TransportResponse};
use larder::{Context, Group, Registry};

/// The caller's value in the context.
struct RequestId(String);

fn main() -> Result<(), Box<dyn Error>> {
    // The listeners come first, because a pool needs its own URL.
    let listeners = [listen()?, listen()?];
    let urls = [url_of(&listeners[0])?, url_of(&listeners[1])?];
    let [listener_a, listener_b] = listeners;
    let a = Node::start("a", &urls[0], &urls, listener_a)?;
    let b = Node::start("b", &urls[1], &urls, listener_b)?;

    let keys = (0..).map(|n| format!("page-{n}"));
    let owned_by_b = keys.filter(|key| a.pool.owner(key).as_ref() == Some(&urls[1]));
    for (number, key) in owned_by_b.take(2).enumerate() {
        let id = format!("req-{}", number + 1);
        println!("caller at a   gets {key:?} as {id}");
        let ctx = Context::background().with_value(RequestId(id));
        let page = a.pages.get_with(&ctx, &key)?;
        println!("caller at a   has {:?}\n", page.to_str()?);
    }

    for node in [a, b] {
        let stats = node.pages.stats();
        println!(
            "node {}: {} gets, {} loads from the peer, {} requests of the peer, {} own loads",
            node.name, stats.gets, stats.peer_loads, stats.server_requests, stats.local_loads
        );
        node.server.shutdown(Duration::from_secs(1))?;
    }
    Ok(())
}

/// One node. In a real program each process has one.
struct Node {
    name: &'static str,
    pool: HttpPool,
    pages: Group,
    server: Server,
}

impl Node {
    fn start(
        name: &'static str,
        url: &str,
        peers: &[String],
        listener: TcpListener,
    ) -> Result<Self, larder::Error> {
        let registry = Registry::new();
        let pool = HttpPool::builder(url)
            .registry(&registry)
            .transport(move |_peer, inner| Arc::new(WithRequestId { name, inner }))
            .context(move |request| context_of(name, request))
            .build()?;
        pool.set(peers)?;
        let pages = Group::builder("pages")
            .registry(&registry)
            .build(larder::getter_fn(move |ctx, key, dest| {
                println!("{name}: getter     loads {key:?} for {}", id_of(ctx));
                Ok(dest.set_str(&format!("the text of {key}"))?)
            }))?;
        let server = pool.server().serve_listener(listener)?;
        Ok(Node {
            name,
            pool,
            pages,
            server,
        })
    }
}

/// The client's side: wraps the transport of one peer.
struct WithRequestId {
    name: &'static str,
    inner: Arc<dyn Transport>,
}

impl Transport for WithRequestId {
    fn round_trip(
        &self,
        ctx: &Context,
        mut request: TransportRequest<'_>,
    ) -> larder::Result<TransportResponse> {
        if let Some(RequestId(id)) = ctx.value() {
            request.set_header(HEADER, id)?;
        }
        println!(
            "{}: transport  sends {} {} with {HEADER}: {}",
            self.name,
            request.method(),
            request.path(),
            request.header(HEADER).unwrap_or("-"),
        );
        let start = Instant::now();
        let response = self.inner.round_trip(ctx, request)?;
        println!(
            "{}: transport  got {} for {} after {} µs",
            self.name,
            response.status(),
            id_of(ctx),
            start.elapsed().as_micros(),
        );
        Ok(response)
    }
}

/// The server's side: makes the context that the getter will see.
fn context_of(name: &str, request: &Request<'_>) -> Context {
    let ctx = Context::background();
    match request.header(HEADER) {
        Some(id) => {
            println!("{name}: context    read {HEADER}: {id}");
            ctx.with_value(RequestId(id.to_owned()))
        }
        None => ctx,
    }
}

fn id_of(ctx: &Context) -> &str {
    ctx.value().map_or("no id", |RequestId(id)| id)
}

fn listen() -> std::io::Result<TcpListener> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
}

fn url_of(listener: &TcpListener) -> std::io::Result<String> {
    Ok(format!("http://{}", listener.local_addr()?))
}

const HEADER: &str = "x-request-id";
