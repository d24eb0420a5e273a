//! Refuses values of peers that may be older than a removal which this node has applied.
//!
//! Without it, a removal that is sent to all nodes at the same time would not be enough:
//!
//! 1. The source changes, and a node begins to remove the key.
//! 2. H drops its copy.
//! 3. A get at H asks the owner, which has not received the removal, and gets the old value.
//! 4. H caches the old value.
//! 5. The owner drops the value, and the removal returns.
//! 6. A get at H returns the old value.
//!
//! At step 4, H compares the owner's removals, which are in the answer, with its own. If the owner has
//! not applied all of them, and its load of the value began before the last of them, H has the owner drop
//! the value, and asks again. The owner keeps it if it has applied them meanwhile, and others in
//! addition. So no caller at H gets the old value: not the one that asked, and none that
//! joins its load after the removal has returned.

use std::time::Duration;

use super::dropped_keys::LONGEST_REMOVAL;
use super::{KeyStripe, RemovalMark};
use crate::clock::Tick;
use crate::context::Context;
use crate::error::Result;
use crate::group::Inner;
use crate::pb::RemoveKeysRequest;
use crate::peers::{PeerResponse, ProtoGetter};
use crate::sync::Arc;

/// An answer, and a time at or before its request.
pub(in crate::group) type Answer = (Tick, PeerResponse);

impl Inner {
    /// The mark for an answer to a peer, 0 if there was no removal. Read before the value is looked up.
    pub(in crate::group) fn removals_for(&self, key: &str) -> Option<u64> {
        Some(self.removals.mark(key).unwrap_or_default().to_bits())
    }

    /// Whether a peer's value is not older than any removal of its key that this node has applied, as
    /// far as can be known.
    pub(in crate::group) fn is_current(
        &self,
        key: &str,
        sent: Tick,
        response: &PeerResponse,
    ) -> bool {
        if self.removals.are_unused() {
            return true;
        }
        let stripe = KeyStripe::of(key);
        let mark = response.removals.map(RemovalMark::from_bits);
        if mark.is_some() && self.removals.has_same(stripe, mark) {
            return true;
        }
        let now = self.store.clock().now();
        let Some(since_removal) = self.removals.since_removal(stripe, now) else {
            return true;
        };
        // An equal time is no proof: the clock may not have moved between removal and load.
        match response.age.and_then(|age| sent.before(age)) {
            Some(begun) => now.since(begun) < since_removal,
            // A server that knows of no removals and no ages, such as a Go program.
            None => mark.is_none() && since_removal > LONGEST_REMOVAL,
        }
    }

    /// An answer in place of one that [is not current](Self::is_current): has the peer drop its value unless
    /// it has applied all removals that this node knows, and asks again. `None` if the peer does not drop
    /// it, or answers too late: then the getter has to run here.
    #[cold]
    pub(in crate::group) fn newer_answer(
        &self,
        peer: &Arc<dyn ProtoGetter>,
        ctx: &Context,
        key: &str,
        mut answer: PeerResponse,
        ask_again: impl FnOnce() -> Result<PeerResponse>,
    ) -> Result<Option<PeerResponse>> {
        if answer.removals.is_none() && answer.age.is_none() {
            // A Go program, which has one value of a key and would lose one that was just set. Its answer
            // is returned to the callers of this load, and not cached: a get that begins later asks again.
            answer.ttl = Some(Duration::ZERO);
            return Ok(Some(answer));
        }
        let uncounted = RemoveKeysRequest {
            group: self.name.as_str().into(),
            keys: vec![key.into()],
            removal_id: Some(0),
            unless_applied: self.removals.known().map(Into::into),
        };
        let begun = self.store.clock().now();
        if let Err(error) = peer.remove(ctx, &uncounted) {
            log::debug!("group {}: {error}", self.name);
            return Ok(None);
        }
        // If the peer has dropped its value, the load of the new answer began after that, and so after every
        // removal that this node knew; it is not taken over from another node. If not, the peer had applied
        // all of them. After `LONGEST_REMOVAL` the peer may send a copy of the key again.
        let answer = ask_again()?;
        let is_in_time = self.store.clock().now().since(begun) < LONGEST_REMOVAL;
        Ok(is_in_time.then_some(answer))
    }
}
