//! The clients of the node: its peers, which are honest, and hostile ones.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, Scope};
use std::time::{Duration, Instant};

use larder::http::HttpPoolBuilder;
use socket2::{Domain, Socket, Type};

use crate::{Failed, Random, member, peer_ips, value_of};

/// How many connections make each attack: 500 in all.
const HOSTILE: [(Attack, usize); 3] = [
    (Attack::HalfHead, 166),
    (Attack::HalfBody, 167),
    (Attack::ReadsNothing, 167),
];

#[derive(Clone, Copy)]
enum Attack {
    HalfHead,
    HalfBody,
    ReadsNothing,
}

/// The counts of all clients.
#[derive(Default)]
struct Totals {
    gets: AtomicU64,
    bytes: AtomicU64,
    wrong: AtomicU64,
    failed: AtomicU64,
    slowest_ms: AtomicU64,
    hostile: AtomicU64,
    stop: AtomicBool,
}

pub(crate) fn run(node: SocketAddr, peers: SocketAddr, time: Duration) -> Result<(), Failed> {
    let (pool, _group) = member(peers, node, peers, |builder: HttpPoolBuilder| builder)?;
    let _server = pool.serve(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), peers.port()))?;
    let totals = &Totals::default();
    thread::scope(|scope| {
        for ip in peer_ips() {
            spawn(scope, move || honest(ip, node, totals));
        }
        for (attack, count) in HOSTILE {
            spawn(scope, move || hostile(attack, count, node, totals));
        }
        thread::sleep(time);
        totals.stop.store(true, Ordering::Relaxed);
    });
    let count = |total: &AtomicU64| total.load(Ordering::Relaxed);
    println!(
        "{} gets of {} MiB, {} failed, {} wrong, the slowest after {} ms; {} hostile connections",
        count(&totals.gets),
        count(&totals.bytes) >> 20,
        count(&totals.failed),
        count(&totals.wrong),
        count(&totals.slowest_ms),
        count(&totals.hostile),
    );
    match count(&totals.failed) + count(&totals.wrong) {
        0 if count(&totals.gets) > 0 => Ok(()),
        _ => Err("the node did not serve all gets".into()),
    }
}

fn spawn<'s>(scope: &'s Scope<'s, '_>, work: impl FnOnce() + Send + 's) {
    let builder = thread::Builder::new().stack_size(256 << 10);
    builder.spawn_scoped(scope, work).expect("a thread starts");
}

/// Gets values over a connection that stays open.
fn honest(from: IpAddr, node: SocketAddr, totals: &Totals) {
    let seed = match from {
        IpAddr::V4(ip) => u64::from(u32::from(ip)),
        IpAddr::V6(_) => 0,
    };
    let mut random = Random(seed);
    let mut connection = None;
    while !totals.stop.load(Ordering::Relaxed) {
        let number = random.key();
        let began = Instant::now();
        match get(&mut connection, from, node, number) {
            Ok(value) => {
                let wrong = value != value_of(number);
                totals.wrong.fetch_add(wrong.into(), Ordering::Relaxed);
                let len = value.len() as u64;
                totals.bytes.fetch_add(len, Ordering::Relaxed);
            }
            Err(error) => {
                eprintln!("{from}: {number}: {error}");
                totals.failed.fetch_add(1, Ordering::Relaxed);
                connection = None;
            }
        }
        totals.gets.fetch_add(1, Ordering::Relaxed);
        let ms = began.elapsed().as_millis() as u64;
        totals.slowest_ms.fetch_max(ms, Ordering::Relaxed);
    }
}

