//! The parts that all benchmarks share: rounds, medians, the table, and the JSON file.

#![allow(dead_code, reason = "each benchmark uses some of these parts")]

pub mod caches;

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;

/// One figure of one implementation in one case, with its values of all rounds.
pub struct Row {
    pub case: String,
    pub implementation: &'static str,
    pub metric: &'static str,
    pub unit: &'static str,
    pub runs: Vec<f64>,
}

impl Row {
    pub fn median(&self) -> f64 {
        let mut runs = self.runs.clone();
        runs.sort_by(f64::total_cmp);
        match runs.len() {
            0 => f64::NAN,
            n if n % 2 == 1 => runs[n / 2],
            n => f64::midpoint(runs[n / 2 - 1], runs[n / 2]),
        }
    }

    pub fn min(&self) -> f64 {
        self.runs.iter().copied().fold(f64::INFINITY, f64::min)
    }

    pub fn max(&self) -> f64 {
        self.runs.iter().copied().fold(f64::NEG_INFINITY, f64::max)
    }
}

/// The figures of one benchmark.
pub struct Report {
    name: &'static str,
    rows: Vec<Row>,
}

impl Report {
    pub fn new(name: &'static str) -> Self {
        Report {
            name,
            rows: Vec::new(),
        }
    }

    /// Adds one round's figure to its row.
    pub fn add(
        &mut self,
        case: &str,
        implementation: &'static str,
        metric: &'static str,
        unit: &'static str,
        value: f64,
    ) {
        let is_same = |row: &&mut Row| {
            row.case == case && row.implementation == implementation && row.metric == metric
        };
        match self.rows.iter_mut().find(is_same) {
            Some(row) => row.runs.push(value),
            None => self.rows.push(Row {
                case: case.into(),
                implementation,
                metric,
                unit,
                runs: vec![value],
            }),
        }
    }

    fn find(&self, case: &str, implementation: &str, metric: &str) -> Option<&Row> {
        self.rows.iter().find(|row| {
            row.case == case && row.implementation == implementation && row.metric == metric
        })
    }

    /// Prints a table of medians for each metric, with a line for each case and a column for each
    /// implementation. Writes the JSON file.
    pub fn finish(&self) {
        let mut metrics: Vec<(&str, &str)> = Vec::new();
        for row in &self.rows {
            if !metrics.contains(&(row.metric, row.unit)) {
                metrics.push((row.metric, row.unit));
            }
        }
        for (metric, unit) in metrics {
            self.print(metric, unit);
        }
        println!();
        self.write();
    }

    /// Writes the JSON file, for a benchmark that has printed its figures.
    pub fn write(&self) {
        write_result(&format!("{}.json", self.name), &self.json());
    }

    fn print(&self, metric: &str, unit: &str) {
        let rows = || self.rows.iter().filter(|row| row.metric == metric);
        let (mut cases, mut columns) = (Vec::new(), Vec::new());
        for row in rows() {
            if !cases.contains(&&*row.case) {
                cases.push(&*row.case);
            }
            if !columns.contains(&row.implementation) {
                columns.push(row.implementation);
            }
        }
        println!("\n{}: {metric} [{unit}], medians (min to max)", self.name);
        let width = cases
            .iter()
            .map(|case| case.len())
            .max()
            .unwrap_or(0)
            .max(12);
        print!("{:width$}", "");
        for column in &columns {
            print!("  {column:>24}");
        }
        println!();
        for case in cases {
            print!("{case:width$}");
            for column in &columns {
                let cell = self.find(case, column, metric).map_or("-".into(), |row| {
                    format!("{:.2} ({:.2} to {:.2})", row.median(), row.min(), row.max())
                });
                print!("  {cell:>24}");
            }
            println!();
        }
    }

    fn json(&self) -> String {
        let mut out = String::from("[\n");
        for (n, row) in self.rows.iter().enumerate() {
            let comma = if n + 1 < self.rows.len() { "," } else { "" };
            writeln!(
                out,
                "  {{\"case\": \"{}\", \"impl\": \"{}\", \"metric\": \"{}\", \"unit\": \"{}\", \
                 \"median\": {}, \"min\": {}, \"max\": {}, \"runs\": {}}}{comma}",
                row.case,
                row.implementation,
                row.metric,
                row.unit,
                row.median(),
                row.min(),
                row.max(),
                row.runs.len()
            )
            .expect("writing to a string");
        }
        out.push_str("]\n");
        out
    }
}

