//! The set of the removals that a node has applied.
//!
//! A removal's number has two halves: the origin, a random number of the group of the process that
//! removes, and the count of that group's removals. So a set is a few intervals, and two nodes can tell
//! which of them has applied removals that the other has not.

use std::cmp::Reverse;
use std::ops::Range;

use crate::random::{self, mix};

/// The removals of each origin. Those whose counts changed last are at the end.
#[derive(Clone, Debug, Default)]
pub(super) struct AppliedRemovals {
    origins: Vec<OriginCounts>,
    /// The sum of the digests of the origins.
    digest: u64,
    /// Whether an origin was left out, because the set has a limited size.
    lacks_origin: bool,
}

/// The removals of one origin.
#[derive(Clone, Debug, Default)]
struct OriginCounts {
    id: u32,
    /// The counts of those that are applied, in order. The removals between two runs are under way, or lost.
    runs: Vec<Run>,
    /// The highest count for which there was no room.
    left_out: u32,
}

/// Successive counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    first: u32,
    last: u32,
}

impl Run {
    fn of_one(count: u32) -> Run {
        Run {
            first: count,
            last: count,
        }
    }
}

impl OriginCounts {
    /// The indexes of the runs that become one with this one.
    fn joined_by(&self, run: Run) -> Range<usize> {
        // No count is the largest number.
        let start = self.runs.partition_point(|own| own.last + 1 < run.first);
        let end = self.runs.partition_point(|own| own.first <= run.last + 1);
        start..end
    }

    fn add(&mut self, run: Run) {
        let joined = self.joined_by(run);
        let whole = self.runs[joined.clone()].iter().fold(run, |one, next| Run {
            first: one.first.min(next.first),
            last: one.last.max(next.last),
        });
        drop(self.runs.splice(joined, [whole]));
    }

    /// Whether one more count leaves the number of runs within its limit.
    fn has_room_for(&self, count: u32) -> bool {
        self.runs.len() < MAX_RUNS || !self.joined_by(Run::of_one(count)).is_empty()
    }

    fn digest(&self) -> u64 {
        let digest = |run: &Run| {
            let begin = mix(u64::from(self.id) << 32 | u64::from(run.first));
            mix(begin ^ u64::from(run.last))
        };
        let noted = self.runs.iter().map(digest).fold(0, u64::wrapping_add);
        // Otherwise a node that applied a removal without a note of it would seem to be like one that missed it.
        let left_out = match self.is_incomplete() {
            true => mix(u64::from(self.left_out) << 32 | u64::from(self.id)),
            false => 0,
        };
        noted.wrapping_add(left_out)
    }

    /// Adds the removals of the same origin. The lowest ones stay if there are too many runs.
    fn add_all(&mut self, other: &OriginCounts) {
        other.runs.iter().for_each(|run| self.add(*run));
        self.left_out = self.left_out.max(other.left_out);
        if self.runs.len() > MAX_RUNS {
            self.left_out = self.left_out.max(self.runs[self.runs.len() - 1].last);
            self.runs.truncate(MAX_RUNS);
        }
    }

    fn contains(&self, run: Run) -> bool {
        let at = self.runs.partition_point(|own| own.last < run.last);
        self.runs.get(at).is_some_and(|own| own.first <= run.first)
    }

    /// Whether every removal of `other` is here. Those that were left out may be here only if all up to the
    /// highest one are, or if the same one is the highest here.
    fn contains_all(&self, other: &OriginCounts) -> bool {
        let has_left_out = !other.is_incomplete()
            || self.left_out == other.left_out
            || self.contains(other.up_to_left_out());
        has_left_out && other.runs.iter().all(|run| self.contains(*run))
    }

    /// Whether a removal for which there was no room is still missing, as far as is known.
    fn is_incomplete(&self) -> bool {
        self.left_out > 0 && !self.contains(self.up_to_left_out())
    }

    fn up_to_left_out(&self) -> Run {
        Run {
            first: 1,
            last: self.left_out,
        }
    }
}

impl AppliedRemovals {
    pub(super) fn digest(&self) -> u64 {
        let left_out = if self.lacks_origin { mix(1) } else { 0 };
        self.digest.wrapping_add(left_out)
    }

    /// Whether removals were added that the set does not contain.
    pub(super) fn is_incomplete(&self) -> bool {
        self.lacks_origin || self.origins.iter().any(OriginCounts::is_incomplete)
    }

