//! Who asks and who rides along: on real threads, and all interleavings under loom.

use super::*;
use crate::sync::thread;
use std::time::Duration;

/// The keys that an exchange asked for; its own key at its place is what a thread wants to see.
type Asked = Vec<String>;

const LONG: Duration = Duration::from_secs(20);

fn later() -> Duration {
    LONG
}

fn ask(lead: Lead<'_, Asked>) -> (Asked, usize) {
    let asked: Asked = lead.keys().iter().map(|key| key.to_string()).collect();
    let place = lead.place();
    let told = lead.finish(asked.clone());
    assert_eq!(told.outcome(), Some(&asked));
    (asked, place)
}

/// Joins as `key`, leads if it is to, and checks that the outcome is this key's. False if it found
/// no room, or its leader gave up.
fn ride(combiner: &Combiner<Asked>, key: &str) -> bool {
    let (asked, place) = match combiner.join("group", key, later) {
        Turn::Lead(lead) => ask(lead),
        Turn::Told(told, place) => match told.outcome() {
            Some(asked) => (asked.clone(), place),
            None => return false,
        },
        Turn::Alone(_) => return true,
        Turn::Singly => return false,
        Turn::TooLate => panic!("it is not too late"),
    };
    assert_eq!(asked[place], key);
    true
}

fn is_idle(combiner: &Combiner<Asked>) -> bool {
    let state = combiner.state.lock();
    state.asking == 0 && state.running == 0 && state.gathering.is_empty()
}

fn combiner() -> Combiner<Asked> {
    Combiner::new(100, 1000, 100)
}

/// As many threads ask as need not share, and all shared exchanges run; until this is dropped.
struct Busy<'c> {
    leads: Vec<Lead<'c, Asked>>,
    alone: Vec<Alone<'c, Asked>>,
}

fn busy(combiner: &Combiner<Asked>) -> Busy<'_> {
    let alone = (0..CROWD).map(|_| match combiner.join("group", "alone", later) {
        Turn::Alone(alone) => alone,
        _ => panic!("few are there"),
    });
    let alone = alone.collect();
    let leads = (0..MAX_RUNNING).map(|_| match combiner.join("group", "lead", later) {
        Turn::Lead(lead) => lead,
        _ => panic!("an exchange is free"),
    });
    let leads = leads.collect();
    Busy { leads, alone }
}

