//! Sets, removals and clears are sent to all peers, and the peers that did not confirm one are named.

use std::sync::{Arc, Barrier, Mutex};
use std::thread;

use larder::pb::{ClearRequest, GetRequest, RemoveKeysRequest, SetRequest};
use larder::{
    Context, Error, ErrorKind, Group, PeerPicker, PeerResponse, ProtoGetter, RemovalCause, Result,
    SetOptions, getter_fn,
};

use crate::common::*;

type Answer = dyn Fn(&Context) -> Result<()> + Send + Sync;

/// A peer that records the changes that it receives.
struct RecordingPeer {
    name: &'static str,
    changes: Mutex<Vec<String>>,
    answer: Box<Answer>,
    honors_deadline: bool,
}

fn peer(
    name: &'static str,
    answer: impl Fn(&Context) -> Result<()> + Send + Sync + 'static,
) -> Arc<RecordingPeer> {
    Arc::new(RecordingPeer {
        name,
        changes: Mutex::default(),
        answer: Box::new(answer),
        honors_deadline: true,
    })
}

impl RecordingPeer {
    fn note(&self, ctx: &Context, change: String) -> Result<()> {
        self.changes.lock().expect("no panic").push(change);
        (self.answer)(ctx)
    }

    fn changes(&self) -> Vec<String> {
        self.changes.lock().expect("no panic").clone()
    }
}

impl ProtoGetter for RecordingPeer {
    fn get(&self, _: &Context, request: &GetRequest<'_>) -> Result<PeerResponse> {
        Ok(PeerResponse::new(&*request.key))
    }

    fn remove(&self, ctx: &Context, request: &RemoveKeysRequest<'_>) -> Result<()> {
        assert_eq!(request.group, "changes");
        // The group may drop a value that could be older than a removal.
        if request.removal_id == Some(0) {
            return Ok(());
        }
        self.note(ctx, format!("remove {}", request.keys.join(",")))
    }

    fn set(&self, ctx: &Context, request: &SetRequest<'_>) -> Result<()> {
        let value = request.value.as_deref().unwrap_or_default();
        let ttl = request
            .ttl_nanos
            .map_or(String::new(), |ttl| format!(" for {ttl}"));
        let value = String::from_utf8_lossy(value);
        self.note(ctx, format!("set {} {value}{ttl}", request.key))
    }

    fn clear(&self, ctx: &Context, _: &ClearRequest<'_>) -> Result<()> {
        self.note(ctx, "clear".into())
    }

    fn url(&self) -> String {
        self.name.into()
    }

    fn honors_deadline(&self) -> bool {
        self.honors_deadline
    }
}

/// The peer that owns the keys that begin with its name.
struct Peers(Vec<Arc<RecordingPeer>>);

impl PeerPicker for Peers {
    fn pick_peer(&self, key: &str) -> Option<Arc<dyn ProtoGetter>> {
        let owner = self.0.iter().find(|peer| key.starts_with(peer.name))?;
        Some(owner.clone())
    }

    fn all_peers(&self) -> Vec<Arc<dyn ProtoGetter>> {
        let peers = self.0.iter();
        peers
            .map(|peer| peer.clone() as Arc<dyn ProtoGetter>)
            .collect()
    }
}

fn group(peers: &[&Arc<RecordingPeer>]) -> Group {
    let picker = Peers(peers.iter().map(|&peer| peer.clone()).collect());
    let group = among("changes", Arc::new(picker)).build(echo().0);
    group.expect("a group")
}

#[test]
fn removal_is_sent_to_all_peers_and_applied_here() {
    let (a, b) = (peer("a", |_| Ok(())), peer("b", |_| Ok(())));
    let group = group(&[&a, &b]);
    for key in ["a1", "own"] {
        group.get(key).expect("a value");
        group.remove(&background(), key).expect("confirmed");
        assert!(!group.contains_key(key));
    }
    group.get("own").expect("a value");
    group
        .remove_many(&background(), &["own", "a2", "b1"])
        .expect("confirmed");
    assert!(!group.contains_key("own"));
    group.get("own").expect("a value");
    group.clear(&background()).expect("confirmed");
    assert!(!group.contains_key("own"));
    for peer in [&a, &b] {
        assert_eq!(
            peer.changes(),
            ["remove a1", "remove own", "remove own,a2,b1", "clear"]
        );
    }
}

