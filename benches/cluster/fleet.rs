//! The parent's handles of the nodes, and their counts.

use std::collections::HashSet;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

use crate::GETS;

/// The steps of a run. Between two steps all nodes wait for each other.
pub const STEPS: usize = 50;

/// The counts of one run of a cluster.
pub struct Run {
    /// The counts of all nodes together after each step. The first ones are zero.
    counts: Vec<Counts>,
    /// Keys that each node owns.
    pub owned: Vec<f64>,
    pub loads_by_node: Vec<f64>,
    different_keys: usize,
}

#[derive(Clone, Copy, Default)]
struct Counts {
    asked: f64,
    failed: f64,
    loads: f64,
}

impl Run {
    /// The percentage of the gets from one step to another that left their node.
    pub fn leave_pct(&self, from: usize, to: usize) -> f64 {
        let asked = self.counts[to].asked - self.counts[from].asked;
        100.0 * asked / gets(from, to)
    }

    /// Loads for each get from one step to another.
    pub fn origin_pct(&self, from: usize, to: usize) -> f64 {
        100.0 * (self.loads(to) - self.loads(from)) / gets(from, to)
    }

    /// Loads until a step.
    pub fn loads(&self, step: usize) -> f64 {
        self.counts[step].loads
    }

    pub fn loads_per_key(&self) -> f64 {
        self.loads(STEPS) / self.different_keys as f64
    }

    pub fn failed(&self) -> f64 {
        self.counts[STEPS].failed
    }
}

fn gets(from: usize, to: usize) -> f64 {
    ((to - from) * (GETS / STEPS)) as f64
}

/// The processes, killed when it is dropped.
pub struct Fleet {
    nodes: Vec<Node>,
    owned: Vec<f64>,
}

impl Fleet {
    /// Starts the nodes and gives each the list of all.
    pub fn start(size: usize, admission: &str, room: f64, round: u64) -> Fleet {
        let mut nodes: Vec<Node> = (0..size)
            .map(|n| {
                let seed = (round << 16) + n as u64;
                Node::start([
                    admission,
                    &room.to_string(),
                    &size.to_string(),
                    &seed.to_string(),
                ])
            })
            .collect();
        let urls: Vec<String> = nodes
            .iter_mut()
            .map(|node| {
                let line = node.answer();
                let url = line.strip_prefix("at ");
                url.unwrap_or_else(|| panic!("unexpected line of a node: {line}"))
                    .to_owned()
            })
            .collect();
        let mut fleet = Fleet {
            nodes,
            owned: Vec::new(),
        };
        let owned = fleet.ask_all(&format!("peers {}", urls.join(" ")));
        fleet.owned = owned.into_iter().map(|numbers| numbers[0]).collect();
        fleet
    }

    /// Runs the cluster from the cold start to the end.
    pub fn run(mut self) -> Run {
        let mut counts = vec![Counts::default()];
        // The first nodes do one more get where the gets cannot be divided evenly.
        let of_step = GETS / STEPS;
        let size = self.nodes.len();
        let mut loads_by_node = Vec::new();
        for _ in 0..STEPS {
            for (n, node) in self.nodes.iter_mut().enumerate() {
                let gets = of_step / size + usize::from(n < of_step % size);
                node.send_line(&format!("run {gets}"));
            }
            let answers = self.answers();
            let sum = |at: usize| answers.iter().map(|numbers| numbers[at]).sum();
            counts.push(Counts {
                asked: sum(0),
                failed: sum(1),
                loads: sum(2),
            });
            loads_by_node = answers.iter().map(|numbers| numbers[2]).collect();
        }
        let loaded = self.ask_all("loaded");
        let different: HashSet<u64> = loaded.iter().flatten().map(|&key| key as u64).collect();
        Run {
            counts,
            owned: std::mem::take(&mut self.owned),
            loads_by_node,
            different_keys: different.len(),
        }
    }

    fn ask_all(&mut self, line: &str) -> Vec<Vec<f64>> {
        for node in &mut self.nodes {
            node.send_line(line);
        }
        self.answers()
    }

    fn answers(&mut self) -> Vec<Vec<f64>> {
        let numbers = |line: String| -> Vec<f64> {
            let words = line.split_whitespace();
            words.map(|word| word.parse().expect("a number")).collect()
        };
        let answers = self.nodes.iter_mut().map(|node| numbers(node.answer()));
        answers.collect()
    }
}

struct Node {
    child: Child,
    input: ChildStdin,
    lines: Receiver<String>,
}

impl Node {
    fn start(arguments: [&str; 4]) -> Node {
        let executable = std::env::current_exe().expect("this program has a path");
        let mut child = Command::new(executable)
            .arg("--node")
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a node starts");
        let output = BufReader::new(child.stdout.take().expect("a pipe"));
        let (send, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                if send.send(line).is_err() {
                    break;
                }
            }
        });
        Node {
            input: child.stdin.take().expect("a pipe"),
            child,
            lines,
        }
    }

    fn send_line(&mut self, line: &str) {
        writeln!(self.input, "{line}").expect("the node listens");
    }

    /// The next line. A node that prints none for too long ends the benchmark and so the other nodes.
    fn answer(&mut self) -> String {
        let line = self.lines.recv_timeout(PATIENCE);
        line.unwrap_or_else(|error| panic!("a node does not answer: {error}"))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // The process may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Far longer than a step takes.
const PATIENCE: Duration = Duration::from_secs(60);
