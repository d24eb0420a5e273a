//! The slots of a shard and the intrusive lists through them.
//!
//! A slot's parts lie in three arrays, by who reads them: a hit reads the entry's pointer (8 bytes)
//! and its mark (4 bytes), and never the links (16 bytes). So what hits read is small and stays in
//! the caches.

use std::cmp::Reverse;
use std::sync::atomic::{AtomicU8, Ordering};

use super::{charge, iter};
use crate::byteview::ByteView;
use crate::shared_bytes::SharedBytes;
use crate::stats::CacheType;

/// No slot.
pub(crate) const NIL: u32 = u32::MAX;

/// Hits beyond this many are not counted; S3-FIFO needs no more.
pub(crate) const MAX_FREQ: u8 = 7;

/// What is known of a slot's entry without touching the entry.
#[derive(Debug)]
pub(crate) struct Mark {
    key_len: u16,
    /// Eight bits of the hash: of the strangers that the table's own seven bits let through they
    /// turn away all but one in 256, without a look at the entry.
    tag: u8,
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
    fn new(hash: u32, key_len: u16, share: CacheType) -> Mark {
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
fn tag_of(hash: u32) -> u8 {
    (hash >> 17) as u8
}

/// A slot's neighbours in its queue, and what is known of its entry without touching it.
#[derive(Debug)]
struct Link {
    /// `next` also links the free slots.
    prev: u32,
    next: u32,
    /// The upper half of the key's hash: enough to find the slot's place in the table without
    /// touching the entry.
    hash: u32,
    /// What the entry is charged, packed.
    charge: u32,
}

/// The bytes of a slot.
pub(super) const SLOT: usize =
    size_of::<Option<SharedBytes>>() + size_of::<Mark>() + size_of::<Link>();

/// A live slot, for a reader.
#[derive(Clone, Copy)]
pub(crate) struct Entry<'a> {
    pub(crate) mark: &'a Mark,
    /// Key and value, side by side in one allocation.
    data: &'a SharedBytes,
}

impl Entry<'_> {
    /// The value, sharing the entry's allocation.
    #[inline]
    pub(crate) fn view(&self) -> ByteView {
        let (data, start) = self.parts();
        let end = data.len();
        ByteView::window(data, start, end)
    }

    /// The same for a reader that lets go of the lock.
    pub(crate) fn detached(self) -> iter::Entry {
        iter::Entry::new(self.parts(), self.mark.share())
    }

    /// The entry's allocation, and where in it the value begins.
    #[inline]
    pub(crate) fn parts(&self) -> (SharedBytes, usize) {
        (self.data.clone(), usize::from(self.mark.key_len))
    }
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

/// All slots of a shard. What hits read comes first: see [`Shard`](super::shard::Shard).
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Slab {
    /// `None` where the slot is free.
    data: Vec<Option<SharedBytes>>,
    marks: Vec<Mark>,
    links: Vec<Link>,
    free: u32,
}

impl Default for Slab {
    fn default() -> Self {
        Slab::with_capacity(0)
    }
}

impl Slab {
    pub(crate) fn with_capacity(slots: usize) -> Slab {
        Slab {
            data: Vec::with_capacity(slots),
            marks: Vec::with_capacity(slots),
            links: Vec::with_capacity(slots),
            free: NIL,
        }
    }

    /// The number of slots, free ones included.
    pub(crate) fn len(&self) -> usize {
        self.data.len()
    }

    /// Whether the entry at `index` has this key and this hash, of which a few bits are compared.
    #[inline(always)]
    pub(crate) fn has_key(&self, index: u32, hash: u32, key: &[u8]) -> bool {
        let mark = &self.marks[index as usize];
        mark.tag == tag_of(hash)
            && usize::from(mark.key_len) == key.len()
            && self.data[index as usize]
                .as_ref()
                .and_then(|data| data.get(..key.len()))
                .is_some_and(|own| same_bytes(own, key))
    }

    /// The entry at `index`, if there is one.
    #[inline]
    pub(crate) fn entry(&self, index: u32) -> Option<Entry<'_>> {
        Some(Entry {
            mark: &self.marks[index as usize],
            data: self.data[index as usize].as_ref()?,
        })
    }

    #[inline]
    pub(crate) fn mark(&self, index: u32) -> &Mark {
        &self.marks[index as usize]
    }

    #[inline]
    pub(crate) fn mark_mut(&mut self, index: u32) -> &mut Mark {
        &mut self.marks[index as usize]
    }

    /// The half of the hash that the entry came with.
    #[inline]
    pub(crate) fn hash(&self, index: u32) -> u32 {
        self.links[index as usize].hash
    }

    #[inline]
    pub(crate) fn weight(&self, index: u32) -> u64 {
        charge::unpacked(self.links[index as usize].charge)
    }

