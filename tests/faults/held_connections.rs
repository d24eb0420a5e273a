//! Clients that hold what others need: connections, loader threads, memory of the kernel.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use larder::{BoxError, Context, HotAdmission, Sink};
use socket2::{Domain, Socket, Type};

use crate::cluster::{Node, Setup, wake_up_delay};
use crate::common::{Call, PATIENCE, millis, seconds, start, timed};
use crate::process::Process;
use crate::raw_client::{Client, ask};
use crate::scarce::request;

fn addr(node: &Process) -> SocketAddr {
    node.addr().parse().expect("an address")
}

/// Asks on a new connection. Returns the time that it took.
fn serve_time(node: &Process) -> Duration {
    let addr = addr(node);
    let (took, reply) = timed(|| ask(addr, request("k")));
    assert_eq!(reply.value(), "value of k");
    took
}

/// The time until no more than `most` connections are open at a node.
fn until_connections(node: &mut Process, most: usize) -> Duration {
    let start = Instant::now();
    while node.number::<usize>("connections") > most {
        assert!(start.elapsed() < PATIENCE, "the connections stay open");
        thread::sleep(millis(5));
    }
    start.elapsed()
}

#[test]
fn clients_that_left_a_hanging_getter_hold_no_connection() {
    let mut node = Process::start("max_connections=256");
    let usual = serve_time(&node);
    let clients: Vec<_> = (0..300)
        .map(|_| {
            let mut client = TcpStream::connect(node.addr()).expect("the kernel accepts");
            // Over the limit of connections, the server has closed it.
            let _ = client.write_all(request("hang:k").as_bytes());
            client
        })
        .collect();
    drop(clients);
    let left = Instant::now();
    // Other clients need not wait until all of these connections have ended.
    let took = serve_time(&node);
    let control = wake_up_delay(64);
    assert!(
        took <= millis(100) + 20 * (control + usual),
        "{took:?}, control {control:?}"
    );
    until_connections(&mut node, 0);
    let took = left.elapsed();
    let control = wake_up_delay(64);
    assert!(
        took <= millis(1000) + 20 * control,
        "{took:?}, control {control:?}"
    );
    let took = serve_time(&node);
    assert!(
        took <= millis(100) + 20 * (control + usual),
        "{took:?}, control {control:?}"
    );
    // Abandoned loads take no threads from the node's own callers.
    assert_eq!(node.ask("get slow:1:k 10000"), "value of slow:1:k");
}

#[test]
fn idle_strangers_make_room_for_new_clients_while_they_go_on() {
    const STRANGERS: usize = 256;
    let mut node = Process::start("max_connections=256");
    let addr = addr(&node);
    let stranger = || {
        let mut stranger = Client::sending(addr, request("k"));
        assert_eq!(stranger.reply().value(), "value of k");
        stranger
    };
    let mut strangers: Vec<_> = (0..STRANGERS).map(|_| stranger()).collect();
    // A connection that was used a moment ago makes no room.
    thread::sleep(seconds(1));
    let rounds = (0..10).map(|_| {
        let took = serve_time(&node);
        // The stranger that was closed comes again, so that the next client finds no room either.
        until_connections(&mut node, STRANGERS - 1);
        strangers.push(stranger());
        took
    });
    let mut times: Vec<_> = rounds.collect();
    let control = wake_up_delay(16);
    times.sort_unstable();
    // A busy machine makes some of them late. A stranger that keeps its place makes all of them late.
    assert!(
        times[2] <= millis(100) + 20 * control,
        "{times:?}, control {control:?}"
    );
}

/// The bytes that the system holds for the sockets of a port, and the number of these sockets.
fn kernel_memory(port: u16) -> (u64, usize) {
    let table = std::fs::read_to_string("/proc/net/tcp").expect("Linux");
    let local = format!(":{port:04X}");
    let (mut bytes, mut sockets) = (0, 0);
    for line in table.lines().skip(1) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let is_listener = words[3] == "0A";
        if words[1].ends_with(&local) && !is_listener {
            let (unsent, unread) = words[4].split_once(':').expect("two numbers");
            let number = |hex| u64::from_str_radix(hex, 16).expect("a number");
            bytes += number(unsent) + number(unread);
            sockets += 1;
        }
    }
    (bytes, sockets)
}

