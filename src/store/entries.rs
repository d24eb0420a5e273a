//! The entries of a shard, found by key for those who read and by slot for those who evict.
//!
//! The table holds what a hit needs: the pointer to the entry, and a mark beside it. So a hit waits
//! for memory three times, for the table's tags, for its cell, and for the entry; with the pointers
//! in an array of their own, which the table would lead to, it would be four or five times.

use hashbrown::HashTable;
use hashbrown::hash_table::OccupiedEntry;

use super::links::{Links, List};
use super::mark::{Mark, tag_of};
use super::{Hash, charge, iter};
use crate::byteview::ByteView;
use crate::shared_bytes::SharedBytes;

/// What the table holds of an entry.
#[derive(Debug)]
pub(crate) struct Cell {
    /// Key and value, side by side in one allocation.
    data: SharedBytes,
    pub(crate) mark: Mark,
    slot: u32,
}

impl Cell {
    #[inline]
    pub(crate) fn slot(&self) -> u32 {
        self.slot
    }

    /// The value, sharing the entry's allocation.
    #[inline]
    pub(crate) fn view(&self) -> ByteView {
        let (data, start) = self.parts();
        let end = data.len();
        ByteView::window(data, start, end)
    }

    /// The same for a reader that lets go of the lock.
    pub(crate) fn detached(&self) -> iter::Entry {
        iter::Entry::new(self.parts(), self.mark.share())
    }

    /// The entry's allocation, and where in it the value begins.
    #[inline]
    pub(crate) fn parts(&self) -> (SharedBytes, usize) {
        (self.data.clone(), usize::from(self.mark.key_len))
    }

    #[inline]
    pub(crate) fn into_parts(self) -> (SharedBytes, usize) {
        (self.data, usize::from(self.mark.key_len))
    }

    /// Whether it is the key's, of whose hash a few bits are compared.
    #[inline(always)]
    fn is_for(&self, tag: u8, key: &[u8]) -> bool {
        self.mark.tag == tag
            && usize::from(self.mark.key_len) == key.len()
            && self
                .data
                .get(..key.len())
                .is_some_and(|own| same_bytes(own, key))
    }
}

/// A new entry on its way in.
pub(crate) struct Entering {
    pub(crate) hash: u32,
    pub(crate) mark: Mark,
    pub(crate) data: SharedBytes,
    pub(crate) weight: u64,
}

/// What hits read comes first: see [`Shard`](super::shard::Shard).
#[derive(Debug, Default)]
#[repr(C)]
pub(crate) struct Entries {
    table: HashTable<Cell>,
    pub(crate) links: Links,
}

impl Entries {
    pub(crate) fn len(&self) -> usize {
        self.table.len()
    }

    #[inline(always)]
    pub(crate) fn find(&self, hash: Hash, key: &str) -> Option<&Cell> {
        let (tag, key) = (tag_of(hash.table()), key.as_bytes());
        self.table.find(hash.spread(), |cell| cell.is_for(tag, key))
    }

    /// Whether a cell can tell this length of a key, and a slot this charge.
    #[inline]
    pub(crate) fn hold(key_len: usize, weight: u64) -> bool {
        u16::try_from(key_len).is_ok() && charge::packed(weight).is_some()
    }

    /// Puts an entry into the table, and returns its slot, which is in no list. `None` if there is
    /// no slot left, or if none can [tell](Self::hold) its weight.
    #[inline]
    pub(crate) fn insert(&mut self, new: Entering) -> Option<u32> {
        let slot = self.links.take(new.hash, charge::packed(new.weight)?)?;
        if self.table.len() == self.table.capacity() {
            self.clean();
        }
        let cell = Cell {
            data: new.data,
            mark: new.mark,
            slot,
        };
        let links = &self.links;
        self.table
            .insert_unique(Hash::spread_of(new.hash), cell, |cell| {
                Hash::spread_of(links.hash(cell.slot))
            });
        Some(slot)
    }

    /// Clears away what evictions left in the table, if that is what fills it. Else it would double
    /// where entries come and go, for nothing.
    ///
    /// A cell that becomes empty among full ones stays marked, so that searches go on past it
    /// (hashbrown's tombstones). There is room for as many as a sixteenth of the cells at least,
    /// so the move is paid for by many insertions.
    #[cold]
    fn clean(&mut self) {
        let cells = self.table.num_buckets();
        if cells < MIN_CLEANED || self.len() > cells / 16 * 13 {
            return;
        }
        let clean = HashTable::with_capacity(cells / 8 * 7);
        let old = std::mem::replace(&mut self.table, clean);
        for cell in old {
            let place = Hash::spread_of(self.links.hash(cell.slot));
            self.table.insert_unique(place, cell, |_| 0);
        }
    }

