//! The slots of a shard.
//!
//! The fields of the slots are in separate arrays, grouped by use. A hit reads the entry's pointer (8
//! bytes) and its meta data (4 bytes), but not the cold data (24 bytes). So more of the data that hits
//! read stays in the processor's caches.

use std::ops::Range;
use std::sync::atomic::{AtomicU8, Ordering};

use super::entry::etag;
use super::entry::load_times::{LoadTime, LoadTimes};
use super::entry::weight;
use super::entry::{Entry, Hit, NewBytes, NewEntry};
use super::expiry::Expiries;
use crate::byteview::ByteView;
use crate::clock::Tick;
use crate::heap::{SharedBytes, TableMemory, TableVec, prefetch};
use crate::stats::CacheType;

/// The index of no slot.
pub(super) const NIL: u32 = u32::MAX;

/// Hits beyond this number are not counted; the policy needs no more.
pub(super) const MAX_FREQ: u8 = 4;

/// The data about a slot's entry that are read without reading the entry itself.
#[derive(Debug, Default)]
pub(super) struct EntryMeta {
    pub(super) key_len: u16,
    /// An 8-bit tag that rejects 255 of 256 false matches of the hash table, without reading the
    /// entry.
    tag: u8,
    /// Hits since the entry entered its queue, and the flags below. Readers count hits under the
    /// shared lock with a plain load and store. Two concurrent hits may count as one, which is good
    /// enough for the policy. The flags change under the exclusive lock only, so no reader's store
    /// undoes a change.
    state: AtomicU8,
}

/// The bits of the state that count hits.
const FREQ: u8 = 7;
const HOT: u8 = 8;
const IN_MAIN_QUEUE: u8 = 16;
const TAGGED: u8 = 32;
const SHORTENED: u8 = 64;

/// The state of an entry at one time.
#[derive(Clone, Copy)]
pub(super) struct EntryState(u8);

impl EntryState {
    #[inline]
    pub(super) fn share(self) -> CacheType {
        match self.0 & HOT {
            0 => CacheType::Main,
            _ => CacheType::Hot,
        }
    }

    /// Whether there is an etag behind the value.
    #[inline]
    pub(super) fn is_tagged(self) -> bool {
        self.0 & TAGGED != 0
    }

    /// See [`NewEntry::is_shortened`].
    pub(super) fn is_shortened(self) -> bool {
        self.0 & SHORTENED != 0
    }

    /// The number of bytes behind the value of this entry.
    #[inline]
    pub(super) fn trailer_len(self, data: &[u8]) -> usize {
        match self.is_tagged() {
            true => etag::trailer_len(data),
            false => 0,
        }
    }
}

impl EntryMeta {
    #[inline]
    pub(super) fn state(&self) -> EntryState {
        EntryState(self.state.load(Ordering::Relaxed))
    }

    #[inline]
    pub(super) fn share(&self) -> CacheType {
        self.state().share()
    }

    /// The entry with these bytes.
    fn entry(&self, data: SharedBytes) -> Entry {
        let state = self.state();
        let trailer_len = state.trailer_len(&data) as u16;
        Entry::new(data, self.key_len, trailer_len, state.share())
    }

    /// Whether the entry is in its share's main queue, not in the small one.
    pub(super) fn in_main_queue(&self) -> bool {
        self.state().0 & IN_MAIN_QUEUE != 0
    }

    pub(super) fn set_in_main_queue(&mut self, in_main: bool) {
        let state = self.state.get_mut();
        *state = if in_main {
            *state | IN_MAIN_QUEUE
        } else {
            *state & !IN_MAIN_QUEUE
        };
    }

    /// Counts a hit, and returns the state before. At the maximum nothing is written, so the cache line of an entry with many
    /// hits stays shared between the cores that read it.
    #[inline]
    pub(super) fn count_hit(&self) -> EntryState {
        let state = self.state.load(Ordering::Relaxed);
        if state & FREQ < MAX_FREQ {
            self.state.store(state + 1, Ordering::Relaxed);
        }
        EntryState(state)
    }

    pub(super) fn freq(&self) -> u8 {
        self.state.load(Ordering::Relaxed) & FREQ
    }

    pub(super) fn set_freq(&mut self, freq: u8) {
        let state = self.state.get_mut();
        *state = (*state & !FREQ) | freq.min(MAX_FREQ);
    }
}

