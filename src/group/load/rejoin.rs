//! Waits for flights, and bounds how long a call joins again after flights that were refused or abandoned.

use std::error::Error as _;
use std::time::{Duration, Instant};

use crate::context::Context;
use crate::error::{Error, ErrorKind, Result};
use crate::group::Loaded;
use crate::singleflight::{Waited, Waiter};
use crate::threads::nesting::{self, WaitFor};
use crate::threads::recursion;

/// How long one call waits for the flights of its keys, and joins again after them.
///
/// The leader of a refused flight got no permit or no thread. Its waiters may have time left, so they join
/// again. A caller without a deadline does so for `max_load_wait` only. Otherwise the waiters of a key would
/// lead one after the other, and each would wait for a permit as long as the first.
pub(in crate::group) struct Rejoins<'c> {
    pub(super) ctx: &'c Context,
    max_load_wait: Duration,
    /// Whether a flight was abandoned after `max_load_wait`. The call then joins once more, and may load by itself.
    /// Then it gives up: there may always be another leader with little time.
    is_last: bool,
}

impl<'c> Rejoins<'c> {
    pub(in crate::group) fn new(ctx: &'c Context, max_load_wait: Duration) -> Self {
        nesting::begin_waits();
        Rejoins {
            ctx,
            max_load_wait,
            is_last: false,
        }
    }

    /// Waits for a flight until it or the context has ended. `None` if the flight has ended and the caller
    /// has to join again.
    pub(in crate::group) fn wait(
        &mut self,
        waiter: &Waiter<Result<Loaded>>,
    ) -> Option<Result<Loaded>> {
        let ctx = self.ctx;
        let began = ctx.deadline().is_none().then(Instant::now);
        let over = wait_by(waiter, || waiter.wait(ctx));
        // The leader may have failed only because it had a deadline, and so needed a loader thread, of
        // which none was idle. A caller that cannot leave early runs the getter on its own thread.
        let is_for_all = |result: &Result<Loaded>| {
            ctx.has_deadline_or_cancel() || !result.as_ref().is_err_and(is_after_peers)
        };
        let over = match over {
            Ok(result) if is_for_all(&result) => return Some(result),
            over => over,
        };
        if let Some(began) = began {
            nesting::count_wait(WaitFor::Permit, began.elapsed());
        }
        if !self.is_over() {
            return None;
        }
        match over {
            Err(JoinAgain::Abandoned) if !std::mem::replace(&mut self.is_last, true) => None,
            Err(_) => Some(Err(ErrorKind::Overloaded.into())),
            Ok(result) => Some(result),
        }
    }

    fn is_over(&self) -> bool {
        let left = nesting::wait_left(WaitFor::Permit, self.max_load_wait);
        self.ctx.deadline().is_none() && left.is_zero()
    }
}

/// Marks an `Overloaded` error as that of a load for which no peer answered, and which then got no permit or
/// no thread here. Other errors stay as they are.
pub(super) fn after_peers(error: Error) -> Error {
    match error.kind() {
        ErrorKind::Overloaded => {
            Error::with_source(ErrorKind::Overloaded, "no peer answered", error)
        }
        _ => error,
    }
}

/// Whether [`after_peers`] made this error. Any other `Overloaded` is the answer of an overloaded owner, which
/// is for all waiters.
fn is_after_peers(error: &Error) -> bool {
    let source = error.source().and_then(|source| source.downcast_ref());
    let is_overloaded = |error: &Error| error.kind() == ErrorKind::Overloaded;
    is_overloaded(error) && source.is_some_and(is_overloaded)
}

/// Why the waiters of a flight that is over join again.
pub(super) enum JoinAgain {
    /// The leader ran out of time.
    Abandoned,
    /// The leader got no permit, or no thread.
    Refused,
}

