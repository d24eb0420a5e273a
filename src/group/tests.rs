//! Tests that count the waiters of a flight. The other tests of groups are in `tests/group/`.

use super::*;
use crate::error::{Error, ErrorKind};
pub(super) use crate::sync::eventually;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::Instant;

use crate::clock::Clock;
use crate::error::BoxError;
use crate::pb::GetRequest;
use crate::peers::{PeerPicker, PeerResponse, Pickers, ProtoGetter};
use crate::sink::Sink;
use crate::stats::CacheType;
use crate::sync::Mutex;

const PATIENCE: Duration = Duration::from_secs(20);

/// A group whose getter waits in each run for a signal, which determines how the run ends.
struct Held {
    group: Arc<Inner>,
    runs: Arc<AtomicUsize>,
    ends: Sender<End>,
}

#[derive(Clone, Copy)]
enum End {
    Value,
    NotFound,
    Panic,
}

fn held(capacity: u64, peers: PickerSlot) -> Held {
    let runs = Arc::new(AtomicUsize::new(0));
    let (ends, received) = channel();
    let (received, counted) = (Mutex::new(received), runs.clone());
    let getter = move |_: &Context, key: &str, dest: &mut dyn Sink| -> Result<(), BoxError> {
        counted.fetch_add(1, Ordering::SeqCst);
        let end = received.lock().recv_timeout(PATIENCE)?;
        match end {
            End::Value => Ok(dest.set_str(key)?),
            End::NotFound => Err(Error::not_found("nowhere").into()),
            End::Panic => resume_unwind(Box::new("in the getter")),
        }
    };
    let group = Group::builder("test")
        .max_capacity(capacity)
        .shards(1)
        .clock(Clock::manual())
        .max_key_size(100)
        .max_value_size(100)
        .max_loader_threads(200)
        .make(getter, peers);
    Held {
        group: group.inner,
        runs,
        ends,
    }
}

/// A peer that owns every key and cannot be reached.
fn dead_peer() -> PickerSlot {
    struct Dead;
    impl ProtoGetter for Dead {
        fn get(&self, _: &Context, _: &GetRequest<'_>) -> Result<PeerResponse> {
            Err(ErrorKind::Peer.into())
        }
    }
    impl PeerPicker for Dead {
        fn pick_peer(&self, _: &str) -> Option<Arc<dyn ProtoGetter>> {
            Some(Arc::new(Dead))
        }
    }
    let slot = PickerSlot::default();
    slot.register(Pickers::One(Arc::new(Dead)))
        .expect("the slot is empty");
    slot
}

type Caller = thread::JoinHandle<thread::Result<Result<ByteView>>>;

fn load(group: &Arc<Inner>, ctx: &Context, miss: Option<&MissToken>) -> Result<ByteView> {
    let loaded = group.load(ctx, &group.key("key"), miss);
    loaded.map(|loaded| loaded.view)
}

impl Held {
    /// Starts callers, and returns once all wait for one flight of "key". The first caller leads it.
    fn callers(&self, count: usize, ctx: &Context) -> Vec<Caller> {
        let call = || {
            let (group, ctx) = (self.group.clone(), ctx.clone());
            thread::spawn(move || catch_unwind(AssertUnwindSafe(|| load(&group, &ctx, None))))
        };
        let runs = self.runs();
        let mut callers = vec![call()];
        // The leader's getter runs, so no later caller leads.
        eventually(|| self.runs() > runs);
        callers.extend((1..count).map(|_| call()));
        // If the leader is on a loader thread, its caller waits like the others.
        let waiting = if ctx.has_deadline_or_cancel() {
            count
        } else {
            count - 1
        };
        eventually(|| self.waiters() >= waiting);
        callers
    }

    /// The waiters of the flight that callers join: the peer flight, if there are peers.
    fn waiters(&self) -> usize {
        let flights = match self.group.peers.picker("test") {
            Some(_) => &self.group.peer_flights,
            None => &self.group.getter_flights,
        };
        flights.waiters(self.group.store.hash("key").get(), "key")
    }

    fn runs(&self) -> usize {
        self.runs.load(Ordering::SeqCst)
    }

    fn end(&self, how: End) {
        self.ends.send(how).expect("the getter waits");
    }

