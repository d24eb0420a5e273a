use super::*;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(20);

/// A flight whose leader waits for a signal.
struct Held<T> {
    flights: Arc<Group<T>>,
    works: Arc<AtomicUsize>,
    leader: thread::JoinHandle<thread::Result<Result<T, LeaderPanicked>>>,
    go: Sender<()>,
}

/// Begins a flight of "key" that runs `work` after the signal.
fn hold<T: Clone + Send + Sync + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Held<T> {
    let flights = Arc::new(Group::new());
    let works = Arc::new(AtomicUsize::new(0));
    let (begun, has_begun) = channel();
    let (go, released): (_, Receiver<()>) = channel();
    let leader = {
        let (flights, works) = (flights.clone(), works.clone());
        thread::spawn(move || {
            catch_unwind(AssertUnwindSafe(|| {
                flights.do_once("key", || {
                    works.fetch_add(1, Ordering::SeqCst);
                    let _ = begun.send(());
                    let _ = released.recv_timeout(PATIENCE);
                    work()
                })
            }))
        })
    };
    has_begun.recv_timeout(PATIENCE).expect("the leader works");
    Held {
        flights,
        works,
        leader,
        go,
    }
}

impl<T: Clone + Send + Sync + 'static> Held<T> {
    /// Starts callers and returns once all of them wait for the flight.
    fn waiters(&self, count: usize) -> Vec<thread::JoinHandle<Result<T, LeaderPanicked>>> {
        let waiters = (0..count).map(|_| {
            let flights = self.flights.clone();
            let works = self.works.clone();
            thread::spawn(move || {
                flights.do_once("key", || {
                    works.fetch_add(1, Ordering::SeqCst);
                    panic!("a waiter does the work");
                })
            })
        });
        let waiters = waiters.collect();
        let hash = self.flights.hash("key");
        let start = Instant::now();
        while self.flights.waiters(hash, "key") < count {
            assert!(start.elapsed() < PATIENCE, "the callers do not wait");
            thread::yield_now();
        }
        waiters
    }
}

#[test]
fn call_returns_result_of_its_work() {
    let flights = Group::new();
    assert_eq!(flights.do_once("key", || "value"), Ok("value"));
    assert_eq!(
        flights.do_once("key", || "other"),
        Ok("other"),
        "no result is kept"
    );
    let errors: Group<Result<(), String>> = Group::new();
    let failed = errors.do_once("key", || Err("some error".into()));
    assert_eq!(failed, Ok(Err("some error".into())));
    assert_eq!((flights.in_flight(), errors.in_flight()), (0, 0));
}

#[test]
fn concurrent_calls_for_one_key_share_one_work() {
    let held = hold(|| String::from("value"));
    let waiters = held.waiters(10);
    assert_eq!(held.flights.in_flight(), 1);
    drop(held.go);
    let led = held.leader.join().expect("no panic").expect("no panic");
    assert_eq!(led, Ok("value".into()));
    for waiter in waiters {
        assert_eq!(waiter.join().expect("no panic"), Ok("value".into()));
    }
    assert_eq!(held.works.load(Ordering::SeqCst), 1);
    assert_eq!(held.flights.in_flight(), 0);
}

#[test]
fn calls_for_other_keys_do_not_wait() {
    let held = hold(|| 1);
    assert_eq!(held.flights.do_once("other", || 2), Ok(2));
    assert_eq!(held.flights.do_once("", || 3), Ok(3));
    drop(held.go);
    assert!(held.leader.join().is_ok());
}

#[test]
fn panic_propagates_in_leader_and_releases_waiters() {
    let held = hold::<i32>(|| resume_unwind(Box::new("in the work")));
    let waiters = held.waiters(100);
    drop(held.go);
    let panic = held.leader.join().expect("the panic is caught");
    let panic = panic.expect_err("the panic propagates in the leader");
    assert_eq!(panic.downcast_ref::<&str>(), Some(&"in the work"));
    for waiter in waiters {
        assert_eq!(waiter.join().expect("no panic"), Err(LeaderPanicked));
    }
    assert_eq!(
        held.flights.do_once("key", || 7),
        Ok(7),
        "the key stays usable"
    );
    assert_eq!(held.works.load(Ordering::SeqCst), 1);
}

