//! Warming: loads in the background that evict nothing.

use std::sync::{Arc, Mutex};

use larder::{BoxError, BulkSink, Context, Group, RemovalCause, Sink, WarmProgress, bulk_fn};

use crate::common::*;

fn keys(count: usize) -> Vec<String> {
    (0..count).map(|n| format!("key {n}")).collect()
}

#[test]
fn own_keys_are_loaded_and_the_progress_reaches_their_number() {
    let peer = FakePeer::echo();
    let theirs = peer.clone();
    let picker = picker(move |key, attempt| {
        let peer = theirs.clone();
        (key.ends_with('7') && attempt == 0).then_some(peer as _)
    });
    let (getter, loads) = echo();
    let group = among("warmed", picker).build(getter).expect("new");
    group.get("key 5").expect("a value");
    let reports: Arc<Mutex<Vec<WarmProgress>>> = Arc::default();
    let noted = reports.clone();
    let warming = group.warm(keys(100), move |progress| {
        noted.lock().expect("no panic").push(progress);
    });
    let end = warming.expect("threads").join();
    assert_eq!((end.total, end.done, end.loaded), (100, 100, 89));
    assert_eq!((end.skipped, end.failed, end.is_full), (11, 0, false));
    let reports = reports.lock().expect("no panic");
    let done: Vec<usize> = reports.iter().map(|report| report.done).collect();
    assert_eq!(done, (1..=100).collect::<Vec<_>>());
    assert_eq!(reports.last(), Some(&end));
    assert_eq!((loads.get(), peer.calls()), (90, 0));
    assert!(
        keys(100)
            .iter()
            .all(|key| group.contains_key(key) != key.ends_with('7'))
    );
}

#[test]
fn warming_evicts_nothing_and_ends_when_the_cache_is_full() {
    let evicted = Count::default();
    let counted = evicted.clone();
    let loads = Count::default();
    let counted_loads = loads.clone();
    let group = alone("full")
        .max_capacity(1 << 20)
        .eviction_listener(move |_, _, cause| {
            counted.add(i64::from(cause == RemovalCause::Size));
        })
        .build(move |_: &Context, _: &str, dest: &mut dyn Sink| {
            counted_loads.add(1);
            Ok(dest.set_bytes(&[0; 1000])?)
        })
        .expect("new");
    for n in 0..500 {
        group.get(&format!("own {n}")).expect("a value");
    }
    let end = group.warm(keys(5000), |_| ()).expect("threads").join();
    assert!(end.is_full, "{end:?}");
    assert!((300..1000).contains(&end.loaded), "{end:?}");
    assert_eq!(loads.get(), 500 + end.loaded as i64);
    assert_eq!(evicted.get(), 0);
    assert!((0..500).all(|n| group.contains_key(&format!("own {n}"))));
    // The last value of each thread may have found no room.
    let kept = keys(5000)
        .iter()
        .filter(|key| group.contains_key(key))
        .count();
    assert!(kept + 16 >= end.loaded, "{kept} of {}", end.loaded);
}

#[test]
fn cancelled_warming_completes_the_loads_under_way_only() {
    let (begun, gate) = (Gate::new(), Gate::new());
    let (begins, end) = (begun.clone(), gate.clone());
    let getter = move |_: &Context, key: &str, dest: &mut dyn Sink| {
        begins.open();
        end.pass();
        Ok(dest.set_str(key)?)
    };
    let builder = alone("cancelled").max_concurrent_loads(1);
    let group = builder.build(getter).expect("new");
    let warming = group.warm(keys(10), |_| ()).expect("threads");
    begun.pass();
    assert!(!warming.is_finished());
    // Waits for the permit of the first one.
    let other = group.warm(keys(10), |_| ()).expect("threads");
    warming.cancel();
    other.cancel();
    assert_eq!(other.join().done, 0);
    gate.open();
    let end = warming.join();
    assert_eq!((end.done, end.loaded), (1, 1));
    assert_eq!(group.entry_count(), 1);
}

