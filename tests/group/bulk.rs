//! Getters that load several keys with one call, and gets of several keys.

use std::collections::BTreeSet;
use std::sync::{Arc, Barrier, Mutex};

use larder::{
    BoxError, BulkGetter, BulkSink, ByteView, Context, Error, ErrorKind, Getter, Group,
    PeerResponse, ProtoGetter, Result, Sink, bulk_fn,
};

use crate::common::*;

/// A bulk getter that records its calls. Keys that begin with `missing` get nothing, those with
/// `broken` an error.
#[derive(Clone, Default)]
struct Recorder {
    calls: Arc<Mutex<Vec<Vec<String>>>>,
    singles: Count,
    /// Passed in each call for several keys, if there is one.
    gate: Option<Gate>,
}

impl Recorder {
    fn held() -> (Recorder, Gate) {
        let gate = Gate::new();
        let recorder = Recorder {
            gate: Some(gate.clone()),
            ..Recorder::default()
        };
        (recorder, gate)
    }

    fn calls(&self) -> Vec<Vec<String>> {
        self.calls.lock().expect("no panic").clone()
    }

    fn has_begun(&self) {
        eventually("the bulk getter runs", || !self.calls().is_empty());
    }
}

impl Getter for Recorder {
    fn get(&self, _: &Context, key: &str, dest: &mut dyn Sink) -> Result<(), BoxError> {
        self.singles.add(1);
        Ok(dest.set_str(&format!("single {key}"))?)
    }
}

