//! A server runs out of descriptors or threads, or is shut down under load.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::cluster::wake_up_delay;
use crate::common::{PATIENCE, eventually, millis, seconds, start};
use crate::process::Process;

/// The path of a key at a node.
pub fn request(key: &str) -> String {
    format!("GET /_groupcache/values/{key} HTTP/1.1\r\nHost: h\r\n\r\n")
}

fn connect(node: &Process) -> TcpStream {
    let stream = TcpStream::connect(node.addr()).expect("the kernel accepts");
    stream.set_read_timeout(Some(PATIENCE)).expect("valid");
    stream
}

/// The status of the next response; `None` if the connection ended before it.
fn status(stream: &mut TcpStream) -> Option<u16> {
    let mut begin = [0; 12];
    stream.read_exact(&mut begin).ok()?;
    std::str::from_utf8(&begin[9..]).ok()?.parse().ok()
}

/// Waits until a figure of the node is at least `least`.
fn until(node: &mut Process, figure: &str, least: usize) {
    let start = Instant::now();
    loop {
        let number: usize = node.number(figure);
        if number >= least {
            return;
        }
        assert!(start.elapsed() < PATIENCE, "{number} {figure}");
        thread::sleep(millis(5));
    }
}

/// 100 clients ask at the same time, and leave. Returns the statuses that they got meanwhile, and how
/// long it then took until a new client was served.
fn flood(node: &mut Process) -> (Vec<Option<u16>>, Duration) {
    let mut clients: Vec<_> = (0..100).map(|_| connect(node)).collect();
    for client in &mut clients {
        // The server may have refused and closed it.
        let _ = client.write_all(request("k").as_bytes());
    }
    for client in &clients {
        client.set_nonblocking(true).expect("valid");
    }
    let has_answer = |client: &TcpStream| client.peek(&mut [0]).is_ok_and(|len| len > 0);
    eventually("an answer", || clients.iter().any(has_answer));
    thread::sleep(millis(300));
    assert!(node.is_alive());
    let mut statuses = Vec::new();
    for client in &mut clients {
        statuses.push(status(client));
    }
    drop(clients);
    let released = Instant::now();
    loop {
        let mut client = connect(node);
        let sent = client.write_all(request("k").as_bytes());
        if sent.is_ok() && status(&mut client) == Some(200) {
            break;
        }
        assert!(
            released.elapsed() < PATIENCE,
            "it accepts no client any more"
        );
        thread::sleep(millis(5));
    }
    (statuses, released.elapsed())
}

#[test]
fn server_leaves_half_of_the_descriptors_to_the_program() {
    let mut node = Process::start_with_limits("ulimit -n 100", "");
    let before: usize = node.number("descriptors");
    assert!(before < 20, "{before} descriptors of the node's own");
    let clients: Vec<_> = (0..150).map(|_| connect(&node)).collect();
    until(&mut node, "connections", 50);
    let connections: usize = node.number("connections");
    assert!(connections <= 50, "{connections} connections");
    // The server keeps 16 refused connections open for a moment, too, and accepts one more. Connections
    // that made room may not have ended yet.
    let start = Instant::now();
    loop {
        let found: usize = node.number("descriptors");
        if found <= before + 50 + 17 {
            break;
        }
        assert!(start.elapsed() < seconds(5), "{found} descriptors");
        thread::sleep(millis(5));
    }
    drop(clients);
}

#[test]
fn server_out_of_descriptors_lives_and_accepts_again() {
    let mut node = Process::start_with_limits("ulimit -n 40", "max_connections=256");
    let (statuses, took) = flood(&mut node);
    let served = statuses
        .iter()
        .filter(|status| **status == Some(200))
        .count();
    assert!((1..40).contains(&served), "{served} of 100 were served");
    let control = wake_up_delay(10);
    assert!(
        took < millis(1000) + 10 * control,
        "{took:?}, control {control:?}"
    );
    assert_eq!(node.ask("get k"), "value of k");
}

#[test]
fn logger_that_panics_does_not_end_the_server() {
    let mut node = Process::start_with_limits("ulimit -n 40", "logger=panics max_connections=256");
    // The server warns that it cannot accept.
    let (statuses, _) = flood(&mut node);
    assert!(statuses.iter().any(Option::is_none));
    assert_eq!(node.ask("get k"), "value of k");
    let took: u64 = node.number("shutdown 5000");
    assert!(took < 5000, "{took} ms");
}

/// A user without other processes, because the limit is for all threads of a user.
const USER: &str = "61234";

