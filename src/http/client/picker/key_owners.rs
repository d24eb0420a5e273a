//! Assigns keys to the nodes of the cluster: by rendezvous hashing, or on the ring of a preset.

use crate::consistent_hash::Map;
use crate::error::{Error, ErrorKind, Result};
use crate::peer::Peer;
use crate::rendezvous::{self, Rendezvous};

/// The nodes of a list of peers, by their ids. A place is an index in that list.
#[derive(Clone)]
pub(crate) enum KeyOwners {
    Rendezvous(Rendezvous),
    Ring(Map),
}

impl KeyOwners {
    /// A placement of the same kind, with the nodes of a list. Each id stands once in that list.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidPeer`] for a weight on a ring, whose nodes all have the same number of
    /// points.
    pub(crate) fn with(&self, peers: &[Peer]) -> Result<KeyOwners> {
        let mut placement = self.clone();
        match &mut placement {
            KeyOwners::Rendezvous(nodes) => {
                for peer in peers {
                    nodes.add(&*peer.id, peer.weight)?;
                }
            }
            KeyOwners::Ring(ring) => {
                if let Some(peer) = peers.iter().find(|peer| peer.weight != 1) {
                    let message = format!(
                        "the peer {:?} has weight {}; all nodes of a ring have weight 1",
                        peer.id, peer.weight
                    );
                    return Err(Error::new(ErrorKind::InvalidPeer, message));
                }
                ring.add(peers.iter().map(|peer| &*peer.id));
            }
        }
        Ok(placement)
    }

    /// The way in which keys are assigned, for people and for comparison.
    pub(crate) fn name(&self) -> String {
        match self {
            KeyOwners::Rendezvous(_) => "rendezvous".into(),
            KeyOwners::Ring(ring) => ring.kind(),
        }
    }

    /// The place of the owner of `key`; `None` while there are no nodes.
    #[inline]
    pub(crate) fn owner(&self, key: &str) -> Option<usize> {
        match self {
            KeyOwners::Rendezvous(nodes) => nodes.owner(rendezvous::hash_of(key)),
            KeyOwners::Ring(ring) => ring.owner(ring.hash(key)),
        }
    }

    /// The place of the node that would own `key` if there were only the nodes that `may` accepts.
    pub(crate) fn owner_among(&self, key: &str, may: impl Fn(usize) -> bool) -> Option<usize> {
        match self {
            KeyOwners::Rendezvous(nodes) => nodes.best(rendezvous::hash_of(key), may),
            KeyOwners::Ring(ring) => {
                let mut successors = ring.successors(key);
                std::iter::from_fn(|| successors.next_index()).find(|&place| may(place))
            }
        }
    }
}