    /// Ends the getter's current run in this way, and its next run with a value.
    fn end_then_value(&self, how: End) {
        self.end(how);
        self.end(End::Value);
    }
}

fn contexts() -> [Context; 2] {
    let bounded = Context::background().with_timeout(PATIENCE);
    [Context::background(), bounded]
}

#[test]
fn panic_releases_a_hundred_waiters_within_10_ms() {
    for peers in [PickerSlot::default, dead_peer] {
        for at in 0..contexts().len() {
            // Other programs use this machine, too. So one of ten rounds is enough, and each is compared
            // with a panic and threads that only wake up. Each has its own deadline: they may take long.
            let mut over = (0..10).map(|_| {
                let control = wake_up_of_a_hundred_threads_after_a_panic();
                a_panic_among_a_hundred_callers(peers(), &contexts()[at])
                    .saturating_sub(5 * control)
            });
            assert!(over.any(|over| over <= Duration::from_millis(10)));
        }
    }
}

/// The time in which a panic is caught, and a hundred threads that wait wake up and end.
fn wake_up_of_a_hundred_threads_after_a_panic() -> Duration {
    let barrier = Arc::new(std::sync::Barrier::new(101));
    let threads: Vec<_> = (0..100)
        .map(|_| {
            let barrier = barrier.clone();
            thread::spawn(move || {
                barrier.wait();
            })
        })
        .collect();
    let began = Instant::now();
    let panicked = std::panic::catch_unwind(|| panic!("control"));
    assert!(panicked.is_err());
    barrier.wait();
    threads
        .into_iter()
        .for_each(|thread| thread.join().expect("no panic"));
    began.elapsed()
}

/// The time from the panic until the last caller has returned.
fn a_panic_among_a_hundred_callers(peers: PickerSlot, ctx: &Context) -> Duration {
    let held = held(1 << 20, peers);
    let callers = held.callers(100, ctx);
    let began = Instant::now();
    held.end_then_value(End::Panic);
    let outcomes: Vec<_> = callers
        .into_iter()
        .map(|caller| caller.join().expect("panic is caught"))
        .collect();
    let took = began.elapsed();
    let (mut panics, mut errors) = (0, 0);
    for outcome in outcomes {
        match outcome {
            Err(panic) => {
                assert_eq!(panic.downcast_ref::<&str>(), Some(&"in the getter"));
                panics += 1;
            }
            Ok(result) => {
                let error = result.expect_err("the getter panicked");
                assert_eq!(error.kind(), ErrorKind::GetterPanicked);
                errors += 1;
            }
        }
    }
    // A panic on a loader thread propagates in no caller.
    let own = usize::from(!ctx.has_deadline_or_cancel());
    assert_eq!((panics, errors), (own, 100 - own));
    assert_eq!(held.runs(), 1);
    let next = load(&held.group, ctx, None);
    assert_eq!(next.expect("the next call loads"), "key");
    assert_eq!(held.runs(), 2);
    took
}

#[test]
fn error_is_shared_and_not_cached() {
    for peers in [PickerSlot::default, dead_peer] {
        for ctx in contexts() {
            let held = held(1 << 20, peers());
            let callers = held.callers(20, &ctx);
            held.end_then_value(End::NotFound);
            for caller in callers {
                let result = caller.join().expect("panic is caught").expect("no panic");
                let error = result.expect_err("nowhere");
                assert_eq!(
                    (error.is_not_found(), &*error.to_string()),
                    (true, "nowhere")
                );
            }
            assert_eq!(held.runs(), 1);
            let next = load(&held.group, &ctx, None);
            assert_eq!(next.expect("the next call loads"), "key");
        }
    }
}

#[test]
fn loads_are_shared_without_a_cache() {
    for ctx in contexts() {
        let held = held(0, PickerSlot::default());
        for round in 1..=2 {
            let callers = held.callers(20, &ctx);
            held.end(End::Value);
            for caller in callers {
                let result = caller.join().expect("panic is caught").expect("no panic");
                assert_eq!(result.expect("a value"), "key");
            }
            assert_eq!(held.runs(), round, "one shared load, and no value cached");
        }
    }
}

