//! The peer that is asked for a key, the number of requests, and the copies that are kept.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use larder::consistent_hash::{Map, Preset};
use larder::{CacheType, ErrorKind, Group, HotAdmission, PeerPicker, PeerResponse, ProtoGetter};

use crate::common::*;

const KEYS: usize = 200;
const NODES: [&str; 4] = ["peer0", "peer1", "peer2", "self"];

/// This process and three peers, on larder's own ring.
struct Cluster {
    ring: Map,
    peers: Vec<Arc<FakePeer>>,
    group: Group,
    local_loads: Count,
}

impl Cluster {
    /// The picker has no peer for the node `absent`, so this process loads its keys. With `replicas`,
    /// the next node on the ring is asked when a peer fails.
    fn new(peers: Vec<Arc<FakePeer>>, absent: Option<usize>, replicas: bool) -> Cluster {
        let mut ring = Map::preset(Preset::Larder);
        ring.add(NODES);
        let picker = {
            let (ring, peers) = (ring.clone(), peers.clone());
            picker(move |key, attempt| {
                if attempt > 0 && !replicas {
                    return None;
                }
                let node = ring.successors(key).nth(attempt)?;
                let at = NODES.iter().position(|&other| other == node)?;
                let peer: Arc<dyn ProtoGetter> = peers.get(at)?.clone();
                (Some(at) != absent).then_some(peer)
            })
        };
        let (getter, local_loads) = echo();
        let group = among("peers", picker).build(getter).expect("a group");
        Cluster {
            ring,
            peers,
            group,
            local_loads,
        }
    }

    /// Gets every key. Returns the number of requests to each peer, and last of loads here.
    fn pass(&self) -> [i64; 4] {
        let before = self.counts();
        for n in 0..KEYS {
            let key = format!("key-{n}");
            let value = self.group.get(&key).expect("a value");
            assert_eq!(value, format!("ECHO:{key}").as_str());
        }
        let after = self.counts();
        std::array::from_fn(|n| after[n] - before[n])
    }

    fn counts(&self) -> [i64; 4] {
        let calls = |n: usize| self.peers[n].calls();
        [calls(0), calls(1), calls(2), self.local_loads.get()]
    }

    /// The keys that each node owns by the ring.
    fn shares(&self) -> [i64; 4] {
        let owners = (0..KEYS).filter_map(|n| self.ring.get(&format!("key-{n}")).map(String::from));
        let mut shares = [0; 4];
        for owner in owners {
            let at = NODES.iter().position(|&node| node == owner);
            shares[at.expect("a node of the ring")] += 1;
        }
        shares
    }
}

fn well() -> Vec<Arc<FakePeer>> {
    (0..3).map(|_| FakePeer::echo()).collect()
}

fn first_failing() -> Vec<Arc<FakePeer>> {
    let mut peers = well();
    peers[0] = FakePeer::failing(ErrorKind::Peer, "connection refused");
    peers
}

#[test]
fn each_peer_is_asked_for_the_keys_it_owns() {
    let cluster = Cluster::new(well(), None, false);
    let shares = cluster.shares();
    assert_eq!(cluster.pass(), shares);
    // The mean is 50 keys for each. The tolerance is four standard deviations of a fair draw.
    assert!(
        shares.iter().all(|share| (25..=75).contains(share)),
        "{shares:?}"
    );
}

#[test]
fn second_pass_asks_no_peer() {
    let cluster = Cluster::new(well(), None, false);
    let [.., own] = cluster.pass();
    assert_eq!(cluster.pass(), [0; 4]);
    let (main, hot) = (
        cluster.group.cache_stats(CacheType::Main),
        cluster.group.cache_stats(CacheType::Hot),
    );
    assert_eq!(main.items, own as u64);
    assert_eq!(hot.items, (KEYS as i64 - own) as u64);
    assert_eq!(cluster.group.stats().cache_hits, KEYS as u64);
}

