//! Models of a restore: an entry of a dump is put into the cache while its key is removed.

use super::*;
use crate::loom_models::groups::{changing_group, model};
use crate::pb::{ClearRequest, RemovalTable, RemoveKeysRequest};
use crate::peers::PickerSlot;
use crate::sync::atomic::AtomicUsize;
use crate::sync::{Arc, thread};

const HOUR: Duration = Duration::from_secs(3600);

/// An entry of an hour ago is restored while a removal of a peer is applied. After both, it is not in the
/// cache. The time since the dump was measured by the clock since the boot, or by a wall clock.
fn restored_entry_never_survives(remove: fn(&Group, &RemovalTable<'_>)) {
    for is_exact in [true, false] {
        model(move || {
            let source = Arc::new(AtomicUsize::new(0));
            let [group, peer] = [(); 2].map(|()| changing_group(&source, PickerSlot::default()));
            peer.serve_remove(&removal());
            let table = peer.serve_removals(&RemovalTable::default());
            let inner = &group.inner;
            let dumped = inner.removals.table(inner.store.clock());
            let removing = {
                let group = group.clone();
                thread::spawn(move || remove(&group, &table))
            };
            let downtime = Downtime {
                until: inner.store.clock().now(),
                time: Some(HOUR),
                is_exact,
            };
            let entry = DumpedEntry {
                key: "key",
                value: b"old",
                age: Some(0),
                ttl: None,
            };
            let (mut report, mut panic) = (RestoreReport::default(), FirstPanic::default());
            group.restore_entry(&entry, downtime, &dumped, &mut report, &mut panic);
            removing.join().unwrap();
            assert_eq!(group.peek("key"), None, "{report:?}");
        });
    }
}

fn removal() -> RemoveKeysRequest<'static> {
    RemoveKeysRequest {
        group: "model".into(),
        keys: vec!["key".into()],
        removal_id: Some(7 << 32 | 1),
        unless_applied: None,
    }
}

#[test]
fn loom_restored_entry_never_survives_a_removal() {
    restored_entry_never_survives(|group, _| group.serve_remove(&removal()));
}

#[test]
fn loom_restored_entry_never_survives_a_clear() {
    restored_entry_never_survives(|group, _| {
        let sweep = group.clear_unswept(&ClearRequest {
            group: "model".into(),
            removal_id: Some(7 << 32 | 1),
        });
        sweep();
    });
}

/// The peer that removed the key sends its table.
#[test]
fn loom_restored_entry_never_survives_a_merge() {
    restored_entry_never_survives(|group, table| drop(group.serve_removals(table)));
}
