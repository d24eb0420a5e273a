//! What is known of an entry without touching it.

use std::sync::atomic::{AtomicU8, Ordering};

use crate::stats::CacheType;

/// Hits beyond this many are not counted; S3-FIFO needs no more.
pub(crate) const MAX_FREQ: u8 = 7;

/// Four bytes, beside the pointer to the entry.
#[derive(Debug)]
pub(crate) struct Mark {
    pub(super) key_len: u16,
    /// Eight bits of the hash: of the strangers that the table's own seven bits let through they
    /// turn away all but one in 256, without a look at the entry.
    pub(super) tag: u8,
    /// Hits since the entry entered its queue, and the flags below. Readers count hits under the
    /// shared lock with a plain load and store: two at once may count as one, which S3-FIFO does
    /// not mind. The flags change under the exclusive lock alone, so no reader's store undoes one.
    state: AtomicU8,
}

/// The part of the state that counts hits.
const FREQ: u8 = MAX_FREQ;
const HOT: u8 = 8;
const IN_MAIN_QUEUE: u8 = 16;
const EXPIRES: u8 = 32;

impl Mark {
    pub(super) fn new(hash: u32, key_len: u16, share: CacheType) -> Mark {
        Mark {
            key_len,
            tag: tag_of(hash),
            state: AtomicU8::new(if share == CacheType::Hot { HOT } else { 0 }),
        }
    }

    #[inline]
    pub(crate) fn share(&self) -> CacheType {
        if self.has(HOT) {
            CacheType::Hot
        } else {
            CacheType::Main
        }
    }

    #[inline]
    pub(crate) fn expires(&self) -> bool {
        self.has(EXPIRES)
    }

    pub(crate) fn set_expires(&mut self, expires: bool) {
        self.set(EXPIRES, expires);
    }

    pub(crate) fn in_main_queue(&self) -> bool {
        self.has(IN_MAIN_QUEUE)
    }

    pub(crate) fn set_in_main_queue(&mut self, in_main: bool) {
        self.set(IN_MAIN_QUEUE, in_main);
    }

    /// Counts a hit. A hot entry that is at the maximum is not written to, so its cache line stays
    /// shared between the cores that read it.
    #[inline]
    pub(crate) fn touch(&self) {
        let state = self.state.load(Ordering::Relaxed);
        if state & FREQ < MAX_FREQ {
            self.state.store(state + 1, Ordering::Relaxed);
        }
    }

    pub(crate) fn freq(&self) -> u8 {
        self.state.load(Ordering::Relaxed) & FREQ
    }

    pub(crate) fn set_freq(&mut self, freq: u8) {
        let state = self.state.get_mut();
        *state = (*state & !FREQ) | freq.min(MAX_FREQ);
    }

    #[inline]
    fn has(&self, flag: u8) -> bool {
        self.state.load(Ordering::Relaxed) & flag != 0
    }

    fn set(&mut self, flag: u8, on: bool) {
        let state = self.state.get_mut();
        *state = if on { *state | flag } else { *state & !flag };
    }
}

/// The table takes a key's place from the low bits of its hash and tells keys apart by the high
/// ones; these are between.
#[inline]
pub(super) fn tag_of(hash: u32) -> u8 {
    (hash >> 17) as u8
}
