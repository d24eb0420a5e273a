//! Connections make room for others: idle ones, those of strangers for peers, refused ones.

use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use larder::http::{HttpPool, Request, Response, Server};
use larder::{Group, Registry, getter_fn};

use super::support::{Client, ask, eventually, get, serve};

/// The sockets on a port, from /proc/net/tcp.
#[cfg(target_os = "linux")]
#[derive(Default, Debug)]
pub struct Sockets {
    pub open: usize,
    /// Closed by the process, and still kept by the system.
    pub orphans: usize,
    /// The bytes that the other side has not taken.
    pub unsent: usize,
}

#[cfg(target_os = "linux")]
impl Sockets {
    /// The server's sockets of the connections to `port`.
    pub fn of(port: u16) -> Sockets {
        let table = std::fs::read_to_string("/proc/net/tcp").expect("Linux");
        let local = format!(":{port:04X}");
        let mut sockets = Sockets::default();
        for line in table.lines().skip(1) {
            let words: Vec<_> = line.split_ascii_whitespace().collect();
            let (state, queues, inode) = (words[3], words[4], words[9]);
            // Skips the listening socket, and those in the state TIME_WAIT.
            if !words[1].ends_with(&local) || matches!(state, "0A" | "06") {
                continue;
            }
            let unsent = queues.split(':').next().unwrap_or_default();
            sockets.unsent += usize::from_str_radix(unsent, 16).expect("hexadecimal");
            match inode {
                "0" => sockets.orphans += 1,
                _ => sockets.open += 1,
            }
        }
        sockets
    }
}

/// A server whose handler waits until the returned gate is dropped.
fn waiting(connections: usize) -> (Server, Receiver<()>, impl Sized) {
    let (entered, entries) = channel();
    let (release, releases) = channel::<()>();
    let gate = Mutex::new(releases);
    let entered = Mutex::new(entered);
    let server = serve(|server| {
        server
            .max_connections(connections)
            .fallback(move |_: &Request| {
                entered
                    .lock()
                    .expect("no panic")
                    .send(())
                    .expect("it receives");
                let _ = gate
                    .lock()
                    .expect("no panic")
                    .recv_timeout(Duration::from_secs(20));
                Response::text(200, "released")
            })
    });
    (server, entries, release)
}

const WAIT: &str = "GET /wait HTTP/1.1\r\nHost: h\r\n\r\n";

/// Longer than a connection has to be idle before it makes room.
const IDLE: Duration = Duration::from_millis(150);

#[test]
fn busy_connections_make_no_room() {
    let (server, entries, release) = waiting(2);
    let addr = server.local_addr();
    let mut busy = [(); 2].map(|()| Client::sending(addr, WAIT));
    entries
        .recv_timeout(Duration::from_secs(20))
        .expect("the handler is called");
    thread::sleep(IDLE);
    for _ in 0..50 {
        let mut third = Client::sending(addr, get("c"));
        assert_eq!(third.reply().status, 503);
        assert!(third.is_closed());
    }
    assert_eq!(server.connections(), 2);
    drop(release);
    for client in &mut busy {
        assert_eq!(client.reply().text(), "released");
    }
    thread::sleep(IDLE);
    assert_eq!(ask(addr, get("c")).value(), "c");
}

#[test]
fn idle_strangers_make_room_for_a_new_client_while_they_go_on() {
    let server = serve(|server| server.max_connections(64));
    let control = serve(|server| server);
    let addr = server.local_addr();
    let mut strangers: Vec<_> = (0..64).map(|_| Client::connect(addr)).collect();
    for stranger in &mut strangers {
        stranger.send(get("k"));
        assert_eq!(stranger.reply().value(), "k");
    }
    thread::sleep(IDLE);
    let mut times = Vec::new();
    for stranger in strangers.iter_mut().take(20) {
        let time = |server: &Server| {
            let started = Instant::now();
            assert_eq!(ask(server.local_addr(), get("new")).value(), "new");
            started.elapsed()
        };
        times.push([time(&server), time(&control)]);
        // A stranger that was closed connects again.
        let is_open = stranger.try_send(get("k").as_bytes()).is_ok();
        if !is_open || !matches!(stranger.try_reply(true), Ok(Some(_))) {
            *stranger = Client::connect(addr);
        }
        thread::sleep(IDLE / 10);
    }
    // The machine may be busy for a moment, so the single times have a higher bound than their median.
    for (at, bound) in [(times.len() / 2, 100), (times.len() - 1, 2_000)] {
        let [took, usual] = [0, 1].map(|of| {
            times.sort_by_key(|pair| pair[of]);
            times[at][of]
        });
        assert!(
            took <= Duration::from_millis(bound) + 8 * usual,
            "{took:?}, elsewhere {usual:?}: {times:?}"
        );
    }
}

#[test]
fn refused_connections_are_closed_although_their_clients_stay() {
    let (server, entries, release) = waiting(1);
    let addr = server.local_addr();
    let _busy = Client::sending(addr, WAIT);
    entries
        .recv_timeout(Duration::from_secs(20))
        .expect("the handler is called");
    let mut refused: Vec<_> = (0..16).map(|_| Client::sending(addr, get("k"))).collect();
    for client in &mut refused {
        assert_eq!(client.reply().status, 503);
    }
    #[cfg(target_os = "linux")]
    eventually(|| Sockets::of(addr.port()).open == 1);
    drop(release);
}

/// Pools of other processes, each with a group whose keys this server owns.
fn peers(server: &Server, count: usize) -> Vec<(Arc<HttpPool>, Group)> {
    let url = format!("http://{}", server.local_addr());
    let peer = |_| {
        let registry = Registry::new();
        let getter = getter_fn(|_, _, _| Err("the owner was not asked".into()));
        let group = registry
            .new_group("echo", 1 << 20, getter)
            .expect("a group");
        let pool = HttpPool::builder("http://127.0.0.1:1")
            .registry(&registry)
            .connect_timeout(Duration::from_secs(20))
            .exchange_timeout(Duration::from_secs(20))
            .max_batch_keys(0)
            .build()
            .expect("a pool");
        pool.set([&url]).expect("a good URL");
        (Arc::new(pool), group)
    };
    (0..count).map(peer).collect()
}

#[test]
fn default_limits_fit_many_peers_with_default_options() {
    const PEERS: usize = 12;
    const THREADS: usize = 24;
    const GETS: usize = 100;
    let server = serve(|server| server);
    let peers = peers(&server, PEERS);
    thread::scope(|scope| {
        for (n, (_, group)) in peers.iter().enumerate() {
            for thread in 0..THREADS {
                scope.spawn(move || {
                    for get in 0..GETS {
                        let key = format!("{n} {thread} {get}");
                        assert_eq!(group.get(&key).expect("the owner's value"), key.as_str());
                    }
                });
            }
        }
    });
    for (_, group) in &peers {
        assert_eq!(group.stats().peer_errors, 0);
    }
}
