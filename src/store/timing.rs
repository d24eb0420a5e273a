//! The time of look-ups: the clock, and how long before its expiry an entry is due.

use crate::sync::plain_atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::clock::{Clock, Tick};

#[derive(Debug)]
pub(super) struct Timing {
    pub(super) clock: Clock,
    /// How long entries are kept after their expiry.
    pub(super) retention: Duration,
    /// In nanoseconds.
    margin: AtomicU64,
}

impl Timing {
    pub(super) fn new(clock: Clock, retention: Duration) -> Timing {
        Timing {
            clock,
            retention,
            margin: AtomicU64::new(0),
        }
    }

    /// Whether an entry that expires at `end` is due; `None` if it has expired.
    #[inline]
    pub(super) fn is_due(&self, end: Tick) -> Option<bool> {
        let margin = self.margin.load(Ordering::Relaxed);
        if self
            .clock
            .is_well_before(end.nanos().saturating_sub(margin))
        {
            return Some(false);
        }
        let now = self.clock.now();
        (now < end).then(|| end.nanos() - now.nanos() <= margin)
    }

    pub(super) fn raise_margin(&self, margin: Duration) {
        let nanos = u64::try_from(margin.as_nanos()).unwrap_or(u64::MAX);
        // Written only if it grows: look-ups read it.
        if nanos > self.margin.load(Ordering::Relaxed) {
            self.margin.fetch_max(nanos, Ordering::Relaxed);
        }
    }
}
