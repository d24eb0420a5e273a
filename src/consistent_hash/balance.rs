//! Tests that the larder preset divides the ring evenly, and that half its replicas would not.

use super::{Map, Preset};
use crate::random::mix;

/// The part of the ring that the busiest node owns, with the mean as 1. Exact but for the last
/// rounding.
fn busiest(ring: &Map) -> f64 {
    let mut arcs = vec![0_u128; ring.len()];
    let mut previous = *ring.hashes.last().unwrap();
    for (&hash, &owner) in ring.hashes.iter().zip(&ring.owners) {
        arcs[owner as usize] += u128::from(hash.wrapping_sub(previous));
        previous = hash;
    }
    let whole = 2_f64.powi(64);
    *arcs.iter().max().unwrap() as f64 * ring.len() as f64 / whole
}

/// Ten nodes: scattered addresses, ports that differ in the last digit, or numbered hosts.
fn ten_nodes(set: u64) -> Vec<String> {
    let name = |i| match set % 3 {
        0 => {
            let [a, b, c, d, ..] = mix(set * 10 + i).to_le_bytes();
            format!("http://{a}.{b}.{c}.{d}:8080")
        }
        1 => format!("10.{}.{}.{}:808{i}", set >> 16, set >> 8 & 255, set & 255),
        _ => format!("http://cache-{i}.zone-{set}.example.net:8080"),
    };
    (0..10).map(name).collect()
}

/// The number of sets, among `sets`, whose busiest node owns more than 1.10 times the mean.
fn failures(replicas: usize, sets: u64) -> usize {
    (0..sets)
        .filter(|&set| {
            let mut ring = Map::with_replicas(Preset::Larder, replicas).unwrap();
            ring.add(ten_nodes(set));
            busiest(&ring) > 1.10
        })
        .count()
}

#[test]
fn busiest_of_ten_nodes_owns_at_most_a_tenth_over_the_mean() {
    assert_eq!(failures(Preset::Larder.replicas(), 30), 0);
}

/// Takes about 15 s: `cargo test --release --lib -- --ignored least_power_of_two`.
#[test]
#[ignore = "thousands of rings; for release builds"]
fn default_replicas_are_the_least_power_of_two_with_failures_under_one_in_a_thousand() {
    let sets = 20_000;
    let replicas = Preset::Larder.replicas();
    let (fewer, enough) = (failures(replicas / 2, sets), failures(replicas, sets));
    println!(
        "of {sets}: {fewer} fail with {}, {enough} with {replicas}",
        replicas / 2
    );
    assert!(fewer * 1000 >= sets as usize);
    assert!(enough * 1000 < sets as usize);
}

#[test]
fn keys_and_ports_that_differ_in_the_last_digit_spread_evenly() {
    let mut ring = Map::preset(Preset::Larder);
    ring.add((0..10).map(|i| format!("10.0.0.1:808{i}")));
    for shape in ["", "key-", "user:000", "/img/a"] {
        let mut owned = [0; 10];
        for i in 0..20_000 {
            let owner = ring.get(&format!("{shape}{i}")).unwrap();
            let digit = owner.as_bytes()[owner.len() - 1] - b'0';
            owned[usize::from(digit)] += 1;
        }
        // The mean is 2000. Allow a tenth for the arcs, and four standard deviations of 45 for the
        // sample.
        let most = owned.iter().max().unwrap();
        assert!(*most <= 2200 + 4 * 45, "{shape:?}: {owned:?}");
    }
}
