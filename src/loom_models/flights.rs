//! Flights alone: leaders, waiters, and the results they get.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::Ordering;

use loom::model;

use super::Works;
use crate::context::Context;
use crate::error::ErrorKind;
use crate::singleflight::{self, Joined, LeaderPanicked, Waited};
use crate::sync::Arc;
use crate::sync::atomic::AtomicUsize;
use crate::sync::thread;

type Flights = Arc<singleflight::Group<usize>>;

fn flights() -> Flights {
    Arc::new(singleflight::Group::new())
}

fn callers_share_a_flight_or_lead_in_turn(threads: usize) {
    model(move || {
        let (flights, works) = (flights(), Works::default());
        let call = |flights: &Flights, works: &Works| {
            let (flights, works) = (flights.clone(), works.clone());
            move || flights.do_once("key", || works.work())
        };
        let others: Vec<_> = (1..threads)
            .map(|_| thread::spawn(call(&flights, &works)))
            .collect();
        let mut numbers = vec![call(&flights, &works)()];
        numbers.extend(others.into_iter().map(|other| other.join().unwrap()));
        let numbers: Vec<usize> = numbers.into_iter().map(|n| n.expect("no panic")).collect();
        // Each result was returned to a caller, and each caller got a result of the work.
        for number in 0..works.done() {
            assert!(numbers.contains(&number));
        }
        assert!(numbers.iter().all(|&number| number < works.done()));
        assert_eq!(flights.in_flight(), 0);
    });
}

#[test]
fn two_callers_share_a_flight_or_lead_in_turn() {
    callers_share_a_flight_or_lead_in_turn(2);
}

#[test]
fn three_callers_share_a_flight_or_lead_in_turn() {
    callers_share_a_flight_or_lead_in_turn(3);
}

#[test]
fn panic_releases_waiters() {
    model(|| {
        let flights = flights();
        let followers: Vec<_> = (1..3)
            .map(|n| {
                let flights = flights.clone();
                thread::spawn(move || flights.do_once("key", || n))
            })
            .collect();
        let led = catch_unwind(AssertUnwindSafe(|| {
            flights.do_once("key", || resume_unwind(Box::new("in the work")))
        }));
        if let Ok(shared) = led {
            assert!(matches!(shared, Ok(1 | 2)), "it was a waiter: {shared:?}");
        }
        for follower in followers {
            let got = follower.join().unwrap();
            assert!(matches!(got, Ok(1 | 2) | Err(LeaderPanicked)), "{got:?}");
        }
        assert_eq!(flights.do_once("key", || 3), Ok(3), "the key is usable");
    });
}

/// Leads or waits until there is a value, as `Inner::load_once` does.
fn until_landed(flights: &Flights, value: usize) -> usize {
    let mut abandoned = 0;
    loop {
        match flights.join(0, "key") {
            Joined::Leader(leader, ..) => {
                leader.finish(&value);
                return value;
            }
            Joined::Waiter(waiter) => match waiter.wait(&Context::background()) {
                Waited::Finished(value) => return value,
                // One flight is abandoned in these models. A waiter of it must not join it again.
                Waited::Abandoned => abandoned += 1,
                Waited::Refused | Waited::Panicked => panic!("no leader refuses or panics"),
                Waited::Left(error) => panic!("this context cannot end: {error}"),
            },
        }
        assert!(abandoned <= 1, "the same flight was abandoned twice");
    }
}

fn waiters_lead_after_abandoned_flight(followers: usize) {
    model(move || {
        let flights = flights();
        let Joined::Leader(leader, ..) = flights.join(0, "key") else {
            panic!("no other caller leads");
        };
        let followers: Vec<_> = (1..=followers)
            .map(|n| {
                let flights = flights.clone();
                thread::spawn(move || until_landed(&flights, n))
            })
            .collect();
        leader.abandon();
        for follower in followers {
            assert!(follower.join().unwrap() > 0);
        }
        assert_eq!(flights.in_flight(), 0);
    });
}

#[test]
fn waiter_leads_after_abandoned_flight() {
    waiters_lead_after_abandoned_flight(1);
}

#[test]
fn one_of_two_waiters_leads_after_abandoned_flight() {
    waiters_lead_after_abandoned_flight(2);
}

#[test]
fn leader_on_another_thread_releases_all_waiters() {
    model(|| {
        let flights = flights();
        let Joined::Leader(leader, ..) = flights.join(0, "key") else {
            panic!("no other caller leads");
        };
        let waiter = leader.detach();
        let leading = {
            let (flights, id) = (flights.clone(), waiter.id());
            thread::spawn(move || flights.lead(0, id).finish(&1))
        };
        let other = {
            let flights = flights.clone();
            thread::spawn(move || until_landed(&flights, 2))
        };
        flights.forget("another");
        let waited = waiter.wait(&Context::background());
        assert!(matches!(waited, Waited::Finished(1)), "{waited:?}");
        leading.join().unwrap();
        let shared = other.join().unwrap();
        assert!(shared == 1 || shared == 2);
        assert_eq!(flights.in_flight(), 0);
    });
}

#[test]
fn call_after_forget_gets_no_older_result() {
    model(|| {
        let (flights, source) = (flights(), Arc::new(AtomicUsize::new(0)));
        let early: Vec<_> = (0..2)
            .map(|_| {
                let (flights, source) = (flights.clone(), source.clone());
                thread::spawn(move || flights.do_once("key", || source.load(Ordering::SeqCst)))
            })
            .collect();
        source.store(1, Ordering::SeqCst);
        flights.forget("key");
        let late = flights.do_once("key", || source.load(Ordering::SeqCst));
        assert_eq!(late, Ok(1));
        for early in early {
            assert!(early.join().unwrap().is_ok());
        }
        assert_eq!(flights.in_flight(), 0);
    });
}

#[test]
fn cancellation_always_wakes_the_waiter() {
    model(|| {
        let flights = flights();
        let Joined::Leader(leader, ..) = flights.join(0, "key") else {
            panic!("no other caller leads");
        };
        let (ctx, canceller) = Context::background().with_cancel();
        let Joined::Waiter(waiter) = flights.join(0, "key") else {
            panic!("a flight is under way");
        };
        let waiting = thread::spawn(move || waiter.wait(&ctx));
        canceller.cancel();
        // The leader finishes only after the waiter has returned.
        let waited = waiting.join().unwrap();
        let Waited::Left(error) = waited else {
            panic!("{waited:?}");
        };
        assert_eq!(error.kind(), ErrorKind::Cancelled);
        leader.finish(&1);
    });
}
