//! Gets several keys at once: one request to each owner, and the owners in parallel.
//!
//! ```text
//!   mod.rs    sorts the keys by owner, and asks the owners
//!   key.rs    the keys and results of a call
//!   bulk.rs   one call of a bulk getter       parallel.rs  several loads at the same time
//!   stale.rs  values that are not fresh       serve.rs     requests of peers for several keys
//! ```

pub(super) mod bulk;
pub(super) mod key;
pub(super) mod parallel;
mod serve;
mod stale;

use crossbeam_channel::unbounded;

use self::key::{ManyFrom, ManyKey, Results};
use self::parallel::next_by;
use self::stale::StaleValues;
use super::load::populate::Placement;
use super::load::{FailedPeers, LoadingRetries, half_of, is_no_answer, is_same};
use super::removal_clocks::Counted;
use super::removal_clocks::fence::Answer;
use super::{Inner, LoadBegin, Loaded};
use crate::byteview::ByteView;
use crate::context::Context;
use crate::error::{Error, ErrorKind, Result};
use crate::getter::old_value::OldValue;
use crate::pb::GetRequest;
use crate::peers::{NoPeers, PeerPicker, PeerResponse, ProtoGetter, Route};
use crate::store::EvictedEntries;
use crate::sync::Arc;
use crate::threads::nesting;

/// Results from one owner, each with the index of its key in the caller's list.
type Found = Vec<(usize, Result<ByteView>)>;

/// The work for the keys that are not cached here.
#[derive(Default)]
struct Plan {
    /// The indexes of the keys that are loaded here, because this process owns them or their owners do
    /// not answer, and where their values belong.
    own: Vec<(usize, Placement)>,
    queries: Vec<OwnerQuery>,
}

/// The keys that one owner is asked for.
struct OwnerQuery {
    owner: Arc<dyn ProtoGetter>,
    /// Whether another peer can be asked after the owner.
    has_next: bool,
    keys: Vec<QueryKey>,
}

/// The next source of a key's value.
enum NextLoad {
    /// The getter of this process, which owns the key or has no other peer to ask.
    Here(Placement),
    Peer(Arc<dyn ProtoGetter>),
}

struct QueryKey {
    /// The index of the key in the caller's list.
    at: usize,
    key: Box<str>,
    /// Read before the owner is asked, so that a removal in the meantime is detected.
    begun: LoadBegin,
    old: Option<OldValue>,
}

impl Inner {
    /// The values of `keys`, in their order: from the store, then from the getter for keys that this
    /// process owns and from the owners of the others. Keys without a value are fetched as by single
    /// gets.
    pub(super) fn get_many<K: AsRef<str>>(
        self: &Arc<Self>,
        ctx: &Context,
        keys: &[K],
    ) -> Vec<Result<ByteView>> {
        if !self.may_serve(ctx) {
            keys.iter()
                .for_each(|key| drop(self.remove_here(key.as_ref(), Counted::Not)));
        }
        let mut stale = StaleValues::default();
        let cached = |(at, key): (usize, &K)| {
            let key = self.key(key.as_ref());
            let sample = || self.sample_hit(&key);
            let found = self.store.get(key.hash, key.key, || (), sample).ok();
            match found {
                Some(hit) if hit.is_due => {
                    let due = self.get_due_of_many(ctx, at, &key, hit, &mut stale);
                    return due.map(Ok);
                }
                Some(_) => {}
                None => drop(self.count_miss(&key, || self.purge_some())),
            }
            found.map(|value| Ok(value.view))
        };
        let mut results: Results = keys.iter().enumerate().map(cached).collect();
        let _lent = nesting::lend_permit(ctx);
        if !results.iter().all(Option::is_some) {
            let olds = stale.places().map(|at| self.key(keys[at].as_ref()));
            self.load_missing(&self.with_stale_served(ctx, olds), keys, &mut results);
        }
        if self.end_stale(ctx, stale, &mut results) {
            self.load_missing(ctx, keys, &mut results);
        }
        results
            .into_iter()
            .map(|result| result.unwrap_or_else(|| Err(ErrorKind::DeadlineExceeded.into())))
            .collect()
    }

