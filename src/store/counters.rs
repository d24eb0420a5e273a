//! Exact counts of look-ups that cost a look-up no locked instruction.
//!
//! A shared counter would cost each hit one more read-modify-write, which was a sixth of its time.
//! Instead every thread has a small number, and the counters of that number to itself: it alone
//! writes them, so a load and a store are enough. Readers sum over all numbers.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::stats::CacheType;

/// Threads beyond this many at one time share the last set of counters, and pay for it.
const OWNED: usize = 63;

/// What look-ups found, by thread.
pub(super) struct Counters {
    sets: Box<[Set]>,
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
            sets: (0..=OWNED).map(|_| Set::default()).collect(),
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
        let number = thread_number();
        let counter = counter(&self.sets[number]);
        if number < OWNED {
            let count = counter.load(Ordering::Relaxed);
            counter.store(count.wrapping_add(1), Ordering::Relaxed);
        } else {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(super) fn read(&self) -> Counts {
        let mut sum = Counts::default();
        for set in &self.sets {
            sum.main_hits += set.main_hits.load(Ordering::Relaxed);
            sum.hot_hits += set.hot_hits.load(Ordering::Relaxed);
            sum.misses += set.misses.load(Ordering::Relaxed);
        }
        sum
    }
}

/// This thread's number: its own below [`OWNED`], or `OWNED`, which is anybody's.
#[inline]
fn thread_number() -> usize {
    // In a thread that is past its destructors there is none left to ask for.
    NUMBER
        .try_with(|number| match number.0.get() {
            UNSET => number.choose(),
            number => number,
        })
        .unwrap_or(OWNED)
}

thread_local! {
    static NUMBER: Number = const { Number(Cell::new(UNSET)) };
}

const UNSET: usize = usize::MAX;

struct Number(Cell<usize>);

/// Numbers in use, as bits. The lock also orders a thread's last store to its counters before the
/// first load of the next thread with that number. Std's, because nothing is waited for under it.
static IN_USE: Mutex<u64> = Mutex::new(0);

impl Number {
    #[cold]
    fn choose(&self) -> usize {
        let mut in_use = IN_USE.lock().unwrap_or_else(PoisonError::into_inner);
        let number = (in_use.trailing_ones() as usize).min(OWNED);
        if number < OWNED {
            *in_use |= 1 << number;
        }
        self.0.set(number);
        number
    }
}

impl Drop for Number {
    fn drop(&mut self) {
        let number = self.0.get();
        if number < OWNED {
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
        let threads = OWNED + 40;
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
        let mut owned = 0;
        for _ in 0..10 * OWNED {
            let number = std::thread::spawn(thread_number).join();
            owned += usize::from(number.expect("no panic") < OWNED);
        }
        // The other test may hold all numbers for a while.
        assert!(owned > OWNED, "{owned} threads had a number of their own");
    }
}
