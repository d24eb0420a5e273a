//! The keys that this node dropped lately: at the request of a peer, which had applied a removal that this
//! node may have missed; or by a removal.
//!
//! In the first case, the next value of such a key has to be newer than that removal. So it is not taken over
//! from another owner, which may have missed the removal, too, and no copy of it is sent to a peer. In the
//! second case, the value of a set that began before the removal is not kept.

use std::array;
use std::time::Duration;

use crate::clock::{Clock, Tick};
use crate::store::KeyHash;
use crate::sync::plain_atomic::{AtomicU64, Ordering::SeqCst};

/// Keys share places by their hashes. A place has the time, as of [`Tick::nanos`], until which its keys were
/// dropped lately.
pub(in crate::group) struct DroppedKeys([AtomicU64; PLACES]);

const PLACES: usize = 64;

impl DroppedKeys {
    pub(super) fn new() -> DroppedKeys {
        DroppedKeys(array::from_fn(|_| AtomicU64::new(0)))
    }

    /// Notes a key before it is dropped. Loads that began before are joined by no later get.
    pub(in crate::group) fn note(&self, hash: KeyHash, now: Tick) {
        self.place(hash)
            .fetch_max(now.after(LONGEST_REMOVAL).nanos(), SeqCst);
    }

    /// Notes all keys.
    pub(super) fn note_all(&self, now: Tick) {
        let until = now.after(LONGEST_REMOVAL).nanos();
        for place in &self.0 {
            place.fetch_max(until, SeqCst);
        }
    }

    /// Reads the clock only if a key of the same place was ever dropped.
    pub(in crate::group) fn may_contain(&self, hash: KeyHash, clock: &Clock) -> bool {
        let until = self.place(hash).load(SeqCst);
        until != 0 && until > clock.now().nanos()
    }

    fn place(&self, hash: KeyHash) -> &AtomicU64 {
        &self.0[hash.get() as usize % PLACES]
    }
}

/// How long a removal may be under way. A value of unknown age is not used for that long after a removal
/// of its stripe.
pub(super) const LONGEST_REMOVAL: Duration = Duration::from_secs(10);
