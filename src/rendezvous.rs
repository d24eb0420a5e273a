//! Rendezvous hashing: maps keys to the nodes that own them, without a ring.
//!
//! Each node has a score for each key, a hash of both. The node with the highest score owns the key
//! (Thaler and Ravishankar, "Using name-based mappings to increase hit rates", 1998). A node that
//! joins takes keys from all others, and no key moves between those. The key of a node that leaves
//! goes to the node with the next score. A node of twice the weight owns twice as many keys
//! (Schindelhauer and Schomaker, "Weighted distributed hash tables", 2005).
//!
//! A node takes 8 bytes besides its name and weight, and a look-up computes one score for each node.
//! `cargo bench --bench ring` compares this with rings of points.
//!
//! ```
//! use larder::rendezvous::Rendezvous;
//!
//! let mut nodes = Rendezvous::new();
//! nodes.add("a", 1)?;
//! nodes.add("b", 1)?;
//! nodes.add("c", 2)?;
//! let ranked: Vec<_> = nodes.ranked("foo").map(str::to_owned).collect();
//! assert_eq!(nodes.get("foo"), Some(&*ranked[0]));
//!
//! // Without its owner, the key belongs to the next node.
//! nodes.remove(&ranked[0]);
//! assert_eq!(nodes.get("foo"), Some(&*ranked[1]));
//! # Ok::<(), larder::Error>(())
//! ```

use std::cmp::{Ordering, Reverse};
use std::fmt;

use crate::error::{Error, ErrorKind, Result};
use crate::random::{mix, spread};

/// The nodes, each with a weight.
///
/// The owner of a key depends on the set of names and weights alone, not on their order, the machine
/// or the release. Look-ups take `&self`, so any number of threads can share a finished set.
#[derive(Clone, Default)]
pub struct Rendezvous {
    /// In the order of addition.
    nodes: Vec<Node>,
    /// The hashes of the names, in the same order. They lie apart, so that a look-up reads nothing
    /// else.
    seeds: Vec<u64>,
    /// Whether two nodes have different weights.
    is_weighted: bool,
    /// Whether two seeds are or were equal. Then the names decide between equal scores.
    has_twins: bool,
}

#[derive(Clone, Debug)]
struct Node {
    name: String,
    weight: u32,
}

impl Rendezvous {
    /// A set without nodes.
    pub fn new() -> Self {
        Rendezvous::default()
    }

    /// Adds a node. If it is in the set already, it gets this weight.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidOption`] if the weight is not 1 to [`MAX_WEIGHT`].
    pub fn add(&mut self, name: impl Into<String>, weight: u32) -> Result<()> {
        check_weight(weight)?;
        let name = name.into();
        match self.find(&name) {
            Some(at) => self.nodes[at].weight = weight,
            None => {
                let seed = spread(name.as_bytes());
                self.has_twins |= self.seeds.contains(&seed);
                self.seeds.push(seed);
                self.nodes.push(Node { name, weight });
            }
        }
        self.note_weights();
        Ok(())
    }

    /// Removes a node, and returns whether it was in the set.
    pub fn remove(&mut self, name: &str) -> bool {
        let Some(at) = self.find(name) else {
            return false;
        };
        self.nodes.remove(at);
        self.seeds.remove(at);
        self.note_weights();
        true
    }

    /// The node that owns `key`; `None` while there are no nodes. Allocates nothing.
    pub fn get(&self, key: &str) -> Option<&str> {
        Some(self.name(self.owner(hash_of(key))?))
    }

    /// All nodes, the owner of `key` first. Each next node is the one that would own the key if those
    /// before it were removed. Allocates 40 bytes a node.
    pub fn ranked(&self, key: &str) -> impl ExactSizeIterator<Item = &str> {
        let hash = hash_of(key);
        let mut order: Vec<usize> = (0..self.len()).collect();
        order.sort_by_cached_key(|&at| Reverse(self.score(hash, at)));
        order.into_iter().map(|at| self.name(at))
    }

