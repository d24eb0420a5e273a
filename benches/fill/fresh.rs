//! A fill by one thread in a process of its own. In the case `fill-1`, malloc still has the memory of the
//! caches of earlier rounds, so the caches whose entries are on malloc take few pages from the system.
//! larder returns the memory of a cache that is dropped. In a program, too, the first cache takes new pages.

use std::process::Command;

use crate::common::caches::{ALL, Make};

pub const CASE: &str = "fill-fresh-1";

/// The environment variable with the name of the implementation, set for the process that fills.
const IMPLEMENTATION: &str = "LARDER_FRESH_FILL";

/// The implementation that this process is to measure, if it is one of these processes.
pub fn implementation() -> Option<Make> {
    let name = std::env::var(IMPLEMENTATION).ok()?;
    let found = ALL.iter().find(|(other, _)| *other == name);
    Some(found.expect("an implementation").1)
}

/// The nanoseconds of a fill.
pub fn measure(name: &str) -> f64 {
    let program = std::env::current_exe().expect("this program");
    let output = Command::new(program).env(IMPLEMENTATION, name).output();
    let output = output.expect("it runs").stdout;
    let text = String::from_utf8(output).expect("a number");
    text.trim().parse().expect("a number")
}
