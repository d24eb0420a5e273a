//! The thread that runs a load, the limit of loader threads, and threads that are ending.

use std::cell::RefCell;
use std::sync::mpsc::channel;

use larder::{Context, ErrorKind, Group, PeerResponse};

use crate::common::*;

#[test]
fn group_name_with_nul_is_valid() {
    let group = alone("nul\0name").build(echo().0).expect("a new group");
    let value = group.get_with(&within(PATIENCE), "key");
    assert_eq!(value.expect("a value"), "ECHO:key");
}

#[test]
fn one_loader_thread_serves_one_caller() {
    let group = alone("one-thread")
        .max_capacity(0)
        .max_loader_threads(1)
        .build(echo().0)
        .expect("a new group");
    for n in 0..2000 {
        let value = group.get_with(&within(PATIENCE), "key");
        assert_eq!(value.map_err(|e| (n, e)).expect("a value"), "ECHO:key");
    }
}

#[test]
fn caller_without_deadline_is_never_overloaded() {
    let (asked, answer) = (Gate::new(), Gate::new());
    let peer = {
        let (asked, answer) = (asked.clone(), answer.clone());
        FakePeer::punctual(move |_, _| {
            asked.open();
            answer.pass();
            Err(ErrorKind::Peer.into())
        })
    };
    let hung = Gate::new();
    let getter = {
        let hung = hung.clone();
        larder::getter_fn(move |_: &Context, key, dest| {
            if key == "hung" {
                hung.pass();
            }
            Ok(dest.set_str(key)?)
        })
    };
    let picker = picker(move |key, attempt| {
        let peer = peer.clone();
        (key != "hung" && attempt == 0).then_some(peer as _)
    });
    let group = among("busy", picker)
        .max_loader_threads(1)
        .build(getter)
        .expect("a new group");
    // The only loader thread is busy.
    let short = group.get_with(&within(millis(1)), "hung");
    assert_eq!(kind(short), ErrorKind::DeadlineExceeded);
    let call = |ctx: Context| {
        let group = group.clone();
        start(move || group.get_with(&ctx, "key"))
    };
    let bounded = call(within(PATIENCE));
    asked.pass();
    let patient = call(Context::background());
    // The expectations hold whether or not the call has joined the load by then.
    eventually("the call misses", || group.stats().loads == 3);
    answer.open();
    assert_eq!(kind(bounded.end()), ErrorKind::Overloaded);
    assert_eq!(patient.end().expect("a value"), "key");
    hung.open();
}

#[test]
fn replica_that_ignores_deadlines_is_skipped() {
    let never = Gate::new();
    let owner = FakePeer::punctual(|_, _| Err(ErrorKind::Peer.into()));
    let successor = {
        let never = never.clone();
        FakePeer::new(move |_, _| {
            never.pass();
            Ok(PeerResponse::new("late"))
        })
    };
    let group = among("unpunctual", all_keys_at(&[&owner, &successor]))
        .build(echo().0)
        .expect("a new group");
    let (took, value) = timed(|| group.get_with(&within(millis(200)), "key"));
    never.open();
    assert!(took < seconds(5), "{took:?}");
    assert_eq!(value.expect("loaded here"), "ECHO:key");
}

#[test]
fn overload_of_the_owner_is_the_answer() {
    let owner = FakePeer::failing(ErrorKind::Overloaded, "no thread left");
    let (getter, loads) = echo();
    let group = among("overloaded-peer", all_keys_at(&[&owner]))
        .build(getter)
        .expect("a new group");
    assert_eq!(kind(group.get("key")), ErrorKind::Overloaded);
    assert_eq!(group.stats().peer_errors, 0);
    assert_eq!(loads.get(), 0);
}

#[test]
fn key_is_loaded_here_after_timeout_of_peer() {
    for failure in [
        ErrorKind::DeadlineExceeded,
        ErrorKind::Cancelled,
        ErrorKind::Io,
    ] {
        let owner = FakePeer::failing(failure, "busy with itself");
        let group = among("busy-peer", all_keys_at(&[&owner]))
            .build(echo().0)
            .expect("a new group");
        assert_eq!(group.get("key").expect("loaded here"), "ECHO:key");
        assert_eq!(group.stats().peer_errors, 1);
    }
}

thread_local! {
    static AT_THE_END: RefCell<Option<Last>> = const { RefCell::new(None) };
}

/// Gets a value when its thread ends.
struct Last(Group, std::sync::mpsc::Sender<bool>);

impl Drop for Last {
    fn drop(&mut self) {
        let value = self.0.get("at the end");
        let _ = self
            .1
            .send(value.is_ok_and(|value| value == "ECHO:at the end"));
    }
}

#[test]
fn thread_can_load_while_its_thread_locals_are_dropped() {
    for load_before in [true, false] {
        for load_after in [true, false] {
            let group = alone("last").max_capacity(0).build(echo().0).expect("new");
            let (send, receive) = channel();
            let thread = std::thread::spawn(move || {
                if load_before {
                    group.get("before").expect("a value");
                }
                AT_THE_END.set(Some(Last(group.clone(), send)));
                if load_after {
                    group.get("after").expect("a value");
                }
            });
            thread.join().expect("no panic");
            assert_eq!(receive.recv_timeout(PATIENCE), Ok(true));
        }
    }
}
