//! Detects that processes have different lists of peers, and that a listed peer is this process under
//! another name.
//!
//! Each request carries the [mark](PeersMark) of the sender's list. The server compares it with its own.
//! If they differ, its response carries its own mark, and the client logs both lists once.

use crate::sync::plain_atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::error::Result;
use crate::peer::Peer;
use crate::random::{mix, spread};
use crate::sync::{Arc, Mutex, RwLock};
use crate::wire::{PeersMark, recipient};

/// The list of a pool, and how the lists of other processes differ from it.
pub(crate) struct Membership {
    instance: u64,
    /// The id of the process that made this. A forked process has the same instance, but is another one.
    made_in: u32,
    own: RwLock<Arc<OwnList>>,
    /// The text of the list before, and when it was replaced.
    previous: Mutex<Option<(String, Instant)>>,
    differences: AtomicU64,
    /// The reasons why peers are not to ask this process for its keys: it leaves the cluster, or it has just
    /// started and fetches the list of the peers that had its keys before.
    holds: AtomicU32,
    /// The pairs of own and others' fingerprints that were logged.
    logged: Mutex<Vec<(u64, u64)>>,
}

/// The list of this process.
pub(crate) struct OwnList {
    mark: PeersMark,
    /// The mark as the value of a header.
    pub(crate) header: String,
    /// A line for each peer.
    pub(crate) text: String,
    /// The name of this process in changes of peers; `None` if its id is not known.
    pub(crate) recipient: Option<String>,
}

/// The sender of a mark, as far as the mark shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MarkOf {
    /// A process with the same list.
    Same,
    /// A process with another list.
    Other,
    /// This process: a name in the list leads to it, and is not its own.
    ThisProcess,
}

impl Membership {
    pub(crate) fn new() -> Self {
        let instance = crate::random::bits();
        Membership {
            instance,
            made_in: std::process::id(),
            own: RwLock::new(Arc::new(OwnList::new(instance, "", &[]))),
            previous: Mutex::default(),
            differences: AtomicU64::new(0),
            holds: AtomicU32::new(0),
            logged: Mutex::default(),
        }
    }

    /// Sets a new list. `placement` names the way in which keys are assigned, and `own_id` is that of this
    /// process, if it is known.
    pub(crate) fn set(&self, placement: &str, peers: &[Peer], own_id: Option<&str>) {
        let list = OwnList {
            recipient: own_id.map(recipient),
            ..OwnList::new(self.instance, placement, peers)
        };
        let before = std::mem::replace(&mut *self.own.write(), Arc::new(list));
        if !before.text.is_empty() && before.text != self.own().text {
            *self.previous.lock() = Some((before.text.clone(), Instant::now()));
        }
    }

    /// The page that peers read: this list, and the one that it replaced less than `window` ago.
    pub(crate) fn page(&self, window: Duration) -> String {
        let mut page = self.own().text.clone();
        let previous = self.previous.lock();
        if let Some((text, _)) = previous.as_ref().filter(|(_, at)| at.elapsed() < window) {
            page += PREVIOUS;
            page += text;
        }
        page
    }

    /// The list that was set last.
    pub(crate) fn own(&self) -> Arc<OwnList> {
        self.own.read().clone()
    }

    /// Like [`compare`](Self::compare), for the header of a request; `None` if it is not a mark. Most marks
    /// have the same fingerprint as this process's, and are not parsed.
    pub(crate) fn compare_header(&self, header: &str) -> Option<MarkOf> {
        let is_same = {
            let own = self.own.read();
            let parts = header.split_at_checked(SPLIT);
            parts.is_some_and(|(list, instance)| {
                let (own_list, own_instance) = own.header.split_at(SPLIT);
                list == own_list && instance != own_instance && header.len() == own.header.len()
            })
        };
        if is_same {
            return Some(MarkOf::Same);
        }
        PeersMark::parse(header).map(|mark| self.compare(mark))
    }

    /// Compares the mark of another process, in a request or in a response, and counts a difference. A
    /// process without peers has no list that could differ.
    pub(crate) fn compare(&self, mark: PeersMark) -> MarkOf {
        if mark.instance == self.instance && std::process::id() == self.made_in {
            return MarkOf::ThisProcess;
        }
        let own = self.own();
        if mark.fingerprint == own.mark.fingerprint || own.text.is_empty() {
            return MarkOf::Same;
        }
        self.differences.fetch_add(1, Ordering::Relaxed);
        MarkOf::Other
    }

    /// Adds a reason why peers are not to ask this process. Peers that ask it already go on; those that
    /// probe it wait.
    pub(crate) fn hold(&self) {
        self.holds.fetch_add(1, Ordering::Relaxed);
    }

    /// Takes a reason away.
    pub(crate) fn release(&self) {
        self.holds.fetch_sub(1, Ordering::Relaxed);
    }

    #[inline]
    pub(crate) fn is_held(&self) -> bool {
        self.holds.load(Ordering::Relaxed) != 0
    }

    /// How many exchanges were with a process that has another list.
    pub(crate) fn differences(&self) -> u64 {
        self.differences.load(Ordering::Relaxed)
    }

