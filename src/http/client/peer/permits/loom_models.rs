//! Models of the permits: requests that wait, that come while a permit is handed over, and that have no time
//! left. Loom reports a deadlock if a request waits for ever.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use super::*;
use crate::loom_models::explore;
use crate::sync::thread;

fn later() -> Instant {
    Instant::now() + Duration::from_secs(3600)
}

fn permits(count: usize) -> Arc<Permits> {
    Arc::new(Permits::new(count))
}

fn assert_unused(permits: &Permits) {
    assert_eq!(permits.in_use(), 0);
    let state = permits.state.lock();
    assert_eq!((state.free, state.queue.len()), (permits.count, 0));
}

/// Three requests come at the same time for one permit. Each gets it once the one before gives it back, and
/// never two at a time.
#[test]
fn one_request_runs_at_a_time_and_each_gets_its_turn() {
    explore(|| {
        let (permits, running) = (permits(1), Arc::new(AtomicUsize::new(0)));
        let request = |permits: Arc<Permits>, running: Arc<AtomicUsize>| {
            move || {
                let _held = permits.acquire(later()).expect("in time");
                assert_eq!(running.fetch_add(1, Ordering::SeqCst), 0);
                thread::yield_now();
                running.fetch_sub(1, Ordering::SeqCst);
            }
        };
        let others = [(); 2].map(|()| thread::spawn(request(permits.clone(), running.clone())));
        request(permits.clone(), running)();
        others.into_iter().for_each(|other| other.join().unwrap());
        assert_unused(&permits);
    });
}

/// Two requests wait, and both permits are given back. Each keeps its permit until the other one has its own,
/// too. So each of the two drops must wake a waiter of its own.
#[test]
fn two_that_wait_run_at_the_same_time() {
    explore(|| {
        let permits = permits(2);
        let held = [(); 2].map(|()| permits.acquire(later()).expect("it is free"));
        let both = Arc::new((Mutex::new(0), Condvar::new()));
        let others = [(); 2].map(|()| {
            let (permits, both) = (permits.clone(), both.clone());
            thread::spawn(move || {
                let _held = permits.acquire(later()).expect("in time");
                let mut holders = both.0.lock();
                *holders += 1;
                both.1.notify_all();
                while *holders < 2 {
                    holders = both.1.wait(holders);
                }
            })
        });
        drop(held);
        others.into_iter().for_each(|other| other.join().unwrap());
        assert_unused(&permits);
    });
}

/// A permit is handed to the request that waits, and another one comes before that one wakes up. The newcomer
/// never gets the permit first: without time it leaves, and else it is the next one.
#[test]
fn newcomer_never_gets_the_permit_of_a_request_that_waits() {
    for has_time in [false, true] {
        explore(move || {
            let permits = permits(1);
            let held = permits.acquire(later()).expect("it is free");
            let had_its_turn = Arc::new(AtomicBool::new(false));
            let waiting = {
                let (permits, had_its_turn) = (permits.clone(), had_its_turn.clone());
                thread::spawn(move || {
                    let _held = permits.acquire(later()).expect("in time");
                    had_its_turn.store(true, Ordering::SeqCst);
                })
            };
            let newcomer = {
                let permits = permits.clone();
                thread::spawn(move || {
                    let is_second = !permits.state.lock().queue.is_empty();
                    let deadline = if has_time { later() } else { Instant::now() };
                    let newcomer = permits.acquire(deadline);
                    assert!(newcomer.is_some() || !has_time);
                    if is_second && newcomer.is_some() {
                        assert!(had_its_turn.load(Ordering::SeqCst));
                    }
                })
            };
            drop(held);
            waiting.join().unwrap();
            newcomer.join().unwrap();
            assert_unused(&permits);
        });
    }
}

/// The time of the request that waits first ends when it is handed the permit: it wakes up before, while or
/// after that. It uses the permit, or leaves without it, and the next request gets it.
#[test]
fn permit_that_is_handed_to_a_request_without_time_is_not_lost() {
    explore(|| {
        let permits = permits(1);
        let held = permits.acquire(later()).expect("it is free");
        let is_late = Arc::new(AtomicBool::new(false));
        let leaving = {
            let (permits, is_late) = (permits.clone(), is_late.clone());
            let (deadline, early) = (later(), Instant::now());
            let now = move || {
                if is_late.load(Ordering::SeqCst) {
                    deadline
                } else {
                    early
                }
            };
            thread::spawn(move || drop(permits.acquire_by(deadline, now)))
        };
        let patient = {
            let permits = permits.clone();
            thread::spawn(move || drop(permits.acquire(later()).expect("in time")))
        };
        let state = permits.state.lock();
        is_late.store(true, Ordering::SeqCst);
        // Wakes the waiters as a time-out would. Loom has no time-outs.
        state.queue.iter().for_each(|waiter| waiter.notify_one());
        drop(state);
        drop(held);
        leaving.join().unwrap();
        patient.join().unwrap();
        assert_unused(&permits);
    });
}
