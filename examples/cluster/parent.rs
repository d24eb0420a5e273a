//! The parent: starts the nodes, kills one, starts it again, and watches.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use larder::BoxError;

use crate::corpus::Corpus;
use crate::fleet::{Event, Fleet, Setup};
use crate::latency::Histogram;
use crate::protocol::{Counts, FromNode, ToNode};
use crate::summary::{DiskReads, Phase, Summary, bytes};
use crate::table::{Rates, Row, State, Table};

pub struct Options {
    pub dir: PathBuf,
    pub seconds: u64,
    /// Callers in each node.
    pub threads: usize,
    /// The cache of each node in bytes; `None` for an eighth more than the files have.
    pub cache: Option<u64>,
}

/// Runs the cluster, and prints what happens.
///
/// # Errors
///
/// If a node could not be started or ended by itself, and if a caller saw an error or bytes that
/// are not the file's.
pub fn run(options: &Options) -> Result<(), BoxError> {
    let corpus = Corpus::list(&options.dir).map_err(|error| {
        format!(
            "cannot read the directory {}: {error}",
            options.dir.display()
        )
    })?;
    if corpus.files.is_empty() {
        return Err(format!("there are no files in {}", options.dir.display()).into());
    }
    let cache = options
        .cache
        .unwrap_or(corpus.total() / 8 * 9)
        .max(MIN_CACHE);
    let mut table = Table::new();
    table.note(&format!(
        "{} files, {}, below {}{}",
        corpus.files.len(),
        bytes(corpus.total()),
        options.dir.display(),
        match corpus.skipped {
            0 => String::new(),
            skipped => format!(" ({skipped} left out)"),
        },
    ))?;
    table.note(&format!(
        "{NODES} nodes, each with {} of cache and {} callers",
        bytes(cache),
        options.threads
    ))?;

    let fleet = Fleet::new(
        NODES,
        Setup {
            dir: options.dir.clone(),
            threads: options.threads,
            cache,
        },
    );
    let mut watch = Watch::new(fleet, corpus);
    watch.start_all()?;
    for (number, view) in watch.views.iter().enumerate() {
        table.note(&format!(
            "node {} listens on 127.0.0.1:{}",
            number + 1,
            view.port
        ))?;
    }
    table.legend()?;

    let kill_at = options.seconds / 2;
    let back_at = options.seconds * 3 / 4;
    let began = watch.run_all();
    let mut ready_after = Duration::ZERO;
    for second in 1..=options.seconds {
        watch.listen_until(began + Duration::from_secs(second))?;
        watch.collect_reports()?;
        table.draw(second, &watch.rows())?;
        if second == kill_at {
            watch.kill(VICTIM)?;
            table.note(&format!(
                "{second} s: node {} is killed (SIGKILL)",
                VICTIM + 1
            ))?;
        }
        if second == back_at {
            ready_after = watch.start_again(VICTIM)?;
            table.note(&format!(
                "{second} s: node {} is started again on its port, ready after {} ms",
                VICTIM + 1,
                ready_after.as_millis()
            ))?;
        }
    }
    table.finish();
    watch.stop_all()?;

    let summary = Summary {
        seconds: began.elapsed().as_secs_f64(),
        callers: NODES * options.threads,
        files: watch.corpus.files.len(),
        counts: watch.views.iter().fold(Counts::default(), |sum, view| {
            sum.plus(&view.before).plus(&view.now)
        }),
        latency: watch.latency,
        disk: watch.disk,
        victim: VICTIM + 1,
        kill_at,
        back_at,
        ready_after,
    };
    table.note(&summary.to_string())?;
    for complaint in watch.complaints.iter().take(MAX_SHOWN) {
        table.note(complaint)?;
    }
    summary.verdict()
}

/// What the parent knows of a node.
struct View {
    port: u16,
    state: State,
    /// What the node's earlier processes had counted when they last reported.
    before: Counts,
    /// What this process had counted when it last reported, and when that was.
    now: Counts,
    reported: Instant,
    /// What is shown of the time between the last two reports.
    rates: Option<Rates>,
    /// Signs that the node gave and that were not yet waited for.
    signs: Signs,
}

#[derive(Default)]
struct Signs {
    listening: bool,
    ready: bool,
    report: bool,
    stopped: bool,
    gone: bool,
}

/// The nodes, and what they said so far.
struct Watch {
    fleet: Fleet,
    corpus: Corpus,
    views: Vec<View>,
    phase: Phase,
    disk: DiskReads,
    latency: Histogram,
    /// The texts of errors that callers saw, and of values that differed.
    complaints: Vec<String>,
}

impl Watch {
    fn new(fleet: Fleet, corpus: Corpus) -> Self {
        let view = || View {
            port: 0,
            state: State::Down,
            before: Counts::default(),
            now: Counts::default(),
            reported: Instant::now(),
            rates: None,
            signs: Signs::default(),
        };
        Watch {
            fleet,
            corpus,
            views: (0..NODES).map(|_| view()).collect(),
            phase: Phase::Before,
            disk: DiskReads::default(),
            latency: Histogram::default(),
            complaints: Vec::new(),
        }
    }

    /// Starts all nodes, and tells each of the others.
    fn start_all(&mut self) -> Result<(), BoxError> {
        for node in 0..NODES {
            self.start(node)?;
        }
        for node in 0..NODES {
            self.wait_for(node, "listen", |signs| signs.listening)?;
        }
        for node in 0..NODES {
            self.introduce(node);
        }
        for node in 0..NODES {
            self.wait_for(node, "become ready", |signs| signs.ready)?;
        }
        Ok(())
    }

