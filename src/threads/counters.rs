//! Exact counters without atomic read-modify-write.
//!
//! Each thread has a number, which selects its set of counters. Only this thread writes to the set,
//! so a load and a store are enough to count. Readers sum over all sets.

use crate::sync::plain_atomic::{AtomicU64, Ordering};
use std::cell::Cell;
use std::sync::{Mutex, PoisonError};

use crossbeam_utils::CachePadded;

/// The number of sets. The first set is shared by threads for which no number was left, and by
/// threads past their destructors. They count with an atomic addition.
const SETS: usize = 64;

/// The counters of `T`, one set for each thread.
pub(crate) struct ThreadCounters<T> {
    sets: Box<[CachePadded<T>; SETS]>,
}

impl<T: Default> ThreadCounters<T> {
    pub(crate) fn new() -> Self {
        ThreadCounters {
            sets: Box::new(std::array::from_fn(|_| CachePadded::default())),
        }
    }
}

impl<T> ThreadCounters<T> {
    /// Adds one to the counter that `counter` picks, and returns the new count of this thread's set.
    #[inline]
    pub(crate) fn add(&self, counter: impl Fn(&T) -> &AtomicU64) -> u64 {
        let number = thread_number();
        if !(1..SETS).contains(&number) {
            return self.add_shared(counter);
        }
        let counter = counter(&self.sets[number]);
        let count = counter.load(Ordering::Relaxed);
        counter.store(count.wrapping_add(1), Ordering::Relaxed);
        // Loaded again, so that the compiler adds in one instruction.
        counter.load(Ordering::Relaxed)
    }

    /// Counts for a thread without a number. On the thread's first count, takes a number for the next
    /// ones.
    #[cold]
    fn add_shared(&self, counter: impl Fn(&T) -> &AtomicU64) -> u64 {
        let count = counter(&self.sets[SHARED]).fetch_add(1, Ordering::Relaxed);
        // A thread past its destructors takes none, because it could not return the number.
        let _ = NUMBER.try_with(|number| {
            if number.0.get() == UNSET {
                number.0.set(take_number());
            }
        });
        count.wrapping_add(1)
    }

    /// The sum of one counter over all threads.
    pub(crate) fn sum(&self, counter: impl Fn(&T) -> &AtomicU64) -> u64 {
        let counts = self.sets.iter().map(|set| counter(set));
        counts.map(|count| count.load(Ordering::Relaxed)).sum()
    }
}

/// The number of this thread. Some threads share a number: those past their destructors, those that have
/// not counted yet, and those for which no other was left.
#[inline]
pub(crate) fn thread_number() -> usize {
    NUMBER.try_with(|number| number.0.get()).unwrap_or(SHARED)
}

/// The shared set, and the number of a thread for which no other was left.
const SHARED: usize = 0;
/// The number of a thread that has not counted yet.
const UNSET: usize = SETS;

thread_local! {
    static NUMBER: ThreadNumber = const { ThreadNumber(Cell::new(UNSET)) };
}

/// A thread's number, which is free again when the thread ends.
struct ThreadNumber(Cell<usize>);

/// The numbers in use, as bits; the first is reserved for the shared set. The lock also orders a
/// thread's last store to its counters before the first load of the next thread with that number.
static IN_USE: Mutex<u64> = Mutex::new(1 << SHARED);

fn take_number() -> usize {
    let mut in_use = IN_USE.lock().unwrap_or_else(PoisonError::into_inner);
    let number = in_use.trailing_ones() as usize;
    if number == SETS {
        return SHARED;
    }
    *in_use |= 1 << number;
    number
}

impl Drop for ThreadNumber {
    fn drop(&mut self) {
        let number = self.0.get();
        if (1..SETS).contains(&number) {
            let mut in_use = IN_USE.lock().unwrap_or_else(PoisonError::into_inner);
            *in_use &= !(1 << number);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Barrier;

    #[derive(Default)]
    struct Two {
        once: AtomicU64,
        often: AtomicU64,
    }

    #[test]
    fn no_count_is_lost_with_more_threads_than_numbers() {
        let counters = ThreadCounters::<Two>::new();
        let threads = SETS + 40;
        let all_there = Barrier::new(threads);
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    counters.add(|two| &two.once);
                    all_there.wait();
                    for _ in 0..1000 {
                        counters.add(|two| &two.often);
                    }
                });
            }
        });
        let threads = threads as u64;
        assert_eq!(counters.sum(|two| &two.once), threads);
        assert_eq!(counters.sum(|two| &two.often), threads * 1000);
    }

    #[test]
    fn numbers_of_ended_threads_are_used_again() {
        let counters = ThreadCounters::<Two>::new();
        let mut owned = 0;
        for _ in 0..10 * SETS {
            std::thread::scope(|scope| {
                let number = scope.spawn(|| {
                    counters.add(|two| &two.once);
                    NUMBER.with(|number| number.0.get())
                });
                owned += usize::from((1..SETS).contains(&number.join().expect("no panic")));
            });
        }
        // The other test may hold all numbers for a while.
        assert!(owned > SETS, "{owned} threads had a number of their own");
    }
}