    /// Loads the values of the keys that have no result.
    fn load_missing<K: AsRef<str>>(
        self: &Arc<Self>,
        ctx: &Context,
        keys: &[K],
        results: &mut Results,
    ) {
        nesting::begin_waits();
        let ctx = &ctx.with_value(FailedPeers::default());
        let plan = match self.peers.picker(&self.name) {
            Some(picker) => self.plan(&*picker, ctx, keys, results),
            None => self.plan(&NoPeers, ctx, keys, results),
        };
        let mut own = Vec::with_capacity(plan.own.len());
        for (at, placement) in plan.own {
            let key = self.key(keys[at].as_ref());
            match self.check_failed_loads(&key) {
                Err(error) => results[at] = Some(Err(error)),
                Ok(()) => own.push(ManyKey {
                    at,
                    key,
                    from: ManyFrom::Getter(placement),
                }),
            }
        }
        self.ask_owners(ctx, plan.queries, own, results);
        self.load_rest(ctx, keys, results);
    }

    /// Loads the keys whose owners sent no value. Each peer that is asked next gets one key first. If it
    /// does not answer, its other keys are loaded here. So the whole call waits for silent peers twice at
    /// most: for the owners, and for the peers after them.
    fn load_rest<K: AsRef<str>>(
        self: &Arc<Self>,
        ctx: &Context,
        keys: &[K],
        results: &mut Results,
    ) {
        let mut rest: Vec<usize> = (0..keys.len())
            .filter(|at| results[*at].is_none())
            .collect();
        for is_first in [true, false] {
            let (mut here, mut fetched, mut later) = (Vec::new(), Vec::new(), Vec::new());
            let mut peers: Vec<Arc<dyn ProtoGetter>> = Vec::new();
            for at in rest {
                let key = self.key(keys[at].as_ref());
                let next = self.next_load(ctx, key.key);
                if let Some(NextLoad::Here(placement)) = next {
                    let from = ManyFrom::Getter(placement);
                    here.push(ManyKey { at, key, from });
                    continue;
                }
                if let Some(NextLoad::Peer(peer)) = next {
                    if is_first && peers.iter().any(|other| is_same(other, &peer)) {
                        later.push(at);
                        continue;
                    }
                    peers.push(peer);
                }
                let from = ManyFrom::Peers;
                fetched.push(ManyKey { at, key, from });
            }
            let mut fill = |at: usize, result: Result<Loaded>| {
                results[at] = Some(result.map(|loaded| loaded.view));
            };
            if !here.is_empty() {
                self.load_several(ctx, here, None, &mut fill);
            }
            if !fetched.is_empty() {
                self.load_in_parallel(ctx, fetched, None, &mut fill);
            }
            rest = later;
        }
    }