/// A peer has not applied a removal before it has applied all of its keys.
#[test]
fn removals_of_many_keys_have_a_number_for_each_request() {
    struct Counting(Mutex<Vec<(Option<u64>, usize)>>);
    impl ProtoGetter for Counting {
        fn get(&self, _: &Context, _: &GetRequest<'_>) -> Result<PeerResponse> {
            Err(ErrorKind::Peer.into())
        }

        fn remove(&self, _: &Context, request: &RemoveKeysRequest<'_>) -> Result<()> {
            let request = (request.removal_id, request.keys.len());
            self.0.lock().expect("no panic").push(request);
            Ok(())
        }
    }
    struct One(Arc<Counting>);
    impl PeerPicker for One {
        fn pick_peer(&self, _: &str) -> Option<Arc<dyn ProtoGetter>> {
            None
        }

        fn all_peers(&self) -> Vec<Arc<dyn ProtoGetter>> {
            vec![self.0.clone()]
        }
    }
    let peer = Arc::new(Counting(Mutex::default()));
    let group = among("changes", Arc::new(One(peer.clone())));
    let group = group.build(echo().0).expect("a group");
    let remove = |keys: &[String]| {
        group.remove_many(&background(), keys).expect("confirmed");
        std::mem::take(&mut *peer.0.lock().expect("no panic"))
    };
    let short: Vec<String> = (0..10_000).map(|n| format!("{:02}", n % 100)).collect();
    let long: Vec<String> = (0..10).map(|n| n.to_string().repeat(3000)).collect();
    for (keys, want) in [(short, vec![4096, 4096, 1808]), (long, vec![3, 3, 3, 1])] {
        let (numbers, lens): (Vec<_>, Vec<_>) = remove(&keys).into_iter().unzip();
        assert_eq!(lens, want);
        assert!(numbers.is_sorted_by(|one, next| one < next), "{numbers:?}");
    }
    assert_eq!(remove(&[]), []);
}

#[test]
fn changes_are_sent_to_the_peers_at_the_same_time() {
    for ctx in [background(), within(PATIENCE)] {
        let together = Arc::new(Barrier::new(4));
        let waits = |name| {
            let together = together.clone();
            peer(name, move |_| {
                together.wait();
                Ok(())
            })
        };
        let peers = ["a", "b", "c", "d"].map(waits);
        let group = group(&peers.each_ref());
        start(move || group.remove(&ctx, "key"))
            .end()
            .expect("confirmed");
    }
}

#[test]
fn peers_that_fail_are_named_and_the_others_get_the_change() {
    let down = |name| {
        peer(name, |_| {
            Err(Error::new(ErrorKind::Peer, "connection refused"))
        })
    };
    let (a, b, c) = (down("a"), peer("b", |_| Ok(())), down("c"));
    let group = group(&[&a, &b, &c]);
    let changes: [&dyn Fn() -> Result<()>; 4] = [
        &|| group.remove(&background(), "a1"),
        &|| group.remove_many(&background(), &["a1", "b1"]),
        &|| group.clear(&background()),
        &|| group.set(&background(), "b2", "new", SetOptions::new()),
    ];
    for (n, change) in changes.into_iter().enumerate() {
        group.get("a1").expect("a value");
        let error = change().expect_err("two peers are down");
        assert_eq!(error.kind(), ErrorKind::Partial);
        let mut failed = error.partial().expect("the peers").failed.clone();
        failed.sort_by(|one, other| one.peer.cmp(&other.peer));
        let names: Vec<_> = failed.iter().map(|failed| &failed.peer[..]).collect();
        assert_eq!(names, ["a", "c"]);
        assert_eq!(failed[0].error.kind(), ErrorKind::Peer);
        assert_eq!(b.changes().len(), n + 1, "it got the change");
        // The peers report no ages, so their values are not kept so soon after a removal.
        assert!(!group.contains_key("a1"), "it is done here");
    }
}

