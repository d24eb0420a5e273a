//! Handoff: takes a value over from the previous owner of its key, before the getter runs.

use std::time::Duration;

use super::populate::{NewValue, Placement};
use super::{Inner, LoadBegin, LoadKey, Loaded};
use crate::context::Context;
use crate::error::ErrorKind;
use crate::store::EvictedEntries;
use crate::sync::Arc;

impl Inner {
    /// The value that the previous owner of the key has cached, if the peers changed lately. It is put
    /// into the main share, with the age and the expiry that it has there.
    ///
    /// `None` if this process has a value of its own: then the load is a refresh.
    pub(super) fn take_over(
        self: &Arc<Self>,
        placement: Placement,
        ctx: &Context,
        key: LoadKey<'_>,
        begun: LoadBegin,
        evicted: &mut EvictedEntries,
    ) -> Option<Loaded> {
        let previous = self
            .peers
            .ask(&self.name, |picker| picker.previous_owner(key.key));
        let previous = previous.flatten()?;
        let now = self.store.clock().now();
        if self.removals.dropped.may_contain(key.hash, now) {
            return None;
        }
        if self.store.peek(key.hash, key.key).is_ok() {
            return None;
        }
        let sent = self.store.clock().now();
        let answers = previous.get_many(&ctx.with_timeout(PATIENCE), &self.name, &[key.key]);
        if let Err(error) = &answers {
            // Not a time-out: this one is much shorter than that of other exchanges.
            if error.kind() == ErrorKind::Peer {
                self.note_failure(error);
            }
        }
        let response = answers.ok()?.into_iter().next()??;
        self.compare(&previous, ctx, sent, response.removals);
        if !self.is_current(key.key, sent, &response) {
            return None;
        }
        self.counters.add(|loads| &loads.peer_loads);
        let lifetime = self.lifetime_of(sent, &response);
        let mut view = response.value;
        let value = NewValue::new(&mut view, lifetime);
        let lifetime = self.populate(placement, key, begun, value, evicted);
        Some(Loaded {
            view,
            lifetime,
            by_peer: true,
        })
    }
}

/// How long the previous owner may take to answer.
const PATIENCE: Duration = Duration::from_millis(10);
