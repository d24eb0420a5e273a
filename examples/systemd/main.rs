//! A node as a systemd service: it notifies systemd when it is ready, feeds the watchdog, takes the socket that
//! systemd listens on, and drains on SIGTERM.
//!
//! Its group `files` serves the files of its state directory. Its arguments are the URL of this node and
//! those of its peers.

use std::error::Error;
use std::net::TcpListener;
use std::path::{Component, Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use larder::http::{HttpPool, ServerLimits};
use larder::{Context, Group, Sink};
use listenfd::ListenFd;
use sd_notify::NotifyState;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

fn main() -> Result<(), Box<dyn Error>> {
    // Before the first thread, so that all threads leave the signals to this one.
    let mut signals = Signals::new([SIGTERM, SIGINT])?;
    let urls: Vec<String> = std::env::args().skip(1).collect();
    let own_url = urls
        .first()
        .ok_or("usage: systemd-node OWN-URL [PEER-URL...]")?;
    let state = std::env::var_os("STATE_DIRECTORY").map_or_else(|| ".".into(), PathBuf::from);

    let pool = HttpPool::builder(own_url).small().build()?;
    pool.set(&urls)?;
    let files = Group::builder("files").small().build(
        move |_: &Context, key: &str, dest: &mut dyn Sink| {
            if key == ALIVE {
                return Ok(dest.set_str(ALIVE)?);
            }
            Ok(dest.set_bytes(&std::fs::read(state.join(checked(key)?))?)?)
        },
    )?;
    let server = pool.server().limits(ServerLimits::small());
    let server = server.serve_listener(listener(own_url)?)?;
    sd_notify::notify(false, &[NotifyState::Ready])?;

    let (send, ended) = channel();
    thread::spawn(move || signals.forever().next().map(|signal| send.send(signal)));
    let mut micros = 0;
    let watched = sd_notify::watchdog_enabled(false, &mut micros);
    // Twice as often as systemd asks. Without a watchdog the node wakes up once an hour.
    let pause = if watched {
        Duration::from_micros(micros / 2)
    } else {
        Duration::from_secs(3600)
    };
    while let Err(RecvTimeoutError::Timeout) = ended.recv_timeout(pause) {
        // A node that cannot answer itself gets no more time.
        let ctx = Context::background().with_timeout(pause);
        files.remove_local(ALIVE);
        if files.get_with(&ctx, ALIVE).is_ok() {
            sd_notify::notify(false, &[NotifyState::Watchdog])?;
        }
    }
    sd_notify::notify(false, &[NotifyState::Stopping])?;
    // The peers take over what is in use.
    pool.leave(Duration::from_secs(2));
    // Requests that are under way get their answers. `TimeoutStopSec=` is longer.
    server.shutdown(Duration::from_secs(5))?;
    Ok(())
}

/// The socket that systemd passes, or one of its own.
fn listener(own_url: &str) -> Result<TcpListener, Box<dyn Error>> {
    if let Some(listener) = ListenFd::from_env().take_tcp_listener(0)? {
        return Ok(listener);
    }
    let address = own_url
        .strip_prefix("http://")
        .ok_or("the URL begins with http://")?;
    Ok(TcpListener::bind(address.trim_end_matches('/'))?)
}

/// A key as a path below the state directory.
fn checked(key: &str) -> Result<&Path, Box<dyn Error + Send + Sync>> {
    let path = Path::new(key);
    match path
        .components()
        .all(|part| matches!(part, Component::Normal(_)))
    {
        true => Ok(path),
        false => Err(larder::Error::not_found("no file of the state directory").into()),
    }
}

/// A key of the watchdog's own, which is loaded anew each time.
const ALIVE: &str = "\u{0}alive";
