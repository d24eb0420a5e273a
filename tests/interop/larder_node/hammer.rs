//! Load: many threads get keys at this node and check every byte.

use std::time::{Duration, Instant};

use larder::BoxError;
use serde_json::{Value, json};

use crate::source::value_of;

/// Does the same as `tests/interop/go/hammer.go` and returns the same counts.
pub fn run(todo: Value) -> Result<Value, BoxError> {
    let text = |name: &str| todo[name].as_str().ok_or("text is missing");
    let group = larder::get_group(text("group")?).ok_or("no such group")?;
    let keys: Vec<String> = serde_json::from_value(todo["keys"].clone())?;
    let threads = todo["threads"].as_u64().ok_or("threads are missing")? as usize;
    let seconds = todo["seconds"].as_f64().ok_or("seconds are missing")?;
    if keys.is_empty() {
        return Err("there are no keys".into());
    }

    let until = Instant::now() + Duration::from_secs_f64(seconds);
    let mut sum = Counts::default();
    std::thread::scope(|scope| {
        let work = |thread: usize| {
            let mut own = Counts::default();
            for i in thread * 7919.. {
                let begun = Instant::now();
                if begun > until {
                    break;
                }
                let key = &keys[i % keys.len()];
                let found = group.get(key);
                own.micros.push(begun.elapsed().as_micros() as u64);
                match found {
                    Ok(value) => own.wrong += u64::from(value != value_of(key)),
                    Err(error) => {
                        own.errors += 1;
                        own.first_error = error.to_string();
                    }
                }
            }
            own
        };
        let workers: Vec<_> = (0..threads).map(|n| scope.spawn(move || work(n))).collect();
        for worker in workers {
            sum.add(worker.join().expect("a worker does not panic"));
        }
    });
    sum.micros.sort_unstable();
    let at = |part: usize| sum.micros.get(sum.micros.len() * part / 1000);
    Ok(json!({
        "gets": sum.micros.len(),
        "errors": sum.errors,
        "wrong": sum.wrong,
        "first_error": sum.first_error,
        "p50_us": at(500),
        "p99_us": at(990),
        "max_us": sum.micros.last(),
    }))
}

#[derive(Default)]
struct Counts {
    errors: u64,
    wrong: u64,
    first_error: String,
    /// The time of each get.
    micros: Vec<u64>,
}

impl Counts {
    fn add(&mut self, other: Counts) {
        self.errors += other.errors;
        self.wrong += other.wrong;
        self.micros.extend(other.micros);
        if !other.first_error.is_empty() {
            self.first_error = other.first_error;
        }
    }
}
