//! Keys whose load failed lately, which are not loaded again for some time.

use std::hash::BuildHasher;
use std::time::Duration;

use foldhash::fast::RandomState;

use crate::clock::Tick;
use crate::error::Error;
use crate::lru;
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicBool, Ordering};

/// The failed loads of a group, by the hashes of their keys.
pub(super) struct Attempts {
    /// Whether there may be failures. If not, no lock is taken.
    any: AtomicBool,
    stripes: Box<[Mutex<lru::Cache<Id, Attempt>>]>,
    hasher: RandomState,
}

/// Two independent hashes of a key, 128 bits. So the memory of a failure does not depend on the length of
/// its key.
type Id = (u64, u64);

/// A failed load.
#[derive(Clone)]
pub(super) struct Attempt {
    /// When the key may be loaded again.
    pub(super) until: Tick,
    /// The error for gets without a value. `None` if they load the key.
    pub(super) error: Option<Error>,
}

/// After a failed load of a key that has a value, or had one when its loads began to fail.
pub(super) const RETRY_AFTER: Duration = Duration::from_secs(30);

const STRIPES: usize = if cfg!(larder_loom) { 1 } else { 16 };

/// The most keys in one stripe.
const MAX_KEYS: usize = 512;

impl Attempts {
    pub(super) fn new() -> Attempts {
        Attempts {
            any: AtomicBool::new(false),
            stripes: (0..STRIPES)
                .map(|_| Mutex::new(lru::Cache::new(MAX_KEYS)))
                .collect(),
            hasher: RandomState::default(),
        }
    }

    /// The failed load because of which the key is not to be loaded now.
    #[inline]
    pub(super) fn recent(
        &self,
        hash: u64,
        key: &str,
        now: impl FnOnce() -> Tick,
    ) -> Option<Attempt> {
        if !self.any.load(Ordering::Acquire) {
            return None;
        }
        let now = now();
        let stripe = self.stripe(hash).lock();
        let attempt = stripe.peek(&self.id(hash, key));
        attempt.filter(|attempt| now < attempt.until).cloned()
    }

    /// Whether a load of the key failed and none has succeeded since, as far as is remembered.
    pub(super) fn contains(&self, hash: u64, key: &str) -> bool {
        self.any.load(Ordering::Acquire) && self.stripe(hash).lock().contains(&self.id(hash, key))
    }

    /// Notes a failed load, unless the key was removed since the load began. `is_forgotten` is called
    /// under the lock that [`forget`](Self::forget) takes: either it returns true, or the removal comes
    /// later and takes the note away.
    pub(super) fn note(
        &self,
        hash: u64,
        key: &str,
        attempt: Attempt,
        is_forgotten: impl FnOnce() -> bool,
    ) {
        self.any.store(true, Ordering::Release);
        let id = self.id(hash, key);
        let mut stripe = self.stripe(hash).lock();
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

    pub(super) fn forget(&self, hash: u64, key: &str) {
        if self.any.load(Ordering::Acquire) {
            let forgotten = self.stripe(hash).lock().remove(&self.id(hash, key));
            drop(forgotten);
        }
    }

    pub(super) fn forget_all(&self) {
        for stripe in &self.stripes {
            let empty = lru::Cache::new(MAX_KEYS);
            let forgotten = std::mem::replace(&mut *stripe.lock(), empty);
            drop(forgotten);
        }
    }

    fn stripe(&self, hash: u64) -> &Mutex<lru::Cache<Id, Attempt>> {
        &self.stripes[(hash >> 32) as usize % STRIPES]
    }

    fn id(&self, hash: u64, key: &str) -> Id {
        (hash, self.hasher.hash_one(key))
    }
}
