//! A cluster that changes from Go to larder and back, node by node, under load.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, RwLock};
use std::thread;

use crate::cluster::{Node, Program, cluster};

#[test]
#[ignore = "needs Go: tests/interop/run.sh"]
fn rollover_to_larder_and_back_causes_no_error() {
    let nodes = cluster([Program::Go; 3].map(|program| program.start(&[])));
    let urls: Vec<String> = nodes.iter().map(|node| node.url.clone()).collect();
    let urls: Vec<&str> = urls.iter().map(String::as_str).collect();
    // A node that is replaced gets no callers, as behind a load balancer. Its peers still ask it.
    let places: Vec<RwLock<Option<Node>>> = nodes
        .into_iter()
        .map(|node| RwLock::new(Some(node)))
        .collect();
    let (done, calls) = (AtomicBool::new(false), AtomicU64::new(0));
    let keys = AtomicUsize::new(0);
    let loads = Mutex::new(0);

    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    let i = keys.fetch_add(1, Ordering::Relaxed);
                    // Callers get each key many times, at all nodes.
                    if let Ok(Some(node)) = places[i % 3].try_read().as_deref() {
                        node.expect(&format!("key-{}", i * 7 % 2000));
                        calls.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
        for program in [Program::Larder, Program::Go] {
            for (place, url) in places.iter().zip(&urls) {
                wait_for_calls(&calls, 2000);
                let old = place.write().expect("no panic").take().expect("a node");
                *loads.lock().expect("no panic") += old.loads().values().sum::<u64>();
                old.kill();
                // For a while no process listens on its port.
                wait_for_calls(&calls, 500);
                let new = program.start(&["--listen", url.trim_start_matches("http://")]);
                new.set_peers(&urls);
                *place.write().expect("no panic") = Some(new);
            }
        }
        wait_for_calls(&calls, 2000);
        done.store(true, Ordering::Relaxed);
    });
    println!(
        "3 nodes, Go to larder to Go: {} calls, no error; {} loads before the last nodes",
        calls.load(Ordering::Relaxed),
        loads.lock().expect("no panic")
    );
}

/// Waits until `more` calls were made, or all callers have failed.
fn wait_for_calls(calls: &AtomicU64, more: u64) {
    let until = calls.load(Ordering::Relaxed) + more;
    let begun = std::time::Instant::now();
    while calls.load(Ordering::Relaxed) < until {
        assert!(begun.elapsed().as_secs() < 30, "the callers make no calls");
        thread::yield_now();
    }
}