#[test]
fn forgotten_flight_keeps_its_waiters_and_gets_no_more() {
    for forget in [
        (|flights, key| flights.forget(key)) as fn(&Group<&str>, &str),
        |flights, _| flights.forget_all(),
    ] {
        let held = hold(|| "old");
        let waiters = held.waiters(3);
        forget(&held.flights, "key");
        assert_eq!(held.flights.in_flight(), 0);
        assert_eq!(held.flights.do_once("key", || "new"), Ok("new"));
        // The end of the old flight does not affect a newer flight of the key.
        let hash = held.flights.hash("key");
        let Joined::Leader(leader, ..) = held.flights.join(hash, "key") else {
            panic!("the old flight is forgotten");
        };
        drop(held.go);
        let led = held.leader.join().expect("no panic").expect("no panic");
        assert_eq!(led, Ok("old"));
        for waiter in waiters {
            assert_eq!(waiter.join().expect("no panic"), Ok("old"));
        }
        assert_eq!(held.flights.in_flight(), 1);
        leader.finish(&"newer");
        assert_eq!(held.flights.in_flight(), 0);
    }
}

#[test]
fn forget_without_flight_does_nothing() {
    let flights: Group<i32> = Group::new();
    flights.forget("key");
    let held = hold(|| 1);
    held.flights.forget("other");
    assert_eq!(held.flights.in_flight(), 1);
    drop(held.go);
    assert!(held.leader.join().is_ok());
}

#[test]
fn waiters_of_abandoned_flight_can_lead_the_next() {
    let flights: Group<i32> = Group::new();
    let hash = flights.hash("key");
    let Joined::Leader(leader, ..) = flights.join(hash, "key") else {
        panic!("no other caller leads");
    };
    let Joined::Waiter(flight) = flights.join(hash, "key") else {
        panic!("there is a leader");
    };
    let waiting = thread::spawn(move || flight.wait(&Context::background()));
    leader.abandon();
    let waited = waiting.join().expect("no panic");
    assert!(matches!(waited, Waited::Abandoned), "{waited:?}");
    assert!(matches!(flights.join(hash, "key"), Joined::Leader(..)));
}

#[test]
fn panic_in_clone_of_value_releases_waiters() {
    #[derive(Debug)]
    struct Unclonable;
    impl Clone for Unclonable {
        fn clone(&self) -> Self {
            resume_unwind(Box::new("in the clone"))
        }
    }
    let flights = Group::new();
    let Joined::Leader(leader, ..) = flights.join(1, "key") else {
        panic!("no other caller leads");
    };
    let Joined::Waiter(flight) = flights.join(1, "key") else {
        panic!("a flight is under way");
    };
    let waiting = thread::spawn(move || flight.wait(&Context::background()));
    let landed = catch_unwind(AssertUnwindSafe(|| leader.finish(&Unclonable)));
    assert!(landed.is_err(), "the panic propagates in the leader");
    let waited = waiting.join().expect("no panic");
    assert!(matches!(waited, Waited::Panicked), "{waited:?}");
    assert_eq!(flights.in_flight(), 0);
}

#[test]
fn detached_flight_is_finished_by_another_leader() {
    let flights = Group::new();
    let Joined::Leader(leader, ..) = flights.join(1, "key") else {
        panic!("no other caller leads");
    };
    let waiter = leader.detach();
    assert!(matches!(flights.join(1, "key"), Joined::Waiter(_)));
    flights.lead(1, waiter.id()).finish(&8);
    let waited = waiter.wait(&Context::background());
    assert!(matches!(waited, Waited::Finished(8)), "{waited:?}");
    assert_eq!(flights.in_flight(), 0);
}

#[test]
fn keys_of_one_hash_with_common_prefix_are_kept_apart() {
    let flights = Group::new();
    let long = "x".repeat(flight_key::MAX_SHORT + 1);
    let longest_short = &long[1..];
    for key in ["some key", "some", "", longest_short, &long, "x"] {
        let Joined::Leader(leader, ..) = flights.join(1, key) else {
            panic!("no other caller leads");
        };
        assert!(matches!(flights.join(1, key), Joined::Waiter(_)));
        let others = [format!("{key}x"), key.chars().skip(1).collect()];
        let others = others.iter().filter(|other| *other != key);
        let others: Vec<_> = others
            .map(|other| match flights.join(1, other) {
                Joined::Leader(leader, ..) => leader,
                Joined::Waiter(_) => panic!("{key} is another key than {other}"),
            })
            .collect();
        leader.finish(&0);
        others.into_iter().for_each(|leader| leader.finish(&0));
        let stripe = flights.stripe(1).lock();
        assert!(!stripe.first.key.is_allocated(), "no memory is kept");
        assert_eq!(stripe.others.capacity(), 0);
    }
    assert_eq!(flights.in_flight(), 0);
}

