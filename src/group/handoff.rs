//! Handoff: takes values over from other owners of their keys, before the getter runs.
//!
//! The other owner is the previous owner, if the peers changed lately. If a peer asks for a key that this
//! process does not own, the other owner is the present one. It is asked only for what it has cached.

use std::time::Duration;

use crossbeam_channel::unbounded;

use super::load::is_same;
use super::load::populate::Placement;
use super::many::bulk::Lead;
use super::many::parallel::next_by;
use super::removal_clocks::fence::Answer;
use super::{Inner, LoadBegin, LoadKey, Loaded};
use crate::context::Context;
use crate::error::ErrorKind;
use crate::peers::{ProtoGetter, Route};
use crate::stats::CacheType;
use crate::store::{EvictedEntries, Hit};
use crate::sync::Arc;

impl Inner {
    /// The value that another owner of the key has cached. It is put into the main share, and keeps the age and
    /// the expiry that it has at that owner.
    ///
    /// `None` also if this process has a value, because then the load is a refresh.
    pub(super) fn take_over(
        self: &Arc<Self>,
        placement: Placement,
        ctx: &Context,
        key: &LoadKey<'_>,
        begun: &LoadBegin,
        evicted: &mut EvictedEntries,
    ) -> Option<Loaded> {
        let owner = self.other_owner(placement, key)?;
        let ctx = ctx.with_timeout(HANDOFF_TIMEOUT);
        if !self.may_serve(&ctx) {
            return None;
        }
        let answer = self.ask_other(&owner, &ctx, &[key.key]).pop()??;
        Some(self.cache_answer(placement, key, begun, answer, None, evicted))
    }

    /// Like [`take_over`](Self::take_over), for several keys: one request to each other owner, all at the
    /// same time. The result has an item for each key.
    pub(super) fn take_over_all(
        self: &Arc<Self>,
        ctx: &Context,
        leads: &[Lead<'_, '_>],
        evicted: &mut EvictedEntries,
    ) -> Vec<Option<Loaded>> {
        let mut taken: Vec<Option<Loaded>> = leads.iter().map(|_| None).collect();
        let queries = self.by_other_owner(leads);
        if queries.is_empty() {
            return taken;
        }
        let ctx = &ctx.with_timeout(HANDOFF_TIMEOUT);
        if !self.may_serve(ctx) {
            return taken;
        }
        for (at, answer) in self.ask_all_others(ctx, queries) {
            let Lead { key, begun, .. } = &leads[at];
            let placement = key.placement();
            let loaded = self.cache_answer(placement, &key.key, begun, answer, None, evicted);
            taken[at] = Some(loaded);
        }
        taken
    }

    /// The other owner, if it should be asked for a key that is being loaded. The caller then checks that this
    /// node [may serve](Self::may_serve): if this node may have missed removals, the other owner may have
    /// missed them, too.
    fn other_owner(&self, placement: Placement, key: &LoadKey<'_>) -> Option<Arc<dyn ProtoGetter>> {
        let picker = self.peers.picker(&self.name)?;
        let owner = match placement {
            Placement::Fallback => None,
            Placement::Misdirected => match picker.route(key.key) {
                Route::Peer(owner) => Some(owner),
                _ => None,
            },
            _ => picker.previous_owner(key.key),
        }?;
        let is_missing = || self.store.peek(key.hash, key.key).is_err();
        (!self.is_dropped(key) && is_missing()).then_some(owner)
    }

    /// Whether this node dropped the key lately, at the request of a peer that has applied a removal of it.
    /// Other nodes may have missed that removal. So for some time this node asks none of them for the value, and
    /// sends no copy that it has from one of them.
    fn is_dropped(&self, key: &LoadKey<'_>) -> bool {
        self.removals
            .dropped
            .may_contain(key.hash, self.store.clock())
    }

    /// Whether a cached value is a copy that may not be sent to a peer, because its key was dropped lately.
    ///
    /// Without this, lists of peers that differ break the promise of a removal:
    ///
    /// 1. H has applied a removal. It asks P for the key, and has P drop its old value.
    /// 2. P takes O for the owner. A get at P copies the old value from O. Neither has applied the removal.
    /// 3. H asks P again, and takes the old value for a new one.
    pub(super) fn is_doubtful_copy(&self, key: &LoadKey<'_>, hit: &Hit) -> bool {
        hit.share == CacheType::Hot && self.is_dropped(key)
    }

    fn by_other_owner(&self, leads: &[Lead<'_, '_>]) -> Vec<OtherQuery> {
        let mut queries: Vec<OtherQuery> = Vec::new();
        for (at, Lead { key, .. }) in leads.iter().enumerate() {
            let Some(owner) = self.other_owner(key.placement(), &key.key) else {
                continue;
            };
            let key = (at, key.key.key.into());
            match queries
                .iter_mut()
                .find(|query| is_same(&query.owner, &owner))
            {
                Some(query) => query.keys.push(key),
                None => queries.push(OtherQuery {
                    owner,
                    keys: vec![key],
                }),
            }
        }
        queries
    }