#[cfg(not(larder_loom))]
mod threads {
    use super::*;
    use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicBool, Ordering};

    fn wait_for_keys(combiner: &Combiner<Asked>, count: usize) {
        let gathered =
            |state: &State<Asked>| -> usize { state.gathering.iter().map(|g| g.keys.len()).sum() };
        while gathered(&combiner.state.lock()) < count {
            thread::yield_now();
        }
    }

    #[test]
    fn few_threads_ask_alone() {
        let combiner = combiner();
        for _ in 0..3 {
            let all: Vec<_> = (0..CROWD).map(|_| combiner.join("g", "k", later)).collect();
            assert!(all.iter().all(|turn| matches!(turn, Turn::Alone(_))));
            assert!(matches!(combiner.join("g", "k", later), Turn::Lead(_)));
        }
    }

    #[test]
    fn who_shares_goes_on_until_few_ask() {
        let combiner = combiner();
        let mut alone: Vec<_> = (0..CROWD).map(|_| combiner.join("g", "k", later)).collect();
        let lead = combiner.join("g", "k", later);
        assert!(matches!(lead, Turn::Lead(_)));
        // With the leader as many ask as are a few.
        alone.truncate(FEW - 1);
        assert!(matches!(combiner.join("g", "k", later), Turn::Lead(_)));
        alone.pop();
        assert!(matches!(combiner.join("g", "k", later), Turn::Alone(_)));
        drop(lead);
        let more = (alone.len()..CROWD).map(|_| combiner.join("g", "k", later));
        let more: Vec<_> = more.collect();
        assert!(more.iter().all(|turn| matches!(turn, Turn::Alone(_))));
    }

    #[test]
    fn those_who_share_one_connection_share_exchanges() {
        let combiner = Combiner::<Asked>::new(100, 1000, 1);
        let _alone = combiner.join("g", "k", later);
        assert!(matches!(combiner.join("g", "k", later), Turn::Lead(_)));
    }

    #[test]
    fn long_plain_requests_keep_nobody_waiting() {
        let combiner = combiner();
        let Busy { leads, alone } = busy(&combiner);
        drop(leads);
        for n in 0..10 {
            assert!(ride(&combiner, &n.to_string()));
        }
        drop(alone);
        assert!(is_idle(&combiner));
    }

    #[test]
    fn keys_that_gather_go_together() {
        let combiner = combiner();
        let busy = busy(&combiner);
        thread::scope(|scope| {
            let riders: Vec<_> = (0..30)
                .map(|n| {
                    let combiner = &combiner;
                    let key = format!("key-{n}");
                    scope.spawn(move || match combiner.join("group", &key, later) {
                        Turn::Lead(lead) => (ask(lead).0.len(), true),
                        Turn::Told(told, place) => {
                            let asked = told.outcome().expect("the leader did not give up");
                            assert_eq!(asked[place], key);
                            (asked.len(), false)
                        }
                        _ => panic!("there was room"),
                    })
                })
                .collect();
            wait_for_keys(&combiner, 30);
            drop(busy);
            let ridden: Vec<_> = riders.into_iter().map(|r| r.join().unwrap()).collect();
            assert!(ridden.iter().all(|(len, _)| *len == 30));
            assert_eq!(ridden.iter().filter(|(_, led)| *led).count(), 1);
        });
        assert!(is_idle(&combiner));
    }

    #[test]
    fn groups_do_not_mix_and_the_third_asks_singly() {
        let combiner = combiner();
        let busy = busy(&combiner);
        thread::scope(|scope| {
            for group in ["a", "b"] {
                let combiner = &combiner;
                scope.spawn(move || match combiner.join(group, group, later) {
                    Turn::Lead(lead) => assert_eq!(ask(lead).0, [group]),
                    _ => panic!("nobody else asks for this group"),
                });
            }
            wait_for_keys(&combiner, 2);
            assert!(matches!(combiner.join("c", "c", later), Turn::Singly));
            drop(busy);
        });
        assert!(is_idle(&combiner));
    }

    #[test]
    fn a_batch_has_its_bounds() {
        for (combiner, key) in [
            (Combiner::new(2, 1000, 100), "k"),
            (Combiner::new(100, 4, 100), "ke"),
        ] {
            let busy = busy(&combiner);
            thread::scope(|scope| {
                for _ in 0..4 {
                    let combiner = &combiner;
                    scope.spawn(move || assert!(ride(combiner, key)));
                }
                wait_for_keys(&combiner, 4);
                let sizes: Vec<_> = {
                    let state = combiner.state.lock();
                    state.gathering.iter().map(|g| g.keys.len()).collect()
                };
                assert_eq!(sizes, [2, 2]);
                assert!(matches!(combiner.join("group", key, later), Turn::Singly));
                drop(busy);
            });
            assert!(is_idle(&combiner));
        }
        let combiner = Combiner::new(100, 4, 100);
        let _busy = busy(&combiner);
        assert!(matches!(
            combiner.join("group", "longer", later),
            Turn::Singly
        ));
    }

    #[test]
    fn who_leaves_takes_nobody_along() {
        let combiner = combiner();
        let busy = busy(&combiner);
        // Its time is over when both are there: until then it has always a little left.
        let over = AtomicBool::new(false);
        let time_left = || match over.load(Ordering::SeqCst) {
            true => Duration::ZERO,
            false => Duration::from_millis(5),
        };
        thread::scope(|scope| {
            let leaving = scope.spawn(|| combiner.join("group", "a", time_left));
            wait_for_keys(&combiner, 1);
            let staying = scope.spawn(|| ride(&combiner, "b"));
            wait_for_keys(&combiner, 2);
            over.store(true, Ordering::SeqCst);
            assert!(matches!(leaving.join().unwrap(), Turn::TooLate));
            drop(busy);
            assert!(staying.join().unwrap());
        });
        assert!(is_idle(&combiner));
    }

    #[test]
    fn the_last_to_leave_takes_the_batch_along() {
        let combiner = combiner();
        let busy = busy(&combiner);
        let in_vain = combiner.join("group", "a", || Duration::ZERO);
        assert!(matches!(in_vain, Turn::TooLate));
        assert!(combiner.state.lock().gathering.is_empty());
        drop(busy);
        assert!(is_idle(&combiner));
    }

    #[test]
    fn a_panicking_leader_sends_the_others_to_ask_singly() {
        let combiner = combiner();
        let busy = busy(&combiner);
        let told = thread::scope(|scope| {
            let riders: Vec<_> = (0..8)
                .map(|n| {
                    let combiner = &combiner;
                    scope.spawn(move || {
                        catch_unwind(AssertUnwindSafe(|| {
                            match combiner.join("group", &n.to_string(), later) {
                                Turn::Lead(_lead) => panic!("in the transport"),
                                Turn::Told(told, _) => assert!(told.outcome().is_none()),
                                _ => panic!("there was room"),
                            }
                        }))
                        .is_ok()
                    })
                })
                .collect();
            wait_for_keys(&combiner, 8);
            drop(busy);
            let told = riders.into_iter().map(|rider| rider.join().unwrap());
            told.filter(|told| *told).count()
        });
        assert_eq!(told, 7);
        assert!(is_idle(&combiner));
    }

    /// Leaders that answer, give up or panic, riders whose time is up at any moment, more groups than
    /// batches: nobody hangs, everybody gets its own key's answer, and nothing is left counted.
    #[test]
    fn whoever_comes_and_goes_nothing_is_left() {
        let combiner = Combiner::new(5, 1000, 100);
        let one = |thread: usize, n: usize| {
            let group = ["a", "b", "c"][(thread + n) % 3];
            let key = format!("{thread}-{n}");
            let patience = match n % 5 {
                0 => LONG,
                _ => Duration::from_micros((thread * 37 + n * 101) as u64 % 300),
            };
            let begun = std::time::Instant::now();
            let time_left = || patience.saturating_sub(begun.elapsed());
            match combiner.join(group, &key, time_left) {
                Turn::Lead(lead) => match n % 4 {
                    0 => drop(lead),
                    // Without a report.
                    1 => resume_unwind(Box::new("in the transport")),
                    _ => {
                        thread::yield_now();
                        let (asked, place) = ask(lead);
                        assert_eq!(asked[place], key);
                    }
                },
                Turn::Told(told, place) => {
                    assert!(told.outcome().is_none_or(|asked| asked[place] == key));
                }
                Turn::Alone(_guard) => thread::yield_now(),
                Turn::TooLate => assert!(patience < LONG, "nobody was called"),
                Turn::Singly => {}
            }
        };
        let meant = |cause: Box<dyn std::any::Any + Send>| {
            assert_eq!(cause.downcast_ref(), Some(&"in the transport"));
        };
        thread::scope(|scope| {
            for thread in 0..24 {
                let one = &one;
                scope.spawn(move || {
                    for n in 0..500 {
                        catch_unwind(AssertUnwindSafe(|| one(thread, n))).unwrap_or_else(meant);
                    }
                });
            }
        });
        assert!(is_idle(&combiner));
    }

    /// The bound of three exchanges rests on this: whatever gathers begins when those that were
    /// under way have ended, and waits for none that began later.
    #[test]
    fn a_batch_waits_only_for_exchanges_that_were_under_way() {
        let combiner = combiner();
        let mut busy = busy(&combiner);
        let both_lead = Barrier::new(2);
        thread::scope(|scope| {
            for (n, group) in ["a", "b"].into_iter().enumerate() {
                let (combiner, both_lead) = (&combiner, &both_lead);
                scope.spawn(move || {
                    let Turn::Lead(lead) = combiner.join(group, "key", later) else {
                        panic!("nobody else asks for this group");
                    };
                    // Neither ends before the other has begun.
                    both_lead.wait();
                    ask(lead);
                });
                wait_for_keys(combiner, n + 1);
            }
            busy.leads.clear();
        });
        drop(busy);
        assert!(is_idle(&combiner));
    }
}

