//! Loads that wait for the getter runs of others.

use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::*;
use crate::byteview::ByteView;
use crate::clock::Clock;
use crate::getter::getter_fn;
use crate::group::tests::eventually;
use crate::group::{Group, GroupBuilder};
use crate::peers::{PeerPicker, PickerSlot, Pickers, ProtoGetter, Route};
use crate::sync::Mutex;

const PATIENCE: Duration = Duration::from_secs(20);

/// A group whose getter reports each key and then waits for a signal.
struct Tested {
    group: Group,
    begun: Receiver<String>,
    go_on: Sender<()>,
}

fn tested(peers: PickerSlot, options: fn(GroupBuilder) -> GroupBuilder) -> Tested {
    let (report, begun) = mpsc::channel();
    let (go_on, signals) = mpsc::channel();
    let signals = Mutex::new(signals);
    let getter = getter_fn(move |_: &Context, key, dest| {
        let _ = report.send(key.to_owned());
        signals.lock().recv_timeout(PATIENCE)?;
        Ok(dest.set_str(key)?)
    });
    let group = options(Group::builder("origin")).make(getter, peers);
    Tested {
        group,
        begun,
        go_on,
    }
}

impl Tested {
    fn get(&self, timeout: Duration, key: &'static str) -> JoinHandle<Result<String>> {
        let group = self.group.clone();
        thread::spawn(move || {
            let ctx = Context::background().with_timeout(timeout);
            let value = group.get_with(&ctx, key)?;
            Ok(value.to_str().expect("text").to_owned())
        })
    }

    fn begins(&self) -> String {
        self.begun.recv_timeout(PATIENCE).expect("a load begins")
    }

    fn end(&self, loads: usize) {
        (0..loads).for_each(|_| self.go_on.send(()).expect("the getter waits"));
    }

    fn until_waiting(&self, loads: usize) {
        until_waiting(&self.group, loads);
    }
}

fn until_waiting(group: &Group, loads: usize) {
    let permits = group.inner.permits.as_ref().expect("a limit");
    eventually(|| permits.usage().1 == loads);
}

fn kind<T: std::fmt::Debug>(result: Result<T>) -> ErrorKind {
    result.expect_err("an error").kind()
}

#[test]
fn load_with_the_earliest_deadline_runs_next() {
    let tested = tested(PickerSlot::default(), |group| group.max_concurrent_loads(1));
    let mut calls = vec![tested.get(PATIENCE, "first")];
    assert_eq!(tested.begins(), "first");
    for (waiting, (n, key)) in (1..).zip([(4, "d"), (2, "b"), (1, "a"), (3, "c")]) {
        calls.push(tested.get(n * PATIENCE, key));
        tested.until_waiting(waiting);
    }
    for key in ["a", "b", "c", "d"] {
        tested.end(1);
        assert_eq!(tested.begins(), key);
    }
    tested.end(1);
    for call in calls {
        call.join().expect("no panic").expect("a value");
    }
}

#[test]
fn load_of_a_caller_runs_before_a_warming_that_has_waited_longer() {
    let tested = tested(PickerSlot::default(), |builder| {
        builder.max_concurrent_loads(1)
    });
    let warm = |key: &str| {
        let warming = tested.group.warm(vec![key.to_owned()], |_| ());
        warming.expect("a thread")
    };
    let first = warm("first");
    assert_eq!(tested.begins(), "first");
    let second = warm("second");
    tested.until_waiting(1);
    let caller = tested.get(PATIENCE, "of a caller");
    tested.until_waiting(2);
    tested.end(1);
    assert_eq!(tested.begins(), "of a caller");
    tested.end(2);
    let value = caller.join().expect("no panic");
    assert_eq!(value.expect("a value"), "of a caller");
    for warming in [first, second] {
        assert_eq!(warming.join().loaded, 1);
    }
}

#[test]
fn caller_that_leaves_while_it_waits_hands_over_to_one_with_time_left() {
    let tested = tested(PickerSlot::default(), |group| group.max_concurrent_loads(1));
    let first = tested.get(PATIENCE, "first");
    tested.begins();
    let short = tested.get(Duration::from_millis(30), "key");
    tested.until_waiting(1);
    let patient = tested.get(PATIENCE, "key");
    let left = short.join().expect("no panic");
    assert_eq!(kind(left), ErrorKind::DeadlineExceeded);
    tested.until_waiting(1);
    tested.end(2);
    assert_eq!(tested.begins(), "key");
    assert_eq!(patient.join().expect("no panic").expect("a value"), "key");
    first.join().expect("no panic").expect("a value");
    assert_eq!(tested.group.stats().local_loads, 2);
}