#[test]
fn recheck_prevents_second_load() {
    // The callers missed the store at the same time, but join the flights one after the other. Each
    // looks again, and finds the value that the one before it loaded.
    let held = held(1 << 20, PickerSlot::default());
    held.end_then_value(End::Value);
    let mut charged = None;
    for _ in 0..10 {
        let value = load(&held.group, &Context::background(), None);
        assert_eq!(value.expect("a value"), "key");
        let main = held.group.store.stats(CacheType::Main);
        assert_eq!(main.items, 1);
        assert_eq!(main.bytes, *charged.get_or_insert(main.bytes));
    }
    assert_eq!(held.runs(), 1);
    let loads = held.group.counters.sum(|loads| &loads.loads_deduped);
    assert_eq!(loads, 1);
}

/// Like [`dead_peer`], but it answers with the key, and counts the requests.
fn counting_peer() -> (PickerSlot, Arc<AtomicUsize>) {
    #[derive(Clone)]
    struct Counting(Arc<AtomicUsize>);
    impl ProtoGetter for Counting {
        fn get(&self, _: &Context, request: &GetRequest<'_>) -> Result<PeerResponse> {
            self.0.fetch_add(1, Ordering::SeqCst);
            Ok(PeerResponse::new(&*request.key))
        }
    }
    impl PeerPicker for Counting {
        fn pick_peer(&self, _: &str) -> Option<Arc<dyn ProtoGetter>> {
            Some(Arc::new(self.clone()))
        }
    }
    let peer = Counting(Arc::default());
    let slot = PickerSlot::default();
    slot.register(Pickers::One(Arc::new(peer.clone())))
        .expect("the slot is empty");
    (slot, peer.0)
}

#[test]
fn recheck_after_a_miss_prevents_second_request_to_a_peer() {
    let (peers, requests) = counting_peer();
    let group = held(1 << 20, peers).group;
    let key = group.key("key");
    let get = |miss| load(&group, &Context::background(), miss);
    let miss = || {
        let (hash, key) = (key.hash, key.key);
        let found = group.store.get(hash, key, || group.epochs(hash), || ());
        let Err(miss) = found else {
            panic!("it is cached");
        };
        miss
    };
    // Two callers miss the store at the same time. The flight of one has ended when the other joins.
    let misses = [miss(), miss()];
    for miss in &misses {
        assert_eq!(get(Some(miss)).expect("a value"), "key");
        assert_eq!(requests.load(Ordering::SeqCst), 1);
    }
}

#[test]
fn waiters_load_once_more_after_leader_fails_past_its_deadline() {
    let held = held(1 << 20, PickerSlot::default());
    // Long enough for all the others to join.
    let short = Context::background().with_timeout(Duration::from_secs(1));
    let leader = held.callers(1, &short);
    let followers: Vec<_> = (0..50)
        .map(|n| {
            let (group, ctx) = (held.group.clone(), contexts()[n % 2].clone());
            thread::spawn(move || load(&group, &ctx, None))
        })
        .collect();
    for caller in leader {
        let result = caller.join().expect("panic is caught").expect("no panic");
        let error = result.expect_err("the deadline has passed");
        assert_eq!(error.kind(), ErrorKind::DeadlineExceeded);
    }
    eventually(|| held.waiters() >= 50);
    // The getter fails after its caller's deadline: the waiters load again.
    held.end_then_value(End::NotFound);
    for follower in followers {
        let value = follower.join().expect("no panic");
        assert_eq!(value.expect("a value"), "key");
    }
    assert_eq!(held.runs(), 2);
}

#[test]
fn no_flight_is_left_behind() {
    for peers in [PickerSlot::default, dead_peer] {
        let held = held(1 << 20, peers());
        for (how, ctx) in [
            (End::Value, &contexts()[0]),
            (End::Panic, &contexts()[1]),
            (End::NotFound, &contexts()[1]),
        ] {
            held.group.sweep(held.group.take_all());
            let callers = held.callers(5, ctx);
            held.end(how);
            callers.into_iter().for_each(|caller| drop(caller.join()));
        }
        assert_eq!(held.group.getter_flights.in_flight(), 0);
        assert_eq!(held.group.peer_flights.in_flight(), 0);
    }
}