#[test]
fn all_peers_get_a_change_whose_listener_panics() {
    let [a, b] = ["a", "b"].map(|name| peer(name, |_| Ok(())));
    let picker = Arc::new(Peers(vec![a.clone(), b.clone()]));
    let group = among("changes", picker)
        .eviction_listener(|_, _, _| std::panic::resume_unwind(Box::new("in the listener")))
        .build(echo().0)
        .expect("a group");
    let load = || ["own", "a1"].map(|key| group.get(key).expect("a value"));
    let set = |key: &str| group.set(&background(), key, "new", SetOptions::new());
    let remove = |key: &str| group.remove(&background(), key);
    let changes: [(&dyn Fn() -> Result<()>, _, _); 4] = [
        (&|| set("own"), "remove own", "remove own"),
        (&|| set("a1"), "set a1 new", "remove a1"),
        (&|| remove("own"), "remove own", "remove own"),
        (&|| remove("other"), "remove other", "remove other"),
    ];
    load();
    for (change, to_a, to_b) in changes {
        let panics = std::panic::catch_unwind(std::panic::AssertUnwindSafe(change)).is_err();
        assert_eq!(panics, to_a != "remove other", "{to_a}");
        for (peer, last) in [(&a, to_a), (&b, to_b)] {
            assert_eq!(peer.changes().last().map(|change| &**change), Some(last));
        }
    }
}

/// Environment variable that is set in the child process.
#[cfg(target_os = "linux")]
const CHILD: &str = "LARDER_TEST_NO_THREADS";

/// The test runs itself in a child process, in which no thread can start, because the stacks are too large.
#[cfg(target_os = "linux")]
#[test]
fn all_peers_get_a_clear_whose_listener_panics_on_this_thread() {
    if std::env::var_os(CHILD).is_some() {
        return clear_without_threads();
    }
    let name = "changes::all_peers_get_a_clear_whose_listener_panics_on_this_thread";
    // This is most of the address space, whatever the size of a word.
    let stack = (usize::MAX / 16 * 13).to_string();
    let output = std::process::Command::new(std::env::current_exe().expect("a path"))
        .args(["--test-threads=1", "--exact", name])
        .envs([(CHILD, "1"), ("RUST_MIN_STACK", &*stack)])
        .output()
        .expect("a process");
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{stdout}");
    assert!(stdout.contains("1 passed"), "{stdout}");
}

#[cfg(target_os = "linux")]
fn clear_without_threads() {
    let [a, b] = ["a", "b"].map(|name| peer(name, |_| Ok(())));
    let group = among("changes", Arc::new(Peers(vec![a.clone(), b.clone()])))
        .eviction_listener(|_, _, _| std::panic::resume_unwind(Box::new("in the listener")))
        .build(echo().0)
        .expect("a group");
    group.get("own").expect("a value");
    let clear = || group.clear(&background());
    let panics = std::panic::catch_unwind(std::panic::AssertUnwindSafe(clear)).is_err();
    assert!(panics, "the sweep runs on this thread");
    assert_eq!(
        (a.changes(), b.changes()),
        (vec!["clear".into()], vec!["clear".into()])
    );
}

#[test]
fn hung_peer_is_named_at_the_deadline() {
    for honors_deadline in [true, false] {
        let gate = Gate::new();
        let hung = {
            let gate = gate.clone();
            Arc::new(RecordingPeer {
                name: "hung",
                changes: Mutex::default(),
                answer: Box::new(move |ctx: &Context| match ctx.remaining() {
                    Some(left) if honors_deadline => {
                        thread::sleep(left);
                        Err(ErrorKind::Peer.into())
                    }
                    _ => {
                        gate.pass();
                        Ok(())
                    }
                }),
                honors_deadline,
            })
        };
        let up = peer("up", |_| Ok(()));
        let group = group(&[&hung, &up]);
        let (took, result) = timed(|| group.remove(&within(millis(50)), "key"));
        let error = result.expect_err("one hangs");
        let failed = &error.partial().expect("the peers").failed;
        assert_eq!((failed.len(), &failed[0].peer[..]), (1, "hung"));
        assert!(took >= millis(50) && took < PATIENCE, "{took:?}");
        assert_eq!(up.changes(), ["remove key"]);
        gate.open();
    }
}

