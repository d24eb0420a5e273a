//! The size and the cost at rest of the smallest node, `examples/node.rs`, in programs of few bytes.
//!
//! The cases are `node` (all default features), `node-no-ureq`, `node-no-tables` (without ureq and without
//! the tables for unwinding), and `node-unwind` (default features, and panics that unwind). Without ureq,
//! and with a standard library that is built for size, are `node-musl` (static), `node-musl-silent` and
//! `node-silent` (musl and glibc, panics without a message); they take part if `.ci/boards.sh footprint`
//! has built them. Each is built with the profile `small`, then started with eight peers in its list.
//! `idle_rss_kib` and `threads` are read after a second, `wakeups` are the voluntary context switches of
//! all its threads in ten seconds, and `first_get_us` is the time from the start of `main` to its first
//! value. Linux only.
//!
//! `packages` counts the crates that a node is made of. `build_s` is the time of a release build of the
//! library in an empty target directory, with `LARDER_CLEAN_BUILD=1`. golang/groupcache takes part with
//! its size, when `benches/peers/install.sh` has built it.

#[path = "common/mod.rs"]
mod common;

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{Report, result_file, wanted};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// Name, features, options of cargo, and options of the linker.
const CASES: [(&str, &str, &[&str], &[&str]); 4] = [
    ("node", "ureq,tiny_http", &[], &[]),
    ("node-no-ureq", "http", &[], &[]),
    ("node-no-tables", "http", &[], NO_TABLES),
    (
        "node-unwind",
        "ureq,tiny_http",
        &["--config", "profile.small.panic=\"unwind\""],
        &[],
    ),
];

/// The programs that `.ci/boards.sh footprint` builds: name, and folder of the target.
const BOARD_CASES: [(&str, &str); 3] = [
    ("node-musl", "x86_64-unknown-linux-musl"),
    ("node-musl-silent", "silent/x86_64-unknown-linux-musl"),
    ("node-silent", "silent/x86_64-unknown-linux-gnu"),
];

/// Leaves out the tables for unwinding, and packs the relocations.
const NO_TABLES: &[&str] = &[
    concat!(
        "-Clink-arg=-Wl,-T,",
        env!("CARGO_MANIFEST_DIR"),
        "/../examples/no_unwind.ld"
    ),
    "-Clink-arg=-Wl,--no-eh-frame-hdr,-z,pack-relative-relocs",
];

fn main() {
    let mut report = Report::new("footprint");
    for (case, features, settings, linker) in CASES {
        if !wanted(case) {
            continue;
        }
        let node = built(features, settings, linker);
        measure(&mut report, case, "larder", &node);
        let packages = packages(features) as f64;
        report.add(case, "larder", "packages", "crates", packages);
    }
    let boards = std::env::var_os("BOARDS");
    let boards = boards.map_or_else(|| root().join("target/boards"), PathBuf::from);
    for (case, target) in BOARD_CASES {
        let node = boards.join("target").join(target);
        let node = node.join("small/examples/node");
        if !wanted(case) {
            println!("{case} is not asked for");
        } else if node.exists() {
            measure(&mut report, case, "larder", &node);
        } else {
            println!("{case} is not there; .ci/boards.sh footprint builds it");
        }
    }
    let golang = result_file("golang-node");
    if let Ok(file) = fs::metadata(&golang) {
        report.add("node", "golang", "bytes", "B", file.len() as f64);
    }
    if std::env::var_os("LARDER_CLEAN_BUILD").is_some() {
        report.add(
            "node",
            "larder",
            "build_s",
            "s",
            clean_build().as_secs_f64(),
        );
    }
    report.finish();
}

fn root() -> PathBuf {
    Path::new(ROOT).parent().expect("a repository").to_owned()
}

fn cargo(arguments: &[&str]) -> Command {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.current_dir(root()).args(arguments);
    cargo
}

