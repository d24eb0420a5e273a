//! memcached, if it is installed, and a blocking client for its text protocol.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use super::{Get, Process, describe};

/// A server on a free port; `None` if there is no such program.
pub fn start() -> Option<Process> {
    Command::new("memcached").arg("--version").output().ok()?;
    let free = TcpListener::bind("127.0.0.1:0").ok()?;
    let address = free.local_addr().ok()?;
    drop(free);
    let port = address.port().to_string();
    let options = ["-u", "nobody", "-l", "127.0.0.1", "-m", "512", "-I", "2m"];
    let server = Process::start(Command::new("memcached").args(options).args(["-p", &port]));
    let deadline = Instant::now() + Duration::from_secs(5);
    while TcpStream::connect(address).is_err() {
        assert!(Instant::now() < deadline, "memcached does not answer");
        std::thread::sleep(Duration::from_millis(10));
    }
    Some(server.with_first_line(address.to_string()))
}

pub fn connect(address: &str) -> Get<'static> {
    let mut stream = TcpStream::connect(address).expect("a connection");
    stream.set_nodelay(true).expect("a TCP socket");
    let mut request = Vec::new();
    let mut buffer = vec![0; 32 << 10];
    Box::new(move |key| {
        loop {
            request.clear();
            request.extend_from_slice(b"get ");
            request.extend_from_slice(key.as_bytes());
            request.extend_from_slice(b"\r\n");
            stream.write_all(&request).expect("it listens");
            if let Some(len) = read_value(&mut stream, &mut buffer) {
                return len;
            }
            // The first get of the key: the client stores the value that the other servers load.
            let (size, _) = describe(key);
            let set = format!("set {key} 0 0 {size}\r\n{}\r\n", "v".repeat(size));
            stream.write_all(set.as_bytes()).expect("it listens");
            let mut answer = [0; 8];
            stream.read_exact(&mut answer).expect("it answers");
            assert_eq!(&answer, b"STORED\r\n");
        }
    })
}

/// Reads `VALUE key flags LEN\r\n`, the value, and `\r\nEND\r\n`, in one system call if they fit.
/// Returns the length of the value, or `None` without one.
fn read_value(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Option<usize> {
    let mut filled = 0;
    loop {
        let read = stream.read(&mut buffer[filled..]).expect("it answers");
        assert!(read > 0, "the server closed the connection");
        filled += read;
        let Some(end) = buffer[..filled.min(300)].iter().position(|&b| b == b'\n') else {
            continue;
        };
        let head = std::str::from_utf8(&buffer[..end]).expect("text");
        if head == "END\r" {
            return None;
        }
        assert!(head.starts_with("VALUE "), "{head}");
        let len = head
            .trim_end()
            .rsplit(' ')
            .next()
            .and_then(|len| len.parse().ok());
        let len: usize = len.expect("a length");
        let whole = end + 1 + len + b"\r\nEND\r\n".len();
        if filled == whole {
            return Some(len);
        }
        if buffer.len() < whole {
            buffer.resize(whole, 0);
        }
    }
}
