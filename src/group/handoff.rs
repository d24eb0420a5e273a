//! Handoff: takes values over from the previous owners of their keys, before the getter runs.

use std::time::Duration;

use crossbeam_channel::unbounded;

use super::bulk::Lead;
use super::fence::Answer;
use super::load::is_same;
use super::many::next_by;
use super::populate::{NewValue, Placement};
use super::{Inner, LoadBegin, LoadKey, Loaded};
use crate::context::Context;
use crate::error::ErrorKind;
use crate::loader_pool::JobFor;
use crate::peers::ProtoGetter;
use crate::store::EvictedEntries;
use crate::sync::Arc;

impl Inner {
    /// The value that the previous owner of the key has cached, if the peers changed lately. It is put
    /// into the main share, with the age and the expiry that it has there.
    ///
    /// `None` if this process has a value of its own: then the load is a refresh.
    pub(super) fn take_over(
        self: &Arc<Self>,
        placement: Placement,
        ctx: &Context,
        key: LoadKey<'_>,
        begun: LoadBegin,
        evicted: &mut EvictedEntries,
    ) -> Option<Loaded> {
        let previous = self.previous_owner(placement, key)?;
        let ctx = ctx.with_timeout(PATIENCE);
        let answer = self.ask_previous(&previous, &ctx, &[key.key]).pop()??;
        Some(self.keep_taken(placement, key, begun, answer, evicted))
    }

    /// As [`take_over`](Self::take_over), for several keys: one request to each previous owner, all at the
    /// same time. The result has an item for each key.
    pub(super) fn take_over_all(
        self: &Arc<Self>,
        ctx: &Context,
        leads: &[Lead<'_, '_>],
        evicted: &mut EvictedEntries,
    ) -> Vec<Option<Loaded>> {
        let mut taken: Vec<Option<Loaded>> = leads.iter().map(|_| None).collect();
        let queries = self.by_previous_owner(leads);
        if queries.is_empty() {
            return taken;
        }
        for (at, answer) in self.ask_all_previous(&ctx.with_timeout(PATIENCE), queries) {
            let Lead { key, begun, .. } = &leads[at];
            let loaded = self.keep_taken(key.placement(), key.key, *begun, answer, evicted);
            taken[at] = Some(loaded);
        }
        taken
    }

    /// The previous owner, if it is to be asked for a key whose value is loaded now.
    fn previous_owner(
        &self,
        placement: Placement,
        key: LoadKey<'_>,
    ) -> Option<Arc<dyn ProtoGetter>> {
        if placement == Placement::Fallback {
            return None;
        }
        let previous = self
            .peers
            .ask(&self.name, |picker| picker.previous_owner(key.key));
        let previous = previous.flatten()?;
        let now = self.store.clock().now();
        let is_dropped = self.removals.dropped.may_contain(key.hash, now);
        (!is_dropped && self.store.peek(key.hash, key.key).is_err()).then_some(previous)
    }

    fn by_previous_owner(&self, leads: &[Lead<'_, '_>]) -> Vec<PreviousQuery> {
        let mut queries: Vec<PreviousQuery> = Vec::new();
        for (at, Lead { key, .. }) in leads.iter().enumerate() {
            let Some(owner) = self.previous_owner(key.placement(), key.key) else {
                continue;
            };
            let key = (at, key.key.key.into());
            match queries
                .iter_mut()
                .find(|query| is_same(&query.owner, &owner))
            {
                Some(query) => query.keys.push(key),
                None => queries.push(PreviousQuery {
                    owner,
                    keys: vec![key],
                }),
            }
        }
        queries
    }

    /// Asks the first owner on this thread, and the others on loader threads. Those for which there is no
    /// thread are not asked: the getter loads their keys.
    fn ask_all_previous(
        self: &Arc<Self>,
        ctx: &Context,
        queries: Vec<PreviousQuery>,
    ) -> Vec<(usize, Answer)> {
        let (sender, answers) = unbounded();
        let mut queries = queries.into_iter();
        let first = queries.next();
        for query in queries {
            let (group, ctx, sender) = (self.clone(), ctx.clone(), sender.clone());
            let _ = self.pool.submit(JobFor::Own, move |busy| {
                let found = query.ask(&group, &ctx);
                drop(busy);
                // Fails if the caller waits no longer.
                let _ = sender.send(found);
                drop(sender);
                (group, ctx, query)
            });
        }
        drop(sender);
        let mut found = first.map_or_else(Vec::new, |query| query.ask(self, ctx));
        while let Some(more) = next_by(ctx, &answers) {
            found.extend(more);
        }
        found
    }

    /// The values that a previous owner has cached, an item for each key.
    fn ask_previous(
        self: &Arc<Self>,
        previous: &Arc<dyn ProtoGetter>,
        ctx: &Context,
        keys: &[&str],
    ) -> Vec<Option<Answer>> {
        let sent = self.store.clock().now();
        let answers = match previous.get_many(ctx, &self.name, keys) {
            Ok(answers) if answers.len() == keys.len() => answers,
            Ok(_) => return Vec::new(),
            Err(error) => {
                // Not a time-out: this one is much shorter than that of other exchanges.
                if error.kind() == ErrorKind::Peer {
                    self.note_failure(&error);
                }
                return Vec::new();
            }
        };
        if let Some(brought) = answers.iter().flatten().next() {
            self.compare(previous, ctx, sent, brought.removals);
        }
        let is_current = |(response, key): (_, &&str)| {
            let response =
                Option::filter(response, |response| self.is_current(key, sent, response));
            response.map(|response| (sent, response))
        };
        answers.into_iter().zip(keys).map(is_current).collect()
    }

    fn keep_taken(
        &self,
        placement: Placement,
        key: LoadKey<'_>,
        begun: LoadBegin,
        (sent, response): Answer,
        evicted: &mut EvictedEntries,
    ) -> Loaded {
        self.counters.add(|loads| &loads.peer_loads);
        let lifetime = self.lifetime_of(sent, &response);
        let mut view = response.value;
        let value = NewValue::new(&mut view, lifetime);
        let lifetime = self.populate(placement, key, begun, value, evicted);
        Loaded {
            view,
            lifetime,
            by_peer: true,
        }
    }
}

/// The keys that one previous owner is asked for, each with its index.
struct PreviousQuery {
    owner: Arc<dyn ProtoGetter>,
    keys: Vec<(usize, Box<str>)>,
}

impl PreviousQuery {
    fn ask(&self, group: &Arc<Inner>, ctx: &Context) -> Vec<(usize, Answer)> {
        let keys: Vec<&str> = self.keys.iter().map(|(_, key)| &**key).collect();
        let answers = group.ask_previous(&self.owner, ctx, &keys).into_iter();
        let found = |(answer, (at, _)): (Option<Answer>, &(usize, _))| Some((*at, answer?));
        answers.zip(&self.keys).filter_map(found).collect()
    }
}

/// How long the previous owners may take to answer.
const PATIENCE: Duration = Duration::from_millis(10);
