use proptest::prelude::*;

use super::*;

/// The clocks of a node, and its time.
struct Node {
    clocks: RemovalClocks,
    clock: Clock,
}

impl Node {
    /// Nodes differ in the origin of their clocks.
    fn new(started: u64) -> Node {
        let clock = Clock::manual();
        clock.advance(Duration::from_secs(started));
        Node {
            clocks: RemovalClocks::new(),
            clock,
        }
    }

    /// Applies a removal, as a group does.
    fn remove(&self, key: &str, number: u64) {
        let counted = self.clocks.admit(Some(number));
        self.note(key, counted);
        self.clocks.finish(counted);
    }

    /// The first half of a removal.
    fn note(&self, key: &str, counted: Counted) {
        let stripe = KeyStripe::of(key);
        self.clocks.advance(stripe, key, counted, &self.clock);
    }

    fn clear(&self, number: u64) {
        let counted = self.clocks.admit(Some(number));
        self.clocks.advance(ALL_KEYS, "", counted, &self.clock);
        self.clocks.finish(counted);
    }

    fn now(&self) -> Tick {
        self.clock.now()
    }

    fn table(&self) -> Table {
        let (clocks, applied) = self.clocks.table(&self.clock).encode();
        Table::decode(&clocks, &applied).expect("it decodes")
    }

    fn merge(&self, table: &Table) -> Option<Floors> {
        let floors = self.clocks.merge(table, self.now(), &self.clock)?;
        self.clocks.finish_merge(table, &floors);
        Some(floors)
    }

    fn is_like(&self, other: &Node, key: &str) -> bool {
        self.clocks
            .has_same(KeyStripe::of(key), other.clocks.mark(key))
    }

    fn has_digest_of(&self, other: &Node) -> bool {
        self.clocks.has_same_digest(other.clocks.mark("k"))
    }
}

