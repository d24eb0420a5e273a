//! A reading of the exact clock that costs little.

use crate::sync::plain_atomic::{AtomicU64, Ordering};

/// Keeps one reading of the exact clock a tick of the kernel. The coarse clock, which is five times as fast,
/// shows when a tick has passed.
#[derive(Default)]
pub(super) struct TickReadings {
    /// The coarse clock when the exact one was read; 0 before the first reading.
    coarse: AtomicU64,
    exact: AtomicU64,
}

impl TickReadings {
    /// The reading of the exact clock in this tick, or one of now if there is none. It is never ahead of
    /// the exact clock, and behind by less than a tick. A suspend makes no difference: the first tick after it
    /// has a reading of its own.
    #[inline]
    pub(super) fn latest(&self, coarse: u64, exact: impl FnOnce() -> u64) -> u64 {
        // A thread that reads this tick's number reads its exact time, too, or a later one.
        if self.coarse.load(Ordering::Acquire) == coarse {
            return self.exact.load(Ordering::Relaxed);
        }
        self.renew(coarse, exact())
    }

    /// The larger of two readings stays. Without that, a thread could read the exact clock, be suspended
    /// while others note later ticks, and then replace their reading by its old one.
    #[cold]
    fn renew(&self, coarse: u64, exact: u64) -> u64 {
        self.exact.fetch_max(exact, Ordering::Relaxed);
        self.coarse.store(coarse, Ordering::Release);
        exact
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn exact_clock_is_read_once_a_tick() {
        let readings = TickReadings::default();
        let unread = || unreachable!("the tick has a reading");
        assert_eq!(readings.latest(50 * SECOND, || 7 * SECOND), 7 * SECOND);
        assert_eq!(readings.latest(50 * SECOND, unread), 7 * SECOND);
        let next = 50 * SECOND + 4_000_000;
        assert_eq!(readings.latest(next, || 7 * SECOND + 1), 7 * SECOND + 1);
        assert_eq!(readings.latest(next, unread), 7 * SECOND + 1);
    }

    #[test]
    fn suspend_is_noticed_in_the_next_tick() {
        let readings = TickReadings::default();
        readings.latest(50 * SECOND, || 7 * SECOND);
        // The system sleeps for 100 seconds, which the coarse clock does not count.
        let awake = 50 * SECOND + 4_000_000;
        assert_eq!(readings.latest(awake, || 107 * SECOND), 107 * SECOND);
    }

    /// A thread reads the exact clock in the first tick, and notes it in the second.
    #[test]
    fn late_reading_does_not_replace_a_later_one() {
        let readings = TickReadings::default();
        let (first, second) = (50 * SECOND, 50 * SECOND + 4_000_000);
        let late = || {
            readings.latest(second, || 9 * SECOND);
            7 * SECOND
        };
        readings.latest(first, late);
        let unread = || unreachable!("the tick has a reading");
        assert_eq!(readings.latest(first, unread), 9 * SECOND);
        assert_eq!(readings.latest(second, || 9 * SECOND + 1), 9 * SECOND + 1);
    }
}
