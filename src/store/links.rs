//! The queues of a shard: lists through slots of 16 bytes, which know their entries' charges and
//! hashes. What evicts reads them; what only looks up does not.

use super::charge;

/// No slot.
const NIL: u32 = u32::MAX;

/// A slot: its neighbours in its queue, and what its entry need not be found for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Link {
    /// `next` also links the free slots.
    prev: u32,
    next: u32,
    /// The upper half of the key's hash: enough to find the slot's place in the table without
    /// touching the entry.
    hash: u32,
    /// What the entry is charged, packed.
    charge: u32,
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
pub(crate) struct Links {
    links: Vec<Link>,
    /// The first of the free slots.
    free: u32,
}

impl Default for Links {
    fn default() -> Self {
        Links::with_capacity(0)
    }
}

impl Links {
    pub(super) fn with_capacity(slots: usize) -> Links {
        Links {
            links: Vec::with_capacity(slots),
            free: NIL,
        }
    }

    /// The number of slots, free ones included.
    pub(crate) fn len(&self) -> usize {
        self.links.len()
    }

    /// The half of the hash that the entry came with.
    #[inline]
    pub(crate) fn hash(&self, slot: u32) -> u32 {
        self.links[slot as usize].hash
    }

    #[inline]
    pub(crate) fn weight(&self, slot: u32) -> u64 {
        charge::unpacked(self.links[slot as usize].charge)
    }

    /// A slot in no list, for an entry of this hash and packed charge. `None` when all 2^32 - 1
    /// are taken.
    #[inline]
    pub(super) fn take(&mut self, hash: u32, charge: u32) -> Option<u32> {
        let link = Link {
            prev: NIL,
            next: NIL,
            hash,
            charge,
        };
        if self.free != NIL {
            let slot = self.free;
            let free = &mut self.links[slot as usize];
            self.free = free.next;
            *free = link;
            return Some(slot);
        }
        let slot = u32::try_from(self.links.len()).ok()?;
        if slot == NIL {
            return None;
        }
        self.links.push(link);
        Some(slot)
    }

    /// Frees a slot that is in no list.
    #[inline]
    pub(crate) fn free(&mut self, slot: u32) {
        self.links[slot as usize].next = self.free;
        self.free = slot;
    }

    /// Moves the members of a list into other slots, in their order, and tells of each where it was
    /// and where it is. Their places here are not used again: these slots are given up.
    pub(super) fn move_list(
        &mut self,
        list: &mut List,
        to: &mut Links,
        mut moved: impl FnMut(u32, u32),
    ) {
        let mut there = List::default();
        while let Some(old) = list.tail() {
            self.unlink(list, old);
            let Link { hash, charge, .. } = self.links[old as usize];
            let Some(new) = to.take(hash, charge) else {
                break;
            };
            to.push_head(&mut there, new);
            moved(old, new);
        }
        *list = there;
    }

    #[inline]
    pub(crate) fn push_head(&mut self, list: &mut List, slot: u32) {
        let head = list.head;
        let link = &mut self.links[slot as usize];
        link.prev = NIL;
        link.next = head;
        list.bytes += self.weight(slot);
        list.len += 1;
        if head == NIL {
            list.tail = slot;
        } else {
            self.links[head as usize].prev = slot;
        }
        list.head = slot;
    }

    #[inline]
    pub(crate) fn unlink(&mut self, list: &mut List, slot: u32) {
        let &Link { prev, next, .. } = &self.links[slot as usize];
        list.bytes -= self.weight(slot);
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

    pub(crate) fn move_to_head(&mut self, list: &mut List, slot: u32) {
        if list.head != slot {
            self.unlink(list, slot);
            self.push_head(list, slot);
        }
    }
}
