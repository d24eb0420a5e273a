//! Tests of every ring: owners, successors, and the keys that a change of nodes moves.

use proptest::collection::{hash_set, vec};
use proptest::prelude::*;

use super::*;

/// A ring with 23 different hashes, so that nodes share most points.
fn crowded() -> Map {
    Map::new(4, |bytes| {
        bytes.iter().fold(7, |h, &b| (h * 31 + u64::from(b)) % 23)
    })
    .unwrap()
}

fn all_rings() -> Vec<Map> {
    let mut rings: Vec<Map> = [Preset::Golang, Preset::Mailgun, Preset::GroupcacheGo]
        .map(Map::preset)
        .into();
    rings.push(Map::with_replicas(Preset::Larder, 64).unwrap());
    rings.push(crowded());
    rings
}

fn points(ring: &Map) -> Vec<(u64, &str)> {
    let owners = ring.owners.iter().map(|&o| ring.nodes[o as usize].as_str());
    ring.hashes.iter().copied().zip(owners).collect()
}

fn keys() -> impl Iterator<Item = String> {
    (0..200).map(|i| format!("key-{i}"))
}

#[test]
fn empty_ring_has_no_owner() {
    for mut ring in all_rings() {
        assert!(ring.is_empty());
        assert_eq!(ring.get("key"), None);
        assert_eq!(ring.successors("key").next(), None);
        ring.add(["a"]);
        assert_eq!((ring.len(), ring.get("key")), (1, Some("a")));
        assert!(ring.remove("a"));
        assert!(!ring.remove("a"));
        assert_eq!(ring.get("key"), None);
    }
}

#[test]
fn replica_count_out_of_range_is_refused() {
    for replicas in [0, MAX_REPLICAS + 1, usize::MAX] {
        for ring in [
            Map::new(replicas, |_| 0),
            Map::with_replicas(Preset::Golang, replicas),
        ] {
            assert_eq!(ring.unwrap_err().kind(), ErrorKind::InvalidOption);
        }
    }
}

#[test]
fn shared_point_belongs_to_the_last_added_until_its_removal() {
    let mut ring = Map::new(1, |_| 1).unwrap();
    ring.add(["a", "b"]);
    ring.add(["c"]);
    assert_eq!(ring.successors("key").collect::<Vec<_>>(), ["c", "b", "a"]);
    ring.remove("c");
    assert_eq!(ring.get("key"), Some("b"));
    ring.add(["a", "b", "a"]);
    assert_eq!(ring.successors("key").collect::<Vec<_>>(), ["a", "b"]);
}

#[test]
fn larders_shared_points_do_not_depend_on_the_order_of_nodes() {
    // No two names are known to share a point, so the test calls `precedence` directly.
    let scheme = Scheme::Preset(Preset::Larder);
    let nodes = ["b".to_owned(), "a".to_owned()];
    assert!(scheme.precedence(&nodes, 1, 0).is_lt());
    assert!(scheme.precedence(&nodes, 0, 1).is_gt());
}

#[test]
fn panicking_hash_leaves_the_ring_unchanged() {
    let mut ring = Map::new(2, |bytes| {
        assert!(!bytes.ends_with(b"bad"), "no such node");
        bytes.len() as u64
    })
    .unwrap();
    ring.add(["a", "bb"]);
    let before = ring.clone();
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        ring.add(["a", "bad"]);
    }));
    assert!(result.is_err());
    assert_eq!(points(&ring), points(&before));
}

fn names() -> impl Strategy<Value = Vec<String>> {
    hash_set("[a-z]{1,3}:[0-9]{1,2}", 1..8).prop_map(|set| set.into_iter().collect())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn removing_gives_the_ring_built_without_the_node(
        nodes in names(), gone in any::<prop::sample::Index>(), split in 0_usize..8,
    ) {
        let gone = gone.get(&nodes);
        for empty in all_rings() {
            let mut ring = empty.clone();
            let (early, late) = nodes.split_at(split.min(nodes.len()));
            ring.add(early);
            ring.add(late);
            let before = ring.clone();
            prop_assert!(ring.remove(gone));

            let mut without = empty;
            without.add(nodes.iter().filter(|node| *node != gone));
            prop_assert_eq!(ring.nodes(), without.nodes());
            prop_assert_eq!(points(&ring), points(&without));
            for key in keys() {
                let owner = before.get(&key);
                if owner != Some(gone.as_str()) {
                    prop_assert_eq!(ring.get(&key), owner);
                }
            }
        }
    }

    #[test]
    fn adding_moves_keys_to_the_new_node_only(nodes in names(), new in "[A-Z]{1,9}") {
        for mut ring in all_rings() {
            ring.add(&nodes);
            let before = ring.clone();
            ring.add([&new]);
            for key in keys() {
                let owner = ring.get(&key);
                prop_assert!(owner == Some(new.as_str()) || owner == before.get(&key));
            }
        }
    }

    #[test]
    fn larders_points_do_not_depend_on_the_order_of_nodes(
        nodes in vec("[a-z]{1,9}", 1..8), seed in any::<u64>(),
    ) {
        let mut other = nodes.clone();
        other.sort_by_key(|node| scheme_key(node, seed));
        let mut one_by_one = Map::preset(Preset::Larder);
        for node in &other {
            one_by_one.add([node]);
        }
        let mut at_once = Map::preset(Preset::Larder);
        at_once.add(&nodes);
        prop_assert_eq!(points(&one_by_one), points(&at_once));
    }

    #[test]
    fn successor_is_the_owner_without_those_before_it(nodes in names(), key in ".*") {
        for mut ring in all_rings() {
            ring.add(&nodes);
            let all: Vec<String> = ring.successors(&key).map(str::to_owned).collect();
            prop_assert_eq!(all.len(), nodes.len());
            for node in &all {
                prop_assert_eq!(ring.get(&key), Some(node.as_str()));
                ring.remove(node);
            }
            prop_assert!(ring.is_empty());
        }
    }
}

/// A sort key: the order of the nodes depends on the seed.
fn scheme_key(node: &str, seed: u64) -> u64 {
    Scheme::Preset(Preset::Larder).key(node) ^ seed
}
