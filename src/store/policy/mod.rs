//! Decides which entry leaves next: Tide, or exact LRU.
//!
//! Tide compares the room that the entries took without a hit: weight times age. The entries are in FIFO
//! queues by weight, so the tail of each queue is the oldest of about its weight, and a search compares
//! only the tails. It is GreedyDual-Size (Cao and Irani, USITS '97) without a heap. New entries go to
//! small queues, and entries with hits to main queues, as in S3-FIFO (Yang et al., SOSP '23). How much
//! longer an entry of a main queue may stay is not fixed but [learned](MainFactor).
//!
//! Under exact LRU there is one queue in the order of use, and the score of an entry is its age alone.

mod ghost;
mod main_factor;
mod queues;

use self::ghost::{Departure, Ghost};
use self::main_factor::MainFactor;
use self::queues::{QueueId, Queues, Tail};
use super::slab::Slots;

/// How the cache chooses the entries to evict.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Eviction {
    /// Tide: the entry leaves that took the most room for the longest time without a hit. It has
    /// better hit ratios than LRU on most workloads, a scan or one large value does not flush the
    /// cache, and a hit takes only a shared lock.
    #[default]
    Tide,
    /// Exact least-recently-used, as golang/groupcache. A hit takes the shard's exclusive lock.
    Lru,
}

/// How much an entry's weight counts when scores are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cost {
    /// Not at all: exact LRU.
    Constant,
    /// By its square root, which compromises between the hits by objects and by bytes.
    SquareRoot,
    /// In full, which gives the most hits by objects.
    Weight,
}

impl Cost {
    /// The cost of a weight in bytes, at most [`MAX_COST`].
    #[inline]
    fn of(self, weight: u64) -> u32 {
        let cost = match self {
            Cost::Constant => 1,
            Cost::SquareRoot => square_root(weight.min(1 << 36)),
            Cost::Weight => 4 * weight.min(MAX_COST / 4),
        };
        cost as u32
    }
}

/// 256 times the square root, by interpolation between powers of two. It is at most 1.5 % less.
#[inline]
fn square_root(weight: u64) -> u64 {
    const OF_ONE_AND_TWO: [u64; 2] = [256, 362];
    let root = |log2: u32| OF_ONE_AND_TWO[(log2 & 1) as usize] << (log2 >> 1);
    let log2 = weight.max(1).ilog2();
    let (low, high) = (root(log2), root(log2 + 1));
    low + (((high - low) * (weight - (1 << log2))) >> log2)
}

/// Costs and ages are cut to these, so that a score has 64 bits.
const MAX_COST: u64 = 1 << 30;
const MAX_AGE: u64 = 1 << 30;

/// The state of the store at one miss.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moment {
    /// The misses so far, modulo 2^32.
    pub(super) now: u32,
    /// The entries whose misses are counted, and the sum of their weights.
    pub(super) entries: u32,
    pub(super) bytes: u64,
}

/// How a new entry is treated.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Admission {
    /// Whether it enters the main queue.
    pub(super) proven: bool,
    /// The entry is not cached if this is more than the score of an entry that would have to leave.
    pub(super) limit: u64,
}

/// The result of a search for a victim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Choice {
    /// The entry in this slot, which is in no queue any more, and its score.
    Victim(u32, u64),
    /// The best victim has this score, which is below the floor.
    Below(u64),
    /// The best victim has a score below the limit.
    Refused,
    /// There is no entry.
    Empty,
}

/// The queues of one share of a shard.
#[derive(Debug)]
pub(super) struct Policy {
    cost: Cost,
    queues: Queues,
    ghost: Ghost,
    main_factor: MainFactor,
    /// The score of the last victim.
    theta: u64,
    last_search: Search,
    len: u32,
    bytes: u64,
}

/// The result of the last search through all tails.
#[derive(Debug)]
struct Search {
    at: u32,
    queue: QueueId,
    /// The second best score.
    second: u64,
}

/// The most entries that a search for one victim moves instead of evicting. This bounds the time
/// under the lock. After that, the next tail is evicted, whatever its hits.
const MAX_MOVES: u32 = 32;