    /// The live slots.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, Entry<'_>)> {
        let slots = self.marks.iter().zip(&self.data);
        (0..).zip(slots).filter_map(|(index, (mark, data))| {
            Some((
                index,
                Entry {
                    mark,
                    data: data.as_ref()?,
                },
            ))
        })
    }

    /// Whether a slot can tell this length of a key and this charge.
    #[inline]
    pub(crate) fn holds(key_len: usize, weight: u64) -> bool {
        u16::try_from(key_len).is_ok() && charge::packed(weight).is_some()
    }

    /// Puts an entry of this weight into a free slot. `None` when all 2^32 - 1 are taken, or if no
    /// slot [`holds`](Self::holds) it.
    pub(crate) fn insert(
        &mut self,
        hash: u32,
        key_len: usize,
        (data, weight): (SharedBytes, u64),
        share: CacheType,
    ) -> Option<u32> {
        let key_len = u16::try_from(key_len).ok()?;
        let charge = charge::packed(weight)?;
        self.put((hash, charge), Mark::new(hash, key_len, share), data)
    }

    /// The charge comes with the hash, because an entry that moves is not to be touched.
    #[inline]
    fn put(&mut self, (hash, charge): (u32, u32), mark: Mark, data: SharedBytes) -> Option<u32> {
        let link = Link {
            prev: NIL,
            next: NIL,
            hash,
            charge,
        };
        if self.free != NIL {
            let index = self.free;
            let at = index as usize;
            self.free = self.links[at].next;
            self.data[at] = Some(data);
            self.marks[at] = mark;
            self.links[at] = link;
            return Some(index);
        }
        let index = u32::try_from(self.len()).ok().filter(|&i| i != NIL)?;
        self.data.push(Some(data));
        self.marks.push(mark);
        self.links.push(link);
        Some(index)
    }

    /// Moves the members of a list into another slab, in their order, and tells of each where it
    /// was, where it is, and its hash. Their places here are not used again: this slab is given up.
    pub(crate) fn move_list(
        &mut self,
        list: &mut List,
        to: &mut Slab,
        mut moved: impl FnMut(u32, u32, u32),
    ) {
        let mut there = List::default();
        while let Some(old) = list.tail() {
            self.unlink(list, old);
            let at = old as usize;
            let Some(data) = self.data[at].take() else {
                break;
            };
            let mark = Mark {
                state: AtomicU8::new(*self.marks[at].state.get_mut()),
                ..self.marks[at]
            };
            let Link { hash, charge, .. } = self.links[at];
            let Some(new) = to.put((hash, charge), mark, data) else {
                break;
            };
            to.push_head(&mut there, new);
            moved(old, new, hash);
        }
        *list = there;
    }

    /// Frees a slot that is in no list, and hands out the key's length and the data.
    #[inline]
    pub(crate) fn remove(&mut self, index: u32) -> Option<(usize, SharedBytes)> {
        let at = index as usize;
        let data = self.data[at].take();
        self.links[at].next = self.free;
        self.free = index;
        Some((usize::from(self.marks[at].key_len), data?))
    }

    /// Brings the entries into the order of their addresses, from the highest to the lowest. Where
    /// they were does not count any more: this slab is given up.
    pub(crate) fn sort_by_address(&mut self) {
        self.data
            .sort_unstable_by_key(|data| Reverse(address(data)));
        let live = self.data.partition_point(Option::is_some);
        self.data.truncate(live);
    }

    /// Where the lowest entry of a sorted slab lies.
    pub(crate) fn lowest(&self) -> Option<usize> {
        address(self.data.last()?)
    }

    /// Where the highest entry of a sorted slab lies.
    pub(crate) fn highest(&self) -> Option<usize> {
        address(self.data.first()?)
    }

    /// Drops the entries of a sorted slab that lie below `limit`, and tells how many bytes these
    /// were.
    pub(crate) fn drop_below(&mut self, limit: usize) -> usize {
        let kept = self
            .data
            .partition_point(|data| address(data) >= Some(limit));
        let bytes = self.data[kept..].iter().flatten();
        let bytes = bytes.map(|data| charge::block(data.len())).sum();
        self.data.truncate(kept);
        bytes
    }

    #[inline]
    pub(crate) fn push_head(&mut self, list: &mut List, index: u32) {
        let head = list.head;
        let link = &mut self.links[index as usize];
        link.prev = NIL;
        link.next = head;
        list.bytes += self.weight(index);
        list.len += 1;
        if head == NIL {
            list.tail = index;
        } else {
            self.links[head as usize].prev = index;
        }
        list.head = index;
    }

    #[inline]
    pub(crate) fn unlink(&mut self, list: &mut List, index: u32) {
        let &Link { prev, next, .. } = &self.links[index as usize];
        list.bytes -= self.weight(index);
        list.len -= 1;
        match prev {
            NIL => list.head = next,
            _ => self.links[prev as usize].next = next,
        }
        match next {
            NIL => list.tail = prev,
            _ => self.links[next as usize].prev = prev,
        }
    }

    pub(crate) fn move_to_head(&mut self, list: &mut List, index: u32) {
        if list.head != index {
            self.unlink(list, index);
            self.push_head(list, index);
        }
    }
}

fn address(data: &Option<SharedBytes>) -> Option<usize> {
    data.as_ref().map(SharedBytes::address)
}

/// Whether two slices of one length are equal. Keys of 8 to 16 bytes are compared by their two ends,
/// which overlap or meet: a call to memcmp costs more than that.
#[inline]
fn same_bytes(a: &[u8], b: &[u8]) -> bool {
    if (8..=16).contains(&a.len()) {
        a.first_chunk::<8>() == b.first_chunk() && a.last_chunk::<8>() == b.last_chunk()
    } else {
        a == b
    }
}