/// A slot's neighbours in its queue or among the free slots, and the data that the policy and the
/// table need without reading the entry.
#[derive(Clone, Copy, Debug)]
pub(super) struct SlotLink {
    pub(super) prev: u32,
    pub(super) next: u32,
    /// The short hash: enough to find the slot's place in the table.
    pub(super) hash: u32,
    /// Packed, see [`weight::packed`].
    weight: u32,
    /// When the entry entered its queue, in the time of the policy.
    pub(super) born: u32,
}

/// The data of a slot that hits do not read.
#[derive(Clone, Copy, Debug)]
struct ColdData {
    link: SlotLink,
    /// When the load of the value began: see [`LoadTimes`].
    begun: u32,
}

impl SlotLink {
    /// The link of an entry that is in no queue. `None` if the weight is too large.
    pub(super) fn new(hash: u32, weight: u64) -> Option<SlotLink> {
        Some(SlotLink {
            prev: NIL,
            next: NIL,
            hash,
            weight: weight::packed(weight)?,
            born: 0,
        })
    }

    pub(super) fn weight(&self) -> u64 {
        weight::unpacked(self.weight)
    }
}

const _: () = assert!(
    weight::SLOT
        == size_of::<Option<SharedBytes>>() + size_of::<EntryMeta>() + size_of::<ColdData>()
);

/// A slot's entry, borrowed from the slab.
#[derive(Clone, Copy)]
pub(super) struct SlotRef<'a> {
    pub(super) index: u32,
    pub(super) data: &'a SharedBytes,
    pub(super) meta: &'a EntryMeta,
    slab: &'a Slab,
}

impl SlotRef<'_> {
    #[inline]
    pub(super) fn expires(&self) -> Option<Tick> {
        self.slab.expiry(self.index)
    }

    /// When its load began. Most hits do not need it, and save a cache miss.
    pub(super) fn begun(&self) -> LoadTime {
        let begun = self.slab.cold[self.index as usize].begun;
        self.slab.load_times.of(begun)
    }

    pub(super) fn key(&self) -> &str {
        let key = self.data.get(..usize::from(self.meta.key_len));
        // The key was inserted as a `&str`, so it is UTF-8.
        key.and_then(|key| std::str::from_utf8(key).ok())
            .unwrap_or_default()
    }

    /// The entry as a hit, which may be [due](Hit::is_due).
    pub(super) fn hit(&self, is_due: bool) -> Hit {
        Hit {
            view: self.view(),
            expires: self.expires(),
            begun: self.begun(),
            share: self.meta.share(),
            is_shortened: self.meta.state().is_shortened(),
            is_due,
        }
    }

    pub(super) fn view(&self) -> ByteView {
        let start = usize::from(self.meta.key_len);
        let end = self.data.len() - self.meta.state().trailer_len(self.data);
        ByteView::window(self.data.clone(), start, end)
    }
}

/// All slots of a shard.
#[derive(Debug)]
#[repr(C)]
pub(super) struct Slab {
    /// `None` where the slot is free.
    data: TableVec<Option<SharedBytes>>,
    metas: TableVec<EntryMeta>,
    cold: TableVec<ColdData>,
    expiries: Expiries,
    load_times: LoadTimes,
    free: u32,
}

impl Slab {
    pub(super) fn new(load_times: LoadTimes) -> Slab {
        Slab {
            data: TableVec::new_in(TableMemory),
            metas: TableVec::new_in(TableMemory),
            cold: TableVec::new_in(TableMemory),
            expiries: Expiries::default(),
            load_times,
            free: NIL,
        }
    }

    /// The number of slots, free ones included.
    pub(super) fn len(&self) -> usize {
        self.data.len()
    }

