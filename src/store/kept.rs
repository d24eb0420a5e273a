//! Values that are kept for loads which may find them unchanged, and their renewal.

use super::entry::etag::{etag_of, is_trailer, trailer_of};
use super::entry::generations::Generation;
use super::entry::key_hash::KeyHash;
use super::entry::{NewBytes, NewEntry};
use super::shard::Shard;
use super::{Store, weight};
use crate::byteview::ByteView;
use crate::clock::Tick;

/// A cached value, expired or not, and what a load needs to renew it.
#[derive(Clone, Debug)]
pub(crate) struct Kept {
    pub(crate) view: ByteView,
    pub(crate) etag: Option<ByteView>,
    pub(crate) expires: Option<Tick>,
    /// See [`NewEntry::begun`].
    pub(crate) begun: Option<Tick>,
}

impl Store {
    /// The entry of a key, also if it has expired, and the generation for an insertion. Counts nothing.
    pub(crate) fn kept(&self, hash: KeyHash, key: &str) -> (Option<Kept>, Generation) {
        let shard = self.shard(hash).read();
        let kept = shard.table.slot_of(hash, key).map(|slot| {
            let view = slot.view();
            let etag = slot.meta.state().is_tagged().then(|| etag_of(slot.data));
            Kept {
                view,
                etag,
                expires: slot.expires(),
                begun: slot.begun().tick(),
            }
        });
        (kept, shard.generation(hash))
    }

    /// A view of a copy of `value`, for [`insert`](Self::insert). The copy lies behind one of its key in
    /// the store's memory, and before its etag. `None` if the store cannot keep it.
    #[inline]
    pub(crate) fn keyed(
        &self,
        hash: KeyHash,
        key: &str,
        value: &[u8],
        etag: Option<&str>,
    ) -> Option<ByteView> {
        let fits = weight::of_entry(entry_len(key, value, etag)) <= self.capacity();
        fits.then(|| self.keyed_copy(hash, key, value, etag))?
    }

    /// Like [`keyed`](Self::keyed), for a value that the store can keep. `None` if there is no memory left.
    #[inline]
    fn keyed_copy(
        &self,
        hash: KeyHash,
        key: &str,
        value: &[u8],
        etag: Option<&str>,
    ) -> Option<ByteView> {
        let block = if let Some(etag) = etag {
            // An etag is at most `MAX_ETAG` bytes long.
            let etag_len = (etag.len() as u16).to_le_bytes();
            let parts = [key.as_bytes(), value, etag.as_bytes(), &etag_len];
            self.heap.allocate(hash.get(), parts)
        } else {
            self.heap.allocate(hash.get(), [key.as_bytes(), value])
        };
        Some(ByteView::window(block?, key.len(), key.len() + value.len()))
    }

    /// Copies a view as [`keyed`](Self::keyed) does, unless it has made it, or the value is too large to
    /// be cached. Returns the bytes of the entry; `None` if there is no memory left.
    #[inline]
    pub(crate) fn adopt<'v>(
        &self,
        hash: KeyHash,
        key: &str,
        view: &'v mut ByteView,
        etag: Option<&str>,
    ) -> Option<NewBytes<'v>> {
        let is_owned = |view: &ByteView| {
            view.is_keyed(key, |rest| is_trailer(rest, etag))
                && (view.allocation()).is_some_and(|data| self.heap.owns(hash.get(), data))
        };
        if !is_owned(view) {
            // The allocation of such a view has no key in it, or other bytes besides.
            let len = entry_len(key, view, etag);
            if weight::of_entry(len) > self.capacity() {
                return Some(NewBytes::TooLarge(len));
            }
            *view = self.keyed_copy(hash, key, view, etag)?;
        }
        view.allocation().map(NewBytes::Keyed)
    }
}

/// The bytes of an entry.
#[inline]
fn entry_len(key: &str, value: &[u8], etag: Option<&str>) -> usize {
    key.len() + value.len() + etag.map_or(0, trailer_of)
}

impl Shard {
    /// Gives the entry of the key new times, if it holds the very bytes of the new one. It keeps its place
    /// and its hits, and no listener is called.
    pub(super) fn renew(&mut self, new: &NewEntry<'_>) -> bool {
        let same = self.table.slot_of(new.hash, new.key).filter(|slot| {
            matches!(new.data, NewBytes::Keyed(data) if slot.data.as_ptr() == data.as_ptr())
                && slot.meta.share() == new.share
                && slot.meta.state().is_shortened() == new.is_shortened
                // The weight depends on it.
                && slot.expires().is_some() == new.expires.is_some()
        });
        let Some(index) = same.map(|slot| slot.index) else {
            return false;
        };
        self.table.slab.renew(index, new.expires, new.begun);
        true
    }
}
