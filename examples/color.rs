//! The quick start: processes that share a cache of colours and answer on one port.
//!
//! ```text
//! cargo run --release --example color -- --addr :8080 --pool http://127.0.0.1:8080
//! curl 'localhost:8080/color?name=green'
//! ```
//!
//! curl prints `#00FF00`. The program prints on stderr each colour that it loads. It runs until it is
//! stopped. For two processes that share the work, start each with its own URL first:
//!
//! ```text
//! color --addr :8080 --pool http://127.0.0.1:8080,http://127.0.0.1:8081
//! color --addr :8081 --pool http://127.0.0.1:8081,http://127.0.0.1:8080
//! ```
//!
//! Peers and browsers use the same port. By default larder's own server listens on it; with
//! `--tiny-http` a tiny_http server, as in a program that runs one already. The flags of the Go
//! example, `-addr=:8080 -pool=...`, work too.

use std::error::Error;
use std::ffi::OsString;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::thread;

use larder::http::{HttpPool, Request, Response};
use larder::{BoxError, ErrorKind, Group};
use lexopt::prelude::*;

fn main() -> Result<(), Box<dyn Error>> {
    let Some(args) = Args::parse(std::env::args_os())? else {
        println!("{USAGE}");
        return Ok(());
    };
    let urls: Vec<&str> = args.pool.split(',').map(str::trim).collect();
    let own_url = urls[0].to_owned();
    let addrs = listen_addrs(&args.addr)?;

    let pool = HttpPool::new(&own_url)?;
    pool.set(&urls)?;
    let colors = larder::new_group(
        "colors",
        64 << 20,
        larder::getter_fn(move |_ctx, name, dest| {
            eprintln!("{own_url} loads {name:?}");
            let (_, code) = COLORS
                .iter()
                .find(|(known, _)| *known == name)
                .ok_or_else(|| larder::Error::not_found(format!("no colour {name:?}")))?;
            Ok(dest.set_str(code)?)
        }),
    )?;

    if args.tiny_http {
        serve_with_tiny_http(&pool, &colors, &addrs)
    } else {
        let server = pool
            .server()
            .fallback(move |request: &Request<'_>| {
                let (status, text) =
                    answer(&colors, request.method(), request.path(), request.query());
                Response::text(status, text)
            })
            .bind(&addrs[..])?;
        eprintln!("listening on {}", server.local_addr());
        server.wait();
        Ok(())
    }
}

/// The program's own part: `/color?name=NAME`.
fn answer(colors: &Group, method: &str, path: &str, query: Option<&str>) -> (u16, String) {
    if path != "/color" {
        return (404, "try /color?name=green\n".into());
    }
    if !matches!(method, "GET" | "HEAD") {
        return (405, "colours are read-only\n".into());
    }
    let Some(name) = query.and_then(|query| form_value(query, "name")) else {
        return (400, "which colour? Try /color?name=green\n".into());
    };
    let mut code = String::new();
    match colors.get_into(&larder::Context::background(), &name, &mut code) {
        Ok(()) => (200, code + "\n"),
        Err(error) if error.kind() == ErrorKind::NotFound => (404, format!("{error}\n")),
        Err(error) => (503, format!("{error}\n")),
    }
}

/// Serves the port with tiny_http. The pool answers the requests of peers, and this program the others.
fn serve_with_tiny_http(
    pool: &HttpPool,
    colors: &Group,
    addrs: &[SocketAddr],
) -> Result<(), Box<dyn Error>> {
    let server = larder::http::tiny::bind(addrs)?;
    eprintln!("listening on {}, with tiny_http", server.server_addr());
    let work = || {
        while let Ok(request) = server.recv() {
            let sent = if pool.matches(request.url()) {
                pool.handle(request).map_err(BoxError::from)
            } else {
                let url = request.url();
                let (path, query) = match url.split_once('?') {
                    Some((path, query)) => (path, Some(query)),
                    None => (url, None),
                };
                let (status, text) = answer(colors, request.method().as_str(), path, query);
                let response = tiny_http::Response::from_string(text).with_status_code(status);
                request.respond(response).map_err(BoxError::from)
            };
            if let Err(error) = sent {
                eprintln!("an answer was not sent: {error}");
            }
        }
    };
    thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(work);
        }
    });
    Err("tiny_http stopped receiving".into())
}

