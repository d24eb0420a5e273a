//! Memory that a group gives back: evictions down to the capacity, trims, and temporary limits.

use super::{Group, Inner};
use crate::panics::FirstPanic;
use crate::store::CeilingId;

/// Lowers the capacity of a group until it is dropped.
pub(crate) struct TemporaryLimit {
    group: Group,
    id: CeilingId,
}

impl Group {
    /// Gives `bytes` of memory back to the system: evicts the coldest entries of both shares, with
    /// cause [`RemovalCause::Size`](crate::RemovalCause::Size), expired ones before all others, until
    /// the resident set is smaller by at least 95 % of `bytes`, less 32 KiB. Entries that share pages
    /// with others free no page, so more than `bytes` may have to leave. Returns the weight of the
    /// entries that left; less than `bytes` only if the cache held less.
    ///
    /// The capacity stays, so the cache grows again as values are loaded. To keep it small, use
    /// [`set_capacity`](Self::set_capacity). [`MemoryPressure`](crate::MemoryPressure) calls this by
    /// itself when memory is short. Concurrent gets wait for a few hundred evictions at most. While a
    /// trim runs, concurrent insertions evict for it, too.
    ///
    /// ```
    /// # use larder::{Registry, getter_fn};
    /// # let colors = Registry::new().new_group("colors", 1 << 20, getter_fn(|_, name, dest| Ok(dest.set_str(name)?)))?;
    /// colors.get("red")?;
    /// let size = colors.weighted_size();
    /// assert_eq!(colors.trim(u64::MAX), size);
    /// assert_eq!(colors.max_capacity(), 1 << 20);
    /// # Ok::<(), larder::Error>(())
    /// ```
    ///
    /// # Panics
    ///
    /// If the eviction listener panics; the memory is given back all the same.
    pub fn trim(&self, bytes: u64) -> u64 {
        let inner = &self.inner;
        let (used, resident) = (inner.store.used(), inner.store.resident());
        let tolerated = bytes / 20 + TOLERATED;
        let goal = resident.saturating_sub(bytes).saturating_add(tolerated);
        let mut limit = inner.store.occupied().saturating_sub(bytes);
        let ceiling = inner.store.add_ceiling(limit);
        let mut panic = FirstPanic::default();
        inner.evict_to_capacity(&mut panic);
        for _ in 0..MAX_ROUNDS {
            let lacking = inner.store.resident().saturating_sub(goal);
            if lacking == 0 || limit == 0 {
                break;
            }
            // Insertions may have taken room meanwhile, so the limit is below both.
            limit = limit.min(inner.store.occupied()).saturating_sub(lacking);
            inner.store.set_ceiling(ceiling, Some(limit));
            inner.evict_to_capacity(&mut panic);
        }
        let after = inner.store.used();
        inner.store.set_ceiling(ceiling, None);
        panic.resume();
        used.saturating_sub(after)
    }
}

impl Inner {
    /// Evicts down to the capacity. Free room that other entries cannot have counts as used.
    pub(super) fn evict_to_capacity(&self, panic: &mut FirstPanic) {
        for _ in 0..MAX_ROUNDS {
            let mut evicts = false;
            while let Some(mut evicted) = self.store.evict_to_capacity() {
                self.notify_all(&mut evicted, panic);
                evicts = true;
            }
            // Only now is it known how much free room lies in pages that are still used. It may exceed what is
            // allowed, so that the next round evicts more.
            self.store.release_free_pages();
            if !evicts {
                return;
            }
        }
    }
}

/// The rounds of an eviction, at most, while other threads insert. Three are usual.
const MAX_ROUNDS: u32 = 64;

/// Besides a twentieth of the bytes asked for, a trim may fail to give back this many, because pages are used
/// in part.
const TOLERATED: u64 = 32 << 10;

impl TemporaryLimit {
    /// No limit yet.
    pub(crate) fn new(group: Group) -> TemporaryLimit {
        let id = group.inner.store.add_ceiling(u64::MAX);
        TemporaryLimit { group, id }
    }

    pub(crate) fn group(&self) -> &Group {
        &self.group
    }

    /// The bytes that count against the limit.
    pub(crate) fn occupied(&self) -> u64 {
        self.group.inner.store.occupied()
    }

    /// Sets the limit in bytes, and evicts down to it. A panic of the eviction listener is discarded,
    /// because it belongs to no caller; the panic hook has reported it.
    pub(crate) fn set(&self, bytes: u64) {
        let store = &self.group.inner.store;
        store.set_ceiling(self.id, Some(bytes));
        if store.occupied() > bytes {
            self.group
                .inner
                .evict_to_capacity(&mut FirstPanic::default());
        }
    }
}

impl Drop for TemporaryLimit {
    fn drop(&mut self) {
        self.group.inner.store.set_ceiling(self.id, None);
    }
}
