//! How long a group waits for the owner of a key: alive and loading, silent, or overloaded.

use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use larder::{Context, ErrorKind, Group, PeerResponse, ProtoGetter, Result, getter_fn};

use crate::common::*;

/// A peer that answers that it is loading, `times` in turn, and then with a value.
fn loading(times: i64) -> Arc<FakePeer> {
    let asked = Count::default();
    FakePeer::punctual(move |_, key| match asked.add(1) {
        () if asked.get() <= times => Err(ErrorKind::Loading.into()),
        () => Ok(PeerResponse::new(format!("loaded {key}"))),
    })
}

/// A peer that is silent until the time that it gets is over, and records that time.
fn silent() -> (Arc<FakePeer>, Arc<Mutex<Vec<Duration>>>) {
    let times: Arc<Mutex<Vec<Duration>>> = Arc::default();
    let noted = times.clone();
    let peer = FakePeer::punctual(move |ctx, _| {
        let left = ctx.remaining().expect("a deadline");
        noted.lock().expect("no panic").push(left);
        std::thread::sleep(left);
        Err(ErrorKind::DeadlineExceeded.into())
    });
    (peer, times)
}

fn group(peers: &[&Arc<FakePeer>]) -> (Group, Count) {
    let (getter, loads) = echo();
    let group = among("patience", all_keys_at(peers))
        .max_load_wait(seconds(20))
        .build(getter)
        .expect("a group");
    (group, loads)
}

#[test]
fn owner_that_is_loading_is_asked_again_and_nothing_is_loaded_elsewhere() {
    for ctx in [Context::background(), within(PATIENCE)] {
        let (owner, next) = (loading(5), FakePeer::echo());
        let (group, loads) = group(&[&owner, &next]);
        assert_eq!(group.get_with(&ctx, "key").expect("a value"), "loaded key");
        assert_eq!((owner.calls(), next.calls(), loads.get()), (6, 0, 0));
        let stats = group.stats();
        assert_eq!((stats.peer_loads, stats.peer_errors), (1, 0));
    }
}

#[test]
fn caller_of_a_loading_owner_returns_at_its_deadline() {
    let (owner, next) = (loading(i64::MAX), FakePeer::echo());
    let (group, loads) = group(&[&owner, &next]);
    let limit = millis(50);
    let (took, result) = timed(|| group.get_with(&within(limit), "key"));
    assert_eq!(kind(result), ErrorKind::DeadlineExceeded);
    assert!(took >= limit - millis(2), "{took:?}");
    assert_eq!((next.calls(), loads.get()), (0, 0));
    // The pause between two requests is a millisecond at least.
    assert!(owner.calls() <= 60, "{}", owner.calls());
}

#[test]
fn owner_counts_as_failed_when_the_load_wait_is_over() {
    let (owner, next) = (
        loading(i64::MAX),
        FakePeer::failing(ErrorKind::Peer, "dead"),
    );
    let (getter, loads) = echo();
    let group = among("load-wait", all_keys_at(&[&owner, &next]))
        .max_load_wait(millis(20))
        .build(getter)
        .expect("a group");
    assert_eq!(group.get("key").expect("loaded here"), "ECHO:key");
    assert_eq!((next.calls(), loads.get()), (1, 1));
    assert_eq!(group.stats().peer_errors, 2);
}

/// Getters of several processes that wait for each other's keys would otherwise wait once a key.
#[test]
fn calls_of_a_getter_wait_for_loading_owners_only_once() {
    const DEPTH: i64 = 20;
    let owner = loading(i64::MAX);
    let own: Arc<OnceLock<Group>> = Arc::default();
    let itself = own.clone();
    let group = among("nested", all_keys_at(&[&owner]))
        .max_load_wait(millis(200))
        .build(getter_fn(move |_, key, dest| {
            let n: i64 = key.parse()?;
            if n < DEPTH {
                let group = itself.get().expect("it is set");
                group.get(&(n + 1).to_string())?;
            }
            Ok(dest.set_str(key)?)
        }))
        .expect("a group");
    own.set(group.clone()).expect("once");
    assert_eq!(group.get("1").expect("a value"), "1");
    // Each pause between two requests is a millisecond at least.
    assert!(owner.calls() <= 220 + DEPTH, "{}", owner.calls());
    // The next get of this thread waits again.
    let before = owner.calls();
    group.get(&DEPTH.to_string()).expect("it is cached");
    group.get(&(DEPTH + 1).to_string()).expect("a value");
    assert!(owner.calls() > before + 1);
}

#[test]
fn silent_owner_gets_half_of_the_time_if_there_is_a_next_peer() {
    let limit = millis(400);
    let (owner, times) = silent();
    let next = FakePeer::punctual(|_, _| Ok(PeerResponse::new("the successor's")));
    let (with_next, _) = group(&[&owner, &next]);
    let value = with_next.get_with(&within(limit), "key");
    assert_eq!(value.expect("in time"), "the successor's");
    let (alone, _) = group(&[&owner]);
    let result = alone.get_with(&within(limit), "key");
    assert_eq!(kind(result), ErrorKind::DeadlineExceeded);
    let times = times.lock().expect("no panic");
    assert!(times[0] <= limit / 2 && times[1] > limit / 2, "{times:?}");
}