/// The memory of the send queues of a port's sockets with what the system adds to their bytes; 0 without `ss`.
fn send_queues(port: u16) -> u64 {
    let filter = format!("sport = :{port}");
    let output = Command::new("ss").args(["-tamnH", &filter]).output();
    let text = output.map_or_else(
        |_| String::new(),
        |output| String::from_utf8_lossy(&output.stdout).into_owned(),
    );
    // Such as `skmem:(r0,rb131072,t0,tb87040,f1024,w109568,o0,bl0,d0)`: `w` is queued, `f` reserved for more.
    let words = text.split(['(', ',', ')']);
    let number = |word: &str| word.strip_prefix(['w', 'f'])?.parse::<u64>().ok();
    words.filter_map(number).sum()
}

#[test]
fn clients_that_do_not_read_hold_little_memory_and_are_reset() {
    const DEAF: usize = 300;
    let mut node = Process::start("");
    let (port, key) = (addr(&node).port(), "large:1000000:k");
    node.ask(&format!("get {key}"));
    let late = thread::spawn(|| {
        let start = Instant::now();
        thread::sleep(seconds(10));
        start.elapsed().saturating_sub(seconds(10))
    });
    let start = Instant::now();
    let clients: Vec<_> = (0..DEAF)
        .map(|_| Client::sending(addr(&node), request(key)))
        .collect();
    let (mut most, mut last) = (0, 0);
    loop {
        let (bytes, sockets) = kernel_memory(port);
        // The system's table changes while it is read, and may list a socket twice. So the lower of two
        // successive readings counts.
        most = most.max(bytes.min(last)).max(send_queues(port));
        last = bytes;
        if start.elapsed() > millis(200) && sockets == 0 {
            break;
        }
        serve_time(&node);
        assert!(start.elapsed() < seconds(60), "{sockets} sockets are left");
        thread::sleep(millis(50));
    }
    let took = start.elapsed();
    let late = late.join().expect("no panic");
    assert!(
        took <= seconds(10) + millis(500) + 10 * late,
        "{took:?}, control {late:?}"
    );
    assert!(most <= 64 << 20, "{most} bytes");
    assert!(most >= DEAF as u64 * 10_000, "{most} bytes");
    assert_eq!(node.number::<usize>("connections"), 0);
    drop(clients);
}

const POOLS: usize = 12;
const THREADS: usize = 24;

/// Nodes that own no key. The connections are those of the defaults, and no exchange takes too long on a
/// slow machine. Without copies, each get is an exchange.
fn pools_of(server: &Process) -> Vec<Node> {
    let local = |_: &Context, _: &str, _: &mut dyn Sink| -> Result<(), BoxError> {
        Err("this node owns no key".into())
    };
    let setup = Setup {
        group: Box::new(|group| group.hot_admission(HotAdmission::Never)),
        ..Setup::default()
    };
    let nodes: Vec<Node> = (0..POOLS).map(|_| setup.start(local)).collect();
    for node in &nodes {
        node.pool.set([&server.url]).expect("a URL");
    }
    nodes
}

/// Gets keys by 24 threads of each node, which begin at the same time.
fn get_by_all<K>(nodes: &[Node], keys: impl Fn(usize) -> K) -> Vec<Call<()>>
where
    K: IntoIterator<Item = String> + Send + 'static,
{
    let together = Arc::new(Barrier::new(POOLS * THREADS));
    let call = |n: usize| {
        let (group, together) = (nodes[n % POOLS].group.clone(), together.clone());
        let keys = keys(n / POOLS);
        start(move || {
            together.wait();
            for key in keys {
                let value = group.get(&key).expect("a value of the server");
                assert_eq!(value, format!("value of {key}").as_str());
            }
        })
    };
    (0..POOLS * THREADS).map(call).collect()
}

fn peer_errors(nodes: &[Node]) -> u64 {
    let errors = nodes.iter().map(|node| node.group.stats().peer_errors);
    errors.sum()
}

#[test]
fn twelve_pools_with_default_limits_are_never_refused() {
    const GETS: usize = 100;
    let mut server = Process::start("");
    let nodes = pools_of(&server);
    for n in 0..GETS {
        server.ask(&format!("get key{n}"));
    }
    let calls = get_by_all(&nodes, |_| (0..GETS).map(|n| format!("key{n}")));
    calls.into_iter().for_each(Call::end);
    assert_eq!(peer_errors(&nodes), 0);
    assert!(server.is_alive());
}

