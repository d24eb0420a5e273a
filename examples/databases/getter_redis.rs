//! Caches strings of a Redis server in this process. They expire at the same time as in Redis.
//!
//! ```text
//! cargo run -p databases --example getter_redis [-- --url redis://127.0.0.1:6379]
//! ```
//!
//! The program starts a `redis-server` on a free port, or uses the one at the URL. There it sets ten strings
//! and a list, whose keys begin with `larder-example:` and expire after a minute. Then each of four threads reads
//! every string a thousand times. It prints how many reads reached the server, and the errors for a key
//! that does not exist and for the list.

mod idle;

use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use idle::Idle;
use larder::{BoxError, Context, Getter, Group, Sink};
use lexopt::prelude::*;
use redis::{Client, Commands, Connection};

fn main() -> Result<(), BoxError> {
    let mut url = None;
    let mut parser = lexopt::Parser::from_env();
    while let Some(arg) = parser.next()? {
        match arg {
            Long("url") => url = Some(parser.value()?.string()?),
            Short('h') | Long("help") => {
                println!("usage: getter_redis [--url redis://HOST:PORT]");
                return Ok(());
            }
            _ => return Err(arg.unexpected().into()),
        }
    }
    // The handle is kept until `main` returns, because dropping it kills the server.
    let (_server, url) = match url {
        Some(url) => (None, url),
        None => {
            let server = RedisServer::start()?;
            let url = server.url();
            println!("started redis-server at {url}");
            (Some(server), url)
        }
    };
    let getter = RedisGetter::new(&url)?;
    fill(&mut getter.connect()?)?;
    let greetings = Group::builder("greetings").build(getter)?;

    let start = Instant::now();
    thread::scope(|scope| {
        let readers: Vec<_> = (0..THREADS)
            .map(|_| scope.spawn(|| read(&greetings)))
            .collect();
        readers
            .into_iter()
            .try_for_each(|reader| reader.join().map_err(|_| "a reader panicked")?)
    })?;
    let time = start.elapsed();
    let stats = greetings.stats();
    println!(
        "{} gets by {THREADS} threads in {:.1} ms: {} from the cache, {} loads from Redis, {} \
         waited for such a load",
        stats.gets,
        time.as_secs_f64() * 1e3,
        stats.cache_hits,
        stats.local_loads,
        stats.loads - stats.loads_deduped,
    );
    for key in ["larder-example:none", "larder-example:list"] {
        match greetings.get(key) {
            Ok(_) => return Err(format!("{key} has a value").into()),
            Err(error) => println!("{key}: {:?}: {error}", error.kind()),
        }
    }
    Ok(())
}

fn read(greetings: &Group) -> Result<(), BoxError> {
    for n in 0..KEYS * READS_OF_A_KEY {
        let n = n % KEYS;
        let value = greetings.get(&format!("larder-example:{n}"))?;
        if value != greeting(n) {
            return Err(format!("greeting {n} is {value:?}").into());
        }
    }
    Ok(())
}

/// Loads strings, each with the time to live that it has left in Redis.
struct RedisGetter {
    client: Client,
    idle: Idle<Connection>,
}

impl RedisGetter {
    fn new(url: &str) -> Result<Self, BoxError> {
        Ok(RedisGetter {
            client: Client::open(url)?,
            idle: Idle::new(),
        })
    }

    fn connect(&self) -> redis::RedisResult<Connection> {
        let connection = self.client.get_connection_with_timeout(TIMEOUT)?;
        connection.set_read_timeout(Some(TIMEOUT))?;
        connection.set_write_timeout(Some(TIMEOUT))?;
        Ok(connection)
    }
}

impl Getter for RedisGetter {
    fn get(&self, _ctx: &Context, key: &str, dest: &mut dyn Sink) -> Result<(), BoxError> {
        let mut connection = self.idle.take(|| self.connect())?;
        // One round trip brings the value and the milliseconds until it expires, which are negative if it
        // never expires. Without a transaction, the value could expire or change between the two commands.
        let (value, left): (Option<Vec<u8>>, i64) = redis::pipe()
            .atomic()
            .get(key)
            .pttl(key)
            .query(&mut connection)?;
        // After an error, a late answer may still arrive. So the `?` above drops the connection.
        self.idle.put(connection);
        let Some(value) = value else {
            return Err(larder::Error::not_found(format!("Redis has no {key:?}")).into());
        };
        if let Ok(left) = u64::try_from(left) {
            dest.expire_in(Duration::from_millis(left));
        }
        Ok(dest.set_bytes(&value)?)
    }
}

fn fill(connection: &mut Connection) -> redis::RedisResult<()> {
    for n in 0..KEYS {
        let key = format!("larder-example:{n}");
        let () = connection.set_ex(key, greeting(n), KEPT_SECONDS)?;
    }
    let list = "larder-example:list";
    let _: i64 = connection.del(list)?;
    let _: i64 = connection.rpush(list, "not a string")?;
    let _: bool = connection.expire(list, KEPT_SECONDS as i64)?;
    Ok(())
}

fn greeting(n: usize) -> String {
    format!("hello, number {n}")
}

/// A server on loopback, which writes no files. Dropping this handle kills it.
struct RedisServer {
    process: Child,
    port: u16,
}

impl RedisServer {
    fn start() -> Result<Self, BoxError> {
        // The port is free now, but may be in use when redis-server binds it. Then redis-server exits, and
        // the next round tries another port.
        for _ in 0..3 {
            let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?
                .local_addr()?
                .port();
            let process = Command::new("redis-server")
                .args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no"])
                .args(["--port", &port.to_string()])
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .spawn()
                .map_err(not_started)?;
            let mut server = RedisServer { process, port };
            if server.wait_until_up()? {
                return Ok(server);
            }
        }
        Err("redis-server did not start; pass --url redis://HOST:PORT".into())
    }

    /// Returns true once the server answers, and false if it has exited.
    fn wait_until_up(&mut self) -> Result<bool, BoxError> {
        let client = Client::open(self.url())?;
        let deadline = Instant::now() + Duration::from_secs(10);
        while self.process.try_wait()?.is_none() {
            // Another program may have taken the port. Only Redis answers a PING.
            let up = client
                .get_connection_with_timeout(TIMEOUT)
                .and_then(|mut connection| redis::cmd("PING").query::<String>(&mut connection));
            if up.is_ok() {
                return Ok(true);
            }
            if Instant::now() > deadline {
                return Err("redis-server did not answer within 10 s".into());
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(false)
    }

    fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        // Both calls fail only if the process has ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn not_started(error: io::Error) -> BoxError {
    if error.kind() == io::ErrorKind::NotFound {
        return "there is no redis-server on this machine's PATH: install one, or pass the address \
                of a running one with --url redis://HOST:PORT"
            .into();
    }
    format!("cannot start redis-server: {error}").into()
}

const KEYS: usize = 10;
const READS_OF_A_KEY: usize = 1_000;
const THREADS: usize = 4;
const KEPT_SECONDS: u64 = 60;
const TIMEOUT: Duration = Duration::from_secs(1);
