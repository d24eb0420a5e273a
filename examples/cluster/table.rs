//! The table: redrawn in place on a terminal, plain lines elsewhere.

use std::io::{self, IsTerminal, Stdout, Write};
use std::time::Duration;

use crate::latency::Histogram;
use crate::protocol::Counts;

/// One node's line.
pub struct Row {
    pub state: State,
    /// Of the last second; `None` for a node that is down, or has not run for long enough.
    pub rates: Option<Rates>,
    /// Since the start.
    pub disk_reads: u64,
    /// Since the start.
    pub errors: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum State {
    Up,
    Down,
}

/// What a node did in the time between two reports.
#[derive(Clone)]
pub struct Rates {
    gets: f64,
    /// Parts of the gets.
    main: f64,
    hot: f64,
    peer_loads: f64,
    p50: Option<Duration>,
    p99: Option<Duration>,
}

impl Rates {
    /// From the numbers of a span of `time`.
    pub fn new(counts: &Counts, latency: &Histogram, time: Duration) -> Self {
        let per_second = |n: u64| n as f64 / time.as_secs_f64().max(1e-9);
        let part = |n: u64| n as f64 / counts.gets.max(1) as f64;
        Rates {
            gets: per_second(counts.gets),
            main: part(counts.main_hits),
            hot: part(counts.hot_hits),
            peer_loads: per_second(counts.peer_loads),
            p50: latency.quantile(0.50),
            p99: latency.quantile(0.99),
        }
    }
}

/// Writes to standard output.
pub struct Table {
    out: Stdout,
    in_place: bool,
    /// The lines that stand at the end of the terminal and can be drawn over.
    drawn: Vec<String>,
    draws: usize,
}

impl Table {
    pub fn new() -> Self {
        let out = io::stdout();
        Table {
            in_place: out.is_terminal(),
            out,
            drawn: Vec::new(),
            draws: 0,
        }
    }

    /// Says what the columns are.
    pub fn legend(&mut self) -> io::Result<()> {
        self.note(LEGEND)
    }

    /// Writes a line that stays; on a terminal above the table.
    pub fn note(&mut self, text: &str) -> io::Result<()> {
        let table = self.erase();
        writeln!(self.out, "{table}{text}")?;
        for line in &self.drawn {
            writeln!(self.out, "{line}")?;
        }
        self.out.flush()
    }

    /// Shows a line a node.
    pub fn draw(&mut self, second: u64, rows: &[Row]) -> io::Result<()> {
        let mut text = self.erase();
        let lines = rows.iter().enumerate();
        let lines = lines.map(|(node, row)| line(second, node + 1, row));
        if self.in_place {
            self.drawn = std::iter::once(HEADER.to_owned()).chain(lines).collect();
            text += &self.drawn.join("\n");
        } else {
            if self.draws % DRAWS_A_HEADER == 0 {
                text += HEADER;
                text += "\n";
            }
            text += &lines.collect::<Vec<_>>().join("\n");
        }
        self.draws += 1;
        writeln!(self.out, "{text}")?;
        self.out.flush()
    }

    /// Lets the table stand as it is; what follows comes below it.
    pub fn finish(&mut self) {
        self.drawn.clear();
    }

    /// What takes the table away from the terminal, if there is one: to its first line, and
    /// nothing below.
    fn erase(&self) -> String {
        match self.drawn.len() {
            0 => String::new(),
            lines => format!("\x1b[{lines}A\x1b[J"),
        }
    }
}

fn line(second: u64, node: usize, row: &Row) -> String {
    let time = format!("{second} s");
    let state = match row.state {
        State::Up => "up",
        State::Down => "down",
    };
    let percent = |part: f64| format!("{:.1} %", part * 100.0);
    let duration = |time: Option<Duration>| time.map_or("-".into(), short);
    let rates = row.rates.as_ref();
    let show = |f: &dyn Fn(&Rates) -> String| rates.map_or("-".to_owned(), f);
    format!(
        "{time:>5} {node:>4}  {state:<4} {:>9} {:>7} {:>7} {:>7} {:>6} {:>6} {:>6} {:>6}",
        show(&|r| grouped(r.gets as u64)),
        show(&|r| percent(r.main)),
        show(&|r| percent(r.hot)),
        show(&|r| grouped(r.peer_loads as u64)),
        grouped(row.disk_reads),
        grouped(row.errors),
        show(&|r| duration(r.p50)),
        show(&|r| duration(r.p99)),
    )
}

/// A number with a comma at each thousand.
pub fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A time in its unit, as exact as the buckets are.
pub fn short(time: Duration) -> String {
    let nanos = time.as_nanos() as f64;
    let (value, unit) = match nanos {
        ..1e3 => return format!("{nanos} ns"),
        ..1e6 => (nanos / 1e3, "µs"),
        ..1e9 => (nanos / 1e6, "ms"),
        _ => (nanos / 1e9, "s"),
    };
    let decimals = usize::from(value < 10.0);
    format!("{value:.decimals$} {unit}")
}

const HEADER: &str =
    " time node  state   gets/s    main     hot peers/s   disk errors    p50    p99";

const LEGEND: &str = "
gets/s   gets of the node's own callers and of other nodes
main     of these: found in the share of the cache for keys that the node owns
hot      of these: found in the share for copies of other nodes' keys
peers/s  gets that another node answered
disk     files read so far
errors   errors, and values that are not the file's, that callers saw so far
p50 p99  how long the callers' gets took in the last second
";

const DRAWS_A_HEADER: usize = 5;
