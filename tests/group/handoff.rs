//! Loads of several keys take values over from the previous owners of the keys.

use std::sync::{Arc, Mutex};

use larder::pb::{GetRequest, RemoveKeysRequest};
use larder::{
    BulkSink, Clock, Context, ErrorKind, Group, GroupBuilder, PeerPicker, PeerResponse,
    ProtoGetter, Registry, Result, Sink, bulk_fn,
};

use crate::common::*;

type Hook = Box<dyn Fn() -> Result<()> + Send + Sync>;

/// A previous owner, which has cached the keys that end in `!`.
#[derive(Default)]
struct Previous {
    asked: Mutex<Vec<Vec<String>>>,
    /// Called before each answer.
    before: Mutex<Option<Hook>>,
}

impl Previous {
    fn asked(&self) -> Vec<Vec<String>> {
        self.asked.lock().expect("no panic").clone()
    }

    fn before(&self, call: impl Fn() -> Result<()> + Send + Sync + 'static) {
        *self.before.lock().expect("no panic") = Some(Box::new(call));
    }
}

impl ProtoGetter for Previous {
    fn get(&self, _: &Context, _: &GetRequest<'_>) -> Result<PeerResponse> {
        unreachable!("it is only asked for what it has cached")
    }

    fn get_many(&self, ctx: &Context, _: &str, keys: &[&str]) -> Result<Vec<Option<PeerResponse>>> {
        assert!(ctx.remaining().is_some_and(|left| left <= millis(10)));
        let names = keys.iter().map(|key| key.to_string()).collect();
        self.asked.lock().expect("no panic").push(names);
        if let Some(before) = &*self.before.lock().expect("no panic") {
            before()?;
        }
        let answer = |key: &&str| {
            let value = PeerResponse::new(format!("{key} taken over"));
            key.ends_with('!').then(|| value.with_age(seconds(4)))
        };
        Ok(keys.iter().map(answer).collect())
    }

    fn honors_deadline(&self) -> bool {
        true
    }
}

/// This process owns all keys. Each has a previous owner by its first letter, `a` or `b`.
struct Moved([Arc<Previous>; 2]);

impl PeerPicker for Moved {
    fn pick_peer(&self, _: &str) -> Option<Arc<dyn ProtoGetter>> {
        None
    }

    fn previous_owner(&self, key: &str) -> Option<Arc<dyn ProtoGetter>> {
        match key.as_bytes()[0] {
            b'a' => Some(self.0[0].clone()),
            b'b' => Some(self.0[1].clone()),
            _ => None,
        }
    }
}

struct Tested {
    group: Group,
    previous: [Arc<Previous>; 2],
    /// The keys of each call of the getter.
    loaded: Arc<Mutex<Vec<Vec<String>>>>,
}

fn tested(options: impl FnOnce(GroupBuilder) -> GroupBuilder) -> Tested {
    let previous: [Arc<Previous>; 2] = Default::default();
    let registry = Registry::new();
    let picker = Arc::new(Moved(previous.clone()));
    registry.register_peer_picker(picker).expect("the first");
    let loaded: Arc<Mutex<Vec<Vec<String>>>> = Arc::default();
    let noted = loaded.clone();
    let getter = bulk_fn(move |_, keys: &[&str], sinks: &mut [BulkSink<'_>]| {
        let names = keys.iter().map(|key| key.to_string()).collect();
        noted.lock().expect("no panic").push(names);
        for (key, sink) in keys.iter().zip(sinks) {
            sink.set_str(&format!("{key} loaded"))?;
        }
        Ok(())
    });
    let builder = options(Group::builder("moved").registry(&registry));
    Tested {
        group: builder.build_bulk(getter).expect("a group"),
        previous,
        loaded,
    }
}

impl Tested {
    fn get(&self, keys: &[&str]) -> Vec<String> {
        let values = self.group.get_many(&Context::background(), keys);
        let text = |value: Result<larder::ByteView>| {
            value.expect("a value").to_str().expect("text").to_owned()
        };
        values.into_iter().map(text).collect()
    }

    fn loaded(&self) -> Vec<Vec<String>> {
        self.loaded.lock().expect("no panic").clone()
    }
}

#[test]
fn getter_loads_only_what_the_previous_owner_lacks() {
    let tested = tested(|builder| builder.clock(Clock::manual()));
    let values = tested.get(&["a1!", "a2", "new", "a3!"]);
    let expected = [
        "a1! taken over",
        "a2 loaded",
        "new loaded",
        "a3! taken over",
    ];
    assert_eq!(values, expected);
    assert_eq!(tested.previous[0].asked(), [["a1!", "a2", "a3!"]]);
    assert_eq!(tested.loaded(), [["a2", "new"]]);
    let stats = tested.group.stats();
    assert_eq!((stats.peer_loads, stats.local_loads), (2, 2));
    // They are cached with the age that they had.
    let options = larder::GetOptions::new().only_if_cached();
    let answer = tested
        .group
        .get_opts(&Context::background(), "a1!", options);
    assert_eq!(answer.expect("it is cached").age, Some(seconds(4)));
    assert_eq!(
        tested.get(&["a3!", "a1!"]),
        ["a3! taken over", "a1! taken over"]
    );

    assert_eq!(
        tested.get(&["a4!", "a5!"]),
        ["a4! taken over", "a5! taken over"]
    );
    assert_eq!(tested.previous[0].asked().len(), 2);
    assert_eq!(tested.loaded().len(), 1, "nothing was left to load");
}

