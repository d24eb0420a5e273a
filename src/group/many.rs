//! Gets several keys at once: one request to each owner, and the owners in parallel.

use crossbeam_channel::{Receiver, unbounded};

use super::load::{FailedPeers, half_of, is_no_answer, is_same};
use super::populate::Placement;
use super::{Inner, LoadBegin, LoadKey};
use crate::byteview::ByteView;
use crate::context::Context;
use crate::error::{ErrorKind, Result};
use crate::loader_pool::JobFor;
use crate::pb::GetRequest;
use crate::peers::{PeerPicker, PeerResponse, ProtoGetter, Route};
use crate::store::EvictedEntries;
use crate::sync::Arc;

/// A result for each key, in their order; `None` while there is none.
type Results = Vec<Option<Result<ByteView>>>;

/// Results that one owner brought, each with the index of its key in the caller's list.
type Found = Vec<(usize, Result<ByteView>)>;

/// The work for the keys that are not cached here.
#[derive(Default)]
struct Plan {
    /// The indexes of the keys that this process owns.
    own: Vec<usize>,
    queries: Vec<OwnerQuery>,
}

/// The keys that one owner is asked for.
struct OwnerQuery {
    owner: Arc<dyn ProtoGetter>,
    /// Whether another peer can be asked after the owner.
    has_next: bool,
    keys: Vec<QueryKey>,
}

struct QueryKey {
    /// The index of the key in the caller's list.
    at: usize,
    key: Box<str>,
    /// Read before the owner is asked, so that a removal in the meantime is detected.
    begun: LoadBegin,
}

impl Inner {
    /// The values of `keys`, in their order: from the store, then from the getter for keys that this
    /// process owns and from the caches of the owners of the others, then one by one.
    pub(super) fn get_many<K: AsRef<str>>(
        self: &Arc<Self>,
        ctx: &Context,
        keys: &[K],
    ) -> Vec<Result<ByteView>> {
        let cached = |key: &K| {
            let LoadKey { hash, key } = self.key(key.as_ref());
            let found = self.store.get(hash, key, || (), || self.purge_some()).ok();
            match found {
                Some(hit) if hit.is_due => {
                    let due = self.get_due(ctx, LoadKey { hash, key }, hit);
                    return Some(due.map(|loaded| loaded.view));
                }
                Some(_) => {}
                None => self.count_miss(hash),
            }
            found.map(|value| Ok(value.view))
        };
        let mut results: Results = keys.iter().map(cached).collect();
        let ctx = &ctx.with_value(FailedPeers::default());
        let load = |at: usize| self.load(ctx, self.key(keys[at].as_ref()), None);
        let make = |picker: &dyn PeerPicker| self.plan(picker, ctx, keys, &mut results);
        let Plan { own, queries } = self.peers.ask(&self.name, make).unwrap_or_default();
        let load_own = |results: &mut Results| {
            for at in own {
                results[at] = Some(load(at));
            }
        };
        self.ask_owners(ctx, queries, &mut results, load_own);
        let results = results.into_iter().enumerate();
        results
            .map(|(at, result)| result.unwrap_or_else(|| load(at)))
            .collect()
    }

    /// Groups the keys without a result by their owners. A request in flight cannot be cancelled, so
    /// cancellable callers fetch key by key, on loader threads: for them, the plan has no queries.
    fn plan<K: AsRef<str>>(
        &self,
        picker: &dyn PeerPicker,
        ctx: &Context,
        keys: &[K],
        results: &mut Results,
    ) -> Plan {
        let mut plan = Plan::default();
        for (at, (key, result)) in keys.iter().zip(results).enumerate() {
            let key = key.as_ref();
            if result.is_some() || self.check_key(key).is_err() {
                continue;
            }
            let owner = match picker.route(key) {
                Route::Peer(owner) => owner,
                route => {
                    // In the owner's place, a key is loaded by itself at the end.
                    plan.own.extend(matches!(route, Route::Own).then_some(at));
                    continue;
                }
            };
            if ctx.cancellable() || (ctx.has_deadline_or_cancel() && !owner.honors_deadline()) {
                continue;
            }
            let forgets = self.peer_flights.forgets(self.key(key).hash.get());
            let generation = match self.recheck_cache(self.key(key)) {
                Ok(value) => {
                    *result = Some(Ok(value.view));
                    continue;
                }
                Err(generation) => generation,
            };
            let queries = &mut plan.queries;
            let found = queries
                .iter()
                .position(|query| is_same(&query.owner, &owner));
            let query = found.unwrap_or_else(|| {
                // Asked only if the time that the owner gets depends on it. The next peers of the
                // owner's other keys can be others.
                let has_next =
                    ctx.deadline().is_some() && picker.pick_next(key, 1, &owner).is_some();
                queries.push(OwnerQuery {
                    owner,
                    has_next,
                    keys: Vec::new(),
                });
                queries.len() - 1
            });
            queries[query].keys.push(QueryKey {
                at,
                key: key.into(),
                begun: self.load_begin(generation, forgets),
            });
        }
        plan
    }

