//! A temporary limit below a group's capacity.

use super::Group;
use crate::store::CeilingId;

/// Lowers the capacity of a group until it is dropped.
pub(crate) struct TemporaryLimit {
    group: Group,
    id: CeilingId,
}

impl TemporaryLimit {
    /// No limit yet.
    pub(crate) fn new(group: Group) -> TemporaryLimit {
        let id = group.inner.store.add_ceiling(u64::MAX);
        TemporaryLimit { group, id }
    }

    pub(crate) fn group(&self) -> &Group {
        &self.group
    }

    /// Sets the limit in bytes, and evicts down to it. A panic of the eviction listener is discarded,
    /// because it belongs to no caller; the panic hook has reported it.
    pub(crate) fn set(&self, bytes: u64) {
        let store = &self.group.inner.store;
        store.set_ceiling(self.id, Some(bytes));
        if store.used() > bytes {
            drop(self.group.inner.evict_to_capacity());
        }
    }
}

impl Drop for TemporaryLimit {
    fn drop(&mut self) {
        self.group.inner.store.set_ceiling(self.id, None);
    }
}
