//! Nodes in processes of their own: this test program, started again for its ignored test `node_process`.

use std::process::Command;
use std::str::FromStr;

#[path = "../promise/harness/process.rs"]
mod handle;

pub use handle::{MARK, OPTIONS, Process};

impl Process {
    pub fn start(options: &str) -> Process {
        Process::start_by(&[], options)
    }

    /// Starts a node by a shell that runs `limits` first, such as `ulimit -n 40`.
    pub fn start_with_limits(limits: &str, options: &str) -> Process {
        Process::start_by(
            &["sh", "-c", &format!("{limits}; exec \"$@\""), "sh"],
            options,
        )
    }

    /// Starts a node by the command `by`, which gets the program and its arguments.
    pub fn start_by(by: &[&str], options: &str) -> Process {
        let program = std::env::current_exe().expect("the path of this program");
        let words = by.iter().map(|word| (*word).into());
        let mut words = words.chain([program.into_os_string()]);
        let mut command = Command::new(words.next().expect("a program"));
        command.args(words).args([
            "--exact",
            "node_process",
            "--ignored",
            "--nocapture",
            "--test-threads=1",
        ]);
        Process::spawn(command, options).expect("a node starts")
    }

    /// The option with which another process gets the port of this one, once it has ended.
    pub fn same_port(&self) -> String {
        let (_, port) = self.url.rsplit_once(':').expect("a port");
        format!("port={port}")
    }

    pub fn addr(&self) -> &str {
        self.url.trim_start_matches("http://")
    }

    /// Sends a command whose result is a number.
    pub fn number<N: FromStr>(&mut self, line: &str) -> N {
        let answer = self.ask(line);
        answer
            .parse()
            .unwrap_or_else(|_| panic!("not a number: {answer}"))
    }

    /// Whether the process runs.
    pub fn is_alive(&mut self) -> bool {
        self.child.try_wait().expect("it is a child").is_none()
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