    /// Asks the first owner on this thread, and the others on loader threads at the same time. An
    /// owner for which no loader thread is idle is asked on this thread, too. Before this thread waits
    /// for any owner, it loads the keys that this process owns.
    fn ask_owners(
        self: &Arc<Self>,
        ctx: &Context,
        queries: Vec<OwnerQuery>,
        results: &mut Results,
        load_own: impl FnOnce(&mut Results),
    ) {
        let (sender, answers) = unbounded();
        let mut here = Vec::new();
        for query in queries {
            if here.is_empty() {
                here.push(Arc::new(query));
                continue;
            }
            // Shared, because a refused job is dropped with its copy.
            let query = Arc::new(query);
            let submitted = {
                let (group, ctx, query, sender) =
                    (self.clone(), ctx.clone(), query.clone(), sender.clone());
                self.pool.submit(JobFor::Own, move |busy| {
                    let found = group.ask_owner(&ctx, &query);
                    drop(busy);
                    // Fails if the caller has returned already.
                    let _ = sender.send(found);
                    drop(sender);
                    (group, ctx)
                })
            };
            if submitted.is_err() {
                here.push(query);
            }
        }
        drop(sender);
        load_own(results);
        for query in here {
            fill(results, self.ask_owner(ctx, &query));
        }
        while let Some(found) = next_by(ctx, &answers) {
            fill(results, found);
        }
    }

    /// Asks an owner for the values that it has cached, and caches them like any value from a peer.
    /// Keys that fail here are fetched again one by one, which handles the error; but not from this
    /// owner if it did not answer.
    fn ask_owner(self: &Arc<Self>, ctx: &Context, query: &OwnerQuery) -> Found {
        let half = query.has_next.then(|| half_of(ctx));
        let ctx_of_owner = half.as_ref().unwrap_or(ctx);
        let answers = match &*query.keys {
            [key] => self.ask_for_one(ctx_of_owner, query, key),
            keys => self.ask_for_many(ctx_of_owner, query, keys),
        };
        let answers = match answers {
            Ok(answers) if answers.len() == query.keys.len() => answers,
            Ok(_) => return Vec::new(),
            // The caller ran out of time, which says nothing of the owner.
            Err(error) if error.kind() != ErrorKind::Peer && ctx.err().is_some() => {
                return Vec::new();
            }
            Err(error) => {
                self.note_failure(&error);
                let failed = ctx.value::<FailedPeers>();
                if let Some(failed) = failed.filter(|_| is_no_answer(error.kind())) {
                    failed.add(&query.owner);
                }
                return Vec::new();
            }
        };
        let mut found = Vec::new();
        if let Some(Some(Ok(response))) =
            answers.iter().find(|answer| matches!(answer, Some(Ok(_))))
        {
            let sent = query.keys[0].begun.at;
            self.compare(&query.owner, ctx, sent, response.removals);
        }
        for (key, answer) in query.keys.iter().zip(answers) {
            let Some(answer) = answer else {
                continue;
            };
            let answer = match answer {
                // Asked for by itself, which has the owner drop it.
                Ok(response) if !self.is_current(&key.key, key.begun.at, &response) => continue,
                answer => answer,
            };
            self.counters.add(|loads| &loads.loads_deduped);
            found.push((key.at, answer.map(|answer| self.keep(key, answer))));
        }
        found
    }

