//! Memory that a group gives back: on request, and by itself while memory is short.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use larder::{
    Clock, ErrorKind, Eviction, Group, MemoryPressure, Registry, RemovalCause, getter_fn,
};

use crate::common::*;

const CAPACITY: u64 = 1 << 20;

type Notifications = Arc<Mutex<Vec<(String, RemovalCause)>>>;

/// A group whose values expire after 10 s if the key begins with "short", and what its listener got.
fn group(registry: &Registry, clock: &Clock) -> (Group, Notifications) {
    let notified = Notifications::default();
    let listener = notified.clone();
    let group = Group::builder("values")
        .registry(registry)
        .max_capacity(CAPACITY)
        .eviction(Eviction::Lru)
        .shards(4)
        .clock(clock.clone())
        .eviction_listener(move |key, _, cause| {
            let mut notified = listener.lock().expect("no panic");
            notified.push((key.to_owned(), cause));
        })
        .build(getter_fn(|_, key, dest| {
            if key.starts_with("short") {
                dest.expire_in(seconds(10));
            }
            Ok(dest.set_bytes(&[7; 100])?)
        }))
        .expect("a group");
    (group, notified)
}

fn fill(group: &Group, name: &str, count: usize) {
    for n in 0..count {
        group.get(&format!("{name}{n}")).expect("a value");
    }
}

fn count(notified: &Notifications, name: &str, cause: RemovalCause) -> usize {
    let notified = notified.lock().expect("no panic");
    let is_one = |one: &&(String, RemovalCause)| one.0.starts_with(name) && one.1 == cause;
    notified.iter().filter(is_one).count()
}

#[test]
fn trim_gives_back_the_coldest_and_the_capacity_stays() {
    let (group, notified) = group(&Registry::new(), &Clock::manual());
    fill(&group, "cold", 1000);
    fill(&group, "warm", 1000);
    let size = group.weighted_size();
    let given = group.trim(size / 4);
    assert!(
        (size / 4..size / 4 + 500).contains(&given),
        "{given} of {size}"
    );
    assert_eq!(group.weighted_size(), size - given);
    let cold = count(&notified, "cold", RemovalCause::Size);
    assert!((450..=550).contains(&cold), "{cold}");
    assert_eq!(count(&notified, "warm", RemovalCause::Size), 0);
    assert_eq!(group.max_capacity(), CAPACITY);
    fill(&group, "cold", 1000);
    assert_eq!(group.weighted_size(), size, "it grows again");
}

#[test]
fn trim_takes_expired_entries_first() {
    let clock = Clock::manual();
    let (group, notified) = group(&Registry::new(), &clock);
    fill(&group, "live", 500);
    fill(&group, "short", 500);
    clock.advance(seconds(10));
    group.trim(group.weighted_size() / 4);
    assert!(count(&notified, "short", RemovalCause::Expired) > 200);
    assert_eq!(count(&notified, "live", RemovalCause::Size), 0);
}

#[test]
fn trim_of_more_than_there_is_empties_the_group() {
    let (group, _) = group(&Registry::new(), &Clock::manual());
    fill(&group, "a", 300);
    let size = group.weighted_size();
    assert_eq!(group.trim(u64::MAX), size);
    assert_eq!((group.entry_count(), group.trim(1)), (0, 0));
}

#[test]
fn concurrent_trims_end_while_others_insert() {
    let (group, _) = group(&Registry::new(), &Clock::manual());
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let group = &group;
            scope.spawn(move || {
                for round in 0..20 {
                    fill(group, &format!("{thread}-{round}-"), 100);
                    group.trim(20_000);
                }
            });
        }
    });
    fill(&group, "new", 10_000);
    assert!(
        group.weighted_size() > CAPACITY * 9 / 10,
        "no limit is left"
    );
}

#[cfg(target_os = "linux")]
mod linux {
    use super::*;

    /// Watches with a reserve as large as every limit, so that memory is always short.
    fn always_short() -> larder::MemoryPressureBuilder {
        MemoryPressure::builder()
            .reserve(u64::MAX)
            .interval(Duration::from_millis(10))
    }

    /// Waits for some more readings.
    fn wait_for_readings(guard: &MemoryPressure) {
        let end = guard.status().readings + 3;
        let deadline = std::time::Instant::now() + PATIENCE;
        while guard.status().readings < end {
            assert!(std::time::Instant::now() < deadline, "no reading");
            std::thread::yield_now();
        }
    }

