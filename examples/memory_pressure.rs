//! A cache that gives memory back while others need it, and grows again afterwards.
//!
//! ```text
//! memory_pressure node 16        a group of 16 MiB that is always full; prints its state
//! memory_pressure neighbor 12    takes 12 MiB within a second, and keeps them
//! ```
//!
//! Run both in one cgroup with a limit of 32 MiB. Both run until they are killed.

use std::hint::black_box;
use std::io::Write;
use std::time::{Duration, Instant};

use larder::{Group, MemoryPressure, getter_fn};

const MIB: u64 = 1 << 20;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let role = args.next().unwrap_or_default();
    let mib: u64 = args.next().unwrap_or_default().parse()?;
    match &*role {
        "node" => node(mib * MIB),
        "neighbor" => neighbor(mib * MIB),
        _ => Err("the first argument is node or neighbor".into()),
    }
}

/// Gets ever new keys, so that the group fills all the memory that it may take.
fn node(capacity: u64) -> Result<(), Box<dyn std::error::Error>> {
    let group = Group::builder("values")
        .max_capacity(capacity)
        .build(getter_fn(|_, key, dest| {
            let len = 50 + key.parse::<usize>()? % 2000;
            Ok(dest.set_bytes(&vec![7; len])?)
        }))?;
    let guard = MemoryPressure::watch()?;
    let start = Instant::now();
    for round in 0_u64.. {
        for n in 0..1000 {
            group.get(&(round * 1000 + n).to_string())?;
        }
        std::thread::sleep(Duration::from_millis(20));
        if round % 5 == 0 {
            let (status, used) = (guard.status(), group.weighted_size());
            println!(
                "{:.1} s: the group has {} KiB of {} KiB, the process {} KiB; {} KiB are free",
                start.elapsed().as_secs_f64(),
                used >> 10,
                status.allowed >> 10,
                resident() >> 10,
                status.headroom >> 10,
            );
        }
    }
    Ok(())
}

fn neighbor(bytes: u64) -> Result<(), Box<dyn std::error::Error>> {
    let mut taken = Vec::new();
    for part in 1..=20 {
        taken.resize(usize::try_from(bytes * part / 20)?, 1_u8);
        black_box(&taken);
        std::thread::sleep(Duration::from_millis(50));
    }
    println!("taken");
    std::io::stdout().flush()?;
    loop {
        std::thread::park();
    }
}

/// The resident set of this process, in bytes.
fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = statm.split(' ').nth(1).and_then(|pages| pages.parse().ok());
    pages.unwrap_or(0) * 4096
}
