//! The handle of a process: this program, started again. It answers each line with a line.

use std::io::{BufRead, BufReader, Result, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;

/// The environment variable with the options of a node. A program that finds it set is a node.
pub const OPTIONS: &str = "LARDER_TEST_NODE";

/// Marks the lines of a node. The test harness prints text of its own, also in front of the mark.
pub const MARK: &str = "> ";

/// Killed when it is dropped. The calls panic if the node does not answer.
pub struct Process {
    pub url: String,
    pub child: Child,
    input: ChildStdin,
    lines: Receiver<String>,
}

impl Process {
    /// Starts a node by a command that ends with this program, and waits until it listens. Its first line is
    /// its URL.
    pub fn spawn(mut command: Command, options: &str) -> Result<Process> {
        let mut child = command
            .env(OPTIONS, options)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let output = BufReader::new(child.stdout.take().expect("a pipe"));
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                if let Some((_, line)) = line.split_once(MARK) {
                    // Fails after the handle is dropped.
                    let _ = sender.send(line.to_owned());
                }
            }
        });
        let mut process = Process {
            url: String::new(),
            input: child.stdin.take().expect("a pipe"),
            child,
            lines,
        };
        process.url = process.line();
        Ok(process)
    }

    /// Sends a command and waits for its result.
    pub fn ask(&mut self, line: &str) -> String {
        self.begin(line);
        self.line()
    }

    /// Sends a command. [`line`](Self::line) waits for its result.
    pub fn begin(&mut self, line: &str) {
        writeln!(self.input, "{line}").expect("the node runs");
    }

    /// The next result.
    pub fn line(&mut self) -> String {
        let line = self.lines.recv_timeout(PATIENCE);
        line.unwrap_or_else(|error| panic!("the node {}: {error}", self.url))
    }

    /// Sends a signal, by its name.
    pub fn signal(&self, name: &str) {
        let mut kill = Command::new("kill");
        let status = kill.args(["-s", name, &self.child.id().to_string()]);
        assert!(status.status().expect("a status").success(), "SIG{name}");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both calls fail only if the process has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const PATIENCE: Duration = Duration::from_secs(60);
