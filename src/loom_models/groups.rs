//! Whole groups: loads concurrent with removals, with each other, and with loads of other nodes.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::OnceLock;
use std::sync::atomic::Ordering;

use super::Works;
use crate::byteview::ByteView;
use crate::clock::Clock;
use crate::context::Context;
use crate::error::{ErrorKind, Result};
use crate::getter::{Getter, getter_fn};
use crate::group::{Group, WeakGroup};
use crate::pb::{GetRequest, RemoveKeysRequest};
use crate::peers::{PeerPicker, PeerResponse, PickerSlot, Pickers, ProtoGetter};
use crate::sync::Arc;
use crate::sync::atomic::AtomicUsize;
use crate::sync::thread;

/// Explores a model on a thread with a stack of 64 Ki words. Loom's own has 4 Ki words, which are too few
/// to make a group.
pub(crate) fn model(explored: impl Fn() + Send + Sync + 'static) {
    run(&loom::model::Builder::new(), explored);
}

/// Like [`model`], for more threads than can be explored in all orders: those with two preemptions, for
/// half a minute at most.
pub(crate) fn bounded_model(explored: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(2);
    builder.max_duration = Some(std::time::Duration::from_secs(30));
    run(&builder, explored);
}

pub(super) fn run(builder: &loom::model::Builder, explored: impl Fn() + Send + Sync + 'static) {
    let explored = std::sync::Arc::new(explored);
    builder.check(move || {
        let explored = explored.clone();
        let thread = loom::thread::Builder::new().stack_size(1 << 16);
        let ended = thread.spawn(move || explored()).map(|thread| thread.join());
        assert!(ended.is_ok_and(|ended| ended.is_ok()), "the model panicked");
    });
}

/// A small group in no registry.
pub(super) fn group(peers: PickerSlot, getter: impl Getter + 'static) -> Group {
    Group::builder("model")
        .max_capacity(1 << 16)
        .shards(1)
        .clock(Clock::manual())
        .max_key_size(100)
        .max_value_size(100)
        .max_loader_threads(1)
        .make(getter, peers)
}

#[test]
fn panicking_getter_releases_waiters() {
    model(|| {
        let works = Works::default();
        let counted = works.clone();
        let group = group(
            PickerSlot::default(),
            getter_fn(move |_, _, dest| match counted.work() {
                0 => resume_unwind(Box::new("in the getter")),
                _ => Ok(dest.set_str("value")?),
            }),
        );
        let call = |group: Group| move || catch_unwind(AssertUnwindSafe(|| group.get("key")));
        let other = thread::spawn(call(group.clone()));
        let outcomes = [call(group.clone())(), other.join().unwrap()];
        let panics = outcomes.iter().filter(|outcome| outcome.is_err()).count();
        assert_eq!(panics, 1, "the getter panicked once, on one of the threads");
        for result in outcomes.into_iter().flatten() {
            match result {
                Ok(value) => assert_eq!(value, "value"),
                Err(error) => assert_eq!(error.kind(), ErrorKind::GetterPanicked),
            }
        }
        assert_eq!(group.get("key").expect("the key is usable"), "value");
    });
}

/// The peer of a node: another node, which owns every key. It is asked on this thread. The
/// link is weak, because nodes that hold each other would never be freed.
#[derive(Clone, Default)]
pub(super) struct Other(pub(super) Arc<OnceLock<WeakGroup>>);

impl Other {
    fn group(&self) -> Group {
        let group = self.0.get().and_then(WeakGroup::upgrade);
        group.expect("the group is made, and in use")
    }
}

impl ProtoGetter for Other {
    fn get(&self, ctx: &Context, request: &GetRequest<'_>) -> Result<PeerResponse> {
        self.group().serve_peer(ctx, &request.key)
    }

    fn remove(&self, _: &Context, request: &RemoveKeysRequest<'_>) -> Result<()> {
        self.group().serve_remove(request);
        Ok(())
    }
}

impl PeerPicker for Other {
    fn pick_peer(&self, _: &str) -> Option<Arc<dyn ProtoGetter>> {
        Some(Arc::new(self.clone()))
    }
}

#[test]
fn nodes_with_different_rings_never_deadlock() {
    model(|| {
        let others = [Other::default(), Other::default()];
        let groups = others.clone().map(|other| {
            let slot = PickerSlot::default();
            slot.register(Pickers::One(Arc::new(other)))
                .expect("the slot is empty");
            group(slot, getter_fn(|_, _, dest| Ok(dest.set_str("value")?)))
        });
        let [a, b] = &groups;
        let theirs = [b, a].map(Group::downgrade);
        for (other, group) in others.iter().zip(theirs) {
            other.0.set(group).expect("once");
        }
        let asking = {
            let b = b.clone();
            thread::spawn(move || b.get("key"))
        };
        assert_eq!(a.get("key").expect("a value"), "value");
        assert_eq!(asking.join().unwrap().expect("a value"), "value");
    });
}