impl BulkGetter for Recorder {
    fn load_many(
        &self,
        _: &Context,
        keys: &[&str],
        sinks: &mut [BulkSink<'_>],
    ) -> Result<(), BoxError> {
        let names = keys.iter().map(|key| key.to_string()).collect();
        self.calls.lock().expect("no panic").push(names);
        if let Some(gate) = &self.gate {
            gate.pass();
        }
        for (key, sink) in keys.iter().zip(sinks) {
            match key.split(' ').next() {
                Some("missing") => {}
                Some("broken") => sink.fail("disk on fire"),
                Some("down") => return Err("no connection".into()),
                Some("panic") => std::panic::resume_unwind(Box::new("quietly")),
                _ => sink.set_str(&format!("bulk {key}"))?,
            }
        }
        Ok(())
    }
}

fn contexts() -> [Context; 3] {
    let (cancellable, handle) = Context::background().with_cancel();
    drop(handle);
    [Context::background(), within(PATIENCE), cancellable]
}

fn texts(results: Vec<Result<ByteView>>) -> Vec<String> {
    let text = |result: Result<ByteView>| match result {
        Ok(view) => view.to_str().expect("text").to_owned(),
        Err(error) => format!("{:?}", error.kind()),
    };
    results.into_iter().map(text).collect()
}

#[test]
fn missing_keys_are_loaded_by_one_call() {
    for ctx in contexts() {
        let recorder = Recorder::default();
        let group = alone("bulk").build_bulk(recorder.clone()).expect("a group");
        assert_eq!(group.get("a").expect("a value"), "single a");
        let keys = ["a", "b", "missing c", "broken d", "e", "b"];
        assert_eq!(
            texts(group.get_many(&ctx, &keys)),
            [
                "single a", "bulk b", "NotFound", "Getter", "bulk e", "bulk b"
            ]
        );
        assert_eq!(recorder.calls(), [["b", "missing c", "broken d", "e"]]);
        let stats = group.stats();
        assert_eq!((stats.local_loads, stats.local_load_errs), (3, 2));
        assert_eq!(stats.loads_deduped, 5);
        // Both values are cached, so this call loads nothing.
        assert_eq!(
            texts(group.get_many(&ctx, &["e", "b"])),
            ["bulk e", "bulk b"]
        );
        assert_eq!(recorder.calls().len(), 1);
    }
}

#[test]
fn error_of_a_call_is_that_of_the_keys_without_a_result() {
    for ctx in contexts() {
        let group = alone("down").build_bulk(Recorder::default()).expect("new");
        let results = group.get_many(&ctx, &["a", "broken b", "down c", "d"]);
        let messages: Vec<String> = results
            .iter()
            .map(|result| match result {
                Ok(value) => value.to_str().expect("text").to_owned(),
                Err(error) => error.to_string(),
            })
            .collect();
        let down = "no connection";
        assert_eq!(messages, ["bulk a", "disk on fire", down, down]);
    }
}

#[test]
fn default_calls_the_getter_for_each_key() {
    struct Single;
    impl Getter for Single {
        fn get(&self, _: &Context, key: &str, dest: &mut dyn Sink) -> Result<(), BoxError> {
            match key {
                "b" => Err(Error::not_found("no b").into()),
                _ => Ok(dest.set_str(key)?),
            }
        }
    }
    impl BulkGetter for Single {}
    let group = alone("default").build_bulk(Single).expect("a group");
    let results = group.get_many(&Context::background(), &["a", "b", "c"]);
    assert_eq!(texts(results), ["a", "NotFound", "c"]);
}

#[test]
fn closure_loads_single_keys_and_several() {
    let load = bulk_fn(|_, keys, sinks| {
        for (key, sink) in keys.iter().zip(sinks) {
            match *key {
                "missing" => {}
                _ => sink.set_str(&format!("{key} of {}", keys.len()))?,
            }
        }
        Ok(())
    });
    let group = alone("closure").build_bulk(load).expect("a group");
    assert_eq!(group.get("a").expect("a value"), "a of 1");
    assert_eq!(kind(group.get("missing")), ErrorKind::NotFound);
    let results = group.get_many(&Context::background(), &["b", "c"]);
    assert_eq!(texts(results), ["b of 2", "c of 2"]);
}

#[test]
fn too_large_value_fails_alone() {
    let load = bulk_fn(|_, keys, sinks| {
        for (key, sink) in keys.iter().zip(sinks) {
            // The getter ignores the error.
            let _ = sink.set_str(key);
        }
        Ok(())
    });
    let group = alone("large")
        .max_value_size(3)
        .build_bulk(load)
        .expect("new");
    let results = group.get_many(&Context::background(), &["abc", "abcd", "ab"]);
    assert_eq!(texts(results), ["abc", "ValueTooLarge", "ab"]);
}

#[test]
fn single_get_joins_a_call_and_a_call_joins_single_gets() {
    for ctx in contexts() {
        let (recorder, gate) = Recorder::held();
        let group = alone("joined").build_bulk(recorder.clone()).expect("new");
        let many = |keys: [&'static str; 3]| {
            let (group, ctx) = (group.clone(), ctx.clone());
            start(move || texts(group.get_many(&ctx, &keys)))
        };
        let first = many(["a", "b", "c"]);
        recorder.has_begun();
        let single = {
            let (group, ctx) = (group.clone(), ctx.clone());
            start(move || group.get_with(&ctx, "b"))
        };
        // Only its own two keys are new.
        let second = many(["b", "x", "y"]);
        eventually("the second call runs", || recorder.calls().len() == 2);
        gate.open();
        assert_eq!(first.end(), ["bulk a", "bulk b", "bulk c"]);
        assert_eq!(second.end(), ["bulk b", "bulk x", "bulk y"]);
        assert_eq!(single.end().expect("a value"), "bulk b");
        let calls = recorder.calls();
        assert_eq!(
            (&*calls[0], &*calls[1]),
            (
                &["a", "b", "c"].map(String::from)[..],
                &["x", "y"].map(String::from)[..]
            )
        );
        assert_eq!(recorder.singles.get(), 0);
    }
}

#[test]
fn call_joins_the_loads_of_single_keys_and_requests_of_peers_join_the_call() {
    for ctx in contexts() {
        let (single, bulk) = (Gate::new(), Gate::new());
        let calls: Arc<Mutex<Vec<Vec<String>>>> = Arc::default();
        let (noted, gates) = (calls.clone(), (single.clone(), bulk.clone()));
        let load = bulk_fn(move |_, keys, sinks| {
            let names = keys.iter().map(|key| key.to_string()).collect();
            noted.lock().expect("no panic").push(names);
            match keys.len() {
                1 => gates.0.pass(),
                _ => gates.1.pass(),
            }
            for (key, sink) in keys.iter().zip(sinks) {
                sink.set_str(&format!("{key} of {}", keys.len()))?;
            }
            Ok(())
        });
        let group = alone("joined").build_bulk(load).expect("a group");
        let begun = |calls_begun| {
            eventually("the getter runs", || {
                calls.lock().expect("no panic").len() == calls_begun
            });
        };
        let get = {
            let (group, ctx) = (group.clone(), ctx.clone());
            start(move || group.get_with(&ctx, "b"))
        };
        begun(1);
        let many = {
            let (group, ctx) = (group.clone(), ctx.clone());
            start(move || texts(group.get_many(&ctx, &["a", "b", "c"])))
        };
        begun(2);
        let served = {
            let (group, ctx) = (group.clone(), ctx.clone());
            start(move || group.serve_peer(&ctx, "c"))
        };
        let served_many = {
            let (group, ctx) = (group.clone(), ctx.clone());
            start(move || group.serve_peer_many(&ctx, &["a", "b"]))
        };
        // The expectations hold whether or not these have joined by then.
        eventually("all miss", || group.stats().loads == 7);
        bulk.open();
        assert_eq!(served.end().expect("a value").value, "c of 2");
        single.open();
        assert_eq!(get.end().expect("a value"), "b of 1");
        assert_eq!(many.end(), ["a of 2", "b of 1", "c of 2"]);
        let served_many = served_many.end().into_iter();
        let values: Vec<ByteView> = served_many.map(|got| got.expect("a value").value).collect();
        assert_eq!(values, ["a of 2", "b of 1"]);
        let calls = calls.lock().expect("no panic");
        assert_eq!(*calls, [vec!["b"], vec!["a", "c"]]);
    }
}

#[test]
fn panic_fails_all_keys_of_its_call_and_no_other() {
    for ctx in contexts() {
        let (recorder, gate) = Recorder::held();
        let group = alone("panics").build_bulk(recorder.clone()).expect("new");
        let leader = {
            let (group, ctx) = (group.clone(), ctx.clone());
            start(move || texts(group.get_many(&ctx, &["a", "panic", "b"])))
        };
        recorder.has_begun();
        let waiters = ["a", "b", "panic"].map(|key| {
            let group = group.clone();
            start(move || group.get_with(&within(PATIENCE), key))
        });
        eventually("all miss", || group.stats().loads == 6);
        gate.open();
        match leader.outcome() {
            // The getter ran on a loader thread.
            Ok(results) => assert_eq!(results, ["GetterPanicked"; 3]),
            Err(panic) => assert_eq!(panic.downcast_ref::<&str>(), Some(&"quietly")),
        }
        for waiter in waiters {
            // A get that came too late to join has loaded the key by itself.
            if let Err(error) = waiter.end() {
                assert_eq!(error.kind(), ErrorKind::GetterPanicked);
            }
        }
        let results = texts(group.get_many(&ctx, &["c", "d"]));
        assert_eq!(results, ["bulk c", "bulk d"]);
    }
}

#[test]
fn caller_leaves_at_its_deadline_and_the_call_goes_on() {
    let (recorder, gate) = Recorder::held();
    let group = alone("late").build_bulk(recorder.clone()).expect("a group");
    let keys = ["a", "b"];
    let late = ["DeadlineExceeded"; 2];
    assert_eq!(texts(group.get_many(&within(millis(20)), &keys)), late);
    let (ctx, handle) = Context::background().with_cancel();
    let cancelled = {
        let group = group.clone();
        start(move || texts(group.get_many(&ctx, &keys)))
    };
    eventually("the second call misses", || group.stats().loads == 4);
    handle.cancel();
    assert_eq!(cancelled.end(), ["Cancelled"; 2]);
    gate.open();
    let results = group.get_many(&within(PATIENCE), &keys);
    assert_eq!(texts(results), ["bulk a", "bulk b"]);
    assert_eq!(recorder.calls().len(), 1);
}

#[test]
fn waiters_load_again_if_a_call_fails_after_its_deadline() {
    let calls = Count::default();
    let (gate, counted) = (Gate::new(), calls.clone());
    let held = gate.clone();
    let load = bulk_fn(move |_, keys, sinks| {
        counted.add(1);
        if counted.get() == 1 {
            held.pass();
            return Err("too late".into());
        }
        for (key, sink) in keys.iter().zip(sinks) {
            sink.set_str(key)?;
        }
        Ok(())
    });
    let group = alone("again").build_bulk(load).expect("a group");
    let short = texts(group.get_many(&within(millis(20)), &["a", "b"]));
    assert_eq!(short, ["DeadlineExceeded"; 2]);
    let patient = ["a", "b"].map(|key| {
        let group = group.clone();
        start(move || group.get_with(&within(PATIENCE), key))
    });
    let many = {
        let group = group.clone();
        start(move || texts(group.get_many(&within(PATIENCE), &["a", "b"])))
    };
    eventually("all miss", || group.stats().loads == 6);
    gate.open();
    for (key, waiter) in ["a", "b"].iter().zip(patient) {
        assert_eq!(waiter.end().expect("a value"), *key);
    }
    assert_eq!(many.end(), ["a", "b"]);
}

#[test]
fn value_removed_during_a_call_is_not_cached() {
    for ctx in contexts() {
        let (recorder, gate) = Recorder::held();
        let group = alone("removed").build_bulk(recorder.clone()).expect("new");
        let loading = {
            let (group, ctx) = (group.clone(), ctx.clone());
            start(move || texts(group.get_many(&ctx, &["a", "b", "c"])))
        };
        recorder.has_begun();
        group.invalidate("b");
        gate.open();
        assert_eq!(loading.end(), ["bulk a", "bulk b", "bulk c"]);
        assert!(group.contains_key("a") && group.contains_key("c"));
        assert!(!group.contains_key("b"));
    }
}

#[test]
fn bulk_getter_that_gets_its_own_keys_gets_an_error() {
    for ctx in contexts() {
        let own = Arc::new(std::sync::OnceLock::<larder::WeakGroup>::new());
        let itself = own.clone();
        let load = bulk_fn(move |ctx, keys, sinks| {
            let group = itself.get().and_then(|own| own.upgrade()).expect("made");
            if keys.len() == 3 {
                let nested = texts(group.get_many(ctx, &["a", "x", "b", "y"]));
                assert_eq!(nested, ["RecursiveLoad", "x", "RecursiveLoad", "y"]);
                assert_eq!(kind(group.get_with(ctx, "c")), ErrorKind::RecursiveLoad);
            }
            for (key, sink) in keys.iter().zip(sinks) {
                sink.set_str(key)?;
            }
            Ok(())
        });
        let group = alone("itself").build_bulk(load).expect("a group");
        assert!(own.set(group.downgrade()).is_ok());
        let call = {
            let (group, ctx) = (group.clone(), ctx.clone());
            start(move || texts(group.get_many(&ctx, &["a", "b", "c"])))
        };
        assert_eq!(call.end(), ["a", "b", "c"]);
    }
}

#[test]
fn other_getter_loads_several_keys_at_the_same_time() {
    for ctx in contexts() {
        let together = Arc::new(Barrier::new(8));
        let meets = together.clone();
        let load = move |_: &Context, key: &str, dest: &mut dyn Sink| {
            meets.wait();
            Ok(dest.set_str(key)?)
        };
        let group = alone("parallel").build(load).expect("a group");
        let keys: Vec<String> = (0..8).map(|n| format!("key {n}")).collect();
        let call = {
            let (group, keys, ctx) = (group.clone(), keys.clone(), ctx.clone());
            start(move || texts(group.get_many(&ctx, &keys)))
        };
        assert_eq!(call.end(), keys);
        let served = {
            let group = group.clone();
            group.clear_local();
            start(move || {
                let keys = ["a", "b", "c", "d", "e", "f", "g", "h"];
                let values = group.serve_peer_many(&ctx, &keys).into_iter();
                let values: Result<Vec<_>> = values.collect();
                values.map(|values| values.len())
            })
        };
        assert_eq!(served.end().expect("values"), 8);
    }
}

#[test]
fn getter_of_one_key_that_hangs_or_panics_fails_alone() {
    let hung = Gate::new();
    let held = hung.clone();
    let load = larder::getter_fn(move |_, key, dest| {
        match key {
            "hangs" => held.pass(),
            "panics" => std::panic::resume_unwind(Box::new("quietly")),
            _ => {}
        }
        Ok(dest.set_str(key)?)
    });
    let group = alone("alone").build(load).expect("a group");
    let mut keys = vec!["hangs".to_owned(), "panics".to_owned()];
    keys.extend((0..50).map(|n| n.to_string()));
    // The result at the deadline is the same whether or not the machine is fast.
    let results = texts(group.get_many(&within(seconds(2)), &keys));
    hung.open();
    assert_eq!(results[..2], ["DeadlineExceeded", "GetterPanicked"]);
    assert_eq!(results[2..], keys[2..]);
}

/// A node of this process, asked on a thread of its own. It counts its requests.
struct Owner {
    group: Group,
    singles: Count,
    batches: Count,
}

impl Owner {
    fn new(getter: impl BulkGetter + 'static) -> Arc<Owner> {
        Arc::new(Owner {
            group: alone("many").build_bulk(getter).expect("a group"),
            singles: Count::default(),
            batches: Count::default(),
        })
    }