    /// Whether the difference from this list is to be logged: once for each pair of lists, and for
    /// [`MAX_LOGGED`] pairs at most.
    pub(crate) fn should_log(&self, mark: PeersMark) -> bool {
        let pair = (self.own().mark.fingerprint, mark.fingerprint);
        let mut logged = self.logged.lock();
        let is_new = logged.len() < MAX_LOGGED && !logged.contains(&pair);
        if is_new {
            logged.push(pair);
        }
        is_new
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
        lines.sort_unstable();
        OwnList {
            mark,
            header: mark.to_string(),
            text: lines.concat(),
            recipient: None,
        }
    }
}

/// The lists on the page of another process.
#[derive(Debug, PartialEq)]
pub(crate) struct PeersPage {
    pub(crate) current: Vec<Peer>,
    /// The list before, if it was replaced lately.
    pub(crate) previous: Option<Vec<Peer>>,
}

impl PeersPage {
    /// Reads a [page](Membership::page); `None` if it is not one.
    pub(crate) fn parse(page: &str) -> Option<PeersPage> {
        let (current, previous) = match page.split_once(PREVIOUS) {
            Some((current, previous)) => (current, Some(previous)),
            None => (page, None),
        };
        let list = |text: &str| text.lines().map(peer_of).collect::<Option<Vec<_>>>();
        Some(PeersPage {
            current: list(current)?,
            previous: match previous {
                Some(previous) => Some(list(previous)?),
                None => None,
            },
        })
    }
}

/// The peer of a line that [`line_of`] wrote.
fn peer_of(line: &str) -> Option<Peer> {
    let mut words = line.split(' ');
    let mut peer = Peer::new(words.next()?);
    for word in words {
        peer = match word.split_once('=')? {
            ("id", id) => peer.with_id(id),
            ("weight", weight) => peer.with_weight(weight.parse().ok()?),
            ("zone", zone) => peer.with_zone(zone),
            _ => return None,
        };
    }
    let checked: Result<()> = peer.check();
    checked.is_ok().then_some(peer)
}

/// The line between the two lists of a page.
const PREVIOUS: &str = "previous:\n";

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

/// How long after a change of the list the previous owners of keys are asked for their values.
pub(crate) const HANDOFF_WINDOW: Duration = Duration::from_secs(60);

/// The length of a fingerprint in a header, with the hyphen after it.
const SPLIT: usize = 17;

/// The most differences that are logged.
const MAX_LOGGED: usize = 64;

#[cfg(all(test, not(larder_loom)))]
mod tests {
    use super::*;

    fn membership(peers: &[Peer]) -> Membership {
        let membership = Membership::new();
        membership.set("rendezvous", peers, None);
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
        ring.set("ring", &[a, b], None);
        assert_eq!(one.compare(mark_of(&ring)), MarkOf::Other);
    }

    #[test]
    fn process_recognises_its_own_mark_whatever_its_list() {
        let own = membership(&[Peer::new("http://a")]);
        let before = mark_of(&own);
        own.set("rendezvous", &[Peer::new("http://b")], None);
        assert_eq!(own.compare(before), MarkOf::ThisProcess);
    }

    #[test]
    fn mark_of_a_parent_is_that_of_another_process() {
        let parent = membership(&[Peer::new("http://a")]);
        let forked = Membership {
            instance: parent.instance,
            made_in: parent.made_in.wrapping_sub(1),
            ..membership(&[Peer::new("http://a")])
        };
        assert_eq!(parent.compare(mark_of(&parent)), MarkOf::ThisProcess);
        assert_eq!(forked.compare(mark_of(&parent)), MarkOf::Same);
    }

    #[test]
    fn page_is_read_as_it_was_written() {
        let old = [Peer::new("http://a").with_id("x=y").with_zone("east")];
        let new = [old[0].clone(), Peer::new("http://b").with_weight(7)];
        let own = membership(&old);
        let window = Duration::from_secs(60);
        let read = |own: &Membership| PeersPage::parse(&own.page(window)).expect("a page");
        assert_eq!(
            (read(&own).current, read(&own).previous),
            (old.to_vec(), None)
        );
        own.set("rendezvous", &new, None);
        own.set("rendezvous", &new, None);
        let page = read(&own);
        assert_eq!(
            (page.current, page.previous),
            (new.to_vec(), Some(old.to_vec()))
        );
        let later = PeersPage::parse(&own.page(Duration::ZERO)).expect("a page");
        assert_eq!(later.previous, None);
        for text in [
            "http://a weight=0\n",
            "http://a colour=red\n",
            "\n",
            "http://a id\n",
        ] {
            assert_eq!(PeersPage::parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn difference_is_logged_once_for_each_pair_of_lists() {
        let own = membership(&[Peer::new("http://a")]);
        let other = mark_of(&membership(&[Peer::new("http://b")]));
        assert!(own.should_log(other));
        assert!(!own.should_log(other));
        own.set("rendezvous", &[Peer::new("http://c")], None);
        assert!(own.should_log(other));
        let many = (0..1000).filter(|&fingerprint| {
            own.should_log(PeersMark {
                fingerprint,
                ..other
            })
        });
        assert_eq!(many.count(), MAX_LOGGED - 2);
    }
}
