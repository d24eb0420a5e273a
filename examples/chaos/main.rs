//! Checks the promise of a removal: processes share a cache, faults happen, and a judge looks for old values.
//!
//! ```text
//! cargo run --release --example chaos [-- --seconds 60 --seed 1 --nodes 3]
//! ```
//!
//! Starts processes on free ports of the loopback address. In each, threads get keys at random, and one
//! changes keys: it first changes their source, and then calls `remove`, `remove_many`, `set` or `clear`.
//! All record these calls, with the time. Meanwhile nodes are killed, stopped, cut off, delayed, restarted
//! from a dump, or taken out of the list, in an order that the seed decides. A get is a violation if it began
//! after a removal had returned, and got an older value than that.
//!
//! A line each second shows the gets and the promises of that second, and the violations so far. The exit
//! status is 1 if there was a violation.
//!
//! The harness is that of the tests: `tests/promise/harness`.

#[cfg(target_os = "linux")]
mod report;

#[cfg(target_os = "linux")]
#[path = "../../tests/promise/harness/mod.rs"]
mod harness;

#[cfg(target_os = "linux")]
fn main() -> Result<(), larder::BoxError> {
    report::main()
}

#[cfg(not(target_os = "linux"))]
fn main() {
    println!("chaos needs Linux: its signals, and the clock that all processes share");
}
