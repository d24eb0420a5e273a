//! The limit of getter runs at the same time, and the threads that the groups of a registry share.

use std::collections::HashSet;
use std::sync::{Arc, Barrier, Mutex, OnceLock};
use std::thread;

use larder::{BoxError, BulkSink, Context, ErrorKind, Group, Registry, Sink, bulk_fn};

use crate::common::*;

/// The getters that run at the same time, and the most that did.
#[derive(Default)]
struct Gauge(Mutex<(usize, usize)>);

impl Gauge {
    /// A run of 1 ms.
    fn run(&self) {
        {
            let mut runs = self.0.lock().expect("no panic");
            runs.0 += 1;
            runs.1 = runs.1.max(runs.0);
        }
        thread::sleep(millis(1));
        self.0.lock().expect("no panic").0 -= 1;
    }

    fn most(&self) -> usize {
        self.0.lock().expect("no panic").1
    }
}

/// Loads different keys by all kinds of calls at the same time.
fn load_by_all_kinds(group: &Group, threads: usize) {
    let failed = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for n in 0..threads {
            let failed = &failed;
            scope.spawn(move || {
                for round in 0..4 {
                    let key = |part: usize| format!("{n} {round} {part}");
                    let (ctx, plain) = (within(PATIENCE), Context::background());
                    let keys: Vec<String> = (0..6).map(key).collect();
                    let more: Vec<String> = (6..12).map(key).collect();
                    let more: Vec<&str> = more.iter().map(String::as_str).collect();
                    let mut results = vec![
                        group.get(&key(20)).map(drop),
                        group.get_with(&ctx, &key(21)).map(drop),
                        group.serve_peer(&ctx, &key(22)).map(drop),
                    ];
                    let some = if round % 2 == 0 { &ctx } else { &plain };
                    results.extend(group.get_many(some, &keys).into_iter().map(|r| r.map(drop)));
                    let served = group.serve_peer_many(some, &more);
                    results.extend(served.into_iter().map(|r| r.map(drop)));
                    let errors = results.into_iter().filter_map(Result::err);
                    failed.lock().expect("no panic").extend(errors);
                }
            });
        }
    });
    let failed = failed.into_inner().expect("no panic");
    assert!(failed.is_empty(), "{failed:?}");
}

#[test]
fn getter_never_runs_more_often_at_once_than_the_limit() {
    let gauge = Arc::new(Gauge::default());
    let counted = gauge.clone();
    let getter = move |_: &Context, key: &str, dest: &mut dyn Sink| -> Result<(), BoxError> {
        counted.run();
        Ok(dest.set_str(key)?)
    };
    let builder = alone("limited").max_concurrent_loads(3);
    let group = builder.max_load_wait(PATIENCE).build(getter).expect("new");
    load_by_all_kinds(&group, 8);
    assert_eq!(gauge.most(), 3);
    assert_eq!(group.stats().local_loads, 8 * 4 * 15);
}

#[test]
fn bulk_call_counts_as_one_run() {
    let gauge = Arc::new(Gauge::default());
    let (counted, calls) = (gauge.clone(), Count::default());
    let counted_calls = calls.clone();
    let getter = bulk_fn(move |_, keys: &[&str], sinks: &mut [BulkSink<'_>]| {
        counted.run();
        counted_calls.add(1);
        for (key, sink) in keys.iter().zip(sinks) {
            sink.set_str(key)?;
        }
        Ok(())
    });
    let builder = alone("limited").max_concurrent_loads(2);
    let builder = builder.max_load_wait(PATIENCE);
    let group = builder.build_bulk(getter).expect("new");
    load_by_all_kinds(&group, 8);
    assert_eq!(gauge.most(), 2);
    assert_eq!(calls.get(), 8 * 4 * 5);
}

#[test]
fn panic_of_the_getter_gives_its_run_back() {
    let getter = |_: &Context, key: &str, dest: &mut dyn Sink| -> Result<(), BoxError> {
        if key.starts_with("bad") {
            std::panic::resume_unwind(Box::new("in the getter"));
        }
        Ok(dest.set_str(key)?)
    };
    let builder = alone("limited").max_concurrent_loads(1);
    let group = builder.max_load_wait(PATIENCE).build(getter).expect("new");
    for n in 0..3 {
        let (own, bad) = (group.clone(), format!("bad {n}"));
        assert!(start(move || own.get(&bad)).outcome().is_err());
        let result = group.get_with(&within(PATIENCE), &format!("bad on a loader thread {n}"));
        assert_eq!(kind(result), ErrorKind::GetterPanicked);
        assert_eq!(
            group.get(&format!("good {n}")).expect("a value"),
            format!("good {n}").as_str()
        );
    }
}

/// A way to load a key in a getter.
type NestedCall = fn(&Group, &str) -> larder::Result<()>;