    /// The slot's entry, if it has one.
    #[inline(always)]
    pub(super) fn slot(&self, index: u32) -> Option<SlotRef<'_>> {
        let at = index as usize;
        Some(SlotRef {
            index,
            data: self.data.get(at)?.as_ref()?,
            meta: self.metas.get(at)?,
            slab: self,
        })
    }

    /// Whether the slot has the entry of this key, which has this short hash.
    #[inline(always)]
    pub(super) fn has_key(&self, index: u32, hash: u32, key: &str) -> bool {
        let at = index as usize;
        let is_like =
            |meta: &EntryMeta| meta.tag == tag_of(hash) && usize::from(meta.key_len) == key.len();
        if !self.metas.get(at).is_some_and(is_like) {
            return false;
        }
        let data = self.data.get(at).and_then(Option::as_ref);
        let stored = data.and_then(|data| data.get(..key.len()));
        stored.is_some_and(|stored| same_bytes(stored, key.as_bytes()))
    }

    pub(super) fn load_times(&self) -> LoadTimes {
        self.load_times
    }

    /// Starts to fetch an entry that will leave soon to the processor's caches, and the slot of the one
    /// after it. Returns the short hash of the first.
    #[inline]
    pub(super) fn prefetch(&self, index: u32) -> Option<u32> {
        let slot = self.slot(index)?;
        slot.data.prefetch();
        prefetch(slot.meta);
        let link = self.cold.get(index as usize)?.link;
        let at = link.prev as usize;
        if let (Some(data), Some(meta), Some(cold)) =
            (self.data.get(at), self.metas.get(at), self.cold.get(at))
        {
            prefetch(data);
            prefetch(meta);
            prefetch(cold);
        }
        Some(link.hash)
    }

    /// The short hash of the slot's key.
    pub(super) fn hash(&self, index: u32) -> u32 {
        self.link(index).hash
    }

    pub(super) fn weight(&self, index: u32) -> u64 {
        self.link(index).weight()
    }

    #[inline]
    pub(super) fn expiry(&self, index: u32) -> Option<Tick> {
        self.expiries.get(index)
    }

    pub(super) fn expiries(&self) -> &Expiries {
        &self.expiries
    }

    /// The slots of these that are in use, and their entries.
    pub(super) fn entries(&self, slots: Range<u32>) -> impl Iterator<Item = (u32, Entry)> {
        let range = slots.start as usize..slots.end as usize;
        let fields = self.metas[range.clone()].iter().zip(&self.data[range]);
        slots.zip(fields).filter_map(|(index, (meta, data))| {
            let data = data.clone()?;
            Some((index, meta.entry(data)))
        })
    }

    /// Whether a slot's fields can hold this key length and this weight.
    pub(super) fn can_hold(key_len: usize, weight: u64) -> bool {
        u16::try_from(key_len).is_ok() && weight::packed(weight).is_some()
    }

    /// Puts an entry of this weight into a free slot. `None` when all 2^32 - 1 are taken, or if a
    /// slot [cannot hold](Self::can_hold) it, or if it is too large.
    pub(super) fn insert(&mut self, new: &NewEntry<'_>, weight: u64) -> Option<u32> {
        let NewBytes::Keyed(data) = new.data else {
            return None;
        };
        let share = if new.share == CacheType::Hot { HOT } else { 0 };
        let tagged = if new.has_etag { TAGGED } else { 0 };
        let shortened = if new.is_shortened { SHORTENED } else { 0 };
        let meta = EntryMeta {
            key_len: u16::try_from(new.key.len()).ok()?,
            tag: tag_of(new.hash.short()),
            state: AtomicU8::new(share | tagged | shortened),
        };
        let link = SlotLink::new(new.hash.short(), weight)?;
        let begins = self.cold.iter_mut().map(|cold| &mut cold.begun);
        let begun = self.load_times.pack(new.begun, begins);
        self.put(data.clone(), meta, ColdData { link, begun }, new.expires)
    }

    /// Gives a slot's entry new times.
    pub(super) fn renew(&mut self, index: u32, expires: Option<Tick>, begun: Option<Tick>) {
        let begins = self.cold.iter_mut().map(|cold| &mut cold.begun);
        let begun = self.load_times.pack(begun, begins);
        self.cold[index as usize].begun = begun;
        self.expiries.set(index, self.len(), expires);
    }

    #[inline]
    fn put(
        &mut self,
        data: SharedBytes,
        meta: EntryMeta,
        cold: ColdData,
        expires: Option<Tick>,
    ) -> Option<u32> {
        let index = if self.free != NIL {
            let index = self.free;
            let at = index as usize;
            self.unlink_free(index);
            self.data[at] = Some(data);
            self.metas[at] = meta;
            self.cold[at] = cold;
            index
        } else {
            let index = u32::try_from(self.len()).ok().filter(|&i| i != NIL)?;
            self.data.push(Some(data));
            self.metas.push(meta);
            self.cold.push(cold);
            index
        };
        self.expiries.set(index, self.len(), expires);
        Some(index)
    }

    /// Frees a slot that is in no list, and returns its entry.
    #[inline]
    pub(super) fn remove(&mut self, index: u32) -> Option<Entry> {
        let at = index as usize;
        let data = self.data[at].take()?;
        self.link_free(index);
        self.expiries.reset(index);
        Some(self.metas[at].entry(data))
    }

    /// Takes the last entry out of a slab that is not used any more, and the slots from there on.
    pub(super) fn take_last(&mut self) -> Option<(u32, Entry)> {
        loop {
            let (data, meta) = (self.data.pop()?, self.metas.pop()?);
            if let Some(data) = data {
                return Some((self.data.len() as u32, meta.entry(data)));
            }
        }
    }

    fn link_free(&mut self, index: u32) {
        let free = self.free;
        let link = self.link_mut(index);
        (link.prev, link.next) = (NIL, free);
        if free != NIL {
            self.link_mut(free).prev = index;
        }
        self.free = index;
    }

    fn unlink_free(&mut self, index: u32) {
        let SlotLink { prev, next, .. } = *self.link(index);
        match prev {
            NIL => self.free = next,
            _ => self.link_mut(prev).next = next,
        }
        if next != NIL {
            self.link_mut(next).prev = prev;
        }
    }

    /// Removes the last slot. If it has an entry, the entry moves to a free slot, whose index is
    /// returned with the old one; the caller corrects its neighbours and its place in the table. There
    /// must be a free slot.
    pub(super) fn remove_last_slot(&mut self) -> Option<(u32, u32)> {
        let last = self.len().checked_sub(1)?;
        let moved = if self.data[last].is_none() {
            self.unlink_free(last as u32);
            None
        } else {
            let to = self.free;
            self.unlink_free(to);
            let at = to as usize;
            self.data.swap(at, last);
            self.metas.swap(at, last);
            self.cold[at] = self.cold[last];
            self.expiries.set(to, last, self.expiry(last as u32));
            Some((last as u32, to))
        };
        self.data.truncate(last);
        self.metas.truncate(last);
        self.cold.truncate(last);
        self.expiries.reset(last as u32);
        moved
    }

    /// The bytes of all slots.
    pub(super) fn table_bytes(&self) -> usize {
        self.len() * weight::SLOT + self.expiries.table_bytes()
    }

    /// Frees the memory of removed slots if there is memory for more than `at_most` slots.
    pub(super) fn shrink(&mut self, at_most: usize) {
        let len = self.len();
        if self.data.capacity() <= at_most.saturating_add(1) {
            return;
        }
        self.data.shrink_to(len);
        self.metas.shrink_to(len);
        self.cold.shrink_to(len);
        self.expiries.shrink(len);
    }
}