#[test]
fn caller_without_a_deadline_waits_for_max_load_wait() {
    let tested = tested(PickerSlot::default(), |group| {
        let wait = Duration::from_millis(20);
        group.max_concurrent_loads(1).max_load_wait(wait)
    });
    let first = tested.get(PATIENCE, "first");
    tested.begins();
    let error = tested.group.get("key").expect_err("the permit is taken");
    assert_eq!(error.kind(), ErrorKind::Overloaded);
    assert!(
        error.to_string().contains("max_concurrent_loads"),
        "{error}"
    );
    tested.end(2);
    first.join().expect("no panic").expect("a value");
    assert_eq!(tested.group.get("key").expect("a value"), "key");
}

#[test]
fn old_value_is_served_at_once_while_no_load_can_run() {
    let tested = tested(PickerSlot::default(), |group| {
        group
            .max_concurrent_loads(1)
            .time_to_live(Duration::from_secs(10))
            .stale_while_revalidate(Duration::from_secs(10))
            .stale_if_error(Duration::from_secs(100))
            .clock(Clock::manual())
    });
    let clock = tested.group.clock().clone();
    tested.end(1);
    tested.group.get("old").expect("a value");
    tested.begins();
    clock.advance(Duration::from_secs(15));
    let first = tested.get(PATIENCE, "first");
    assert_eq!(tested.begins(), "first");
    // At first a get would start a load in the background, and later one that it waits for. Neither
    // happens.
    for stale_hits in [0, 1] {
        assert_eq!(tested.group.get("old").expect("the old value"), "old");
        assert_eq!(tested.group.stats().stale_hits, stale_hits);
        clock.advance(Duration::from_secs(15));
    }
    tested.until_waiting(0);
    tested.end(2);
    first.join().expect("no panic").expect("a value");
    assert_eq!(tested.group.get("old").expect("a new value"), "old");
    assert_eq!(tested.begins(), "old");
}

/// A peer that owns the keys which begin with `theirs`, and does not answer.
struct Dead;

impl PeerPicker for Dead {
    fn pick_peer(&self, _: &str) -> Option<Arc<dyn ProtoGetter>> {
        None
    }

    fn route(&self, key: &str) -> Route {
        match key.starts_with("theirs") {
            true => Route::Fallback,
            false => Route::Own,
        }
    }
}

#[test]
fn loads_for_an_owner_that_is_down_leave_half_of_the_runs() {
    let peers = PickerSlot::default();
    peers
        .register(Pickers::One(Arc::new(Dead)))
        .expect("the slot is empty");
    let tested = tested(peers, |group| group.max_concurrent_loads(2));
    let theirs = ["theirs 1", "theirs 2"].map(|key| {
        let call = tested.get(PATIENCE, key);
        (key == "theirs 1").then(|| assert_eq!(tested.begins(), key));
        call
    });
    tested.until_waiting(1);
    let own = tested.get(PATIENCE, "own");
    assert_eq!(tested.begins(), "own");
    tested.end(3);
    assert_eq!(tested.begins(), "theirs 2");
    for call in theirs.into_iter().chain([own]) {
        call.join().expect("no panic").expect("a value");
    }
}

#[test]
fn getters_that_wait_for_each_others_keys_do_not_block_the_group() {
    let nested: Arc<Mutex<Option<Group>>> = Arc::default();
    let (own, (begun, has_begun)) = (nested.clone(), mpsc::channel());
    let getter = getter_fn(move |_: &Context, key, dest| {
        if key == "child" {
            let group = own.lock().clone().expect("it is set");
            let _ = begun.send(());
            // The load of the parent waits for the only permit.
            until_waiting(&group, 1);
            group.get("parent")?;
        }
        Ok(dest.set_str(key)?)
    });
    let group = Group::builder("nested").max_concurrent_loads(1);
    let group = group.make(getter, PickerSlot::default());
    *nested.lock() = Some(group.clone());
    thread::scope(|scope| {
        let child = scope.spawn(|| group.get("child").map(drop));
        has_begun.recv_timeout(PATIENCE).expect("it begins");
        group.get("parent").expect("a value");
        child.join().expect("no panic").expect("a value");
    });
    assert_eq!(
        group.inner.permits.as_ref().expect("a limit").usage(),
        (0, 0)
    );
    *nested.lock() = None;
}