const NESTED_CALLS: [(&str, NestedCall); 6] = [
    ("get", |group, key| group.get(key).map(drop)),
    ("get_with", |group, key| {
        group.get_with(&within(PATIENCE), key).map(drop)
    }),
    ("get_many", |group, key| {
        let keys = [key, &format!("{key} of many")];
        let values = group.get_many(&background(), &keys);
        values.into_iter().try_for_each(|value| value.map(drop))
    }),
    ("serve_peer", |group, key| {
        group.serve_peer(&background(), key).map(drop)
    }),
    ("serve_peer_many", |group, key| {
        let keys = [key, &format!("{key} of many")];
        let values = group.serve_peer_many(&background(), &keys);
        values.into_iter().try_for_each(|value| value.map(drop))
    }),
    ("warm", |group, key| {
        let warming = group.warm(vec![key.to_owned()], |_| ())?;
        assert_eq!(warming.join().loaded, 1);
        Ok(())
    }),
];

/// A group with so many runs of its getter. That of the key `outer n` loads other keys of the group, also by the
/// getter of another group, once it runs that often.
fn nesting_group(runs: usize, is_bulk: bool, call: NestedCall) -> Group {
    let groups: Arc<OnceLock<[Group; 2]>> = Arc::default();
    let (made, all_run) = (groups.clone(), Arc::new(Barrier::new(runs)));
    let load = move |key: &str| -> larder::Result<()> {
        let [group, other] = made.get().expect("they are made");
        if let Some(key) = key.strip_prefix("outer ") {
            all_run.wait();
            call(group, &format!("inner {key}"))?;
            call(other, &format!("through {key}"))?;
        } else if let Some(key) = key.strip_prefix("through ") {
            call(group, &format!("last {key}"))?;
        }
        Ok(())
    };
    let one = move |_: &Context, key: &str, dest: &mut dyn Sink| -> Result<(), BoxError> {
        load(key)?;
        Ok(dest.set_str(key)?)
    };
    let [group, other] = ["group", "other"].map(|name| {
        let builder = alone(name).max_concurrent_loads(runs);
        let (builder, one) = (builder.max_load_wait(PATIENCE), one.clone());
        let group = match is_bulk {
            true => builder.build_bulk(bulk_fn(move |ctx, keys: &[&str], sinks| {
                let mut each = keys.iter().zip(sinks);
                each.try_for_each(|(key, sink)| one(ctx, key, sink))
            })),
            false => builder.build(one),
        };
        group.expect("new")
    });
    groups.set([group.clone(), other]).expect("once");
    group
}

/// The outer loads take all runs, on their callers' threads or on loader threads.
#[test]
fn getters_that_load_other_keys_lend_their_runs() {
    const RUNS: usize = 2;
    for (name, call) in NESTED_CALLS {
        let [caller, loader_thread] = contexts();
        for (ctx, is_bulk) in [
            (&caller, false),
            (&caller, true),
            (&loader_thread, false),
            (&loader_thread, true),
        ] {
            let group = nesting_group(RUNS, is_bulk, call);
            let get = |n| {
                let (group, ctx) = (group.clone(), ctx.clone());
                start(move || group.get_with(&ctx, &format!("outer {n}")))
            };
            for call in (0..RUNS).map(get).collect::<Vec<_>>() {
                let result = call.end();
                assert!(result.is_ok(), "{name}, bulk {is_bulk}: {result:?}");
            }
        }
    }
}

#[test]
fn groups_of_a_registry_share_their_loader_threads() {
    const GROUPS: usize = 300;
    let registry = Registry::new();
    let threads: Arc<Mutex<HashSet<_>>> = Arc::default();
    for n in 0..GROUPS {
        let used = threads.clone();
        let group = Group::builder(format!("group {n}"))
            .registry(&registry)
            .max_capacity(1 << 20)
            .build_with(move |_, key| {
                used.lock()
                    .expect("no panic")
                    .insert(thread::current().id());
                Ok::<_, larder::Error>(key.to_owned())
            })
            .expect("a new group");
        let value = group.get_with(&within(PATIENCE), "key");
        assert_eq!(value.expect("a value"), "key");
    }
    let used = threads.lock().expect("no panic").len();
    assert!(used <= 5, "{used} threads for {GROUPS} groups");
}

#[test]
fn group_whose_getter_hangs_leaves_threads_to_the_others() {
    const THREADS: usize = 8;
    let registry = Registry::new();
    registry.set_max_loader_threads(THREADS).expect("not 0");
    let (gate, hung) = (Gate::new(), Count::default());
    let group = |name: &str| {
        let (gate, hung) = (gate.clone(), hung.clone());
        let getter = move |_: &Context, key: &str, dest: &mut dyn Sink| {
            if key.starts_with("hangs") {
                hung.add(1);
                gate.pass();
            }
            Ok(dest.set_str(key)?)
        };
        let builder = Group::builder(name).registry(&registry);
        builder.build(getter).expect("a new group")
    };
    let [sick, well] = ["sick", "well"].map(group);
    // Some calls may start no load, because their time is over at once.
    let is_refused = |n: usize| {
        let kind = kind(sick.get_with(&within(millis(1)), &format!("hangs {n}")));
        kind == ErrorKind::Overloaded
    };
    assert!((0..10_000).any(is_refused));
    eventually("the threads run", || hung.get() == THREADS as i64 / 2);
    for n in 0..20 {
        let value = well.get_with(&within(PATIENCE), &format!("key {n}"));
        assert_eq!(value.expect("a value"), format!("key {n}").as_str());
    }
    let zero = registry.set_max_loader_threads(0);
    assert_eq!(kind(zero), ErrorKind::InvalidOption);
    gate.open();
}
