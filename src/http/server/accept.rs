//! The accept thread: gives every connection a thread, and goes on whatever the system refuses.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener};
use std::time::{Duration, Instant};

use super::connection::{Service, serve};
use super::connections::{Link, Ticket};
use crate::sync::{Arc, thread};

/// Accepts until the server stops.
///
/// An error of `accept` is the system's, not the listener's: no descriptor is left (EMFILE,
/// ENFILE), no memory, or the client was gone before it was accepted. So it is reported, and after
/// a pause, in which connections may end, tried again.
pub(crate) fn run(listener: &TcpListener, service: &Arc<Service>) {
    let mut refused = Refused::default();
    let mut log = Log::default();
    loop {
        let accepted = listener.accept();
        if service.connections.is_stopping() {
            return;
        }
        service.connections.reap();
        match accepted {
            Ok((stream, addr)) => {
                let link = Link::new(stream, addr);
                if let Err(why) = start(service, &link) {
                    log.warn(|| format!("refusing connections, for one from {addr}: {why}"));
                    refused.add(link);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                log.warn(|| format!("cannot accept connections: {error}; trying again"));
                refused.clear();
                std::thread::sleep(PAUSE);
            }
        }
    }
}

/// Starts the thread of a connection, unless there are too many connections or threads.
fn start(service: &Arc<Service>, link: &Arc<Link>) -> Result<(), Refusal> {
    let ticket = service
        .connections
        .admit(link, &service.limits)
        .ok_or(Refusal::TooMany)?;
    let id = ticket.id();
    let thread = spawn(service.clone(), ticket).map_err(Refusal::NoThread)?;
    service.connections.attach(id, thread);
    Ok(())
}

fn spawn(service: Arc<Service>, ticket: Ticket) -> io::Result<thread::JoinHandle<()>> {
    thread::Builder::new()
        .name("larder-conn".to_owned())
        .stack_size(service.limits.stack_size)
        .spawn(move || {
            let _ = ticket.link.thread.set(std::thread::current().id());
            serve(&service, &ticket.link);
        })
}

enum Refusal {
    TooMany,
    NoThread(io::Error),
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Refusal::TooMany => {
                f.write_str("max_connections or max_connections_per_addr is reached")
            }
            Refusal::NoThread(error) => write!(f, "no thread could be started: {error}"),
        }
    }
}

/// Connections that were answered 503 and not read, kept for a moment.
///
/// To close one at once would often reset it, and the client would not see the answer: its request
/// is on its way, or lies unread. There is no thread to wait on, so the accept thread keeps the
/// last few, and closes them when others come.
#[derive(Default)]
struct Refused(VecDeque<(Instant, Arc<Link>)>);

impl Refused {
    fn add(&mut self, link: Arc<Link>) {
        let now = Instant::now();
        while self
            .0
            .front()
            .is_some_and(|(since, _)| now - *since > KEPT_FOR)
            || self.0.len() >= KEPT
        {
            self.close_first();
        }
        // The socket is new, so the answer fits its buffer. What fails, fails for the client.
        let mut stream = &link.stream;
        let _ = stream.set_nonblocking(true);
        let _ = stream.write_all(REFUSAL);
        let _ = stream.shutdown(Shutdown::Write);
        self.0.push_back((now, link));
    }

    fn close_first(&mut self) {
        if let Some((_, link)) = self.0.pop_front() {
            // What has arrived is read, since closing with unread bytes resets.
            let mut bytes = [0; 1024];
            for _ in 0..8 {
                if !matches!((&mut &link.stream).read(&mut bytes), Ok(1..)) {
                    break;
                }
            }
        }
    }

    fn clear(&mut self) {
        while !self.0.is_empty() {
            self.close_first();
        }
    }
}

/// Warns at most every [`LOG_PAUSE`]: what a stranger can cause must not fill a disk.
#[derive(Default)]
struct Log {
    last: Option<Instant>,
}

impl Log {
    fn warn(&mut self, message: impl FnOnce() -> String) {
        if self.last.is_none_or(|last| last.elapsed() >= LOG_PAUSE) {
            self.last = Some(Instant::now());
            log::warn!("{}", message());
        }
    }
}

/// Short enough to accept again well within a second after descriptors are free.
const PAUSE: Duration = Duration::from_millis(50);

/// How many refused connections are kept, and for how long at least while others come.
const KEPT: usize = 16;
const KEPT_FOR: Duration = Duration::from_secs(1);

const LOG_PAUSE: Duration = Duration::from_secs(10);

const REFUSAL: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\n\
    Content-Type: text/plain; charset=utf-8\r\n\
    Content-Length: 20\r\n\
    Connection: close\r\n\r\n\
    too many connections";