/// Fails every request, and counts batches and single requests.
#[derive(Default)]
struct Dead {
    batches: Count,
    singles: Count,
}

impl ProtoGetter for Dead {
    fn get(&self, _: &Context, _: &larder::pb::GetRequest<'_>) -> Result<PeerResponse> {
        self.singles.add(1);
        Err(ErrorKind::Peer.into())
    }

    fn get_many(&self, _: &Context, _: &str, _: &[&str]) -> Result<Vec<Option<PeerResponse>>> {
        self.batches.add(1);
        Err(ErrorKind::Peer.into())
    }

    fn honors_deadline(&self) -> bool {
        true
    }
}

#[test]
fn failed_batch_is_not_repeated_key_by_key() {
    for ctx in [Context::background(), within(PATIENCE)] {
        let (owner, next) = (Arc::new(Dead::default()), Arc::new(Dead::default()));
        let peers: [Arc<dyn ProtoGetter>; 2] = [owner.clone(), next.clone()];
        let (getter, loads) = echo();
        let group = among(
            "batch",
            picker(move |_, attempt| peers.get(attempt).cloned()),
        )
        .build(getter)
        .expect("a group");
        let keys: Vec<String> = (0..12).map(|n| format!("key-{n}")).collect();
        for (key, value) in keys.iter().zip(group.get_many(&ctx, &keys)) {
            assert_eq!(value.expect("loaded here"), format!("ECHO:{key}").as_str());
        }
        assert_eq!((owner.batches.get(), owner.singles.get()), (1, 0));
        assert_eq!((next.batches.get(), next.singles.get()), (0, 1));
        assert_eq!(loads.get(), 12);
        assert_eq!(group.stats().peer_errors, 2);
    }
}

#[test]
fn single_keys_of_silent_owners_are_asked_for_at_the_same_time() {
    let both = Arc::new(std::sync::Barrier::new(2));
    let owner = || {
        let both = both.clone();
        FakePeer::punctual(move |_, _| {
            both.wait();
            Err(ErrorKind::Peer.into())
        })
    };
    let owners = [owner(), owner()];
    let pick = owners.clone();
    let (getter, loads) = echo();
    let group = among(
        "singles",
        picker(move |key, attempt| {
            let owner = pick[usize::from(key == "b")].clone();
            (attempt == 0).then_some(owner as Arc<dyn ProtoGetter>)
        }),
    )
    .build(getter)
    .expect("a group");
    let values = group.get_many(&Context::background(), &["a", "b"]);
    assert!(values.into_iter().all(|value| value.is_ok()));
    assert_eq!((owners[0].calls(), owners[1].calls()), (1, 1));
    assert_eq!(loads.get(), 2);
}

#[test]
fn own_keys_are_loaded_before_an_owner_is_waited_for() {
    for cancellable in [false, true] {
        let own_loads = Count::default();
        let (owner_saw, counted) = (Arc::new(Mutex::new(None)), own_loads.clone());
        let saw = owner_saw.clone();
        let owner = FakePeer::punctual(move |_, key| {
            let _ = saw.lock().expect("no panic").get_or_insert(counted.get());
            Ok(PeerResponse::new(key))
        });
        let loads = own_loads.clone();
        let group = among(
            "own-first",
            picker(move |key, attempt| {
                let is_remote = key.starts_with("far") && attempt == 0;
                is_remote.then(|| owner.clone() as Arc<dyn ProtoGetter>)
            }),
        )
        .build(getter_fn(move |_, key, dest| {
            loads.add(1);
            Ok(dest.set_str(key)?)
        }))
        .expect("a group");
        let (with_cancel, _keep) = Context::background().with_cancel();
        let ctx = if cancellable {
            with_cancel
        } else {
            Context::background()
        };
        let keys = ["far 1", "own 1", "far 2", "own 2"];
        for (key, value) in keys.iter().zip(group.get_many(&ctx, &keys)) {
            assert_eq!(value.expect("a value"), *key);
        }
        assert_eq!(*owner_saw.lock().expect("no panic"), Some(2));
    }
}

/// Each key is fetched on one loader thread, also where the getter runs in place of the owner.
#[test]
fn keys_of_a_cancellable_caller_take_one_loader_thread_each() {
    for is_up in [true, false] {
        let owner = FakePeer::punctual(move |_, key| match is_up {
            true => Ok(PeerResponse::new(format!("ECHO:{key}"))),
            false => Err(ErrorKind::Peer.into()),
        });
        let group = among("few threads", all_keys_at(&[&owner]))
            .max_loader_threads(2)
            .build(echo().0)
            .expect("a group");
        let (ctx, _keep) = Context::background().with_cancel();
        let keys: Vec<String> = (0..8).map(|n| format!("key-{n}")).collect();
        for (key, value) in keys.iter().zip(group.get_many(&ctx, &keys)) {
            assert_eq!(value.expect("a value"), format!("ECHO:{key}").as_str());
        }
    }
}
