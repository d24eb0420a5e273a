//! Distinguishes a process from those that it was forked from.
#![allow(unsafe_code)]

use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, Ordering};

/// A number of this process, which differs from that of each process that it was forked from.
///
/// A forked process has a copy of its parent's memory. On Linux this function reads a page that the
/// kernel fills with zeros in a forked process, also after a bare `clone`. So it needs no system call
/// and no lock: a lock could be held by a thread that the forked process does not have. Where there is
/// no such page (before Linux 4.14, on other systems), the number is the process id, which costs a
/// system call.
#[inline]
pub(crate) fn process_number() -> u32 {
    let page = PROCESS.page();
    if page.is_null() {
        return std::process::id();
    }
    // SAFETY: the page is aligned, and stays mapped and readable until the process ends. All threads
    // access the number atomically.
    let number = unsafe { &*page };
    match number.load(Ordering::Relaxed) {
        0 => PROCESS.assign_number(number),
        known => known,
    }
}

static PROCESS: Process = Process {
    page: AtomicPtr::new(ptr::null_mut()),
    has_none: AtomicBool::new(false),
    last: AtomicU32::new(0),
};

struct Process {
    /// The start of the page, where the number is; null until the first call.
    page: AtomicPtr<AtomicU32>,
    /// Whether the system has no such page.
    has_none: AtomicBool,
    /// The last number that was given. A forked process starts with that of its parent.
    last: AtomicU32,
}

impl Process {
    /// The page; null if the system has none.
    #[inline]
    fn page(&self) -> *mut AtomicU32 {
        match self.page.load(Ordering::Acquire) {
            made if made.is_null() => self.make_page(),
            made => made,
        }
    }

    #[cold]
    fn make_page(&self) -> *mut AtomicU32 {
        if self.has_none.load(Ordering::Relaxed) {
            return ptr::null_mut();
        }
        let made = map_wiped_page();
        if made.is_null() {
            self.has_none.store(true, Ordering::Relaxed);
            return made;
        }
        let (success, failure) = (Ordering::AcqRel, Ordering::Acquire);
        match self
            .page
            .compare_exchange(ptr::null_mut(), made, success, failure)
        {
            Ok(_) => made,
            // Another thread made one meanwhile. This one stays mapped: only threads that make the
            // first call at the same time lose a page each.
            Err(other) => other,
        }
    }

    /// Gives the process a number, after its start or a fork.
    #[cold]
    fn assign_number(&self, number: &AtomicU32) -> u32 {
        let next = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        let relaxed = Ordering::Relaxed;
        match number.compare_exchange(0, next, relaxed, relaxed) {
            Ok(_) => next,
            Err(other) => other,
        }
    }
}

/// A zeroed page that is zeroed again in a forked process; null if the system has none.
#[cfg(target_os = "linux")]
fn map_wiped_page() -> *mut AtomicU32 {
    let len = size_of::<AtomicU32>();
    let access = libc::PROT_READ | libc::PROT_WRITE;
    let kind = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: a new mapping at a place of the kernel's choice. Lengths are rounded up to whole pages.
    unsafe {
        let page = libc::mmap(ptr::null_mut(), len, access, kind, -1, 0);
        if page == libc::MAP_FAILED {
            return ptr::null_mut();
        }
        if libc::madvise(page, len, libc::MADV_WIPEONFORK) != 0 {
            libc::munmap(page, len);
            return ptr::null_mut();
        }
        page.cast()
    }
}

#[cfg(not(target_os = "linux"))]
fn map_wiped_page() -> *mut AtomicU32 {
    ptr::null_mut()
}

#[cfg(all(test, target_os = "linux", not(larder_loom)))]
mod tests {
    use super::*;

    /// Runs `child` in a process that the kernel's own `clone` makes, without the C library. Returns
    /// its result.
    fn in_child(child: impl FnOnce() -> bool) -> bool {
        // SAFETY: the child calls nothing that allocates or locks, and exits.
        unsafe {
            let flags = libc::c_long::from(libc::SIGCHLD);
            let id = libc::syscall(libc::SYS_clone, flags, 0_usize, 0_usize, 0_usize, 0_usize);
            if id == 0 {
                libc::_exit(i32::from(!child()));
            }
            let mut status = -1;
            let id = i32::try_from(id).expect("a process id");
            assert_eq!(libc::waitpid(id, &raw mut status, 0), id);
            status == 0
        }
    }

    /// Whether the system really wipes pages: qemu-user accepts the advice and ignores it.
    fn system_wipes_pages() -> bool {
        let len = size_of::<AtomicU32>();
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let kind = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a new mapping, which is unmapped after its last use.
        unsafe {
            let page = libc::mmap(ptr::null_mut(), len, access, kind, -1, 0);
            assert_ne!(page, libc::MAP_FAILED);
            let advised = libc::madvise(page, len, libc::MADV_WIPEONFORK) == 0;
            let number = &*page.cast::<AtomicU32>();
            number.store(1, Ordering::Relaxed);
            let wiped = in_child(|| number.load(Ordering::Relaxed) == 0);
            libc::munmap(page, len);
            advised && wiped
        }
    }

    #[test]
    fn forked_process_and_its_own_fork_have_other_numbers() {
        if !system_wipes_pages() {
            eprintln!("the system does not wipe pages of forked processes");
            return;
        }
        let first = process_number();
        assert_eq!(first, process_number());
        assert!(in_child(|| {
            let second = process_number();
            let third_differs = in_child(|| ![first, second].contains(&process_number()));
            second != first && second == process_number() && third_differs
        }));
        assert_eq!(first, process_number());
    }
}