    /// Adds a removal. False if it is there already.
    ///
    /// If there are [`MAX_RUNS`] of its origin, and it is next to none, it is left out, and the set says so. Then
    /// the sets of two nodes differ, and the nodes exchange them.
    pub(super) fn insert(&mut self, removal_id: u64) -> bool {
        let count = removal_id as u32;
        let origin = self.origin((removal_id >> 32) as u32);
        if origin.contains(Run::of_one(count)) {
            return false;
        }
        let before = origin.digest();
        if origin.has_room_for(count) {
            origin.add(Run::of_one(count));
        } else {
            origin.left_out = origin.left_out.max(count);
        }
        let after = origin.digest();
        self.digest = self.digest.wrapping_sub(before).wrapping_add(after);
        true
    }

    pub(super) fn contains(&self, removal_id: u64) -> bool {
        let (id, count) = ((removal_id >> 32) as u32, removal_id as u32);
        let mut origins = self.origins.iter();
        origins.any(|origin| origin.id == id && origin.contains(Run::of_one(count)))
    }

    /// Whether there is a removal of the origin of this one.
    pub(super) fn has_origin_of(&self, removal_id: u64) -> bool {
        let id = (removal_id >> 32) as u32;
        self.origins.iter().rev().any(|origin| origin.id == id)
    }

    /// Whether the set will note this removal, which it does not contain.
    pub(super) fn has_room_for(&self, removal_id: u64) -> bool {
        let (id, count) = ((removal_id >> 32) as u32, removal_id as u32);
        let mut origins = self.origins.iter().rev();
        let origin = origins.find(|origin| origin.id == id);
        !self.contains(removal_id) && origin.is_none_or(|origin| origin.has_room_for(count))
    }

    /// The removals of an origin, moved to the end.
    fn origin(&mut self, id: u32) -> &mut OriginCounts {
        let found = self.origins.iter().position(|origin| origin.id == id);
        match found {
            Some(at) if at + 1 < self.origins.len() => self.origins[at..].rotate_left(1),
            Some(_) => {}
            None => {
                if self.origins.len() == MAX_ORIGINS {
                    let oldest = self.origins.remove(0);
                    self.digest = self.digest.wrapping_sub(oldest.digest());
                    self.lacks_origin = true;
                }
                self.origins.push(OriginCounts {
                    id,
                    ..OriginCounts::default()
                });
            }
        }
        self.origins.last_mut().expect("it was found or pushed")
    }

    /// Whether every removal of `other` is here, as far as the two sets show.
    pub(super) fn contains_all(&self, other: &AppliedRemovals) -> bool {
        let has_left_out = self.lacks_origin || !other.lacks_origin;
        has_left_out
            && other.origins.iter().all(|theirs| {
                let mut own = self.origins.iter();
                own.any(|own| own.id == theirs.id && own.contains_all(theirs))
            })
    }

    /// Adds every removal of `other`.
    ///
    /// Two nodes that add each other's sets get the same set in the same order, also if there are too many
    /// origins. Otherwise the two would exchange their sets for ever. So the place of an origin is the later
    /// one of its two places, counted from the end, and the smaller id is later.
    pub(super) fn add_all(&mut self, other: &AppliedRemovals) {
        let own = std::mem::take(&mut self.origins).into_iter();
        let mut all: Vec<(usize, OriginCounts)> = own.rev().enumerate().collect();
        for (at, theirs) in other.origins.iter().rev().enumerate() {
            match all.iter_mut().find(|(_, own)| own.id == theirs.id) {
                Some((place, own)) => {
                    *place = at.min(*place);
                    own.add_all(theirs);
                }
                None => all.push((at, theirs.clone())),
            }
        }
        all.sort_by_key(|(place, origin)| Reverse((*place, origin.id)));
        let surplus = all.len().saturating_sub(MAX_ORIGINS);
        self.lacks_origin |= other.lacks_origin || surplus > 0;
        self.origins = all.drain(surplus..).map(|(_, origin)| origin).collect();
        let digests = self.origins.iter().map(OriginCounts::digest);
        self.digest = digests.fold(0, u64::wrapping_add);
    }

