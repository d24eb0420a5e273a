//! The time for which the system was suspended, which the monotonic clock leaves out.

use crate::sync::plain_atomic::{AtomicU64, Ordering::Relaxed};

/// Adds the time of suspends to the readings of a monotonic clock.
///
/// A second clock counts the time since the boot, suspends included. It is read every
/// [`INTERVAL_NANOS`] at most, by a thread that reads the monotonic clock anyway, and compared with that
/// clock. The monotonic clock stands still during a suspend and goes on afterwards, so a suspend is noticed
/// at most that long after the system has resumed.
#[derive(Debug, Default)]
pub(super) struct Suspends {
    /// The longest time of suspends that was seen, in nanoseconds.
    seen: AtomicU64,
    /// The reading of the monotonic clock at which the boot clock is read again.
    next: AtomicU64,
}

/// Half a second.
const INTERVAL_NANOS: u64 = 500_000_000;

impl Suspends {
    /// The reading `nanos` of the monotonic clock, with the time of suspends. `suspended` returns that
    /// time, in nanoseconds, if it can be found out.
    #[inline]
    pub(super) fn add_to(&self, nanos: u64, suspended: impl Fn() -> Option<u64>) -> u64 {
        if nanos >= self.next.load(Relaxed) {
            self.look(nanos, suspended);
        }
        nanos.saturating_add(self.seen.load(Relaxed))
    }

    #[cold]
    fn look(&self, nanos: u64, suspended: impl Fn() -> Option<u64>) {
        // Other threads do not read the boot clock meanwhile.
        let next = nanos.saturating_add(INTERVAL_NANOS);
        self.next.store(next, Relaxed);
        if let Some(suspended) = suspended() {
            self.seen.fetch_max(suspended, Relaxed);
        }
    }
}

/// The time since the boot in nanoseconds, suspends included, to 10 ms; `None` if the system does not
/// report it.
pub(super) fn boot_nanos() -> Option<u64> {
    if cfg!(any(target_os = "linux", target_os = "android")) {
        parse_uptime(&std::fs::read_to_string("/proc/uptime").ok()?)
    } else {
        None
    }
}

/// Reads `/proc/uptime`, for example `350735.47 234388.90`: the time since the boot comes first, in
/// seconds.
fn parse_uptime(text: &str) -> Option<u64> {
    let (seconds, hundredths) = text.split_ascii_whitespace().next()?.split_once('.')?;
    let hundredths: u64 = (hundredths.len() == 2).then(|| hundredths.parse().ok())??;
    let seconds: u64 = seconds.parse().ok()?;
    seconds
        .checked_mul(1_000_000_000)?
        .checked_add(hundredths * 10_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uptime_is_read_to_ten_milliseconds() {
        assert_eq!(parse_uptime("12.05 99.00\n"), Some(12_050_000_000));
        for bad in [
            "",
            "12",
            "12.5 1",
            "x.00 1",
            "12.xx 1",
            "99999999999.00",
            "-1.00 1",
        ] {
            assert_eq!(parse_uptime(bad), None, "{bad:?}");
        }
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn boot_clock_goes_on_with_the_monotonic_one() {
        let before = boot_nanos().expect("Linux reports it");
        let begun = std::time::Instant::now();
        while begun.elapsed().as_millis() < 30 {
            std::thread::yield_now();
        }
        let after = boot_nanos().expect("Linux reports it");
        assert!(after >= before + 10_000_000);
    }

    #[test]
    fn boot_clock_is_read_twice_a_second_at_most() {
        let suspends = Suspends::default();
        let reads = std::cell::Cell::new(0);
        let read = || {
            reads.set(reads.get() + 1);
            Some(7)
        };
        for nanos in (0..10_000_000_000).step_by(1_000_000) {
            assert_eq!(suspends.add_to(nanos, read), nanos + 7);
        }
        assert_eq!(reads.get(), 20);
    }
}
