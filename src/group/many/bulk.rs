//! Loads several keys here with one call of a bulk getter.

use super::key::{Each, ManyKey, OwnedKey};
use super::parallel::job_for;
use crate::context::Context;
use crate::error::{Error, Result};
use crate::getter::LoadSink;
use crate::getter::bulk::{BulkGetter, BulkSink};
use crate::group::counters::GetterRun;
use crate::group::load::call_getter;
use crate::group::load::client_load::{ClientWaiter, wait_in_steps};
use crate::group::load::flight::{Executor, LoadFrom, PoolJob, finish_with, give_up};
use crate::group::load::rejoin::Rejoins;
use crate::group::{Inner, LoadBegin, LoadKey, Loaded};
use crate::singleflight::{Joined, Leader, Waiter};
use crate::store::EvictedEntries;
use crate::sync::Arc;
use crate::threads::load_permits::LoadClass;
use crate::threads::loader_pool::BusyGuard;
use crate::threads::nesting;
use crate::threads::recursion::{self, LoadId};

/// A bulk getter.
pub(in crate::group) struct Bulk {
    pub(in crate::group) getter: Arc<dyn BulkGetter>,
    /// The only use of [`Inner::load_by_bulk`], so that programs without bulk getters do not contain it.
    load: LoadByBulk,
}

type LoadByBulk = fn(
    &Arc<Inner>,
    &Arc<dyn BulkGetter>,
    &Context,
    Vec<ManyKey<'_>>,
    Option<&mut dyn ClientWaiter>,
    &mut Each<'_>,
);

impl Bulk {
    pub(in crate::group) fn new(getter: Arc<dyn BulkGetter>) -> Bulk {
        Bulk {
            getter,
            load: Inner::load_by_bulk,
        }
    }
}

impl Inner {
    /// Loads keys with the getter of this process, and passes each result to `each`.
    ///
    /// A bulk getter runs once, and leads the flights of all keys that are not in flight. Another getter
    /// runs for several keys at the same time. It runs on this thread only if `ctx` cannot end and
    /// there is no `waiter`.
    pub(super) fn load_several(
        self: &Arc<Self>,
        ctx: &Context,
        keys: Vec<ManyKey<'_>>,
        waiter: Option<&mut dyn ClientWaiter>,
        each: &mut Each<'_>,
    ) {
        match &self.bulk_getter {
            Some(bulk) if keys.len() > 1 => {
                (bulk.load)(self, &bulk.getter, ctx, keys, waiter, each);
            }
            _ => self.load_in_parallel(ctx, keys, waiter, each),
        }
    }

    fn load_by_bulk(
        self: &Arc<Self>,
        bulk: &Arc<dyn BulkGetter>,
        ctx: &Context,
        mut keys: Vec<ManyKey<'_>>,
        mut waiter: Option<&mut dyn ClientWaiter>,
        each: &mut Each<'_>,
    ) {
        let _lent = nesting::lend_permit(ctx);
        let mut rejoins = Rejoins::new(ctx, self.max_load_wait);
        while !keys.is_empty() {
            if let Some(ended) = ctx.err() {
                return keys.iter().for_each(|key| each(key.at, Err(ended.clone())));
            }
            let (leads, mut flights) = self.lead_all(ctx, &keys, each);
            if !leads.is_empty() {
                let led = self.lead_bulk(bulk, leads, ctx, &mut waiter, each);
                // The flights of this call come first, so that this thread waits for them before it waits for
                // those of others. Among them, the one that ends last comes first, so that this thread sleeps
                // once.
                flights.splice(0..0, led.into_iter().rev());
            }
            keys.clear();
            for (key, flight) in flights {
                let over = match &mut waiter {
                    None => rejoins.wait(&flight),
                    Some(waiter) => wait_in_steps(&flight, ctx, &mut **waiter),
                };
                match over {
                    Some(result) => each(key.at, result),
                    None => keys.push(key),
                }
            }
        }
    }