impl Policy {
    pub(super) fn new(cost: Cost) -> Policy {
        Policy {
            cost,
            queues: Queues::new(),
            ghost: Ghost::default(),
            main_factor: MainFactor::new(),
            theta: 0,
            last_search: Search {
                at: 0,
                queue: QueueId::SINGLE,
                second: u64::MAX,
            },
            len: 0,
            bytes: 0,
        }
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn len(&self) -> u32 {
        self.len
    }

    /// Decides how a new entry of this weight is treated whose key was missed at `moment`.
    ///
    /// An entry that is not much heavier than the mean is always admitted. Others must not displace
    /// entries that took less room than they are expected to take.
    pub(super) fn admit(&mut self, hash: u32, weight: u64, moment: Moment) -> Admission {
        if self.cost == Cost::Constant {
            return Admission::default();
        }
        let departure = self.ghost.take(hash, moment.now);
        let proven = departure.filter(|departure| self.is_proven(weight, *departure, moment));
        if let Some(departure) = proven {
            self.main_factor.count_return(departure.was_main);
        }
        self.main_factor.learn(self.len);
        let entries = u64::from(moment.entries);
        let is_light = weight.saturating_mul(entries) < moment.bytes.saturating_mul(2);
        let cost = || u64::from(self.cost.of(weight));
        let limit = match proven {
            _ if is_light => 0,
            Some(departure) => 2 * self.score(true, cost(), departure.age),
            None => cost() * NEWCOMER_AGE,
        };
        Admission {
            proven: proven.is_some(),
            limit,
        }
    }

    /// Whether an entry would still be cached if it had entered the main queue at once.
    fn is_proven(&self, weight: u64, departure: Departure, moment: Moment) -> bool {
        let cost = u64::from(self.cost.of(weight));
        departure.age < moment.entries.max(SHORTEST_HORIZON)
            && self.main_factor.of(cost) * u64::from(departure.age) <= self.theta / 2
    }

    /// Remembers a key whose entry was not admitted.
    pub(super) fn refuse(&mut self, hash: u32, moment: Moment) {
        let Moment { now, entries, .. } = moment;
        self.ghost.insert(hash, false, now, self.len, entries);
    }

    /// Adds an entry that is in use at `now`: to a main queue if it is `proven`.
    pub(super) fn push(&mut self, slots: &mut impl Slots, index: u32, proven: bool, now: u32) {
        let weight = slots.link(index).weight();
        self.len += 1;
        self.bytes += weight;
        self.enqueue(slots, index, proven, now);
    }

    fn enqueue(&mut self, slots: &mut impl Slots, index: u32, in_main: bool, now: u32) {
        slots.meta_mut(index).set_in_main_queue(in_main);
        slots.link_mut(index).born = now;
        let queue = self.queue_of(slots, index);
        let cost = self.cost;
        self.queues
            .push_head(slots, queue, index, |weight| cost.of(weight));
    }

    /// Removes an entry from its queue.
    pub(super) fn remove(&mut self, slots: &mut impl Slots, index: u32) {
        let queue = self.queue_of(slots, index);
        self.remove_from(slots, queue, index);
    }

    #[inline]
    fn remove_from(&mut self, slots: &mut impl Slots, queue: QueueId, index: u32) {
        self.len -= 1;
        self.bytes -= slots.link(index).weight();
        self.unlink(slots, queue, index);
    }

    fn unlink(&mut self, slots: &mut impl Slots, queue: QueueId, index: u32) {
        let cost = self.cost;
        self.queues
            .unlink(slots, queue, index, |weight| cost.of(weight));
    }

    fn queue_of(&self, slots: &impl Slots, index: u32) -> QueueId {
        match self.cost {
            Cost::Constant => QueueId::SINGLE,
            _ => QueueId::new(
                slots.link(index).weight(),
                slots.meta(index).in_main_queue(),
            ),
        }
    }

    /// Moves an entry to the front, under LRU.
    pub(super) fn promote(&mut self, slots: &mut impl Slots, index: u32, now: u32) {
        self.unlink(slots, QueueId::SINGLE, index);
        self.enqueue(slots, index, false, now);
    }

    /// Chooses a victim with a score of at least `floor`, and removes it from its queue. A victim with
    /// a score below `limit` is kept instead.
    ///
    /// Entries with hits are not evicted but move to a main queue, as if they had just been inserted.
    pub(super) fn evict(
        &mut self,
        slots: &mut impl Slots,
        moment: Moment,
        floor: u64,
        limit: u64,
    ) -> Choice {
        let now = moment.now;
        let mut moves = 0;
        loop {
            let Some((queue, score)) = self.oldest(now) else {
                return Choice::Empty;
            };
            if score < floor {
                return Choice::Below(score);
            }
            let index = self.queues.tail_index(queue);
            let freq = match self.cost {
                Cost::Constant => 0,
                _ => slots.meta(index).freq(),
            };
            if score < limit && freq == 0 {
                return Choice::Refused;
            }
            if freq > 0 && moves < MAX_MOVES {
                moves += 1;
                self.unlink(slots, queue, index);
                let left = self.main_factor.hits_after_move(freq, queue.is_main());
                slots.meta_mut(index).set_freq(left);
                self.enqueue(slots, index, true, now);
                continue;
            }
            self.theta = score;
            self.remove_from(slots, queue, index);
            if self.cost != Cost::Constant {
                self.main_factor.count_departure(queue.is_main());
                let hash = slots.link(index).hash;
                self.ghost
                    .insert(hash, queue.is_main(), now, self.len, moment.entries);
            }
            return Choice::Victim(index, score);
        }
    }

    /// The entry that leaves next if the queue of the last victim has the next one, too.
    pub(super) fn likely_victim(&self) -> u32 {
        self.queues.tail_index(self.last_search.queue)
    }

    /// Starts to fetch the ghost of a key.
    #[inline]
    pub(super) fn prefetch_ghost(&self, hash: u32) {
        self.ghost.prefetch(hash);
    }

    /// The queue whose tail has the highest score, or almost the highest, and this score.
    ///
    /// Within one miss the queue of the last search is used again while its tail is within 1/8 of the
    /// second best of that search. So a large entry that displaces thousands costs few searches.
    fn oldest(&mut self, now: u32) -> Option<(QueueId, u64)> {
        if self.last_search.at == now {
            if let Some(tail) = self.queues.tail(self.last_search.queue) {
                let score = self.score_of(tail, now);
                let second = self.last_search.second;
                if score >= second - second / 8 {
                    return Some((tail.queue, score));
                }
            }
        }
        let (mut best, mut second) = (None, 0);
        let mut highest = 0;
        for tail in self.queues.tails() {
            let score = self.score_of(tail, now);
            if score > highest || best.is_none() {
                second = highest;
                highest = score;
                best = Some(tail.queue);
            } else if score > second {
                second = score;
            }
        }
        let queue = best?;
        self.last_search = Search {
            at: now,
            queue,
            second,
        };
        Some((queue, highest))
    }

    fn score_of(&self, tail: Tail, now: u32) -> u64 {
        let age = now.wrapping_sub(tail.born);
        self.score(tail.queue.is_main(), tail.cost.into(), age)
    }

    #[inline]
    fn score(&self, in_main: bool, cost: u64, age: u32) -> u64 {
        let age = u64::from(age).min(MAX_AGE) + 1;
        if in_main {
            self.main_factor.of(cost) * age
        } else {
            cost * age
        }
    }

    /// Tells that an entry is now in the slot `index`, with the links that it had in another one.
    pub(super) fn moved(&mut self, slots: &mut impl Slots, index: u32) {
        let queue = self.queue_of(slots, index);
        self.queues.relink(slots, queue, index);
    }

    /// The bytes of the table of keys that left.
    pub(super) fn table_bytes(&self) -> usize {
        self.ghost.table_bytes()
    }

    /// Frees memory that far fewer entries than before do not need.
    pub(super) fn shrink(&mut self) {
        self.ghost.shrink(self.len);
    }
}

/// The age that an entry without a past is expected to reach without a hit.
const NEWCOMER_AGE: u64 = 8;

/// A key is remembered for at least as many misses, even if there are few entries.
const SHORTEST_HORIZON: u32 = 16;
