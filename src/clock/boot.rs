//! The clock of the system that counts suspends, which `Instant` leaves out.
#![allow(unsafe_code)]

/// The time since the boot in nanoseconds, suspends included; `None` on systems without such a clock.
///
/// It is exact from the first moment after a suspend: the age of a value is compared with the time of a
/// removal on another machine, which was not suspended.
#[cfg(any(target_os = "linux", target_os = "android"))]
#[inline]
pub(super) fn boot_nanos() -> Option<u64> {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the pointer is that of a `timespec`, to which the call writes.
    let result = unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut time) };
    let nanos = |time: libc::timespec| time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64;
    (result == 0).then(|| nanos(time))
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub(super) fn boot_nanos() -> Option<u64> {
    None
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn boot_clock_is_that_of_the_system() {
        let read = || std::fs::read_to_string("/proc/uptime").expect("Linux has it");
        let seconds = |uptime: String| {
            let first = uptime.split(' ').next().map(str::to_owned);
            first.and_then(|text| text.parse::<f64>().ok())
        };
        let (before, now, after) = (read(), boot_nanos().expect("Linux has it"), read());
        // The file has two digits, rounded down.
        let (before, after) = (seconds(before).unwrap(), seconds(after).unwrap() + 0.01);
        let now = now as f64 / 1e9;
        assert!((before..=after).contains(&now), "{before} {now} {after}");
    }
}
