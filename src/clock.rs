//! The clock that measures expiry: the system's monotonic clock, or for tests one that can be moved.

mod boot;
mod coarse;

use crate::sync::plain_atomic::{AtomicI64, AtomicU64, Ordering::SeqCst};
use std::fmt;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use boot::{boot_nanos, coarse_nanos};
use coarse::TickReadings;

/// A monotonic clock for expiry, and a wall clock for points in time that other processes read.
///
/// Only the monotonic clock decides when entries expire. If the wall clock jumps by an hour, no entry
/// expires early or late. The time of a suspend counts on Linux; on macOS it does not. The wall clock is read
/// only where a message to another process contains a point in time.
///
/// The deadlines of callers are [`std::time::Instant`]s and do not use this clock, because the
/// operating system times their waits.
///
/// Cloning is cheap, and clones show the same time.
#[derive(Clone)]
pub struct Clock(ClockKind);

#[derive(Clone)]
enum ClockKind {
    System(Arc<SystemClock>),
    Adjustable(Arc<AdjustableClock>),
    Manual(Arc<ManualClock>),
}

struct SystemClock {
    origin: Instant,
    /// The boot clock at the origin.
    boot_nanos: Option<u64>,
    readings: TickReadings,
}

impl SystemClock {
    fn new() -> SystemClock {
        SystemClock {
            origin: Instant::now(),
            boot_nanos: boot_nanos(),
            readings: TickReadings::default(),
        }
    }

    #[inline]
    fn nanos(&self) -> u64 {
        let since_boot = self
            .boot_nanos
            .and_then(|origin| boot_nanos()?.checked_sub(origin));
        since_boot.unwrap_or_else(|| saturating_nanos(self.origin.elapsed()))
    }
}

struct AdjustableClock {
    system: SystemClock,
    added_nanos: AtomicU64,
}

impl AdjustableClock {
    fn nanos(&self) -> u64 {
        let added = self.added_nanos.load(SeqCst);
        self.system.nanos().saturating_add(added)
    }
}

struct ManualClock {
    nanos: AtomicU64,
    unix_offset_nanos: AtomicI64,
}

impl Clock {
    /// The system's clocks: for expiry `CLOCK_BOOTTIME` (Linux) or `CLOCK_MONOTONIC`, `CLOCK_REALTIME` for
    /// the wire.
    pub fn system() -> Self {
        Clock(ClockKind::System(Arc::new(SystemClock::new())))
    }

    /// The system's clocks, and what [`advance`](Self::advance) adds to them. For tests of several processes,
    /// whose clocks have to run at the same speed, and may jump.
    pub fn adjustable() -> Self {
        Clock(ClockKind::Adjustable(Arc::new(AdjustableClock {
            system: SystemClock::new(),
            added_nanos: AtomicU64::new(0),
        })))
    }

    /// A clock for tests. It stands still until [`advance`](Self::advance) moves it.
    ///
    /// Its wall clock starts at 2020-01-01T00:00:00Z, and `advance` moves it, too.
    pub fn manual() -> Self {
        Clock(ClockKind::Manual(Arc::new(ManualClock {
            nanos: AtomicU64::new(0),
            unix_offset_nanos: AtomicI64::new(1_577_836_800 * 1_000_000_000),
        })))
    }

    /// Moves a manual or adjustable clock and its wall clock forward. The clock stops at the end of its range,
    /// 548 years after its origin. Has no effect on a system clock.
    pub fn advance(&self, by: Duration) {
        let nanos = match &self.0 {
            ClockKind::System(_) => return,
            ClockKind::Adjustable(clock) => &clock.added_nanos,
            ClockKind::Manual(manual) => &manual.nanos,
        };
        let later = |nanos: u64| Some(nanos.saturating_add(saturating_nanos(by)));
        let _ = nanos.fetch_update(SeqCst, SeqCst, later);
    }

    /// Suspends the system of a manual or adjustable clock for `time`. The clock and its wall clock move, as a
    /// system clock does on Linux. Has no effect on a system clock.
    pub fn suspend(&self, time: Duration) {
        self.advance(time);
    }

    /// Shifts only the wall clock of a manual clock, as an administrator or NTP would. A negative
    /// number shifts it back in time. The wall clock stops at the ends of its range, 292 years before
    /// and after 1970. Has no effect on other clocks.
    pub fn shift_wall_clock(&self, by_nanos: i64) {
        if let ClockKind::Manual(manual) = &self.0 {
            let shifted = |offset: i64| Some(offset.saturating_add(by_nanos));
            let _ = manual
                .unix_offset_nanos
                .fetch_update(SeqCst, SeqCst, shifted);
        }
    }