/// Until the removal ends, a peer's request can join a load that began before it.
#[test]
fn answers_have_no_stamp_while_a_removal_is_applied() {
    let group = held(1 << 20, PickerSlot::default()).group;
    let (hash, removals) = (group.store.hash("key"), &group.removals);
    group.remove_here("key", removals.admit(Some(7 << 32 | 1)));
    let has_stamp = || removals.mark("key").expect("a removal").to_bits() as u32 != 0;
    assert!(has_stamp());
    thread::scope(|scope| {
        let at_miss = || {
            // The removal waits for the lock of the stripe, under which this closure runs.
            scope.spawn(|| group.remove_here("key", removals.admit(Some(7 << 32 | 2))));
            eventually(|| !has_stamp());
        };
        assert!(group.store.get(hash, "key", at_miss, || ()).is_err());
    });
    assert!(has_stamp());
}

/// A get can find the value due for a refresh just before another refresh ends.
#[test]
fn refresh_of_a_value_that_is_fresh_by_now_loads_nothing() {
    let clock = Clock::manual();
    let group = Group::builder("fresh")
        .clock(clock.clone())
        .time_to_live(Duration::from_secs(10))
        .time_to_live_jitter(0.0)
        .refresh_at(0.5)
        .make(
            crate::getter::value_fn(|_, key| Ok::<_, Error>(key.to_owned())),
            PickerSlot::default(),
        );
    group.get("key").expect("a value");
    let refreshes = || {
        group.inner.refresh(&group.inner.key("key"));
        group.stats().refreshes
    };
    assert_eq!(refreshes(), 0);
    clock.advance(Duration::from_secs(5));
    assert_eq!(refreshes(), 1);
}

/// A get can find the value too old just before another load ends.
#[test]
fn load_of_a_newer_value_uses_that_of_another_load() {
    let group = Group::builder("newer").clock(Clock::manual()).make(
        crate::getter::value_fn(|_, key| Ok::<_, Error>(key.to_owned())),
        PickerSlot::default(),
    );
    group.get("key").expect("a value");
    let (inner, ctx) = (&group.inner, Context::background());
    let load = |fits| inner.load_newer(&ctx, &inner.key("key"), |_| fits);
    load(true).expect("the cached value");
    assert_eq!(group.stats().local_loads, 1);
    load(false).expect("a newer value");
    let stats = group.stats();
    assert_eq!((stats.local_loads, stats.loads_deduped), (2, 2));
}

#[cfg(feature = "http")]
#[test]
fn loads_of_a_server_have_the_longer_deadline() {
    let left = Arc::new(Mutex::new(Vec::new()));
    let noted = left.clone();
    let load = crate::getter::bulk::bulk_fn(move |ctx, keys: &[&str], sinks| {
        noted.lock().push((keys.len(), ctx.remaining()));
        keys.iter()
            .zip(sinks)
            .try_for_each(|(key, sink)| sink.set_str(key))?;
        Ok(())
    });
    let registry = crate::Registry::new();
    let group = Group::builder("longer").registry(&registry);
    let group = group.build_bulk(load).expect("a new group");
    let (now, hour) = (Instant::now(), Duration::from_secs(3600));
    let ctx = Context::background().with_deadlines(now + PATIENCE, now + hour);
    assert!(ctx.remaining() <= Some(PATIENCE));
    group.get_with(&ctx, "key").expect("a value");
    let values = group.get_many(&ctx, &["a", "b"]);
    assert!(values.iter().all(Result::is_ok));
    let left = left.lock();
    assert_eq!((left[0].0, left[1].0), (1, 2));
    assert!(
        left.iter().all(|(_, time)| *time > Some(hour / 2)),
        "{left:?}"
    );
}

/// A removal advances the generation of its key, and forgets the flight then. A load can begin between the two.
#[test]
fn value_of_a_forgotten_load_does_not_replace_that_of_a_newer_one() {
    let (release, released) = channel::<()>();
    let (released, runs) = (Mutex::new(released), Arc::new(AtomicUsize::new(0)));
    let counted = runs.clone();
    let getter = move |_: &Context, _: &str, dest: &mut dyn Sink| -> Result<(), BoxError> {
        let run = counted.fetch_add(1, Ordering::SeqCst);
        if run == 0 {
            released.lock().recv_timeout(PATIENCE)?;
        }
        Ok(dest.set_str(&run.to_string())?)
    };
    let builder = Group::builder("test").clock(Clock::manual());
    let group = builder.make(getter, PickerSlot::default());
    let older = {
        let group = group.clone();
        thread::spawn(move || group.get("key"))
    };
    eventually(|| runs.load(Ordering::SeqCst) == 1);
    let hash = group.inner.key("key").hash;
    group.inner.getter_flights.forget_hashed(hash.get(), "key");
    assert_eq!(group.get("key").expect("a value"), "1");
    release.send(()).expect("it runs");
    assert_eq!(older.join().expect("no panic").expect("a value"), "0");
    assert_eq!(group.get("key").expect("a value"), "1");
}