/// A peer that owns every key. Its answer is the current number of the source.
#[derive(Clone)]
struct SourcePeer(Arc<AtomicUsize>);

impl ProtoGetter for SourcePeer {
    fn get(&self, _: &Context, _: &GetRequest<'_>) -> Result<PeerResponse> {
        Ok(PeerResponse::new(value_of(&self.0)))
    }
}

impl PeerPicker for SourcePeer {
    fn pick_peer(&self, _: &str) -> Option<Arc<dyn ProtoGetter>> {
        Some(Arc::new(self.clone()))
    }
}

fn value_of(source: &AtomicUsize) -> ByteView {
    source.load(Ordering::SeqCst).to_string().into()
}

/// A source whose value changes, and a group that loads from it.
fn changing(slot: fn(&Arc<AtomicUsize>) -> PickerSlot) -> (Arc<AtomicUsize>, Group) {
    let source = Arc::new(AtomicUsize::new(0));
    let group = changing_group(&source, slot(&source));
    (source, group)
}

/// A group that loads the current number of a source.
pub(crate) fn changing_group(source: &Arc<AtomicUsize>, peers: PickerSlot) -> Group {
    let source = source.clone();
    let getter = getter_fn(move |_, _, dest| Ok(dest.set_view(&value_of(&source))?));
    group(peers, getter)
}

/// Runs a load concurrently with a removal. The source changes, and then the key is removed. Every
/// get after that must return the new value.
fn removed_is_removed(
    slot: fn(&Arc<AtomicUsize>) -> PickerSlot,
    load: fn(&Group) -> Result<ByteView>,
    remove: fn(&Group),
) {
    model(move || {
        let (source, group) = changing(slot);
        let loading = {
            let group = group.clone();
            thread::spawn(move || load(&group))
        };
        source.store(1, Ordering::SeqCst);
        remove(&group);
        assert_eq!(group.get("key").expect("a value"), "1");
        let early = loading.join().unwrap().expect("a value");
        assert!(early == "0" || early == "1");
        assert_eq!(
            group.peek("key"),
            Some("1".into()),
            "the old value is not cached again"
        );
    });
}

fn no_peers(_: &Arc<AtomicUsize>) -> PickerSlot {
    PickerSlot::default()
}

fn a_peer(source: &Arc<AtomicUsize>) -> PickerSlot {
    let (slot, peer) = (PickerSlot::default(), Arc::new(SourcePeer(source.clone())));
    slot.register(Pickers::One(peer))
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
fn load_never_survives_removal() {
    removed_is_removed(no_peers, get, |group| group.invalidate("key"));
}

#[test]
fn load_never_survives_clear() {
    removed_is_removed(no_peers, get, Group::clear_local);
}

#[test]
fn peer_response_never_survives_removal() {
    removed_is_removed(a_peer, get, |group| group.invalidate("key"));
}

#[test]
fn load_for_peer_never_survives_removal() {
    removed_is_removed(a_peer, serve, |group| group.invalidate("key"));
}

/// Runs a load concurrently with a removal. The source changes again after the removal, and a newer
/// load may end before the first one.
fn older_load_never_replaces_newer(slot: fn(&Arc<AtomicUsize>) -> PickerSlot, remove: fn(&Group)) {
    model(move || {
        let (source, group) = changing(slot);
        let loading = {
            let group = group.clone();
            thread::spawn(move || group.get("key"))
        };
        source.store(1, Ordering::SeqCst);
        remove(&group);
        source.store(2, Ordering::SeqCst);
        let seen = group.get("key").expect("a value");
        loading.join().unwrap().expect("a value");
        let later = group.get("key").expect("a value");
        assert!(later[..] >= seen[..], "{later:?} after {seen:?}");
    });
}

#[test]
fn older_load_never_replaces_newer_after_removal() {
    older_load_never_replaces_newer(no_peers, |group| group.invalidate("key"));
}

#[test]
fn older_load_never_replaces_newer_after_clear() {
    older_load_never_replaces_newer(no_peers, Group::clear_local);
}

#[test]
fn older_peer_response_never_replaces_newer() {
    older_load_never_replaces_newer(a_peer, |group| group.invalidate("key"));
}

#[test]
fn two_gets_of_cold_key_load_once() {
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
            "the second look-up finds the value that was just loaded"
        );
        assert_eq!(group.entry_count(), 1);
    });
}

#[test]
fn getters_of_each_others_keys_return() {
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
            let error = ended.expect_err("a cycle has no value");
            assert_eq!(error.kind(), ErrorKind::RecursiveLoad);
        }
    });
}
