//! The server accepts connections again after the process ran out of file descriptors.

use std::fs::File;
use std::net::TcpStream;
use std::process::Command;
use std::time::{Duration, Instant};

use super::support::{Client, get, serve};

/// Environment variable that is set in the child process.
const CHILD: &str = "LARDER_TEST_STARVED";

/// The test runs itself in a child process that may open only 40 descriptors.
#[test]
fn server_accepts_again_after_descriptors_ran_out() {
    if std::env::var_os(CHILD).is_some() {
        return starve();
    }
    let this = std::env::current_exe().expect("the test's own path");
    let name = "server::starvation::server_accepts_again_after_descriptors_ran_out";
    let output = Command::new("sh")
        .args(["-c", "ulimit -n 40 && exec \"$0\" --exact \"$1\""])
        .arg(this)
        .arg(name)
        .env(CHILD, "1")
        .output()
        .expect("a shell");
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{stdout}");
    assert!(
        stdout.contains("1 passed"),
        "the child process ran no test of this name: {stdout}"
    );
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
    // Each client takes a descriptor, and the server needs another one to accept it. The accept thread
    // may get some of the descriptors that are free in between, but it cannot accept all clients.
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
    let took = released.elapsed();
    assert!(took < Duration::from_secs(1), "{took:?}");
    server.shutdown(Duration::from_secs(5)).expect("in time");
}