#[test]
fn cancelled_removal_returns() {
    let gate = Gate::new();
    let hung = {
        let gate = gate.clone();
        peer("hung", move |_| {
            gate.pass();
            Ok(())
        })
    };
    let group = group(&[&hung]);
    let (ctx, canceller) = background().with_cancel();
    let removing = start(move || group.remove(&ctx, "key"));
    eventually("the peer got the removal", || hung.changes().len() == 1);
    canceller.cancel();
    let error = removing.end().expect_err("it was cancelled");
    let failed = &error.partial().expect("the peers").failed;
    assert_eq!(failed[0].error.kind(), ErrorKind::Cancelled);
    gate.open();
}

#[test]
fn peer_that_panics_does_not_hold_up_a_removal_that_can_be_cancelled() {
    let panics = |_: &Context| std::panic::resume_unwind(Box::new("in the peer"));
    let (a, b) = (peer("a", panics), peer("b", |_| Ok(())));
    let group = group(&[&a, &b]);
    let (ctx, canceller) = background().with_cancel();
    let removing = start(move || group.remove(&ctx, "key"));
    let error = removing.end().expect_err("a peer panicked");
    let failed = &error.partial().expect("the peers").failed;
    assert_eq!((failed.len(), &*failed[0].peer), (1, "a"));
    assert_eq!(failed[0].error.kind(), ErrorKind::Peer);
    drop(canceller);
}

#[test]
fn change_after_the_deadline_or_of_a_long_key_changes_nothing() {
    let a = peer("a", |_| Ok(()));
    let group = group(&[&a]);
    group.get("own").expect("a value");
    let over = within(millis(0));
    let long = "k".repeat(100_000);
    let options = SetOptions::new();
    let large = vec![0; 100 << 20];
    for (result, want) in [
        (group.remove(&over, "own"), ErrorKind::DeadlineExceeded),
        (group.clear(&over), ErrorKind::DeadlineExceeded),
        (
            group.set(&over, "own", "x", options),
            ErrorKind::DeadlineExceeded,
        ),
        (
            group.remove_many(&background(), &["own", &long]),
            ErrorKind::KeyTooLong,
        ),
        (
            group.set(&background(), &long, "x", options),
            ErrorKind::KeyTooLong,
        ),
        (
            group.set(&background(), "own", large, options),
            ErrorKind::ValueTooLarge,
        ),
    ] {
        assert_eq!(kind(result), want);
    }
    assert_eq!(group.peek("own"), Some("ECHO:own".into()));
    assert!(a.changes().is_empty());
}

#[test]
fn set_goes_to_the_owner_and_then_removals_to_the_others() {
    let order = Arc::new(Mutex::new(Vec::new()));
    let noting = |name| {
        let order = order.clone();
        peer(name, move |_| {
            order.lock().expect("no panic").push(name);
            Ok(())
        })
    };
    let (a, b) = (noting("a"), noting("b"));
    let group = group(&[&a, &b]);
    group.get("b1").expect("a value");
    let options = SetOptions::new().expire_in(seconds(9));
    group
        .set(&background(), "b1", "new", options)
        .expect("confirmed");
    assert_eq!(b.changes(), ["set b1 new for 9000000000"]);
    assert_eq!(a.changes(), ["remove b1"]);
    assert_eq!(*order.lock().expect("no panic"), ["b", "a"]);
    assert!(!group.contains_key("b1"), "the copy here is dropped");

    group
        .set(&background(), "own", "new", options)
        .expect("confirmed");
    assert_eq!(group.peek("own"), Some("new".into()));
    assert_eq!(b.changes().last().map(String::as_str), Some("remove own"));
}

