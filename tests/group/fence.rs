//! A peer's value that is older than a removal of its key is neither returned nor cached.

use std::sync::{Arc, Mutex, MutexGuard};

use larder::pb::{ClearRequest, GetRequest, RemovalTable, RemoveKeysRequest, SetRequest};
use larder::{
    Clock, Context, Error, ErrorKind, GetOptions, Group, GroupBuilder, PeerPicker, PeerResponse,
    ProtoGetter, Registry, Result, SetOptions, getter_fn,
};

use crate::common::*;

type Before = dyn Fn(&str) + Send + Sync;

/// A link to the node that owns all keys. It can delay or lose changes.
struct Link {
    owner: Group,
    /// Called with the name of each request before it is passed on.
    before: Mutex<Option<Arc<Before>>>,
    is_cut: Mutex<bool>,
    log: Mutex<Vec<&'static str>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no panic")
}

impl Link {
    fn pass(&self, what: &'static str) -> Result<()> {
        lock(&self.log).push(what);
        let before = lock(&self.before).clone();
        before.into_iter().for_each(|before| before(what));
        match *lock(&self.is_cut) {
            true => Err(ErrorKind::Peer.into()),
            false => Ok(()),
        }
    }

    fn count(&self, what: &str) -> usize {
        lock(&self.log)
            .iter()
            .filter(|&&found| found == what)
            .count()
    }
}

impl ProtoGetter for Link {
    fn get(&self, ctx: &Context, request: &GetRequest<'_>) -> Result<PeerResponse> {
        self.pass("get")?;
        self.owner.serve_peer(ctx, &request.key)
    }

    fn get_many(&self, _: &Context, _: &str, keys: &[&str]) -> Result<Vec<Option<PeerResponse>>> {
        self.pass("get_many")?;
        Ok(keys
            .iter()
            .map(|key| self.owner.serve_peer_cached(key))
            .collect())
    }

    fn remove(&self, _: &Context, request: &RemoveKeysRequest<'_>) -> Result<()> {
        match request.removal_id {
            Some(0) => self.pass("drop")?,
            _ => self.pass("remove")?,
        }
        self.owner.serve_remove(request);
        Ok(())
    }

    fn set(&self, _: &Context, request: &SetRequest<'_>) -> Result<()> {
        self.pass("set")?;
        self.owner.serve_set(request)
    }

    fn clear(&self, _: &Context, request: &ClearRequest<'_>) -> Result<()> {
        self.pass("clear")?;
        self.owner.serve_clear(request);
        Ok(())
    }

    fn exchange_removals(
        &self,
        _: &Context,
        request: &RemovalTable<'_>,
    ) -> Result<RemovalTable<'static>> {
        self.pass("exchange")?;
        Ok(self.owner.serve_removals(request))
    }

    fn honors_deadline(&self) -> bool {
        true
    }
}

struct ToOwner(Arc<Link>);

impl PeerPicker for ToOwner {
    fn pick_peer(&self, _: &str) -> Option<Arc<dyn ProtoGetter>> {
        Some(self.0.clone())
    }

    fn all_peers(&self) -> Vec<Arc<dyn ProtoGetter>> {
        vec![self.0.clone()]
    }
}

/// A node `h`, the link to the owner of all keys, and the source of the owner's values.
struct Pair {
    h: Group,
    link: Arc<Link>,
    source: Arc<Mutex<&'static str>>,
}

fn pair() -> Pair {
    pair_with(|builder| builder)
}

fn pair_with(options: impl FnOnce(GroupBuilder) -> GroupBuilder) -> Pair {
    let source = Arc::new(Mutex::new("old"));
    let load = |source: &Arc<Mutex<&'static str>>| {
        let source = source.clone();
        getter_fn(move |_, key, dest| match *lock(&source) {
            "missing" => Err(Error::not_found(key).into()),
            value => Ok(dest.set_str(value)?),
        })
    };
    let remembering = |builder: GroupBuilder| builder.negative_ttl(seconds(3600));
    let link = Arc::new(Link {
        owner: remembering(Group::builder("fence").registry(&Registry::new()))
            .build(load(&source))
            .expect("a group"),
        before: Mutex::default(),
        is_cut: Mutex::default(),
        log: Mutex::default(),
    });
    let h = among("fence", Arc::new(ToOwner(link.clone())));
    let h = options(remembering(h)).build(load(&source));
    Pair {
        h: h.expect("a group"),
        link,
        source,
    }
}