#[test]
fn flights_of_one_stripe_end_in_any_order() {
    let keys = ["a", "b", "c"];
    for order in [
        [0, 1, 2],
        [0, 2, 1],
        [1, 0, 2],
        [1, 2, 0],
        [2, 0, 1],
        [2, 1, 0],
    ] {
        let flights = Group::new();
        let mut leaders = keys.map(|key| match flights.join(1, key) {
            Joined::Leader(leader, ..) => Some(leader),
            Joined::Waiter(_) => None,
        });
        let waiters = keys.map(|key| match flights.join(1, key) {
            Joined::Waiter(waiter) => waiter,
            Joined::Leader(..) => panic!("a flight is under way"),
        });
        for n in order {
            let leader = leaders[n].take().expect("no other caller leads");
            leader.finish(&keys[n]);
            let waited = waiters[n].wait(&Context::background());
            assert!(matches!(waited, Waited::Finished(key) if key == keys[n]));
        }
        assert_eq!(flights.in_flight(), 0);
    }
}

#[test]
fn finished_value_is_returned_after_the_deadline() {
    let flights = Group::new();
    let hash = flights.hash("key");
    let Joined::Leader(leader, ..) = flights.join(hash, "key") else {
        panic!("no other caller leads");
    };
    let Joined::Waiter(flight) = flights.join(hash, "key") else {
        panic!("a flight is under way");
    };
    let late = Context::background().with_timeout(Duration::ZERO);
    let waited = flight.wait(&late);
    assert!(matches!(waited, Waited::Left(_)), "{waited:?}");
    leader.finish(&5);
    let waited = flight.wait(&late);
    assert!(matches!(waited, Waited::Finished(5)), "{waited:?}");
}

#[test]
fn keys_of_one_hash_are_kept_apart() {
    let flights = Group::new();
    let Joined::Leader(one, ..) = flights.join(42, "one") else {
        panic!("no other caller leads");
    };
    let Joined::Leader(two, ..) = flights.join(42, "two") else {
        panic!("another key");
    };
    flights.forget_hashed(42, "two");
    assert!(matches!(flights.join(42, "one"), Joined::Waiter(_)));
    one.finish(&1);
    two.finish(&2);
    assert_eq!(flights.in_flight(), 0);
}

/// A call of a bulk getter leads a flight for each of its keys, and each is found without a search through all.
#[test]
fn many_flights_are_found_by_key_and_by_leader() {
    let flights = Group::<String>::new();
    let keys: Vec<String> = (0..20_000).map(|n| format!("key {n}")).collect();
    let lead = |key: &String| match flights.join(flights.hash(key), key) {
        Joined::Leader(leader, ..) => leader,
        Joined::Waiter(_) => panic!("{key} is not in flight"),
    };
    let leaders: Vec<_> = keys.iter().map(lead).collect();
    let wait = |key: &String| match flights.join(flights.hash(key), key) {
        Joined::Waiter(waiter) => waiter,
        Joined::Leader(..) => panic!("{key} is in flight"),
    };
    let waiters: Vec<_> = keys.iter().map(wait).collect();
    flights.forget(&keys[7]);
    assert_eq!(flights.in_flight(), keys.len() - 1);
    let (even, odd): (Vec<_>, Vec<_>) = leaders
        .into_iter()
        .zip(&keys)
        .enumerate()
        .partition(|(n, _)| n % 2 == 0);
    for (_, (leader, key)) in odd.into_iter().rev().chain(even) {
        let id = leader.detach().id();
        flights.lead(flights.hash(key), id).finish(key);
    }
    assert_eq!(flights.in_flight(), 0);
    for (waiter, key) in waiters.iter().zip(&keys) {
        assert!(matches!(waiter.poll(), Some(Waited::Finished(value)) if value == *key));
    }
}