    #[test]
    fn shortage_limits_groups_to_their_floor_until_the_guard_is_dropped() {
        let (group, notified) = group(&Registry::new(), &Clock::manual());
        fill(&group, "a", 20_000);
        let full = group.weighted_size();
        assert!(full > CAPACITY * 9 / 10);
        let before = count(&notified, "a", RemovalCause::Size);
        let guard = always_short()
            .group(&group)
            .floor(0.5)
            .watch()
            .expect("a guard");
        assert!(group.weighted_size() <= CAPACITY / 2);
        assert!(group.weighted_size() > CAPACITY / 2 - 1000);
        assert!(count(&notified, "a", RemovalCause::Size) > before);
        let status = guard.status();
        assert_eq!(status.allowed, CAPACITY / 2);
        assert_eq!(status.trimmed, full - group.weighted_size());
        fill(&group, "b", 20_000);
        assert!(group.weighted_size() <= CAPACITY / 2, "it may not grow");
        assert_eq!(group.max_capacity(), CAPACITY);
        drop(guard);
        fill(&group, "c", 20_000);
        assert!(group.weighted_size() > CAPACITY * 9 / 10);
    }

    #[test]
    fn groups_of_a_registry_come_and_go() {
        let registry = Registry::new();
        let guard = always_short().registry(&registry).watch().expect("a guard");
        assert_eq!(guard.status().allowed, 0);
        let (group, _) = group(&registry, &Clock::manual());
        wait_for_readings(&guard);
        assert_eq!(guard.status().allowed, CAPACITY / 4);
        fill(&group, "a", 20_000);
        assert!(group.weighted_size() <= CAPACITY / 4);
        registry.remove_group("values");
        wait_for_readings(&guard);
        fill(&group, "b", 20_000);
        assert!(group.weighted_size() > CAPACITY * 9 / 10);
    }

    #[test]
    fn memory_enough_leaves_groups_alone() {
        let (group, _) = group(&Registry::new(), &Clock::manual());
        let guard = MemoryPressure::builder().reserve(0).group(&group).watch();
        let guard = guard.expect("a guard");
        fill(&group, "a", 20_000);
        assert_eq!(guard.status().allowed, CAPACITY);
        assert_eq!(guard.status().trimmed, 0);
        assert!(guard.status().headroom > 0);
    }

    #[test]
    fn options_out_of_range_are_refused() {
        for builder in [
            MemoryPressure::builder().floor(1.1),
            MemoryPressure::builder().floor(-0.1),
            MemoryPressure::builder().floor(f64::NAN),
            MemoryPressure::builder().interval(Duration::from_millis(9)),
            MemoryPressure::builder().interval(Duration::from_secs(11)),
        ] {
            let error = builder.watch().expect_err("refused");
            assert_eq!(error.kind(), ErrorKind::InvalidOption);
        }
    }

    /// Panics when the thread that watches drops it, and counts these drops.
    struct DropPanics(Count);

    impl Drop for DropPanics {
        fn drop(&mut self) {
            let thread = std::thread::current();
            if thread.name() == Some("larder-memory") {
                self.0.add(1);
                std::panic::resume_unwind(Box::new("a panic of the test"));
            }
        }
    }

    #[test]
    fn getter_whose_drop_panics_does_not_end_the_watch() {
        let registry = Registry::new();
        let guard = always_short().registry(&registry).watch().expect("a guard");
        let panics = Count::default();
        let deadline = std::time::Instant::now() + PATIENCE;
        // The thread that watches drops the last handle of a group, unless it reads the sizes between the
        // removal of the group and the drop of the returned handle.
        while panics.get() == 0 {
            assert!(std::time::Instant::now() < deadline, "no drop panics");
            let value = DropPanics(panics.clone());
            let getter = larder::getter_fn(move |_, _, _| {
                let _ = &value;
                Ok(())
            });
            drop(
                registry
                    .new_group("gone", 1 << 20, getter)
                    .expect("a group"),
            );
            wait_for_readings(&guard);
            drop(registry.remove_group("gone"));
            wait_for_readings(&guard);
        }
        wait_for_readings(&guard);
    }

    #[test]
    fn capacities_may_be_larger_together_than_any_number() {
        let group = |name| {
            let builder = alone(name).max_capacity(usize::MAX as u64);
            builder.build(echo().0).expect("a group")
        };
        let guard = MemoryPressure::builder()
            .group(&group("first"))
            .group(&group("second"))
            .reserve(0)
            .watch()
            .expect("a guard");
        assert!(guard.status().allowed >= usize::MAX as u64);
    }
}
