//! The getter fails, panics, hangs, or takes longer than its callers wait.

use std::panic::resume_unwind;
use std::sync::{Arc, Barrier, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use larder::{BoxError, Context, ErrorKind, Group, Result, Sink};

use crate::cluster::{Node, Setup, assert_on_time, connect, lateness, wake_up_delay};
use crate::common::{
    Call, Count, Gate, PATIENCE, alone, eventually, kind, millis, seconds, start, timed, within,
};

/// Calls `get` on `threads` threads at the same time. Returns each result with the time when it came.
fn crowd<T: Send + 'static>(
    threads: usize,
    get: impl Fn(usize) -> T + Send + Sync + 'static,
) -> Vec<Call<(T, Instant)>> {
    let (together, get) = (Arc::new(Barrier::new(threads)), Arc::new(get));
    let call = |n| {
        let (together, get) = (together.clone(), get.clone());
        start(move || {
            together.wait();
            (get(n), Instant::now())
        })
    };
    (0..threads).map(call).collect()
}

#[test]
fn error_of_getter_at_owner_reaches_the_caller_typed_after_one_run() {
    let runs = Count::default();
    let counted = runs.clone();
    let getter = move |_: &Context, key: &str, dest: &mut dyn Sink| -> Result<(), BoxError> {
        counted.add(1);
        match key.split_once(' ') {
            Some(("mixes", _)) => Ok(dest.set_str(key)?),
            _ => Err("no paint left".into()),
        }
    };
    let nodes = [(); 3].map(|()| Setup::default().start(getter.clone()));
    connect(&nodes);
    let (owner, caller) = (&nodes[0], &nodes[1]);
    for n in 1..=10 {
        let key = caller.key_of(&owner.url, &format!("fails {n} "));
        let error = caller.group.get(&key).expect_err("no paint");
        let text = error.to_string();
        assert_eq!(
            (error.kind(), text.as_str()),
            (ErrorKind::Getter, "no paint left")
        );
        assert_eq!(runs.get(), n, "the getter ran once in the cluster");
    }
    // The owner counts as healthy: it is asked again, and no other node runs the getter.
    let key = caller.key_of(&owner.url, "mixes ");
    assert_eq!(caller.group.get(&key).expect("a value"), key.as_str());
    assert_eq!(caller.group.stats().peer_errors, 0);
    assert_eq!(owner.group.stats().local_loads, 1);
    assert_eq!(owner.group.stats().local_load_errs, 10);
}

#[test]
fn callers_of_a_panicking_getter_get_an_error_at_once_and_the_next_call_loads() {
    // Other programs use this machine, too: one of five rounds is enough.
    let is_on_time = (0..5).any(|_| lateness_after_a_panic() == Duration::ZERO);
    assert!(is_on_time, "the callers were late in all rounds");
}

/// The time by which the last caller exceeds the limit.
fn lateness_after_a_panic() -> Duration {
    const CALLERS: usize = 100;
    let control = wake_up_delay(CALLERS);
    let (gate, panicked) = (Gate::new(), Arc::new(Mutex::new(None)));
    let (end, noted, runs) = (gate.clone(), panicked.clone(), Count::default());
    let counted = runs.clone();
    let group = alone("panics")
        .build(move |_: &Context, key: &str, dest: &mut dyn Sink| {
            counted.add(1);
            if counted.get() == 1 {
                end.pass();
                *noted.lock().expect("no panic") = Some(Instant::now());
                resume_unwind(Box::new("a panic of the test"));
            }
            Ok(dest.set_str(key)?)
        })
        .expect("a group");
    // The first caller leads. Its load runs on a loader thread, because it has a deadline.
    let leader = start({
        let group = group.clone();
        move || (group.get_with(&within(PATIENCE), "key"), Instant::now())
    });
    eventually("the getter runs", || runs.get() > 0);
    let callers = crowd(CALLERS - 1, {
        let group = group.clone();
        move |n| match n % 2 {
            0 => group.get("key"),
            _ => group.get_with(&within(PATIENCE), "key"),
        }
    });
    // All of them have missed the store. After 20 ms, most wait for the load. A later one loads anew.
    eventually("all call", || group.stats().gets >= CALLERS as u64);
    thread::sleep(millis(20));
    gate.open();
    let mut results = vec![leader.end()];
    results.extend(callers.into_iter().map(Call::end));
    let panicked = panicked.lock().expect("no panic").expect("it panicked");
    let failed = results.iter().filter(|(result, _)| result.is_err());
    let latest = failed.clone().map(|(_, at)| *at - panicked).max();
    let control = control.max(wake_up_delay(CALLERS));
    let late = latest
        .expect("callers")
        .saturating_sub(millis(10) + 5 * control);
    assert!(failed.clone().count() >= CALLERS / 2);
    for (result, _) in failed {
        let error = result.as_ref().expect_err("a panic");
        assert_eq!(error.kind(), ErrorKind::GetterPanicked);
    }
    let next = start(move || group.get("key"));
    assert_eq!(next.end().expect("a value"), "key");
    assert_eq!(runs.get(), 2);
    if !late.is_zero() {
        eprintln!("late by {late:?}, control {control:?}");
    }
    late
}

