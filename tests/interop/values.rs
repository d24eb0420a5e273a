//! Values of all sizes, both ways, byte for byte.

use std::time::{Duration, Instant};

use crate::cluster::Program::{Go, Larder};
use crate::cluster::{Node, cluster, keys_owned_by, two_and_two, value_of};

#[test]
#[ignore = "needs Go: tests/interop/run.sh"]
fn values_of_0_bytes_to_8_mib_cross_in_both_directions() {
    // In a test build on a busy machine, 8 MiB take longer than the default of 1 s.
    let patient = ["--exchange-timeout-ms", "20000"];
    let starts = [
        (Go, &[][..]),
        (Go, &[]),
        (Larder, &patient),
        (Larder, &patient),
    ];
    let nodes = cluster(starts.map(|(program, flags)| program.start(flags)));
    let sizes = [
        0,
        1,
        2,
        127,
        128,
        2046,
        2047,
        2048,
        2049,
        8191,
        16_383,
        16_384,
        32_768,
        65_535,
        65_536,
        262_140,
        262_144,
        262_145,
        1 << 20,
        8 << 20,
    ];
    for size in sizes {
        for owner in &nodes {
            let prefix = format!("size:{size}:");
            let key = &keys_owned_by(&nodes[0], &[owner], &prefix, 1)[0];
            for node in &nodes {
                node.expect(key);
            }
            let loads: Vec<u64> = nodes.iter().map(|node| node.loads_of(key)).collect();
            assert_eq!(
                loads.iter().sum::<u64>(),
                1,
                "{key} of {owner:?}: {loads:?}"
            );
        }
    }
    for node in &nodes {
        assert_eq!(node.stat("peer_errors"), 0, "{node:?}");
    }
    println!(
        "{} sizes, 4 owners, 4 askers: all bytes equal, one load each",
        sizes.len()
    );
}

#[test]
#[ignore = "needs Go: tests/interop/run.sh"]
fn value_over_the_limit_is_an_error_and_go_loads_it_itself() {
    let nodes = two_and_two();
    let (go, larder) = (&nodes[0], &nodes[2]);
    let size = "size:17000000:";
    // Go has no limit. larder's is 16 MiB, for the answers of peers and for its own getter.
    let gos = &keys_owned_by(go, &[&nodes[1]], size, 1)[0];
    let refused = larder.get(gos);
    assert_eq!(refused.status, 500, "{}", refused.text());
    assert!(
        refused.text().contains("max_value_size"),
        "{}",
        refused.text()
    );
    // larder's answer makes Go load the value itself.
    let ours = &keys_owned_by(go, &[larder], size, 1)[0];
    let found = go.get(ours);
    assert!(found.status == 200 && found.body == value_of(ours.as_bytes()));
    larder.expect("size:100:after");
}

#[test]
#[ignore = "needs Go: tests/interop/run.sh"]
fn values_expire_at_larder_and_never_at_go() {
    let nodes = two_and_two();
    let (go, larder) = (&nodes[0], &nodes[2]);
    let ask = |node: &Node, key: &str| {
        let got = node.get_with(key, "expiring", None);
        assert!(
            got.status == 200 && got.body == value_of(key.as_bytes()),
            "{}",
            got.text()
        );
    };
    // larder's answer has two fields that Go does not have.
    let ours = keys_owned_by(go, &[larder], "ours-", 100);
    for key in &ours {
        ask(go, key);
    }
    assert_eq!((go.stat("peer_errors"), go.stat("local_loads")), (0, 0));
    wait_until(|| {
        ask(larder, &ours[0]);
        larder.loads_of(&ours[0]) > 1
    });

    // Values of Go expire by the time to live of larder's group, counted from their arrival. Then Go
    // is asked again, and still has them.
    let gos = &keys_owned_by(go, &[go], "gos-", 1)[0];
    ask(larder, gos);
    let asked = go.stat("server_requests");
    wait_until(|| {
        ask(larder, gos);
        go.stat("server_requests") > asked
    });
    assert_eq!((go.loads_of(gos), larder.loads_of(gos)), (1, 0));
}

fn wait_until(happened: impl Fn() -> bool) {
    let begun = Instant::now();
    while !happened() {
        assert!(
            begun.elapsed() < Duration::from_secs(10),
            "the condition does not hold in time"
        );
    }
}
