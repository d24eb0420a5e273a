//! The processes of the cluster as the parent sees them: started, spoken to, killed.

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use larder::BoxError;

use crate::protocol::{FromNode, ToNode};

/// What happened at a node.
pub enum Event {
    Said(FromNode),
    /// Its output ended, or was not what a node says; with the reason.
    Gone(String),
}

/// How nodes are started.
pub struct Setup {
    pub dir: PathBuf,
    pub threads: usize,
    /// In bytes.
    pub cache: u64,
}

/// Node processes by their numbers. Dropping it ends them all.
pub struct Fleet {
    setup: Setup,
    nodes: Vec<Option<Process>>,
    events: Receiver<(usize, Event)>,
    /// Kept for the readers of nodes that are started later.
    report_to: Sender<(usize, Event)>,
}

impl Fleet {
    /// Room for `size` nodes, none of which is started.
    pub fn new(size: usize, setup: Setup) -> Self {
        let (report_to, events) = mpsc::channel();
        Fleet {
            setup,
            nodes: (0..size).map(|_| None).collect(),
            events,
            report_to,
        }
    }

    /// Starts a node, on `port` or, if that is 0, on one that the system chooses.
    pub fn start(&mut self, node: usize, port: u16) -> Result<(), BoxError> {
        let setup = &self.setup;
        let mut child = Command::new(std::env::current_exe()?)
            .arg("node")
            .arg("--dir")
            .arg(&setup.dir)
            .arg(format!("--port={port}"))
            .arg(format!("--threads={}", setup.threads))
            .arg(format!("--cache={}", setup.cache.div_ceil(1024)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            return Err("a node was started without pipes".into());
        };
        let report_to = self.report_to.clone();
        let reader = thread::spawn(move || listen(node, output, &report_to));
        self.nodes[node] = Some(Process {
            child,
            input,
            reader: Some(reader),
        });
        Ok(())
    }

    /// Says something to a node. One that is gone does not hear it; its `Gone` event tells.
    pub fn tell(&mut self, node: usize, message: &ToNode) {
        if let Some(process) = &mut self.nodes[node] {
            // Fails only if the node is gone.
            let _ = process.input.write_all(format!("{message}\n").as_bytes());
        }
    }

    /// Kills a node with SIGKILL. What it said before is among the events when this returns.
    pub fn kill(&mut self, node: usize) {
        // The drop kills.
        self.nodes[node] = None;
    }

    /// The next event before `deadline`; `None` if there is none.
    pub fn next_event(&self, deadline: Instant) -> Option<(usize, Event)> {
        let left = deadline.saturating_duration_since(Instant::now());
        // Not disconnected, since this has a sender itself: an error is the time being over.
        self.events.recv_timeout(left).ok()
    }
}

struct Process {
    child: Child,
    input: ChildStdin,
    reader: Option<JoinHandle<()>>,
}

impl Drop for Process {
    fn drop(&mut self) {
        // All fail only if the process, or the reader with it, has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = self.reader.take().map(JoinHandle::join);
    }
}

/// Passes on what a node says, until it says no more.
fn listen(node: usize, output: ChildStdout, report_to: &Sender<(usize, Event)>) {
    let mut reason = "its output ended".to_owned();
    for line in BufReader::new(output).lines() {
        match line.map_err(BoxError::from).and_then(|line| line.parse()) {
            Ok(message) => {
                // Nobody listens any more once the parent is on its way out.
                let _ = report_to.send((node, Event::Said(message)));
            }
            Err(error) => {
                reason = error.to_string();
                break;
            }
        }
    }
    let _ = report_to.send((node, Event::Gone(reason)));
}
