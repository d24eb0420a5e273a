//! The ring that maps keys to the nodes that own them.
//!
//! Every node has a number of points on a ring of 2^64 hashes. It owns the keys whose hash is
//! between the previous point and one of its own (Karger and others, "Consistent hashing and random
//! trees", 1997). A node that joins takes keys from all others, and no key moves between those. A
//! node that leaves gives its keys to all others.
//!
//! ```
//! use larder::consistent_hash::{Map, Preset};
//!
//! let mut ring = Map::preset(Preset::Golang);
//! ring.add(["http://10.0.0.1:8080", "http://10.0.0.2:8080", "http://10.0.0.3:8080"]);
//! assert_eq!(ring.get("foo"), Some("http://10.0.0.1:8080"));
//!
//! // If the owner is down, ask the node that would own the key without it.
//! let next = ring.successors("foo").nth(1).map(str::to_owned);
//! ring.remove("http://10.0.0.1:8080");
//! assert_eq!(ring.get("foo"), next.as_deref());
//! ```

//   mod.rs     the ring            scheme.rs  the presets: how nodes and keys are hashed
//   hashes.rs  hash functions      md5.rs     MD5, for two of the presets
//
// Tests: `tests.rs` (every ring), `balance.rs` (shares of the nodes), `golden.rs` (owners that must not change).

mod hashes;
mod md5;
mod scheme;

#[cfg(test)]
mod balance;
#[cfg(test)]
mod golden;
#[cfg(test)]
mod tests;

use std::fmt;
use std::iter::FusedIterator;

use crate::error::{Error, ErrorKind, Result};
use crate::sync::Arc;
pub use scheme::Preset;
use scheme::Scheme;

/// A ring of nodes.
///
/// Look-ups take `&self`, so any number of threads can share a finished ring. A look-up is one hash
/// and one binary search, and allocates nothing.
#[derive(Clone)]
pub struct Map {
    scheme: Scheme,
    /// The points of one node.
    replicas: usize,
    /// In order of addition, each once.
    nodes: Vec<String>,
    /// All points, ascending. A point that nodes share is listed once for each of them, the owner
    /// first. So a look-up finds the owner, and after the owner's removal the next node.
    hashes: Vec<u64>,
    /// The index in `nodes` of each point's node. Kept apart from the hashes, so that a search reads
    /// hashes only.
    owners: Vec<u32>,
}

impl Map {
    /// A ring with a hash function of your own, for points and keys, and `replicas` points a node.
    ///
    /// The points are those of Go: the hashes of the replica's decimal number followed by the node,
    /// `0node`, `1node` and so on. A point that nodes share belongs to the one that was added last.
    /// To use a 32-bit hash of a Go program, widen its result: only the order of the hashes counts.
    ///
    /// ```
    /// use larder::consistent_hash::Map;
    ///
    /// // The points of the node "4" are 04, 14 and 24.
    /// let number = |bytes: &[u8]| std::str::from_utf8(bytes).map_or(0, |s| s.parse().unwrap_or(0));
    /// let mut ring = Map::new(3, number)?;
    /// ring.add(["6", "4", "2"]);
    /// assert_eq!(ring.get("11"), Some("2")); // 12 is the first point from 11 on
    /// assert_eq!(ring.get("27"), Some("2")); // past 26 the ring begins again at 02
    /// # Ok::<(), larder::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidOption`] if `replicas` is not 1 to 65,536.
    pub fn new(
        replicas: usize,
        hash: impl Fn(&[u8]) -> u64 + Send + Sync + 'static,
    ) -> Result<Self> {
        check_replicas(replicas)?;
        Ok(Map::empty(Scheme::Custom(Arc::new(hash)), replicas))
    }

    /// A ring of a preset, with the preset's own number of replicas.
    pub fn preset(preset: Preset) -> Self {
        Map::empty(Scheme::Preset(preset), preset.replicas())
    }

    /// A ring of a preset with another number of replicas. All processes must use the same number.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidOption`] if `replicas` is not 1 to 65,536.
    pub fn with_replicas(preset: Preset, replicas: usize) -> Result<Self> {
        check_replicas(replicas)?;
        Ok(Map::empty(Scheme::Preset(preset), replicas))
    }

    /// Adds nodes. Adding many in one call is faster than one by one.
    ///
    /// A node that is already in the ring counts as added last. The order of addition decides which
    /// node owns a shared point. Under [`Preset::Larder`] it never matters.
    pub fn add<I>(&mut self, nodes: I)
    where
        I: IntoIterator,
        I::Item: AsRef<str>,
    {
        let mut fresh = Vec::<String>::new();
        for node in nodes {
            let node = node.as_ref();
            fresh.retain(|other| other != node);
            fresh.push(node.to_owned());
        }
        // The user's iterator and hash may panic, so they run before anything changes.
        let mut points = Vec::with_capacity(self.hashes.len() + fresh.len() * self.replicas);
        for (place, node) in (0_u32..).zip(&fresh) {
            self.scheme
                .points(node, self.replicas, |hash| points.push((hash, place)));
        }
        for node in &fresh {
            self.remove(node);
        }
        let first = self.nodes.len() as u32;
        for (_, owner) in &mut points {
            *owner += first;
        }
        self.nodes.append(&mut fresh);

        points.extend(self.hashes.iter().copied().zip(self.owners.iter().copied()));
        points.sort_unstable_by(|a, b| {
            let by_hash = a.0.cmp(&b.0);
            by_hash.then_with(|| self.scheme.precedence(&self.nodes, a.1, b.1))
        });
        (self.hashes, self.owners) = points.into_iter().unzip();
    }

