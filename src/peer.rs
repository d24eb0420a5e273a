//! One node of a cluster, as it stands in the list of peers.

#[cfg(feature = "http")]
use crate::error::{Error, ErrorKind, Result};
#[cfg(feature = "http")]
use crate::rendezvous::check_weight;

/// A node of the cluster: its identity, its address, and its part of the keys.
///
/// Keys belong to the `id`, not to the address. A node that comes back with another URL and the same
/// id keeps its keys. All processes must list a node with the same id and the same weight, or they
/// disagree about owners.
///
/// ```
/// use larder::Peer;
///
/// let peer = Peer::new("http://10.0.0.7:8080").with_id("node-7").with_weight(2).with_zone("east");
/// assert_eq!(Peer::from("http://10.0.0.7:8080").id, "http://10.0.0.7:8080");
/// # let _ = peer;
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Peer {
    /// The name that keys are assigned to, 1 to 1,024 bytes without white space; the text of the URL by
    /// default.
    pub id: String,
    /// The address: `http://host:port`, with a path if the peer is mounted below one.
    pub url: String,
    /// The node's part of the keys, compared with the others; 1 by default, 1 to 65,536.
    pub weight: u32,
    /// The rack, room or data centre. If a key's owner does not answer, the next node of the asking
    /// process's own zone is asked first. Without white space. `None` by default: no zone.
    pub zone: Option<String>,
}

impl Peer {
    /// A node of weight 1, without a zone, whose id is the URL's text.
    pub fn new(url: impl Into<String>) -> Self {
        let url = url.into();
        Peer {
            id: url.clone(),
            url,
            weight: 1,
            zone: None,
        }
    }

    /// The same node with an id that does not depend on its address.
    #[must_use]
    pub fn with_id(mut self, id: impl Into<String>) -> Self {
        self.id = id.into();
        self
    }

    /// The same node with a weight. A node of weight 2 owns twice as many keys as one of weight 1.
    #[must_use]
    pub fn with_weight(mut self, weight: u32) -> Self {
        self.weight = weight;
        self
    }

    /// The same node with a zone.
    #[must_use]
    pub fn with_zone(mut self, zone: impl Into<String>) -> Self {
        self.zone = Some(zone.into());
        self
    }

    /// # Errors
    ///
    /// [`ErrorKind::InvalidPeer`] for an id that is empty or over 1,024 bytes, white space in an id or a
    /// zone, or a weight out of range.
    #[cfg(feature = "http")]
    pub(crate) fn check(&self) -> Result<()> {
        let refuse = |why: String| {
            let message = format!("the peer {:?} is not valid: {why}", self.url);
            Error::new(ErrorKind::InvalidPeer, message)
        };
        if self.id.is_empty() || self.id.len() > MAX_ID {
            return Err(refuse(format!("its id is not 1 to {MAX_ID} bytes long")));
        }
        let is_blank = |c: char| c.is_whitespace() || c.is_control();
        let zone = self.zone.as_deref().unwrap_or_default();
        if self.id.contains(is_blank) || zone.contains(is_blank) {
            return Err(refuse("its id or zone contains white space".into()));
        }
        check_weight(self.weight).map_err(|error| refuse(error.to_string()))
    }
}

impl From<String> for Peer {
    fn from(url: String) -> Self {
        Peer::new(url)
    }
}

impl From<&String> for Peer {
    fn from(url: &String) -> Self {
        Peer::new(url.as_str())
    }
}

impl From<&str> for Peer {
    fn from(url: &str) -> Self {
        Peer::new(url)
    }
}

impl From<&&str> for Peer {
    fn from(url: &&str) -> Self {
        Peer::new(*url)
    }
}

impl From<&Peer> for Peer {
    fn from(peer: &Peer) -> Self {
        peer.clone()
    }
}

#[cfg(feature = "http")]
/// The longest id, in bytes. A URL can be longer only by its path.
const MAX_ID: usize = 1024;
