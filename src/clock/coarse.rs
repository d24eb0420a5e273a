//! An estimate of the time that costs little.

use crate::sync::plain_atomic::{AtomicU64, Ordering};

/// Adds the coarse clock, which does not count suspends, to its distance from an exact clock. The distance is
/// measured twice a second.
#[derive(Default)]
pub(super) struct CoarseClock {
    /// The exact clock less the coarse one.
    distance: AtomicU64,
    /// The coarse clock when the distance was measured; 0 before.
    measured: AtomicU64,
}

/// The distance is measured again after this time, in nanoseconds.
const MEASURED_EVERY: u64 = 500_000_000;

impl CoarseClock {
    /// An estimate of `exact`, given the coarse clock now. It is wrong by the time between two ticks of the
    /// kernel. After a suspend, it is behind until the distance is measured again.
    #[inline]
    pub(super) fn estimate(&self, coarse: u64, exact: impl FnOnce() -> u64) -> u64 {
        // A thread that reads a new `measured` reads the new distance.
        let measured = self.measured.load(Ordering::Acquire);
        if coarse.wrapping_sub(measured) > MEASURED_EVERY || measured == 0 {
            return self.measure(coarse, exact());
        }
        coarse.wrapping_add(self.distance.load(Ordering::Relaxed))
    }

    #[cold]
    fn measure(&self, coarse: u64, exact: u64) -> u64 {
        self.distance
            .store(exact.wrapping_sub(coarse), Ordering::Relaxed);
        self.measured.store(coarse, Ordering::Release);
        exact
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn suspend_is_noticed_after_half_a_second() {
        let clock = CoarseClock::default();
        let begin = 50 * SECOND;
        assert_eq!(clock.estimate(begin, || 7 * SECOND), 7 * SECOND);
        let unread = || unreachable!("the distance is known");
        let later = begin + SECOND / 4;
        assert_eq!(clock.estimate(later, unread), 7 * SECOND + SECOND / 4);
        // The system sleeps for 100 seconds, which the coarse clock does not count.
        let exact = |coarse| 107 * SECOND + coarse - begin;
        assert!(clock.estimate(begin + SECOND / 2, unread) < 8 * SECOND);
        let awake = begin + SECOND / 2 + 1;
        assert_eq!(clock.estimate(awake, || exact(awake)), exact(awake));
        let later = awake + SECOND / 2;
        assert_eq!(clock.estimate(later, unread), exact(later));
    }
}
