//! A dump of a large group to a file, and the start from it.
//!
//! `write` is `Group::dump` beside `cp` of the same file, which is synced, too. `gets-alone` and `gets-dumping`
//! are gets of cached keys by one thread, without a dump and during one. `restart` is a new group that restores
//! the dump while a thread gets keys, one in ten of which is not in it.

mod common;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use common::{Report, Rng, rounds, wanted};
use larder::{Context, Group, Registry, RestoreOptions, Sink};

const VALUE: usize = 1024;

fn main() {
    let mib = std::env::var("LARDER_MIB").map_or(1024, |mib| mib.parse().expect("a number"));
    let keys = mib * 1024;
    let dir = Dir::new();
    let path = dir.0.join("dump");
    let mut report = Report::new("dump");
    let before = filled(keys);
    for _ in 0..rounds() {
        let dumped = timed(|| {
            before.dump(&path, 0).expect("written");
        });
        let copied = timed(|| copy(&path, &dir.0.join("copy")));
        if wanted("write") {
            report.add("write", "larder", "seconds", "s", dumped);
            report.add("write", "cp", "seconds", "s", copied);
        }
        if wanted("gets") {
            add_gets(&mut report, "gets-alone", &before, keys, || {
                std::thread::sleep(Duration::from_secs_f64(dumped));
            });
            add_gets(&mut report, "gets-dumping", &before, keys, || {
                before.dump(&path, 0).expect("written");
            });
        }
    }
    let ratio = hit_ratio(&before, keys, &mut Rng(3), Duration::from_secs(1));
    drop(before);
    for _ in 0..rounds() {
        if wanted("restart") {
            report.add("restart", "larder", "hits_before", "%", 100.0 * ratio);
            restart(&mut report, &path, keys);
        }
    }
    report.finish();
}

/// A directory of its own, removed at the end.
struct Dir(PathBuf);

impl Dir {
    fn new() -> Dir {
        let dir = std::env::temp_dir().join(format!("larder-bench-dump-{}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("a directory");
        Dir(dir)
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn empty(keys: usize) -> Group {
    let load = |_: &Context, _: &str, dest: &mut dyn Sink| Ok(dest.set_bytes(&[7; VALUE])?);
    Group::builder("dump")
        .registry(&Registry::new())
        .max_capacity((keys * VALUE) as u64 / 4 * 5 + (16 << 20))
        .build(load)
        .expect("a group")
}

fn filled(keys: usize) -> Group {
    let group = empty(keys);
    for n in 0..keys {
        group.get(&key(n)).expect("a value");
    }
    group
}

fn key(n: usize) -> String {
    format!("key-{n:012}")
}

fn timed(call: impl FnOnce()) -> f64 {
    let begun = Instant::now();
    call();
    begun.elapsed().as_secs_f64()
}

fn copy(from: &Path, to: &Path) {
    let status = Command::new("cp").arg(from).arg(to).status();
    assert!(status.expect("cp").success());
    File::open(to)
        .and_then(|file| file.sync_all())
        .expect("synced");
    std::fs::remove_file(to).expect("ours");
}

/// Gets while `during` runs.
fn add_gets(
    report: &mut Report,
    case: &str,
    group: &Group,
    keys: usize,
    during: impl FnOnce() + Send,
) {
    let is_over = AtomicBool::new(false);
    let mut times = Vec::new();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            during();
            is_over.store(true, Relaxed);
        });
        let mut rng = Rng(1);
        while !is_over.load(Relaxed) {
            let key = key(rng.below(keys));
            times.push(timed(|| drop(group.get(&key).expect("a value"))));
        }
    });
    times.sort_by(f64::total_cmp);
    let p99 = times[(times.len() - 1) * 99 / 100];
    report.add(
        case,
        "larder",
        "per_s",
        "1/s",
        times.len() as f64 / times.iter().sum::<f64>(),
    );
    report.add(case, "larder", "p99_us", "µs", p99 * 1e6);
}

/// The hit ratio of gets. One key in ten was never cached.
fn hit_ratio(group: &Group, keys: usize, rng: &mut Rng, time: Duration) -> f64 {
    let (begun, mut gets, mut hits) = (Instant::now(), 0, 0);
    while begun.elapsed() < time {
        let n = rng.below(keys / 9 * 10);
        gets += 1;
        if n < keys {
            hits += usize::from(group.contains_key(&key(n)));
            group.get(&key(n)).expect("a value");
        }
    }
    f64::from(hits as u32) / f64::from(gets)
}

fn restart(report: &mut Report, path: &Path, keys: usize) {
    let group = empty(keys);
    let (begun, mut restored) = (Instant::now(), Duration::ZERO);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            group.restore(path, RestoreOptions::new(0)).expect("a dump");
            restored = begun.elapsed();
        });
        let mut rng = Rng(2);
        while begun.elapsed() < Duration::from_secs(4) {
            hit_ratio(&group, keys, &mut rng, Duration::from_millis(100));
        }
        let ratio = hit_ratio(&group, keys, &mut rng, Duration::from_secs(1));
        report.add("restart", "larder", "hits_after_5_s", "%", 100.0 * ratio);
    });
    let seconds = restored.as_secs_f64();
    report.add("restart", "larder", "restore_s", "s", seconds);
}
