//! Keys whose load failed lately, which are not loaded again for some time.

use std::hash::BuildHasher;
use std::time::Duration;

use foldhash::fast::RandomState;

use crate::clock::{Clock, Tick};
use crate::error::Error;
use crate::group::LoadKey;
use crate::lru;
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicBool, Ordering, fence};

/// The failed loads of a group, by the hashes of their keys.
pub(in crate::group) struct FailedLoads {
    /// Whether a load has ever failed. Until then, no lock is taken.
    any: AtomicBool,
    stripes: Box<[Mutex<lru::Cache<Id, FailedLoad>>]>,
    hasher: RandomState,
}

/// Two independent hashes of a key, 128 bits. So the memory of a failure does not depend on the length of
/// its key.
type Id = (u64, u64);

/// A failed load.
#[derive(Clone)]
pub(in crate::group) struct FailedLoad {
    /// When the key may be loaded again.
    pub(super) until: Tick,
    /// The error that a get receives if the key has no value. With `None`, such a get loads the key.
    pub(super) error: Option<Error>,
}

/// How long a key is not loaded again after a failed load, if the key has a value, or had one when its loads
/// began to fail.
pub(super) const RETRY_AFTER: Duration = Duration::from_secs(30);

const STRIPES: usize = if cfg!(larder_loom) { 1 } else { 16 };

/// The most keys in one stripe.
const MAX_KEYS: usize = 512;

impl FailedLoads {
    pub(in crate::group) fn new() -> FailedLoads {
        FailedLoads {
            any: AtomicBool::new(false),
            stripes: (0..STRIPES)
                .map(|_| Mutex::new(lru::Cache::new(MAX_KEYS)))
                .collect(),
            hasher: RandomState::default(),
        }
    }

    /// The failed load that keeps the key from being loaded now, if there is one.
    #[inline]
    pub(in crate::group) fn recent(&self, key: &LoadKey<'_>, clock: &Clock) -> Option<FailedLoad> {
        match self.any.load(Ordering::Acquire) {
            true => self.find_recent(key, clock),
            false => None,
        }
    }

    fn find_recent(&self, key: &LoadKey<'_>, clock: &Clock) -> Option<FailedLoad> {
        let now = clock.now();
        let stripe = self.stripe(key).lock();
        let attempt = stripe.peek(&self.id(key));
        attempt.filter(|attempt| now < attempt.until).cloned()
    }

    /// Whether a failed load of the key is still recorded: none has succeeded since, and newer failures of
    /// other keys have not displaced the record.
    pub(super) fn contains(&self, key: &LoadKey<'_>) -> bool {
        self.any.load(Ordering::Acquire) && self.stripe(key).lock().contains(&self.id(key))
    }

    /// Records a failed load, unless the key was removed since the load began. `is_forgotten` is called
    /// under the lock that [`forget`](Self::forget) takes: either it returns true, or the removal comes
    /// later and deletes the record.
    pub(super) fn record(
        &self,
        key: &LoadKey<'_>,
        attempt: FailedLoad,
        is_forgotten: impl FnOnce() -> bool,
    ) {
        self.any.store(true, Ordering::Release);
        // This fence and the one in `forget` are a pair: either the removal sees `any`, or `is_forgotten` sees
        // the removal.
        fence(Ordering::SeqCst);
        let id = self.id(key);
        let mut stripe = self.stripe(key).lock();
        if is_forgotten() {
            return;
        }
        let replaced = match stripe.remove(&id) {
            None if stripe.len() == MAX_KEYS => stripe.remove_oldest().map(|(_, oldest)| oldest),
            replaced => replaced,
        };
        stripe.add(id, attempt);
        drop(stripe);
        // An error may hold user code, so it is dropped without the lock.
        drop(replaced);
    }

    /// Deletes the record of a key that was removed, or whose load succeeded. The flights have counted the
    /// removal before.
    pub(in crate::group) fn forget(&self, key: &LoadKey<'_>) {
        // Orders the count of the removal before the read of `any`: see the fence in `record`.
        fence(Ordering::SeqCst);
        if self.any.load(Ordering::Acquire) {
            let forgotten = self.stripe(key).lock().remove(&self.id(key));
            drop(forgotten);
        }
    }

    pub(in crate::group) fn forget_all(&self) {
        for stripe in &self.stripes {
            let empty = lru::Cache::new(MAX_KEYS);
            let forgotten = std::mem::replace(&mut *stripe.lock(), empty);
            drop(forgotten);
        }
    }

    fn stripe(&self, key: &LoadKey<'_>) -> &Mutex<lru::Cache<Id, FailedLoad>> {
        &self.stripes[(key.hash.get() >> 32) as usize % STRIPES]
    }

    fn id(&self, key: &LoadKey<'_>) -> Id {
        (key.hash.get(), self.hasher.hash_one(key.key))
    }
}

#[cfg(all(test, larder_loom))]
mod loom_models;