    /// The cell of a slot, and beside it all slots.
    #[inline]
    pub(crate) fn at(&mut self, slot: u32) -> Option<(OccupiedEntry<'_, Cell>, &mut Links)> {
        let place = Hash::spread_of(self.links.hash(slot));
        let cell = self
            .table
            .find_entry(place, |cell| cell.slot == slot)
            .ok()?;
        Some((cell, &mut self.links))
    }

    /// Takes the entry of a slot out of the table. The slot stays as it is.
    #[inline]
    pub(crate) fn take(&mut self, slot: u32) -> Option<Cell> {
        let (cell, _) = self.at(slot)?;
        Some(cell.remove().0)
    }

    /// Takes the entry of a key out of the table. The slot stays as it is.
    #[inline]
    pub(crate) fn take_key(&mut self, hash: Hash, key: &str) -> Option<Cell> {
        let (tag, key) = (tag_of(hash.table()), key.as_bytes());
        let cell = self
            .table
            .find_entry(hash.spread(), |cell| cell.is_for(tag, key));
        Some(cell.ok()?.remove().0)
    }

    /// The sum of all entries' charges, after checking that every entry can be found.
    #[cfg(all(test, not(larder_loom)))]
    pub(super) fn audit(&self) -> u64 {
        let weight = |cell: &Cell| {
            let place = Hash::spread_of(self.links.hash(cell.slot));
            let found = self.table.find(place, |other| other.slot == cell.slot);
            assert!(found.is_some_and(|found| std::ptr::eq(found, cell)));
            self.links.weight(cell.slot)
        };
        self.iter().map(weight).sum()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Cell> {
        self.table.iter()
    }

    /// Moves all entries, which are in these lists, into tables of their number, and tells of each
    /// slot which one it is now, in the order of the new ones.
    pub(crate) fn compact(&mut self, lists: [&mut List; 4], mut moved: impl FnMut(u32, u32)) {
        let live = self.len();
        let mut links = Links::with_capacity(live + 1);
        let mut slots = vec![0; self.links.len()];
        for list in lists {
            self.links.move_list(list, &mut links, |old, new| {
                slots[old as usize] = new;
                moved(old, new);
            });
        }
        let mut table = HashTable::with_capacity(live + 1);
        for mut cell in std::mem::take(&mut self.table) {
            cell.slot = slots[cell.slot as usize];
            let place = Hash::spread_of(links.hash(cell.slot));
            // There is room for all: nothing is hashed again.
            table.insert_unique(place, cell, |_| 0);
        }
        *self = Entries { table, links };
    }

    /// Takes all entries out, and leaves the tables as they are.
    pub(crate) fn drain(&mut self) -> impl Iterator<Item = SharedBytes> {
        self.table.drain().map(|cell| cell.data)
    }
}

/// Smaller tables may double.
const MIN_CLEANED: usize = 64;

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

#[cfg(all(test, not(larder_loom)))]
mod tests {
    use super::*;
    use crate::stats::CacheType;

    fn insert(entries: &mut Entries, n: u32) -> u32 {
        // SplitMix64's mixing steps: even hashes would leave no long runs of full cells.
        let z = (u64::from(n) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let hash = ((z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb) >> 32) as u32;
        let entering = Entering {
            hash,
            mark: Mark::new(hash, 4, CacheType::Main),
            data: SharedBytes::from(&n.to_le_bytes()[..]),
            weight: charge::entry(4),
        };
        entries.insert(entering).expect("there are slots")
    }

    #[test]
    fn a_table_where_entries_come_and_go_does_not_grow() {
        let mut entries = Entries::default();
        let mut slots: std::collections::VecDeque<u32> =
            (0..800).map(|n| insert(&mut entries, n)).collect();
        let cells = entries.table.num_buckets();
        assert_eq!(cells, 1024);
        for n in 800..50_000_u32 {
            let oldest = slots.pop_front().expect("there are 800");
            let cell = entries.take(oldest).expect("it is there");
            assert_eq!(*cell.data, (n - 800).to_le_bytes());
            entries.links.free(oldest);
            slots.push_back(insert(&mut entries, n));
        }
        assert_eq!(entries.table.num_buckets(), cells);
        assert_eq!(entries.audit(), 800 * charge::entry(4));
        for n in 50_000..50_300 {
            insert(&mut entries, n);
        }
        assert_eq!(
            entries.table.num_buckets(),
            2 * cells,
            "entries make it grow"
        );
    }
}