    /// Numbers of four bytes, the lowest byte first: for each origin its number, the number of runs, and the first
    /// and the last count of each. An origin of which a removal was left out comes once more, without runs and
    /// with the count of that removal. At the end, such an entry with the count 0 says that an origin was left
    /// out: a node that takes over the clocks of this one lacks what this one lacks.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut numbers = Vec::new();
        for origin in &self.origins {
            numbers.extend([origin.id, origin.runs.len() as u32]);
            numbers.extend(origin.runs.iter().flat_map(|run| [run.first, run.last]));
            if origin.is_incomplete() {
                numbers.extend([origin.id, 0, origin.left_out]);
            }
        }
        if self.lacks_origin {
            numbers.extend([0; 3]);
        }
        numbers.into_iter().flat_map(u32::to_le_bytes).collect()
    }

    /// Reads what [`encode`](Self::encode) wrote; `None` if it is malformed or larger than any set.
    pub(super) fn decode(bytes: &[u8]) -> Option<AppliedRemovals> {
        let mut set = AppliedRemovals::default();
        let mut numbers = bytes.chunks_exact(4).map_while(|bytes| {
            let bytes = bytes.try_into().ok()?;
            Some(u32::from_le_bytes(bytes))
        });
        while let Some(id) = numbers.next() {
            let len = numbers.next()? as usize;
            if len == 0 {
                match (numbers.next()?, set.origins.last_mut()) {
                    (0, _) => set.lacks_origin = true,
                    (u32::MAX, _) => return None,
                    (count, Some(origin)) if origin.id == id => origin.left_out = count,
                    _ => return None,
                }
                continue;
            }
            if !(1..=MAX_RUNS).contains(&len) || set.origins.len() == MAX_ORIGINS {
                return None;
            }
            let (mut runs, mut before) = (Vec::with_capacity(len), None);
            for _ in 0..len {
                let (first, last) = (numbers.next()?, numbers.next()?);
                // Counts begin at 1, and end before the largest number, so that the next one can be computed.
                let is_sound =
                    first > before.map_or(0, |last| last + 1) && first <= last && last < u32::MAX;
                if !is_sound {
                    return None;
                }
                before = Some(last);
                runs.push(Run { first, last });
            }
            set.origins.push(OriginCounts {
                id,
                runs,
                left_out: 0,
            });
        }
        (bytes.len() % 4 == 0).then_some(set)
    }
}

/// Numbers for the removals of this process.
#[derive(Clone, Copy, Debug)]
pub(super) struct RemovalNumbers {
    origin: u32,
    count: u32,
}

impl RemovalNumbers {
    pub(super) fn new() -> RemovalNumbers {
        RemovalNumbers {
            origin: random::bits() as u32,
            count: 0,
        }
    }

    /// The number before the next one; `None` if the next one is the first of its origin.
    pub(super) fn last(&self) -> Option<u64> {
        (self.count > 0).then(|| u64::from(self.origin) << 32 | u64::from(self.count))
    }

    /// The number that [`next`](Self::next) will return, unless a new origin begins.
    pub(super) fn following(mut self) -> u64 {
        self.next()
    }

    /// The next number; not 0.
    pub(super) fn next(&mut self) -> u64 {
        if self.count == u32::MAX - 1 {
            *self = RemovalNumbers::new();
        }
        self.count += 1;
        u64::from(self.origin) << 32 | u64::from(self.count)
    }
}

/// The most origins: processes that removed something, those that ended included. With more, the one that
/// removed nothing for the longest time is left out, and the set is incomplete.
const MAX_ORIGINS: usize = 256;

/// The most runs of one origin. A set takes 101 KiB at most.
const MAX_RUNS: usize = 48;

#[cfg(all(test, not(larder_loom)))]
mod tests {
    use std::collections::BTreeSet;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn set(ids: impl IntoIterator<Item = (u32, u32)>) -> AppliedRemovals {
        let mut set = AppliedRemovals::default();
        for (origin, count) in ids {
            set.insert(u64::from(origin) << 32 | u64::from(count));
        }
        set
    }

    #[test]
    fn removals_in_any_order_are_one_interval() {
        let one = set([(7, 1), (7, 2), (7, 3)]);
        let other = set([(7, 3), (7, 1), (7, 2), (7, 2)]);
        assert_eq!(one.digest(), other.digest());
        assert_eq!(other.origins[0].runs, [Run { first: 1, last: 3 }]);
        assert_ne!(one.digest(), set([(7, 1), (7, 3)]).digest());
    }

    #[test]
    fn removals_beyond_too_many_gaps_are_not_noted() {
        let most = 2 * MAX_RUNS as u32;
        let mut late = set((1..200).map(|count| (7, 2 * count)));
        assert_eq!(late.origins[0].runs.len(), MAX_RUNS);
        assert!(!late.contains(7 << 32 | u64::from(most + 2)) && late.is_incomplete());
        assert!(late.insert(7 << 32 | 1), "the first gap is closed");
        let first = Run { first: 1, last: 2 };
        assert_eq!(late.origins[0].runs[0], first);
        assert!(late.is_incomplete());
        late.add_all(&set((1..399).map(|count| (7, count))));
        assert!(!late.is_incomplete());
    }

