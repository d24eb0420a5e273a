//! The slots of a shard and the intrusive lists through them.

use std::sync::atomic::{AtomicU8, Ordering};

use crate::byteview::ByteView;
use crate::stats::CacheType;
use crate::sync::Arc;

/// No slot.
pub(crate) const NIL: u32 = u32::MAX;

/// Hits beyond this many are not counted; S3-FIFO needs no more.
pub(crate) const MAX_FREQ: u8 = 7;

/// One entry. 32 bytes on 64-bit machines: two to a cache line, none across two.
#[derive(Debug)]
pub(crate) struct Slot {
    /// Key and value, side by side in one allocation; `None` while the slot is free.
    data: Option<Arc<[u8]>>,
    /// Neighbours in the queue the slot is in; `next` also links the free slots.
    prev: u32,
    next: u32,
    /// The upper half of the key's hash: compared before the key, and enough to find the slot's
    /// place in the table without touching `data`.
    pub(crate) hash: u32,
    key_len: u16,
    /// Hits since the entry entered its queue. Readers bump it under the shared lock with a plain
    /// load and store: two at once may count as one, which S3-FIFO does not mind.
    freq: AtomicU8,
    flags: u8,
}

const HOT: u8 = 1;
const IN_MAIN_QUEUE: u8 = 2;
const EXPIRES: u8 = 4;

impl Slot {
    pub(crate) fn new(hash: u32, key_len: u16, data: Arc<[u8]>, share: CacheType) -> Slot {
        Slot {
            data: Some(data),
            prev: NIL,
            next: NIL,
            hash,
            key_len,
            freq: AtomicU8::new(0),
            flags: if share == CacheType::Hot { HOT } else { 0 },
        }
    }

    #[inline]
    fn data(&self) -> &[u8] {
        self.data.as_deref().unwrap_or_default()
    }

    #[inline]
    pub(crate) fn has_key(&self, key: &[u8]) -> bool {
        usize::from(self.key_len) == key.len()
            && self
                .data
                .as_deref()
                .and_then(|data| data.get(..key.len()))
                .is_some_and(|own| same_bytes(own, key))
    }

    /// The value, sharing the entry's allocation. Empty for a free slot.
    #[inline]
    pub(crate) fn view(&self) -> ByteView {
        match &self.data {
            Some(data) => ByteView::window(data.clone(), usize::from(self.key_len), data.len()),
            None => ByteView::new(),
        }
    }

    #[cfg(all(test, not(larder_loom)))]
    pub(crate) fn is_live(&self) -> bool {
        self.data.is_some()
    }

    pub(crate) fn weight(&self) -> u64 {
        super::charge::entry(self.data().len())
    }

    #[inline]
    pub(crate) fn share(&self) -> CacheType {
        if self.flags & HOT == 0 {
            CacheType::Main
        } else {
            CacheType::Hot
        }
    }

    #[inline]
    pub(crate) fn expires(&self) -> bool {
        self.flags & EXPIRES != 0
    }

    pub(crate) fn set_expires(&mut self, expires: bool) {
        self.set_flag(EXPIRES, expires);
    }

    pub(crate) fn in_main_queue(&self) -> bool {
        self.flags & IN_MAIN_QUEUE != 0
    }

    pub(crate) fn set_in_main_queue(&mut self, in_main: bool) {
        self.set_flag(IN_MAIN_QUEUE, in_main);
    }

    fn set_flag(&mut self, flag: u8, on: bool) {
        if on {
            self.flags |= flag;
        } else {
            self.flags &= !flag;
        }
    }

    /// Counts a hit. A hot entry that is at the maximum is not written to, so its cache line stays
    /// shared between the cores that read it.
    #[inline]
    pub(crate) fn touch(&self) {
        let freq = self.freq.load(Ordering::Relaxed);
        if freq < MAX_FREQ {
            self.freq.store(freq + 1, Ordering::Relaxed);
        }
    }

    pub(crate) fn freq(&mut self) -> &mut u8 {
        self.freq.get_mut()
    }

    /// The same entry, for another place; leaves nothing in this one.
    fn move_out(&mut self) -> Slot {
        Slot {
            data: self.data.take(),
            prev: NIL,
            next: NIL,
            hash: self.hash,
            key_len: self.key_len,
            freq: AtomicU8::new(*self.freq()),
            flags: self.flags,
        }
    }

    fn take(&mut self) -> Option<(usize, Arc<[u8]>)> {
        let data = self.data.take()?;
        Some((usize::from(self.key_len), data))
    }
}