    /// How to load a key for which its owner sent no value; `None` if the key is not valid.
    fn next_load(&self, ctx: &Context, key: &str) -> Option<NextLoad> {
        self.check_key(key).ok()?;
        let failed = ctx.value::<FailedPeers>()?;
        let Some(picker) = self.peers.picker(&self.name) else {
            return Some(NextLoad::Here(Placement::Main));
        };
        Some(match self.verified_route(picker.route(key)) {
            Route::Peer(peer) if !failed.contain(&peer) => NextLoad::Peer(peer),
            Route::Peer(peer) => match picker.pick_next(key, 1, &peer) {
                Some(next) if !failed.contain(&next) => NextLoad::Peer(next),
                _ => NextLoad::Here(Placement::Fallback),
            },
            route => NextLoad::Here(placement_of(&route)),
        })
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
            let owner = match self.verified_route(picker.route(key)) {
                Route::Peer(owner) => owner,
                route => {
                    plan.own.push((at, placement_of(&route)));
                    continue;
                }
            };
            if ctx.cancellable() || (ctx.has_deadline_or_cancel() && !owner.honors_deadline()) {
                continue;
            }
            let place = self.key(key);
            let forgets = self.peer_flights.forgets(place.hash.get());
            let generation = match self.recheck_cache(&place, false) {
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
                // The picker is asked only if the owner's time depends on it. Other keys of the owner may
                // have other next peers.
                let has_next =
                    ctx.deadline().is_some() && picker.pick_next(key, 1, &owner).is_some();
                queries.push(OwnerQuery {
                    owner,
                    has_next,
                    keys: Vec::new(),
                });
                queries.len() - 1
            });
            let begun = self.load_begin(generation, forgets);
            queries[query].keys.push(QueryKey {
                at,
                key: key.into(),
                begun,
                old: self.old_value(&place, &begun),
            });
        }
        plan
    }

    /// Asks the owners at the same time, on loader threads, and loads the keys that this process owns
    /// on this thread. Without such keys, this thread asks the first owner. It also asks the owners for
    /// which no loader thread is idle, but only after it has loaded the keys of this process.
    fn ask_owners(
        self: &Arc<Self>,
        ctx: &Context,
        queries: Vec<OwnerQuery>,
        own: Vec<ManyKey<'_>>,
        results: &mut Results,
    ) {
        let (sender, answers) = unbounded();
        let mut here = Vec::new();
        for query in queries {
            if here.is_empty() && own.is_empty() {
                here.push(Arc::new(query));
                continue;
            }
            // Shared, because a refused job is dropped with its copy.
            let query = Arc::new(query);
            let ask = {
                let (group, ctx, query) = (self.clone(), ctx.clone(), query.clone());
                let waits = nesting::waits();
                move || {
                    nesting::set_waits(waits);
                    (group.ask_owner(&ctx, &query), nesting::waits())
                }
            };
            if self.ask_on_pool(&sender, ask).is_err() {
                here.push(query);
            }
        }
        drop(sender);
        if !own.is_empty() {
            self.load_several(ctx, own, None, &mut |at, result| {
                results[at] = Some(result.map(|loaded| loaded.view));
            });
        }
        for query in here {
            fill(results, self.ask_owner(ctx, &query));
        }
        while let Some((found, waits)) = next_by(ctx, &answers) {
            nesting::join_waits(waits);
            fill(results, found);
        }
    }

    /// Asks an owner for the values of its keys, which it loads if necessary, and caches them like any
    /// value from a peer. Keys that fail here are fetched again one by one, which handles the
    /// error. An owner that did not answer is not asked again.
    fn ask_owner(self: &Arc<Self>, ctx: &Context, query: &OwnerQuery) -> Found {
        let mut found = Vec::with_capacity(query.keys.len());
        let mut keys: Vec<&QueryKey> = query.keys.iter().collect();
        let half = query.has_next.then(|| half_of(ctx));
        let mut ctx_of_owner = half.as_ref().unwrap_or(ctx);
        let mut retries = LoadingRetries::new(ctx, self.max_load_wait);
        while !keys.is_empty() {
            let sent = self.store.clock().now();
            let answers = match &*keys {
                [key] => self.ask_for_one(ctx_of_owner, query, key),
                keys => self.ask_for_many(ctx_of_owner, query, keys),
            };
            let answers = match answers {
                Ok(answers) if answers.len() == keys.len() => answers,
                Ok(_) => break,
                Err(error) => {
                    self.note_failed_owner(ctx, query, &error);
                    break;
                }
            };
            let first = answers
                .iter()
                .find_map(|answer| answer.as_ref()?.as_ref().ok());
            if let Some(response) = first {
                self.compare(&query.owner, ctx, sent, response.removals);
            }
            let mut loading = Vec::new();
            for (key, answer) in keys.into_iter().zip(answers) {
                match answer {
                    None => {}
                    Some(Err(error)) if error.kind() == ErrorKind::Loading => loading.push(key),
                    Some(Err(error)) if is_no_answer(error.kind()) => {}
                    // The key is asked for by itself later. That request makes the owner drop its old value.
                    Some(Ok(response)) if !self.is_current(&key.key, sent, &response) => {}
                    Some(answer) => {
                        self.counters.add(|loads| &loads.loads_deduped);
                        found.push((key.at, answer.map(|answer| self.keep(key, (sent, answer)))));
                    }
                }
            }
            keys = loading;
            // An owner that is loading is alive, so it gets all of the time.
            ctx_of_owner = ctx;
            if !keys.is_empty() && !retries.may_ask_again() {
                let loading = ErrorKind::Loading.into();
                self.note_failed_owner(ctx, query, &loading);
                break;
            }
        }
        found
    }

    /// Counts a failed exchange with an owner, which is then not asked again during this call.
    fn note_failed_owner(&self, ctx: &Context, query: &OwnerQuery, error: &Error) {
        if error.kind() != ErrorKind::Peer && ctx.err().is_some() {
            // The caller ran out of time, which is no failure of the owner.
            return;
        }
        self.note_failure(error);
        let failed = ctx.value::<FailedPeers>();
        if let Some(failed) = failed.filter(|_| is_no_answer(error.kind())) {
            failed.add(&query.owner);
        }
    }

    /// Puts a peer's answer into the cache and returns its value.
    fn keep(&self, key: &QueryKey, answer: Answer) -> ByteView {
        let (at, old) = (self.key(&key.key), key.old.as_ref());
        let mut evicted = EvictedEntries::default();
        let loaded = self.cache_answer(Placement::Hot, &at, &key.begun, answer, old, &mut evicted);
        self.notify_and_drop(&mut evicted);
        loaded.view
    }

    /// Asks for all keys of an owner at once. A key without an answer is to be fetched by itself.
    fn ask_for_many(
        &self,
        ctx: &Context,
        query: &OwnerQuery,
        keys: &[&QueryKey],
    ) -> Result<Vec<Option<Result<PeerResponse>>>> {
        let old = |key: &&QueryKey| key.old.as_ref().map(|old| old.view.clone());
        let olds: Vec<Option<ByteView>> = keys.iter().map(old).collect();
        let keys: Vec<&str> = keys.iter().map(|key| &*key.key).collect();
        match olds.iter().any(Option::is_some) {
            true => query.owner.revalidate_many(ctx, &self.name, &keys, &olds),
            false => query.owner.load_many(ctx, &self.name, &keys),
        }
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
        let answer = match &key.old {
            Some(old) => query.owner.revalidate(ctx, &request, &old.view),
            None => query.owner.get(ctx, &request),
        };
        let answer = match answer {
            Err(error) if error.kind() == ErrorKind::Loading => Some(Err(error)),
            Err(error) if is_no_answer(error.kind()) => return Err(error),
            Err(error) if error.kind() == ErrorKind::UnknownGroup => return Err(error),
            answer => Some(answer),
        };
        Ok(vec![answer])
    }
}