fn millis(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn pair() -> [Node; 2] {
    [Node::new(0), Node::new(1_000_000)]
}

fn advance(nodes: &[Node], by: Duration) {
    nodes.iter().for_each(|node| node.clock.advance(by));
}

/// The numbers of removals of two nodes.
const OF_A: u64 = 7 << 32;
const OF_B: u64 = 8 << 32;

/// A key of another stripe than `key`.
fn other(key: &str) -> String {
    let mut keys = (0..).map(|n| n.to_string());
    let found = keys.find(|other| KeyStripe::of(other) != KeyStripe::of(key));
    found.expect("one of them")
}

#[test]
fn clocks_take_8_kib() {
    let clocks = RemovalClocks::new();
    assert_eq!(size_of_val(&*clocks.clocks), 8192);
    assert_eq!(clocks.table(&Clock::manual()).encode().0.len(), 8192);
}

#[test]
fn stripe_is_fnv_1a_of_the_key() {
    // Computed by another program. A change would make mixed clusters drop values.
    for (key, hash) in [
        ("", 0xcbf2_9ce4_8422_2325_u64),
        ("a", 0xaf63_dc4c_8601_ec8c),
    ] {
        assert_eq!(KeyStripe::of(key), KeyStripe((hash % 1023) as usize));
    }
}

#[test]
fn marks_are_equal_after_the_same_removals_in_any_order() {
    let [a, b] = pair();
    assert_eq!(a.clocks.mark("k"), None);
    a.remove("k", OF_A | 1);
    a.remove("k", OF_A | 2);
    b.remove("k", OF_A | 2);
    assert!(!a.is_like(&b, "k") && !a.has_digest_of(&b));
    assert!(a.is_like(&b, &other("k")));
    b.remove("k", OF_A | 1);
    // It arrives twice.
    b.remove("k", OF_A | 1);
    assert!(a.is_like(&b, "k") && a.has_digest_of(&b));
}

#[test]
fn clear_changes_the_marks_of_all_keys() {
    let [a, b] = pair();
    a.clear(OF_A | 1);
    assert!(!a.is_like(&b, "k") && !a.is_like(&b, "l"));
    b.clear(OF_A | 1);
    assert!(a.is_like(&b, "k") && a.is_like(&b, "l"));
}

#[test]
fn mark_has_no_stamp_while_clocks_are_ahead_of_entries() {
    let [a, b] = pair();
    let stamp = || a.clocks.mark("k").map(|mark| mark.stamp);
    let change = a.clocks.begin_change();
    a.clear(OF_A | 1);
    assert_eq!(stamp(), Some(0));
    // The digest is of ended removals only. Without it, a node that knows of none would not find the
    // difference.
    assert!(!b.has_digest_of(&a));
    drop(change);
    assert!(stamp().is_some_and(|stamp| stamp != 0));
}

#[test]
fn removal_without_a_number_has_the_stamp_of_its_key() {
    let [a, b] = pair();
    let stamp = |node: &Node| node.clocks.admit(None).stamp("k");
    assert!(stamp(&a).is_some() && stamp(&a) == stamp(&b));
    assert_eq!(a.clocks.admit(Some(0)).stamp("k"), None);
}

#[test]
fn time_since_a_removal_is_rounded_down() {
    let [a, _] = pair();
    let stripe = KeyStripe::of("k");
    assert_eq!(a.clocks.since_removal(stripe, a.now()), None);
    a.clock.advance(Duration::from_micros(300));
    a.remove("k", OF_A | 1);
    for (by, most) in [(100, 0), (900, 1), (100_000, 101)] {
        a.clock.advance(Duration::from_micros(by));
        let since = a.clocks.since_removal(stripe, a.now()).expect("a removal");
        assert!(
            since <= millis(most) && since + millis(2) >= millis(most),
            "{since:?}"
        );
    }
    // After 49 days, the removal looks younger, never older.
    a.clock.advance(Duration::from_secs(50 * 86_400));
    let since = a.clocks.since_removal(stripe, a.now());
    assert!(since.is_some_and(|since| since < Duration::from_secs(86_400)));
}

/// A removal may come after a caller has read the clock.
#[test]
fn removal_after_the_reading_of_the_clock_is_not_ancient() {
    let [a, _] = pair();
    let before = a.now();
    a.clock.advance(millis(5));
    a.remove("k", OF_A | 1);
    let since = a.clocks.since_removal(KeyStripe::of("k"), before);
    assert_eq!(since, Some(Duration::ZERO));
}

#[test]
fn missed_removal_drops_what_was_loaded_before_it() {
    let nodes @ [a, b] = &pair();
    let before = b.now();
    advance(nodes, millis(100));
    a.remove("k", OF_A | 1);
    advance(nodes, millis(5000));
    let floors = b.merge(&a.table()).expect("a removal");
    assert!(floors.is_older("k", Some(before)));
    assert!(floors.is_older("k", None), "of unknown age");
    let after = before.after(millis(103));
    assert!(!floors.is_older("k", Some(after)));
    assert!(!floors.is_older(&other("k"), Some(before)));
    assert!(a.is_like(b, "k") && a.has_digest_of(b));
    assert!(b.merge(&a.table()).is_none() && a.merge(&b.table()).is_none());
    // The removal arrives at last.
    b.remove("k", OF_A | 1);
    assert!(a.is_like(b, "k") && a.has_digest_of(b));
}

#[test]
fn missed_removal_drops_what_was_loaded_in_the_same_moment() {
    let [a, b] = pair();
    a.remove("k", OF_A | 1);
    let floors = b.merge(&a.table()).expect("a removal");
    assert!(floors.is_older("k", Some(b.now())));
}

#[test]
fn missed_clear_drops_all_that_was_loaded_before_it() {
    let nodes @ [a, b] = &pair();
    let before = b.now();
    advance(nodes, millis(100));
    a.clear(OF_A | 1);
    advance(nodes, millis(5000));
    let floors = b.merge(&a.table()).expect("a removal");
    assert!(floors.is_older("k", Some(before)) && floors.is_older("l", Some(before)));
    assert!(!floors.is_older("k", Some(before.after(millis(103)))));
}

#[test]
fn node_that_was_cut_off_drops_values_and_the_others_drop_none() {
    let nodes @ [a, b] = &pair();
    for node in nodes {
        node.remove("k", OF_A | 1);
        node.remove("l", OF_B | 1);
    }
    advance(nodes, millis(5000));
    a.remove("k", OF_A | 2);
    a.remove("l", OF_A | 3);
    advance(nodes, millis(5000));
    assert!(a.merge(&b.table()).is_none());
    assert!(b.merge(&a.table()).is_some());
    assert!(a.is_like(b, "k") && a.is_like(b, "l") && a.has_digest_of(b));
}

#[test]
fn removals_of_two_nodes_in_one_stripe_are_exchanged() {
    let nodes @ [a, b] = &pair();
    a.remove("k", OF_A | 1);
    b.remove("k", OF_B | 1);
    advance(nodes, millis(5000));
    let tables = nodes.each_ref().map(|node| node.table());
    for (node, table) in [(a, &tables[1]), (b, &tables[0])] {
        let floors = node.merge(table).expect("a removal");
        assert!(floors.is_older("k", node.now().before(millis(5001))));
    }
    assert!(a.is_like(b, "k") && a.has_digest_of(b));
    // A third node has applied one of the two removals. Its clock differs from the merged one.
    let c = Node::new(5);
    c.remove("k", OF_A | 1);
    assert!(!c.is_like(a, "k") && !c.has_digest_of(a));
    assert!(a.merge(&c.table()).is_none());
    assert!(c.merge(&a.table()).is_some());
    assert!(c.is_like(b, "k") && c.has_digest_of(b));
}

/// The process that removed ended, and no other node has its first removal.
#[test]
fn removals_after_a_lost_one_are_found_by_a_node_that_missed_them() {
    let nodes @ [a, b, c] = &[0, 100, 10_000].map(Node::new);
    for number in (2..1000).map(|count| OF_A | count) {
        nodes.iter().for_each(|node| node.remove("l", number));
    }
    let before = c.now();
    advance(nodes, millis(100));
    [a, b].iter().for_each(|node| node.remove("k", OF_A | 1000));
    assert!(a.has_digest_of(b) && !c.has_digest_of(a));
    let floors = c.merge(&a.table()).expect("a removal");
    assert!(floors.is_older("k", Some(before)));
    assert!(c.is_like(b, "k") && c.has_digest_of(b));
    for node in nodes {
        let known = node.clocks.known().expect("all of them");
        assert!(nodes.iter().all(|other| other.clocks.has_applied(&known)));
    }
}

/// The peer got every second removal, more of them than it can note.
#[test]
fn set_that_left_removals_out_is_whole_again_once_it_has_them() {
    let [a, b] = pair();
    for count in 1..400 {
        a.remove("k", OF_A | count);
        if count % 2 == 0 {
            b.remove("k", OF_A | count);
        }
    }
    assert_eq!(b.clocks.known(), None);
    assert!(b.merge(&a.table()).is_some());
    let known = b.clocks.known().expect("all of them");
    assert!(a.clocks.has_applied(&known) && a.has_digest_of(&b));
}

/// If it did, the node would keep the value of a peer that has not applied the removal.
#[test]
fn merge_does_not_undo_a_removal_under_way() {
    for has_removed in [false, true] {
        let [a, b] = pair();
        if has_removed {
            a.remove(&other("k"), 1);
        }
        b.remove("k", 1 << 32 | 1);
        let [of_a, of_b] = [&a, &b].map(Node::table);
        let under_way = a.clocks.admit(Some(2 << 32 | 1));
        a.note("k", under_way);
        a.merge(&of_b);
        b.merge(&of_a);
        assert!(!a.is_like(&b, "k"));
        a.clocks.finish(under_way);
        assert!(!a.is_like(&b, "k"));
    }
}

#[test]
fn number_that_ends_the_counts_leaves_the_table_readable() {
    let [one, other] = pair();
    for count in [0, 1, u32::MAX] {
        one.remove("key", 7 << 32 | u64::from(count));
    }
    other.merge(&one.table());
    assert!(other.has_digest_of(&one));
}

#[test]
fn malformed_tables_are_refused() {
    for (clocks, applied) in [(0, 0), (8, 0), (8191, 0), (8193, 0), (8192, 1), (8192, 4)] {
        assert!(Table::decode(&vec![1; clocks], &vec![0; applied]).is_none());
    }
    assert!(Table::decode(&[1; 8192], &[]).is_some());
}

proptest! {
    /// Each node misses some of the removals. After some exchanges, all nodes have the same set. Each was
    /// made to drop the values of the keys whose removals it had missed.
    #[test]
    fn nodes_converge_and_miss_no_removal(
        removals in prop::collection::vec((0..6_u8, 0..3_u64, 1..8_u8), 1..30),
    ) {
        let nodes = [0, 100, 10_000].map(Node::new);
        let start = nodes.each_ref().map(Node::now);
        let mut missed = [const { Vec::new() }; 3];
        let mut counts = [0; 3];
        for (key, origin, receivers) in removals {
            counts[origin as usize] += 1;
            let number = (origin + 1) << 32 | counts[origin as usize];
            for (n, node) in nodes.iter().enumerate() {
                node.clock.advance(millis(10));
                match receivers & 1 << n {
                    0 => missed[n].push((key.to_string(), node.now().since(start[n]))),
                    _ => node.remove(&key.to_string(), number),
                }
            }
        }
        for (one, other) in [(0, 1), (1, 2), (0, 2), (0, 1)] {
            nodes.iter().for_each(|node| node.clock.advance(millis(100)));
            let tables = [nodes[one].table(), nodes[other].table()];
            for (n, table) in [(one, &tables[1]), (other, &tables[0])] {
                let Some(floors) = nodes[n].merge(table) else { continue };
                missed[n].retain(|(key, at)| {
                    let begun = start[n].after(*at).before(millis(1));
                    !floors.is_older(key, begun)
                });
            }
        }
        // No exchange can tell of a removal that no node has received.
        let known = |key: &str| nodes.iter().any(|node| {
            node.clocks.since_removal(KeyStripe::of(key), node.now()).is_some()
        });
        for node in &nodes[1..] {
            prop_assert!(node.has_digest_of(&nodes[0]));
        }
        let left: Vec<_> = missed.iter().flatten().filter(|(key, _)| known(key)).collect();
        prop_assert!(left.is_empty(), "{left:?}");
    }

    #[test]
    fn arbitrary_tables_do_not_panic(bytes in prop::collection::vec(any::<u8>(), 64)) {
        let [a, _] = pair();
        a.remove("k", OF_A | 1);
        if let Some(table) = Table::decode(&bytes.repeat(128), &[7, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 5, 0, 0, 0]) {
            prop_assert!(a.merge(&table).is_some());
            prop_assert!(a.merge(&table).is_none());
        }
    }
}

#[test]
fn set_without_room_for_the_removals_of_a_table_is_not_taken_for_all() {
    let (node, peer) = (Node::new(0), Node::new(0));
    // Every second removal arrives nowhere.
    let numbers = |counts: std::ops::Range<u64>| counts.step_by(2).map(|count| 7 << 32 | count);
    numbers(102..182).for_each(|number| node.remove("key", number));
    numbers(2..82).for_each(|number| peer.remove("key", number));
    assert!(node.clocks.known().is_some());
    node.merge(&peer.table());
    let known = node.clocks.known();
    let known = known.map(|known| AppliedRemovals::decode(&known).expect("it decodes"));
    let is_known = |number| known.as_ref().is_none_or(|known| known.contains(number));
    assert!(numbers(2..82).chain(numbers(102..182)).all(is_known));
}

#[test]
fn set_without_some_removals_is_not_sent_as_that_of_all() {
    let [a, b] = pair();
    a.remove("k", OF_A | 1);
    for origin in 100..355_u64 {
        a.remove("other", origin << 32 | 1);
    }
    let known = a.clocks.known().expect("it has all of them");
    assert!(!b.clocks.has_applied(&known));
    // The first origin is left out.
    a.remove("other", 355 << 32 | 1);
    assert_eq!(a.clocks.known(), None);
    // It is left out, too, in the set of a node that exchanges its removals with this one.
    let c = Node::new(0);
    (400..500).for_each(|origin| c.remove("other", origin << 32 | 1));
    c.merge(&b.table());
    assert!(c.clocks.known().is_some());
    c.merge(&a.table());
    assert_eq!(c.clocks.known(), None);
}

#[test]
fn node_whose_removals_were_left_out_begins_anew() {
    let [a, b] = pair();
    let origin_of_next = || {
        let (number, counted) = a.clocks.begin();
        a.note("k", counted);
        a.clocks.finish(counted);
        b.remove("k", number);
        number >> 32
    };
    let first = origin_of_next();
    assert_eq!(origin_of_next(), first);
    for origin in 100..356_u64 {
        a.remove("other", origin << 32 | 1);
        b.remove("other", origin << 32 | 1);
    }
    let second = origin_of_next();
    assert_ne!(second, first);
    // Two removals are under way at the same time.
    let (one, two) = (a.clocks.begin().0, a.clocks.begin().0);
    assert_eq!([one >> 32, two >> 32], [second, second]);
    // A node that misses one is found by its digest.
    for number in [one, two]
        .into_iter()
        .chain((0..100).map(|_| a.clocks.begin().0))
    {
        a.remove("k", number);
        assert!(!a.has_digest_of(&b));
        b.remove("k", number);
        assert!(a.has_digest_of(&b));
    }
}

#[test]
fn number_that_no_node_makes_does_not_change_the_set() {
    let [a, b] = pair();
    for node in [&a, &b] {
        node.remove("k", OF_A | 1);
    }
    for number in [OF_B, OF_B | u64::from(u32::MAX)] {
        a.remove("k", number);
    }
    assert!(!a.is_like(&b, "k"));
    assert!(a.has_digest_of(&b));
}

#[test]
fn merge_of_removals_that_were_left_out_drops_no_value() {
    let [a, b] = pair();
    for origin in 100..356_u64 {
        a.remove("k", origin << 32 | 1);
        b.remove("k", origin << 32 | 1);
    }
    // They arrive in different orders, so the two leave out different ones.
    let removals = [400, 401].map(|origin: u64| origin << 32 | 1);
    removals.iter().for_each(|&number| a.remove("k", number));
    b.remove("k", 100 << 32 | 2);
    a.remove("k", 100 << 32 | 2);
    removals.iter().for_each(|&number| b.remove("k", number));
    assert!(!a.has_digest_of(&b));
    let (of_a, of_b) = (a.table(), b.table());
    for floors in [a.merge(&of_b), b.merge(&of_a)].into_iter().flatten() {
        assert!(!floors.is_older("k", None));
    }
    assert!(a.has_digest_of(&b), "they have the same set now");
}

/// A removal that begins at this node. Returns its number.
fn remove_own(node: &Node) -> u64 {
    let (number, counted) = node.clocks.begin();
    node.note("k", counted);
    node.clocks.finish(counted);
    number
}

/// A set whose owner takes long to answer is a removal under way for as long.
#[test]
fn removals_during_long_ones_are_noted_and_so_are_later_ones() {
    for (long, origins) in [(1, 1), (100, 3)] {
        let [a, b] = pair();
        let begin = |_| {
            let long = a.clocks.begin();
            (0..100).for_each(|_| b.remove("k", remove_own(&a)));
            long
        };
        let under_way: Vec<_> = (0..long).map(begin).collect();
        assert!(a.has_digest_of(&b));
        for (number, counted) in under_way {
            a.note("k", counted);
            a.clocks.finish(counted);
            assert!(!a.has_digest_of(&b));
            b.remove("k", number);
            assert!(a.has_digest_of(&b));
        }
        let missed = remove_own(&a);
        assert!(!a.has_digest_of(&b));
        b.remove("k", missed);
        assert!(a.has_digest_of(&b));
        let encoded = a.clocks.applied.lock().encode();
        assert_eq!(encoded.len(), 16 * origins, "one run of each origin");
    }
}

#[test]
fn number_that_the_set_contains_already_is_not_made() {
    let [a, b] = pair();
    let origin = remove_own(&a) >> 32;
    // A peer says that it has applied all removals of this origin.
    let all = [origin as u32, 1, 1, u32::MAX - 1].map(u32::to_le_bytes);
    let (clocks, _) = b.table().encode();
    a.merge(&Table::decode(&clocks, all.as_flattened()).expect("it decodes"));
    assert_ne!(remove_own(&a) >> 32, origin);
}

/// A set that failed leaves such a removal behind.
#[test]
fn removal_that_changed_no_clock_is_in_the_digests_of_all_nodes() {
    let [a, b] = pair();
    let (_, counted) = a.clocks.begin();
    a.clocks.finish(counted);
    assert!(!a.has_digest_of(&b));
    b.merge(&a.table());
    assert!(a.has_digest_of(&b) && b.has_digest_of(&a));
}

/// It has their stamps, and not their removals.
#[test]
fn node_that_takes_over_clocks_of_an_incomplete_set_does_not_claim_to_know_all() {
    for origins in [false, true] {
        let [a, b] = pair();
        for n in 1..300_u64 {
            let number = if origins { n << 32 | 1 } else { OF_A | (2 * n) };
            a.remove("k", number);
        }
        assert_eq!(a.clocks.known(), None);
        b.merge(&a.table());
        assert!(a.is_like(&b, "k"));
        assert_eq!(b.clocks.known(), None, "origins: {origins}");
    }
}
