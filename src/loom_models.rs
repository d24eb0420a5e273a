//! Models of the protocols between threads, run in every order by loom.
//!
//! `RUSTFLAGS="--cfg larder_loom" cargo test --release --lib --no-default-features loom`
//!
//! A deadlock, a lost wake-up or a broken assertion in any order fails the test.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize as Plain, Ordering};

use crate::byteview::ByteView;
use crate::clock::Clock;
use crate::context::Context;
use crate::error::{ErrorKind, Result};
use crate::getter::{Getter, getter_fn};
use crate::group::Group;
use crate::load::{HotAdmission, LoaderOptions};
use crate::peers::{PeerPicker, PeerResponse, PickerSlot, ProtoGetter};
use crate::singleflight::{self, Joined, LeaderPanicked, Waited};
use crate::store::{Eviction, StoreOptions};
use crate::sync::Arc;
use crate::sync::atomic::AtomicUsize;
use crate::sync::thread;

/// Runs the model in every order with at most `LOOM_MAX_PREEMPTIONS` switches away from a thread
/// that could go on; 3 unless the environment says otherwise.
fn model(check: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound.get_or_insert(3);
    builder.check(check);
}

type Flights = Arc<singleflight::Group<usize>>;

fn flights() -> Flights {
    Arc::new(singleflight::Group::new())
}

/// How often work was done; each work returns its number.
#[derive(Clone, Default)]
struct Works(Arc<Plain>);

impl Works {
    fn work(&self) -> usize {
        self.0.fetch_add(1, Ordering::SeqCst)
    }