/// Waits for a flight by `wait`.
///
/// # Errors
///
/// If the flight is over and the caller has to join again.
pub(super) fn wait_by(
    waiter: &Waiter<Result<Loaded>>,
    wait: impl FnOnce() -> Waited<Result<Loaded>>,
) -> Result<Result<Loaded>, JoinAgain> {
    let _dependency = match recursion::wait_for(waiter.id()) {
        Ok(dependency) => dependency,
        Err(cycle) => return Ok(Err(cycle)),
    };
    match wait() {
        Waited::Finished(result) => Ok(result),
        Waited::Panicked => Ok(Err(ErrorKind::GetterPanicked.into())),
        Waited::Left(ended) => Ok(Err(ended)),
        Waited::Abandoned => Err(JoinAgain::Abandoned),
        Waited::Refused => Err(JoinAgain::Refused),
    }
}

#[cfg(all(test, not(larder_loom)))]
mod tests {
    use std::thread;

    use super::*;
    use crate::getter::bulk::{BulkSink, bulk_fn};
    use crate::getter::getter_fn;
    use crate::group::tests::eventually;
    use crate::group::{Flights, Group};
    use crate::pb::GetRequest;
    use crate::peers::{PeerPicker, PeerResponse, PickerSlot, Pickers, ProtoGetter};
    use crate::sink::Sink;
    use crate::sync::atomic::{AtomicUsize, Ordering};
    use crate::sync::{Arc, Mutex};
    use crate::threads::load_permits::LoadClass;

    /// The `max_load_wait` of the group.
    const LOAD_WAIT: Duration = Duration::from_millis(30);

    /// A time after which no caller joins again.
    const LATER: Duration = Duration::from_millis(300);

    const CALLERS: usize = 16;

    /// How many callers may wait or ask once more, because on a slow machine they join too late.
    const SLOW: usize = CALLERS / 4;

    fn until_waiting(flights: &Flights, group: &Group, callers: usize) {
        let hash = group.inner.store.hash("key").get();
        eventually(|| flights.waiters(hash, "key") >= callers);
    }

    /// A peer that owns every key and answers with an error. Its first answer comes when all other callers
    /// wait for it.
    struct Failing {
        group: Mutex<Option<Group>>,
        asked: AtomicUsize,
        with: ErrorKind,
        /// How much later the first answer comes.
        after: Duration,
    }

    impl ProtoGetter for Failing {
        fn get(&self, _: &Context, _: &GetRequest<'_>) -> Result<PeerResponse> {
            if self.asked.fetch_add(1, Ordering::Relaxed) == 0 {
                let group = self.group.lock().clone().expect("it is set");
                until_waiting(&group.inner.peer_flights, &group, CALLERS - 1);
                thread::sleep(self.after);
            }
            Err(self.with.into())
        }

        /// With this, the first caller leads on its own thread, so it is not counted among the waiters.
        fn honors_deadline(&self) -> bool {
            true
        }
    }

    struct AllKeysAt(Arc<Failing>);

    impl PeerPicker for AllKeysAt {
        fn pick_peer(&self, _: &str) -> Option<Arc<dyn ProtoGetter>> {
            Some(self.0.clone())
        }
    }

    fn kind<T>(result: Result<T>) -> Option<ErrorKind> {
        result.err().map(|error| error.kind())
    }

    /// Makes a group whose owner fails with the error `with`, and runs `call` on [`CALLERS`] threads at the same
    /// time, while the result of `meanwhile` is held. All of them must end as overloaded. Returns the group and
    /// the number of requests to the owner.
    fn ask_failing<T>(
        with: ErrorKind,
        (after, load_wait): (Duration, Duration),
        call: impl Fn(&Group) -> Option<ErrorKind> + Sync,
        meanwhile: impl FnOnce(&Group) -> T,
    ) -> (Group, usize) {
        let owner = Arc::new(Failing {
            group: Mutex::new(None),
            asked: AtomicUsize::new(0),
            with,
            after,
        });
        let peers = PickerSlot::default();
        let picker = Pickers::One(Arc::new(AllKeysAt(owner.clone())));
        peers.register(picker).expect("the slot is empty");
        let getter = getter_fn(|_: &Context, key, dest| Ok(dest.set_str(key)?));
        let builder = Group::builder("refused").max_concurrent_loads(1);
        let group = builder.max_load_wait(load_wait).make(getter, peers);
        *owner.group.lock() = Some(group.clone());
        let held = meanwhile(&group);
        thread::scope(|scope| {
            let call = |_| scope.spawn(|| call(&group));
            let calls: Vec<_> = (0..CALLERS).map(call).collect();
            for call in calls {
                assert_eq!(call.join().expect("no panic"), Some(ErrorKind::Overloaded));
            }
        });
        drop(held);
        *owner.group.lock() = None;
        (group, owner.asked.load(Ordering::Relaxed))
    }