    /// Otherwise the two would not exchange their sets, and the other node would not drop what it has to drop.
    #[test]
    fn set_that_left_out_a_removal_differs_from_one_that_was_not_given_it() {
        let gaps = (1..=MAX_RUNS as u32).map(|count| (7, 2 * count));
        let [mut noted, missed] = [(); 2].map(|()| set(gaps.clone()));
        noted.insert(7 << 32 | 200);
        assert_ne!(noted.digest(), missed.digest());
        assert!(!missed.contains_all(&noted) && noted.contains_all(&missed));
        let mut merged = missed.clone();
        merged.add_all(&noted);
        assert_eq!(merged.digest(), noted.digest());
        assert!(merged.is_incomplete() && merged.contains_all(&noted));
    }

    #[test]
    fn oldest_origin_leaves_a_full_set() {
        let mut full = set((1..=300).map(|origin| (origin, 1)));
        assert_eq!(full.origins.len(), MAX_ORIGINS);
        let last = set((45..=300).map(|origin| (origin, 1)));
        assert_eq!(full.digest, last.digest);
        assert_ne!(full.digest(), last.digest(), "it lacks the others");
        assert!(full.contains_all(&last) && !last.contains_all(&full));
        assert!(!full.insert(300 << 32 | 1) && full.is_incomplete());
        assert!(!set((1..=256).map(|origin| (origin, 1))).is_incomplete());
    }

    /// Nodes that got the removals of more origins than a set holds, in orders of their own.
    fn full_sets(nodes: u32) -> Vec<AppliedRemovals> {
        let order = |node| {
            let mut origins: Vec<u32> = (1..=300).collect();
            origins.sort_by_key(|&origin| {
                let late = mix(u64::from(node) << 32 | u64::from(origin)) % 40;
                u64::from(origin) + late
            });
            origins
        };
        let nodes = (0..nodes).map(|node| set(order(node).into_iter().map(|origin| (origin, 1))));
        nodes.collect()
    }

    #[test]
    fn exchanges_of_full_sets_come_to_an_end() {
        let [mut a, mut b] = <[_; 2]>::try_from(full_sets(2)).expect("two");
        assert_ne!(a.digest(), b.digest());
        let before = a.clone();
        a.add_all(&b);
        b.add_all(&before);
        assert_eq!(a.digest(), b.digest());
        assert_eq!(a.encode(), b.encode());
        assert!(a.is_incomplete() && a.contains(300 << 32 | 1));

        let mut nodes = full_sets(7);
        let mut exchanges = 0;
        while nodes.iter().any(|node| node.digest() != nodes[0].digest()) {
            exchanges += 1;
            assert!(exchanges < 100, "they never agree");
            let dice = mix(exchanges);
            let (one, two) = ((dice % 7) as usize, (dice / 7 % 7) as usize);
            let before = nodes[one].clone();
            let answer = nodes[two].clone();
            if !before.contains_all(&answer) {
                nodes[one].add_all(&answer);
            }
            if !answer.contains_all(&before) {
                nodes[two].add_all(&before);
            }
        }
        // All nodes have left out the removal of origin 1.
        assert!(nodes.iter().all(|node| !node.contains(1 << 32 | 1)));
    }

    #[test]
    fn numbers_of_one_group_differ_from_those_of_another() {
        let (mut a, mut b) = (RemovalNumbers::new(), RemovalNumbers::new());
        assert_eq!(a.next() + 1, a.next());
        assert_ne!(a.next(), b.next());
        a.count = u32::MAX - 1;
        assert_eq!(a.next() as u32, 1, "a new origin");
    }