impl Pair {
    fn get(&self) -> String {
        let value = self.h.get("key").expect("a value");
        value.to_str().expect("text").to_owned()
    }

    /// Runs `removal` at `h`. Before the owner receives it, calls `meanwhile`.
    fn during(&self, removal: impl FnOnce(&Group), meanwhile: impl Fn() + Send + Sync + 'static) {
        *lock(&self.link.before) = Some(Arc::new(move |what| {
            if matches!(what, "remove" | "clear") {
                meanwhile();
            }
        }));
        removal(&self.h);
        *lock(&self.link.before) = None;
    }
}

#[test]
fn get_before_the_owner_has_applied_a_removal_returns_the_new_value() {
    let removals: [fn(&Group); 3] = [
        |h| h.remove(&background(), "key").expect("confirmed"),
        |h| {
            h.remove_many(&background(), &["other", "key"])
                .expect("confirmed")
        },
        |h| h.clear(&background()).expect("confirmed"),
    ];
    for removal in removals {
        let pair = pair();
        assert_eq!(pair.get(), "old");
        *lock(&pair.source) = "new";
        let (h, seen) = (pair.h.clone(), Arc::new(Mutex::new(None)));
        let theirs = seen.clone();
        pair.during(removal, move || {
            let value = h.get("key").expect("a value");
            *lock(&theirs) = Some(value.to_str().expect("text").to_owned());
        });
        assert_eq!(lock(&seen).as_deref(), Some("new"));
        assert_eq!(pair.link.count("drop"), 1);
        assert_eq!(pair.get(), "new");
    }
}

#[test]
fn list_of_keys_gets_no_old_value_either() {
    let pair = pair();
    let keys = ["key", "other"];
    for key in keys {
        pair.h.get(key).expect("a value");
    }
    *lock(&pair.source) = "new";
    let (h, seen) = (pair.h.clone(), Arc::new(Mutex::new(Vec::new())));
    let theirs = seen.clone();
    pair.during(
        |h| h.clear(&background()).expect("confirmed"),
        move || {
            let values = h.get_many(&background(), &keys);
            *lock(&theirs) = values
                .into_iter()
                .map(|value| value.expect("a value"))
                .collect();
        },
    );
    assert_eq!(*lock(&seen), ["new", "new"]);
}

#[test]
fn copies_of_other_keys_are_kept_after_removals() {
    let pair = pair();
    let keys: Vec<String> = (0..3000).map(|n| n.to_string()).collect();
    for key in &keys {
        pair.link.owner.get(key).expect("a value");
    }
    for key in &keys {
        pair.h
            .remove(&background(), &format!("removed {key}"))
            .expect("confirmed");
    }
    for key in &keys {
        pair.h.get(key).expect("a value");
    }
    assert_eq!(
        pair.h.entry_count(),
        3000,
        "the owner has applied the removals, too"
    );
    assert_eq!(
        (pair.link.count("drop"), pair.link.count("exchange")),
        (0, 0)
    );
}

#[test]
fn owner_that_missed_removals_returns_no_old_value_after_its_first_exchange() {
    for n in [1, 2000] {
        let pair = pair();
        let keys: Vec<String> = (0..n).map(|n| n.to_string()).collect();
        let all = keys.iter().map(String::as_str).chain(["key"]);
        let all: Vec<&str> = all.collect();
        for key in &all {
            pair.h.get(key).expect("a value");
        }
        *lock(&pair.link.is_cut) = true;
        *lock(&pair.source) = "new";
        for key in &all {
            let error = pair
                .h
                .remove(&background(), key)
                .expect_err("it is cut off");
            assert_eq!(error.kind(), ErrorKind::Partial);
        }
        assert_eq!(
            pair.get(),
            "new",
            "loaded here, as the owner does not answer"
        );
        assert_eq!(pair.link.owner.peek("key"), Some("old".into()));
        *lock(&pair.link.is_cut) = false;
        pair.h.invalidate("key");
        assert_eq!(pair.get(), "new");
        eventually("the tables are exchanged", || {
            all.iter()
                .all(|key| pair.link.owner.peek(key) != Some("old".into()))
        });
        assert_eq!(pair.link.owner.get("key").expect("a value"), "new");
    }
}

