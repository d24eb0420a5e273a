//! A load that began before a removal of its key never puts the old value back.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use larder::{ByteView, Context, ErrorKind, Group, PeerResponse, Result, getter_fn};

use crate::common::*;

/// A name, and a call that removes the key.
type Removal = (&'static str, fn(&Group));

const REMOVALS: [Removal; 3] = [
    ("invalidate", |group| group.invalidate("key")),
    ("remove_local", |group| drop(group.remove_local("key"))),
    ("clear_local", Group::clear_local),
];

/// The source of the values. A load reads the value, and the first load then waits at the gate.
#[derive(Clone)]
struct Source {
    value: Arc<Mutex<&'static str>>,
    /// The first load waits here. Later ones do not.
    gate: Gate,
    begun: Gate,
    loads: Count,
}

impl Source {
    fn new() -> Source {
        Source {
            value: Arc::new(Mutex::new("old")),
            gate: Gate::new(),
            begun: Gate::new(),
            loads: Count::default(),
        }
    }

    fn load(&self) -> &'static str {
        let value = *self.value.lock().expect("no panic");
        self.loads.add(1);
        if self.loads.get() == 1 {
            self.begun.open();
            self.gate.pass();
        }
        value
    }

    fn change(&self) {
        *self.value.lock().expect("no panic") = "new";
    }
}

type Begin = fn(&Group, Context) -> Result<ByteView>;

const GET: Begin = |group, ctx| group.get_with(&ctx, "key");
const SERVE: Begin = |group, ctx| group.serve_peer(&ctx, "key").map(|answer| answer.value);

/// Groups that load from a source by the getter, by a peer, and by the getter because the peer is
/// dead.
fn groups(source: &Source) -> Vec<(&'static str, Group, Begin)> {
    let getter = |source: &Source| {
        let source = source.clone();
        getter_fn(move |_, _, dest| Ok(dest.set_str(source.load())?))
    };
    let asked = {
        let source = source.clone();
        FakePeer::new(move |_, _| Ok(PeerResponse::new(source.load())))
    };
    let dead = FakePeer::failing(ErrorKind::Peer, "connection refused");
    let own = alone("own").build(getter(source)).expect("a group");
    let peers = among("peers", all_keys_at(&[&asked]))
        .build(echo().0)
        .expect("a group");
    let failing = || {
        among("failing", all_keys_at(&[&dead]))
            .build(getter(source))
            .expect("a group")
    };
    vec![
        ("own", own.clone(), GET),
        ("own, for a peer", own, SERVE),
        ("a peer's", peers, GET),
        ("a dead peer's", failing(), GET),
        ("a peer's, for a peer", failing(), SERVE),
    ]
}

/// Runs `case` for every kind of load and every kind of removal.
fn every_case(case: impl Fn(&str, Source, Group, Begin, Context, fn(&Group))) {
    for (how, removal) in REMOVALS {
        for ctx in contexts() {
            for n in 0..5 {
                let source = Source::new();
                let (what, group, begin) = groups(&source).swap_remove(n);
                let what = format!("{how} during a load of {what}");
                case(&what, source, group, begin, ctx.clone(), removal);
            }
        }
    }
}

#[test]
fn load_overtaken_by_removal_is_not_cached() {
    every_case(|what, source, group, begin, ctx, removal| {
        let early = {
            let group = group.clone();
            start(move || begin(&group, ctx))
        };
        source.begun.pass();
        source.change();
        removal(&group);
        source.gate.open();
        assert_eq!(
            early.end().expect("a value"),
            "old",
            "{what}: it began before the removal"
        );
        assert_eq!(group.peek("key"), None, "{what}");
        assert_eq!(group.get("key").expect("a value"), "new", "{what}");
        assert_eq!(group.peek("key"), Some("new".into()), "{what}");
        assert_eq!(source.loads.get(), 2, "{what}");
        assert_eq!(group.entry_count(), 1, "{what}");
    });
}

