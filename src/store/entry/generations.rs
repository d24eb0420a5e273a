//! Counters of removals. An insertion uses them to detect that its value was loaded before a removal.

use super::key_hash::KeyHash;

/// The number of removals in one stripe of keys, at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Generation(u32);

/// The number of removals so far, for each stripe of keys. A removal in the same stripe only keeps a
/// concurrent load from being cached.
#[derive(Debug)]
pub(in crate::store) struct Generations(Box<[u32; STRIPES]>);

const STRIPES: usize = 128;

impl Generations {
    pub(in crate::store) fn new() -> Generations {
        Generations(Box::new([0; STRIPES]))
    }

    pub(in crate::store) fn of(&self, hash: KeyHash) -> Generation {
        Generation(self.0[hash.stripe(STRIPES)])
    }

    /// Counts a removal of a key.
    pub(in crate::store) fn advance(&mut self, hash: KeyHash) {
        let count = &mut self.0[hash.stripe(STRIPES)];
        *count = count.wrapping_add(1);
    }

    /// Counts a removal of every key.
    pub(in crate::store) fn advance_all(&mut self) {
        for count in self.0.iter_mut() {
            *count = count.wrapping_add(1);
        }
    }
}