    /// Lets the callers begin.
    fn run_all(&mut self) -> Instant {
        for node in 0..NODES {
            self.fleet.tell(node, &ToNode::Run);
        }
        let now = Instant::now();
        for view in &mut self.views {
            view.reported = now;
        }
        now
    }

    fn kill(&mut self, node: usize) -> Result<(), BoxError> {
        self.views[node].state = State::Down;
        self.fleet.kill(node);
        self.wait_for(node, "end", |signs| signs.gone)?;
        let view = &mut self.views[node];
        view.before = view.before.plus(&view.now);
        view.now = Counts::default();
        view.rates = None;
        self.phase = Phase::Down;
        Ok(())
    }

    /// Starts a node that was killed; returns how long it took until its callers began.
    fn start_again(&mut self, node: usize) -> Result<Duration, BoxError> {
        let began = Instant::now();
        self.start(node)?;
        self.wait_for(node, "listen", |signs| signs.listening)?;
        self.introduce(node);
        self.wait_for(node, "become ready", |signs| signs.ready)?;
        self.fleet.tell(node, &ToNode::Run);
        self.views[node].reported = Instant::now();
        self.phase = Phase::After;
        Ok(began.elapsed())
    }

    fn stop_all(&mut self) -> Result<(), BoxError> {
        for node in 0..NODES {
            self.fleet.tell(node, &ToNode::Stop);
        }
        for node in 0..NODES {
            self.wait_for(node, "stop", |signs| signs.stopped)?;
        }
        Ok(())
    }

    fn start(&mut self, node: usize) -> Result<(), BoxError> {
        let view = &mut self.views[node];
        view.signs = Signs::default();
        view.state = State::Up;
        self.fleet.start(node, view.port)
    }

    fn introduce(&mut self, node: usize) {
        for file in &self.corpus.files {
            self.fleet.tell(node, &ToNode::File(file.name.clone()));
        }
        let url = |view: &View| format!("http://127.0.0.1:{}", view.port);
        let urls = self.views.iter().map(url).collect();
        self.fleet.tell(node, &ToNode::Peers(urls));
    }

    /// Asks every node that is up for its numbers, and waits for them.
    fn collect_reports(&mut self) -> Result<(), BoxError> {
        let is_up = |view: &View| view.state == State::Up;
        let up: Vec<usize> = (0..NODES)
            .filter(|&node| is_up(&self.views[node]))
            .collect();
        for &node in &up {
            self.views[node].signs.report = false;
            self.fleet.tell(node, &ToNode::Report);
        }
        for node in up {
            self.wait_for(node, "report", |signs| signs.report)?;
        }
        Ok(())
    }

    fn listen_until(&mut self, deadline: Instant) -> Result<(), BoxError> {
        while let Some((node, event)) = self.fleet.next_event(deadline) {
            self.take(node, event)?;
        }
        Ok(())
    }

    fn wait_for(
        &mut self,
        node: usize,
        what: &str,
        is_there: impl Fn(&Signs) -> bool,
    ) -> Result<(), BoxError> {
        let deadline = Instant::now() + PATIENCE;
        while !is_there(&self.views[node].signs) {
            let Some((from, event)) = self.fleet.next_event(deadline) else {
                let seconds = PATIENCE.as_secs();
                return Err(format!("node {} did not {what} within {seconds} s", node + 1).into());
            };
            self.take(from, event)?;
        }
        Ok(())
    }

    fn take(&mut self, node: usize, event: Event) -> Result<(), BoxError> {
        let view = &mut self.views[node];
        match event {
            Event::Said(FromNode::Listening(port)) => {
                view.port = port;
                view.signs.listening = true;
            }
            Event::Said(FromNode::Ready) => view.signs.ready = true,
            Event::Said(FromNode::Stopped) => view.signs.stopped = true,
            Event::Said(FromNode::Loaded(name)) => self.disk.add(name, self.phase),
            Event::Said(FromNode::Failed(text)) => {
                let number = node + 1;
                self.complaints
                    .push(format!("a caller at node {number} saw an error: {text}"));
            }
            Event::Said(FromNode::Differs(text)) => {
                let number = node + 1;
                self.complaints
                    .push(format!("a value at node {number} differs: {text}"));
            }
            Event::Said(FromNode::Report(report)) => {
                let now = Instant::now();
                view.rates = Some(Rates::new(
                    &report.counts.since(&view.now),
                    &report.latency,
                    now - view.reported,
                ));
                view.now = report.counts;
                view.reported = now;
                view.signs.report = true;
                self.latency.merge(&report.latency);
            }
            Event::Gone(_) if view.state == State::Down => view.signs.gone = true,
            Event::Gone(reason) => {
                return Err(format!("node {} ended by itself: {reason}", node + 1).into());
            }
        }
        Ok(())
    }

    fn rows(&self) -> Vec<Row> {
        let row = |view: &View| {
            let total = view.before.plus(&view.now);
            Row {
                state: view.state,
                rates: view.rates.clone(),
                disk_reads: total.local_loads,
                errors: total.errors + total.differing,
            }
        };
        self.views.iter().map(row).collect()
    }
}

const NODES: usize = 3;

/// The node that is killed, counted from 0.
const VICTIM: usize = 1;

/// Room for a few small files, in bytes.
const MIN_CACHE: u64 = 16 << 10;

/// So many errors are shown with their texts.
const MAX_SHOWN: usize = 10;

/// How long a node may take for anything it is asked to do.
const PATIENCE: Duration = Duration::from_secs(10);