    /// Puts a peer's answer into the cache and returns its value.
    fn keep(&self, key: &QueryKey, answer: PeerResponse) -> ByteView {
        self.counters.add(|loads| &loads.peer_loads);
        let (at, begun) = (self.key(&key.key), key.begun);
        let lifetime = self.lifetime_of(begun.at, &answer);
        let mut value = answer.value;
        let mut evicted = EvictedEntries::default();
        self.populate(
            Placement::Hot,
            at,
            begun,
            &mut value,
            lifetime,
            &mut evicted,
        );
        self.notify_and_drop(evicted);
        value
    }

    /// Asks for all keys of an owner at once. A key without an answer is to be fetched by itself.
    fn ask_for_many(
        &self,
        ctx: &Context,
        query: &OwnerQuery,
        keys: &[QueryKey],
    ) -> Result<Vec<Option<Result<PeerResponse>>>> {
        let keys: Vec<&str> = keys.iter().map(|key| &*key.key).collect();
        let answers = query.owner.get_many(ctx, &self.name, &keys)?;
        Ok(answers.into_iter().map(|answer| answer.map(Ok)).collect())
    }

    /// Asks for the only key of an owner. The owner loads it if necessary.
    fn ask_for_one(
        &self,
        ctx: &Context,
        query: &OwnerQuery,
        key: &QueryKey,
    ) -> Result<Vec<Option<Result<PeerResponse>>>> {
        let request = GetRequest {
            group: self.name.as_str().into(),
            key: (&*key.key).into(),
        };
        let answer = match query.owner.get(ctx, &request) {
            Err(error) if error.kind() == ErrorKind::Loading => None,
            Err(error) if is_no_answer(error.kind()) => return Err(error),
            Err(error) if error.kind() == ErrorKind::UnknownGroup => return Err(error),
            answer => Some(answer),
        };
        Ok(vec![answer])
    }
}

fn fill(results: &mut Results, found: Found) {
    for (at, result) in found {
        results[at] = Some(result);
    }
}

/// The next answer; `None` once all have arrived or failed, or the deadline has passed.
fn next_by<T>(ctx: &Context, answers: &Receiver<T>) -> Option<T> {
    match ctx.deadline() {
        None => answers.recv().ok(),
        Some(deadline) => answers.recv_deadline(deadline).ok(),
    }
}

