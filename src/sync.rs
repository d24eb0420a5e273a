//! Locks, atomics and threads: std's, or loom's under `--cfg larder_loom`.
//!
//! The locks here do not poison. User code (getters, hooks, listeners) always runs with no lock
//! held, so its panic cannot leave a value behind a lock half-changed.

// std's `Arc` also under loom: no lock protocol of the crate depends on reference counts, and loom's
// `Arc` cannot hold slices or trait objects.
pub(crate) use std::sync::Arc;

#[cfg(not(larder_loom))]
pub(crate) use std::{sync::OnceLock, thread_local};

#[cfg(all(any(feature = "http", test), not(larder_loom)))]
pub(crate) use std::thread;

#[cfg(not(larder_loom))]
pub(crate) use plain_atomic as atomic;

/// Atomics that no loom model explores, as those of statistics and of statics.
pub(crate) mod plain_atomic {
    #[cfg(not(target_has_atomic = "64"))]
    pub(crate) use portable_atomic::{AtomicI64, AtomicU64};
    pub(crate) use std::sync::atomic::*;
}

#[cfg(larder_loom)]
pub(crate) use loom::{sync::atomic, thread};

#[cfg(not(larder_loom))]
use std::sync as imp;

#[cfg(larder_loom)]
use loom::sync as imp;

/// loom's `thread_local!`, which accepts no `const` initializers.
#[cfg(larder_loom)]
macro_rules! loom_thread_local {
    ($(#[$attr:meta])* static $name:ident: $type:ty = const $init:block;) => {
        loom::thread_local! { $(#[$attr])* static $name: $type = $init; }
    };
}
#[cfg(larder_loom)]
pub(crate) use loom_thread_local as thread_local;

use std::io;
use std::sync::{PoisonError, TryLockError};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

pub(crate) use imp::{MutexGuard, RwLockReadGuard, RwLockWriteGuard};

/// Starts a thread. Without a stack size it has the default one.
#[cfg(not(larder_loom))]
pub(crate) use spawn_plain as spawn;

/// Like [`spawn_plain`], a thread that loom explores.
#[cfg(larder_loom)]
pub(crate) fn spawn(
    name: &str,
    _: Option<usize>,
    run: impl FnOnce() + Send + 'static,
) -> io::Result<thread::JoinHandle<()>> {
    thread::Builder::new().name(name.into()).spawn(run)
}

/// Waits until a condition holds, for 20 s at most.
#[cfg(all(test, not(larder_loom)))]
#[track_caller]
pub(crate) fn eventually(condition: impl Fn() -> bool) {
    let start = std::time::Instant::now();
    while !condition() {
        let waited = start.elapsed();
        assert!(waited.as_secs() < 20, "the condition is not met");
        std::thread::yield_now();
    }
}

/// Starts a thread of std, also under loom.
pub(crate) fn spawn_plain(
    name: &str,
    stack_size: Option<usize>,
    run: impl FnOnce() + Send + 'static,
) -> io::Result<JoinHandle<()>> {
    spawn_boxed(name, stack_size, Box::new(run))
}

/// Not generic: a program has the code of std's start once, and not for each kind of thread.
fn spawn_boxed(
    name: &str,
    stack_size: Option<usize>,
    run: Box<dyn FnOnce() + Send>,
) -> io::Result<JoinHandle<()>> {
    let mut thread = Builder::new().name(name.into());
    if let Some(stack_size) = stack_size {
        thread = thread.stack_size(stack_size);
    }
    thread.spawn(run)
}

/// A mutex that stays usable after a thread panicked while it held the lock.
#[derive(Debug, Default)]
pub(crate) struct Mutex<T>(imp::Mutex<T>);

impl<T> Mutex<T> {
    pub(crate) fn new(value: T) -> Self {
        Mutex(imp::Mutex::new(value))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `None` if the lock is taken.
    pub(crate) fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        match self.0.try_lock() {
            Ok(guard) => Some(guard),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }
}

/// A reader-writer lock that stays usable after a thread panicked while it held the lock.
#[derive(Debug, Default)]
pub(crate) struct RwLock<T>(imp::RwLock<T>);

impl<T> RwLock<T> {
    pub(crate) fn new(value: T) -> Self {
        RwLock(imp::RwLock::new(value))
    }

    #[inline]
    pub(crate) fn read(&self) -> RwLockReadGuard<'_, T> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    #[inline]
    pub(crate) fn write(&self) -> RwLockWriteGuard<'_, T> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A condition variable for [`Mutex`].
#[derive(Debug, Default)]
pub(crate) struct Condvar(imp::Condvar);

impl Condvar {
    pub(crate) fn new() -> Self {
        Condvar(imp::Condvar::new())
    }

    pub(crate) fn wait<'a, T>(&self, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
        self.0.wait(guard).unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits at most `timeout`. Wake-ups may be spurious, so callers check their condition and their
    /// clock.
    pub(crate) fn wait_timeout<'a, T>(
        &self,
        guard: MutexGuard<'a, T>,
        timeout: Duration,
    ) -> MutexGuard<'a, T> {
        match self.0.wait_timeout(guard, timeout) {
            Ok((guard, _)) => guard,
            Err(poisoned) => poisoned.into_inner().0,
        }
    }

    pub(crate) fn notify_one(&self) {
        self.0.notify_one();
    }

    pub(crate) fn notify_all(&self) {
        self.0.notify_all();
    }
}

/// std's `OnceLock` with its synchronization visible to loom, which then explores both orders of a
/// `set` and a `get`.
#[cfg(larder_loom)]
pub(crate) struct OnceLock<T> {
    is_set: atomic::AtomicBool,
    value: std::sync::OnceLock<T>,
}

#[cfg(larder_loom)]
impl<T> Default for OnceLock<T> {
    fn default() -> Self {
        OnceLock::new()
    }
}

#[cfg(larder_loom)]
impl<T> OnceLock<T> {
    pub(crate) fn new() -> Self {
        OnceLock {
            is_set: atomic::AtomicBool::new(false),
            value: std::sync::OnceLock::new(),
        }
    }

    pub(crate) fn set(&self, value: T) -> Result<(), T> {
        self.value.set(value)?;
        self.is_set.store(true, atomic::Ordering::Release);
        Ok(())
    }

    pub(crate) fn get(&self) -> Option<&T> {
        let is_set = self.is_set.load(atomic::Ordering::Acquire);
        is_set.then(|| self.value.get()).flatten()
    }
}