#[test]
fn twelve_pools_with_default_limits_may_use_all_their_connections_at_the_same_time() {
    let mut server = Process::start("");
    let nodes = pools_of(&server);
    // No request is answered before each of them has its connection.
    let calls = get_by_all(&nodes, |thread| [format!("gate:{thread}")]);
    let begun = Instant::now();
    while server.number::<usize>("connections") < POOLS * THREADS {
        assert_eq!(peer_errors(&nodes), 0, "the server refuses connections");
        assert!(begun.elapsed() < PATIENCE, "there are too few connections");
        thread::sleep(millis(5));
    }
    assert_eq!(server.ask("open"), "ready");
    calls.into_iter().for_each(Call::end);
    assert_eq!(peer_errors(&nodes), 0);
}

/// A request with a time-out that its client chose.
fn request_within(key: &str, ms: &str) -> String {
    request(key).replace("Host: h", &format!("Host: h\r\nlarder-timeout-ms: {ms}"))
}

/// Sends requests for `count` keys, each with a time-out of 1 ms, from an address of this machine, and reads
/// the responses. The getter hangs for these keys.
fn abandon(node: &Process, last_byte: u8, count: usize) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    let own = SocketAddr::from(([127, 0, 0, last_byte], 0));
    socket.bind(&own.into()).expect("an address of loopback");
    socket.connect(&addr(node).into()).expect("it accepts");
    let mut stranger = Client::new(socket.into());
    for n in 0..count {
        stranger.send(request_within(&format!("gate:{last_byte}.{n}"), "1"));
        assert!(stranger.reply().status >= 500);
    }
}

fn assert_own_callers_find_threads(node: &mut Process) {
    for n in 0..10 {
        let value = node.ask(&format!("get slow:1:{n} 10000"));
        assert_eq!(value, format!("value of slow:1:{n}"));
    }
}

/// The number of loads that the requests of [`abandon`] started.
fn abandoned_loads(node: &mut Process) -> usize {
    node.ask("loaded gate:").split_whitespace().count()
}

#[test]
fn client_that_abandons_loads_takes_few_threads() {
    let mut node = Process::start("loader_threads=128");
    abandon(&node, 1, 300);
    assert_own_callers_find_threads(&mut node);
    let begun = abandoned_loads(&mut node);
    assert!((1..=32).contains(&begun), "{begun} loads");
}

#[test]
fn clients_that_abandon_loads_leave_half_of_the_threads_to_own_callers() {
    let mut node = Process::start("loader_threads=128");
    // The limit of one client allows this many.
    (1..=10).for_each(|client| abandon(&node, client, 30));
    assert_own_callers_find_threads(&mut node);
    let begun = abandoned_loads(&mut node);
    assert!((33..=64).contains(&begun), "{begun} loads");
}

#[test]
fn request_ends_at_max_request_time_if_its_client_allows_more() {
    let node = Process::start("max_request_ms=1000");
    for (request, code) in [
        (request_within("gate:k", "100000000000"), "loading"),
        (request("gate:k"), "deadline"),
    ] {
        let late = wake_up_delay(16);
        let addr = addr(&node);
        let (took, reply) = timed(|| ask(addr, request));
        assert_eq!(reply.header("larder-error"), Some(code));
        assert!(
            took <= millis(1500) + 20 * late,
            "{took:?}, control {late:?}"
        );
    }
}

#[test]
fn half_bodies_cost_what_has_arrived_or_less() {
    const CLIENTS: u64 = 256;
    let mut node = Process::start("");
    serve_time(&node);
    let before: u64 = node.number("memory");
    let head = "POST /_groupcache/values HTTP/1.1\r\nHost: h\r\nContent-Length: 1048576\r\n\r\n";
    let half = vec![b'x'; 512 << 10];
    let mut most: u64 = 0;
    let mut clients = Vec::new();
    for n in 0..CLIENTS {
        let mut client = Client::sending(addr(&node), head);
        client
            .stream()
            .set_write_timeout(Some(millis(50)))
            .expect("valid");
        let _ = client.try_send(&half);
        clients.push(client);
        if n % 32 == 31 {
            most = most.max(node.number("memory"));
        }
    }
    let growth = most.saturating_sub(before);
    assert!(growth <= 40 << 10, "{growth} KiB");
    serve_time(&node);
}