#[cfg(all(test, not(larder_loom)))]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::error::{Error, ErrorKind};
    use crate::group::Group;
    use crate::group::registry::Registry;
    use crate::pb::GetRequest;
    use crate::sink::Sink;
    use crate::sync::Mutex;

    /// Owns the keys that begin with its name; has cached those that end in `!`.
    struct Owner {
        name: &'static str,
        asked: Mutex<Vec<String>>,
        alone: std::sync::Barrier,
    }

    impl ProtoGetter for Owner {
        fn get(&self, _ctx: &Context, request: &GetRequest<'_>) -> Result<PeerResponse> {
            self.asked.lock().push(format!("get {}", request.key));
            match &*request.key {
                "a missing" => Err(Error::not_found("no such key")),
                key => Ok(PeerResponse::new(format!("{key} loaded"))),
            }
        }

        fn get_many(
            &self,
            _ctx: &Context,
            group: &str,
            keys: &[&str],
        ) -> Result<Vec<Option<PeerResponse>>> {
            assert_eq!(group, "many");
            self.asked.lock().push(keys.join(","));
            self.alone.wait();
            let cached = |key: &&str| {
                let there = key.ends_with('!');
                there.then(|| PeerResponse::new(*key).with_ttl(Duration::from_secs(9)))
            };
            Ok(keys.iter().map(cached).collect())
        }
    }

    struct Owners(Vec<Arc<Owner>>);

    impl PeerPicker for Owners {
        fn pick_peer(&self, key: &str) -> Option<Arc<dyn ProtoGetter>> {
            let owner = self.0.iter().find(|owner| key.starts_with(owner.name))?;
            Some(owner.clone())
        }
    }

    /// A group with two owners. A batch to an owner returns once `together` threads wait at its
    /// barrier.
    fn group(together: usize) -> (Group, Vec<Arc<Owner>>) {
        let alone = || std::sync::Barrier::new(together);
        let owner = |name| {
            Arc::new(Owner {
                name,
                asked: Mutex::default(),
                alone: alone(),
            })
        };
        let owners = vec![owner("a"), owner("b")];
        let registry = Registry::new();
        registry
            .register_peer_picker(Arc::new(Owners(owners.clone())))
            .expect("the first");
        let load = |_: &Context, key: &str, dest: &mut dyn Sink| Ok(dest.set_str(key)?);
        let group = registry.new_group("many", 1 << 20, load).expect("a group");
        (group, owners)
    }

    fn texts(results: &[Result<ByteView>]) -> Vec<String> {
        let text = |result: &Result<ByteView>| match result {
            Ok(view) => view.to_str().expect("text").to_owned(),
            Err(error) => format!("{:?}", error.kind()),
        };
        results.iter().map(text).collect()
    }

    #[test]
    fn each_owner_gets_one_batch_then_single_requests() {
        let (group, owners) = group(1);
        let keys = ["a1!", "own", "b1!", "a missing", "a2!", "b2", "c"];
        let results = group.get_many(&Context::background(), &keys);
        assert_eq!(
            texts(&results),
            ["a1!", "own", "b1!", "NotFound", "a2!", "b2 loaded", "c"]
        );
        assert_eq!(
            *owners[0].asked.lock(),
            ["a1!,a missing,a2!", "get a missing"]
        );
        assert_eq!(*owners[1].asked.lock(), ["b1!,b2", "get b2"]);

        // All values that exist are cached now.
        let results = group.get_many(&Context::background(), &keys[..3]);
        assert_eq!(texts(&results), ["a1!", "own", "b1!"]);
        assert_eq!(owners[0].asked.lock().len(), 2);
        assert_eq!(group.stats().peer_loads, 4);
    }

    #[test]
    fn single_key_of_an_owner_is_not_batched() {
        let (group, owners) = group(1);
        let results = group.get_many(&Context::background(), &["a1!", "b1!", "b2!"]);
        assert_eq!(texts(&results), ["a1! loaded", "b1!", "b2!"]);
        assert_eq!(*owners[0].asked.lock(), ["get a1!"]);
    }

    #[test]
    fn value_removed_during_batch_is_not_cached() {
        let (group, owners) = group(2);
        std::thread::scope(|scope| {
            let asking = scope.spawn(|| group.get_many(&Context::background(), &["a1!", "a2!"]));
            while owners[0].asked.lock().is_empty() {
                std::thread::yield_now();
            }
            group.invalidate("a1!");
            owners[0].alone.wait();
            assert_eq!(texts(&asking.join().expect("no panic")), ["a1!", "a2!"]);
        });
        assert!(!group.contains_key("a1!"));
        assert!(group.contains_key("a2!"));
    }

    #[test]
    fn cancellable_caller_fetches_key_by_key() {
        let (group, owners) = group(1);
        let (ctx, canceller) = Context::background().with_cancel();
        let results = group.get_many(&ctx, &["a1!", "a2!"]);
        assert_eq!(texts(&results), ["a1! loaded", "a2! loaded"]);
        assert_eq!(*owners[0].asked.lock(), ["get a1!", "get a2!"]);
        canceller.cancel();
        let results = group.get_many(&ctx, &["a1!", "a3!"]);
        assert_eq!(texts(&results), ["a1! loaded", "Cancelled"]);
    }

    #[test]
    fn too_long_key_fails_alone() {
        let (group, _) = group(1);
        let long = format!("a{}", "x".repeat(1 << 20));
        let results = group.get_many(&Context::background(), &["a1!", &long, "a2!"]);
        assert_eq!(texts(&results), ["a1!", "KeyTooLong", "a2!"]);
        let kind = results[1].as_ref().expect_err("too long").kind();
        assert_eq!(kind, ErrorKind::KeyTooLong);
    }
}
