//! Bounds the memory that glibc's malloc keeps for the threads of connections.
#![allow(unsafe_code)]

/// Bounds the arenas of malloc for the whole process; 0 changes nothing, and other libraries than glibc
/// have nothing to bound.
///
/// glibc gives each new thread another arena, up to eight for each core, and each arena keeps what its
/// threads have freed: up to twice the longest value. Arenas that exist are not removed.
pub(super) fn bound(count: usize) {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    if let Some(count) = std::ffi::c_int::try_from(count).ok().filter(|&n| n > 0) {
        // SAFETY: mallopt has no conditions. malloc reads the number when a thread needs an arena.
        unsafe { libc::mallopt(libc::M_ARENA_MAX, count) };
    }
    #[cfg(not(all(target_os = "linux", target_env = "gnu")))]
    let _ = count;
}
