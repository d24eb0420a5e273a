//! The queues of a share: doubly linked lists through the slots, the newest entry at the head.

use crate::store::slab::{NIL, SlotLink, Slots};

/// The number of queues: a small and a main one for each class of weights.
const QUEUES: usize = 2 * CLASSES;

/// Classes by the logarithm of the weight. The first one has all weights below 128 bytes, the last one
/// all weights of 2 MiB and more.
const CLASSES: usize = 16;

/// The logarithm of the lowest weight of the first class, in bytes.
const FIRST_CLASS_LOG2: u32 = 6;

/// The number of a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct QueueId(u32);

impl QueueId {
    /// The only queue of a policy that does not classify.
    pub(super) const SINGLE: QueueId = QueueId(0);

    pub(super) fn new(weight: u64, in_main: bool) -> QueueId {
        let log2 = weight.max(1).ilog2().saturating_sub(FIRST_CLASS_LOG2);
        let class = log2.min(CLASSES as u32 - 1);
        QueueId(class + if in_main { CLASSES as u32 } else { 0 })
    }

    pub(super) fn is_main(self) -> bool {
        self.0 >= CLASSES as u32
    }

    fn at(self) -> usize {
        self.0 as usize
    }
}

/// The ends of all queues.
#[derive(Debug)]
pub(super) struct Queues {
    /// Bit n is set if queue n has an entry.
    occupied: u32,
    ends: [Ends; QUEUES],
}

/// The ends of a queue. The data of the tail that a search for a victim compares are copied here, so that
/// it does not read the slots.
#[derive(Clone, Copy, Debug)]
struct Ends {
    /// The cost of the tail, by the function that the policy gives; see `Policy`.
    cost: u32,
    born: u32,
    tail: u32,
    head: u32,
}

const NO_ENDS: Ends = Ends {
    cost: 0,
    born: 0,
    tail: NIL,
    head: NIL,
};

/// The tail of a queue.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tail {
    pub(super) queue: QueueId,
    pub(super) cost: u32,
    pub(super) born: u32,
}

impl Queues {
    pub(super) fn new() -> Queues {
        Queues {
            occupied: 0,
            ends: [NO_ENDS; QUEUES],
        }
    }

    /// The slot of a queue's oldest entry.
    pub(super) fn tail_index(&self, queue: QueueId) -> u32 {
        self.ends[queue.at()].tail
    }

    /// The tail of a queue, if it has an entry.
    #[inline]
    pub(super) fn tail(&self, queue: QueueId) -> Option<Tail> {
        (self.occupied & 1 << queue.0 != 0).then(|| self.known_tail(queue))
    }

    /// The tails of all queues that have an entry.
    #[inline]
    pub(super) fn tails(&self) -> impl Iterator<Item = Tail> {
        let mut left = self.occupied;
        std::iter::from_fn(move || {
            let queue = QueueId(left.trailing_zeros());
            if left == 0 {
                return None;
            }
            left &= left - 1;
            Some(self.known_tail(queue))
        })
    }

    #[inline]
    fn known_tail(&self, queue: QueueId) -> Tail {
        let Ends { cost, born, .. } = self.ends[queue.at()];
        Tail { queue, cost, born }
    }

    /// Adds an entry at the head.
    #[inline]
    pub(super) fn push_head(
        &mut self,
        slots: &mut impl Slots,
        queue: QueueId,
        index: u32,
        cost: impl Fn(u64) -> u32,
    ) {
        let head = std::mem::replace(&mut self.ends[queue.at()].head, index);
        let link = slots.link_mut(index);
        link.prev = NIL;
        link.next = head;
        if head == NIL {
            self.set_tail(slots, queue, index, cost);
        } else {
            slots.link_mut(head).prev = index;
        }
    }

    /// Removes an entry from its queue.
    #[inline]
    pub(super) fn unlink(
        &mut self,
        slots: &mut impl Slots,
        queue: QueueId,
        index: u32,
        cost: impl Fn(u64) -> u32,
    ) {
        let SlotLink { prev, next, .. } = *slots.link(index);
        match prev {
            NIL => self.ends[queue.at()].head = next,
            _ => slots.link_mut(prev).next = next,
        }
        match next {
            NIL => self.set_tail(slots, queue, prev, cost),
            _ => slots.link_mut(next).prev = prev,
        }
    }

    /// Corrects the neighbours of an entry that was copied into the slot `index` from another one.
    pub(super) fn relink(&mut self, slots: &mut impl Slots, queue: QueueId, index: u32) {
        let SlotLink { prev, next, .. } = *slots.link(index);
        match prev {
            NIL => self.ends[queue.at()].head = index,
            _ => slots.link_mut(prev).next = index,
        }
        match next {
            NIL => self.ends[queue.at()].tail = index,
            _ => slots.link_mut(next).prev = index,
        }
    }

    fn set_tail(
        &mut self,
        slots: &impl Slots,
        queue: QueueId,
        index: u32,
        cost: impl Fn(u64) -> u32,
    ) {
        if index == NIL {
            self.occupied &= !(1 << queue.0);
            self.ends[queue.at()].tail = NIL;
            return;
        }
        self.occupied |= 1 << queue.0;
        let link = slots.link(index);
        let ends = &mut self.ends[queue.at()];
        (ends.cost, ends.born, ends.tail) = (cost(link.weight()), link.born, index);
    }
}