#[test]
fn get_after_removal_does_not_join_older_load() {
    every_case(|what, source, group, begin, ctx, removal| {
        let early = {
            let (group, ctx) = (group.clone(), ctx.clone());
            start(move || begin(&group, ctx))
        };
        source.begun.pass();
        source.change();
        removal(&group);
        let late = {
            let group = group.clone();
            start(move || begin(&group, ctx))
        };
        // The gate of the first load is still closed.
        assert_eq!(late.end().expect("a value"), "new", "{what}");
        assert_eq!(group.peek("key"), Some("new".into()), "{what}");
        source.gate.open();
        assert_eq!(early.end().expect("a value"), "old", "{what}");
        assert_eq!(
            group.peek("key"),
            Some("new".into()),
            "{what}: not put back"
        );
        assert_eq!(group.entry_count(), 1, "{what}");
    });
}

#[test]
fn remove_local_returns_the_removed_value() {
    let group = alone("removed").build(echo().0).expect("a group");
    assert_eq!(group.remove_local("key"), None);
    group.get("key").expect("a value");
    assert_eq!(group.remove_local("key"), Some("ECHO:key".into()));
    assert_eq!(group.remove_local("key"), None);
    group.invalidate("key");
    group.clear_local();
    assert_eq!((group.entry_count(), group.weighted_size()), (0, 0));
    let stats = group.stats();
    assert_eq!(
        (stats.gets, stats.local_loads),
        (1, 1),
        "a removal does not count as a get"
    );
}

#[test]
fn removal_leaves_other_keys_cached() {
    let group = alone("neighbours").build(echo().0).expect("a group");
    for n in 0..1000 {
        let key = format!("key{n}");
        group.get(&key).expect("a value");
        group.invalidate("other");
        assert!(group.contains_key(&key));
    }
}

/// Some threads load a key all the time. One thread changes the source and removes the key. No get that begins
/// then returns an older value, on any thread.
fn stress(removal: fn(&Group), ctx: &Context) {
    const ROUNDS: u64 = if cfg!(debug_assertions) {
        20_000
    } else {
        100_000
    };
    let version = Arc::new(AtomicU64::new(0));
    let (source, removed) = (version.clone(), Arc::new(AtomicU64::new(0)));
    let group = alone("stress")
        .build(getter_fn(move |_, _, dest| {
            let value = source.load(Ordering::SeqCst);
            // Lets other threads run between the read of the source and the end of the load.
            std::thread::yield_now();
            Ok(dest.set_bytes(&value.to_le_bytes())?)
        }))
        .expect("a group");
    let read = |group: &Group, ctx: &Context| {
        let value = group.get_with(ctx, "key").expect("a value");
        u64::from_le_bytes(value[..].try_into().expect("eight bytes"))
    };
    let done = Gate::new();
    let readers: Vec<_> = (0..2)
        .map(|_| {
            let (group, done, ctx) = (group.clone(), done.clone(), ctx.clone());
            let removed = removed.clone();
            start(move || {
                while !done.opens_within(millis(0)) {
                    // Compare with the removed version, not with the last one seen: before a removal
                    // begins, a load can find the new value in the source, and the next get the old one in
                    // the cache.
                    let removed = removed.load(Ordering::SeqCst);
                    let seen = read(&group, &ctx);
                    assert!(seen >= removed, "{seen} after the removal {removed}");
                }
            })
        })
        .collect();
    for round in 1..=ROUNDS {
        version.store(round, Ordering::SeqCst);
        removal(&group);
        removed.store(round, Ordering::SeqCst);
        let seen = read(&group, ctx);
        assert_eq!(seen, round, "an old value after the removal returned");
    }
    done.open();
    readers.into_iter().for_each(Call::end);
    assert_eq!(group.entry_count(), 1);
}

#[test]
fn removed_value_is_never_returned_again() {
    stress(|group| group.invalidate("key"), &Context::background());
}

#[test]
fn cleared_value_is_never_returned_again() {
    stress(Group::clear_local, &Context::background());
}

#[test]
fn removed_value_is_never_returned_again_to_callers_with_deadlines() {
    let ctx = Context::background().with_timeout(seconds(3600));
    stress(|group| group.invalidate("key"), &ctx);
}

/// It reads few entries at a time, because insertions wait meanwhile, and so do gets behind them.
#[test]
fn iterator_does_not_read_all_entries_of_a_shard_at_once() {
    let group = alone("many").shards(1).build(echo().0).expect("a group");
    for n in 0..5000 {
        group.get(&n.to_string()).expect("a value");
    }
    let mut entries = group.iter();
    assert!(entries.next().is_some());
    group.clear_local();
    let left = entries.count();
    assert!(left < 1024, "{left} entries");
}
