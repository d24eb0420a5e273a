//! Drops the entries that a clear took out of the cache, in parts.

use std::sync::mpsc;

use super::Inner;
use crate::nesting;
use crate::panics::FirstPanic;
use crate::store::{ClearedEntries, Evicted};
use crate::sync::{Arc, thread};

impl Inner {
    /// Lets a thread of its own drop the entries. If the system refuses one, this thread drops them.
    pub(super) fn sweep_later(self: &Arc<Self>, cleared: ClearedEntries) {
        let (sender, receiver) = mpsc::channel();
        let group = self.clone();
        let sweep = move || {
            receiver
                .into_iter()
                .for_each(|cleared| group.sweep(cleared))
        };
        // The entries follow later, because a refused function is dropped.
        let thread = thread::Builder::new().name("larder-sweep".into());
        match thread.spawn(sweep) {
            Ok(_) => drop(sender.send(cleared)),
            Err(_) => self.sweep(cleared),
        }
    }

    /// Calls the listener for the entries of a clear, and drops them.
    pub(super) fn sweep(self: &Arc<Self>, mut cleared: ClearedEntries) {
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
