//! Exact counts of look-ups that cost a look-up no locked instruction.
//!
//! A shared counter would cost each hit one more read-modify-write, which was a sixth of its time.
//! Instead every thread has a small number, and the counters of that number to itself: it alone
//! writes them, so a load and a store are enough. Readers sum over all numbers.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::stats::CacheType;

/// Sets of counters. The first is shared by threads that are more than the others, and by those
/// that are past their destructors; they pay for it with locked additions.
const SETS: usize = 64;

/// What look-ups found, by thread.
pub(super) struct Counters {
    sets: Box<[Set; SETS]>,
}

/// One thread's counters: a cache line of their own, so that no two threads write to one.
#[derive(Default)]
#[repr(align(64))]
struct Set {
    main_hits: AtomicU64,
    hot_hits: AtomicU64,
    misses: AtomicU64,
}

/// The sums over all threads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) main_hits: u64,
    pub(super) hot_hits: u64,
    pub(super) misses: u64,
}

impl Counters {
    pub(super) fn new() -> Counters {
        Counters {
            sets: Box::new(std::array::from_fn(|_| Set::default())),
        }
    }

    #[inline]
    pub(super) fn count_hit(&self, share: CacheType) {
        self.add(|set| match share {
            CacheType::Main => &set.main_hits,
            CacheType::Hot => &set.hot_hits,
        });
    }

    #[inline]
    pub(super) fn count_miss(&self) {
        self.add(|set| &set.misses);
    }

    #[inline]
    fn add(&self, counter: impl Fn(&Set) -> &AtomicU64) {
        let number = NUMBER.get();
        if !(1..SETS).contains(&number) {
            return self.add_shared(counter);
        }
        let counter = counter(&self.sets[number]);
        let count = counter.load(Ordering::Relaxed);
        counter.store(count.wrapping_add(1), Ordering::Relaxed);
    }

    /// Counts for a thread that has no number; gets it one if it never asked.
    #[cold]
    fn add_shared(&self, counter: impl Fn(&Set) -> &AtomicU64) {
        counter(&self.sets[0]).fetch_add(1, Ordering::Relaxed);
        if NUMBER.get() == UNSET {
            // A thread that is past its destructors would keep a number for ever.
            let number = TICKET.try_with(Ticket::take).unwrap_or(NONE_LEFT);
            NUMBER.set(number);
        }
    }

    pub(super) fn read(&self) -> Counts {
        let mut sum = Counts::default();
        for set in self.sets.iter() {
            sum.main_hits += set.main_hits.load(Ordering::Relaxed);
            sum.hot_hits += set.hot_hits.load(Ordering::Relaxed);
            sum.misses += set.misses.load(Ordering::Relaxed);
        }
        sum
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

    #[test]
    fn no_count_is_lost_with_more_threads_than_numbers() {
        let counters = Counters::new();
        let threads = SETS + 40;
        let all_there = Barrier::new(threads);
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    counters.count_miss();
                    all_there.wait();
                    for _ in 0..1000 {
                        counters.count_hit(CacheType::Main);
                        counters.count_hit(CacheType::Hot);
                    }
                });
            }
        });
        let threads = threads as u64;
        let want = Counts {
            main_hits: threads * 1000,
            hot_hits: threads * 1000,
            misses: threads,
        };
        assert_eq!(counters.read(), want);
    }

    #[test]
    fn numbers_of_ended_threads_are_used_again() {
        let counters = Counters::new();
        let mut owned = 0;
        for _ in 0..10 * SETS {
            std::thread::scope(|scope| {
                let number = scope.spawn(|| {
                    counters.count_miss();
                    NUMBER.get()
                });
                owned += usize::from((1..SETS).contains(&number.join().expect("no panic")));
            });
        }
        // The other test may hold all numbers for a while.
        assert!(owned > SETS, "{owned} threads had a number of their own");
    }
}
