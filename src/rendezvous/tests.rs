use proptest::prelude::*;

use super::*;

fn set_of<'a>(nodes: impl IntoIterator<Item = (&'a str, u32)>) -> Rendezvous {
    let mut set = Rendezvous::new();
    for (name, weight) in nodes {
        set.add(name, weight).expect("a good weight");
    }
    set
}

fn addresses(count: usize) -> Vec<String> {
    let name = |i| format!("http://10.0.{}.{}:8080", i / 256, i % 256);
    (0..count).map(name).collect()
}

/// The share of each node among `keys` keys, in the order of the names.
fn shares(set: &Rendezvous, keys: u64) -> Vec<f64> {
    let mut owned = vec![0_u64; set.len()];
    for key in 0..keys {
        owned[set.owner(mix(key)).expect("nodes")] += 1;
    }
    let share = |owned: u64| owned as f64 / keys as f64;
    owned.into_iter().map(share).collect()
}

/// Other processes, machines and releases compute the same owners. A second implementation, in
/// Python, computed these.
#[test]
fn owners_do_not_change() {
    let plain = set_of([
        ("http://10.0.0.1:8080", 1),
        ("http://10.0.0.2:8080", 1),
        ("http://10.0.0.3:8080", 1),
    ]);
    let weighted = set_of([
        ("http://10.0.0.1:8080", 1),
        ("http://10.0.0.2:8080", 3),
        ("http://10.0.0.3:8080", 2),
    ]);
    let last =
        |owner: Option<&str>| owner.and_then(|url| url.strip_suffix(":8080")?.chars().last());
    for (key, owner, owner_by_weight) in OWNERS {
        assert_eq!(last(plain.get(key)), Some(owner), "{key:?}");
        assert_eq!(last(weighted.get(key)), Some(owner_by_weight), "{key:?}");
    }
}

/// A key, and the last digit of its owner's address: with equal weights, and with weights 1, 3, 2.
const OWNERS: [(&str, char, char); 8] = [
    ("foo", '3', '3'),
    ("bar", '3', '2'),
    ("", '3', '3'),
    ("12345", '3', '3'),
    ("user:42", '2', '2'),
    ("Ben", '2', '2'),
    ("key-0", '2', '2'),
    ("a b/c,d", '1', '3'),
];

#[test]
fn logarithm_is_close_and_monotonic() {
    let mut last = u64::MAX;
    for bits in (0..64).flat_map(|shift| {
        [
            1 << shift,
            (1 << shift) + (1_u64 << shift) / 3,
            u64::MAX >> (63 - shift),
        ]
    }) {
        let exact = -((bits as f64) / 2_f64.powi(64)).log2();
        let found = minus_log2(bits) as f64 / 2_f64.powi(FRACTION as i32);
        assert!(
            (found - exact).abs() <= exact * 0.002 + 1e-15,
            "{bits:x}: {found} {exact}"
        );
    }
    for step in 0..100_000_u64 {
        let found = minus_log2(step.wrapping_mul(u64::MAX / 100_000));
        assert!(found <= last);
        last = found;
    }
}

#[test]
fn keys_spread_evenly() {
    for (nodes, most) in [(3, 1.01), (10, 1.015), (64, 1.04)] {
        let names = addresses(nodes);
        let set = set_of(names.iter().map(|name| (&**name, 1)));
        let busiest = shares(&set, 1_000_000).into_iter().fold(0.0, f64::max);
        assert!(
            busiest * nodes as f64 <= most,
            "{nodes} nodes: {}",
            busiest * nodes as f64
        );
    }
}

#[test]
fn share_is_in_proportion_to_the_weight() {
    let set = set_of([("a", 1), ("b", 2), ("c", 5), ("d", 100)]);
    for (share, weight) in shares(&set, 1_000_000)
        .into_iter()
        .zip([1.0, 2.0, 5.0, 100.0])
    {
        let wanted = weight / 108.0;
        assert!((share - wanted).abs() < wanted * 0.05, "{share} {wanted}");
    }
}

#[test]
fn weight_outside_its_range_is_refused() {
    let mut set = Rendezvous::new();
    for weight in [0, MAX_WEIGHT + 1, u32::MAX] {
        let error = set.add("a", weight).expect_err("out of range");
        assert_eq!(error.kind(), ErrorKind::InvalidOption);
    }
    assert!(set.is_empty() && set.get("key").is_none());
    assert!(set.add("a", MAX_WEIGHT).is_ok());
}

proptest! {
    #[test]
    fn order_of_addition_does_not_matter(
        nodes in prop::collection::btree_map("[a-f]{1,3}", 1..5_u32, 1..12),
        key in ".*",
    ) {
        let one = set_of(nodes.iter().map(|(name, weight)| (&**name, *weight)));
        let other = set_of(nodes.iter().rev().map(|(name, weight)| (&**name, *weight)));
        prop_assert_eq!(one.get(&key), other.get(&key));
        prop_assert!(one.ranked(&key).eq(other.ranked(&key)));
        prop_assert!(one.names().eq(nodes.keys()));
    }

    #[test]
    fn node_that_leaves_moves_only_its_own_keys(
        nodes in prop::collection::btree_map("[a-f]{1,3}", 1..5_u32, 2..12),
        keys in prop::collection::vec(".*", 20),
    ) {
        let before = set_of(nodes.iter().map(|(name, weight)| (&**name, *weight)));
        let gone = nodes.keys().next().expect("two at least").clone();
        let mut after = before.clone();
        prop_assert!(after.remove(&gone));
        prop_assert!(!after.remove(&gone));
        for key in &keys {
            let ranked: Vec<_> = before.ranked(key).collect();
            prop_assert_eq!(ranked.len(), nodes.len());
            prop_assert_eq!(before.get(key), Some(ranked[0]));
            let left = ranked.iter().copied().filter(|name| **name != *gone);
            prop_assert!(after.ranked(key).eq(left));
        }
    }

    #[test]
    fn higher_weight_moves_keys_only_to_its_node(
        nodes in prop::collection::btree_map("[a-f]{1,3}", 1..5_u32, 2..12),
        keys in prop::collection::vec(".*", 20),
    ) {
        let before = set_of(nodes.iter().map(|(name, weight)| (&**name, *weight)));
        let (raised, weight) = nodes.iter().next().expect("two at least");
        let mut after = before.clone();
        after.add(raised.clone(), weight * 3).expect("a good weight");
        for key in &keys {
            let owner = after.get(key);
            prop_assert!(owner == before.get(key) || owner == Some(&**raised));
        }
    }
}