#[test]
fn panic_of_getter_at_owner_is_a_typed_error_of_all_callers() {
    let runs = Count::default();
    let counted = runs.clone();
    let getter = move |_: &Context, key: &str, dest: &mut dyn Sink| -> Result<(), BoxError> {
        counted.add(1);
        if key.starts_with("panics") {
            resume_unwind(Box::new("a panic of the test"));
        }
        Ok(dest.set_str(key)?)
    };
    let nodes = [(); 2].map(|()| Setup::default().start(getter.clone()));
    connect(&nodes);
    let caller = &nodes[1];
    let key = caller.key_of(&nodes[0].url, "panics ");
    let group = caller.group.clone();
    let calls = crowd(10, move |_| kind(group.get(&key)));
    for call in calls {
        assert_eq!(call.end().0, ErrorKind::GetterPanicked);
    }
    assert!(runs.get() <= 10);
    let key = caller.key_of(&nodes[0].url, "fine ");
    assert_eq!(caller.group.get(&key).expect("a value"), key.as_str());
    assert_eq!(nodes[0].group.stats().local_loads, 1);
    assert_eq!(caller.group.stats().peer_errors, 0);
}

/// A group whose getter hangs until the gate opens, for keys that begin with `hangs`.
fn hanging(name: &str, threads: usize, gate: &Gate) -> (Group, Count) {
    let (end, hung) = (gate.clone(), Count::default());
    let counted = hung.clone();
    let group = alone(name)
        .max_loader_threads(threads)
        .build(move |_: &Context, key: &str, dest: &mut dyn Sink| {
            if key.starts_with("hangs") {
                counted.add(1);
                end.pass();
            }
            Ok(dest.set_str(key)?)
        })
        .expect("a group");
    (group, hung)
}

#[test]
fn hanging_getter_costs_one_thread_a_key_and_its_callers_leave_on_time() {
    const KEYS: usize = 4;
    let gate = Gate::new();
    let (group, hung) = hanging("hangs", KEYS, &gate);
    let (other, _) = hanging("other", KEYS, &gate);
    group.get("cached").expect("a value");
    let limit = millis(300);
    let asked = group.clone();
    let (late, callers) = lateness(limit, || {
        let callers = crowd(5 * KEYS, move |n| {
            let key = format!("hangs {}", n % KEYS);
            let (took, result) = timed(|| asked.get_with(&within(limit), &key));
            (kind(result), took)
        });
        eventually("the getters hang", || hung.get() >= KEYS as i64);
        callers
    });
    // The pool is full: another key is refused at once, not at the deadline.
    let (took, refused) = timed(|| group.get_with(&within(PATIENCE), "hangs too"));
    assert_eq!(kind(refused), ErrorKind::Overloaded);
    assert!(took < seconds(2), "{took:?}");
    // Everything that needs no thread of this pool goes on.
    assert_eq!(
        group.get_with(&within(limit), "cached").expect("a value"),
        "cached"
    );
    assert_eq!(group.get("another").expect("a value"), "another");
    assert_eq!(
        other.get_with(&within(PATIENCE), "key").expect("a value"),
        "key"
    );
    for call in callers {
        let ((kind, took), _) = call.end();
        assert_eq!(kind, ErrorKind::DeadlineExceeded);
        assert!(took >= limit, "{took:?}");
        assert_on_time(took, limit, late);
    }
    assert_eq!(hung.get(), KEYS as i64, "one thread a key");
    gate.open();
    eventually("the keys are loaded", || {
        group.get_with(&within(PATIENCE), "hangs too").is_ok()
    });
}