    /// Leads the flights of all keys that are not in flight, and joins the flights of the others. The keys that
    /// are left when `ctx` has ended get its error.
    pub(in crate::group) fn lead_all<'a, 'k>(
        &'a self,
        ctx: &Context,
        keys: &[ManyKey<'k>],
        each: &mut Each<'_>,
    ) -> (Vec<Lead<'a, 'k>>, Vec<(ManyKey<'k>, Flight)>) {
        let (mut leads, mut flights) = (Vec::new(), Vec::new());
        for (n, &key) in keys.iter().enumerate() {
            if let Some(ended) = end_before(n, ctx) {
                let left = &keys[n..];
                left.iter().for_each(|key| each(key.at, Err(ended.clone())));
                break;
            }
            match self.getter_flights.join(key.key.hash.get(), key.key.key) {
                Joined::Waiter(flight) => flights.push((key, flight)),
                Joined::Leader(leader, epoch, forgets) => {
                    let from = LoadFrom::Getter(key.placement());
                    match self.begin(&from, (epoch, forgets), &key.key, None) {
                        Ok(begun) => leads.push(Lead { key, leader, begun }),
                        Err(cached) => each(key.at, Ok(finish_with(leader, cached))),
                    }
                }
            }
        }
        (leads, flights)
    }

    /// Runs the bulk getter on this thread or on a loader thread, once there is a permit. Returns the flights
    /// that have to be waited for.
    fn lead_bulk<'k>(
        self: &Arc<Self>,
        bulk: &Arc<dyn BulkGetter>,
        mut leads: Vec<Lead<'_, 'k>>,
        ctx: &Context,
        waiter: &mut Option<&mut dyn ClientWaiter>,
        each: &mut Each<'_>,
    ) -> Vec<(ManyKey<'k>, Flight)> {
        let on_this_thread = waiter.is_none() && Executor::for_getter(ctx) == Executor::Caller;
        let job = job_for(waiter).and_then(|job_for| {
            let keys = leads.iter().map(|lead| lead.key.key);
            let waiter = waiter.as_mut().map(|waiter| &mut **waiter as _);
            let permit = self.permit_bulk(class_of(&leads), keys, ctx, waiter)?;
            Ok(PoolJob { job_for, permit })
        });
        let job = match job {
            Ok(job) => job,
            Err(refused) => return refuse(leads, &refused, each),
        };
        if job.permit.is_some() {
            // The ages of the values count from the end of the wait.
            let at = self.store.clock().now();
            leads.iter_mut().for_each(|lead| lead.begun.at = at);
        }
        if !on_this_thread {
            return self.run_bulk_on_pool(bulk, leads, ctx, job, each);
        }
        let _held = job.permit.map(nesting::hold_permit);
        for (at, result) in self.run_bulk(&**bulk, leads, None, ctx) {
            each(at, result);
        }
        Vec::new()
    }

    /// Runs the bulk getter on a loader thread. Returns the flights of its keys, to wait for them.
    fn run_bulk_on_pool<'k>(
        self: &Arc<Self>,
        bulk: &Arc<dyn BulkGetter>,
        leads: Vec<Lead<'_, 'k>>,
        ctx: &Context,
        PoolJob { job_for, permit }: PoolJob,
        each: &mut Each<'_>,
    ) -> Vec<(ManyKey<'k>, Flight)> {
        let mut sent = Vec::with_capacity(leads.len());
        let mut flights = Vec::with_capacity(leads.len());
        let mut leads = leads.into_iter();
        while let Some(Lead { key, leader, begun }) = leads.next() {
            let flight = leader.detach();
            sent.push(SentLead::new(key, flight.id(), begun));
            flights.push((key, flight));
            if let Some(ended) = end_before(sent.len(), ctx) {
                let sent = sent.iter().map(|lead| lead.receive(self));
                return refuse(sent.chain(leads).collect(), &ended, each);
            }
        }
        let sent = Arc::new(sent);
        let submitted = {
            let (group, bulk, ctx, sent) = (self.clone(), bulk.clone(), ctx.clone(), sent.clone());
            self.pool.submit(job_for, move |busy| {
                let _held = permit.map(nesting::hold_permit);
                let leads = sent.iter().map(|lead| lead.receive(&group)).collect();
                let results = group.run_bulk(&*bulk, leads, Some(busy), &ctx);
                (results, group, bulk, ctx)
            })
        };
        match submitted {
            Ok(()) => flights,
            Err(refused) => {
                let leads = sent.iter().map(|lead| lead.receive(self)).collect();
                refuse(leads, &refused, each)
            }
        }
    }

