//! Temporary limits below the capacity.

use crate::sync::plain_atomic::{AtomicU64, Ordering};

use crate::sync::Mutex;

/// The limits that hold now. The lowest one counts.
#[derive(Debug)]
pub(in crate::store) struct Ceilings {
    /// `u64::MAX` without a limit. Written under the lock of `active`, and read by every insertion.
    lowest: AtomicU64,
    active: Mutex<Active>,
}

#[derive(Debug, Default)]
struct Active {
    limits: Vec<(CeilingId, u64)>,
    last: u64,
}

/// One temporary limit of a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CeilingId(u64);

impl Ceilings {
    pub(super) fn new() -> Ceilings {
        Ceilings {
            lowest: AtomicU64::new(u64::MAX),
            active: Mutex::default(),
        }
    }

    #[inline]
    pub(super) fn lowest(&self) -> u64 {
        self.lowest.load(Ordering::Relaxed)
    }

    /// Adds a limit in bytes.
    pub(in crate::store) fn add(&self, bytes: u64) -> CeilingId {
        let mut active = self.active.lock();
        active.last += 1;
        let id = CeilingId(active.last);
        active.limits.push((id, bytes));
        self.publish(&active);
        id
    }

    /// Changes a limit, or removes it.
    pub(in crate::store) fn set(&self, id: CeilingId, bytes: Option<u64>) {
        let mut active = self.active.lock();
        active.limits.retain(|&(other, _)| other != id);
        active.limits.extend(bytes.map(|bytes| (id, bytes)));
        self.publish(&active);
    }

    fn publish(&self, active: &Active) {
        let lowest = active.limits.iter().map(|&(_, bytes)| bytes).min();
        let lowest = lowest.unwrap_or(u64::MAX);
        self.lowest.store(lowest, Ordering::Relaxed);
    }
}

#[cfg(all(test, not(larder_loom)))]
mod tests {
    use super::*;

    #[test]
    fn lowest_limit_counts_until_it_is_removed() {
        let ceilings = Ceilings::new();
        let high = ceilings.add(100);
        let low = ceilings.add(50);
        assert_eq!(ceilings.lowest(), 50);
        ceilings.set(high, Some(20));
        assert_eq!(ceilings.lowest(), 20);
        ceilings.set(high, None);
        assert_eq!(ceilings.lowest(), 50);
        ceilings.set(low, None);
        assert_eq!(ceilings.lowest(), u64::MAX);
    }
}