#[test]
#[ignore = "needs root: .ci/faults.sh"]
fn needs_root_server_out_of_threads_refuses_with_503_and_lives() {
    // Other users may not be able to read the program where it was built.
    let folder = std::env::temp_dir().join(format!("larder-faults-{}", std::process::id()));
    std::fs::create_dir(&folder).expect("a new folder");
    let program = folder.join("faults");
    let this = std::env::current_exe().expect("the path of this program");
    std::fs::copy(this, &program).expect("a copy");
    for path in [&folder, &program] {
        let all = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(path, all).expect("it is ours");
    }
    let ids = ["--reuid", "--regid"].map(|option| format!("{option}={USER}"));
    let program = program.to_str().expect("text").to_owned();
    // The first argument of the shell is the path of this program, which the copy replaces.
    let script = format!("shift; exec {program} \"$@\"");
    let limit = ["prlimit", "--nproc=24", "sh", "-c", &script, "sh"];
    let by = [&["setpriv", &ids[0], &ids[1], "--clear-groups"], &limit[..]].concat();
    let mut node = Process::start_by(&by, "");
    // The value is cached before the flood, because its load needs a loader thread. If the threads of
    // connections take all, no load can begin.
    assert_eq!(node.ask("get k"), "value of k");
    let (statuses, _) = flood(&mut node);
    let count = |wanted| {
        statuses
            .iter()
            .filter(|status| **status == Some(wanted))
            .count()
    };
    assert!(count(200) > 0 && count(200) < 24, "{statuses:?}");
    assert!(count(503) > 0, "{statuses:?}");
    assert_eq!(node.ask("get k"), "value of k");

    // The group's own loader threads are refused in the same way.
    let held: Vec<_> = (0..24)
        .map(|n| {
            let mut client = connect(&node);
            let _ = client.write_all(request(&format!("slow:60000:{n}")).as_bytes());
            client
        })
        .collect();
    // Each of these callers leaves, and its load keeps a thread until there is none.
    let mut refused = (0..100).map(|n| node.ask(&format!("get slow:60000:own{n} 200")));
    assert!(refused.any(|refused| refused.starts_with("Overloaded")));
    drop(held);
    drop(node);
    std::fs::remove_dir_all(&folder).expect("it is ours");
}

#[test]
fn shutdown_under_load_finishes_requests_and_leaves_nothing_behind() {
    let mut node = Process::start("");
    let before: usize = node.number("descriptors");
    assert_eq!(node.number::<usize>("threads larder-conn"), 0);
    let stop = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..8)
        .map(|n| {
            let (addr, stop) = (node.addr().to_owned(), stop.clone());
            start(move || load(&addr, n, &stop))
        })
        .collect();
    until(&mut node, "connections", 8);
    until(&mut node, "served", 40);
    let took: u64 = node.number("shutdown 5000");
    assert!(took < 5000, "{took} ms");
    stop.store(true, Ordering::SeqCst);
    let mut served = 0;
    for client in clients {
        served += client.end();
    }
    assert!(served > 8, "{served} requests were served");
    for name in ["larder-conn", "larder-accept"] {
        assert_eq!(
            node.number::<usize>(&format!("threads {name}")),
            0,
            "{name}"
        );
    }
    let after: usize = node.number("descriptors");
    assert!(
        after < before,
        "{before} descriptors while it listened, {after} after"
    );
    let port = node.addr().rsplit_once(':').expect("a port").1.to_owned();
    let mut next = Process::start(&format!("port={port}"));
    assert_eq!(next.url, node.url);
    assert_eq!(next.ask("get k"), "value of k");
}

/// Asks until the server is gone. Each response is whole, or does not begin. Returns their number.
fn load(addr: &str, n: usize, stop: &AtomicBool) -> usize {
    let mut served = 0;
    while let Ok(stream) = TcpStream::connect(addr) {
        stream.set_read_timeout(Some(PATIENCE)).expect("valid");
        let mut client = crate::raw_client::Client::new(stream);
        loop {
            let key = format!("slow:20:{n}:{served}");
            if client.try_send(request(&key).as_bytes()).is_err() {
                break;
            }
            match client.try_reply(true) {
                Ok(Some(reply)) => {
                    assert_eq!(reply.value(), format!("value of {key}"));
                    served += 1;
                }
                Ok(None) => break,
                Err(error) => {
                    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{error}");
                    break;
                }
            }
        }
        if stop.load(Ordering::SeqCst) {
            break;
        }
    }
    served
}
