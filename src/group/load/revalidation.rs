//! Loads that find the cached value unchanged, and renew it.

use std::time::Duration;

use crate::getter::old_value::OldValue;
use crate::group::lifetime::Lifetime;
use crate::group::{Inner, LoadBegin, LoadKey};

impl Inner {
    /// The cached value, fresh or not, that a load which began now may renew. `None` if the key was removed
    /// or set since then: the load's value is not cached.
    ///
    /// A value whose begin is not known is not renewed. It came from a server that is not larder's, or is
    /// weeks old.
    #[inline]
    pub(in crate::group) fn old_value(
        &self,
        key: &LoadKey<'_>,
        begun: &LoadBegin,
    ) -> Option<OldValue> {
        match self.store.may_expire() {
            true => self.kept_value(key, begun),
            false => None,
        }
    }

    fn kept_value(&self, key: &LoadKey<'_>, begun: &LoadBegin) -> Option<OldValue> {
        let (kept, generation) = self.store.kept(key.hash, key.key);
        let kept = kept.filter(|kept| generation == begun.generation && kept.begun.is_some())?;
        let lifetime = Lifetime::of_entry(kept.begun, kept.expires, self.freshness.allowance());
        Some(OldValue {
            good_for: lifetime
                .fresh_until
                .map(|_| whole_millis(lifetime.fresh_time())),
            view: kept.view,
            etag: kept.etag,
        })
    }
}

/// The store keeps the start of a load in whole milliseconds, rounded down, so the time from there to the end
/// is up to a millisecond longer than the time to live. Without this, each renewal would add a part of a
/// millisecond.
fn whole_millis(time: Duration) -> Duration {
    let whole = time - Duration::from_nanos(u64::from(time.subsec_nanos() % 1_000_000));
    match whole.is_zero() {
        true => time,
        false => whole,
    }
}
