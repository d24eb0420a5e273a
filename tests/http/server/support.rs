//! A pool with groups to ask, and a client that sends exactly the bytes it is given.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use larder::http::{HttpPool, HttpPoolBuilder, Server, ServerBuilder};
use larder::pb::GetResponse;
use larder::{BoxError, Context, Error, Registry, Sink};
use quick_protobuf::{BytesReader, MessageRead};

/// A pool with the group `echo`, in which the value of most keys is the key itself. See [`load`].
pub fn pool() -> HttpPool {
    pool_with(|builder| builder)
}

pub fn pool_with(options: impl FnOnce(HttpPoolBuilder) -> HttpPoolBuilder) -> HttpPool {
    let registry = Registry::new();
    registry
        .new_group("echo", 1 << 20, load)
        .expect("a new group");
    let builder = HttpPool::builder("http://127.0.0.1:1")
        .registry(&registry)
        .max_batch_keys(8)
        .max_batch_bytes(4096);
    options(builder).build().expect("a pool")
}

fn load(ctx: &Context, key: &str, dest: &mut dyn Sink) -> Result<(), BoxError> {
    match key {
        "missing" => Err(Error::not_found("no key called missing").into()),
        "broken" => Err("out of\r\npaint".into()),
        "panic" => panic!("a getter that panics"),
        "deadline?" => Ok(dest.set_str(if ctx.deadline().is_some() {
            "some"
        } else {
            "none"
        })?),
        "request id?" => {
            let id = ctx.value::<RequestId>().map_or("none", |id| &id.0);
            Ok(dest.set_str(id)?)
        }
        "mortal" => {
            dest.expire_in(Duration::from_secs(60));
            Ok(dest.set_str(key)?)
        }
        _ => Ok(dest.set_str(key)?),
    }
}

/// The value that a context hook sets, for the key `request id?`.
pub struct RequestId(pub String);

/// A server for [`pool`], with the options of `set_up`.
pub fn serve(set_up: impl FnOnce(ServerBuilder) -> ServerBuilder) -> Server {
    set_up(pool().server())
        .bind("127.0.0.1:0")
        .expect("a server")
}

/// A request for `key` of the group `echo`.
pub fn get(key: &str) -> String {
    format!("GET /_groupcache/echo/{key} HTTP/1.1\r\nHost: h\r\n\r\n")
}

/// A response as it was received.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Reply {
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut found = self
            .headers
            .iter()
            .filter(|(other, _)| other.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str());
        let first = found.next();
        assert!(found.next().is_none(), "{name} twice: {self:?}");
        first
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("text")
    }

    /// The value in a response of a pool.
    pub fn value(&self) -> String {
        assert_eq!(self.status, 200, "{self:?}");
        assert_eq!(self.header("Content-Type"), Some(PROTOBUF));
        assert_eq!(self.header("Server"), Some("larder"));
        let value = self.decoded().value.expect("a value").into_owned();
        String::from_utf8(value).expect("text")
    }

    pub fn decoded(&self) -> GetResponse<'_> {
        let mut reader = BytesReader::from_bytes(&self.body);
        GetResponse::from_reader(&mut reader, &self.body).expect("a GetResponse")
    }
}

/// The content type of protobuf bodies.
pub const PROTOBUF: &str = "application/x-protobuf";

/// A connection to a server under test. Every wait of it ends after 10 s.
pub struct Client {
    reader: BufReader<TcpStream>,
}

impl Client {
    pub fn connect(addr: SocketAddr) -> Client {
        Client::new(TcpStream::connect(addr).expect("connect"))
    }

    pub fn new(stream: TcpStream) -> Client {
        stream
            .set_read_timeout(Some(Duration::from_secs(10)))
            .expect("read timeout");
        stream
            .set_write_timeout(Some(Duration::from_secs(10)))
            .expect("write timeout");
        stream.set_nodelay(true).expect("nodelay");
        Client {
            reader: BufReader::new(stream),
        }
    }

    /// A connection on which `bytes` have been sent.
    pub fn sending(addr: SocketAddr, bytes: impl AsRef<[u8]>) -> Client {
        let mut client = Client::connect(addr);
        client.send(bytes);
        client
    }

    pub fn stream(&self) -> &TcpStream {
        self.reader.get_ref()
    }

    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.try_send(bytes.as_ref()).expect("send");
    }

    pub fn try_send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.reader.get_mut().write_all(bytes)
    }

    /// Closes the sending side.
    pub fn end(&mut self) {
        self.stream().shutdown(Shutdown::Write).expect("shutdown");
    }

    /// The next response, which must be complete.
    pub fn reply(&mut self) -> Reply {
        self.try_reply(true)
            .expect("a response")
            .expect("a response")
    }

    /// The head of the next response, without a body, as for `HEAD`.
    pub fn reply_head(&mut self) -> Reply {
        self.try_reply(false)
            .expect("a response")
            .expect("a response")
    }

    /// The next response; `None` if the connection ends before its first byte.
    pub fn try_reply(&mut self, with_body: bool) -> io::Result<Option<Reply>> {
        let Some(status_line) = self.line()? else {
            return Ok(None);
        };
        let status = status_line
            .strip_prefix("HTTP/1.1 ")
            .and_then(|rest| rest.get(..3))
            .and_then(|digits| digits.parse().ok())
            .ok_or_else(|| io::Error::other(format!("not a status line: {status_line:?}")))?;
        let mut reply = Reply {
            status,
            headers: Vec::new(),
            body: Vec::new(),
        };
        loop {
            let line = self.line()?.ok_or(io::ErrorKind::UnexpectedEof)?;
            if line.is_empty() {
                break;
            }
            let (name, value) = line.split_once(": ").expect("a header");
            reply.headers.push((name.to_owned(), value.to_owned()));
        }
        if with_body {
            let len = reply
                .header("Content-Length")
                .map_or(0, |len| len.parse().expect("length"));
            reply.body.resize(len, 0);
            self.reader.read_exact(&mut reply.body)?;
        }
        Ok(Some(reply))
    }

    /// Whether the server ends the connection without another byte.
    pub fn is_closed(&mut self) -> bool {
        let mut rest = Vec::new();
        match self.reader.read_to_end(&mut rest) {
            Ok(_) => rest.is_empty(),
            Err(error) => error.kind() == io::ErrorKind::ConnectionReset && rest.is_empty(),
        }
    }

    pub fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.reader.read(into)
    }

    fn line(&mut self) -> io::Result<Option<String>> {
        let mut line = String::new();
        if self.reader.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        match line.strip_suffix("\r\n") {
            Some(line) => Ok(Some(line.to_owned())),
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

/// Sends `bytes` on a new connection and returns the response.
pub fn ask(addr: SocketAddr, bytes: impl AsRef<[u8]>) -> Reply {
    Client::sending(addr, bytes).reply()
}

/// Polls until `condition` holds, for changes that report no event.
pub fn eventually(mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(
            Instant::now() < deadline,
            "the condition does not hold after 10 s"
        );
        std::thread::sleep(Duration::from_millis(2));
    }
}
