//! The values of both programs' getters: a function of the key alone.

use std::collections::HashMap;
use std::sync::{Condvar, Mutex};
use std::time::{Duration, Instant};

use larder::{BoxError, Context, Error, Sink};

/// Makes values by the rules of `tests/interop/go/values.go`, and counts loads.
pub struct Source {
    delay: Duration,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    loads: HashMap<String, u64>,
    /// Loads that are running.
    loading: usize,
}

impl Source {
    /// A source in which every value takes `delay`.
    pub fn new(delay: Duration) -> Self {
        Source {
            delay,
            state: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    /// The getter.
    pub fn get(&self, ctx: &Context, key: &str, dest: &mut dyn Sink) -> Result<(), BoxError> {
        self.change(|state| {
            *state.loads.entry(key.to_owned()).or_default() += 1;
            state.loading += 1;
        });
        let result = self.answer(ctx, key, dest);
        self.change(|state| state.loading -= 1);
        result
    }

    fn answer(&self, ctx: &Context, key: &str, dest: &mut dyn Sink) -> Result<(), BoxError> {
        let (kind, rest) = key.split_once(':').unwrap_or((key, ""));
        let mut delay = self.delay;
        if kind == "slow" {
            delay = Duration::from_millis(rest.split(':').next().unwrap_or_default().parse()?);
        }
        // The work of a load. It checks the context from time to time, as a slow getter should.
        let done = Instant::now() + delay;
        while let Some(left) = done.checked_duration_since(Instant::now()) {
            if let Some(ended) = ctx.err() {
                return Err(ended.into());
            }
            std::thread::sleep(left.min(Duration::from_millis(5)));
        }
        match kind {
            "error" => Err(format!("no luck with {key}").into()),
            "missing" => Err(Error::not_found(format!("no luck with {key}")).into()),
            _ => Ok(dest.set_bytes(&value_of(key))?),
        }
    }

    /// The loads of each key.
    pub fn loads(&self) -> HashMap<String, u64> {
        self.state().loads.clone()
    }

    /// Waits until `count` loads are running. Returns false after `timeout`.
    pub fn wait(&self, count: usize, timeout: Duration) -> bool {
        let waited = self
            .changed
            .wait_timeout_while(self.state(), timeout, |state| state.loading != count);
        waited.is_ok_and(|(_, result)| !result.timed_out())
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state());
        self.changed.notify_all();
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().expect("no panic under the lock")
    }
}

/// The value of a key, the same in both programs.
pub fn value_of(key: &str) -> Vec<u8> {
    if let Some(rest) = key.strip_prefix("size:") {
        if let Ok(size) = rest.split(':').next().unwrap_or_default().parse::<usize>() {
            return (0..size).map(|i| (i % 251) as u8).collect();
        }
    }
    format!("value-of-{key}").into_bytes()
}

/// FNV-1a, 32 bits: a hash for the ring that is not the default.
pub fn fnv1a_32(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash, &byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    })
}