#[test]
fn set_with_an_owner_that_fails_changes_nothing_elsewhere() {
    let a = peer("a", |_| Ok(()));
    let down = peer("b", |_| {
        Err(Error::new(ErrorKind::Peer, "connection refused"))
    });
    let group = group(&[&a, &down]);
    group.get("b1").expect("a value");
    let result = group.set(&background(), "b1", "new", SetOptions::new());
    assert_eq!(kind(result), ErrorKind::Peer);
    assert!(a.changes().is_empty());
    assert_eq!(group.peek("b1"), Some("b1".into()), "the copy here stays");
}

#[test]
fn peer_without_removals_is_unsupported() {
    let group = among("plain", all_keys_at(&[&FakePeer::echo()]));
    let group = group.build(echo().0).expect("a group");
    let error = group
        .remove(&background(), "key")
        .expect_err("it has no removal");
    let failed = &error.partial().expect("the peers").failed;
    assert_eq!(failed[0].error.kind(), ErrorKind::Unsupported);
    let result = group.set(&background(), "key", "new", SetOptions::new());
    assert_eq!(kind(result), ErrorKind::Unsupported);
}

#[test]
fn set_value_is_not_replaced_by_a_load_under_way() {
    let (gate, begun) = (Gate::new(), Gate::new());
    let getter = {
        let (gate, begun) = (gate.clone(), begun.clone());
        getter_fn(move |_, _, dest| {
            begun.open();
            gate.pass();
            Ok(dest.set_str("loaded")?)
        })
    };
    let group = alone("set").build(getter).expect("a group");
    let loading = {
        let group = group.clone();
        start(move || group.get("key"))
    };
    begun.pass();
    group
        .set(&background(), "key", "set", SetOptions::new())
        .expect("alone");
    assert_eq!(
        group.get("key").expect("a value"),
        "set",
        "it joins no load"
    );
    gate.open();
    assert_eq!(loading.end().expect("a value"), "loaded");
    assert_eq!(group.peek("key"), Some("set".into()));
    assert_eq!(group.entry_count(), 1);
}

#[test]
fn set_value_expires_and_replaces_the_old_one() {
    let clock = larder::Clock::manual();
    let left = Arc::new(Mutex::new(Vec::new()));
    let theirs = left.clone();
    let group = alone("set")
        .clock(clock.clone())
        .eviction_listener(move |_, value, cause| {
            theirs.lock().expect("no panic").push((value, cause));
        })
        .build(echo().0)
        .expect("a group");
    group.get("key").expect("a value");
    let options = SetOptions::new().expire_in(seconds(5));
    group
        .set(&background(), "key", "new", options)
        .expect("alone");
    let replaced = ("ECHO:key".into(), RemovalCause::Replaced);
    assert_eq!(*left.lock().expect("no panic"), [replaced]);
    clock.advance(seconds(4));
    assert_eq!(group.peek("key"), Some("new".into()));
    clock.advance(seconds(1));
    assert_eq!(group.peek("key"), None);
    group
        .set(
            &background(),
            "key",
            "x",
            SetOptions::new().expire_in(seconds(0)),
        )
        .expect("alone");
    assert_eq!(group.peek("key"), None, "its time is over");
}

#[test]
fn group_that_keeps_nothing_can_be_set_and_cleared() {
    let group = alone("off")
        .max_capacity(0)
        .build(echo().0)
        .expect("a group");
    group
        .set(&background(), "key", "new", SetOptions::new())
        .expect("alone");
    assert_eq!(group.get("key").expect("a value"), "ECHO:key");
    group.clear(&background()).expect("alone");
}

#[test]
fn entries_of_a_clear_are_dropped_on_another_thread() {
    let count = Count::default();
    let (counted, caller) = (count.clone(), thread::current().id());
    let group = alone("cleared")
        .eviction_listener(move |_, _, cause| {
            assert_eq!(cause, RemovalCause::Explicit);
            assert_ne!(thread::current().id(), caller);
            counted.add(1);
        })
        .build(echo().0)
        .expect("a group");
    for n in 0..1000 {
        group.get(&n.to_string()).expect("a value");
    }
    group.clear(&background()).expect("alone");
    assert_eq!(group.entry_count(), 0);
    eventually("all are reported", || count.get() == 1000);
}
