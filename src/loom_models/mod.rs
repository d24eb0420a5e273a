//! Models of the protocols between threads. Loom runs them in every order.
//!
//! `RUSTFLAGS="--cfg larder_loom" cargo test --release --lib --no-default-features --features http loom`
//!
//! A deadlock, a lost wake-up or a broken assertion in any order fails the test. All orders take
//! about 45 s. `LOOM_MAX_PREEMPTIONS=3` bounds the search, which then takes 1 s.
//!
//! ```text
//!   flights.rs    one load for many callers      groups.rs     whole groups, with loads and removals
//!   eviction.rs   eviction across shards         free_list.rs  blocks dropped while their arena is used
//!   freshness.rs  renewals, soft time-outs       permits.rs    permits to run a getter
//!   removals.rs   removals in a cluster          pickers.rs    the picker of a registry
//! ```
//!
//! Models of a single file stand beside it, in its own `loom_models.rs`.

mod eviction;
mod flights;
mod free_list;
mod freshness;
pub(crate) mod groups;
mod permits;
#[cfg(feature = "http")]
mod pickers;
mod removals;

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::sync::Arc;

/// Explores the orders with three preemptions, for 5 s at most.
#[cfg(feature = "http")]
pub(crate) fn explore(explored: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.max_duration = Some(std::time::Duration::from_secs(5));
    builder.check(explored);
}

/// Counts the runs of the work. Each run returns its number, beginning with 0.
#[derive(Clone, Default)]
struct Works(Arc<AtomicUsize>);

impl Works {
    fn work(&self) -> usize {
        self.0.fetch_add(1, Ordering::SeqCst)
    }

    fn done(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}
