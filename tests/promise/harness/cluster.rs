//! A set of processes with one source. Each can be killed, stopped, cut off, delayed, started again.

use std::ffi::OsString;
use std::io::{Error, Result};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use super::clock;
use super::judge::{Counts, Judge};
use super::namespaces::Namespaces;
use super::node::Options;
use super::process::Process;
use super::source::Source;

/// The options of a cluster.
#[derive(Clone)]
pub struct Setup {
    pub nodes: usize,
    /// This program, and the arguments with which it becomes a node.
    pub program: Vec<OsString>,
    pub seed: u64,
    /// Whether each process has a network of its own. Needs root.
    pub namespaces: bool,
    pub adjustable_clock: bool,
    /// `max_unverified` in milliseconds, 0 for none.
    pub unverified_ms: u64,
}

/// Is called back while a cluster runs.
pub trait Watch {
    fn second(&mut self, _: &Second<'_>) {}
    fn event(&mut self, _: &str) {}
}

/// The state after a second. The numbers count from the start.
pub struct Second<'c> {
    pub states: &'c [State],
    pub counts: Counts,
    pub violations: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Up,
    Dead,
    Stopped,
    Cut,
    Unlisted,
}

/// The outcome of a run.
pub struct Verdict {
    pub counts: Counts,
    /// A sentence for each.
    pub violations: Vec<String>,
    /// The counters of each node.
    pub status: Vec<String>,
}

pub struct Cluster<'w> {
    setup: Setup,
    watch: &'w mut dyn Watch,
    // Fields are dropped in their order, so the processes end first.
    processes: Vec<Option<Process>>,
    namespaces: Option<Namespaces>,
    judge: Judge,
    wakeups: WakeupMeter,
    dir: Dir,
    urls: Vec<String>,
    states: Vec<State>,
    runs: Vec<usize>,
    /// The counts at the end of the last second.
    pub counts: Counts,
    violations: usize,
    next_second: Instant,
}

/// A new directory, which is removed on drop.
struct Dir(PathBuf);

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

