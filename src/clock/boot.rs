//! The clocks of the system that std does not read.
#![allow(unsafe_code)]

/// The time since the boot in nanoseconds, suspends included; `None` on systems without such a clock.
///
/// It is exact from the first moment after a suspend: the age of a value is compared with the time of a
/// removal on another machine, which was not suspended.
#[cfg(any(target_os = "linux", target_os = "android"))]
#[inline]
pub(super) fn boot_nanos() -> Option<u64> {
    nanos(libc::CLOCK_BOOTTIME)
}

/// The time at the last tick of the kernel in nanoseconds, without suspends: some milliseconds ago. It takes
/// a fifth of the time of the exact clocks.
#[cfg(any(target_os = "linux", target_os = "android"))]
#[inline]
pub(super) fn coarse_nanos() -> Option<u64> {
    nanos(libc::CLOCK_MONOTONIC_COARSE)
}

#[cfg(any(target_os = "linux", target_os = "android"))]
#[inline]
fn nanos(clock: libc::clockid_t) -> Option<u64> {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the pointer is that of a `timespec`, to which the call writes.
    let result = unsafe { libc::clock_gettime(clock, &raw mut time) };
    let nanos = time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64;
    (result == 0).then_some(nanos)
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub(super) fn boot_nanos() -> Option<u64> {
    None
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub(super) fn coarse_nanos() -> Option<u64> {
    None
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    /// Both count from the boot, and only one of them counts suspends.
    #[test]
    fn boot_clock_is_not_behind_the_clock_without_suspends() {
        let without_suspends = || nanos(libc::CLOCK_MONOTONIC).expect("Linux has it");
        let before = without_suspends();
        let first = boot_nanos().expect("Linux has it");
        let second = boot_nanos().expect("Linux has it");
        assert!(
            before <= first && first <= second,
            "{before} {first} {second}"
        );
    }
}
