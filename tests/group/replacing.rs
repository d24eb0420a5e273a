//! A value that replaces another has its own weight, and frees the weight of the other.
//!
//! Two loads of one key can run at the same time, because there are two kinds of flight. One asks the
//! owner for a caller. The other runs the getter for a peer that takes this process for the owner.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};

use larder::{Eviction, Group, PeerResponse, RemovalCause, getter_fn};

use crate::common::*;

const CAPACITY: u64 = 64 << 10;

/// A group with a peer that owns every key. The peer answers when the test sends it the size of its
/// value.
struct Replacing {
    group: Group,
    asked: Receiver<()>,
    answer: Sender<usize>,
    /// The number of bytes that the getter sets.
    ours: Arc<AtomicUsize>,
    causes: Arc<Mutex<Vec<RemovalCause>>>,
}

impl Replacing {
    fn new(eviction: Eviction) -> Replacing {
        let (ask, asked) = channel();
        let (answer, answers) = channel();
        let answers = Mutex::new(answers);
        let peer = FakePeer::new(move |_, _| {
            ask.send(()).expect("the test receives");
            let answers = answers.lock().expect("no panic");
            let size = answers.recv_timeout(PATIENCE).expect("an answer");
            Ok(PeerResponse::new(vec![2; size]))
        });
        let ours = Arc::new(AtomicUsize::new(0));
        let causes = Arc::new(Mutex::new(Vec::new()));
        let (size, noted) = (ours.clone(), causes.clone());
        let group = among("replacing", all_keys_at(&[&peer]))
            .eviction(eviction)
            .max_capacity(CAPACITY)
            .eviction_listener(move |_, _, cause| {
                noted.lock().expect("no panic").push(cause);
            })
            .build(getter_fn(move |_, _, dest| {
                Ok(dest.set_bytes(&vec![1; size.load(Ordering::SeqCst)])?)
            }))
            .expect("a group");
        Replacing {
            group,
            asked,
            answer,
            ours,
            causes,
        }
    }

    /// Caches a value of `size` bytes, as a request from a peer does.
    fn put(&self, key: &str, size: usize) {
        self.ours.store(size, Ordering::SeqCst);
        let served = self.group.serve_peer(&within(PATIENCE), key);
        assert_eq!(served.expect("a value").value.len(), size);
    }

    /// Replaces a value of `ours` bytes, loaded meanwhile, by the peer's value of `theirs` bytes.
    fn replace(&self, ours: usize, theirs: usize) {
        let group = self.group.clone();
        let get = start(move || group.get("key"));
        self.asked
            .recv_timeout(PATIENCE)
            .expect("the peer is asked");
        self.put("key", ours);
        self.answer.send(theirs).expect("the peer receives");
        assert_eq!(get.end().expect("a value").len(), theirs);
    }
}

#[test]
fn replacement_has_its_own_weight() {
    for eviction in [Eviction::Tide, Eviction::Lru] {
        for (ours, theirs) in [(100, 10), (10, 100), (5_000, 0), (0, 5_000), (40, 41)] {
            let replaced = Replacing::new(eviction);
            replaced.replace(ours, theirs);
            let fresh = Replacing::new(eviction);
            fresh.put("key", theirs);
            let cached = replaced.group.peek("key").expect("it is cached");
            assert_eq!(cached, vec![2; theirs].as_slice());
            assert_eq!(replaced.group.entry_count(), 1);
            assert_eq!(
                replaced.group.weighted_size(),
                fresh.group.weighted_size(),
                "{ours} by {theirs}"
            );
            let causes = replaced.causes.lock().expect("no panic");
            assert_eq!(*causes, [RemovalCause::Replaced]);
        }
    }
}

#[test]
fn replacements_do_not_leak_weight() {
    for eviction in [Eviction::Tide, Eviction::Lru] {
        let (worn, fresh) = (Replacing::new(eviction), Replacing::new(eviction));
        for _ in 0..300 {
            worn.replace(500, 1_000);
            worn.group.invalidate("key");
        }
        assert_eq!(worn.group.weighted_size(), 0);
        for n in 0..1_000 {
            for group in [&worn, &fresh] {
                group.put(&format!("other{n}"), 100);
            }
        }
        let (worn, fresh) = (worn.group.entry_count(), fresh.group.entry_count());
        assert!(fresh > 200, "{fresh}");
        assert!(worn.abs_diff(fresh) <= 2, "{worn} and {fresh}");
    }
}