/// Where the value of a key with this route belongs, if it is loaded here.
fn placement_of(route: &Route) -> Placement {
    match route {
        Route::Own => Placement::Main,
        Route::Peer(_) | Route::Fallback => Placement::Fallback,
    }
}

fn fill(results: &mut Results, found: Found) {
    for (at, result) in found {
        results[at] = Some(result);
    }
}

#[cfg(all(test, not(larder_loom)))]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::error::{Error, ErrorKind};
    use crate::group::Group;
    use crate::group::registry::Registry;
    use crate::group::tests::eventually;
    use crate::pb::GetRequest;
    use crate::sink::Sink;
    use crate::sync::Mutex;

    /// A peer that owns the keys which begin with its name, and has cached those that end in `!`.
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
        let keys = ["a1!", "a2!", "a3!", "a4!", "a5!"];
        std::thread::scope(|scope| {
            let asking = scope.spawn(|| group.get_many(&Context::background(), &keys));
            eventually(|| !owners[0].asked.lock().is_empty());
            group.invalidate("a1!");
            owners[0].alone.wait();
            assert_eq!(texts(&asking.join().expect("no panic")), keys);
        });
        assert!(!group.contains_key("a1!"));
        // A removal also refuses the loads of the few keys that share its generation.
        assert!(keys.iter().any(|key| group.contains_key(key)));
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
