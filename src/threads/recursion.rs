//! Detects loads that would wait for each other in a cycle.
//!
//! A getter may request other keys, whose getters request others in turn. If such a chain returns to
//! a key whose load it is part of, every load in it waits for the next one, without end. The chain
//! may run on one thread or on several. So each thread records the flight that it works for, and this
//! module records which flight each flight waits for. Before a getter's nested request waits for a
//! flight or leads one, this module follows these records from that flight. If they lead back to a
//! flight of the requesting thread, the request is refused.
//!
//! A request that does not come from a getter only reads a thread-local variable.

use std::sync::{Mutex, MutexGuard, PoisonError};

use hashbrown::HashTable;

use crate::error::{Error, ErrorKind, Result};
use crate::threads::nesting;
pub(crate) use crate::threads::nesting::LoadId;

/// A flight waits for another one. Each [`Dependency`] on a flight ends before its stripe is freed.
struct Wait {
    dependent: LoadId,
    on: LoadId,
}

/// The flight that each flight waits for. One thread runs a flight, so it waits for one other at
/// most. A tree would take more code, a list more time where a bulk getter has many keys. This is a lock of
/// std, because no thread blocks while it holds the lock.
///
/// A thread that leads a nested flight adds an entry from its outer flight to the nested one. So the
/// records lead from every flight of the thread to its innermost one, and the search compares with
/// that one only.
static WAITING_FOR: Mutex<HashTable<Wait>> = Mutex::new(HashTable::new());

fn waiting_for() -> MutexGuard<'static, HashTable<Wait>> {
    WAITING_FOR.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Guard of a record: this thread's innermost flight depends on another flight until it is dropped.
#[must_use]
pub(crate) struct Dependency {
    dependent: Option<LoadId>,
}

/// Records that this thread's work waits for the flight `id`.
///
/// # Errors
///
/// [`ErrorKind::RecursiveLoad`] if that flight depends on this thread's work already.
#[inline]
pub(crate) fn wait_for(id: LoadId) -> Result<Dependency> {
    let dependent = nesting::flight();
    if let Some(innermost) = dependent {
        insert(innermost, id)?;
    }
    Ok(Dependency { dependent })
}

/// Like [`wait_for`], but this thread runs that flight.
#[inline]
pub(crate) fn work_for(id: LoadId) -> Result<Dependency> {
    let dependency = wait_for(id)?;
    nesting::set_flight(Some(id));
    Ok(dependency)
}

/// Like [`work_for`], for several flights that end together. This thread's work depends on the first one,
/// and each on the next one.
pub(crate) fn work_for_all(ids: impl Iterator<Item = LoadId>) -> Result<Dependencies> {
    let mut dependencies = Dependencies(Vec::new());
    for id in ids {
        dependencies.0.push(work_for(id)?);
    }
    Ok(dependencies)
}

/// Whether this thread works for a flight.
pub(crate) fn is_working() -> bool {
    nesting::flight().is_some()
}

/// Guard of several records.
#[must_use]
pub(crate) struct Dependencies(Vec<Dependency>);

impl Drop for Dependencies {
    /// Drops the latest record first, because each restores this thread's innermost flight.
    fn drop(&mut self) {
        while self.0.pop().is_some() {}
    }
}

impl Drop for Dependency {
    #[inline]
    fn drop(&mut self) {
        nesting::set_flight(self.dependent);
        if let Some(id) = self.dependent {
            remove(id);
        }
    }
}

#[cold]
fn insert(innermost: LoadId, id: LoadId) -> Result<()> {
    let mut waiting_for = waiting_for();
    // The lock is held from the search to the insertion. If two threads close a cycle from both
    // sides, the second one finds the entry of the first.
    let mut next = Some(id);
    while let Some(flight) = next {
        if flight == innermost {
            return Err(Error::from(ErrorKind::RecursiveLoad));
        }
        let wait = waiting_for.find(flight.hash(), |wait| wait.dependent == flight);
        next = wait.map(|wait| wait.on);
    }
    let wait = Wait {
        dependent: innermost,
        on: id,
    };
    waiting_for.insert_unique(innermost.hash(), wait, |wait| wait.dependent.hash());
    Ok(())
}

#[cold]
fn remove(id: LoadId) {
    let mut waiting_for = waiting_for();
    if let Ok(entry) = waiting_for.find_entry(id.hash(), |wait| wait.dependent == id) {
        entry.remove();
    }
    // The table of a bulk call with many keys must not stay.
    if waiting_for.is_empty() && waiting_for.capacity() > MAX_KEPT {
        *waiting_for = HashTable::new();
    }
}

/// The largest table that is kept while no flight waits for another, in entries.
const MAX_KEPT: usize = 256;

#[cfg(all(test, not(larder_loom)))]
mod tests {
    use super::*;

    fn kind<T>(result: Result<T>) -> Option<ErrorKind> {
        result.err().map(|e| e.kind())
    }

    /// The flights of a stripe that no other test has.
    fn all_ids() -> impl Iterator<Item = LoadId> {
        let stripe: &u8 = Box::leak(Box::new(0));
        (0..).map(|number| LoadId::new(stripe, number))
    }

    fn ids<const N: usize>() -> [LoadId; N] {
        let mut ids = all_ids();
        std::array::from_fn(|_| ids.next().expect("there is no end"))
    }

    #[test]
    fn wait_for_own_flight_is_refused() {
        let [a, b] = ids();
        let _outer = work_for(a);
        let _inner = work_for(b);
        assert_eq!(kind(wait_for(a)), Some(ErrorKind::RecursiveLoad));
        assert_eq!(kind(wait_for(b)), Some(ErrorKind::RecursiveLoad));
    }

    #[test]
    fn cycle_through_another_thread_is_refused() {
        let [a, b, c] = ids();
        let _a = work_for(a);
        let _a_waits = wait_for(b).expect("b waits for no flight");
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let _b = work_for(b);
                let _c = work_for(c);
                assert_eq!(kind(wait_for(a)), Some(ErrorKind::RecursiveLoad));
            });
        });
    }

    #[test]
    fn thread_that_runs_several_flights_may_wait_for_none_of_them() {
        let [a, b, c, other] = ids();
        assert!(!is_working());
        {
            let _all = work_for_all([a, b, c].into_iter());
            for own in [a, b, c] {
                assert_eq!(kind(wait_for(own)), Some(ErrorKind::RecursiveLoad));
            }
            let _all_wait = wait_for(other).expect("it waits for no flight");
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    let _other = work_for(other);
                    assert_eq!(kind(wait_for(a)), Some(ErrorKind::RecursiveLoad));
                });
            });
        }
        assert!(!is_working());
        let _b = work_for(b);
        assert!(wait_for(a).is_ok());
    }

    /// A call of a bulk getter for this many keys must take time in proportion to their number.
    #[test]
    fn thread_may_run_a_hundred_thousand_flights() {
        let begun = std::time::Instant::now();
        let ids: Vec<LoadId> = all_ids().take(100_000).collect();
        let all = work_for_all(ids.iter().copied()).expect("they differ");
        assert_eq!(kind(wait_for(ids[0])), Some(ErrorKind::RecursiveLoad));
        drop(all);
        assert!(!is_working());
        let took = begun.elapsed();
        assert!(took < std::time::Duration::from_secs(10), "{took:?}");
    }

    #[test]
    fn dependency_ends_with_its_guard() {
        let [a, b] = ids();
        {
            let _a = work_for(a);
            drop(wait_for(b));
        }
        let _b = work_for(b);
        assert!(wait_for(a).is_ok());
    }
}