    /// The number of nodes.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether there are no nodes.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// The names of the nodes, in the order of their addition.
    pub fn names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.nodes.iter().map(|node| &*node.name)
    }

    /// The place in [`names`](Self::names) of the owner of the keys with this hash.
    #[inline]
    pub(crate) fn owner(&self, hash: u64) -> Option<usize> {
        if self.is_weighted || self.has_twins {
            return self.best(hash, |_| true);
        }
        // The scores of nodes of one weight are in the order of their bits.
        let (mut best, mut best_bits) = (0, bits(hash, *self.seeds.first()?));
        for (at, seed) in self.seeds.iter().enumerate().skip(1) {
            let bits = bits(hash, *seed);
            // Two selects instead of a branch, which would be mispredicted for a few nodes of each key.
            best = if bits > best_bits { at } else { best };
            best_bits = bits.max(best_bits);
        }
        Some(best)
    }

    /// The place of the node with the highest score among those that `may` accepts.
    pub(crate) fn best(&self, hash: u64, may: impl Fn(usize) -> bool) -> Option<usize> {
        let accepted = (0..self.len()).filter(|&at| may(at));
        accepted.max_by_key(|&at| self.score(hash, at))
    }

    fn score(&self, hash: u64, at: usize) -> Score<'_> {
        let Node { name, weight } = &self.nodes[at];
        Score {
            bits: bits(hash, self.seeds[at]),
            weight: *weight,
            name,
        }
    }

    fn name(&self, at: usize) -> &str {
        &self.nodes[at].name
    }

    fn find(&self, name: &str) -> Option<usize> {
        self.nodes.iter().position(|node| node.name == name)
    }

    fn note_weights(&mut self) {
        let mut pairs = self.nodes.windows(2);
        self.is_weighted = pairs.any(|pair| pair[0].weight != pair[1].weight);
    }
}

impl fmt::Debug for Rendezvous {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nodes = self.nodes.iter().map(|node| (&node.name, node.weight));
        f.debug_map().entries(nodes).finish()
    }
}

/// The score of a node for a key: `-weight / ln(u)`, where `u` are the bits as a number in 0..1.
/// It is compared in integers, so that all machines agree.
struct Score<'a> {
    bits: u64,
    weight: u32,
    /// Of two equal scores, the one whose name sorts first is higher.
    name: &'a str,
}

impl Ord for Score<'_> {
    fn cmp(&self, other: &Self) -> Ordering {
        let by_weight = || {
            // -w / ln(u) > -w' / ln(u')  is  -log2(u) w' < -log2(u') w.
            let own = u128::from(minus_log2(self.bits)) * u128::from(other.weight);
            let others = u128::from(minus_log2(other.bits)) * u128::from(self.weight);
            others.cmp(&own)
        };
        let by_bits = self.bits.cmp(&other.bits);
        let by_score = match self.weight == other.weight {
            true => by_bits,
            false => by_weight().then(by_bits),
        };
        by_score.then_with(|| other.name.cmp(self.name))
    }
}

impl PartialOrd for Score<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Score<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Score<'_> {}

/// The bits of a node's score for the keys with this hash, before its weight counts.
#[inline]
fn bits(hash: u64, seed: u64) -> u64 {
    mix(hash ^ seed)
}

/// The hash of a key, the same as in [`Preset::Larder`](crate::consistent_hash::Preset::Larder).
#[inline]
pub(crate) fn hash_of(key: &str) -> u64 {
    spread(key.as_bytes())
}

/// `-log2(bits / 2^64)`, in units of 2^-[`FRACTION`]. The logarithm is interpolated between the
/// points of a table. It falls as `bits` grows, and is at most 0.2 % off.
fn minus_log2(bits: u64) -> u64 {
    if bits == 0 {
        return u64::MAX;
    }
    let zeros = bits.leading_zeros();
    // The bits after the first one: which points, and how far between them.
    let after = bits << zeros << 1;
    let at = (after >> (64 - LOG_BITS)) as usize;
    let part = u128::from(after << LOG_BITS);
    let fall = u128::from(MINUS_LOG2[at] - MINUS_LOG2[at + 1]);
    (u64::from(zeros) << FRACTION) + MINUS_LOG2[at] - ((fall * part) >> 64) as u64
}

/// The bits of a fraction in [`minus_log2`].
const FRACTION: u32 = 57;

/// The logarithm of the number of parts of the table.
const LOG_BITS: u32 = 8;

/// `-log2` of 1/2 + n/512 for n from 0 to 256.
const MINUS_LOG2: [u64; (1 << LOG_BITS) + 1] = {
    let mut table = [0; (1 << LOG_BITS) + 1];
    let mut at = 0;
    while at < 1 << LOG_BITS {
        // From 1 to 2, with 63 bits after the point.
        let mut x = ((1 << LOG_BITS) + at as u64) << (63 - LOG_BITS);
        let (mut log, mut bit) = (0, FRACTION);
        // Each squaring doubles the logarithm, whose whole part is its next bit.
        while bit > 0 {
            bit -= 1;
            let square = (x as u128 * x as u128) >> 63;
            let is_over = square >> 64 != 0;
            if is_over {
                log |= 1 << bit;
            }
            x = (square >> is_over as u32) as u64;
        }
        table[at] = (1 << FRACTION) - log;
        at += 1;
    }
    table
};

pub(crate) fn check_weight(weight: u32) -> Result<()> {
    if (1..=MAX_WEIGHT).contains(&weight) {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::InvalidOption,
        format!("a weight is 1 to {MAX_WEIGHT}, not {weight}"),
    ))
}

/// The highest weight of a node. A higher one is taken for a mistake.
pub const MAX_WEIGHT: u32 = 65_536;

#[cfg(test)]
mod tests;
