//! Loads that find the cached value unchanged, and renew it.

use super::lifetime::Lifetime;
use super::{Inner, LoadBegin, LoadKey};
use crate::old_value::OldValue;

impl Inner {
    /// The cached value, fresh or not, that a load which began now may renew. `None` if the key was removed
    /// or set since then: the load's value is not cached.
    ///
    /// A value whose begin is not known is not renewed. It came from a server that is not larder's, or is
    /// weeks old.
    pub(super) fn old_value(&self, key: &LoadKey<'_>, begun: &LoadBegin) -> Option<OldValue> {
        if !self.store.may_expire() {
            return None;
        }
        let (kept, generation) = self.store.kept(key.hash, key.key);
        let kept = kept.filter(|kept| generation == begun.generation && kept.begun.is_some())?;
        let lifetime = Lifetime::of_entry(kept.begun, kept.expires, self.freshness.allowance());
        Some(OldValue {
            good_for: lifetime.fresh_until.map(|_| lifetime.fresh_time()),
            view: kept.view,
            etag: kept.etag,
        })
    }
}
