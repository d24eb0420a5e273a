//! Removals in a cluster: at the owner of a key, at a peer, and while the peer asks the owner.

use std::sync::OnceLock;
use std::sync::atomic::Ordering;

use super::Works;
use super::groups::{Other, bounded_model, changing_group, group};
use crate::context::Context;
use crate::getter::getter_fn;
use crate::group::{Group, SetOptions, WeakGroup};
use crate::pb::{ClearRequest, RemovalTable, RemoveKeysRequest};
use crate::peers::{PeerResponse, PickerSlot, Pickers};
use crate::sync::atomic::AtomicUsize;
use crate::sync::{Arc, Mutex, thread};

/// A node that owns the key, and one that asks it. Both load from one source.
fn owner_and_peer(source: &Arc<AtomicUsize>) -> [Group; 2] {
    let owner = changing_group(source, PickerSlot::default());
    let (link, slot) = (Other::default(), PickerSlot::default());
    assert!(link.0.set(owner.downgrade()).is_ok(), "it is new");
    slot.register(Pickers::One(Arc::new(link)))
        .expect("the slot is empty");
    [owner, changing_group(source, slot)]
}

/// The source changes, and then `remove` runs at both nodes on threads of their own, while a third one
/// asks the peer. After all of them, the peer has no old value.
fn removed_everywhere_is_removed(remove: fn(&Group)) {
    bounded_model(move || {
        let source = Arc::new(AtomicUsize::new(0));
        let [owner, peer] = owner_and_peer(&source);
        // The owner has the old value.
        assert_eq!(owner.get("key").expect("a value"), "0");
        source.store(1, Ordering::SeqCst);
        let removing = {
            let owner = owner.clone();
            thread::spawn(move || remove(&owner))
        };
        let asking = {
            let peer = peer.clone();
            thread::spawn(move || peer.get("key").map(drop))
        };
        remove(&peer);
        removing.join().unwrap();
        // The other get may be under way still.
        assert_eq!(peer.get("key").expect("a value"), "1");
        asking.join().unwrap().expect("a value");
        assert_eq!(peer.get("key").expect("a value"), "1", "it is not cached");
    });
}

#[test]
fn value_removed_at_owner_and_peer_does_not_come_back_by_a_fetch() {
    removed_everywhere_is_removed(|group| {
        group.serve_remove(&removal(1));
    });
}

#[test]
fn cleared_value_does_not_come_back_by_a_fetch() {
    removed_everywhere_is_removed(|group| {
        let sweep = group.clear_unswept(&ClearRequest {
            group: "model".into(),
            removal_id: Some(7 << 32 | 1),
        });
        sweep();
    });
}

#[test]
fn load_never_replaces_a_set_value() {
    bounded_model(|| {
        let source = Arc::new(AtomicUsize::new(0));
        let group = changing_group(&source, PickerSlot::default());
        let loading = {
            let group = group.clone();
            thread::spawn(move || group.get("key").map(drop))
        };
        source.store(1, Ordering::SeqCst);
        let options = SetOptions::new();
        group
            .set(&Context::background(), "key", "1", options)
            .expect("no peers");
        assert_eq!(group.get("key").expect("a value"), "1");
        loading.join().unwrap().expect("a value");
        assert_eq!(group.peek("key"), Some("1".into()));
    });
}

#[test]
fn load_concurrent_with_clear_and_sweep_never_survives() {
    bounded_model(|| {
        let source = Arc::new(AtomicUsize::new(0));
        let group = changing_group(&source, PickerSlot::default());
        let loading = {
            let group = group.clone();
            thread::spawn(move || group.get("key").map(drop))
        };
        source.store(1, Ordering::SeqCst);
        let sweep = group.clear_unswept(&ClearRequest::default());
        let sweeping = thread::spawn(sweep);
        assert_eq!(group.get("key").expect("a value"), "1");
        loading.join().unwrap().expect("a value");
        sweeping.join().unwrap();
        assert_eq!(group.peek("key"), Some("1".into()));
        assert_eq!(group.entry_count(), 1);
    });
}

fn removal(count: u64) -> RemoveKeysRequest<'static> {
    RemoveKeysRequest {
        group: "model".into(),
        keys: vec!["key".into()],
        removal_id: Some(7 << 32 | count),
        unless_applied: None,
    }
}

/// The stamp in an answer; 0 if it has none.
fn stamp_of(answer: &PeerResponse) -> u32 {
    answer.removals.map_or(0, |bits| bits as u32)
}

#[test]
fn answer_with_the_stamp_of_a_removal_is_no_older_value() {
    bounded_model(|| {
        let works = Works::default();
        let this = Arc::new(OnceLock::<WeakGroup>::new());
        let threads = Arc::new(Mutex::new(Vec::new()));
        let getter = {
            let (works, this, threads) = (works.clone(), this.clone(), threads.clone());
            getter_fn(move |_, _, dest| {
                if works.work() > 0 {
                    return Ok(dest.set_str("new")?);
                }
                // The key is removed while this load is under way, and a peer asks for it, which may join
                // the load.
                let group = this.get().and_then(WeakGroup::upgrade).expect("a group");
                let removing = {
                    let group = group.clone();
                    thread::spawn(move || group.serve_remove(&removal(1)))
                };
                let asking = thread::spawn(move || {
                    let answer = group.serve_peer(&Context::background(), "key");
                    let answer = answer.expect("a value");
                    assert!(stamp_of(&answer) == 0 || answer.value == "new");
                });
                threads.lock().extend([removing, asking]);
                thread::yield_now();
                Ok(dest.set_str("old")?)
            })
        };
        let group = group(PickerSlot::default(), getter);
        assert!(this.set(group.downgrade()).is_ok(), "it is new");
        assert_eq!(group.get("key").expect("a value"), "old");
        let threads = std::mem::take(&mut *threads.lock());
        threads
            .into_iter()
            .for_each(|thread| thread.join().unwrap());
    });
}

#[test]
fn merge_does_not_undo_the_stamp_of_a_removal_under_way() {
    bounded_model(|| {
        let source = Arc::new(AtomicUsize::new(0));
        let [node, peer] = [(); 2].map(|()| changing_group(&source, PickerSlot::default()));
        peer.serve_remove(&removal(1));
        let table = peer.serve_removals(&RemovalTable::default());
        let removing = {
            let node = node.clone();
            thread::spawn(move || node.serve_remove(&removal(2)))
        };
        node.serve_removals(&table);
        removing.join().unwrap();
        let [node, peer] = [node, peer].map(|group| {
            let answer = group.serve_peer(&Context::background(), "key");
            stamp_of(&answer.expect("a value"))
        });
        assert_ne!(node, peer, "the peer lacks the second removal");
    });
}

/// Two peers send the same removals at the same time. After each of the two exchanges, there is no old value.
#[test]
fn tables_at_the_same_time_leave_no_old_value() {
    bounded_model(|| {
        let source = Arc::new(AtomicUsize::new(0));
        let [node, peer] = [(); 2].map(|()| changing_group(&source, PickerSlot::default()));
        assert_eq!(node.get("key").expect("a value"), "0");
        source.store(1, Ordering::SeqCst);
        peer.serve_remove(&removal(1));
        let table = peer.serve_removals(&RemovalTable::default());
        let merging = {
            let (node, table) = (node.clone(), table.clone());
            thread::spawn(move || drop(node.serve_removals(&table)))
        };
        node.serve_removals(&table);
        assert_eq!(node.get("key").expect("a value"), "1");
        merging.join().unwrap();
    });
}