struct Args {
    addr: String,
    pool: String,
    tiny_http: bool,
}

impl Args {
    /// `None` if help is asked for.
    fn parse(args: impl Iterator<Item = OsString>) -> Result<Option<Args>, lexopt::Error> {
        let mut parsed = Args {
            addr: ":8080".into(),
            pool: "http://127.0.0.1:8080".into(),
            tiny_http: false,
        };
        let mut parser = lexopt::Parser::from_iter(args.map(with_two_dashes));
        while let Some(arg) = parser.next()? {
            match arg {
                Long("addr") => parsed.addr = parser.value()?.string()?,
                Long("pool") => parsed.pool = parser.value()?.string()?,
                Long("tiny-http") => parsed.tiny_http = true,
                Short('h') | Long("help") => return Ok(None),
                _ => return Err(arg.unexpected()),
            }
        }
        Ok(Some(parsed))
    }
}

/// Go's flags have one dash: `-addr=:8080` is `--addr=:8080`.
fn with_two_dashes(arg: OsString) -> OsString {
    match arg.to_str() {
        Some(text)
            if ["-addr", "-pool", "-tiny-http"]
                .iter()
                .any(|flag| text.starts_with(flag)) =>
        {
            format!("-{text}").into()
        }
        _ => arg,
    }
}

/// The address to listen on. `:8080` is every address of the machine, as in Go: IPv6 and IPv4 in one
/// socket, or IPv4 alone where there is no IPv6.
fn listen_addrs(addr: &str) -> Result<Vec<SocketAddr>, Box<dyn Error>> {
    let wrong = |error: &dyn Error| format!("--addr {addr:?}: {error}; write :8080 or HOST:8080");
    match addr.strip_prefix(':') {
        Some(port) => {
            let port: u16 = port.parse().map_err(|error| wrong(&error))?;
            Ok(vec![
                (Ipv6Addr::UNSPECIFIED, port).into(),
                (Ipv4Addr::UNSPECIFIED, port).into(),
            ])
        }
        None => Ok(addr
            .to_socket_addrs()
            .map_err(|error| wrong(&error))?
            .collect()),
    }
}

/// The first value of a field in a query, unescaped. `None` without the field, or if the value is
/// empty or not text.
fn form_value(query: &str, field: &str) -> Option<String> {
    let value = query
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .find_map(|(name, value)| (name == field).then_some(value))?;
    let mut bytes = Vec::with_capacity(value.len());
    let mut rest = value.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => {
                let mut digit = || char::from(rest.next()?).to_digit(16);
                (digit()? * 16 + digit()?) as u8
            }
            _ => byte,
        });
    }
    String::from_utf8(bytes)
        .ok()
        .filter(|value| !value.is_empty())
}

const USAGE: &str = "\
usage: color [--addr :8080] [--pool URL[,URL...]] [--tiny-http]

  --addr       where to listen; without a host, on all addresses
  --pool       the URLs of all processes, this one's first
  --tiny-http  serve with tiny_http in place of larder's own server";

/// The number of threads that answer requests in tiny_http.
const WORKERS: usize = 8;

const COLORS: [(&str, &str); 8] = [
    ("black", "#000000"),
    ("blue", "#0000FF"),
    ("cyan", "#00FFFF"),
    ("green", "#00FF00"),
    ("magenta", "#FF00FF"),
    ("red", "#FF0000"),
    ("white", "#FFFFFF"),
    ("yellow", "#FFFF00"),
];
