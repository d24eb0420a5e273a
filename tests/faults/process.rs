//! Nodes in processes of their own: this test program, started again for one ignored test.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::str::FromStr;
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;

/// The environment variable with the options of a node. The test program has an ignored test
/// `node_process`, which runs the node that they describe.
pub const OPTIONS: &str = "LARDER_TEST_NODE";

/// The lines of a node begin with this. The test harness prints lines of its own.
pub const MARK: &str = "> ";

const PATIENCE: Duration = Duration::from_secs(60);

/// Killed when it is dropped.
pub struct Process {
    pub url: String,
    child: Child,
    input: ChildStdin,
    lines: Receiver<String>,
}

impl Process {
    /// Starts a node and waits until it listens. Its first line is its URL.
    pub fn start(options: &str) -> Process {
        Process::start_by(&[], options)
    }

    /// The same, by a shell that runs `limits` first, such as `ulimit -n 40`.
    pub fn start_with_limits(limits: &str, options: &str) -> Process {
        Process::start_by(
            &["sh", "-c", &format!("{limits}; exec \"$@\""), "sh"],
            options,
        )
    }

    /// The same, by the command `by`, which gets the program and its arguments.
    pub fn start_by(by: &[&str], options: &str) -> Process {
        let program = std::env::current_exe().expect("the path of this program");
        let mut words = by
            .iter()
            .map(|word| (*word).into())
            .chain([program.into_os_string()]);
        let mut child = Command::new(words.next().expect("a program"))
            .args(words)
            .args([
                "--exact",
                "node_process",
                "--ignored",
                "--nocapture",
                "--test-threads=1",
            ])
            .env(OPTIONS, options)
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
            url: String::new(),
            child,
            input,
            lines,
        };
        node.url = node.line();
        node
    }

    /// The option with which another process gets the port of this one, once it has ended.
    pub fn same_port(&self) -> String {
        let (_, port) = self.url.rsplit_once(':').expect("a port");
        format!("port={port}")
    }

    pub fn addr(&self) -> &str {
        self.url.trim_start_matches("http://")
    }

    /// Sends a command and waits for its result.
    pub fn ask(&mut self, line: &str) -> String {
        self.begin(line);
        self.line()
    }

    /// Sends a command whose result is a number.
    pub fn number<N: FromStr>(&mut self, line: &str) -> N {
        let answer = self.ask(line);
        answer
            .parse()
            .unwrap_or_else(|_| panic!("not a number: {answer}"))
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

    /// Whether the process runs.
    pub fn is_alive(&mut self) -> bool {
        self.child.try_wait().expect("it is a child").is_none()
    }

    /// Sends a signal, by its name.
    pub fn signal(&self, name: &str) {
        let mut kill = Command::new("kill");
        let status = kill.args(["-s", name, &self.child.id().to_string()]);
        assert!(status.status().expect("a status").success(), "SIG{name}");
    }

    /// The id of the process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Kills the process with SIGKILL and waits for its end.
    pub fn kill(&mut self) {
        self.child.kill().expect("the node runs");
        self.child.wait().expect("the node is a child");
    }
}

/// A number of words such as `gets=1000 errors=0`.
pub fn figure(words: &str, name: &str) -> u64 {
    let mut words = words.split(' ').filter_map(|word| word.split_once('='));
    let found = words.find(|(word, _)| *word == name);
    let (_, number) = found.unwrap_or_else(|| panic!("no {name}"));
    number.parse().expect("a number")
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both calls fail only if the process has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