#[cfg(larder_loom)]
mod model {
    use super::*;
    use loom::sync::Arc;

    #[test]
    fn loom_every_rider_gets_its_own_outcome_and_nothing_is_left() {
        loom::model(|| {
            let combiner = Arc::new(combiner());
            let Busy { leads, alone } = busy(&combiner);
            drop(alone);
            let riders: Vec<_> = ["a", "b"]
                .into_iter()
                .map(|key| {
                    let combiner = combiner.clone();
                    thread::spawn(move || assert!(ride(&combiner, key)))
                })
                .collect();
            drop(leads);
            for rider in riders {
                rider.join().unwrap();
            }
            assert!(is_idle(&combiner));
        });
    }

    #[test]
    fn loom_a_call_that_a_leaving_thread_swallowed_is_passed_on() {
        loom::model(|| {
            let combiner = Arc::new(combiner());
            let Busy { leads, alone } = busy(&combiner);
            drop(alone);
            let staying = {
                let combiner = combiner.clone();
                thread::spawn(move || assert!(ride(&combiner, "stays")))
            };
            let leaving = {
                let combiner = combiner.clone();
                // Its time is up when it looks for the second time: it has waited and was woken.
                let mut times = [LONG].into_iter();
                let time_left = move || times.next().unwrap_or_default();
                thread::spawn(move || match combiner.join("group", "leaves", time_left) {
                    Turn::Lead(lead) => drop(ask(lead)),
                    Turn::TooLate | Turn::Told(..) | Turn::Alone(_) | Turn::Singly => {}
                })
            };
            drop(leads);
            staying.join().unwrap();
            leaving.join().unwrap();
            assert!(is_idle(&combiner));
        });
    }

    #[test]
    fn loom_a_leader_that_gives_up_is_heard_by_its_rider() {
        loom::model(|| {
            let combiner = Arc::new(combiner());
            let Busy { leads, alone } = busy(&combiner);
            drop(alone);
            let riders: Vec<_> = ["a", "b"]
                .into_iter()
                .map(|key| {
                    let combiner = combiner.clone();
                    thread::spawn(move || match combiner.join("group", key, later) {
                        Turn::Lead(lead) => drop(lead),
                        Turn::Told(told, _) => assert!(told.outcome().is_none()),
                        Turn::Alone(_) => {}
                        Turn::Singly | Turn::TooLate => panic!("there is room and time"),
                    })
                })
                .collect();
            drop(leads);
            for rider in riders {
                rider.join().unwrap();
            }
            assert!(is_idle(&combiner));
        });
    }
}