#[test]
fn node_that_was_cut_off_keeps_its_other_entries() {
    let pair = pair();
    let keys: Vec<String> = (0..5000).map(|n| n.to_string()).collect();
    for key in &keys {
        pair.h.get(key).expect("a value");
    }
    // The digests are equal, and both nodes have compared them.
    pair.h.remove(&background(), "some").expect("confirmed");
    pair.h.get("some").expect("a value");
    *lock(&pair.link.is_cut) = true;
    *lock(&pair.source) = "new";
    for n in 0..10 {
        pair.h
            .remove(&background(), &n.to_string())
            .expect_err("it is cut off");
    }
    *lock(&pair.link.is_cut) = false;
    pair.h.get("fresh").expect("a value");
    let owner = &pair.link.owner;
    eventually("the removed keys are gone", || {
        (0..10).all(|n| owner.peek(&n.to_string()) != Some("old".into()))
    });
    assert!(owner.entry_count() >= 4900, "{} left", owner.entry_count());
    assert!(
        pair.h.entry_count() >= 4980,
        "{} left",
        pair.h.entry_count()
    );
}

#[test]
fn set_at_the_owner_is_not_undone_by_a_copy() {
    let pair = pair();
    assert_eq!(pair.get(), "old");
    pair.h
        .set(&background(), "key", "set", SetOptions::new())
        .expect("confirmed");
    assert_eq!(pair.get(), "set");
    assert_eq!(
        pair.h.peek("key"),
        Some("set".into()),
        "kept, as both applied the set"
    );
}

#[test]
fn remembered_absence_ends_with_a_set_or_a_removal() {
    let pair = pair();
    let is_missing = || {
        let error = pair.h.get("key").expect_err("no value");
        assert!(error.is_not_found(), "{error}");
    };
    *lock(&pair.source) = "missing";
    is_missing();
    pair.h
        .set(&background(), "key", "set", SetOptions::new())
        .expect("confirmed");
    assert_eq!(pair.get(), "set");
    pair.h.remove(&background(), "key").expect("confirmed");
    is_missing();
    *lock(&pair.source) = "new";
    is_missing();
    pair.h.remove(&background(), "key").expect("confirmed");
    assert_eq!(pair.get(), "new");
}

/// This process owns all keys, and the one behind the link did before.
struct After(Arc<Link>);
impl PeerPicker for After {
    fn pick_peer(&self, _: &str) -> Option<Arc<dyn ProtoGetter>> {
        None
    }

    fn previous_owner(&self, _: &str) -> Option<Arc<dyn ProtoGetter>> {
        Some(self.0.clone())
    }
}

#[test]
fn owner_takes_no_value_over_that_is_older_than_a_removal() {
    let previous = pair();
    previous.link.owner.get("key").expect("a value");
    let owner = among("fence", Arc::new(After(previous.link.clone())));
    let owner = owner.build(getter_fn(|_, _, dest| Ok(dest.set_str("new")?)));
    let owner = owner.expect("a group");
    // The previous owner has missed it.
    owner.serve_remove(&RemoveKeysRequest {
        group: "fence".into(),
        keys: vec!["key".into()],
        removal_id: Some(7 << 32 | 1),
        unless_applied: None,
    });
    assert_eq!(owner.get("key").expect("a value"), "new");
    assert_eq!(previous.link.count("get_many"), 1);
}

#[test]
fn owner_takes_over_no_old_value_before_it_has_applied_a_removal() {
    let previous = pair();
    previous.link.owner.get("key").expect("a value");
    let mut pair = pair();
    let source = pair.source.clone();
    let owner = among("fence", Arc::new(After(previous.link.clone())));
    let owner = owner.build(getter_fn(move |_, _, dest| {
        Ok(dest.set_str(*lock(&source))?)
    }));
    let link = Arc::new(Link {
        owner: owner.expect("a group"),
        before: Mutex::default(),
        is_cut: Mutex::default(),
        log: Mutex::default(),
    });
    let h = among("fence", Arc::new(ToOwner(link.clone())));
    pair.h = h
        .build(getter_fn(|_, _, _| panic!("not asked")))
        .expect("a group");
    pair.link = link;
    // The two have applied the same removals, so that they do not compare them when one is under way.
    pair.h.remove(&background(), "other").expect("confirmed");
    pair.h.get("other").expect("a value");
    *lock(&pair.source) = "new";
    let (h, seen) = (pair.h.clone(), Arc::new(Mutex::new(None)));
    let theirs = seen.clone();
    pair.during(
        |h| h.remove(&background(), "key").expect("confirmed"),
        move || {
            let value = h.get("key").expect("a value");
            *lock(&theirs) = Some(value.to_str().expect("text").to_owned());
        },
    );
    assert_eq!(lock(&seen).as_deref(), Some("new"));
    assert_eq!(pair.get(), "new");
}

