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

    /// Both count from the boot, and only one of them counts suspends.
    #[test]
    fn boot_clock_is_not_behind_the_clock_without_suspends() {
        let without_suspends = || {
            let mut time = libc::timespec {
                tv_sec: 0,
                tv_nsec: 0,
            };
            // SAFETY: the pointer is that of a `timespec`, to which the call writes.
            let result = unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
            assert_eq!(result, 0);
            time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
        };
        let before = without_suspends();
        let first = boot_nanos().expect("Linux has it");
        let second = boot_nanos().expect("Linux has it");
        assert!(
            before <= first && first <= second,
            "{before} {first} {second}"
        );
    }
}