    /// Calls the bulk getter for the keys of these flights, and publishes the results. A flight whose
    /// key failed after `ctx` had ended is abandoned, because its waiters may have time left.
    ///
    /// If the getter panics, the leaders are dropped, and all waiters get
    /// [`GetterPanicked`](crate::ErrorKind::GetterPanicked).
    pub(in crate::group) fn run_bulk(
        self: &Arc<Self>,
        bulk: &dyn BulkGetter,
        leads: Vec<Lead<'_, '_>>,
        // This parameter comes after the leaders, so that a panic drops it first: see `Inner::lead`.
        busy: Option<BusyGuard<'_>>,
        ctx: &Context,
    ) -> Vec<(usize, Result<Loaded>)> {
        let dependencies = match recursion::work_for_all(leads.iter().map(|lead| lead.leader.id()))
        {
            Ok(dependencies) => dependencies,
            Err(cycle) => {
                let refused = |lead: Lead<'_, '_>| {
                    lead.leader.abandon();
                    (lead.key.at, Err(cycle.clone()))
                };
                return leads.into_iter().map(refused).collect();
            }
        };
        let ctx = ctx.of_load();
        let mut evicted = EvictedEntries::default();
        let results = self.load_leads(bulk, &leads, ctx, &mut evicted);
        let mut vanished = Vec::new();
        for (lead, result) in leads.iter().zip(&results) {
            if result.as_ref().is_err_and(Error::is_not_found) {
                let from = LoadFrom::Getter(lead.key.placement());
                vanished.push(self.remove_vanished(&from, &lead.key.key, &lead.begun));
            }
        }
        let ended = ctx.err();
        // The order is that of `Inner::lead`.
        let notifies = self.eviction_listener.is_some() && !evicted.is_empty();
        let _busy = busy.filter(|_| notifies);
        drop(dependencies);
        let mut published = Vec::with_capacity(leads.len());
        for (lead, result) in leads.into_iter().zip(results) {
            let at = lead.key.at;
            match (&result, &ended) {
                (Err(_), Some(ended)) => {
                    lead.leader.abandon();
                    published.push((at, Err(ended.clone())));
                }
                _ => {
                    lead.leader.finish(&result);
                    published.push((at, result));
                }
            }
        }
        self.notify_and_drop(&mut evicted);
        vanished
            .iter_mut()
            .for_each(|entries| self.notify_and_drop(entries));
        published
    }

    /// Loads the values of these keys from their other owners, and those that they do not have by the bulk
    /// getter. Returns the result of each key.
    fn load_leads(
        self: &Arc<Self>,
        bulk: &dyn BulkGetter,
        leads: &[Lead<'_, '_>],
        ctx: &Context,
        evicted: &mut EvictedEntries,
    ) -> Vec<Result<Loaded>> {
        let froms: Vec<LoadFrom> = leads
            .iter()
            .map(|lead| LoadFrom::Getter(lead.key.placement()))
            .collect();
        let watches: Vec<_> = leads
            .iter()
            .zip(&froms)
            .map(|(lead, from)| self.watch(from, &lead.key.key, &lead.begun))
            .collect();
        let taken = self.take_over_all(ctx, leads, evicted);
        let mut results: Vec<_> = taken.into_iter().map(|taken| taken.map(Ok)).collect();
        let missing = |at: &usize| results[*at].is_none();
        let missing: Vec<usize> = (0..leads.len()).filter(missing).collect();
        if !missing.is_empty() {
            let rest: Vec<&Lead<'_, '_>> = missing.iter().map(|at| &leads[*at]).collect();
            let loaded = self.call_bulk_getter(bulk, &rest, ctx, evicted);
            for (at, result) in missing.into_iter().zip(loaded) {
                results[at] = Some(result);
            }
        }
        let results: Vec<Result<Loaded>> = results.into_iter().flatten().collect();
        for (watch, result) in watches.into_iter().zip(&results) {
            if let Some(watch) = watch {
                watch.end(result, ctx);
            }
        }
        results
    }