#[test]
fn previous_owners_are_asked_at_the_same_time() {
    let tested = tested(|builder| builder);
    let (entered, gate) = (Count::default(), Gate::new());
    for previous in &tested.previous {
        let (entered, gate) = (entered.clone(), gate.clone());
        previous.before(move || {
            entered.add(1);
            if entered.get() == 2 {
                gate.open();
            }
            gate.pass();
            Ok(())
        });
    }
    for value in tested.get(&["a1!", "b1!", "a2", "b2"]) {
        // On a busy machine, the second answer can come too late. Then the getter loads its keys.
        assert!(value.ends_with("taken over") || value.ends_with("loaded"));
    }
    assert_eq!(tested.previous[0].asked(), [["a1!", "a2"]]);
    assert_eq!(tested.previous[1].asked(), [["b1!", "b2"]]);
    let stats = tested.group.stats();
    assert_eq!(stats.peer_loads + stats.local_loads, 4);
}

#[test]
fn getter_loads_all_if_the_previous_owner_fails() {
    let tested = tested(|builder| builder);
    tested.previous[0].before(|| Err(ErrorKind::Peer.into()));
    assert_eq!(tested.get(&["a1!", "a2!"]), ["a1! loaded", "a2! loaded"]);
    assert_eq!(tested.group.stats().peer_errors, 1);
}

#[test]
fn owner_is_asked_before_a_key_is_loaded_for_a_peer_with_another_list() {
    let previous: Arc<Previous> = Arc::default();
    let clock = Clock::manual();
    let (getter, loads) = echo();
    let group = among("misdirected", all_keys_at(&[&previous]));
    let group = group.clock(clock.clone()).build(getter).expect("a group");
    let ctx = Context::background();
    let served = group.serve_peer(&ctx, "a1!").expect("a value");
    assert_eq!(served.value, "a1! taken over");
    assert_eq!(served.age, Some(seconds(4)));
    let many = group.serve_peer_many(&ctx, &["a2!", "a3"]);
    let many = many
        .into_iter()
        .map(|served| served.expect("a value").value);
    assert!(many.eq(["a2! taken over", "ECHO:a3"]));
    assert_eq!(loads.get(), 1);
    assert_eq!(previous.asked().concat().len(), 3);
    clock.advance(seconds(10));
    assert!(!group.contains_key("a1!"), "this process is not the owner");
    previous.before(|| Err(ErrorKind::Peer.into()));
    let served = group.serve_peer(&ctx, "a1!").expect("a value");
    assert_eq!(served.value, "ECHO:a1!");
}

#[test]
fn owner_that_failed_is_not_asked_for_what_it_has_cached() {
    struct Failing;
    impl ProtoGetter for Failing {
        fn get(&self, _: &Context, _: &GetRequest<'_>) -> Result<PeerResponse> {
            Err(ErrorKind::Peer.into())
        }

        fn load_many(
            &self,
            _: &Context,
            _: &str,
            _: &[&str],
        ) -> Result<Vec<Option<Result<PeerResponse>>>> {
            Err(ErrorKind::Peer.into())
        }

        fn get_many(&self, _: &Context, _: &str, _: &[&str]) -> Result<Vec<Option<PeerResponse>>> {
            unreachable!("it does not answer")
        }
    }
    let group = among("failing", all_keys_at(&[&Arc::new(Failing)]));
    let group = group.build(echo().0).expect("a group");
    assert_eq!(group.get("a").expect("a value"), "ECHO:a");
    let values = group.get_many(&Context::background(), &["b", "c"]);
    assert!(values.iter().all(Result::is_ok));
}

#[test]
fn dropped_and_stale_values_are_not_taken_over() {
    let clock = Clock::manual();
    let tested = tested(|builder| {
        let builder = builder.clock(clock.clone()).time_to_live(seconds(10));
        builder
            .time_to_live_jitter(0.0)
            .stale_if_error(seconds(100))
    });
    assert_eq!(tested.get(&["a1!", "a2!"]).len(), 2);
    clock.advance(seconds(20));
    // The process has values of its own, so this is a refresh.
    assert_eq!(tested.get(&["a1!", "a2!"]), ["a1! loaded", "a2! loaded"]);
    assert_eq!(tested.previous[0].asked().len(), 1);
    // A peer has applied a removal of these.
    tested.group.serve_remove(&RemoveKeysRequest {
        group: "moved".into(),
        keys: vec!["a3!".into(), "a4!".into()],
        removal_id: Some(0),
        unless_applied: None,
    });
    assert_eq!(tested.get(&["a3!", "a4!"]), ["a3! loaded", "a4! loaded"]);
    assert_eq!(tested.previous[0].asked().len(), 1);
}