/// The slots of entries, as the queues and the policy use them. They need no keys and no values.
pub(super) trait Slots {
    fn link(&self, index: u32) -> &SlotLink;
    fn link_mut(&mut self, index: u32) -> &mut SlotLink;
    fn meta(&self, index: u32) -> &EntryMeta;
    fn meta_mut(&mut self, index: u32) -> &mut EntryMeta;
}

impl Slots for Slab {
    #[inline]
    fn link(&self, index: u32) -> &SlotLink {
        &self.cold[index as usize].link
    }

    #[inline]
    fn link_mut(&mut self, index: u32) -> &mut SlotLink {
        &mut self.cold[index as usize].link
    }

    #[inline]
    fn meta(&self, index: u32) -> &EntryMeta {
        &self.metas[index as usize]
    }

    #[inline]
    fn meta_mut(&mut self, index: u32) -> &mut EntryMeta {
        &mut self.metas[index as usize]
    }
}

/// Bits 17 to 24 of the short hash. The table uses the low bits for the place and the high ones for
/// its own tag.
#[inline]
fn tag_of(hash: u32) -> u8 {
    (hash >> 17) as u8
}

/// Whether two slices of the same length are equal. Keys of 8 to 16 bytes are compared by their first
/// and last 8 bytes, which meet or overlap. This is faster than a call of memcmp.
#[inline]
fn same_bytes(a: &[u8], b: &[u8]) -> bool {
    if (8..=16).contains(&a.len()) {
        a.first_chunk::<8>() == b.first_chunk() && a.last_chunk::<8>() == b.last_chunk()
    } else {
        a == b
    }
}