    /// The time since the clock's origin. It never decreases.
    pub fn now(&self) -> Tick {
        let since_origin = match &self.0 {
            ClockKind::System(system) => system.nanos(),
            ClockKind::Adjustable(clock) => clock.nanos().min(LAST_NANOS),
            ClockKind::Manual(manual) => manual.nanos.load(SeqCst).min(LAST_NANOS),
        };
        Tick(ORIGIN.saturating_add(since_origin))
    }

    /// A time up to 10 ms ago: at or after the kernel's last tick. It is older if the kernel misses ticks. It
    /// takes a fifth of the time of [`now`](Self::now). A manual clock, and a system without a coarse clock,
    /// return `now`.
    #[inline]
    pub(crate) fn recent(&self) -> Tick {
        let ClockKind::System(system) = &self.0 else {
            return self.now();
        };
        let exact = || system.nanos();
        let since_origin = match coarse_nanos() {
            Some(coarse) => system.readings.latest(coarse, exact),
            None => exact(),
        };
        Tick(ORIGIN.saturating_add(since_origin))
    }

    /// Whether `end`, in nanoseconds as of [`Tick::nanos`], is later than [`recent`](Self::recent) by 50 ms,
    /// which is more than `recent` can be behind. Always false for a manual clock.
    #[inline]
    pub(crate) fn is_well_before(&self, end: u64) -> bool {
        matches!(self.0, ClockKind::System(_))
            && self.recent().nanos().saturating_add(WELL_BEFORE) < end
    }

    /// The wall clock, in nanoseconds since 1970-01-01T00:00:00Z; 0 for a system clock set before
    /// that.
    pub fn unix_nanos(&self) -> i64 {
        match &self.0 {
            ClockKind::System(_) => system_unix_nanos(),
            ClockKind::Adjustable(clock) => {
                system_unix_nanos().saturating_add_unsigned(clock.added_nanos.load(SeqCst))
            }
            ClockKind::Manual(manual) => manual
                .unix_offset_nanos
                .load(SeqCst)
                .saturating_add_unsigned(manual.nanos.load(SeqCst)),
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
            ClockKind::System(_) => "Clock::system",
            ClockKind::Adjustable(_) => "Clock::adjustable",
            ClockKind::Manual(_) => "Clock::manual",
        })
    }
}

/// The number of a clock's first tick, 36 years after the first tick of all. The time before it is for
/// values of other processes that were loaded before this process started.
const ORIGIN: NonZeroU64 = NonZeroU64::new(1 << 60).expect("it is not zero");

/// The last time of a clock that can be moved, after its origin. It is before [`Tick::NEVER`].
const LAST_NANOS: u64 = u64::MAX - 1 - ORIGIN.get();

/// In nanoseconds. [`Clock::recent`] is behind by less, unless the kernel misses ticks.
const WELL_BEFORE: u64 = 50_000_000;

/// A reading of a [`Clock`], in nanoseconds. It can be a time before the clock's origin. An
/// `Option<Tick>` has the same size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tick(NonZeroU64);

impl Tick {
    /// The tick at which [`after`](Self::after) saturates. It stands for "does not expire".
    pub(crate) const NEVER: Tick = Tick(NonZeroU64::MAX);

    /// The nanoseconds since the first tick of all.
    pub(crate) fn nanos(self) -> u64 {
        self.0.get()
    }

    /// The tick `by` later. Saturates 548 years after the clock's origin.
    pub fn after(self, by: Duration) -> Tick {
        Tick(self.0.saturating_add(saturating_nanos(by)))
    }

    /// The tick `by` earlier; `None` if that is more than 36 years before the clock's origin.
    pub fn before(self, by: Duration) -> Option<Tick> {
        let nanos = self.nanos().checked_sub(saturating_nanos(by))?;
        NonZeroU64::new(nanos).map(Tick)
    }

    /// The time from `earlier` to `self`; zero if `self` is not later.
    pub fn since(self, earlier: Tick) -> Duration {
        Duration::from_nanos(self.nanos().saturating_sub(earlier.nanos()))
    }
}

fn system_unix_nanos() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| i64::try_from(d.as_nanos()).unwrap_or(i64::MAX))
}

