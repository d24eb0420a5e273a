//! The picker of a registry, which one pool returns while another one registers its own.

use crate::peers::{PeerPicker, PickerSlot, ProtoGetter};
use crate::sync::{Arc, thread};

struct NoPeers;

impl PeerPicker for NoPeers {
    fn pick_peer(&self, _: &str) -> Option<Arc<dyn ProtoGetter>> {
        None
    }
}

/// A pool ends while the next one begins and a load asks for the picker. If the next one was registered,
/// loads find its picker, and else they find none.
#[test]
fn picker_that_was_registered_is_found() {
    loom::model(|| {
        let slot = PickerSlot::default();
        let ended = slot.lend(Arc::new(NoPeers)).expect("the slot is empty");
        let ending = thread::spawn(move || drop(ended));
        let loading = {
            let slot = slot.clone();
            thread::spawn(move || slot.picker("group").is_some())
        };
        let next = slot.lend(Arc::new(NoPeers));
        ending.join().unwrap();
        loading.join().unwrap();
        assert_eq!(slot.picker("group").is_some(), next.is_ok());
    });
}
