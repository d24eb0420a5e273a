//! Owners that must never change, because other programs and older versions compute the same.

use std::hash::Hasher;

use super::{Map, Preset};

/// A key, and the last number of its owner's address under golang, mailgun, v3 and larder. A second
/// implementation, in Python, computed larder's column.
const OWNERS: [(&str, [u8; 4]); 8] = [
    ("foo", [1, 2, 1, 2]),
    ("bar", [2, 2, 1, 2]),
    ("", [1, 2, 1, 2]),
    ("12345", [3, 3, 3, 3]),
    ("user:42", [1, 1, 3, 2]),
    ("Ben", [2, 3, 1, 2]),
    ("key-0", [3, 2, 1, 3]),
    ("a b/c,d", [1, 3, 3, 1]),
];

#[test]
fn owners_match_other_programs() {
    for (column, preset) in [
        Preset::Golang,
        Preset::Mailgun,
        Preset::GroupcacheGo,
        Preset::Larder,
    ]
    .into_iter()
    .enumerate()
    {
        let mut ring = Map::preset(preset);
        ring.add((1..=3).map(|octet| format!("http://10.0.0.{octet}:8080")));
        for (key, owners) in OWNERS {
            let owner = format!("http://10.0.0.{}:8080", owners[column]);
            assert_eq!(ring.get(key), Some(&*owner), "{preset:?} {key:?}");
        }
    }
}

/// Nodes of machines of all kinds share a cluster, so word size and byte order must not matter.
#[test]
fn owners_of_20000_keys_have_one_digest_on_all_machines() {
    for (preset, digest) in [
        (Preset::Golang, 0x34f1_2684_a7ed_3da9),
        (Preset::Mailgun, 0xe1ed_9b39_e412_a4e5),
        (Preset::GroupcacheGo, 0x45ef_d877_1879_0009),
        (Preset::Larder, 0xe8fc_61c2_c6a2_2be8),
    ] {
        let mut ring = Map::preset(preset);
        ring.add((1..=7).map(|octet| format!("http://10.0.0.{octet}:8080")));
        let mut owners = fnv::FnvHasher::default();
        for key in 0..20_000 {
            let owner = ring.get(&format!("key-{key}")).unwrap();
            owners.write(owner.as_bytes());
        }
        assert_eq!(owners.finish(), digest, "{preset:?}");
    }
}

#[test]
fn groupcache_go_hashes_the_address_and_returns_the_node_as_added() {
    let mut urls = Map::preset(Preset::GroupcacheGo);
    urls.add(["http://10.0.0.1:8080", "https://10.0.0.2:8080/cache/"]);
    let mut addresses = Map::preset(Preset::GroupcacheGo);
    addresses.add(["10.0.0.1:8080", "10.0.0.2:8080"]);
    for key in (0..500).map(|i| i.to_string()) {
        let url = urls.get(&key).unwrap();
        assert!(urls.nodes().iter().any(|node| node == url));
        assert!(url.contains(addresses.get(&key).unwrap()));
    }
}

#[test]
fn custom_32_bit_hash_gives_golangs_ring() {
    let mut own = Map::new(50, |bytes| super::hashes::crc32(bytes).into()).unwrap();
    let mut preset = Map::preset(Preset::Golang);
    for ring in [&mut own, &mut preset] {
        ring.add(["http://a:1", "http://b:1", "http://c:1"]);
    }
    for key in (0..500).map(|i| i.to_string()) {
        assert_eq!(own.get(&key), preset.get(&key));
    }
}