/// One get. The value is a field of the response's body.
fn get(
    connection: &mut Option<BufReader<TcpStream>>,
    from: IpAddr,
    node: SocketAddr,
    number: u64,
) -> io::Result<Vec<u8>> {
    let stream = match connection {
        Some(stream) => stream,
        None => connection.insert(BufReader::new(connect(from, node)?)),
    };
    stream
        .get_ref()
        .write_all(&request("GET", number, "\r\n"))?;
    let mut line = String::new();
    let mut len = 0;
    stream.read_line(&mut line)?;
    if !line.starts_with("HTTP/1.1 200 ") {
        let mut rest = vec![0; 512];
        let n = stream.read(&mut rest)?;
        return Err(io::Error::other(format!(
            "the response is {line:?} {:?}",
            String::from_utf8_lossy(&rest[..n])
        )));
    }
    while line != "\r\n" {
        line.clear();
        stream.read_line(&mut line)?;
        if let Some(length) = line.strip_prefix("Content-Length: ") {
            len = length.trim().parse().map_err(io::Error::other)?;
        }
    }
    let mut body = vec![0; len];
    stream.read_exact(&mut body)?;
    let value = value_field(&body).ok_or_else(|| io::Error::other("no value"))?;
    Ok(value.to_vec())
}

/// The bytes of field 1 of a protobuf message.
fn value_field(mut body: &[u8]) -> Option<&[u8]> {
    loop {
        let tag = varint(&mut body)?;
        let len = match tag & 7 {
            0 => {
                varint(&mut body)?;
                0
            }
            1 => 8,
            _ => varint(&mut body)? as usize,
        };
        let field;
        (field, body) = body.split_at_checked(len)?;
        if tag == 0x0a {
            return Some(field);
        }
    }
}

/// Takes a number from the start of `bytes`.
fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

fn request(method: &str, number: u64, end: &str) -> Vec<u8> {
    format!("{method} /_groupcache/values/{number} HTTP/1.1\r\nHost: node\r\n{end}").into_bytes()
}

fn connect(from: IpAddr, node: SocketAddr) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.bind(&SocketAddr::new(from, 0).into())?;
    socket.connect(&node.into())?;
    Ok(socket.into())
}

/// Keeps `count` connections open. If the node closes one, another is opened a second later.
fn hostile(attack: Attack, count: usize, node: SocketAddr, totals: &Totals) {
    let mut connections: Vec<Option<TcpStream>> = Vec::new();
    connections.resize_with(count, || None);
    let mut random = Random(count as u64);
    while !totals.stop.load(Ordering::Relaxed) {
        for connection in &mut connections {
            if connection.as_ref().is_some_and(|one| is_open(attack, one)) {
                continue;
            }
            let host = 2 + random.next() % 200;
            let from = Ipv4Addr::new(127, 0, 1, host as u8).into();
            let opened = connect(from, node).and_then(|one| begin(attack, one, &mut random));
            *connection = opened.ok();
            totals.hostile.fetch_add(1, Ordering::Relaxed);
        }
        thread::sleep(Duration::from_secs(1));
    }
}

/// Sends what the attack sends before it waits.
fn begin(attack: Attack, mut stream: TcpStream, random: &mut Random) -> io::Result<TcpStream> {
    stream.set_nonblocking(true)?;
    match attack {
        Attack::HalfHead => stream.write_all(&request("GET", 1, ""))?,
        Attack::HalfBody => {
            let len = "Content-Length: 65536\r\n\r\n";
            let mut bytes = b"POST /_groupcache/values HTTP/1.1\r\nHost: node\r\n".to_vec();
            bytes.extend_from_slice(len.as_bytes());
            bytes.resize(bytes.len() + (60 << 10), b'x');
            // A part is enough: most of it fits the socket's buffers.
            let _ = stream.write(&bytes)?;
        }
        Attack::ReadsNothing => {
            for _ in 0..8 {
                stream.write_all(&request("GET", random.key(), "\r\n"))?;
            }
        }
    }
    Ok(stream)
}

/// Whether the connection is still open. A client that reads nothing notices only a reset.
fn is_open(attack: Attack, stream: &TcpStream) -> bool {
    let is_open = |error: &io::Error| error.kind() == io::ErrorKind::WouldBlock;
    match attack {
        Attack::ReadsNothing => stream.take_error().is_ok_and(|error| error.is_none()),
        Attack::HalfHead | Attack::HalfBody => (&mut &*stream)
            .read(&mut [0; 512])
            .map_or_else(|error| is_open(&error), |n| n > 0),
    }
}