    /// Asks the first owner on this thread, and the others on loader threads. If there is no thread for an
    /// owner, it is not asked, and the getter loads its keys.
    fn ask_all_others(
        self: &Arc<Self>,
        ctx: &Context,
        queries: Vec<OtherQuery>,
    ) -> Vec<(usize, Answer)> {
        let (sender, answers) = unbounded();
        let mut queries = queries.into_iter();
        let first = queries.next();
        for query in queries {
            let (group, ctx) = (self.clone(), ctx.clone());
            let _ = self.ask_on_pool(&sender, move || query.ask(&group, &ctx));
        }
        drop(sender);
        let mut found = first.map_or_else(Vec::new, |query| query.ask(self, ctx));
        while let Some(more) = next_by(ctx, &answers) {
            found.extend(more);
        }
        found
    }

    /// The values that another owner has cached, an item for each key.
    fn ask_other(
        self: &Arc<Self>,
        owner: &Arc<dyn ProtoGetter>,
        ctx: &Context,
        keys: &[&str],
    ) -> Vec<Option<Answer>> {
        let sent = self.store.clock().now();
        let answers = match owner.get_many(ctx, &self.name, keys) {
            Ok(answers) if answers.len() == keys.len() => answers,
            Ok(_) => return Vec::new(),
            Err(error) => {
                // A time-out is no failure of the peer, because it is much shorter than for other exchanges.
                if error.kind() == ErrorKind::Peer {
                    self.note_failure(&error);
                }
                return Vec::new();
            }
        };
        if let Some(first) = answers.iter().flatten().next() {
            self.compare(owner, ctx, sent, first.removals);
        }
        let is_current = |(response, key): (_, &&str)| {
            let response =
                Option::filter(response, |response| self.is_current(key, sent, response));
            response.map(|response| (sent, response))
        };
        answers.into_iter().zip(keys).map(is_current).collect()
    }
}

/// The keys that one owner is asked for, each with its index.
struct OtherQuery {
    owner: Arc<dyn ProtoGetter>,
    keys: Vec<(usize, Box<str>)>,
}

impl OtherQuery {
    fn ask(&self, group: &Arc<Inner>, ctx: &Context) -> Vec<(usize, Answer)> {
        let keys: Vec<&str> = self.keys.iter().map(|(_, key)| &**key).collect();
        let answers = group.ask_other(&self.owner, ctx, &keys).into_iter();
        let found = |(answer, (at, _)): (Option<Answer>, &(usize, _))| Some((*at, answer?));
        answers.zip(&self.keys).filter_map(found).collect()
    }
}

/// How long the other owners may take to answer.
const HANDOFF_TIMEOUT: Duration = Duration::from_millis(10);

#[cfg(all(test, not(larder_loom)))]
mod tests {
    use super::*;
    use crate::clock::Clock;
    use crate::error::Result;
    use crate::getter::getter_fn;
    use crate::group::Group;
    use crate::group::load::flight::LoadFrom;
    use crate::pb::{GetRequest, RemoveKeysRequest};
    use crate::peers::{PeerPicker, PeerResponse, PickerSlot, Pickers};

    /// The owner of all keys, and its picker.
    #[derive(Clone)]
    struct Owner;

    impl ProtoGetter for Owner {
        fn get(&self, _: &Context, _: &GetRequest<'_>) -> Result<PeerResponse> {
            Ok(PeerResponse::new("a copy"))
        }
    }

    impl PeerPicker for Owner {
        fn pick_peer(&self, _: &str) -> Option<Arc<dyn ProtoGetter>> {
            Some(Arc::new(Owner))
        }
    }

    /// The peer that had this node drop the key may wait for the load of a getter. It must not get the copy.
    #[test]
    fn load_by_the_getter_does_not_end_with_a_copy_of_a_dropped_key() {
        let slot = PickerSlot::default();
        slot.register(Pickers::One(Arc::new(Owner))).expect("empty");
        let getter = getter_fn(|_, key, dest| Ok(dest.set_str(key)?));
        let group = Group::builder("handoff").clock(Clock::manual());
        let group = group.make(getter, slot);
        group.serve_remove(&RemoveKeysRequest {
            group: "handoff".into(),
            keys: vec!["key".into()],
            removal_id: Some(0),
            unless_applied: None,
        });
        assert_eq!(group.get("key").expect("a value"), "a copy");
        assert!(group.contains_key("key"));
        let (inner, key) = (&group.inner, group.inner.key("key"));
        let flight = || {
            let epochs = inner.epochs(key.hash);
            (epochs.getter, inner.getter_flights.forgets(key.hash.get()))
        };
        for from in [
            LoadFrom::GetterAfterPeers,
            LoadFrom::Getter(Placement::Fallback),
        ] {
            assert!(inner.begin(&from, flight(), &key, None).is_ok());
        }
        let from = LoadFrom::Peers(Arc::new(Owner));
        assert!(inner.begin(&from, flight(), &key, None).is_err());
    }
}