/// Whether two slices of one length are equal, word by word in place: for keys of a few words, a
/// call to memcmp costs more than the comparison.
#[inline]
fn same_bytes(a: &[u8], b: &[u8]) -> bool {
    let word = |bytes: &[u8]| <[u8; 8]>::try_from(bytes).map_or(0, u64::from_ne_bytes);
    let (a_words, b_words) = (a.chunks_exact(8), b.chunks_exact(8));
    let rests_match = a_words.remainder().iter().eq(b_words.remainder());
    rests_match && a_words.zip(b_words).all(|(a, b)| word(a) == word(b))
}

/// A queue through the slots: the newest at the head, the victim at the tail.
#[derive(Debug)]
pub(crate) struct List {
    head: u32,
    tail: u32,
    pub(crate) len: u32,
    /// The weights of the members.
    pub(crate) bytes: u64,
}

impl Default for List {
    fn default() -> Self {
        List {
            head: NIL,
            tail: NIL,
            len: 0,
            bytes: 0,
        }
    }
}

impl List {
    pub(crate) fn tail(&self) -> Option<u32> {
        (self.tail != NIL).then_some(self.tail)
    }
}

/// All slots of a shard.
#[derive(Debug)]
pub(crate) struct Slab {
    slots: Vec<Slot>,
    free: u32,
}

impl Default for Slab {
    fn default() -> Self {
        Slab {
            slots: Vec::new(),
            free: NIL,
        }
    }
}

impl Slab {
    pub(crate) fn with_capacity(slots: usize) -> Slab {
        Slab {
            slots: Vec::with_capacity(slots),
            free: NIL,
        }
    }

    /// The number of slots, free ones included.
    pub(crate) fn len(&self) -> usize {
        self.slots.len()
    }

    #[inline]
    pub(crate) fn get(&self, index: u32) -> &Slot {
        &self.slots[index as usize]
    }

    #[inline]
    pub(crate) fn get_mut(&mut self, index: u32) -> &mut Slot {
        &mut self.slots[index as usize]
    }

    #[cfg(all(test, not(larder_loom)))]
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, &Slot)> {
        (0..).zip(&self.slots).filter(|(_, slot)| slot.is_live())
    }

    /// Puts `slot` into a free place; `None` when all 2^32 - 1 are taken.
    pub(crate) fn insert(&mut self, slot: Slot) -> Option<u32> {
        if self.free != NIL {
            let index = self.free;
            let place = self.get_mut(index);
            let next_free = place.next;
            *place = slot;
            self.free = next_free;
            return Some(index);
        }
        let index = u32::try_from(self.slots.len()).ok().filter(|&i| i != NIL)?;
        self.slots.push(slot);
        Some(index)
    }

    /// Moves the members of a list into another slab, in their order, and tells of each where it
    /// was and where it is. Their places here are not used again: this slab is given up.
    pub(crate) fn move_list(
        &mut self,
        list: &mut List,
        to: &mut Slab,
        mut moved: impl FnMut(u32, u32, &Slot),
    ) {
        let mut there = List::default();
        while let Some(old) = list.tail() {
            self.unlink(list, old);
            let Some(new) = to.insert(self.get_mut(old).move_out()) else {
                break;
            };
            to.push_head(&mut there, new);
            moved(old, new, to.get(new));
        }
        *list = there;
    }

    /// Frees a slot that is in no list, and hands out the key's length and the data.
    pub(crate) fn remove(&mut self, index: u32) -> Option<(usize, Arc<[u8]>)> {
        let free = self.free;
        let slot = self.get_mut(index);
        let taken = slot.take();
        slot.next = free;
        self.free = index;
        taken
    }

    /// What all slots hold, as [`remove`](Self::remove) hands it out.
    pub(crate) fn into_live(self) -> impl Iterator<Item = (usize, Arc<[u8]>)> {
        self.slots.into_iter().filter_map(|mut slot| slot.take())
    }

    pub(crate) fn push_head(&mut self, list: &mut List, index: u32) {
        let head = list.head;
        let slot = self.get_mut(index);
        slot.prev = NIL;
        slot.next = head;
        list.bytes += slot.weight();
        list.len += 1;
        if head == NIL {
            list.tail = index;
        } else {
            self.get_mut(head).prev = index;
        }
        list.head = index;
    }

    pub(crate) fn unlink(&mut self, list: &mut List, index: u32) {
        let slot = self.get(index);
        let (prev, next) = (slot.prev, slot.next);
        list.bytes -= slot.weight();
        list.len -= 1;
        match prev {
            NIL => list.head = next,
            _ => self.get_mut(prev).next = next,
        }
        match next {
            NIL => list.tail = prev,
            _ => self.get_mut(next).prev = prev,
        }
    }

    pub(crate) fn move_to_head(&mut self, list: &mut List, index: u32) {
        if list.head != index {
            self.unlink(list, index);
            self.push_head(list, index);
        }
    }
}
