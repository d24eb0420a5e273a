//! Exact counts that cost who counts no locked instruction.
//!
//! A shared counter would cost each hit one more read-modify-write, which was a sixth of its time.
//! Instead every thread has a small number, and the counters of that number to itself: it alone
//! writes them, so a load and a store are enough. Readers sum over all numbers.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// Sets of counters. The first is shared by threads that are more than the others, and by those
/// that are past their destructors; they pay for it with locked additions.
const SETS: usize = 64;

/// Counters that `T` consists of, by thread.
pub(crate) struct ThreadCounters<T> {
    sets: Box<[Set<T>; SETS]>,
}

/// One thread's counters: a cache line of their own, so that no two threads write to one.
#[derive(Default)]
#[repr(align(64))]
struct Set<T>(T);

impl<T: Default> ThreadCounters<T> {
    pub(crate) fn new() -> Self {
        ThreadCounters {
            sets: Box::new(std::array::from_fn(|_| Set::default())),
        }
    }
}

impl<T> ThreadCounters<T> {
    /// Adds one to the counter that `counter` picks.
    #[inline]
    pub(crate) fn add(&self, counter: impl Fn(&T) -> &AtomicU64) {
        let number = NUMBER.get();
        if !(1..SETS).contains(&number) {
            return self.add_shared(counter);
        }
        let counter = counter(&self.sets[number].0);
        let count = counter.load(Ordering::Relaxed);
        counter.store(count.wrapping_add(1), Ordering::Relaxed);
    }

    /// Counts for a thread that has no number; gets it one if it never asked.
    #[cold]
    fn add_shared(&self, counter: impl Fn(&T) -> &AtomicU64) {
        counter(&self.sets[0].0).fetch_add(1, Ordering::Relaxed);
        if NUMBER.get() == UNSET {
            // A thread that is past its destructors would keep a number for ever.
            let number = TICKET.try_with(Ticket::take).unwrap_or(NONE_LEFT);
            NUMBER.set(number);
        }
    }

    /// The sum of one counter over all threads.
    pub(crate) fn sum(&self, counter: impl Fn(&T) -> &AtomicU64) -> u64 {
        let counts = self.sets.iter().map(|set| counter(&set.0));
        counts.map(|count| count.load(Ordering::Relaxed)).sum()
    }
}

/// Numbers of threads without counters of their own.
const UNSET: usize = 0;
const NONE_LEFT: usize = SETS;

thread_local! {
    /// This thread's number. Apart from the ticket, because a cell that has no destructor is read
    /// without asking whether it was destroyed.
    static NUMBER: Cell<usize> = const { Cell::new(UNSET) };
    static TICKET: Ticket = const { Ticket };
}

/// Numbers in use, as bits; the first is nobody's. The lock also orders a thread's last store to
/// its counters before the first load of the next thread with that number. Std's, because nothing
/// is waited for under it.
static IN_USE: Mutex<u64> = Mutex::new(1);

/// Gives the thread's number back when the thread ends.
struct Ticket;

impl Ticket {
    fn take(&self) -> usize {
        let mut in_use = IN_USE.lock().unwrap_or_else(PoisonError::into_inner);
        let number = in_use.trailing_ones() as usize;
        if number < SETS {
            *in_use |= 1 << number;
        }
        number
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let number = NUMBER.replace(NONE_LEFT);
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
                    NUMBER.get()
                });
                owned += usize::from((1..SETS).contains(&number.join().expect("no panic")));
            });
        }
        // The other test may hold all numbers for a while.
        assert!(owned > SETS, "{owned} threads had a number of their own");
    }
}
