//! larder: a server that owns all keys, and a client that owns none and caches nothing.

use larder::http::{HttpClient, HttpPool};
use larder::{Context, Group, HotAdmission, Peer, Registry, Sink};

use super::{SLOW, client, describe, wait_for_the_end};

pub fn serve() {
    let registry = Registry::new();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    let url = format!("http://{address}");
    let pool = HttpPool::builder(&url)
        .registry(&registry)
        .id(SERVER)
        .build()
        .expect("a pool");
    pool.set(peers(&url)).expect("two peers");
    let _group = group(&registry, |key| {
        let (size, slow) = describe(key);
        if slow {
            std::thread::sleep(SLOW);
        }
        vec![b'v'; size]
    });
    let _server = pool.server().serve_listener(listener).expect("a server");
    println!("{address}");
    wait_for_the_end();
}

pub fn ask(address: &str, client_of_peers: HttpClient) {
    let registry = Registry::new();
    let pool = HttpPool::builder(CLIENT_URL)
        .registry(&registry)
        .http_client(client_of_peers)
        .build()
        .expect("a pool");
    pool.set(peers(&format!("http://{address}")))
        .expect("two peers");
    let group = group(&registry, |key| panic!("the peer did not answer for {key}"));
    let get_many = |keys: &[String]| {
        let values = group.get_many(&Context::background(), keys);
        values
            .into_iter()
            .map(|value| value.expect("a value").len())
            .sum()
    };
    client(
        || Box::new(|key| group.get(key).expect("a value").len()),
        Some(&get_many),
    );
}

/// Server and client know each other, as the nodes of a cluster do. With these ids and weights, the server
/// owns all keys of this benchmark.
fn peers(server_url: &str) -> [Peer; 2] {
    let server = Peer::new(server_url).with_id(SERVER).with_weight(65_536);
    [server, Peer::new(CLIENT_URL)]
}

const SERVER: &str = "server";

/// No server listens there.
const CLIENT_URL: &str = "http://127.0.0.1:1";

fn group(registry: &Registry, load: impl Fn(&str) -> Vec<u8> + Send + Sync + 'static) -> Group {
    Group::builder("hop")
        .registry(registry)
        .max_capacity(256 << 20)
        .hot_admission(HotAdmission::Never)
        .build(move |_: &Context, key: &str, dest: &mut dyn Sink| Ok(dest.set_bytes(&load(key))?))
        .expect("a group")
}