impl<'w> Cluster<'w> {
    /// Starts the processes. They get and remove from then on.
    pub fn start(setup: Setup, watch: &'w mut dyn Watch) -> Result<Cluster<'w>> {
        static CLUSTERS: AtomicU64 = AtomicU64::new(0);
        let unique = CLUSTERS.fetch_add(1, Relaxed);
        let name = format!("larder-promise-{}-{unique}", std::process::id());
        let dir = Dir(std::env::temp_dir().join(name));
        std::fs::create_dir(&dir.0)?;
        Source::create(&dir.0, KEYS)?;
        let nodes = setup.nodes;
        let mut cluster = Cluster {
            watch,
            processes: Vec::new(),
            namespaces: match setup.namespaces {
                true => Some(Namespaces::create(nodes)?),
                false => None,
            },
            judge: Judge::new(&dir.0, nodes, KEYS),
            wakeups: WakeupMeter::start(),
            dir,
            urls: Vec::new(),
            states: vec![State::Up; nodes],
            runs: vec![0; nodes],
            counts: Counts::default(),
            violations: 0,
            next_second: Instant::now() + SECOND,
            setup,
        };
        for node in 0..nodes {
            let process = cluster.start_process(node)?;
            cluster.urls.push(process.url.clone());
            cluster.processes.push(Some(process));
        }
        for node in 0..nodes {
            cluster.introduce(node)?;
        }
        for node in 0..nodes {
            cluster.ask(node, "change")?;
        }
        Ok(cluster)
    }

    fn start_process(&self, node: usize) -> Result<Process> {
        let address = match (&self.namespaces, self.urls.get(node)) {
            (_, Some(url)) => url.trim_start_matches("http://").to_owned(),
            (Some(namespaces), None) => namespaces.address(node),
            (None, None) => "127.0.0.1:0".to_owned(),
        };
        let options = Options {
            node,
            run: self.runs[node],
            dir: self.dir.0.clone(),
            addr: address,
            keys: KEYS,
            adjustable_clock: self.setup.adjustable_clock,
            unverified_ms: self.setup.unverified_ms,
            seed: self.setup.seed,
        };
        let (program, arguments) = self.setup.program.split_first().expect("a program");
        let mut command = match &self.namespaces {
            Some(namespaces) => namespaces.command(node),
            None => Command::new(program),
        };
        if self.namespaces.is_some() {
            command.arg(program);
        }
        command.args(arguments);
        Process::spawn(command, &options.to_words())
    }

    /// Sends the list of nodes to a new process, and starts its gets.
    fn introduce(&mut self, node: usize) -> Result<()> {
        let all = self.urls.join(" ");
        self.ask(node, &format!("nodes {all}"))?;
        self.ask(node, &format!("peers {all}"))?;
        self.ask(node, &format!("get {THREADS}"))?;
        Ok(())
    }

    pub fn nodes(&self) -> usize {
        self.setup.nodes
    }

    fn ask(&mut self, node: usize, line: &str) -> Result<String> {
        let process = self.processes[node].as_mut();
        let process = process.ok_or_else(|| Error::other("the node is dead"))?;
        Ok(process.ask(line))
    }

    fn event(&mut self, event: &str) {
        self.watch.event(event);
    }

    /// Lets time pass, and reads the records once a second.
    pub fn wait(&mut self, time: Duration) -> Result<()> {
        let end = Instant::now() + time;
        while Instant::now() < end {
            let next = end.min(self.next_second);
            thread::sleep(next.saturating_duration_since(Instant::now()));
            if Instant::now() >= self.next_second {
                self.next_second += SECOND;
                let before = self.counts.gets;
                self.counts = self.judge.read()?;
                self.violations += self.judge.judge_new(before, self.wakeups.grace());
                self.watch.second(&Second {
                    states: &self.states,
                    counts: self.counts,
                    violations: self.violations,
                });
            }
        }
        Ok(())
    }

    pub fn kill(&mut self, node: usize) {
        // The process is killed when its handle is dropped.
        self.processes[node] = None;
        self.states[node] = State::Dead;
        self.event(&format!("node {node} is killed (SIGKILL)"));
    }

    /// Starts a killed node on its port; if `restores`, with its last dump.
    pub fn restart(&mut self, node: usize, restores: bool) -> Result<()> {
        self.runs[node] += 1;
        self.processes[node] = Some(self.start_process(node)?);
        self.states[node] = State::Up;
        self.judge.note_restart(node, clock::now());
        self.introduce(node)?;
        let restored = match restores {
            true => self.ask(node, "restore")?,
            false => "with an empty cache".to_owned(),
        };
        self.event(&format!("node {node} is started again: {restored}"));
        // A set that the killed process sent may still arrive.
        self.wait(Duration::from_millis(500))?;
        self.ask(node, "change")?;
        Ok(())
    }

    pub fn stop(&mut self, node: usize) -> Result<()> {
        self.states[node] = State::Stopped;
        self.event(&format!("node {node} is stopped (SIGSTOP)"));
        self.signal(node, "STOP")
    }

    pub fn resume(&mut self, node: usize) -> Result<()> {
        self.states[node] = State::Up;
        self.event(&format!("node {node} goes on (SIGCONT)"));
        self.signal(node, "CONT")
    }

    fn signal(&self, node: usize, name: &str) -> Result<()> {
        let process = self.processes[node].as_ref();
        process
            .ok_or_else(|| Error::other("the node is dead"))?
            .signal(name);
        Ok(())
    }

    /// Cuts a node off from all others, or connects it again.
    pub fn set_cut(&mut self, node: usize, is_cut: bool) -> Result<()> {
        if is_cut {
            self.judge.note_cut(clock::now());
        }
        if let Some(namespaces) = &self.namespaces {
            namespaces.set_link(node, !is_cut)?;
        } else {
            for other in 0..self.nodes() {
                let is_cut_from = |n: usize| is_cut && (other == node) != (n == node);
                let cut = (0..self.nodes()).filter(|&n| is_cut_from(n));
                let cut: Vec<&str> = cut.map(|n| &*self.urls[n]).collect();
                self.ask(other, &["cut", &cut.join(" ")].join(" "))?;
            }
        }
        let (state, event) = match is_cut {
            true => (State::Cut, "is cut off"),
            false => (State::Up, "is connected again"),
        };
        self.states[node] = state;
        self.event(&format!("node {node} {event}"));
        Ok(())
    }

    /// Delays each request to a node by up to this many milliseconds.
    pub fn delay(&mut self, node: usize, millis: u64) -> Result<()> {
        for other in 0..self.nodes() {
            let line = format!("delay {} {millis}", self.urls[node]);
            self.ask(other, &line)?;
        }
        self.event(&match millis {
            0 => format!("requests to node {node} are not delayed any more"),
            _ => format!("requests to node {node} are delayed by up to {millis} ms"),
        });
        Ok(())
    }

    /// Takes a node out of the others' lists, or puts it in again.
    pub fn set_listed(&mut self, node: usize, is_listed: bool) -> Result<()> {
        let listed = |&n: &usize| is_listed || n != node;
        let list = (0..self.nodes()).filter(listed).map(|n| &*self.urls[n]);
        let line = ["peers"].into_iter().chain(list).collect::<Vec<_>>();
        let line = line.join(" ");
        for other in (0..self.nodes()).filter(|&other| other != node) {
            self.ask(other, &line)?;
            // The nodes have different lists for a moment.
            self.wait(Duration::from_millis(50))?;
        }
        let (state, event) = match is_listed {
            true => (State::Up, "joins"),
            false => (State::Unlisted, "leaves"),
        };
        self.states[node] = state;
        self.event(&format!("node {node} {event}"));
        Ok(())
    }

    /// Starts or stops the removals and sets of a node.
    pub fn set_changing(&mut self, node: usize, yes: bool) -> Result<()> {
        let yes = if yes { "yes" } else { "no" };
        self.ask(node, &format!("changing {yes}")).map(drop)
    }

    pub fn set_all_changing(&mut self, yes: bool) -> Result<()> {
        (0..self.nodes()).try_for_each(|node| self.set_changing(node, yes))
    }

    pub fn dump(&mut self, node: usize) -> Result<()> {
        let report = self.ask(node, "dump")?;
        self.event(&format!("node {node} writes {report}"));
        Ok(())
    }

    /// Moves the clocks of all nodes, if they are manual ones.
    pub fn advance(&mut self, time: Duration) -> Result<()> {
        if self.setup.adjustable_clock {
            for node in 0..self.nodes() {
                self.ask(node, &format!("advance {}", time.as_millis()))?;
            }
        }
        Ok(())
    }

    /// Lets a node remove this many keys that no other call uses.
    pub fn storm(&mut self, node: usize, keys: usize) -> Result<()> {
        let confirmed = self.ask(node, &format!("storm {keys}"))?;
        self.event(&format!("node {node} removes {keys} keys: {confirmed}"));
        Ok(())
    }

    /// Ends all processes, and judges everything that they recorded.
    pub fn finish(mut self) -> Result<Verdict> {
        let status = (0..self.nodes()).map(|node| self.ask(node, "status"));
        let status = status.collect::<Result<_>>()?;
        self.processes.clear();
        let counts = self.judge.read()?;
        Ok(Verdict {
            counts,
            violations: self.judge.judge_all(self.wakeups.grace()),
            status,
        })
    }
}

/// A thread that measures how late this machine wakes threads.
struct WakeupMeter {
    /// The longest delay of a wake-up, in nanoseconds.
    longest: Arc<AtomicU64>,
    is_over: Arc<AtomicBool>,
}

impl WakeupMeter {
    fn start() -> WakeupMeter {
        let meter = WakeupMeter {
            longest: Arc::default(),
            is_over: Arc::default(),
        };
        let (longest, is_over) = (meter.longest.clone(), meter.is_over.clone());
        thread::spawn(move || {
            let pause = Duration::from_millis(5);
            while !is_over.load(Relaxed) {
                let begun = Instant::now();
                thread::sleep(pause);
                let late = begun.elapsed().saturating_sub(pause);
                longest.fetch_max(clock::nanos(late), Relaxed);
            }
        });
        meter
    }

    /// How long a node may take to repair itself after its first exchange: a second, and more on a machine
    /// that is slow.
    fn grace(&self) -> Duration {
        SECOND + 20 * Duration::from_nanos(self.longest.load(Relaxed))
    }
}

impl Drop for WakeupMeter {
    fn drop(&mut self) {
        self.is_over.store(true, Relaxed);
    }
}

const SECOND: Duration = Duration::from_secs(1);

const KEYS: u64 = 300;

/// The threads of a node that call `get`.
const THREADS: u64 = 4;
