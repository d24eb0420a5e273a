//! Sinks, messages and errors that panic or call the group.

use std::panic::resume_unwind;
use std::sync::{Arc, Barrier, Mutex};

use larder::{
    BoxError, ByteView, Context, Error, ErrorKind, Group, NoPeers, PeerPicker, ProtoDecode,
    ProtoMessage, ProtoSink, Result, Sink, getter_fn,
};

use crate::common::*;

use super::*;

#[test]
fn sink_panic_affects_only_its_own_call() {
    struct Panics;
    impl Sink for Panics {
        fn set_bytes(&mut self, _: &[u8]) -> Result<()> {
            panic_quietly()
        }
    }
    let (getter, loads) = echo();
    let group = alone("sink-panics").build(getter).expect("a group");
    let call = start({
        let group = group.clone();
        move || group.get_into(&Context::background(), "key", Panics)
    });
    assert!(call.outcome().is_err());
    assert_eq!(group.get("key").expect("a value"), "ECHO:key");
    assert_eq!(loads.get(), 1, "the value was loaded and cached before");
}

#[test]
fn sink_may_call_the_group() {
    struct Calls(Group, Vec<ByteView>);
    impl Sink for Calls {
        fn set_bytes(&mut self, value: &[u8]) -> Result<()> {
            self.1.push(value.into());
            self.0.invalidate("key");
            self.1.push(self.0.get("key")?);
            Ok(())
        }
    }
    let group = alone("sink-calls").build(texts()).expect("a group");
    let call = start(move || {
        let mut sink = Calls(group.clone(), Vec::new());
        group.get_into(&Context::background(), "key", &mut sink)?;
        Ok(sink.1.len())
    });
    assert_eq!(call.end().map_err(|e: Error| e.kind()), Ok(2));
}

#[derive(Debug, PartialEq)]
struct Message(u8);

impl ProtoMessage for Message {
    fn encode(&self) -> Result<Vec<u8>, BoxError> {
        match self.0 {
            0 => panic_quietly(),
            n => Ok(vec![n]),
        }
    }
}

impl ProtoDecode for Message {
    fn decode(bytes: &[u8]) -> Result<Self, BoxError> {
        match bytes {
            [1] => panic_quietly(),
            [n] => Ok(Message(*n)),
            _ => Err("one byte".into()),
        }
    }
}

#[test]
fn message_panic_leaves_the_destination_and_the_key_unchanged() {
    let next = Arc::new(Mutex::new(0));
    let values = next.clone();
    let group = alone("proto-panics")
        .build(getter_fn(move |_: &Context, _, dest| {
            let message = {
                let mut next = values.lock().expect("no panic");
                *next += 1;
                Message(*next - 1)
            };
            Ok(dest.set_proto(&message)?)
        }))
        .expect("a group");
    let get = |mut dest: Message| {
        let group = group.clone();
        start(move || {
            let sink = ProtoSink::new(&mut dest);
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                group.get_into(&Context::background(), "key", sink)
            }));
            (result.is_err(), dest)
        })
    };
    assert_eq!(get(Message(9)).end(), (true, Message(9)), "encoding panics");
    assert!(!group.contains_key("key"));
    assert_eq!(get(Message(9)).end(), (true, Message(9)), "decoding panics");
    group.invalidate("key");
    assert_eq!(get(Message(9)).end(), (false, Message(2)));
}

/// An error whose text panics.
#[derive(Debug)]
struct TextPanics;

impl std::fmt::Display for TextPanics {
    fn fmt(&self, _: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        panic_quietly()
    }
}

impl std::error::Error for TextPanics {}

#[test]
fn panic_in_the_text_of_an_error_counts_as_getter_panic() {
    for ctx in [Context::background(), within(PATIENCE)] {
        let group = alone("text-panics")
            .build(getter_fn(|_: &Context, _, _| Err(TextPanics.into())))
            .expect("a group");
        let on_caller = ctx.deadline().is_none();
        for _ in 0..2 {
            let call = start({
                let (group, ctx) = (group.clone(), ctx.clone());
                move || group.get_with(&ctx, "key")
            });
            match call.outcome() {
                Ok(result) => {
                    assert!(!on_caller);
                    let error = result.expect_err("the text panics");
                    assert_eq!(error.kind(), ErrorKind::GetterPanicked);
                    assert!(!error.to_string().is_empty());
                }
                Err(_) => assert!(on_caller),
            }
        }
    }
}

#[test]
fn panic_payload_that_panics_on_drop_does_not_end_a_loader_thread() {
    let group = alone("payload")
        .max_loader_threads(1)
        .build(getter_fn(|_: &Context, key, dest| {
            if key == "panics" {
                resume_unwind(Box::new(DropPanics));
            }
            Ok(dest.set_str(key)?)
        }))
        .expect("a group");
    for _ in 0..3 {
        eventually("the loader thread is free", || {
            let error = group
                .get_with(&within(PATIENCE), "panics")
                .expect_err("a panic");
            error.kind() == ErrorKind::GetterPanicked
        });
    }
    eventually("the loader thread is free", || {
        group.get_with(&within(PATIENCE), "key").is_ok()
    });
}

#[test]
fn getter_panics_between_removals_leave_no_flight() {
    let both = Arc::new(Barrier::new(2));
    let entered = both.clone();
    let group = alone("panic-and-remove")
        .build(getter_fn(move |_: &Context, _, _| {
            entered.wait();
            panic_quietly()
        }))
        .expect("a group");
    for _ in 0..10 {
        let call = start({
            let group = group.clone();
            move || group.get("key")
        });
        both.wait();
        group.invalidate("key");
        assert!(call.outcome().is_err());
    }
    assert!(NoPeers.pick_peer("key").is_none());
    assert_eq!(group.entry_count(), 0);
}
