//! Memory that a group gives back: evictions down to the capacity, trims, and temporary limits.

use super::{Group, Inner};
use crate::panics::FirstPanic;
use crate::store::CeilingId;

/// Lowers the capacity of a group until it is dropped.
pub(crate) struct TemporaryLimit {
    group: Group,
    id: CeilingId,
}

impl Inner {
    /// Evicts down to the capacity. Free room that other entries cannot have counts as used.
    pub(super) fn evict_to_capacity(&self, panic: &mut FirstPanic) {
        for _ in 0..MAX_ROUNDS {
            let mut evicts = false;
            while let Some(evicted) = self.store.evict_to_capacity() {
                self.notify_all(evicted, panic);
                evicts = true;
            }
            // Only now is it seen how much room the entries have left in pages that are still used.
            self.store.release_free_pages();
            if !evicts {
                return;
            }
        }
    }

    pub(super) fn trim(&self, bytes: u64) -> u64 {
        let (used, resident) = (self.store.used(), self.store.resident());
        let tolerated = bytes / 20 + TOLERATED;
        let goal = resident.saturating_sub(bytes).saturating_add(tolerated);
        let mut limit = self.store.occupied().saturating_sub(bytes);
        let ceiling = self.store.add_ceiling(limit);
        let mut panic = FirstPanic::default();
        self.evict_to_capacity(&mut panic);
        for _ in 0..MAX_ROUNDS {
            let lacking = self.store.resident().saturating_sub(goal);
            if lacking == 0 || limit == 0 {
                break;
            }
            // Insertions may have taken room meanwhile, so the limit is below both.
            limit = limit.min(self.store.occupied()).saturating_sub(lacking);
            self.store.set_ceiling(ceiling, Some(limit));
            self.evict_to_capacity(&mut panic);
        }
        let after = self.store.used();
        self.store.set_ceiling(ceiling, None);
        panic.resume();
        used.saturating_sub(after)
    }
}

/// The rounds of an eviction, at most, while other threads insert. Three are usual.
const MAX_ROUNDS: u32 = 64;

/// A trim may leave so many bytes of those asked for, besides a twentieth: half-used pages.
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
