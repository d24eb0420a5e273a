//! Protects the origin: limits how many loads of a group run the getter at the same time.

#[cfg(all(test, not(larder_loom)))]
mod tests;

use std::time::Instant;

use super::client_load::ClientWaiter;
use super::flight::LoadFrom;
use super::populate::Placement;
use crate::context::Context;
use crate::error::{Error, ErrorKind, Result};
use crate::group::{Inner, LoadBegin, LoadKey};
use crate::sync::Arc;
use crate::threads::load_permits::{LoadClass, LoadPermit, LoadPermits, Urgency};
use crate::threads::nesting::{self, WaitFor};

impl Inner {
    /// Waits for the permit that a flight needs; `None` if it needs none. If there is none in time, the
    /// caller [gives the flight up](super::flight::give_up), so that a waiter with time left leads the next
    /// one.
    #[inline]
    pub(super) fn permit_lead(
        &self,
        from: &LoadFrom,
        begun: &mut LoadBegin,
        ctx: &Context,
        key: &LoadKey<'_>,
        waiter: Option<&mut dyn ClientWaiter>,
    ) -> Result<Option<LoadPermit>> {
        let (Some(permits), Some(class)) = (&self.permits, from.class()) else {
            return Ok(None);
        };
        let waits = !is_stale_served(ctx, key);
        let permit = self.permit(permits, class, waits, ctx, waiter)?;
        // The age of the value counts from the end of the wait.
        begun.at = self.store.clock().now();
        Ok(Some(permit))
    }

    /// A permit for a load that no caller waits for.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Overloaded`] if none is free.
    pub(super) fn permit_refresh(&self, from: &LoadFrom) -> Result<Option<LoadPermit>> {
        let (Some(permits), Some(class)) = (&self.permits, from.class()) else {
            return Ok(None);
        };
        let permit = permits.try_acquire(class);
        permit.map(Some).ok_or_else(|| overloaded(permits))
    }

    /// Waits for the permit of one call of the bulk getter for these keys.
    pub(in crate::group) fn permit_bulk<'k>(
        &self,
        class: LoadClass,
        mut keys: impl Iterator<Item = LoadKey<'k>>,
        ctx: &Context,
        waiter: Option<&mut dyn ClientWaiter>,
    ) -> Result<Option<LoadPermit>> {
        let Some(permits) = &self.permits else {
            return Ok(None);
        };
        let waits = !keys.all(|key| is_stale_served(ctx, &key));
        self.permit(permits, class, waits, ctx, waiter).map(Some)
    }

    /// A permit. If none is free and `waits` is set, waits for one until `ctx` ends, or the waiter leaves. A call
    /// without a deadline waits for `max_load_wait` in all.
    fn permit(
        &self,
        permits: &Arc<LoadPermits>,
        class: LoadClass,
        waits: bool,
        ctx: &Context,
        waiter: Option<&mut dyn ClientWaiter>,
    ) -> Result<LoadPermit> {
        if let Some(permit) = permits.try_acquire(class) {
            return Ok(permit);
        }
        let (began, deadline) = (Instant::now(), ctx.deadline());
        let left = nesting::wait_left(WaitFor::Permit, self.max_load_wait);
        let may_wait = waits && ctx.value::<HasWaited>().is_none();
        if !may_wait || (deadline.is_none() && left.is_zero()) {
            return Err(overloaded(permits));
        }
        let by = deadline.unwrap_or(began + left);
        let mut queued = permits.queue(class, Urgency::By(by));
        let permit = match waiter {
            None => queued.wait(by, ctx),
            Some(waiter) => loop {
                let until = waiter.next_step().ok_or(ErrorKind::DeadlineExceeded)?;
                let permit = queued.wait(until, ctx);
                if permit.is_some() || ctx.err().is_some() {
                    break permit;
                }
            },
        };
        if deadline.is_none() {
            nesting::count_wait(WaitFor::Permit, began.elapsed());
        }
        match ctx.err() {
            Some(ended) => Err(ended),
            None => permit.ok_or_else(|| overloaded(permits)),
        }
    }

    /// A context for the load of these keys while old values are served without it. Then the load does not
    /// wait for a permit.
    pub(in crate::group) fn with_stale_served<'k>(
        &self,
        ctx: &Context,
        keys: impl Iterator<Item = LoadKey<'k>>,
    ) -> Context {
        if self.permits.is_none() {
            return ctx.clone();
        }
        let mut hashes: Vec<u64> = keys.map(|key| key.hash.get()).collect();
        hashes.sort_unstable();
        ctx.with_value(StaleIsServed(hashes))
    }
}

/// Marks the context of a load whose call has waited for a permit in vain. It does not wait again.
pub(in crate::group) struct HasWaited;

/// Marks the context of the load of the keys with these hashes, which are sorted.
struct StaleIsServed(Vec<u64>);

fn is_stale_served(ctx: &Context, key: &LoadKey<'_>) -> bool {
    let served = ctx.value::<StaleIsServed>();
    served.is_some_and(|served| served.0.binary_search(&key.hash.get()).is_ok())
}

impl LoadFrom {
    /// The permits for this load; `None` if it does not run the getter itself.
    fn class(&self) -> Option<LoadClass> {
        match self {
            LoadFrom::Getter(Placement::Main | Placement::Warm) => Some(LoadClass::Own),
            LoadFrom::Getter(_) | LoadFrom::GetterAfterPeers => Some(LoadClass::Fallback),
            LoadFrom::Peers(_) | LoadFrom::OwnerAlone(_) => None,
        }
    }
}

fn overloaded(permits: &LoadPermits) -> Error {
    let message = format!(
        "{} loads run, as many as max_concurrent_loads allows; raise it or shed load",
        permits.max()
    );
    Error::new(ErrorKind::Overloaded, message)
}
