//! Drops the entries that a clear took out of the cache, in parts.

use crate::group::Inner;
use crate::panics::FirstPanic;
use crate::store::{ClearedEntries, Evicted};
use crate::sync::{Arc, Mutex, spawn};
use crate::threads::nesting;

impl Inner {
    /// Lets a thread of its own drop the entries. If the system refuses one, this thread drops them.
    pub(super) fn sweep_later(self: &Arc<Self>, cleared: ClearedEntries) {
        // The thread takes them from here, because a refused function is dropped.
        let cleared = Arc::new(Mutex::new(Some(cleared)));
        let sweep = {
            let (group, cleared) = (self.clone(), cleared.clone());
            move || group.sweep_taken(&cleared)
        };
        if spawn("larder-sweep", None, sweep).is_err() {
            self.sweep_taken(&cleared);
        }
    }

    fn sweep_taken(self: &Arc<Self>, cleared: &Mutex<Option<ClearedEntries>>) {
        let taken = cleared.lock().take();
        if let Some(cleared) = taken {
            self.sweep(cleared);
        }
    }

    /// Calls the listener for the entries of a clear, and drops them.
    pub(in crate::group) fn sweep(self: &Arc<Self>, mut cleared: ClearedEntries) {
        let (group, mut panic) = (self.clone(), FirstPanic::default());
        nesting::run_or_queue(&mut panic, move |panic| {
            while let Some(part) = group.store.take_cleared(&mut cleared) {
                for Evicted { entry, cause } in part {
                    if let Some(listener) = &group.eviction_listener {
                        panic.catch(|| listener(entry.key(), entry.value(), cause));
                    }
                }
            }
        });
        panic.resume();
    }
}