    #[test]
    fn malformed_sets_are_refused() {
        let bytes = |numbers: &[u32]| -> Vec<u8> {
            numbers
                .iter()
                .flat_map(|number| number.to_le_bytes())
                .collect()
        };
        for numbers in [
            &[1][..],
            &[1, 0],
            &[1, 1],
            &[1, 1, 2],
            &[1, 1, 0, 2],
            &[1, 1, 3, 2],
            &[1, 1, 3, u32::MAX],
            &[1, 2, 3, 4],
            &[1, 2, 3, 4, 5, 6],
            &[1, 2, 3, 4, 4, 6],
            &[1, 2, 5, 6, 1, 3],
            &[1, u32::MAX, 3, 4],
        ] {
            assert!(
                AppliedRemovals::decode(&bytes(numbers)).is_none(),
                "{numbers:?}"
            );
        }
        assert!(AppliedRemovals::decode(&[0; 13]).is_none());
        assert!(AppliedRemovals::decode(&bytes(&[1, 2, 1, 4, 6, 6])).is_some());
        assert!(AppliedRemovals::decode(&bytes(&[1; 4 * MAX_ORIGINS])).is_some());
        assert!(AppliedRemovals::decode(&bytes(&[1; 4 * (MAX_ORIGINS + 1)])).is_none());
    }

    fn ids() -> impl Strategy<Value = Vec<(u32, u32)>> {
        vec((0..4_u32, 1..20_u32), 0..60)
    }

    proptest! {
        #[test]
        fn applied_removals_behave_as_a_plain_set(a in ids(), b in ids()) {
            let plain = |ids: &[(u32, u32)]| ids.iter().copied().collect::<BTreeSet<_>>();
            let (one, other) = (set(a.clone()), set(b.clone()));
            prop_assert_eq!(one.contains_all(&other), plain(&a).is_superset(&plain(&b)));
            prop_assert_eq!(one.digest() == other.digest(), plain(&a) == plain(&b));
            let mut both = one.clone();
            both.add_all(&other);
            prop_assert_eq!(both.digest(), set(a.into_iter().chain(b)).digest());
            let decoded = AppliedRemovals::decode(&both.encode()).expect("it decodes");
            prop_assert!(decoded.contains_all(&both) && both.contains_all(&decoded));
        }

        #[test]
        fn arbitrary_bytes_do_not_panic(bytes in vec(any::<u8>(), 0..80), numbers in vec(0..5_u32, 0..20)) {
            let small: Vec<u8> = numbers.into_iter().flat_map(u32::to_le_bytes).collect();
            for bytes in [bytes, small] {
                if let Some(read) = AppliedRemovals::decode(&bytes) {
                    let mut set = set([(1, 1)]);
                    set.add_all(&read);
                    let _ = (set.contains_all(&read), read.contains_all(&set));
                }
            }
        }

        /// Sets that forget gaps and origins claim no removal that they were not given, and never to have all
        /// of them if they lack one. So a node drops too much, and not too little.
        #[test]
        fn sets_without_room_err_on_the_side_of_dropping(
            steps in vec((0..3_usize, 0..3_usize, 0..300_u32, 1..120_u32, any::<bool>()), 1..40),
        ) {
            let mut sets = [(); 3].map(|()| AppliedRemovals::default());
            let mut plain = [(); 3].map(|()| BTreeSet::new());
            for (at, from, origin, count, is_merge) in steps {
                if is_merge {
                    let read = AppliedRemovals::decode(&sets[from].encode());
                    let theirs = plain[from].clone();
                    sets[at].add_all(&read.expect("it decodes"));
                    plain[at].extend(theirs);
                    continue;
                }
                // Every second removal of one origin, or one removal of each of many origins.
                let ids = (0..count).map(|n| match origin % 2 {
                    0 => (u64::from(origin % 6) << 32) | u64::from(2 * n + 1),
                    _ => (u64::from(origin + n) << 32) | 1,
                });
                for id in ids {
                    sets[at].insert(id);
                    plain[at].insert(id);
                }
            }
            for (own, of_own) in sets.iter().zip(&plain) {
                let has_all = of_own.iter().all(|&id| own.contains(id));
                prop_assert!(has_all || own.is_incomplete());
                for (other, of_other) in sets.iter().zip(&plain) {
                    let is_certain = !own.is_incomplete() || !other.is_incomplete();
                    let claims = is_certain && own.contains_all(other);
                    prop_assert!(!claims || of_other.is_subset(of_own));
                }
            }
            // Exchanges come to an end.
            for exchanges in 0_usize.. {
                if sets.iter().all(|set| set.digest() == sets[0].digest()) {
                    break;
                }
                prop_assert!(exchanges < 30, "they never agree");
                let [one, two] = [exchanges % 3, (exchanges + 1) % 3];
                let before = sets[one].clone();
                let answer = sets[two].clone();
                sets[one].add_all(&answer);
                sets[two].add_all(&before);
                prop_assert_eq!(sets[one].digest(), sets[two].digest());
            }
        }
    }
}