/// The root of the repository. Cargo starts a benchmark in the folder of its package.
pub const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// The path of a file in `target/larder-bench`.
pub fn result_file(name: &str) -> PathBuf {
    PathBuf::from(ROOT).join("target/larder-bench").join(name)
}

/// Writes a file into `target/larder-bench`.
pub fn write_result(name: &str, text: &str) {
    fs::create_dir_all(result_file("")).expect("target/larder-bench can be made");
    fs::write(result_file(name), text).expect("the file can be written");
    println!("written: target/larder-bench/{name}");
}

/// A reproducible random number generator (SplitMix64).
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number from 0 to 1, which is less than 1.
    pub fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// A number from 0 to `n - 1`.
    pub fn below(&mut self, n: usize) -> usize {
        (self.unit() * n as f64) as usize
    }
}

/// Draws ranks from 0 to n - 1, each with a probability proportional to 1 / (rank + 1)^s. Holds the sums
/// of these weights.
pub struct Zipf(Vec<f64>);

impl Zipf {
    pub fn new(n: usize, s: f64) -> Self {
        let mut sum = 0.0;
        let sums = (1..=n).map(|rank| {
            sum += (rank as f64).powf(-s);
            sum
        });
        Zipf(sums.collect())
    }

    pub fn draw(&self, rng: &mut Rng) -> usize {
        let total = self.0.last().copied().unwrap_or(0.0);
        let at = rng.unit() * total;
        self.0
            .partition_point(|&sum| sum < at)
            .min(self.0.len() - 1)
    }
}

/// A random order of 0 to n - 1. It maps ranks to keys, so that popular keys are not neighbours in memory.
pub fn shuffled(n: usize, rng: &mut Rng) -> Vec<u32> {
    let mut order: Vec<u32> = (0..n as u32).collect();
    for i in (1..n).rev() {
        order.swap(i, rng.below(i + 1));
    }
    order
}

/// Whether the flag, such as `--quick`, was given. Cargo passes `--bench`, which is ignored.
pub fn flag(name: &str) -> bool {
    std::env::args().any(|arg| arg == name)
}

/// One round of a case: every implementation once.
pub struct Round {
    pub number: usize,
    /// Whether its figures count. Those of the first round, the warm-up, do not.
    pub counted: bool,
    /// The numbers of the implementations, in the order in which they run.
    pub order: Vec<usize>,
}

/// The rounds of a case: a warm-up, then as many as [`rounds`] returns. After an order comes its reverse,
/// then the next pair, which begins with the next implementation. So no implementation is always the
/// first, nor always after the same one, which leaves the processor's caches in one state.
pub fn turns(implementations: usize) -> impl Iterator<Item = Round> {
    (0..=rounds()).map(move |number| {
        let mut order: Vec<usize> = (0..implementations).collect();
        order.rotate_left(number.saturating_sub(1) / 2 % implementations);
        if number % 2 == 0 {
            order.reverse();
        }
        Round {
            number,
            counted: number > 0,
            order,
        }
    })
}

/// Whether to run a case: `LARDER_CASES` is a comma-separated list of cases. Without it, all run.
pub fn wanted(case: &str) -> bool {
    let chosen = std::env::var("LARDER_CASES").unwrap_or_default();
    chosen.is_empty() || chosen.split(',').any(|name| name == case)
}

/// Whether to run an implementation: `LARDER_IMPLS` is a comma-separated list of names. Without it, all
/// run.
pub fn chosen(name: &str) -> bool {
    let chosen = std::env::var("LARDER_IMPLS").unwrap_or_default();
    chosen.is_empty() || chosen.split(',').any(|other| other == name)
}

/// The number of rounds: `LARDER_ROUNDS`, or 5.
pub fn rounds() -> usize {
    std::env::var("LARDER_ROUNDS")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(5)
}
