//! golang/groupcache: each measurement is a process that prints its figures.

use std::path::PathBuf;
use std::process::Command;

use crate::common::result_file;
use crate::one_key::{self, Measured};
use crate::{FILLS, FULL};

pub struct Golang {
    program: PathBuf,
}

/// The program, if it was built.
pub fn node() -> Option<Golang> {
    let program = result_file("golang-node");
    program.exists().then_some(Golang { program })
}

impl Golang {
    /// The nanoseconds of one fill.
    pub fn fill(&self, threads: usize, evicting: bool) -> f64 {
        let full = if evicting { FULL } else { 0 };
        self.numbers(["fill", &count(FILLS), &count(threads), &count(full)])[0]
    }

    pub fn one_key(&self) -> Measured {
        let (keys, threads) = (count(one_key::KEYS), count(one_key::THREADS));
        let numbers = self.numbers(["one-key", &keys, &threads, "0"]);
        Measured {
            getter_calls: numbers[0],
            followers_p50_us: numbers[1],
        }
    }

    fn numbers(&self, arguments: [&str; 4]) -> Vec<f64> {
        let output = Command::new(&self.program)
            .args(arguments)
            .output()
            .expect("the program starts");
        let text = String::from_utf8_lossy(&output.stdout);
        let numbers: Result<Vec<f64>, _> = text.split_whitespace().map(str::parse).collect();
        match numbers {
            Ok(numbers) if output.status.success() && !numbers.is_empty() => numbers,
            _ => panic!("golang-node {arguments:?}: {output:?}; build it again: install.sh"),
        }
    }
}

fn count(n: usize) -> String {
    n.to_string()
}
