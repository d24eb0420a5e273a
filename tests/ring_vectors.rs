//! The rings have the owners that Go programs compute.
//!
//! `tests/interop/go` wrote `tests/interop/ring-vectors.json`: the rings of golang by golang/groupcache
//! itself, those of mailgun and v3 by a second implementation in Go. `tests/interop/run.sh` generates
//! the file again and compares.

use larder::consistent_hash::{Map, Preset};
use serde_json::Value;

#[test]
fn owners_equal_those_of_go_programs() {
    let vectors: Value = serde_json::from_str(include_str!("interop/ring-vectors.json")).unwrap();
    let texts = |name: &str| -> Vec<String> {
        let texts = vectors[name].as_array().unwrap().iter();
        texts.map(|text| text.as_str().unwrap().into()).collect()
    };
    let (keys, peers) = (texts("keys"), texts("peers"));
    assert_eq!((keys.len(), peers.len()), (1000, 50));

    let rings = vectors["rings"].as_array().unwrap();
    // There are rings of 3, 10 and 50 peers with 50 and 160 replicas: golang's with three hashes, and the two
    // others.
    assert_eq!(rings.len(), 3 * 2 * (3 + 2));
    for vector in rings {
        let count = |name: &str| usize::try_from(vector[name].as_u64().unwrap()).unwrap();
        let text = |name: &str| vector[name].as_str().unwrap();
        let (replicas, peers) = (count("replicas"), &peers[..count("peers")]);
        let mut ring = match (text("preset"), text("hash")) {
            ("golang", "crc32") => Map::with_replicas(Preset::Golang, replicas),
            ("golang", "fnv1a") => Map::new(replicas, |bytes| fnv1a_32(bytes).into()),
            ("golang", "fnv1a%251") => Map::new(replicas, |bytes| (fnv1a_32(bytes) % 251).into()),
            ("mailgun", "") => Map::with_replicas(Preset::Mailgun, replicas),
            ("v3", "") => Map::with_replicas(Preset::GroupcacheGo, replicas),
            other => panic!("unknown ring: {other:?}"),
        }
        .unwrap();
        ring.add(peers);

        let found: String = keys
            .iter()
            .map(|key| letter(ring.get(key), peers))
            .collect();
        let expected = text("owners");
        let wrong = keys.iter().zip(found.chars()).zip(expected.chars());
        let wrong: Vec<_> = wrong
            .filter(|((_, found), expected)| found != expected)
            .collect();
        assert_eq!(found.len(), expected.len());
        assert!(
            wrong.is_empty(),
            "{} {} of {replicas} replicas, {} peers: {} keys differ, such as {:?}",
            text("preset"),
            text("hash"),
            peers.len(),
            wrong.len(),
            wrong[0]
        );
    }
}

/// The letter of a node in the vectors: A to Z, then a to z.
fn letter(node: Option<&str>, peers: &[String]) -> char {
    let place = peers
        .iter()
        .position(|peer| Some(peer.as_str()) == node)
        .unwrap();
    char::from(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"[place])
}

/// FNV-1a, 32 bits: the other hash of the generator.
fn fnv1a_32(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash, &byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    })
}