    /// Calls the bulk getter, and puts the values into the store. Returns the result of each key.
    fn call_bulk_getter(
        &self,
        bulk: &dyn BulkGetter,
        leads: &[&Lead<'_, '_>],
        ctx: &Context,
        evicted: &mut EvictedEntries,
    ) -> Vec<Result<Loaded>> {
        let old = |lead: &&Lead<'_, '_>| self.old_value(&lead.key.key, &lead.begun);
        let olds: Vec<_> = leads.iter().map(old).collect();
        let (mut runs, mut sinks) = (Vec::new(), Vec::new());
        for (lead, old) in leads.iter().zip(&olds) {
            let LoadKey { hash, key } = lead.key.key;
            runs.push(GetterRun::new(&self.counters));
            let mut sink = LoadSink::new(&self.store, hash, key, self.max_value_size);
            sink.old = old.as_ref();
            sinks.push(sink);
        }
        let keys: Vec<&str> = leads.iter().map(|lead| lead.key.key.key).collect();
        let errors = fill_sinks(bulk, ctx, &keys, &mut sinks);
        let each = leads.iter().zip(runs).zip(sinks).zip(errors);
        let results = each.map(|(((lead, run), mut sink), error)| {
            error?;
            let (placement, key) = (lead.key.placement(), lead.key.key);
            self.keep_loaded(placement, &key, &lead.begun, run, &mut sink, evicted)
        });
        results.collect()
    }
}

/// Calls the bulk getter. Returns the error of each key that it did not load.
fn fill_sinks(
    bulk: &dyn BulkGetter,
    ctx: &Context,
    keys: &[&str],
    sinks: &mut [LoadSink<'_>],
) -> Vec<Result<()>> {
    // Each key has its own old value, in its sink.
    let without_old = ctx.with_old_value(None);
    let ctx = without_old.as_ref().unwrap_or(ctx);
    let dest = |sink| -> BulkSink<'_> { BulkSink::of_load(sink) };
    let mut dests: Vec<_> = sinks.iter_mut().map(dest).collect();
    let returned = call_getter(|| bulk.load_many(ctx, keys, &mut dests));
    let error = returned.and_then(|returned| returned.map_err(Error::from_getter));
    let error = error.err();
    let result = |dest: BulkSink<'_>| match &error {
        Some(error) if dest.is_empty() => Err(error.clone()),
        _ => dest.finish().map_err(Error::from_getter),
    };
    dests.into_iter().map(result).collect()
}

/// Whether `ctx` has ended before the key with this number. Asked for each key, and finds out at some of them.
fn end_before(n: usize, ctx: &Context) -> Option<Error> {
    let looks = n > 0 && n % KEYS_A_LOOK == 0;
    looks.then(|| ctx.err()).flatten()
}

/// The number of keys after which a call looks at its deadline again.
const KEYS_A_LOOK: usize = 1024;

/// The class of a call for these keys: it is for this process if any of them is.
fn class_of(leads: &[Lead<'_, '_>]) -> LoadClass {
    let is_own = |lead: &Lead<'_, '_>| !lead.key.placement().is_for_another();
    match leads.iter().any(is_own) {
        true => LoadClass::Own,
        false => LoadClass::Fallback,
    }
}

/// Ends the flights of these keys, which get an error.
fn refuse<T>(leads: Vec<Lead<'_, '_>>, error: &Error, each: &mut Each<'_>) -> Vec<T> {
    for lead in leads {
        each(lead.key.at, Err(give_up(lead.leader, error.clone())));
    }
    Vec::new()
}

pub(super) type Flight = Waiter<Result<Loaded>>;