#[test]
fn copy_of_a_lately_dropped_key_is_not_sent_to_peers() {
    // A node that takes another one for the owner of all keys. The removal reaches neither of them.
    let pair = pair_with(|builder| builder.clock(larder::Clock::manual()));
    let Pair {
        h: node, source, ..
    } = &pair;
    let keys = ["one", "two", "three", "four"];
    let values = |node: &Group| keys.map(|key| node.get(key).expect("a value").to_vec());
    assert_eq!(values(node), [b"old"; 4]);
    *lock(source) = "new";
    node.serve_remove(&RemoveKeysRequest {
        group: "fence".into(),
        keys: keys.map(Into::into).into(),
        removal_id: Some(0),
        unless_applied: None,
    });
    assert_eq!(values(node), [b"old"; 4], "copied from the owner once more");
    let before = node.stats();
    assert!(node.serve_peer_cached("one").is_none());
    assert_eq!(node.stats(), before, "the peer's next request counts");
    let served = node.serve_peer(&background(), "two").expect("a value");
    assert_eq!(served.value, "new");
    for served in node.serve_peer_many(&background(), &["three", "four"]) {
        assert_eq!(served.expect("a value").value, "new");
    }
    assert_eq!(values(node), [b"old", b"new", b"new", b"new"]);
}

#[test]
fn second_answer_is_used_only_while_the_drop_is_recorded_at_the_peer() {
    for (time, local_loads) in [(seconds(9), 0), (seconds(10), 1)] {
        let clock = Clock::manual();
        let pair = pair_with(|builder| builder.clock(clock.clone()));
        assert_eq!(pair.get(), "old");
        *lock(&pair.source) = "new";
        let (h, link) = (pair.h.clone(), Arc::downgrade(&pair.link));
        *lock(&pair.link.before) = Some(Arc::new(move |what| match what {
            "remove" => assert_eq!(h.get("key").expect("a value"), "new"),
            "get" if link.upgrade().expect("in use").count("drop") == 1 => clock.advance(time),
            _ => {}
        }));
        pair.h.remove(&background(), "key").expect("confirmed");
        *lock(&pair.link.before) = None;
        assert_eq!(pair.link.count("get"), 3);
        assert_eq!(pair.h.stats().local_loads, local_loads, "{time:?}");
    }
}

