//! Detects that processes have different lists of peers, and that a listed peer is this process under
//! another name.
//!
//! Each request carries the [mark](PeersMark) of the sender's list. The server compares it with its own.
//! If they differ, its response carries its own mark, and the client logs both lists once.

use crate::sync::plain_atomic::{AtomicU64, Ordering};
use std::collections::HashSet;

use crate::peer::Peer;
use crate::random::{mix, spread};
use crate::sync::{Arc, Mutex, RwLock};
use crate::wire::PeersMark;

/// The list of a pool as others see it, and what was found out about others' lists.
pub(crate) struct Membership {
    instance: u64,
    own: RwLock<Arc<OwnList>>,
    differences: AtomicU64,
    /// The pairs of own and others' fingerprints that were logged.
    logged: Mutex<HashSet<(u64, u64)>>,
}

/// The list of this process.
pub(crate) struct OwnList {
    mark: PeersMark,
    /// The mark as the value of a header.
    pub(crate) header: String,
    /// A line for each peer.
    pub(crate) text: String,
}

/// What the mark of another process says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MarkOf {
    /// A process with the same list.
    Same,
    /// A process with another list.
    Other,
    /// This process: it was asked under a name by which it does not know itself.
    ThisProcess,
}

impl Membership {
    pub(crate) fn new() -> Self {
        let instance = crate::random::bits();
        Membership {
            instance,
            own: RwLock::new(Arc::new(OwnList::new(instance, "", &[]))),
            differences: AtomicU64::new(0),
            logged: Mutex::default(),
        }
    }

    /// Notes a new list. `placement` names the way in which keys are assigned.
    pub(crate) fn set(&self, placement: &str, peers: &[Peer]) {
        let list = OwnList::new(self.instance, placement, peers);
        let before = std::mem::replace(&mut *self.own.write(), Arc::new(list));
        drop(before);
    }

    /// The list that was set last.
    pub(crate) fn own(&self) -> Arc<OwnList> {
        self.own.read().clone()
    }

    /// Compares the mark of another process, in a request or in a response, and counts a difference. A
    /// process without peers has no list that could differ.
    pub(crate) fn compare(&self, mark: PeersMark) -> MarkOf {
        if mark.instance == self.instance {
            return MarkOf::ThisProcess;
        }
        let own = self.own();
        if mark.fingerprint == own.mark.fingerprint || own.text.is_empty() {
            return MarkOf::Same;
        }
        self.differences.fetch_add(1, Ordering::Relaxed);
        MarkOf::Other
    }

    /// How many exchanges were with a process that has another list.
    pub(crate) fn differences(&self) -> u64 {
        self.differences.load(Ordering::Relaxed)
    }

    /// Whether the difference from this list is to be logged: once for each pair of lists, and for
    /// [`MAX_LOGGED`] pairs at most.
    pub(crate) fn is_news(&self, mark: PeersMark) -> bool {
        let own = self.own().mark.fingerprint;
        let mut logged = self.logged.lock();
        logged.len() < MAX_LOGGED && logged.insert((own, mark.fingerprint))
    }
}

impl OwnList {
    fn new(instance: u64, placement: &str, peers: &[Peer]) -> Self {
        // A sum does not depend on the order.
        let hashes = peers.iter().map(|peer| {
            let id = spread(peer.id.as_bytes());
            mix(id ^ u64::from(peer.weight))
        });
        let fingerprint = hashes.fold(spread(placement.as_bytes()), u64::wrapping_add);
        let mark = PeersMark {
            fingerprint,
            instance,
        };
        let mut lines: Vec<String> = peers.iter().map(line_of).collect();
        lines.sort();
        OwnList {
            mark,
            header: mark.to_string(),
            text: lines.concat(),
        }
    }
}

/// A line of the list, with the parts that are not the default.
fn line_of(peer: &Peer) -> String {
    let mut line = peer.url.clone();
    if peer.id != peer.url {
        line += &format!(" id={}", peer.id);
    }
    if peer.weight != 1 {
        line += &format!(" weight={}", peer.weight);
    }
    if let Some(zone) = &peer.zone {
        line += &format!(" zone={zone}");
    }
    line.push('\n');
    line
}

/// The most differences that are logged.
const MAX_LOGGED: usize = 64;

#[cfg(all(test, not(larder_loom)))]
mod tests {
    use super::*;

    fn membership(peers: &[Peer]) -> Membership {
        let membership = Membership::new();
        membership.set("rendezvous", peers);
        membership
    }

    fn mark_of(membership: &Membership) -> PeersMark {
        PeersMark::parse(&membership.own().header).expect("a mark")
    }

    #[test]
    fn lists_are_equal_in_any_order_and_differ_by_id_weight_and_placement() {
        let [a, b] = ["http://a", "http://b"].map(Peer::new);
        let one = membership(&[a.clone(), b.clone()]);
        let same = membership(&[b.clone(), a.clone()]);
        assert_eq!(one.compare(mark_of(&same)), MarkOf::Same);
        let moved = Peer::new("http://c").with_id("http://b");
        assert_eq!(
            one.compare(mark_of(&membership(&[a.clone(), moved]))),
            MarkOf::Same
        );
        let lists = [
            vec![a.clone()],
            vec![a.clone(), b.clone().with_id("b")],
            vec![a.clone(), b.clone().with_weight(2)],
        ];
        for (n, list) in (1..).zip(lists) {
            assert_eq!(
                one.compare(mark_of(&membership(&list))),
                MarkOf::Other,
                "{list:?}"
            );
            assert_eq!(one.differences(), n);
        }
        let ring = Membership::new();
        ring.set("ring", &[a, b]);
        assert_eq!(one.compare(mark_of(&ring)), MarkOf::Other);
    }

    #[test]
    fn process_recognises_its_own_mark_whatever_its_list() {
        let own = membership(&[Peer::new("http://a")]);
        let before = mark_of(&own);
        own.set("rendezvous", &[Peer::new("http://b")]);
        assert_eq!(own.compare(before), MarkOf::ThisProcess);
    }

    #[test]
    fn difference_is_news_once_for_each_pair_of_lists() {
        let own = membership(&[Peer::new("http://a")]);
        let other = mark_of(&membership(&[Peer::new("http://b")]));
        assert!(own.is_news(other));
        assert!(!own.is_news(other));
        own.set("rendezvous", &[Peer::new("http://c")]);
        assert!(own.is_news(other));
        let many = (0..1000).filter(|&fingerprint| {
            own.is_news(PeersMark {
                fingerprint,
                ..other
            })
        });
        assert_eq!(many.count(), MAX_LOGGED - 2);
    }
}