#[test]
fn warming_and_callers_together_keep_to_the_limit_of_loads() {
    let runs: Arc<Mutex<(usize, usize)>> = Arc::default();
    let counted = runs.clone();
    let getter = move |_: &Context, key: &str, dest: &mut dyn Sink| {
        {
            let mut runs = counted.lock().expect("no panic");
            runs.0 += 1;
            runs.1 = runs.1.max(runs.0);
        }
        std::thread::sleep(millis(1));
        counted.lock().expect("no panic").0 -= 1;
        Ok(dest.set_str(key)?)
    };
    let builder = alone("limited").max_concurrent_loads(3);
    let group = builder.max_load_wait(PATIENCE).build(getter).expect("new");
    let warming = group.warm(keys(60), |_| ()).expect("threads");
    let callers: Vec<_> = (0..4)
        .map(|caller| {
            let group = group.clone();
            start(move || (0..10).all(|n| group.get(&format!("{caller} {n}")).is_ok()))
        })
        .collect();
    assert!(callers.into_iter().all(Call::end));
    assert_eq!(warming.join().loaded, 60);
    assert_eq!(runs.lock().expect("no panic").1, 3);
}

#[test]
fn key_that_is_removed_while_it_is_warmed_is_not_cached() {
    let (begun, gate) = (Gate::new(), Gate::new());
    let (begins, end) = (begun.clone(), gate.clone());
    let getter = move |_: &Context, key: &str, dest: &mut dyn Sink| {
        begins.open();
        end.pass();
        Ok(dest.set_str(key)?)
    };
    let group = alone("removed").build(getter).expect("new");
    let warming = group.warm(keys(1), |_| ()).expect("threads");
    begun.pass();
    group.invalidate("key 0");
    gate.open();
    assert_eq!(warming.join().loaded, 1);
    assert!(!group.contains_key("key 0"));
}

#[test]
fn bulk_getter_warms_batches() {
    let calls: Arc<Mutex<Vec<usize>>> = Arc::default();
    let noted = calls.clone();
    let getter = bulk_fn(move |_, keys: &[&str], sinks: &mut [BulkSink<'_>]| {
        noted.lock().expect("no panic").push(keys.len());
        for (key, sink) in keys.iter().zip(sinks) {
            if *key != "key 9" {
                sink.set_str(key)?;
            }
        }
        Ok(())
    });
    let group = alone("bulk").build_bulk(getter).expect("new");
    let end = group.warm(keys(300), |_| ()).expect("threads").join();
    assert_eq!((end.done, end.loaded, end.failed), (300, 299, 1));
    let mut calls = calls.lock().expect("no panic").clone();
    calls.sort_unstable();
    assert_eq!(calls, [44, 128, 128]);
    assert_eq!(group.entry_count(), 299);
}

#[test]
fn failures_and_panics_are_counted_and_end_nothing() {
    let getter = |_: &Context, key: &str, dest: &mut dyn Sink| -> Result<(), BoxError> {
        match key {
            "key 1" => Err("no paint left".into()),
            "key 2" => std::panic::resume_unwind(Box::new("in the getter")),
            key => Ok(dest.set_str(key)?),
        }
    };
    let builder = alone("fails").max_concurrent_loads(2);
    let group: Group = builder.build(getter).expect("new");
    let warming = group.warm(keys(20), |_| {
        std::panic::resume_unwind(Box::new("in the callback"));
    });
    let end = warming.expect("threads").join();
    assert_eq!((end.done, end.loaded, end.failed), (20, 18, 2));
    // All permits are free.
    let more = group.get_many(&within(PATIENCE), &["a", "b", "c"]);
    assert!(more.iter().all(Result::is_ok));
}

#[test]
fn keys_at_which_the_picker_panics_are_counted_and_end_nothing() {
    struct Panicking;
    impl larder::PeerPicker for Panicking {
        fn pick_peer(&self, key: &str) -> Option<Arc<dyn larder::ProtoGetter>> {
            if key != "key 39" {
                std::panic::resume_unwind(Box::new("in the picker"));
            }
            None
        }
    }
    let builder = among("picker", Arc::new(Panicking));
    let group = builder.build(echo().0).expect("new");
    let end = group.warm(keys(40), |_| ()).expect("threads").join();
    assert_eq!((end.done, end.loaded, end.failed), (40, 1, 39));
}