#[test]
fn set_of_a_peer_is_applied_although_its_listener_panics() {
    let listener = |_: &str, _, _| resume_unwind(Box::new("in the listener"));
    let getter = |_: &Context, key: &str, dest: &mut dyn Sink| -> Result<(), BoxError> {
        Ok(dest.set_str(key)?)
    };
    let builder = Group::builder("test").eviction_listener(listener);
    let group = builder.make(getter, PickerSlot::default());
    group.get("key").expect("a value");
    let request = crate::pb::SetRequest {
        group: "test".into(),
        key: "key".into(),
        value: Some(b"new"[..].into()),
        removal_id: Some(7 << 32 | 1),
        ..Default::default()
    };
    assert!(catch_unwind(AssertUnwindSafe(|| group.serve_set(&request))).is_err());
    assert_eq!(group.peek("key"), Some("new".into()));
    let removals = &group.inner.removals;
    let known = removals.known().expect("few removals");
    assert!(removals.has_applied(&known), "none is under way");
}

/// A picker that panics.
fn panicking_picker() -> PickerSlot {
    struct Panicking;
    impl PeerPicker for Panicking {
        fn pick_peer(&self, _: &str) -> Option<Arc<dyn ProtoGetter>> {
            resume_unwind(Box::new("in the picker"))
        }
    }
    let slot = PickerSlot::default();
    let registered = slot.register(Pickers::One(Arc::new(Panicking)));
    registered.expect("the slot is empty");
    slot
}

#[test]
fn set_whose_picker_panics_is_not_under_way_any_more() {
    let getter = |_: &Context, _: &str, _: &mut dyn Sink| -> Result<(), BoxError> { Ok(()) };
    let group = Group::builder("test").make(getter, panicking_picker());
    let request = crate::pb::SetRequest {
        group: "test".into(),
        key: "key".into(),
        removal_id: Some(7 << 32 | 1),
        ..Default::default()
    };
    let options = SetOptions::new();
    let set = || group.set(&Context::background(), "key", "new", options);
    assert!(catch_unwind(AssertUnwindSafe(set)).is_err());
    assert!(catch_unwind(AssertUnwindSafe(|| group.serve_set(&request))).is_err());
    let removals = &group.inner.removals;
    let known = removals.known().expect("few removals");
    assert!(removals.has_applied(&known), "none is under way");
}

#[test]
fn listener_that_panics_at_a_miss_keeps_no_answer_from_a_peer() {
    let clock = Clock::manual();
    let getter = |_: &Context, key: &str, dest: &mut dyn Sink| -> Result<(), BoxError> {
        match key.starts_with("none") {
            true => Err(Error::not_found("nowhere").into()),
            false => Ok(dest.set_str(key)?),
        }
    };
    let builder = Group::builder("test").clock(clock.clone());
    let builder = builder.time_to_live(Duration::from_secs(1));
    let builder = builder.eviction_listener(|_, _, _| resume_unwind(Box::new("in the listener")));
    let group = builder.make(getter, PickerSlot::default());
    let ctx = Context::background();
    for many in [false, true] {
        group.get("key").expect("a value");
        clock.advance(Duration::from_secs(2));
        for n in 0..3000 {
            let key = format!("none {n}");
            let mut answers = match many {
                false => vec![group.serve_peer(&ctx, &key)],
                true => group.serve_peer_many(&ctx, &[&key]),
            };
            let error = answers.remove(0).expect_err("there is no value");
            assert_eq!(error.kind(), ErrorKind::NotFound);
        }
        assert_eq!(group.entry_count(), 0, "the entry was removed");
    }
}
