//! Which entries the cache keeps, the order of eviction, and the calls of `on_evicted`.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc;

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Simple(i32, &'static str);

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Nested(i32, Simple);

/// A cache whose `on_evicted` sends the entries to the receiver.
fn watched(
    max_entries: usize,
) -> (
    Cache<&'static str, i32>,
    mpsc::Receiver<(&'static str, i32)>,
) {
    let (sender, receiver) = mpsc::channel();
    let cache = Cache::new(max_entries).with_on_evicted(move |key: &&'static str, value: &i32| {
        sender.send((*key, *value)).expect("the test receives");
    });
    (cache, receiver)
}

fn keys<K: Clone, V>(cache: &Cache<K, V>) -> Vec<K> {
    cache.iter().map(|(key, _)| key.clone()).collect()
}

#[test]
fn strings_and_structs_are_found_by_equality() {
    let mut strings = Cache::new(0);
    strings.add("key".to_owned(), 1234);
    assert_eq!(strings.get("key"), Some(&1234));
    assert_eq!(strings.get("nonsense"), None);

    let mut structs = Cache::new(0);
    structs.add(Nested(1, Simple(2, "three")), 1234);
    assert_eq!(structs.get(&Nested(1, Simple(2, "three"))), Some(&1234));
    assert_eq!(structs.get(&Nested(1, Simple(0, "no"))), None);
}

#[test]
fn least_recently_used_is_evicted_and_get_and_replace_count_as_uses() {
    let mut cache = Cache::new(3);
    for key in ["one", "two", "three"] {
        cache.add(key, 1);
    }
    cache.get("one");
    assert_eq!(cache.add("two", 2), Some(1));
    assert_eq!(cache.add("four", 1), None);
    assert_eq!(keys(&cache), ["four", "two", "one"]);
    assert_eq!(cache.len(), 3);
}

#[test]
fn peek_contains_and_iter_do_not_count_as_uses() {
    let mut cache = Cache::new(2);
    cache.add("a", 1);
    cache.add("b", 2);
    assert_eq!(cache.peek("a"), Some(&1));
    assert!(cache.contains("a"));
    assert_eq!(cache.iter().count(), 2);
    cache.add("c", 3);
    assert!(!cache.contains("a"));
}

#[test]
fn value_can_be_changed_in_place() {
    let mut cache = Cache::new(2);
    cache.add("a", 1);
    cache.add("b", 2);
    *cache.get_mut("a").expect("present") += 10;
    assert_eq!(cache.iter().next(), Some((&"a", &11)));
}

#[test]
fn removed_entry_can_be_added_again() {
    let mut cache = Cache::new(0);
    cache.add("key", 1234);
    assert_eq!(cache.remove("key"), Some(1234));
    assert_eq!(cache.remove("key"), None);
    assert_eq!(cache.get("key"), None);
    cache.add("key", 5);
    assert_eq!(cache.get("key"), Some(&5));
}

#[test]
fn zero_means_no_limit() {
    let mut cache = Cache::new(0);
    for i in 0..10_000 {
        cache.add(i, i);
    }
    assert_eq!(cache.len(), 10_000);
    assert_eq!(cache.remove_oldest(), Some((0, 0)));
}

#[test]
fn cleared_cache_is_empty_and_usable() {
    let mut cache = Cache::new(0);
    cache.clear();
    cache.add("foo", "bar");
    cache.clear();
    assert!(cache.is_empty());
    assert_eq!(cache.get("foo"), None);
    assert_eq!(cache.remove_oldest(), None);
    cache.add("foo", "baz");
    assert_eq!(cache.get("foo"), Some(&"baz"));
}

#[test]
fn on_evicted_gets_every_entry_that_leaves_but_no_replaced_value() {
    let (mut cache, gone) = watched(2);
    cache.add("a", 1);
    cache.add("a", 2);
    cache.add("b", 3);
    cache.add("c", 4);
    cache.add("d", 5);
    assert_eq!(gone.try_iter().collect::<Vec<_>>(), [("a", 2), ("b", 3)]);
    cache.remove("d");
    cache.remove_oldest();
    assert_eq!(gone.try_iter().collect::<Vec<_>>(), [("d", 5), ("c", 4)]);
    cache.add("e", 6);
    cache.add("f", 7);
    cache.get("e");
    cache.clear();
    assert_eq!(gone.try_iter().collect::<Vec<_>>(), [("f", 7), ("e", 6)]);
    cache.add("g", 8);
    drop(cache);
    assert_eq!(gone.iter().count(), 0);
}

#[test]
fn panic_in_on_evicted_leaves_the_cache_usable() {
    let mut cache = Cache::new(2).with_on_evicted(|key: &i32, _| {
        assert!(key % 2 == 1, "even keys panic");
    });
    cache.add(0, ());
    cache.add(1, ());
    let add = catch_unwind(AssertUnwindSafe(|| cache.add(3, ())));
    assert!(add.is_err());
    assert_eq!(keys(&cache), [3, 1]);

    cache.add(2, ());
    let remove = catch_unwind(AssertUnwindSafe(|| cache.remove(&2)));
    assert!(remove.is_err());
    assert_eq!(keys(&cache), [3]);

    cache.add(4, ());
    cache.get(&3);
    let clear = catch_unwind(AssertUnwindSafe(|| cache.clear()));
    assert!(clear.is_err());
    assert_eq!(keys(&cache), [3]);
    cache.add(5, ());
    assert_eq!(keys(&cache), [5, 3]);
}

#[test]
fn cache_of_sendable_entries_is_send() {
    fn sendable<T: Send>(_: &T) {}
    sendable(&Cache::<String, Vec<u8>>::new(1));
}

#[derive(Clone, Debug)]
enum Step {
    Add(u8, u32),
    Get(u8),
    Peek(u8),
    Remove(u8),
    RemoveOldest,
    Clear,
}

fn step() -> impl Strategy<Value = Step> {
    let key = 0_u8..24;
    prop_oneof![
        8 => (key.clone(), any::<u32>()).prop_map(|(key, value)| Step::Add(key, value)),
        6 => key.clone().prop_map(Step::Get),
        2 => key.clone().prop_map(Step::Peek),
        4 => key.prop_map(Step::Remove),
        2 => Just(Step::RemoveOldest),
        1 => Just(Step::Clear),
    ]
}

/// A slow model of the cache: entries in a vector, most recently used first.
struct Model {
    max_entries: usize,
    entries: Vec<(u8, u32)>,
}

impl Model {
    fn take(&mut self, key: u8) -> Option<u32> {
        let at = self.entries.iter().position(|(other, _)| *other == key)?;
        Some(self.entries.remove(at).1)
    }

    fn add(&mut self, key: u8, value: u32) -> Option<u32> {
        let old = self.take(key);
        self.entries.insert(0, (key, value));
        if self.max_entries != 0 {
            self.entries.truncate(self.max_entries);
        }
        old
    }

    fn get(&mut self, key: u8) -> Option<u32> {
        let value = self.take(key)?;
        self.entries.insert(0, (key, value));
        Some(value)
    }
}

proptest! {
    #[test]
    fn behaves_as_the_model(
        max_entries in 0_usize..12,
        steps in prop::collection::vec(step(), 0..200),
    ) {
        let mut cache = Cache::new(max_entries);
        let mut model = Model { max_entries, entries: Vec::new() };
        for step in steps {
            match step {
                Step::Add(key, value) => {
                    prop_assert_eq!(cache.add(key, value), model.add(key, value));
                }
                Step::Get(key) => prop_assert_eq!(cache.get(&key).copied(), model.get(key)),
                Step::Peek(key) => {
                    let expected = model.entries.iter().find(|(other, _)| *other == key);
                    prop_assert_eq!(cache.peek(&key), expected.map(|(_, value)| value));
                }
                Step::Remove(key) => prop_assert_eq!(cache.remove(&key), model.take(key)),
                Step::RemoveOldest => {
                    prop_assert_eq!(cache.remove_oldest(), model.entries.pop());
                }
                Step::Clear => {
                    cache.clear();
                    model.entries.clear();
                }
            }
            let entries: Vec<_> = cache.iter().map(|(key, value)| (*key, *value)).collect();
            prop_assert_eq!(&entries, &model.entries);
            prop_assert_eq!(cache.len(), entries.len());
            prop_assert!(entries.iter().all(|(key, _)| cache.contains(key)));
            let mut backwards = Vec::new();
            let mut at = cache.oldest;
            while let Some(slot) = cache.slot(at) {
                backwards.push((slot.key, slot.value));
                at = slot.newer;
            }
            backwards.reverse();
            prop_assert_eq!(entries, backwards);
        }
    }
}
