//! The clock that expiry is measured by: the system's monotonic clock, or one that a test moves.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// A monotonic clock for expiry, with the wall clock beside it for the wire.
///
/// Entries expire by the monotonic reading alone, so a wall clock that jumps by an hour neither
/// ends an entry early nor keeps it too long. The wall clock is read only where a message to
/// another process carries a point in time.
///
/// Deadlines of callers are not measured by this clock: they are [`std::time::Instant`]s, because
/// the operating system ends their waits.
///
/// Cloning is cheap, and clones tell the same time.
#[derive(Clone)]
pub struct Clock(Source);

#[derive(Clone)]
enum Source {
    System { origin: Instant },
    Manual(Arc<Manual>),
}

struct Manual {
    nanos: AtomicU64,
    unix_offset_nanos: AtomicI64,
}

impl Clock {
    /// The system's clocks: `CLOCK_MONOTONIC` for expiry, `CLOCK_REALTIME` for the wire.
    pub fn system() -> Self {
        Clock(Source::System {
            origin: Instant::now(),
        })
    }

    /// A clock that stands still until [`advance`](Self::advance) moves it. For tests.
    ///
    /// Its wall clock starts at 2020-01-01T00:00:00Z and moves along.
    pub fn manual() -> Self {
        Clock(Source::Manual(Arc::new(Manual {
            nanos: AtomicU64::new(0),
            unix_offset_nanos: AtomicI64::new(1_577_836_800 * 1_000_000_000),
        })))
    }

    /// Moves a manual clock, and its wall clock with it. A system clock is not changed.
    pub fn advance(&self, by: Duration) {
        if let Source::Manual(manual) = &self.0 {
            manual
                .nanos
                .fetch_add(saturating_nanos(by), Ordering::SeqCst);
        }
    }

    /// Shifts a manual clock's wall clock alone, as an administrator or NTP would; negative is
    /// back in time. A system clock is not changed.
    pub fn shift_wall_clock(&self, by_nanos: i64) {
        if let Source::Manual(manual) = &self.0 {
            manual
                .unix_offset_nanos
                .fetch_add(by_nanos, Ordering::SeqCst);
        }
    }

    /// The time since the clock's origin. Never goes back.
    pub fn now(&self) -> Tick {
        Tick(match &self.0 {
            Source::System { origin } => saturating_nanos(origin.elapsed()),
            Source::Manual(manual) => manual.nanos.load(Ordering::SeqCst),
        })
    }

    /// The wall clock, in nanoseconds since 1970-01-01T00:00:00Z; 0 for a clock set before that.
    pub fn unix_nanos(&self) -> i64 {
        match &self.0 {
            Source::System { .. } => SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |d| i64::try_from(d.as_nanos()).unwrap_or(i64::MAX)),
            Source::Manual(manual) => {
                let nanos = manual.nanos.load(Ordering::SeqCst);
                i64::try_from(nanos)
                    .unwrap_or(i64::MAX)
                    .saturating_add(manual.unix_offset_nanos.load(Ordering::SeqCst))
            }
        }
    }
}

impl Default for Clock {
    fn default() -> Self {
        Clock::system()
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Source::System { .. } => "Clock::system",
            Source::Manual(_) => "Clock::manual",
        })
    }
}

/// A reading of a [`Clock`]: nanoseconds since that clock's origin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tick(u64);

impl Tick {
    /// What [`after`](Self::after) saturates at, which no clock comes to.
    pub(crate) const NEVER: Tick = Tick(u64::MAX);

    /// The tick `by` later; saturates after 584 years.
    pub fn after(self, by: Duration) -> Tick {
        Tick(self.0.saturating_add(saturating_nanos(by)))
    }

    /// How long `self` lies after `earlier`; zero if it does not.
    pub fn since(self, earlier: Tick) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

fn saturating_nanos(d: Duration) -> u64 {
    u64::try_from(d.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn manual_clock_moves_only_when_told() {
        let clock = Clock::manual();
        let start = clock.now();
        assert_eq!(clock.now(), start);
        clock.clone().advance(Duration::from_secs(3));
        assert_eq!(clock.now().since(start), Duration::from_secs(3));
    }

    #[test]
    fn wall_clock_shift_leaves_the_monotonic_reading_alone() {
        let clock = Clock::manual();
        let (tick, unix) = (clock.now(), clock.unix_nanos());
        clock.shift_wall_clock(-3_600_000_000_000);
        assert_eq!(clock.now(), tick);
        assert_eq!(clock.unix_nanos(), unix - 3_600_000_000_000);
    }

    #[test]
    fn ticks_saturate() {
        let late = Clock::manual().now().after(Duration::MAX);
        assert_eq!(late.after(Duration::MAX), late);
        assert_eq!(Clock::manual().now().since(late), Duration::ZERO);
    }
}
