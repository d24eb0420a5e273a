//! The monotonic clock of this machine, which all its processes share. `Instant` hides its reading.

use std::time::{Duration, Instant};

/// The reading now, in nanoseconds.
pub fn now() -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the pointer is that of a `timespec`.
    let failed = unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    assert_eq!(failed, 0, "Linux has this clock");
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// The reading at an instant, or shortly after it.
pub fn reading_at(instant: Instant) -> u64 {
    let left = instant.saturating_duration_since(Instant::now());
    now() + nanos(left)
}

pub fn nanos(time: Duration) -> u64 {
    time.as_nanos() as u64
}