    fn done(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

fn callers_share_or_take_turns(threads: usize) {
    model(move || {
        let (flights, works) = (flights(), Works::default());
        let call = |flights: &Flights, works: &Works| {
            let (flights, works) = (flights.clone(), works.clone());
            move || flights.do_once("key", || works.work())
        };
        let others: Vec<_> = (1..threads)
            .map(|_| thread::spawn(call(&flights, &works)))
            .collect();
        let mut numbers = vec![call(&flights, &works)()];
        numbers.extend(others.into_iter().map(|other| other.join().unwrap()));
        let numbers: Vec<usize> = numbers.into_iter().map(|n| n.expect("no panic")).collect();
        // Every work had its caller, and no caller got what was never made.
        for number in 0..works.done() {
            assert!(numbers.contains(&number));
        }
        assert!(numbers.iter().all(|&number| number < works.done()));
        assert_eq!(flights.in_flight(), 0);
    });
}

#[test]
fn two_callers_share_or_take_turns() {
    callers_share_or_take_turns(2);
}

#[test]
fn three_callers_share_or_take_turns() {
    callers_share_or_take_turns(3);
}

#[test]
fn a_panic_releases_those_who_wait() {
    model(|| {
        let flights = flights();
        let followers: Vec<_> = (1..3)
            .map(|n| {
                let flights = flights.clone();
                thread::spawn(move || flights.do_once("key", || n))
            })
            .collect();
        let led = catch_unwind(AssertUnwindSafe(|| {
            flights.do_once("key", || resume_unwind(Box::new("in the work")))
        }));
        if let Ok(shared) = led {
            assert!(matches!(shared, Ok(1 | 2)), "it followed: {shared:?}");
        }
        for follower in followers {
            let got = follower.join().unwrap();
            assert!(matches!(got, Ok(1 | 2) | Err(LeaderPanicked)), "{got:?}");
        }
        assert_eq!(flights.do_once("key", || 3), Ok(3), "the key is usable");
    });
}

/// Leads or follows until there is a value, as `Loader::fly` does.
fn until_landed(flights: &Flights, value: usize) -> usize {
    let mut abandoned = 0;
    loop {
        match flights.join(0, "key") {
            Joined::Leader(lead) => {
                lead.finish(value);
                return value;
            }
            Joined::Follower(ticket) => match ticket.wait(&Context::background()) {
                Waited::Landed(value) => return value,
                // One flight is abandoned in these models; whoever is told so must not meet it
                // again.
                Waited::Abandoned => abandoned += 1,
                Waited::Left(error) => panic!("nothing ends this context: {error}"),
            },
        }
        assert!(abandoned <= 1, "the same flight was abandoned twice");
    }
}

fn an_abandoned_flight_is_led_anew(followers: usize) {
    model(move || {
        let flights = flights();
        let Joined::Leader(lead) = flights.join(0, "key") else {
            panic!("nobody else is there yet");
        };
        let followers: Vec<_> = (1..=followers)
            .map(|n| {
                let flights = flights.clone();
                thread::spawn(move || until_landed(&flights, n))
            })
            .collect();
        drop(lead);
        for follower in followers {
            assert!(follower.join().unwrap() > 0);
        }
        assert_eq!(flights.in_flight(), 0);
    });
}

#[test]
fn an_abandoned_flight_is_led_anew_by_its_follower() {
    an_abandoned_flight_is_led_anew(1);
}

#[test]
fn an_abandoned_flight_is_led_anew_by_one_of_two() {
    an_abandoned_flight_is_led_anew(2);
}

#[test]
fn a_call_after_forget_sees_no_older_work() {
    model(|| {
        let (flights, source) = (flights(), Arc::new(AtomicUsize::new(0)));
        let early: Vec<_> = (0..2)
            .map(|_| {
                let (flights, source) = (flights.clone(), source.clone());
                thread::spawn(move || flights.do_once("key", || source.load(Ordering::SeqCst)))
            })
            .collect();
        source.store(1, Ordering::SeqCst);
        flights.forget("key");
        let late = flights.do_once("key", || source.load(Ordering::SeqCst));
        assert_eq!(late, Ok(1));
        for early in early {
            assert!(early.join().unwrap().is_ok());
        }
        assert_eq!(flights.in_flight(), 0);
    });
}

#[test]
fn a_cancellation_is_never_slept_through() {
    model(|| {
        let flights = flights();
        let Joined::Leader(lead) = flights.join(0, "key") else {
            panic!("nobody else is there yet");
        };
        let (ctx, canceller) = Context::background().with_cancel();
        let ticket = lead.ticket();
        let waiting = thread::spawn(move || ticket.wait(&ctx));
        canceller.cancel();
        // The leader lands only after the waiter has left.
        let waited = waiting.join().unwrap();
        let Waited::Left(error) = waited else {
            panic!("{waited:?}");
        };
        assert_eq!(error.kind(), ErrorKind::Cancelled);
        lead.finish(1);
    });
}

/// A small group in no registry.
fn group(peers: PickerSlot, getter: impl Getter + 'static) -> Group {
    let options = LoaderOptions {
        name: "model".into(),
        getter: Box::new(getter),
        store: StoreOptions {
            capacity: 1 << 16,
            eviction: Eviction::S3Fifo,
            hot_fraction: 0.125,
            shards: Some(1),
            clock: Clock::manual(),
        },
        time_to_live: None,
        hot_admission: HotAdmission::Always,
        max_key_size: 100,
        max_value_size: 100,
        max_loader_threads: 1,
        eviction_listener: None,
    };
    Group::new(options, peers)
}

/// Every key is this peer's, which answers with what the source says.
#[derive(Clone)]
struct Peer(Arc<AtomicUsize>);

impl ProtoGetter for Peer {
    fn get(&self, _: &Context, _: &crate::pb::GetRequest<'_>) -> Result<PeerResponse> {
        Ok(PeerResponse::new(said(&self.0)))
    }
}

impl PeerPicker for Peer {
    fn pick_peer(&self, _: &str) -> Option<Arc<dyn ProtoGetter>> {
        Some(Arc::new(self.clone()))
    }
}

fn said(source: &AtomicUsize) -> ByteView {
    source.load(Ordering::SeqCst).to_string().into()
}

/// A load against a removal: the source changes, the key is removed, and what is asked for then is
/// what the source says now, for ever.
fn removed_is_removed(
    slot: fn(&Arc<AtomicUsize>) -> PickerSlot,
    load: fn(&Group) -> Result<ByteView>,
    remove: fn(&Group),
) {
    model(move || {
        let source = Arc::new(AtomicUsize::new(0));
        let theirs = source.clone();
        let group = group(
            slot(&source),
            getter_fn(move |_, _, dest| Ok(dest.set_view(&said(&theirs))?)),
        );
        let loading = {
            let group = group.clone();
            thread::spawn(move || load(&group))
        };
        source.store(1, Ordering::SeqCst);
        remove(&group);
        assert_eq!(group.get("key").expect("a value"), "1");
        let early = loading.join().unwrap().expect("a value");
        assert!(early == "0" || early == "1");
        assert_eq!(group.peek("key"), Some("1".into()), "not put back");
    });
}

fn no_peers(_: &Arc<AtomicUsize>) -> PickerSlot {
    PickerSlot::default()
}

fn a_peer(source: &Arc<AtomicUsize>) -> PickerSlot {
    let (slot, peer) = (PickerSlot::default(), Arc::new(Peer(source.clone())));
    slot.register(Arc::new(move |_| peer.clone()))
        .expect("the slot is empty");
    slot
}

fn get(group: &Group) -> Result<ByteView> {
    group.get("key")
}

fn serve(group: &Group) -> Result<ByteView> {
    let answer = group.serve_peer(&Context::background(), "key");
    answer.map(|answer| answer.value)
}

#[test]
fn a_load_never_outlives_a_removal() {
    removed_is_removed(no_peers, get, |group| group.invalidate("key"));
}

#[test]
fn a_load_never_outlives_a_clear() {
    removed_is_removed(no_peers, get, Group::clear);
}

#[test]
fn a_peers_answer_never_outlives_a_removal() {
    removed_is_removed(a_peer, get, |group| group.invalidate("key"));
}

#[test]
fn a_load_for_a_peer_never_outlives_a_removal() {
    removed_is_removed(a_peer, serve, |group| group.invalidate("key"));
}

#[test]
fn two_gets_of_a_cold_key_load_once() {
    model(|| {
        let works = Works::default();
        let counted = works.clone();
        let group = group(
            PickerSlot::default(),
            getter_fn(move |_, _, dest| Ok(dest.set_str(&counted.work().to_string())?)),
        );
        let other = {
            let group = group.clone();
            thread::spawn(move || group.get("key"))
        };
        assert_eq!(group.get("key").expect("a value"), "0");
        assert_eq!(other.join().unwrap().expect("a value"), "0");
        assert_eq!(
            works.done(),
            1,
            "the second look finds what was just loaded"
        );
        assert_eq!(group.entry_count(), 1);
    });
}

#[test]
fn getters_that_ask_for_each_others_keys_end() {
    model(|| {
        let own: Arc<OnceLock<Group>> = Arc::default();
        let itself = own.clone();
        let group = group(
            PickerSlot::default(),
            getter_fn(move |_, key, dest| {
                let group = itself.get().expect("the group is made");
                dest.set_view(&group.get(if key == "a" { "b" } else { "a" })?)?;
                Ok(())
            }),
        );
        own.set(group.clone()).expect("once");
        let other = {
            let group = group.clone();
            thread::spawn(move || group.get("a"))
        };
        for ended in [group.get("b"), other.join().unwrap()] {
            let error = ended.expect_err("a circle has no value");
            assert_eq!(error.kind(), ErrorKind::RecursiveLoad);
        }
    });
}
