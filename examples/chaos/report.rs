//! The operator of the cluster: starts it, lets faults happen, and prints the table and the summary.

use std::ffi::OsString;
use std::time::{Duration, Instant};

use larder::BoxError;
use lexopt::prelude::*;

use crate::harness::cluster::{Cluster, Second, Setup, State, Verdict, Watch};
use crate::harness::faults::Fault;
use crate::harness::random::Random;
use crate::harness::{node, process};

pub fn main() -> Result<(), BoxError> {
    if let Ok(options) = std::env::var(process::OPTIONS) {
        return node::run(&options);
    }
    let (mut seconds, mut seed, mut nodes) = (60, 1, 3);
    let mut parser = lexopt::Parser::from_env();
    while let Some(arg) = parser.next()? {
        match arg {
            Long("seconds") => seconds = parser.value()?.parse()?,
            Long("seed") => seed = parser.value()?.parse()?,
            Long("nodes") => nodes = parser.value()?.parse()?,
            Short('h') | Long("help") => {
                println!("usage: chaos [--seconds 60] [--seed 1] [--nodes 3]");
                return Ok(());
            }
            _ => return Err(arg.unexpected().into()),
        }
    }
    if !(2..=32).contains(&nodes) {
        return Err("the number of nodes is from 2 to 32".into());
    }
    operate(Duration::from_secs(seconds), seed, nodes)
}

fn operate(time: Duration, seed: u64, nodes: usize) -> Result<(), BoxError> {
    let setup = Setup {
        nodes,
        program: vec![OsString::from(std::env::current_exe()?)],
        seed,
        namespaces: false,
        adjustable_clock: false,
        unverified_ms: 0,
    };
    let begun = Instant::now();
    let mut table = Table {
        begun,
        gets: 0,
        promises: 0,
    };
    println!("{nodes} nodes, seed {seed}, {} s\n{HEADER}", time.as_secs());
    let mut random = Random(seed);
    let mut happened = Vec::new();
    let mut cluster = Cluster::start(setup, &mut table)?;
    while begun.elapsed() < time {
        let at = random.below(Fault::ALL.len() as u64) as usize;
        Fault::ALL[at].happen(&mut cluster, &mut random)?;
        happened.push(at);
    }
    summarize(&cluster.finish()?, &happened, begun.elapsed())
}

/// Returns an error if there was a violation.
fn summarize(verdict: &Verdict, happened: &[usize], time: Duration) -> Result<(), BoxError> {
    println!();
    for (n, status) in verdict.status.iter().enumerate() {
        println!("node {n}: {status}");
    }
    let faults = Fault::ALL.iter().enumerate().map(|(at, fault)| {
        let count = happened.iter().filter(|&&other| other == at).count();
        format!("{count} {fault:?}")
    });
    println!("faults      {}", faults.collect::<Vec<_>>().join(", "));
    let (gets, promises) = (verdict.counts.gets, verdict.counts.promises);
    println!(
        "judged      {gets} gets, {promises} promises, in {:.0} s",
        time.as_secs_f64()
    );
    let violations = &verdict.violations;
    println!("violations  {}", violations.len());
    for violation in violations.iter().take(10) {
        println!("            {violation}");
    }
    match violations.len() {
        0 => Ok(()),
        count => {
            Err(format!("{count} gets returned an older value than a removal had promised").into())
        }
    }
}

struct Table {
    begun: Instant,
    /// The numbers of the second before.
    gets: usize,
    promises: usize,
}

impl Watch for Table {
    fn second(&mut self, second: &Second<'_>) {
        let counts = second.counts;
        let states = second.states.iter().map(|state| match state {
            State::Up => "up",
            State::Dead => "dead",
            State::Stopped => "stopped",
            State::Cut => "cut",
            State::Unlisted => "left",
        });
        let states = states.map(|state| format!("{state:<8}"));
        println!(
            "{:>4} s {:>9} {:>9} {:>11}   {}",
            self.begun.elapsed().as_secs(),
            counts.gets - self.gets,
            counts.promises - self.promises,
            second.violations,
            states.collect::<String>().trim_end()
        );
        (self.gets, self.promises) = (counts.gets, counts.promises);
    }

    fn event(&mut self, event: &str) {
        println!("{:>4} s  {event}", self.begun.elapsed().as_secs());
    }
}

const HEADER: &str = "
gets/s      gets of all nodes
promises/s  keys for which a set, a remove or a clear returned
violations  gets that returned an older value than was promised before, so far

  time    gets/s promises/s violations   nodes";
