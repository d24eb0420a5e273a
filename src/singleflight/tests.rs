use super::stripes::MAX_SPARE_KEY;
use super::*;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(20);

/// A flight whose leader waits until it is told what to do.
struct Held<T> {
    flights: Arc<Group<T>>,
    works: Arc<AtomicUsize>,
    leader: thread::JoinHandle<thread::Result<Result<T, LeaderPanicked>>>,
    go: Sender<()>,
}

/// Begins a flight of "key" that ends as `work` does, once told to.
fn hold<T: Clone + Send + Sync + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Held<T> {
    let flights = Arc::new(Group::new());
    let works = Arc::new(AtomicUsize::new(0));
    let (begun, has_begun) = channel();
    let (go, told): (_, Receiver<()>) = channel();
    let leader = {
        let (flights, works) = (flights.clone(), works.clone());
        thread::spawn(move || {
            catch_unwind(AssertUnwindSafe(|| {
                flights.do_once("key", || {
                    works.fetch_add(1, Ordering::SeqCst);
                    let _ = begun.send(());
                    let _ = told.recv_timeout(PATIENCE);
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
    /// This many callers that wait for the flight by now.
    fn followers(&self, count: usize) -> Vec<thread::JoinHandle<Result<T, LeaderPanicked>>> {
        let followers = (0..count).map(|_| {
            let flights = self.flights.clone();
            let works = self.works.clone();
            thread::spawn(move || {
                flights.do_once("key", || {
                    works.fetch_add(1, Ordering::SeqCst);
                    panic!("a follower works");
                })
            })
        });
        let followers = followers.collect();
        let hash = self.flights.hash("key");
        let start = Instant::now();
        while self.flights.waiters(hash, "key") < count {
            assert!(start.elapsed() < PATIENCE, "they never wait");
            thread::yield_now();
        }
        followers
    }
}

#[test]
fn a_call_returns_what_its_work_returns() {
    let flights = Group::new();
    assert_eq!(flights.do_once("key", || "value"), Ok("value"));
    assert_eq!(
        flights.do_once("key", || "other"),
        Ok("other"),
        "nothing is kept"
    );
    let errors: Group<Result<(), String>> = Group::new();
    let failed = errors.do_once("key", || Err("some error".into()));
    assert_eq!(failed, Ok(Err("some error".into())));
    assert_eq!((flights.in_flight(), errors.in_flight()), (0, 0));
}

#[test]
fn calls_for_one_key_at_one_time_share_one_work() {
    let held = hold(|| String::from("value"));
    let followers = held.followers(10);
    assert_eq!(held.flights.in_flight(), 1);
    drop(held.go);
    let led = held.leader.join().expect("no panic").expect("no panic");
    assert_eq!(led, Ok("value".into()));
    for follower in followers {
        assert_eq!(follower.join().expect("no panic"), Ok("value".into()));
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
fn a_panic_is_the_leaders_own_and_releases_all_who_wait() {
    let held = hold::<i32>(|| resume_unwind(Box::new("in the work")));
    let followers = held.followers(100);
    drop(held.go);
    let panic = held.leader.join().expect("it is caught");
    let panic = panic.expect_err("the leader sees the panic");
    assert_eq!(panic.downcast_ref::<&str>(), Some(&"in the work"));
    for follower in followers {
        assert_eq!(follower.join().expect("no panic"), Err(LeaderPanicked));
    }
    assert_eq!(
        held.flights.do_once("key", || 7),
        Ok(7),
        "the key is usable"
    );
    assert_eq!(held.works.load(Ordering::SeqCst), 1);
}

#[test]
fn a_forgotten_flight_keeps_its_waiters_and_gets_no_more() {
    for forget in [
        (|flights, key| flights.forget(key)) as fn(&Group<&str>, &str),
        |flights, _| flights.forget_all(),
    ] {
        let held = hold(|| "old");
        let followers = held.followers(3);
        forget(&held.flights, "key");
        assert_eq!(held.flights.in_flight(), 0);
        assert_eq!(held.flights.do_once("key", || "new"), Ok("new"));
        // A flight that has taken the key since is not disturbed by the end of the old one.
        let hash = held.flights.hash("key");
        let Joined::Leader(lead) = held.flights.join(hash, "key") else {
            panic!("the old flight is forgotten");
        };
        drop(held.go);
        let led = held.leader.join().expect("no panic").expect("no panic");
        assert_eq!(led, Ok("old"));
        for follower in followers {
            assert_eq!(follower.join().expect("no panic"), Ok("old"));
        }
        assert_eq!(held.flights.in_flight(), 1);
        lead.finish(&"newer");
        assert_eq!(held.flights.in_flight(), 0);
    }
}

#[test]
fn forgetting_what_is_not_there_does_nothing() {
    let flights: Group<i32> = Group::new();
    flights.forget("key");
    let held = hold(|| 1);
    held.flights.forget("other");
    assert_eq!(held.flights.in_flight(), 1);
    drop(held.go);
    assert!(held.leader.join().is_ok());
}

#[test]
fn an_abandoned_flight_tells_its_waiters_to_ask_again() {
    let flights: Group<i32> = Group::new();
    let hash = flights.hash("key");
    let Joined::Leader(lead) = flights.join(hash, "key") else {
        panic!("nobody leads yet");
    };
    let Joined::Follower(ticket) = flights.join(hash, "key") else {
        panic!("somebody leads");
    };
    let waiting = thread::spawn(move || ticket.wait(&Context::background()));
    drop(lead);
    let waited = waiting.join().expect("no panic");
    assert!(matches!(waited, Waited::Abandoned), "{waited:?}");
    assert!(matches!(flights.join(hash, "key"), Joined::Leader(_)));
}

#[test]
fn a_value_that_panics_when_it_is_cloned_releases_those_who_wait() {
    #[derive(Debug)]
    struct Unclonable;
    impl Clone for Unclonable {
        fn clone(&self) -> Self {
            resume_unwind(Box::new("in the clone"))
        }
    }
    let flights = Group::new();
    let Joined::Leader(lead) = flights.join(1, "key") else {
        panic!("nobody leads yet");
    };
    let ticket = lead.ticket();
    let waiting = thread::spawn(move || ticket.wait(&Context::background()));
    let landed = catch_unwind(AssertUnwindSafe(|| lead.finish(&Unclonable)));
    assert!(landed.is_err(), "the panic is the leader's");
    let waited = waiting.join().expect("no panic");
    assert!(matches!(waited, Waited::Abandoned), "{waited:?}");
    assert_eq!(flights.in_flight(), 0);
}

#[test]
fn a_flight_lands_after_its_group_is_gone() {
    let flights = Group::new();
    let Joined::Leader(lead) = flights.join(1, "key") else {
        panic!("nobody leads yet");
    };
    let ticket = lead.ticket();
    let lead = lead.into_owned();
    drop(flights);
    lead.finish(&8);
    let waited = ticket.wait(&Context::background());
    assert!(matches!(waited, Waited::Landed(8)), "{waited:?}");
}

#[test]
fn a_short_key_is_not_mistaken_for_a_longer_one_before_it() {
    let flights = Group::new();
    for key in ["a long key", "a", "", &"x".repeat(2 * MAX_SPARE_KEY), "y"] {
        let Joined::Leader(lead) = flights.join(1, key) else {
            panic!("nobody leads yet");
        };
        assert!(matches!(flights.join(1, key), Joined::Follower(_)));
        lead.finish(&0);
        let spare = flights.stripes.of(1).lock().spare_key();
        assert!(spare <= MAX_SPARE_KEY, "{spare} bytes are kept");
    }
    assert_eq!(flights.in_flight(), 0);
}

#[test]
fn a_landed_value_is_had_even_by_waiters_whose_time_is_up() {
    let flights = Group::new();
    let hash = flights.hash("key");
    let Joined::Leader(lead) = flights.join(hash, "key") else {
        panic!("nobody leads yet");
    };
    let ticket = lead.ticket();
    let late = Context::background().with_timeout(Duration::ZERO);
    let waited = ticket.wait(&late);
    assert!(matches!(waited, Waited::Left(_)), "{waited:?}");
    lead.finish(&5);
    let waited = ticket.wait(&late);
    assert!(matches!(waited, Waited::Landed(5)), "{waited:?}");
}

#[test]
fn keys_of_one_hash_are_kept_apart() {
    let flights = Group::new();
    let Joined::Leader(one) = flights.join(42, "one") else {
        panic!("nobody leads yet");
    };
    let Joined::Leader(two) = flights.join(42, "two") else {
        panic!("another key");
    };
    flights.forget_hashed(42, "two");
    assert!(matches!(flights.join(42, "one"), Joined::Follower(_)));
    one.finish(&1);
    two.finish(&2);
    assert_eq!(flights.in_flight(), 0);
}