#[test]
fn keys_of_absent_peer_are_loaded_here() {
    let cluster = Cluster::new(well(), Some(0), false);
    let [a, b, c, own] = cluster.shares();
    assert_eq!(cluster.pass(), [0, b, c, own + a]);
    assert_eq!(cluster.group.stats().peer_errors, 0);
}

#[test]
fn keys_of_failing_peer_are_served() {
    let cluster = Cluster::new(first_failing(), None, false);
    let [a, b, c, own] = cluster.shares();
    assert_eq!(cluster.pass(), [a, b, c, own + a]);
    let stats = cluster.group.stats();
    assert_eq!(stats.peer_errors, a as u64);
    assert_eq!(stats.peer_loads, (b + c) as u64);
    assert_eq!(stats.local_loads, (own + a) as u64);
    assert_eq!(cluster.pass(), [0; 4], "values loaded here are cached");
}

#[test]
fn keys_of_failing_peer_go_to_its_successors() {
    let cluster = Cluster::new(first_failing(), None, true);
    let [a, b, c, own] = cluster.shares();
    let [asked_a, asked_b, asked_c, here] = cluster.pass();
    assert_eq!(asked_a, a);
    assert_eq!(asked_b + asked_c + here, KEYS as i64);
    assert!(
        asked_b > b && asked_c > c && here > own,
        "each other node gets a part"
    );
}

#[test]
fn hot_admission_decides_which_copies_are_kept() {
    let picky = HotAdmission::Custom(Arc::new(|key, value| {
        assert_eq!(*value, format!("ECHO:{key}").as_str());
        key == "wanted"
    }));
    for (admission, wanted, other) in [
        (HotAdmission::Always, 1, 1),
        (HotAdmission::Never, 3, 3),
        (HotAdmission::Probability(1.0), 1, 1),
        (HotAdmission::Probability(0.0), 3, 3),
        (picky, 1, 3),
    ] {
        let peer = FakePeer::echo();
        let (getter, _) = echo();
        let group = among("hot", all_keys_at(&[&peer]))
            .hot_admission(admission.clone())
            .build(getter)
            .expect("a group");
        let calls_for = |key: &str| {
            let before = peer.calls();
            for _ in 0..3 {
                assert_eq!(
                    group.get(key).expect("a value"),
                    format!("ECHO:{key}").as_str()
                );
            }
            peer.calls() - before
        };
        assert_eq!(
            (calls_for("wanted"), calls_for("other")),
            (wanted, other),
            "{admission:?}"
        );
    }
}

#[test]
fn own_keys_ignore_hot_admission() {
    let (getter, loads) = echo();
    let group = alone("own")
        .hot_admission(HotAdmission::Never)
        .build(getter)
        .expect("a group");
    for _ in 0..3 {
        group.get("key").expect("a value");
    }
    assert_eq!(loads.get(), 1);
}

#[test]
fn picker_is_called_for_every_load() {
    struct Changing {
        peer: Arc<FakePeer>,
        ours: AtomicBool,
    }
    impl PeerPicker for Changing {
        fn pick_peer(&self, _key: &str) -> Option<Arc<dyn ProtoGetter>> {
            let peer: Arc<dyn ProtoGetter> = self.peer.clone();
            (!self.ours.load(Ordering::SeqCst)).then_some(peer)
        }
    }
    let picker = Arc::new(Changing {
        peer: FakePeer::new(|_, _| Ok(PeerResponse::new("theirs"))),
        ours: AtomicBool::new(false),
    });
    let (getter, _) = echo();
    let group = among("changing", picker.clone())
        .build(getter)
        .expect("a group");
    assert_eq!(group.get("one").expect("a value"), "theirs");
    picker.ours.store(true, Ordering::SeqCst);
    assert_eq!(group.get("two").expect("a value"), "ECHO:two");
    assert_eq!(group.get("one").expect("a value"), "theirs", "still cached");
}
