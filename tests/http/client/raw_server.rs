//! A server that sends exactly the bytes of the test.

use std::borrow::Cow;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use larder::ProtoMessage;
use larder::pb::GetResponse;

pub struct RawServer {
    pub url: String,
    connections: Arc<AtomicUsize>,
    heads: Arc<Mutex<Vec<String>>>,
}

/// One accepted connection.
pub struct Connection {
    /// Counted from 0.
    pub number: usize,
    /// The body of the last request.
    pub body: Vec<u8>,
    stream: BufReader<TcpStream>,
    heads: Arc<Mutex<Vec<String>>>,
}

impl RawServer {
    /// Runs `script` for each connection on a thread of its own. The connection is closed when it returns.
    pub fn start(script: impl Fn(Connection) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let server = RawServer {
            url: format!("http://{}", listener.local_addr().expect("an address")),
            connections: Arc::default(),
            heads: Arc::default(),
        };
        let (connections, heads) = (server.connections.clone(), server.heads.clone());
        let script = Arc::new(script);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let connection = Connection {
                    number: connections.fetch_add(1, Ordering::SeqCst),
                    body: Vec::new(),
                    stream: BufReader::new(stream.expect("a connection")),
                    heads: heads.clone(),
                };
                let script = script.clone();
                thread::spawn(move || script(connection));
            }
        });
        server
    }

    /// Sends `answer` to each request, and keeps connections open.
    pub fn answering(answer: impl Into<Vec<u8>>) -> Self {
        let answer = answer.into();
        RawServer::answering_by(move |_| answer.clone())
    }

    /// Sends the answer for the head of each request, and keeps connections open.
    pub fn answering_by(answer: impl Fn(&str) -> Vec<u8> + Send + Sync + 'static) -> Self {
        RawServer::start(move |mut connection| {
            while let Some(head) = connection.read_head() {
                connection.send(&answer(&head));
            }
        })
    }

    /// Sends `answer` to the first request of each connection, and closes it.
    pub fn answering_once(answer: impl Into<Vec<u8>>) -> Self {
        let answer = answer.into();
        RawServer::start(move |mut connection| {
            connection.read_head();
            connection.send(&answer);
        })
    }

    /// Reads requests and answers none.
    pub fn silent() -> Self {
        RawServer::start(|mut connection| connection.wait_for_close())
    }

    /// The connections accepted so far.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    /// The heads of the requests so far.
    pub fn heads(&self) -> Vec<String> {
        self.heads.lock().expect("no panic").clone()
    }
}

impl Connection {
    /// Waits for a request, reads all of it, and returns its head. `None` if the client closed.
    pub fn read_head(&mut self) -> Option<String> {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if self.stream.read_line(&mut head).ok()? == 0 {
                return None;
            }
        }
        let lower = head.to_ascii_lowercase();
        let length = lower.split_once("content-length: ").map_or(0, |(_, rest)| {
            let digits = rest.split("\r\n").next().unwrap_or_default();
            digits.parse().expect("a length")
        });
        self.body = vec![0; length];
        self.stream.read_exact(&mut self.body).ok()?;
        self.heads.lock().expect("no panic").push(head.clone());
        Some(head)
    }

    /// Sends bytes. Returns false if the client has closed the connection.
    pub fn send(&mut self, bytes: &[u8]) -> bool {
        self.stream.get_mut().write_all(bytes).is_ok()
    }

    /// Waits for a request and sends `bytes`, then resets the connection without reading the request.
    pub fn reset_after(self, bytes: &[u8]) {
        let mut stream = self.stream.into_inner();
        stream.peek(&mut [0]).expect("a request");
        stream.write_all(bytes).expect("the client is there");
        // Closing a socket with unread bytes sends a reset.
    }

    /// Waits until the client closes.
    pub fn wait_for_close(&mut self) {
        while self.read_head().is_some() {}
    }
}

/// The key of a GET, which needs no escape.
pub fn key_of(head: &str) -> String {
    let path = head.split(' ').nth(1).unwrap_or_default();
    path.rsplit('/').next().unwrap_or_default().to_owned()
}

/// The protobuf body of an answer with this value.
pub fn body(value: &[u8]) -> Vec<u8> {
    let message = GetResponse {
        value: Some(Cow::Borrowed(value)),
        ..GetResponse::default()
    };
    message.encode().expect("it encodes")
}

/// The hash with which larder's server says which key it answers, as `groupcache.proto` defines it.
pub fn key_hash(group: &str, key: &str) -> u64 {
    let mix = |hash: u64, number: u64| {
        let product = u128::from(hash ^ number) * 0x9e37_79b9_7f4a_7c15;
        (product % (1 << 64)) as u64 ^ (product >> 64) as u64
    };
    let number = |bytes: &[u8]| {
        let digits = bytes.iter().enumerate();
        digits.fold(0, |sum, (at, &byte)| sum + (u64::from(byte) << (8 * at)))
    };
    [group, key].iter().fold(0, |hash, text| {
        let bytes = text.as_bytes();
        let hash = mix(hash, bytes.len() as u64);
        let hash = bytes.chunks_exact(8).map(number).fold(hash, mix);
        mix(hash, number(&bytes[bytes.len().saturating_sub(8)..]))
    })
}

/// The same as [`body`] with the hash of the key, as larder's server sends it. The group is `colors`.
pub fn keyed_body(key: &str, value: &[u8]) -> Vec<u8> {
    let message = GetResponse {
        value: Some(Cow::Borrowed(value)),
        key_hash: Some(key_hash("colors", key)),
        ..GetResponse::default()
    };
    message.encode().expect("it encodes")
}

/// A whole answer with status 200 around a body.
pub fn ok(body: &[u8]) -> Vec<u8> {
    ok_with("", body)
}

/// Like [`ok`], with further headers, each with its CR LF.
pub fn ok_with(headers: &str, body: &[u8]) -> Vec<u8> {
    let length = body.len();
    let head = format!(
        "HTTP/1.1 200 OK\r\n{headers}Content-Type: application/x-protobuf\r\n\
         Content-Length: {length}\r\n\r\n"
    );
    [head.as_bytes(), body].concat()
}

/// A whole answer with another status. Each of the `headers` has its CR LF.
pub fn failure(status: &str, headers: &str, text: &str) -> Vec<u8> {
    let length = text.len();
    format!("HTTP/1.1 {status}\r\n{headers}Content-Length: {length}\r\n\r\n{text}").into_bytes()
}