#[test]
fn owner_whose_getter_hangs_answers_other_keys() {
    let gate = Gate::new();
    let end = gate.clone();
    let getter = move |_: &Context, key: &str, dest: &mut dyn Sink| -> Result<(), BoxError> {
        if key.starts_with("hangs") {
            end.pass();
        }
        Ok(dest.set_str(key)?)
    };
    let nodes = [(); 2].map(|()| Setup::default().start(getter.clone()));
    connect(&nodes);
    let (owner, caller) = (&nodes[0], &nodes[1]);
    let limit = millis(300);
    let hang = |n| {
        let key = caller.key_of(&owner.url, &format!("hangs {n} "));
        get_by(&caller.group, &key, limit)
    };
    let (late, calls) = lateness(limit, || (0..8).map(hang).collect::<Vec<_>>());
    for n in 0..8 {
        let key = caller.key_of(&owner.url, &format!("fine {n} "));
        let value = caller.group.get_with(&within(PATIENCE), &key);
        assert_eq!(value.expect("a value"), key.as_str());
    }
    for call in calls {
        let (result, took) = call.end();
        assert_eq!(kind(result), ErrorKind::DeadlineExceeded);
        // The time-outs of the kernel's sockets are coarse.
        assert_on_time(took, limit * 5 / 4, late);
    }
    gate.open();
}

#[test]
fn leader_that_times_out_does_not_fail_its_followers() {
    let runs = Count::default();
    let counted = runs.clone();
    let load = millis(300);
    let getter = move |_: &Context, key: &str, dest: &mut dyn Sink| -> Result<(), BoxError> {
        counted.add(1);
        thread::sleep(load);
        Ok(dest.set_str(key)?)
    };
    let nodes = [(); 2].map(|()| Setup::default().start(getter.clone()));
    connect(&nodes);
    // First this process owns the key, and then a peer does.
    for owner in [&nodes[0], &nodes[1]] {
        runs.store(0);
        let group = &nodes[0].group;
        let key = nodes[0].key_of(&owner.url, "slow ");
        let (control, (leader, followers)) = lateness(millis(50), || {
            let leader = get_by(group, &key, millis(50));
            eventually("the getter runs", || runs.get() > 0);
            let followers: Vec<_> = (0..8).map(|_| get_by(group, &key, PATIENCE)).collect();
            (leader, followers)
        });
        let (result, took) = leader.end();
        assert_eq!(kind(result), ErrorKind::DeadlineExceeded);
        assert_on_time(took, millis(50), control);
        for follower in followers {
            assert_eq!(follower.end().0.expect("a value"), key.as_str());
        }
        assert!((1..=2).contains(&runs.get()), "{} runs", runs.get());
    }
}

fn get_by(group: &Group, key: &str, limit: Duration) -> Call<(Result<larder::ByteView>, Duration)> {
    let (group, key) = (group.clone(), key.to_owned());
    start(move || {
        let (took, result) = timed(|| group.get_with(&within(limit), &key));
        (result, took)
    })
}

#[test]
fn missing_key_at_owner_is_not_found_after_one_load() {
    let runs = Count::default();
    let counted = runs.clone();
    let getter = move |_: &Context, _: &str, _: &mut dyn Sink| -> Result<(), BoxError> {
        counted.add(1);
        Err(larder::Error::not_found("no such color").into())
    };
    let nodes: [Node; 3] = [(); 3].map(|()| Setup::default().start(getter.clone()));
    connect(&nodes);
    let key = nodes[1].key_of(&nodes[0].url, "none ");
    let error = nodes[1].group.get(&key).expect_err("there is none");
    assert!(error.is_not_found());
    assert_eq!(error.to_string(), "no such color");
    assert_eq!((runs.get(), nodes[1].group.stats().peer_errors), (1, 0));
}
