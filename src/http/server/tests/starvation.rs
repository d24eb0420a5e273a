//! What happens when the system has no descriptors left.

use std::fs::File;
use std::net::TcpStream;
use std::process::Command;
use std::time::{Duration, Instant};

use super::support::{Client, get, serve};

/// Set in the process that [`descriptors_run_out_and_come_back`] starts.
const CHILD: &str = "LARDER_TEST_STARVED";

/// Runs itself in a process that may open only 40 descriptors.
#[test]
fn descriptors_run_out_and_come_back() {
    if std::env::var_os(CHILD).is_some() {
        return starve();
    }
    let this = std::env::current_exe().expect("the test's own path");
    let name = "http::tests::starvation::descriptors_run_out_and_come_back";
    let status = Command::new("sh")
        .args(["-c", "ulimit -n 40 && exec \"$0\" --exact \"$1\""])
        .arg(this)
        .arg(name)
        .env(CHILD, "1")
        .status()
        .expect("a shell");
    assert!(status.success());
}

fn starve() {
    let server = serve(|server| server);
    let addr = server.local_addr();
    let mut early = Client::sending(addr, get("k"));
    assert_eq!(early.reply().value(), "k");
    let mut files = Vec::new();
    while let Ok(file) = File::open("/dev/null") {
        files.push(file);
        assert!(files.len() < 40);
    }
    // Each client takes a descriptor, and needs another to be accepted with. Whether the accept
    // thread gets the ones in between, or has one in reserve, is a matter of the moment; not all
    // of these clients can be accepted.
    let mut late = Vec::new();
    while late.len() < 3 {
        files.pop().expect("descriptors are left to give back");
        if let Ok(stream) = TcpStream::connect(addr) {
            let mut client = Client::new(stream);
            client.send(get("late"));
            late.push(client);
        }
    }
    std::thread::sleep(Duration::from_millis(200));
    early.send(get("k"));
    assert_eq!(early.reply().value(), "k");

    files.clear();
    let released = Instant::now();
    for client in &mut late {
        assert_eq!(client.reply().value(), "late");
    }
    assert!(released.elapsed() < Duration::from_secs(1));
    server.shutdown(Duration::from_secs(5)).expect("in time");
}
