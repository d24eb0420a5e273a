//! Loads that renew a value, and callers that wait for a load no longer than a soft time-out.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::groups::model;
use crate::clock::Clock;
use crate::context::Context;
use crate::getter::getter_fn;
use crate::group::{GetOptions, Group};
use crate::peers::PickerSlot;
use crate::singleflight::{self, Joined, Waited};
use crate::sync::Arc;
use crate::sync::atomic::AtomicUsize;
use crate::sync::thread;

/// A group that has cached the value "0" of a source. Its getter renews the cached value while the source
/// still has it.
fn renewing(source: &Arc<AtomicUsize>) -> Group {
    let (source, clock) = (source.clone(), Clock::manual());
    let group = Group::builder("model")
        .max_capacity(1 << 16)
        .shards(1)
        .clock(clock.clone())
        .max_key_size(100)
        .max_value_size(100)
        .max_loader_threads(1)
        .time_to_live(Duration::from_secs(10))
        .time_to_live_jitter(0.0)
        .make(
            getter_fn(move |ctx, _, dest| {
                let now = source.load(Ordering::SeqCst).to_string();
                if ctx.etag() == Some(&now) {
                    return Ok(dest.not_modified()?);
                }
                dest.set_etag(&now);
                Ok(dest.set_str(&now)?)
            }),
            PickerSlot::default(),
        );
    assert_eq!(group.get("key").expect("a value"), "0");
    clock.advance(Duration::from_secs(1));
    group
}

/// Loads a newer value, as a refresh does.
fn refresh(group: &Group) {
    let options = GetOptions::new().max_age(Duration::ZERO);
    let answer = group.get_opts(&Context::background(), "key", options);
    let value = answer.expect("a value").value;
    assert!(value == "0" || value == "1", "{value:?}");
}

/// The source changes, and then the key is removed. Every get after that must return the new value.
#[test]
fn refresh_never_survives_removal() {
    model(|| {
        let source = Arc::new(AtomicUsize::new(0));
        let group = renewing(&source);
        let refreshing = {
            let group = group.clone();
            thread::spawn(move || refresh(&group))
        };
        source.store(1, Ordering::SeqCst);
        group.invalidate("key");
        assert_eq!(group.get("key").expect("a value"), "1");
        refreshing.join().unwrap();
        let cached = group.peek("key");
        assert_eq!(cached, Some("1".into()), "the old value is not renewed");
    });
}

/// A load on another thread ends while its caller waits no longer, as after a soft time-out. The caller gets
/// the result or leaves, and another waiter gets the result.
#[test]
fn waiter_that_leaves_consumes_no_result() {
    loom::model(|| {
        let flights: Arc<singleflight::Group<usize>> = Arc::new(singleflight::Group::new());
        let Joined::Leader(leader, ..) = flights.join(0, "key") else {
            panic!("no other caller leads");
        };
        let soft = leader.detach();
        let id = soft.id();
        let landing = {
            let flights = flights.clone();
            thread::spawn(move || flights.lead(0, id).finish(&1))
        };
        let patient = {
            let flights = flights.clone();
            thread::spawn(move || match flights.join(0, "key") {
                Joined::Waiter(waiter) => match waiter.wait(&Context::background()) {
                    Waited::Finished(value) => assert_eq!(value, 1),
                    _ => panic!("a waiter without a deadline gets the result"),
                },
                // The flight has ended before.
                Joined::Leader(leader, ..) => leader.finish(&2),
            })
        };
        match soft.wait(&Context::background().with_timeout(Duration::ZERO)) {
            Waited::Finished(value) => assert_eq!(value, 1),
            Waited::Left(_) => {}
            _ => panic!("the flight ends with a result"),
        }
        drop(soft);
        landing.join().unwrap();
        patient.join().unwrap();
        assert_eq!(flights.in_flight(), 0);
    });
}