/// Builds the example and returns the path of a copy, which the next build does not replace.
fn built(features: &str, settings: &[&str], linker: &[&str]) -> PathBuf {
    let arguments = "rustc --quiet --profile small -p larder-examples --no-default-features";
    let arguments: Vec<_> = arguments.split(' ').collect();
    let status = cargo(&arguments)
        .args(["--features", features, "--example", "node"])
        .args(settings)
        .arg("--")
        .args(linker)
        .status()
        .expect("cargo runs");
    assert!(status.success(), "the example is built");
    let target = std::env::var_os("CARGO_TARGET_DIR");
    let target = target.map_or_else(|| root().join("target"), PathBuf::from);
    let copy = result_file("footprint-node");
    fs::create_dir_all(result_file("")).expect("target/larder-bench can be made");
    fs::copy(target.join("small/examples/node"), &copy).expect("the program can be copied");
    copy
}

fn measure(report: &mut Report, case: &str, implementation: &'static str, program: &Path) {
    let mut add = |metric, unit, value| report.add(case, implementation, metric, unit, value);
    let size = fs::metadata(program).expect("the program").len();
    add("bytes", "B", size as f64);
    let peers = (1..=8).map(|octet| format!("http://127.0.0.{octet}:9"));
    let mut node = Command::new(program)
        .args(["127.0.0.1:0", "http://127.0.0.1:1"])
        .args(peers)
        .stdout(Stdio::piped())
        .spawn()
        .expect("the node starts");
    let mut line = String::new();
    let output = node.stdout.take().expect("its output");
    BufReader::new(output)
        .read_line(&mut line)
        .expect("a line of the node");
    let first_get = line.split_ascii_whitespace().last();
    let first_get = first_get.and_then(|micros| micros.parse().ok());
    add("first_get_us", "us", first_get.expect("a number"));
    std::thread::sleep(Duration::from_secs(1));
    let process = format!("/proc/{}", node.id());
    add("idle_rss_kib", "KiB", field(&process, "VmRSS"));
    add("threads", "threads", field(&process, "Threads"));
    let before = switches(&process);
    std::thread::sleep(Duration::from_secs(10));
    add("wakeups", "in 10 s", switches(&process) - before);
    node.kill().expect("the node runs");
    node.wait().expect("it has ended");
}

/// The number of a field of `status`.
fn field(process: &str, name: &str) -> f64 {
    let status = fs::read_to_string(format!("{process}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|line| line[1..].split_ascii_whitespace().next());
    number.and_then(|number| number.parse().ok()).unwrap_or(0.0)
}

/// The voluntary context switches of all threads.
fn switches(process: &str) -> f64 {
    let tasks = fs::read_dir(format!("{process}/task")).expect("threads");
    let tasks = tasks.filter_map(|task| Some(task.ok()?.path().display().to_string()));
    tasks
        .map(|task| field(&task, "voluntary_ctxt_switches"))
        .sum()
}

/// The crates from outside.
fn packages(features: &str) -> usize {
    let arguments = "tree -p larder --no-default-features -e normal --prefix none --no-dedupe";
    let arguments: Vec<_> = arguments.split(' ').collect();
    let output = cargo(&arguments).args(["--features", features]).output();
    let output = output.expect("cargo runs").stdout;
    let text = String::from_utf8_lossy(&output);
    let mut crates: Vec<_> = text.lines().filter(|line| !line.contains(" (/")).collect();
    crates.retain(|line| !line.is_empty());
    crates.sort_unstable();
    crates.dedup();
    crates.len()
}

fn clean_build() -> Duration {
    let target = result_file("footprint-target");
    let _ = fs::remove_dir_all(&target);
    let began = Instant::now();
    let status = cargo(&["build", "--quiet", "--release", "-p", "larder"])
        .env("CARGO_TARGET_DIR", &target)
        .status()
        .expect("cargo runs");
    assert!(status.success(), "the library is built");
    let took = began.elapsed();
    let _ = fs::remove_dir_all(&target);
    took
}