/// The leader of the flight of one key.
pub(in crate::group) struct Lead<'a, 'k> {
    pub(in crate::group) key: ManyKey<'k>,
    pub(in crate::group) leader: Leader<'a, Result<Loaded>>,
    pub(in crate::group) begun: LoadBegin,
}

/// A [`Lead`] on its way to a loader thread.
struct SentLead {
    key: OwnedKey,
    id: LoadId,
    begun: LoadBegin,
}

impl SentLead {
    fn new(key: ManyKey<'_>, id: LoadId, begun: LoadBegin) -> Self {
        SentLead {
            key: OwnedKey::from(&key),
            id,
            begun,
        }
    }

    fn receive<'a, 'k>(&'k self, group: &'a Inner) -> Lead<'a, 'k> {
        let key = self.key.borrow();
        Lead {
            key,
            leader: group.getter_flights.lead(key.key.hash.get(), self.id),
            begun: self.begun,
        }
    }
}

#[cfg(all(test, not(larder_loom)))]
mod tests {
    use super::*;
    use crate::error::ErrorKind;
    use crate::getter::bulk::bulk_fn;
    use crate::group::Group;
    use crate::group::load::populate::Placement;
    use crate::group::many::key::ManyFrom;

    /// A group, and more keys than a call begins before it looks at its deadline again.
    fn tested() -> (Group, Vec<String>) {
        let getter = bulk_fn(|_, _: &[&str], _: &mut [BulkSink<'_>]| panic!("the time is over"));
        let registry = crate::Registry::new();
        let builder = Group::builder("bulk").registry(&registry);
        let group = builder.build_bulk(getter).expect("a new group");
        let keys = (0..4 * KEYS_A_LOOK).map(|n| n.to_string()).collect();
        (group, keys)
    }

    fn many<'k>(group: &Group, keys: &'k [String]) -> Vec<ManyKey<'k>> {
        let from = ManyFrom::Getter(Placement::Main);
        let many = |(at, key): (usize, &'k String)| ManyKey {
            at,
            key: group.inner.key(key),
            from,
        };
        keys.iter().enumerate().map(many).collect()
    }

    #[test]
    fn call_begins_few_loads_after_its_end() {
        let (group, keys) = tested();
        let (ctx, cancel) = Context::background().with_cancel();
        cancel.cancel();
        let mut ended = Vec::new();
        let each =
            &mut |at, result: Result<Loaded>| ended.push((at, result.expect_err("late").kind()));
        let (leads, flights) = group.inner.lead_all(&ctx, &many(&group, &keys), each);
        assert_eq!((leads.len(), flights.len()), (KEYS_A_LOOK, 0));
        let late = (KEYS_A_LOOK..keys.len()).map(|at| (at, ErrorKind::Cancelled));
        assert!(ended.into_iter().eq(late));
        let refused: Vec<()> = refuse(leads, &ErrorKind::Cancelled.into(), &mut |_, _| ());
        assert!(refused.is_empty());
        assert_eq!(group.inner.getter_flights.in_flight(), 0);
    }

    #[test]
    fn call_that_has_ended_sends_few_loads_to_a_loader_thread() {
        let (group, keys) = tested();
        let (ctx, cancel) = Context::background().with_cancel();
        let (leads, _) = group
            .inner
            .lead_all(&ctx, &many(&group, &keys), &mut |_, _| ());
        assert_eq!(leads.len(), keys.len());
        cancel.cancel();
        let mut ended = 0;
        let each = &mut |_, result: Result<Loaded>| {
            assert_eq!(result.expect_err("late").kind(), ErrorKind::Cancelled);
            ended += 1;
        };
        let bulk = group.inner.bulk_getter.as_ref().expect("it has one");
        let job = PoolJob {
            job_for: job_for(&mut None).expect("no client"),
            permit: None,
        };
        let flights = group
            .inner
            .run_bulk_on_pool(&bulk.getter, leads, &ctx, job, each);
        assert_eq!((flights.len(), ended), (0, keys.len()));
        assert_eq!(group.inner.getter_flights.in_flight(), 0);
    }
}
