//! How a ring hashes nodes and keys, and which node owns a point that nodes share.

use std::cmp::Ordering;
use std::fmt::{self, Write};

use super::hashes::{crc32, fnv1, md5_hex};
use crate::random::{GOLDEN_RATIO, mix, spread};
use crate::sync::Arc;

/// The rings of larder and of other groupcache implementations.
///
/// All processes of a cluster must use the same preset and the same number of replicas. Otherwise
/// they disagree about owners, and keys are loaded more than once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Preset {
    /// Larder's own ring, designed for balance: 2048 replicas, 64-bit FNV-1a of the key and of the
    /// node, each followed by SplitMix64's finalizer.
    ///
    /// A node's points are the SplitMix64 sequence that its hash seeds. A point that nodes share
    /// belongs to the node whose name sorts first, so the order of addition never matters.
    ///
    /// # Balance and memory
    ///
    /// With R replicas a node's share of the ring varies by about 1/√R of the mean. Over 20,000
    /// sets of 10 nodes, arcs summed exactly, the busiest node owned more than 1.10 × the mean in
    /// 95 sets with 1024 replicas, and in one (1.108 ×) with 2048. A point takes 12 bytes: 24 KiB
    /// a node, 240 KiB for 10 nodes.
    #[default]
    Larder,
    /// The ring of golang/groupcache: 50 replicas, CRC-32 (IEEE) of points and keys.
    Golang,
    /// The ring of mailgun/groupcache: 50 replicas, 64-bit FNV-1 of the hexadecimal MD5 of a point,
    /// 64-bit FNV-1 of a key.
    Mailgun,
    /// The ring of groupcache-go v3: as [`Mailgun`](Self::Mailgun), but a node is hashed by its
    /// `host:port`. Nodes may be URLs: scheme, user and path are not hashed. Nothing else is
    /// changed, so write the port, and write the host as the Go nodes do.
    GroupcacheGo,
}

impl Preset {
    /// The number of points a node gets by default: 2048 for [`Larder`](Self::Larder), 50 for
    /// the others.
    pub const fn replicas(self) -> usize {
        match self {
            Preset::Larder => 2048,
            Preset::Golang | Preset::Mailgun | Preset::GroupcacheGo => 50,
        }
    }
}

/// A preset, or a hash of the user's.
#[derive(Clone)]
pub(super) enum Scheme {
    Preset(Preset),
    Custom(Arc<HashFn>),
}

type HashFn = dyn Fn(&[u8]) -> u64 + Send + Sync;

impl Scheme {
    /// The hash of `key`.
    #[inline]
    pub(super) fn key(&self, key: &str) -> u64 {
        let key = key.as_bytes();
        match self {
            Scheme::Preset(Preset::Larder) => spread(key),
            Scheme::Preset(Preset::Golang) => crc32(key).into(),
            Scheme::Preset(Preset::Mailgun | Preset::GroupcacheGo) => fnv1(key),
            Scheme::Custom(hash) => hash(key),
        }
    }

    /// Calls `push` with the `replicas` points of `node`, in no order.
    pub(super) fn points(&self, node: &str, replicas: usize, push: impl FnMut(u64)) {
        match self {
            Scheme::Preset(Preset::Larder) => splitmix(spread(node.as_bytes()), replicas, push),
            Scheme::Preset(Preset::Golang) => {
                numbered(node, replicas, |point| crc32(point).into(), push);
            }
            Scheme::Preset(Preset::Mailgun) => {
                numbered(node, replicas, |point| fnv1(&md5_hex(point)), push);
            }
            Scheme::Preset(Preset::GroupcacheGo) => {
                let node = host_and_port(node);
                numbered(node, replicas, |point| fnv1(&md5_hex(point)), push);
            }
            Scheme::Custom(hash) => numbered(node, replicas, |point| hash(point), push),
        }
    }

    /// Orders two nodes that share a point: the lesser one owns it. `nodes` is in order of addition.
    pub(super) fn precedence(&self, nodes: &[String], a: u32, b: u32) -> Ordering {
        match self {
            Scheme::Preset(Preset::Larder) => nodes[a as usize].cmp(&nodes[b as usize]),
            // Go writes the points into a map, where a later node overwrites an earlier one.
            _ => b.cmp(&a),
        }
    }
}

impl fmt::Debug for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Scheme::Preset(preset) => preset.fmt(f),
            Scheme::Custom(_) => f.write_str("Custom"),
        }
    }
}

/// The first outputs of the SplitMix64 generator with this seed.
///
/// This avoids a weakness of Go's points, which have no separator between number and node: point 11
/// of `10.0.0.1:80` is point 1 of `110.0.0.1:80`, and so on for every tenth point.
fn splitmix(seed: u64, replicas: usize, mut push: impl FnMut(u64)) {
    let mut state = seed;
    for _ in 0..replicas {
        state = state.wrapping_add(GOLDEN_RATIO);
        push(mix(state));
    }
}

/// Go's points: the hashes of `0node`, `1node`, `2node`…
fn numbered(node: &str, replicas: usize, hash: impl Fn(&[u8]) -> u64, mut push: impl FnMut(u64)) {
    let mut point = String::with_capacity(node.len() + 8);
    for replica in 0..replicas {
        point.clear();
        // Writing to a `String` cannot fail.
        let _ = write!(point, "{replica}{node}");
        push(hash(point.as_bytes()));
    }
}

/// The `host:port` of a URL, or of a node that already is one.
fn host_and_port(node: &str) -> &str {
    let rest = node.split_once("://").map_or(node, |(_, rest)| rest);
    let authority = rest.split(['/', '?', '#']).next().unwrap_or(rest);
    authority
        .rsplit_once('@')
        .map_or(authority, |(_, host)| host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_host_and_port_of_a_node_are_hashed() {
        for node in [
            "10.0.0.1:8080",
            "http://10.0.0.1:8080",
            "https://10.0.0.1:8080/",
            "http://user:secret@10.0.0.1:8080/_groupcache/?a=b@c",
        ] {
            assert_eq!(host_and_port(node), "10.0.0.1:8080", "{node}");
        }
        assert_eq!(host_and_port("http://[::1]:8080/x"), "[::1]:8080");
    }

    #[test]
    fn hashes_of_larder_do_not_change() {
        let scheme = Scheme::Preset(Preset::Larder);
        assert_eq!(scheme.key("foo"), 0x6c2f_e770_3e1b_0bca);
        let mut first = 0;
        scheme.points("http://10.0.0.1:8080", 1, |point| first = point);
        assert_eq!(first, 0x1863_01fe_9322_832b);
    }

    #[test]
    fn points_begin_with_the_replica_number() {
        let scheme = Scheme::Custom(Arc::new(|point| {
            std::str::from_utf8(point).unwrap().parse().unwrap()
        }));
        let mut points = Vec::new();
        scheme.points("7", 11, |point| points.push(point));
        assert_eq!(points, [7, 17, 27, 37, 47, 57, 67, 77, 87, 97, 107]);
    }
}
