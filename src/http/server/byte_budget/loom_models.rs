//! Models of the budget: connections that wait for bytes, leave the queue, and give bytes back. Loom reports a
//! deadlock if a connection waits although there is room for it.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use super::*;
use crate::loom_models::explore;
use crate::sync::thread;

const HOUR: Duration = Duration::from_secs(3600);

/// The steps of a connection that waits as long as it has to.
fn patiently() -> Option<Instant> {
    Some(Instant::now() + HOUR)
}

fn budget(max: usize) -> Arc<ByteBudget> {
    Arc::new(ByteBudget::new(max))
}

/// Takes bytes as a connection does.
fn take_or_wait(budget: &ByteBudget, bytes: usize, is_stranger: bool) -> ByteGuard<'_> {
    let taken = budget.take(bytes, is_stranger);
    let guard = taken.or_else(|| budget.wait_for(bytes, is_stranger, patiently));
    guard.expect("it waits as long as it has to")
}

fn peers_wait(budget: &ByteBudget) -> bool {
    !budget.used.lock().waiting[0].is_empty()
}

fn assert_unused(budget: &ByteBudget) {
    let used = budget.used.lock();
    assert_eq!((used.all, used.by_strangers), (0, 0));
    assert!(used.waiting.iter().all(VecDeque::is_empty));
}

/// The bytes that are taken, counted by the connections themselves.
#[derive(Clone, Default)]
struct Held(Arc<[AtomicUsize; 2]>);

impl Held {
    /// Counts the bytes of a guard while another thread may run.
    fn hold(&self, guard: &ByteGuard<'_>, max: usize) {
        let held = &self.0[usize::from(guard.is_stranger)];
        held.fetch_add(guard.bytes(), Ordering::SeqCst);
        let [by_peers, by_strangers] =
            [0, 1].map(|class: usize| self.0[class].load(Ordering::SeqCst));
        assert!(by_peers + by_strangers <= max);
        assert!(by_strangers <= max / 2);
        thread::yield_now();
        held.fetch_sub(guard.bytes(), Ordering::SeqCst);
    }
}

/// A peer and a stranger wait at the same time, or one of them comes while the bytes are given back. Each gets
/// its bytes, and together they never have more than there are.
#[test]
fn peer_and_stranger_that_wait_both_get_their_bytes() {
    explore(|| {
        let (budget, held) = (budget(2), Held::default());
        let all = budget.take(2, false).expect("room");
        let others = [(2, false), (1, true)].map(|(bytes, is_stranger)| {
            let (budget, held) = (budget.clone(), held.clone());
            thread::spawn(move || held.hold(&take_or_wait(&budget, bytes, is_stranger), 2))
        });
        drop(all);
        others.into_iter().for_each(|other| other.join().unwrap());
        assert_unused(&budget);
    });
}

/// Two connections wait, and the bytes of both are given back at once. Each keeps its bytes until the other one
/// has its own, too. So the first one must wake the second one when it has taken its bytes.
#[test]
fn two_that_wait_use_the_room_at_the_same_time() {
    explore(|| {
        let budget = budget(2);
        let all = budget.take(2, false).expect("room");
        let both = Arc::new((Mutex::new(0), Condvar::new()));
        let others = [(); 2].map(|()| {
            let (budget, both) = (budget.clone(), both.clone());
            thread::spawn(move || {
                let _guard = take_or_wait(&budget, 1, false);
                let mut holders = both.0.lock();
                *holders += 1;
                both.1.notify_all();
                while *holders < 2 {
                    holders = both.1.wait(holders);
                }
            })
        });
        drop(all);
        others.into_iter().for_each(|other| other.join().unwrap());
        assert_unused(&budget);
    });
}

/// The time of the first connection in the queue ends when bytes are given back, which are too few for it and
/// enough for the next one. The first one is woken, and leaves before, while or after it is. The next one gets the
/// bytes.
#[test]
fn wake_up_of_a_connection_that_leaves_is_passed_on() {
    const STEP: Duration = Duration::from_micros(100);
    explore(|| {
        let budget = budget(3);
        let [kept, given_back] = [(); 2].map(|()| budget.take(1, false).expect("room"));
        let is_late = Arc::new(AtomicBool::new(false));
        let leaving = {
            let (budget, is_late) = (budget.clone(), is_late.clone());
            let next_step =
                move || (!is_late.load(Ordering::SeqCst)).then(|| Instant::now() + STEP);
            thread::spawn(move || budget.wait_for(3, false, next_step).is_none())
        };
        let next = {
            let budget = budget.clone();
            thread::spawn(move || take_or_wait(&budget, 2, false).bytes())
        };
        let used = budget.used.lock();
        is_late.store(true, Ordering::SeqCst);
        drop(used);
        // Any step that has begun is over.
        std::thread::sleep(2 * STEP);
        drop(given_back);
        assert!(leaving.join().unwrap(), "one byte is never given back");
        assert_eq!(next.join().unwrap(), 2);
        drop(kept);
        assert_unused(&budget);
    });
}

/// A connection waits for both bytes while they are given back one after the other. Another one that comes then,
/// for one byte, never has it earlier, whether it waits or not.
#[test]
fn newcomer_never_passes_a_connection_that_waits() {
    for waits in [false, true] {
        explore(move || {
            let budget = budget(2);
            let [first, second] = [(); 2].map(|()| budget.take(1, false).expect("room"));
            let had_its_turn = Arc::new(AtomicBool::new(false));
            let waiting = {
                let (budget, had_its_turn) = (budget.clone(), had_its_turn.clone());
                thread::spawn(move || {
                    let _guard = take_or_wait(&budget, 2, false);
                    had_its_turn.store(true, Ordering::SeqCst);
                })
            };
            let newcomer = {
                let budget = budget.clone();
                thread::spawn(move || {
                    let is_second = peers_wait(&budget);
                    let newcomer = match waits {
                        true => Some(take_or_wait(&budget, 1, false)),
                        false => budget.take(1, false),
                    };
                    if is_second && newcomer.is_some() {
                        assert!(had_its_turn.load(Ordering::SeqCst));
                    }
                })
            };
            drop(first);
            drop(second);
            waiting.join().unwrap();
            newcomer.join().unwrap();
            assert_unused(&budget);
        });
    }
}

/// Two strangers come, one of them with a body that grows, while a peer takes its bytes. There is always room for
/// the peer, and for one stranger.
#[test]
fn strangers_never_keep_a_peer_waiting() {
    explore(|| {
        let (budget, held) = (budget(2), Held::default());
        let waiting = {
            let (budget, held) = (budget.clone(), held.clone());
            thread::spawn(move || held.hold(&take_or_wait(&budget, 1, true), 2))
        };
        let growing = {
            let (budget, held) = (budget.clone(), held.clone());
            thread::spawn(move || {
                let mut body = budget.take(0, true)?;
                body.grow(1).then(|| held.hold(&body, 2))
            })
        };
        let peer = budget.take(1, false).expect("room");
        held.hold(&peer, 2);
        drop(peer);
        waiting.join().unwrap();
        growing.join().unwrap();
        assert_unused(&budget);
    });
}