    /// Removes a node, and returns whether it was in the ring.
    ///
    /// The ring is then the one that would have been built without the node. Other nodes get back
    /// the points that they shared with it.
    pub fn remove(&mut self, node: &str) -> bool {
        let Some(gone) = self.nodes.iter().position(|other| other == node) else {
            return false;
        };
        self.nodes.remove(gone);
        let gone = gone as u32;
        let mut kept = 0;
        for at in 0..self.owners.len() {
            let owner = self.owners[at];
            if owner != gone {
                self.hashes[kept] = self.hashes[at];
                self.owners[kept] = owner - u32::from(owner > gone);
                kept += 1;
            }
        }
        self.hashes.truncate(kept);
        self.owners.truncate(kept);
        true
    }

    /// The node that owns `key`; `None` while there are no nodes.
    pub fn get(&self, key: &str) -> Option<&str> {
        Some(&self.nodes[self.owner(self.hash(key))?])
    }

    /// The kind of ring, without its nodes. A custom hash function has no name.
    #[cfg(feature = "http")]
    pub(crate) fn kind(&self) -> String {
        format!("{:?}, {} points a node", self.scheme, self.replicas)
    }

    /// The hash of `key`. It is the only part of a look-up that can run user code, and the same for
    /// all clones of a ring.
    #[inline]
    pub(crate) fn hash(&self, key: &str) -> u64 {
        self.scheme.key(key)
    }

    /// The index in [`nodes`](Self::nodes) of the node that owns the keys of this hash.
    #[inline]
    pub(crate) fn owner(&self, hash: u64) -> Option<usize> {
        let owner = *self.owners.get(self.first_point(hash))?;
        Some(owner as usize)
    }

    /// All nodes, each once, the owner of `key` first. Each next node is the one that would own the
    /// key if those before it were removed.
    ///
    /// Allocates one byte a node.
    pub fn successors(&self, key: &str) -> Successors<'_> {
        Successors {
            ring: self,
            at: self.first_point(self.hash(key)),
            seen: vec![false; self.nodes.len()],
            left: self.nodes.len(),
        }
    }

    /// Whether there are no nodes.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// The number of nodes.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// The nodes, in order of addition.
    pub fn nodes(&self) -> &[String] {
        &self.nodes
    }

    fn empty(scheme: Scheme, replicas: usize) -> Self {
        Map {
            scheme,
            replicas,
            nodes: Vec::new(),
            hashes: Vec::new(),
            owners: Vec::new(),
        }
    }

    /// The index of the first point at or after the hash, or of the first of all if there is none.
    fn first_point(&self, hash: u64) -> usize {
        let at = self.hashes.partition_point(|&point| point < hash);
        if at == self.hashes.len() { 0 } else { at }
    }
}

impl fmt::Debug for Map {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Map")
            .field("hash", &self.scheme)
            .field("replicas", &self.replicas)
            .field("nodes", &self.nodes)
            .finish_non_exhaustive()
    }
}

/// The iterator of [`Map::successors`].
#[derive(Clone, Debug)]
pub struct Successors<'a> {
    ring: &'a Map,
    at: usize,
    seen: Vec<bool>,
    /// The number of nodes not returned yet. Each has a point, so the iteration finds it.
    left: usize,
}

impl Successors<'_> {
    /// The index in [`Map::nodes`] of the next node.
    pub(crate) fn next_index(&mut self) -> Option<usize> {
        while self.left > 0 {
            let owner = self.ring.owners[self.at] as usize;
            self.at += 1;
            if self.at == self.ring.owners.len() {
                self.at = 0;
            }
            if !self.seen[owner] {
                self.seen[owner] = true;
                self.left -= 1;
                return Some(owner);
            }
        }
        None
    }
}

impl<'a> Iterator for Successors<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        let index = self.next_index()?;
        Some(&self.ring.nodes[index])
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl ExactSizeIterator for Successors<'_> {}
impl FusedIterator for Successors<'_> {}

fn check_replicas(replicas: usize) -> Result<()> {
    if (1..=MAX_REPLICAS).contains(&replicas) {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::InvalidOption,
        format!("a ring has 1 to {MAX_REPLICAS} replicas a node, not {replicas}"),
    ))
}

/// The most replicas of a node, which take 768 KiB. A larger number is taken for a mistake.
const MAX_REPLICAS: usize = 65_536;