#[test]
fn value_of_a_peer_without_ages_is_not_kept_after_a_removal() {
    // A peer like a Go program: it confirms removals, but reports neither ages nor removals.
    struct Plain(Arc<Mutex<Vec<&'static str>>>);
    impl ProtoGetter for Plain {
        fn get(&self, _: &Context, _: &GetRequest<'_>) -> Result<PeerResponse> {
            lock(&self.0).push("get");
            Ok(PeerResponse::new("theirs"))
        }

        fn remove(&self, _: &Context, _: &RemoveKeysRequest<'_>) -> Result<()> {
            lock(&self.0).push("remove");
            Ok(())
        }
    }
    let log = Arc::new(Mutex::new(Vec::new()));
    let plain = Arc::new(Plain(log.clone()));
    let clock = Clock::manual();
    let group = among("plain", all_keys_at(&[&plain]))
        .clock(clock.clone())
        .build(echo().0)
        .expect("a group");
    group.remove(&background(), "key").expect("confirmed");
    group.get("key").expect("a value");
    group.get("key").expect("a value");
    assert_eq!(*lock(&log), ["remove", "get", "get"], "it is not kept");
    clock.advance(seconds(11));
    for _ in 0..2 {
        group.get("key").expect("a value");
    }
    assert_eq!(lock(&log).len(), 4, "no removal is under way any more");
}

#[test]
fn local_removals_do_not_make_values_of_peers_old() {
    let pair = pair();
    assert_eq!(pair.get(), "old");
    pair.h.invalidate("key");
    assert_eq!(pair.get(), "old");
    pair.h.clear_local();
    assert_eq!(pair.get(), "old");
    assert_eq!(pair.h.peek("key"), Some("old".into()));
    assert_eq!(*lock(&pair.link.log), ["get", "get", "get"]);
}

#[test]
fn cut_off_node_with_a_limit_serves_nothing_old_after_it() {
    let clock = Clock::manual();
    let pair = pair_with(|builder| builder.max_unverified(seconds(5)).clock(clock.clone()));
    assert_eq!(pair.get(), "old");
    clock.advance(seconds(4));
    let asked = lock(&pair.link.log).len();
    assert_eq!(pair.get(), "old");
    assert_eq!(
        lock(&pair.link.log).len(),
        asked,
        "a hit asks no peer within the limit"
    );
    *lock(&pair.link.is_cut) = true;
    *lock(&pair.source) = "new";
    assert_eq!(pair.get(), "old", "the owner answered four seconds ago");
    clock.advance(seconds(1));
    assert_eq!(pair.get(), "new");
    *lock(&pair.source) = "newer";
    assert_eq!(pair.get(), "newer", "nothing is cached while it is cut off");
    assert_eq!(
        pair.h.get_many(&background(), &["key"])[0]
            .as_ref()
            .expect("a value"),
        &"newer"
    );
    *lock(&pair.link.is_cut) = false;
    pair.link.owner.invalidate("key");
    // A get after the pause finds the owner again.
    clock.advance(seconds(5) / 4);
    assert_eq!(pair.get(), "newer");
    *lock(&pair.source) = "newest";
    assert_eq!(pair.get(), "newer", "it is cached again");
}

#[test]
fn gets_with_options_keep_to_the_limit_of_a_node_that_is_cut_off() {
    let clock = Clock::manual();
    let pair = pair_with(|builder| builder.max_unverified(seconds(5)).clock(clock.clone()));
    assert_eq!(pair.get(), "old");
    *lock(&pair.link.is_cut) = true;
    *lock(&pair.source) = "new";
    let get = |options| pair.h.get_opts(&background(), "key", options);
    let cached = GetOptions::new().only_if_cached();
    assert_eq!(get(cached).expect("cached").value, "old");
    clock.advance(seconds(5));
    assert_eq!(kind(get(cached)), ErrorKind::NotCached);
    assert_eq!(get(GetOptions::new()).expect("a value").value, "new");
}

#[test]
fn partial_error_has_the_time_until_which_old_values_are_served() {
    let pair = pair_with(|builder| builder.max_unverified(seconds(5)));
    *lock(&pair.link.is_cut) = true;
    let error = pair
        .h
        .remove(&background(), "key")
        .expect_err("it is cut off");
    assert_eq!(
        error.partial().expect("the peers").stale_until,
        None,
        "one of two is no majority"
    );

    struct Deaf;
    impl ProtoGetter for Deaf {
        fn get(&self, _: &Context, _: &GetRequest<'_>) -> Result<PeerResponse> {
            Err(ErrorKind::Peer.into())
        }
    }
    struct Three(Arc<Link>);
    impl PeerPicker for Three {
        fn pick_peer(&self, _: &str) -> Option<Arc<dyn ProtoGetter>> {
            None
        }

        fn all_peers(&self) -> Vec<Arc<dyn ProtoGetter>> {
            vec![self.0.clone(), Arc::new(Deaf)]
        }
    }
    *lock(&pair.link.is_cut) = false;
    let begun = std::time::Instant::now();
    let group = among("fence", Arc::new(Three(pair.link.clone())));
    let group = group
        .max_unverified(seconds(5))
        .build(echo().0)
        .expect("a group");
    let error = group
        .remove(&background(), "key")
        .expect_err("one does not confirm");
    let until = error
        .partial()
        .expect("the peers")
        .stale_until
        .expect("two of three");
    assert!(until >= begun + seconds(5) && until <= begun + seconds(5) + PATIENCE);
}