    fn requests(&self) -> (i64, i64) {
        (self.batches.get(), self.singles.get())
    }
}

impl ProtoGetter for Owner {
    fn get(&self, ctx: &Context, request: &larder::pb::GetRequest<'_>) -> Result<PeerResponse> {
        self.singles.add(1);
        let (group, ctx, key) = (self.group.clone(), ctx.clone(), request.key.to_string());
        start(move || group.serve_peer(&ctx, &key)).end()
    }

    fn load_many(
        &self,
        ctx: &Context,
        _: &str,
        keys: &[&str],
    ) -> Result<Vec<Option<Result<PeerResponse>>>> {
        self.batches.add(1);
        let (group, ctx) = (self.group.clone(), ctx.clone());
        let keys: Vec<String> = keys.iter().map(|key| key.to_string()).collect();
        let answers = start(move || {
            let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
            group.serve_peer_many(&ctx, &keys)
        });
        Ok(answers.end().into_iter().map(Some).collect())
    }

    fn honors_deadline(&self) -> bool {
        true
    }
}

#[test]
fn each_owner_is_asked_once_and_calls_its_getter_once() {
    for ctx in [Context::background(), within(PATIENCE)] {
        // All three calls run at the same time.
        let together = Arc::new(Barrier::new(3));
        let recorders: Vec<(Recorder, _)> = (0..3)
            .map(|_| {
                let (recorder, meets) = (Recorder::default(), together.clone());
                let inner = recorder.clone();
                let getter = bulk_fn(move |ctx, keys, sinks| {
                    meets.wait();
                    inner.load_many(ctx, keys, sinks)
                });
                (recorder, getter)
            })
            .collect();
        let mut recorders = recorders.into_iter();
        let (own_calls, own) = recorders.next().expect("three");
        let owners: Vec<(Recorder, Arc<Owner>)> = recorders
            .map(|(recorder, getter)| (recorder, Owner::new(getter)))
            .collect();
        let peers: Vec<Arc<Owner>> = owners.iter().map(|(_, owner)| owner.clone()).collect();
        let picker = picker(move |key, attempt| {
            let owner = match key.as_bytes().last() {
                Some(b'1') => peers[0].clone(),
                Some(b'2') => peers[1].clone(),
                _ => return None,
            };
            (attempt == 0).then_some(owner as Arc<dyn ProtoGetter>)
        });
        let group = among("many", picker).build_bulk(own).expect("a group");
        let keys: Vec<String> = (0..30)
            .map(|n| match n {
                4 => "missing 1".to_owned(),
                5 => "broken 2".to_owned(),
                6 => "broken 0".to_owned(),
                n => format!("key {n} {}", n % 3),
            })
            .collect();
        let call = {
            let (group, keys) = (group.clone(), keys.clone());
            start(move || texts(group.get_many(&ctx, &keys)))
        };
        for (key, text) in keys.iter().zip(call.end()) {
            match key.split(' ').next() {
                Some("missing") => assert_eq!(text, "NotFound"),
                Some("broken") => assert_eq!(text, "Getter"),
                _ => assert_eq!(text, format!("bulk {key}")),
            }
        }
        assert_eq!(own_calls.calls().len(), 1);
        let mut loaded: BTreeSet<String> = own_calls.calls().concat().into_iter().collect();
        for (recorder, owner) in &owners {
            assert_eq!(owner.requests(), (1, 0));
            assert_eq!(recorder.calls().len(), 1);
            loaded.extend(recorder.calls().concat());
        }
        assert_eq!(loaded.len(), 30);
        assert_eq!(group.stats().peer_errors, 0);
    }
}

#[test]
fn keys_of_an_owner_that_is_down_are_one_call_here() {
    for ctx in contexts() {
        let owner = FakePeer::punctual(|_, _| Err(ErrorKind::Peer.into()));
        let recorder = Recorder::default();
        let group = among("down", all_keys_at(&[&owner]))
            .build_bulk(recorder.clone())
            .expect("a group");
        let keys = ["a", "b", "c", "d"];
        let results = texts(group.get_many(&ctx, &keys));
        // The first key shows that no peer answers.
        assert_eq!(results, ["single a", "bulk b", "bulk c", "bulk d"]);
        assert_eq!(recorder.calls(), [["b", "c", "d"]]);
        assert_eq!(group.stats().peer_errors, 1);
    }
}

#[test]
fn owner_that_is_loading_is_asked_again() {
    struct Slow(Count);
    impl ProtoGetter for Slow {
        fn get(&self, _: &Context, _: &larder::pb::GetRequest<'_>) -> Result<PeerResponse> {
            Err(Error::new(
                ErrorKind::Peer,
                "it is asked for all keys at once",
            ))
        }

        fn load_many(
            &self,
            _: &Context,
            _: &str,
            keys: &[&str],
        ) -> Result<Vec<Option<Result<PeerResponse>>>> {
            self.0.add(1);
            let asked = self.0.get() as usize;
            let answer = |(at, key): (usize, &&str)| {
                Some(match at < asked {
                    true => Ok(PeerResponse::new(*key)),
                    false => Err(ErrorKind::Loading.into()),
                })
            };
            Ok(keys.iter().enumerate().map(answer).collect())
        }

        fn honors_deadline(&self) -> bool {
            true
        }
    }
    for ctx in [Context::background(), within(PATIENCE)] {
        let owner = Arc::new(Slow(Count::default()));
        let peer = owner.clone();
        let picker = picker(move |_, attempt| {
            (attempt == 0).then_some(peer.clone() as Arc<dyn ProtoGetter>)
        });
        let (getter, loads) = echo();
        let group = among("slow", picker).build(getter).expect("a group");
        let keys = ["a", "b", "c", "d", "e"];
        assert_eq!(texts(group.get_many(&ctx, &keys)), keys);
        // The three requests brought one value, then two, then the last two.
        assert_eq!((owner.0.get(), loads.get()), (3, 0));
    }
}
