//! The handle of a node. A node is a child process. It prints its port, then answers each line with a line.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;

use larder::BoxError;

use crate::node::Counts;

/// A running node. Dropping this handle kills the process with SIGKILL.
pub struct Process {
    pub port: u16,
    child: Child,
    input: ChildStdin,
    lines: Receiver<String>,
}

impl Process {
    /// Starts a node and waits until it listens on this port. If `port` is 0, the system chooses one.
    pub fn start(dir: &Path, port: u16, cache: usize) -> Result<Process, BoxError> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg("--dir")
            .arg(dir)
            .args(["--node", &port.to_string(), &cache.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let output = BufReader::new(child.stdout.take().ok_or("no pipe")?);
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            // The thread ends when the process has ended, or when nothing receives the lines any more.
            let lines = output.lines().map_while(Result::ok);
            lines.map(|line| sender.send(line)).all(|sent| sent.is_ok())
        });
        let mut node = Process {
            port,
            input: child.stdin.take().ok_or("no pipe")?,
            child,
            lines,
        };
        node.port = node.line()?.parse()?;
        Ok(node)
    }

    /// Sends a line, and returns the line with which the node answers.
    pub fn ask(&mut self, line: &str) -> Result<String, BoxError> {
        writeln!(self.input, "{line}")?;
        self.line()
    }

    /// Asks for a report by `command`. Returns its counts, and its row of the table.
    pub fn report(&mut self, command: &str) -> Result<(Counts, String), BoxError> {
        let report = self.ask(command)?;
        let mut counts = Counts::default();
        let mut row = report.as_str();
        for count in &mut counts {
            let (number, rest) = row.split_once(' ').ok_or("a report has too few numbers")?;
            *count = number.parse()?;
            row = rest;
        }
        Ok((counts, row.to_owned()))
    }

    /// Returns the next line, or an error if the process has ended or printed no line for [`PATIENCE`].
    fn line(&mut self) -> Result<String, BoxError> {
        let line = self.lines.recv_timeout(PATIENCE);
        line.map_err(|error| format!("the node on port {}: {error}", self.port).into())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both calls fail only if the process has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The longest wait for a line.
const PATIENCE: Duration = Duration::from_secs(10);
