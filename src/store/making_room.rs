//! Makes room in a store: expired entries of any shard leave first, and then the oldest entries of all
//! shards.

use std::sync::atomic::Ordering;

use super::budget::demand::{Demand, tolerated};
use super::evicted::{EvictedEntries, PendingEviction};
use super::shard::{EVICTED_AT_ONCE, Room, Update};
use super::{Store, weight};
use crate::clock::Tick;
use crate::stats::CacheType;

impl Store {
    /// Removes expired entries of any shard while the store has no room for an entry of `len` bytes.
    /// So none of them causes the eviction of another entry.
    pub(super) fn make_room_from_expired(&self, len: usize, evicted: &mut EvictedEntries) {
        let weight = weight::of_entry(len);
        if weight > self.capacity() {
            return;
        }
        let weight = weight.saturating_add(weight::EXPIRY as u64);
        if !self.budget.has_room(weight) {
            let now = self.timing.clock.now();
            self.remove_expired(now, evicted, |update| !update.ledger.has_room(weight));
        }
    }

    /// Removes entries that had expired by `now`, shard by shard, while `more` returns true. No lock
    /// is held for more than [`EVICTED_AT_ONCE`] of them.
    pub(super) fn remove_expired(
        &self,
        now: Tick,
        evicted: &mut EvictedEntries,
        more: impl Fn(&Update<'_>) -> bool,
    ) {
        for visited in self.next_expiries.due(now) {
            let mut next = now;
            while next <= now {
                let mut shard = self.shards[visited].write();
                let mut update = self.update(evicted);
                update.now = Some(now);
                let most = update.evicted.len() + EVICTED_AT_ONCE;
                shard.remove_expired(&mut update, |update| {
                    update.evicted.len() < most && more(update)
                });
                let is_done = !more(&update);
                drop(update);
                shard.fit_tables();
                next = shard.next_expiry();
                self.next_expiries.set(visited, next);
                if is_done {
                    return;
                }
            }
        }
    }

    /// Removes some expired entries while the store is over its capacity.
    pub(super) fn expired_while_over(&self) -> Option<EvictedEntries> {
        if !self.budget.is_over() || !self.next_expiries.any() {
            return None;
        }
        let mut evicted = EvictedEntries::default();
        self.remove_expired(self.timing.clock.now(), &mut evicted, |update| {
            update.evicted.len() < EVICTED_AT_ONCE && update.ledger.is_over()
        });
        (!evicted.is_empty()).then_some(evicted)
    }

    /// Evicts while the store is over its capacity: the oldest entries of all shards, but not the
    /// `inserted` one if there are others. Stops after [`EVICTED_AT_ONCE`] entries, and then marks the
    /// eviction as pending.
    pub(super) fn make_room(
        &self,
        inserted: Option<PendingEviction>,
        evicted: &mut EvictedEntries,
    ) {
        let mut demand = match inserted {
            Some(inserted) => Demand::new(&self.budget, inserted.limit),
            None => Demand::of_oldest(&self.budget),
        };
        let mut first = self.cursor.load(Ordering::Relaxed);
        let mut tours = 0;
        while self.budget.is_over() {
            let (room, best) = self.tour(first, &mut demand, inserted, evicted);
            match room {
                Room::Made => {}
                Room::Pending => {
                    evicted.set_pending(inserted);
                    return;
                }
                Room::Refused => {
                    self.take_back(inserted, evicted);
                    demand.limit = 0;
                }
                Room::Below(share, Some(score)) => {
                    self.budget.set_level(share, score);
                    tours += 1;
                    // Entries with hits were moved instead, so all shards are searched again.
                    let floor = if tours < MAX_TOURS {
                        tolerated(score)
                    } else {
                        0
                    };
                    demand.floors[share as usize] = floor;
                    first = best;
                }
                Room::Below(share, None) if demand.share.is_none() => {
                    demand.share = Some(share.other());
                }
                Room::Below(_, None) => {
                    // Only the inserted entry is left, and the capacity has become too small for it.
                    self.take_back(inserted, evicted);
                    return;
                }
            }
        }
    }

    /// Lets one shard after the other make room, beginning with `first`. Returns the first result other
    /// than [`Room::Below`], or the best of all, and its shard.
    fn tour(
        &self,
        first: usize,
        demand: &mut Demand,
        inserted: Option<PendingEviction>,
        evicted: &mut EvictedEntries,
    ) -> (Room, usize) {
        let count = self.shards.len();
        let (mut share, mut best) = (CacheType::Main, (None, first));
        for at in (0..count).map(|n| (first + n) & (count - 1)) {
            let spared = inserted.filter(|inserted| inserted.hash.shard(count) == at);
            demand.spared = spared.map(|inserted| inserted.hash.short());
            let mut shard = self.shards[at].write();
            let room = shard.make_room(demand, &mut self.update(evicted));
            drop(shard);
            let Room::Below(lacking, score) = room else {
                if at != first {
                    self.cursor.store(at, Ordering::Relaxed);
                }
                return (room, at);
            };
            if lacking != share {
                (share, best) = (lacking, (None, first));
            }
            best = best.max((score, at));
        }
        (Room::Below(share, best.0), best.1)
    }

    /// Evicts an inserted entry that turned out not to be worth its room.
    fn take_back(&self, inserted: Option<PendingEviction>, evicted: &mut EvictedEntries) {
        if let Some(PendingEviction { hash, .. }) = inserted {
            let mut shard = self.shard(hash).write();
            shard.take_back(hash, &mut self.update(evicted));
        }
    }
}

/// The most tours in which all shards only moved entries with hits, before one is evicted.
const MAX_TOURS: u32 = 16;
