//! A model of a failed load that is recorded while its key is removed.

use super::*;
use crate::loom_models::groups::{changing_group, model};
use crate::peers::PickerSlot;
use crate::sync::atomic::AtomicUsize;
use crate::sync::{Arc, thread};

/// The group's first load that fails is recorded before, while or after its key is removed. After both, the
/// failure is forgotten, so that the next get loads the key.
#[test]
fn failure_never_survives_removal() {
    model(|| {
        let group = changing_group(&Arc::new(AtomicUsize::new(0)), PickerSlot::default());
        let begun = {
            let (inner, key) = (&group.inner, group.inner.key("key"));
            inner.getter_flights.forgets(key.hash.get())
        };
        let failing = {
            let group = group.clone();
            thread::spawn(move || {
                let (inner, key) = (&group.inner, group.inner.key("key"));
                let failure = FailedLoad {
                    until: inner.store.clock().now().after(RETRY_AFTER),
                    error: None,
                };
                let forgets = || inner.getter_flights.forgets(key.hash.get());
                inner
                    .failed_loads
                    .record(&key, failure, || forgets() != begun);
            })
        };
        group.invalidate("key");
        failing.join().unwrap();
        let (inner, key) = (&group.inner, group.inner.key("key"));
        let failure = inner.failed_loads.recent(&key, inner.store.clock());
        assert!(failure.is_none());
    });
}