    #[test]
    fn callers_of_a_dead_owner_wait_together_for_a_permit() {
        let take_permit = |group: &Group| {
            let permits = group.inner.permits.as_ref().expect("a limit");
            permits
                .try_acquire(LoadClass::Fallback)
                .expect("it is free")
        };
        let call = |group: &Group| kind(group.get("key"));
        let times = (LATER, LOAD_WAIT);
        let (group, asked) = ask_failing(ErrorKind::Peer, times, call, take_permit);
        assert!(asked <= 1 + SLOW, "{asked} exchanges with a dead owner");
        assert_eq!(group.get("key").expect("a value"), "key");
    }

    /// They do not ask again, although they have time left and need no loader thread.
    #[test]
    fn callers_of_an_overloaded_owner_share_its_answer() {
        let times = (Duration::ZERO, Duration::from_secs(20));
        let calls: [fn(&Group) -> Option<ErrorKind>; 2] = [
            |group| kind(group.get("key")),
            |group| {
                let ctx = Context::background().with_timeout(Duration::from_secs(20));
                kind(group.get_with(&ctx, "key"))
            },
        ];
        for call in calls {
            let (_, asked) = ask_failing(ErrorKind::Overloaded, times, call, |_| ());
            assert_eq!(asked, 1);
        }
    }

    /// The first caller waits for a permit, and others wait for its flight until their time is over. Then the
    /// first one is cancelled. The others must give up, and not wait for the permit one after the other.
    fn waits_after_the_first_left(
        group: &Group,
        call: impl Fn(&Context) -> Option<ErrorKind> + Sync,
    ) {
        let permits = group.inner.permits.as_ref().expect("a limit");
        let taken = permits.try_acquire(LoadClass::Own).expect("it is free");
        let ctx = Context::background().with_timeout(Duration::from_secs(20));
        let (ctx, cancel) = ctx.with_cancel();
        let (call, ctx) = (&call, &ctx);
        thread::scope(|scope| {
            let first = scope.spawn(move || call(ctx));
            eventually(|| permits.usage().1 > 0);
            let other = |_| scope.spawn(move || call(&Context::background()));
            let others: Vec<_> = (0..CALLERS).map(other).collect();
            until_waiting(&group.inner.getter_flights, group, CALLERS);
            thread::sleep(LATER);
            cancel.cancel();
            assert_eq!(first.join().expect("no panic"), Some(ErrorKind::Cancelled));
            for other in others {
                assert_eq!(other.join().expect("no panic"), Some(ErrorKind::Overloaded));
            }
        });
        assert_eq!(permits.waits(), 1, "the others had waited for the first");
        drop(taken);
        assert_eq!(call(&Context::background()), None);
    }

    #[test]
    fn callers_that_waited_long_enough_do_not_wait_one_after_the_other() {
        let getter = getter_fn(|_: &Context, key, dest| Ok(dest.set_str(key)?));
        let builder = Group::builder("refused").max_concurrent_loads(1);
        let builder = builder.max_load_wait(LOAD_WAIT);
        let group = builder.make(getter, PickerSlot::default());
        waits_after_the_first_left(&group, |ctx| kind(group.get_with(ctx, "key")));
    }

    #[test]
    fn callers_of_several_keys_do_not_wait_one_after_the_other() {
        let getter = bulk_fn(|_, keys: &[&str], sinks: &mut [BulkSink<'_>]| {
            for (key, sink) in keys.iter().zip(sinks) {
                sink.set_str(key)?;
            }
            Ok(())
        });
        let registry = crate::Registry::new();
        let builder = Group::builder("refused").registry(&registry);
        let builder = builder.max_concurrent_loads(1).max_load_wait(LOAD_WAIT);
        let group = builder.build_bulk(getter).expect("a new group");
        waits_after_the_first_left(&group, |ctx| {
            let mut results = group.get_many(ctx, &["key", "other"]).into_iter();
            results.find_map(kind)
        });
    }
}