pub(crate) fn saturating_nanos(d: Duration) -> u64 {
    u64::try_from(d.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn manual_clock_moves_only_by_advance() {
        let clock = Clock::manual();
        let start = clock.now();
        assert_eq!(clock.now(), start);
        clock.clone().advance(Duration::from_secs(3));
        assert_eq!(clock.now().since(start), Duration::from_secs(3));
    }

    #[test]
    fn adjustable_clock_moves_with_the_time_and_by_advance() {
        let clock = Clock::adjustable();
        let before = Instant::now();
        let (tick, unix) = (clock.now(), clock.unix_nanos());
        let after = Instant::now();
        let hour = Duration::from_secs(3600);
        clock.clone().advance(hour);
        while after.elapsed() < Duration::from_millis(2) {}
        let least = after.elapsed();
        let since = clock.now().since(tick);
        assert!(since >= hour + least && since <= hour + before.elapsed());
        assert!(clock.recent().since(tick) >= hour + least);
        assert!(clock.unix_nanos() >= unix + hour.as_nanos() as i64);
        assert!(!clock.is_well_before(Tick::NEVER.nanos()));
    }

    #[test]
    fn suspend_is_noticed_at_once() {
        let clock = Clock::manual();
        let (tick, unix) = (clock.now(), clock.unix_nanos());
        let night = Duration::from_secs(8 * 60 * 60);
        clock.suspend(night);
        assert_eq!(clock.unix_nanos(), unix + night.as_nanos() as i64);
        assert_eq!(clock.now().since(tick), night);
        clock.advance(Duration::from_secs(1));
        clock.suspend(night);
        assert_eq!(clock.now().since(tick), 2 * night + Duration::from_secs(1));
    }

    #[test]
    fn system_clock_adds_nothing_without_a_suspend() {
        let (clock, begun) = (Clock::system(), Instant::now());
        let tick = clock.now();
        while begun.elapsed() < Duration::from_millis(30) {
            let since = clock.now().since(tick);
            assert!(since <= begun.elapsed(), "{since:?}");
        }
    }

    #[test]
    fn shift_of_the_wall_clock_does_not_change_the_monotonic_reading() {
        let clock = Clock::manual();
        let (tick, unix) = (clock.now(), clock.unix_nanos());
        clock.shift_wall_clock(-3_600_000_000_000);
        assert_eq!(clock.now(), tick);
        assert_eq!(clock.unix_nanos(), unix - 3_600_000_000_000);
    }

    #[test]
    fn time_well_before_the_end_is_distinguished_from_one_near_it() {
        // The first reading of a clock is exact.
        let is_well_before = |millis| {
            let clock = Clock::system();
            let end = clock.now().after(Duration::from_millis(millis));
            clock.is_well_before(end.nanos())
        };
        assert!(!is_well_before(0));
        assert!(!is_well_before(20));
        assert!(is_well_before(60_000));
        assert!(Clock::system().is_well_before(Tick::NEVER.nanos()));
        assert!(!Clock::manual().is_well_before(Tick::NEVER.nanos()));
    }

    #[test]
    fn recent_time_moves_on_and_is_never_ahead() {
        let clock = Clock::system();
        let first = clock.recent();
        let mut last = first;
        while last.since(first) < Duration::from_millis(30) {
            let recent = clock.recent();
            assert!(last <= recent && recent <= clock.now());
            last = recent;
        }
    }

    #[test]
    fn recent_time_of_a_manual_clock_is_its_time() {
        let clock = Clock::manual();
        clock.advance(Duration::from_nanos(1));
        assert_eq!(clock.recent(), clock.now());
    }

    #[test]
    fn clock_stops_before_the_tick_that_stands_for_never() {
        for clock in [Clock::manual(), Clock::adjustable()] {
            clock.advance(Duration::MAX);
            let last = clock.now();
            clock.advance(Duration::from_nanos(1));
            assert_eq!((clock.now(), clock.recent()), (last, last));
            assert!(last < Tick::NEVER && last.after(Duration::from_nanos(1)) == Tick::NEVER);
        }
    }

    #[test]
    fn ticks_saturate() {
        let late = Clock::manual().now().after(Duration::MAX);
        assert_eq!(late.after(Duration::MAX), late);
        assert_eq!(Clock::manual().now().since(late), Duration::ZERO);
    }

    #[test]
    fn ticks_may_lie_before_the_origin_of_the_clock() {
        let (now, year) = (Clock::system().now(), Duration::from_secs(31_557_600));
        let earlier = now.before(36 * year).expect("in range");
        assert_eq!(now.since(earlier), 36 * year);
        assert_eq!(now.before(Duration::MAX), None);
    }
}
