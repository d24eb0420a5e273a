//! Finds loads that would wait for each other in a circle, before they do.
//!
//! A getter may ask a cache for other keys, whose getters ask for others in turn. If the chain
//! comes back to a key whose load it is part of, every load in it would wait for the next one for
//! ever, on one thread or across several. So every flight has an id, every thread knows the flights
//! it is working for, and before a getter's nested request waits for a flight (or leads one), the
//! chain of "works for, is waiting for" is walked from there; if it leads back to one of the
//! thread's own flights, the request is refused.
//!
//! Requests that do not come from inside a getter pay one look at a thread-local.

use std::cell::Cell;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{LazyLock, Mutex, PoisonError};

use crate::error::{Error, ErrorKind, Result};
use crate::sync::thread_local;

/// Names a flight, in this process, for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct LoadId(u64);

impl LoadId {
    pub(crate) fn new() -> LoadId {
        let mut next = NEXT_ID.get();
        if next % IDS == 0 {
            static NEXT: AtomicU64 = AtomicU64::new(0);
            next = NEXT.fetch_add(IDS, Ordering::Relaxed);
        }
        NEXT_ID.set(next + 1);
        LoadId(next)
    }
}

/// Ids that a thread takes at once, so that threads seldom write to the same counter.
const IDS: u64 = 1024;

std::thread_local! {
    /// The id of this thread's next flight; a multiple of [`IDS`] if it has to take more.
    static NEXT_ID: Cell<u64> = const { Cell::new(0) };
}

thread_local! {
    /// The innermost flight that this thread works for.
    static WORKING_FOR: Cell<Option<LoadId>> = const { Cell::new(None) };
}

/// For each flight whose work is waiting for another flight: which. A flight's work is on one
/// thread, so there is one entry at most. A std lock, because nothing is waited for under it.
///
/// A thread announces a nested flight here before it works for it, so from each flight that it
/// works for the chain leads to the innermost one. Only that one need be looked for.
static WAITING_FOR: LazyLock<Mutex<HashMap<LoadId, LoadId>>> = LazyLock::new(Mutex::default);

/// Marks this thread as working for a flight until it is dropped.
#[must_use]
pub(crate) struct Working {
    outer: Option<LoadId>,
}

/// A nested flight is announced by [`wait_for`] first.
#[inline]
pub(crate) fn work_for(id: LoadId) -> Working {
    let outer = WORKING_FOR.with(|innermost| innermost.replace(Some(id)));
    Working { outer }
}

impl Drop for Working {
    #[inline]
    fn drop(&mut self) {
        WORKING_FOR.with(|innermost| innermost.set(self.outer));
    }
}

/// Marks the innermost flight of this thread as waiting for another until it is dropped.
#[must_use]
pub(crate) struct Waiting(Option<LoadId>);

/// Announces that what this thread works for now depends on `id`.
///
/// # Errors
///
/// [`ErrorKind::RecursiveLoad`] if `id`'s flight already depends on this thread's work.
#[inline]
pub(crate) fn wait_for(id: LoadId) -> Result<Waiting> {
    match WORKING_FOR.with(Cell::get) {
        Some(innermost) => announce(innermost, id),
        None => Ok(Waiting(None)),
    }
}

#[cold]
fn announce(innermost: LoadId, id: LoadId) -> Result<Waiting> {
    let mut waiting_for = WAITING_FOR.lock().unwrap_or_else(PoisonError::into_inner);
    // The lock is held from the walk to the new entry: of two threads that close a circle from two
    // sides, the second one sees the entry of the first.
    let mut next = Some(id);
    while let Some(flight) = next {
        if flight == innermost {
            return Err(Error::from(ErrorKind::RecursiveLoad));
        }
        next = waiting_for.get(&flight).copied();
    }
    waiting_for.insert(innermost, id);
    Ok(Waiting(Some(innermost)))
}

impl Drop for Waiting {
    #[inline]
    fn drop(&mut self) {
        if let Some(id) = self.0 {
            withdraw(id);
        }
    }
}

#[cold]
fn withdraw(id: LoadId) {
    let mut waiting_for = WAITING_FOR.lock().unwrap_or_else(PoisonError::into_inner);
    waiting_for.remove(&id);
}

#[cfg(all(test, not(larder_loom)))]
mod tests {
    use super::*;

    fn kind<T>(result: Result<T>) -> Option<ErrorKind> {
        result.err().map(|e| e.kind())
    }

    #[test]
    fn no_two_flights_have_one_id() {
        let ids = || std::array::from_fn::<LoadId, { IDS as usize + 500 }, _>(|_| LoadId::new());
        let mut seen = std::collections::HashSet::new();
        std::thread::scope(|scope| {
            let threads = [(); 4].map(|()| scope.spawn(ids));
            for thread in threads {
                seen.extend(thread.join().expect("no panic"));
            }
        });
        assert_eq!(seen.len(), 4 * (IDS as usize + 500));
    }

    #[test]
    fn a_flight_does_not_wait_for_itself() {
        let (a, b) = (LoadId::new(), LoadId::new());
        let _outer = work_for(a);
        let _edge = wait_for(b);
        let _inner = work_for(b);
        assert_eq!(kind(wait_for(a)), Some(ErrorKind::RecursiveLoad));
        assert_eq!(kind(wait_for(b)), Some(ErrorKind::RecursiveLoad));
    }

    #[test]
    fn a_circle_through_another_thread_is_found() {
        let (a, b, c) = (LoadId::new(), LoadId::new(), LoadId::new());
        let _a = work_for(a);
        let _a_waits = wait_for(b).expect("b waits for nobody");
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let _b = work_for(b);
                let b_waits = wait_for(c).expect("c waits for nobody");
                let _c = work_for(c);
                assert_eq!(kind(wait_for(a)), Some(ErrorKind::RecursiveLoad));
                drop(b_waits);
            });
        });
    }

    #[test]
    fn a_wait_that_is_over_is_forgotten() {
        let (a, b) = (LoadId::new(), LoadId::new());
        {
            let _a = work_for(a);
            drop(wait_for(b));
        }
        let _b = work_for(b);
        assert!(wait_for(a).is_ok());
    }
}