/// The results of calls by a getter whose permit another one took, which goes on only after them. Then the getter
/// goes on.
fn while_another_getter_hangs(
    max_load_wait: Duration,
    call: impl Fn(&Group) -> Vec<Result<ByteView>> + Send + Sync + 'static,
) -> Vec<Option<ErrorKind>> {
    let nested: Arc<Mutex<Option<Group>>> = Arc::default();
    let (own, (report, results)) = (nested.clone(), mpsc::channel());
    let (go_on, signal) = mpsc::channel();
    let signal = Mutex::new(signal);
    let getter = getter_fn(move |_: &Context, key, dest| {
        let group = own.lock().clone().expect("it is set");
        if key == "outer" {
            until_waiting(&group, 1);
            let _ = report.send(call(&group));
        } else {
            signal.lock().recv_timeout(PATIENCE)?;
        }
        Ok(dest.set_str(key)?)
    });
    let group = Group::builder("hangs").max_concurrent_loads(1);
    let group = group.max_load_wait(max_load_wait);
    let group = group.make(getter, PickerSlot::default());
    *nested.lock() = Some(group.clone());
    let results = thread::scope(|scope| {
        let outer = scope.spawn(|| group.get("outer"));
        let permits = group.inner.permits.as_ref().expect("a limit");
        eventually(|| permits.usage().0 == 1);
        let ctx = Context::background().with_timeout(PATIENCE);
        let hung = scope.spawn(|| group.get_with(&{ ctx }, "hung"));
        let results = results.recv_timeout(PATIENCE).expect("the calls end");
        go_on.send(()).expect("the getter waits");
        outer.join().expect("no panic").expect("a value");
        hung.join().expect("no panic").expect("a value");
        results
    });
    let permits = group.inner.permits.as_ref().expect("a limit");
    eventually(|| permits.usage() == (0, 0));
    *nested.lock() = None;
    let kind = |result: Result<_>| result.err().map(|error| error.kind());
    results.into_iter().map(kind).collect()
}

#[test]
fn calls_of_a_getter_wait_in_all_for_max_load_wait() {
    let wait = Duration::from_millis(500);
    let began = Instant::now();
    let results = while_another_getter_hangs(wait, |group| {
        let mut results = group.get_many(&Context::background(), &["1", "2", "3", "4"]);
        results.extend((5..40).map(|n| group.get(&n.to_string())));
        results
    });
    assert_eq!(results, [Some(ErrorKind::Overloaded); 39]);
    assert!(began.elapsed() < 20 * wait, "{:?}", began.elapsed());
}

#[test]
fn call_of_a_getter_ends_at_its_deadline() {
    let results = while_another_getter_hangs(PATIENCE, |group| {
        let ctx = Context::background().with_timeout(Duration::from_millis(30));
        vec![group.get_with(&ctx, "inner")]
    });
    assert_eq!(results, [Some(ErrorKind::DeadlineExceeded)]);
}

#[test]
fn keys_of_one_call_do_not_wait_one_after_the_other() {
    let getter = getter_fn(|_: &Context, key, dest| Ok(dest.set_str(key)?));
    let builder = Group::builder("many").max_concurrent_loads(1);
    let builder = builder.max_load_wait(Duration::from_millis(50));
    let group = builder.make(getter, PickerSlot::default());
    let permits = group.inner.permits.as_ref().expect("a limit");
    let taken = permits.try_acquire(LoadClass::Own).expect("it is free");
    let keys: Vec<String> = (0..64).map(|n| n.to_string()).collect();
    for result in group.get_many(&Context::background(), &keys) {
        assert_eq!(kind(result), ErrorKind::Overloaded);
    }
    // The caller and a loader thread may wait at the same time, for a key or two.
    assert!(permits.waits() <= 4, "{} waits", permits.waits());
    drop(taken);
    let results = group.get_many(&Context::background(), &keys);
    assert!(results.iter().all(Result::is_ok));
}
