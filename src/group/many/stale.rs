//! Stale values among several keys: newer ones are loaded together with the values that are missing.

use std::iter;
use std::time::Instant;

use super::key::Results;
use crate::byteview::ByteView;
use crate::context::Context;
use crate::error::{Error, ErrorKind};
use crate::group::freshness::Phase;
use crate::group::load::refresh::{SoftLoad, is_failure, is_impatience};
use crate::group::{Inner, LoadKey, Loaded};
use crate::store::Hit;
use crate::sync::Arc;
use crate::threads::loader_pool::JobFor;

/// The stale values of a call, each with the index of its key in the caller's list.
#[derive(Default)]
pub(super) struct StaleValues {
    olds: Vec<(usize, Loaded)>,
    /// Loads that are waited for no longer than the soft time-out, and when that ends.
    soft_loads: Vec<(usize, SoftLoad)>,
    soft_end: Option<Instant>,
}

impl StaleValues {
    /// The indexes of the keys.
    pub(super) fn places(&self) -> impl Iterator<Item = usize> {
        self.olds.iter().map(|(at, _)| *at)
    }
}

impl Inner {
    /// The value for a call for several keys that found a [due](Hit::is_due) one. `None` if it is stale and
    /// has to be loaded.
    pub(super) fn get_due_of_many(
        self: &Arc<Self>,
        ctx: &Context,
        at: usize,
        key: &LoadKey<'_>,
        hit: Hit,
        stale: &mut StaleValues,
    ) -> Option<ByteView> {
        let old = self.loaded(hit);
        match self.phase(&old.lifetime) {
            Phase::Fresh => {}
            Phase::Refresh => self.refresh(key),
            Phase::Stale => {
                if self.failed_loads.recent(key, self.store.clock()).is_none() {
                    let view = old.view.clone();
                    stale.olds.push((at, old));
                    return self.start_soft_load(ctx, at, key, stale).then_some(view);
                }
                self.counters.add(|loads| &loads.stale_hits);
            }
        }
        Some(old.view)
    }

    /// Starts the load of a stale value, if there is a soft time-out.
    fn start_soft_load(
        self: &Arc<Self>,
        ctx: &Context,
        at: usize,
        key: &LoadKey<'_>,
        stale: &mut StaleValues,
    ) -> bool {
        let Some(limit) = self.freshness.soft_timeout else {
            return false;
        };
        let from = self.source_of(key);
        let ctx = self.with_stale_served(ctx, iter::once(*key));
        let started = self.start_softly(&from, JobFor::Own, &ctx, key);
        let load = started.unwrap_or_else(|error| SoftLoad::Ended(Err(error)));
        stale.soft_loads.push((at, load));
        let later = Instant::now().checked_add(limit);
        stale.soft_end = stale.soft_end.or(later);
        true
    }

    /// Waits for the loads with a soft time-out, and puts old values in place of errors. True if there are
    /// keys to load whose old values are over by now: they have no result.
    pub(super) fn end_stale(
        &self,
        ctx: &Context,
        stale: StaleValues,
        results: &mut Results,
    ) -> bool {
        if stale.olds.is_empty() {
            return false;
        }
        for (at, load) in stale.soft_loads {
            let loaded = load.end(ctx, stale.soft_end);
            results[at] = Some(loaded.map(|loaded| loaded.view));
        }
        let now = self.store.clock().now();
        let mut loads_again = false;
        for (at, old) in stale.olds {
            let is_over = old.lifetime.expires.is_some_and(|end| end <= now);
            let late = || Err(Error::from(ErrorKind::DeadlineExceeded));
            let result = results[at].take().unwrap_or_else(late);
            results[at] = match result {
                Err(error) if is_over && is_impatience(&error, ctx) => {
                    loads_again = true;
                    None
                }
                Err(error) if !is_over && is_failure(error.kind()) => {
                    self.counters.add(|loads| &loads.stale_hits);
                    Some(Ok(old.view))
                }
                result => Some(result),
            };
        }
        loads_again
    }
}
