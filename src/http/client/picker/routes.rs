//! Which peer is asked for a key in place of its owner.

use super::{Member, PeerList};
use crate::http::client::health::Standing;
use crate::http::client::health::status::PeerState;
use crate::http::client::health::watch::Watch;
use crate::http::client::peer::HttpPeer;
use crate::peers::{KeyRoute, ProtoGetter, Route};
use crate::sync::Arc;

impl PeerList {
    /// The route of a key while a peer is away.
    ///
    /// The keys of a peer that is down or slow are loaded by the next peer that is neither. It keeps them for a
    /// short time, because by its list it does not own them. The keys of an absent peer belong to the next
    /// one. If this process is cut off, it loads the keys of all others itself.
    ///
    /// If this process leaves, its keys belong to the next one, too.
    pub(super) fn route_around(&self, key: &str, failover: bool, watch: &Watch) -> Route {
        let (cut_off, leaving) = (watch.is_cut_off(), watch.is_leaving());
        let is_here = |place: usize| !(leaving && self.members[place].client.is_none());
        let is_present =
            |place| !failover || is_here(place) && self.standing(place) != Standing::Absent;
        let Some(owner) = self.placement.owner_among(key, is_present) else {
            return Route::Fallback;
        };
        let Some(client) = self.client(owner) else {
            return Route::Own;
        };
        if cut_off {
            return Route::Fallback;
        }
        if !self.is_away(owner) {
            return Route::Peer(client);
        }
        let may = |place| place != owner && is_here(place) && !self.is_away(place);
        match failover.then(|| self.next_of(key, may)).flatten() {
            Some(next) => self.client(next).map_or(Route::Fallback, Route::Peer),
            // A slow answer is better than a load here of each key.
            None if self.standing(owner) == Standing::Slow => Route::Peer(client),
            None => Route::Fallback,
        }
    }

    /// The peer to ask for `key` after `asked` failed; `None` if that is this process.
    pub(super) fn next_after(
        &self,
        key: &str,
        asked: &Arc<dyn ProtoGetter>,
    ) -> Option<Arc<dyn ProtoGetter>> {
        let asked = Arc::as_ptr(asked).cast::<HttpPeer>();
        let was_asked = |place: usize| {
            let client = self.members[place].client.as_ref();
            client.is_some_and(|client| Arc::as_ptr(client) == asked)
        };
        let owner = self.placement.owner(key)?;
        let may = |place| place != owner && !was_asked(place) && !self.is_away(place);
        self.client(self.next_of(key, may)?)
    }

    /// The place of the node to ask for `key` in place of its owner: the next one that `may` accepts, in
    /// this process's zone if there is one there.
    pub(super) fn next_of(&self, key: &str, may: impl Fn(usize) -> bool) -> Option<usize> {
        let is_near = |place: usize| self.members[place].peer.zone == self.own_zone;
        let near = self.own_zone.as_ref().and_then(|_| {
            self.placement
                .owner_among(key, |place| may(place) && is_near(place))
        });
        near.or_else(|| self.placement.owner_among(key, may))
    }

    /// Where a key belongs, and why it is loaded elsewhere.
    pub(super) fn explain(&self, key: &str, failover: bool, watch: &Watch) -> KeyRoute {
        let Some(owner) = self.placement.owner(key) else {
            return KeyRoute::default();
        };
        let next =
            failover.then(|| self.next_of(key, |place| place != owner && !self.is_away(place)));
        let mut reasons = Vec::new();
        for Member { peer, client } in &self.members {
            let Some(client) = client else { continue };
            let name = match state_name(client.health().state()) {
                Some(state) => format!("{} {state}", peer.url),
                None if client.is_this_process() => format!("{} is this process", peer.url),
                None => continue,
            };
            reasons.push(name);
        }
        let weights = || self.members.iter().map(|member| member.peer.weight);
        let weight = self.members[owner].peer.weight;
        if weights().any(|other| other != weight) {
            let sum: u64 = weights().map(u64::from).sum();
            reasons.push(format!("the owner has weight {weight} of {sum}"));
        }
        if watch.is_cut_off() {
            reasons.push("more than half of the peers are down: this process is cut off".into());
        }
        if watch.is_leaving() {
            reasons.push("this process leaves".into());
        }
        KeyRoute {
            owner: Some(self.members[owner].peer.url.clone()),
            next: next
                .flatten()
                .map(|next| self.members[next].peer.url.clone()),
            reasons,
        }
    }

    /// The standing of the node at a place. This process is never away.
    fn standing(&self, place: usize) -> Standing {
        let client = self.members[place].client.as_ref();
        client.map_or(Standing::Closed, |peer| peer.health().standing())
    }

    fn is_away(&self, place: usize) -> bool {
        self.standing(place) != Standing::Closed
    }
}

/// The state of a peer in words, with its cause; `None` if all is well.
fn state_name((state, cause): (PeerState, Option<String>)) -> Option<String> {
    let state = match state {
        PeerState::Healthy => return cause,
        PeerState::Slow => "is slow",
        PeerState::Down => "is down",
        PeerState::Absent => "is absent",
    };
    Some(match cause {
        Some(cause) => format!("{state}: {cause}"),
        None => state.into(),
    })
}
