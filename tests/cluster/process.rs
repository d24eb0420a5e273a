//! A node in a process of its own: this test program, started again for one ignored test.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;

use crate::node::Counts;

/// The environment variable with the port of a node. 0 lets the system choose a port.
pub const PORT: &str = "LARDER_TEST_NODE_PORT";

/// The lines of a node begin with this. The test harness prints lines of its own.
pub const MARK: &str = "> ";

const PATIENCE: Duration = Duration::from_secs(60);

/// Killed when it is dropped.
pub struct Process {
    pub port: u16,
    child: Child,
    input: ChildStdin,
    lines: Receiver<String>,
}

impl Process {
    /// Starts a node and waits until it listens.
    pub fn start(port: u16) -> Process {
        let program = std::env::current_exe().expect("the path of this program");
        let mut child = Command::new(program)
            .args(["--exact", "node_process", "--ignored", "--nocapture"])
            .env(PORT, port.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a node starts");
        let output = BufReader::new(child.stdout.take().expect("a pipe"));
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                if let Some((_, line)) = line.split_once(MARK) {
                    // Sending fails after the node's handle is dropped.
                    let _ = sender.send(line.to_owned());
                }
            }
        });
        let input = child.stdin.take().expect("a pipe");
        let mut node = Process {
            port,
            child,
            input,
            lines,
        };
        node.port = node.line().parse().expect("a port");
        node
    }

    pub fn ask(&mut self, line: &str) -> String {
        writeln!(self.input, "{line}").expect("the node runs");
        self.line()
    }

    /// The counts of the node when its callers have made `calls` calls.
    pub fn report(&mut self, calls: u64) -> Counts {
        self.ask(&format!("report {calls}"))
            .parse()
            .expect("counts")
    }

    /// Kills the process with SIGKILL and waits for its end.
    pub fn kill(&mut self) {
        self.child.kill().expect("the node runs");
        self.child.wait().expect("the node is a child");
    }

    fn line(&mut self) -> String {
        let line = self.lines.recv_timeout(PATIENCE);
        line.unwrap_or_else(|error| panic!("the node on port {}: {error}", self.port))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both calls fail only if the process has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
