//! The batcher on real threads, and all its interleavings under loom.

use super::*;
use crate::sync::thread;
use std::time::Duration;

/// The keys of a batch: a caller checks that its own key is at its place.
type Asked = Vec<String>;

const LONG: Duration = Duration::from_secs(20);

fn join<'b>(batcher: &'b Batcher<Asked>, group: &str, key: &str) -> BatchRole<'b, Asked> {
    batcher.join(group, key, Instant::now() + LONG, Instant::now)
}

fn send(mut leader: BatchLeader<'_, Asked>) -> (Asked, usize) {
    let asked: Asked = leader.keys().iter().map(|key| key.to_string()).collect();
    leader.set_result(asked.clone());
    (asked, leader.place())
}

/// Joins as `key`, leads if called, and checks that the result is for this key. False if there was
/// no room, or the leader gave up.
fn join_and_check(batcher: &Batcher<Asked>, key: &str) -> bool {
    let (asked, place) = match join(batcher, "group", key) {
        BatchRole::Leader(leader) => send(leader),
        BatchRole::Waiter(Some(asked), place) => (asked, place),
        BatchRole::Single(Some(_)) => return true,
        BatchRole::Waiter(None, _) | BatchRole::Single(None) => return false,
        BatchRole::TimedOut => panic!("there is time left"),
    };
    assert_eq!(asked[place], key);
    true
}

fn is_idle(batcher: &Batcher<Asked>) -> bool {
    let state = batcher.state.lock();
    state.callers == 0 && state.running == 0 && state.gathering.is_empty()
}

fn batcher() -> Batcher<Asked> {
    Batcher::new(100, 1000, 100)
}

/// Callers that fill all single requests and all running batches: further keys gather until this is
/// dropped.
struct Busy<'b> {
    leaders: Vec<BatchLeader<'b, Asked>>,
    singles: Vec<SingleGuard<'b, Asked>>,
}

fn busy(batcher: &Batcher<Asked>) -> Busy<'_> {
    let singles = (0..BATCH_ABOVE).map(|_| match join(batcher, "group", "single") {
        BatchRole::Single(Some(guard)) => guard,
        _ => panic!("few callers ask"),
    });
    let singles = singles.collect();
    let leaders = (0..MAX_RUNNING).map(|_| match join(batcher, "group", "lead") {
        BatchRole::Leader(leader) => leader,
        _ => panic!("a batch may begin"),
    });
    let leaders = leaders.collect();
    Busy { leaders, singles }
}

#[cfg(not(larder_loom))]
mod threads {
    use super::*;
    use crate::clock::{Clock, Tick};
    use crate::sync::eventually;
    use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
    use std::sync::Barrier;

    fn wait_for_keys(batcher: &Batcher<Asked>, count: usize) {
        let gathered = |state: &BatcherState<Asked>| -> usize {
            state.gathering.iter().map(|batch| batch.keys.len()).sum()
        };
        eventually(|| gathered(&batcher.state.lock()) >= count);
    }

    #[test]
    fn few_threads_send_single_requests() {
        let batcher = batcher();
        for _ in 0..3 {
            let all: Vec<_> = (0..BATCH_ABOVE).map(|_| join(&batcher, "g", "k")).collect();
            assert!(
                all.iter()
                    .all(|role| matches!(role, BatchRole::Single(Some(_))))
            );
            assert!(matches!(join(&batcher, "g", "k"), BatchRole::Leader(_)));
        }
    }

    #[test]
    fn batching_goes_on_until_few_threads_ask() {
        let batcher = batcher();
        let mut singles: Vec<_> = (0..BATCH_ABOVE).map(|_| join(&batcher, "g", "k")).collect();
        let leader = join(&batcher, "g", "k");
        assert!(matches!(leader, BatchRole::Leader(_)));
        // With the leader, there are BATCH_UNTIL callers.
        singles.truncate(BATCH_UNTIL - 1);
        assert!(matches!(join(&batcher, "g", "k"), BatchRole::Leader(_)));
        singles.pop();
        assert!(matches!(
            join(&batcher, "g", "k"),
            BatchRole::Single(Some(_))
        ));
        drop(leader);
        let more = (singles.len()..BATCH_ABOVE).map(|_| join(&batcher, "g", "k"));
        let more: Vec<_> = more.collect();
        assert!(
            more.iter()
                .all(|role| matches!(role, BatchRole::Single(Some(_))))
        );
    }

    #[test]
    fn with_one_connection_the_second_caller_is_batched() {
        let batcher = Batcher::<Asked>::new(100, 1000, 1);
        let _single = join(&batcher, "g", "k");
        assert!(matches!(join(&batcher, "g", "k"), BatchRole::Leader(_)));
    }

    #[test]
    fn long_single_requests_do_not_delay_batches() {
        let batcher = batcher();
        let Busy { leaders, singles } = busy(&batcher);
        drop(leaders);
        for n in 0..10 {
            assert!(join_and_check(&batcher, &n.to_string()));
        }
        drop(singles);
        assert!(is_idle(&batcher));
    }

    #[test]
    fn keys_that_gather_go_in_one_batch() {
        let batcher = batcher();
        let busy = busy(&batcher);
        thread::scope(|scope| {
            let callers: Vec<_> = (0..30)
                .map(|n| {
                    let batcher = &batcher;
                    let key = format!("key-{n}");
                    scope.spawn(move || match join(batcher, "group", &key) {
                        BatchRole::Leader(leader) => (send(leader).0.len(), true),
                        BatchRole::Waiter(asked, place) => {
                            let asked = asked.expect("the leader did not give up");
                            assert_eq!(asked[place], key);
                            (asked.len(), false)
                        }
                        _ => panic!("there was room"),
                    })
                })
                .collect();
            wait_for_keys(&batcher, 30);
            drop(busy);
            let batches: Vec<_> = callers.into_iter().map(|c| c.join().unwrap()).collect();
            assert!(batches.iter().all(|(len, _)| *len == 30));
            assert_eq!(batches.iter().filter(|(_, led)| *led).count(), 1);
        });
        assert!(is_idle(&batcher));
    }

    #[test]
    fn groups_have_batches_of_their_own_and_a_third_group_finds_no_room() {
        let batcher = batcher();
        let busy = busy(&batcher);
        thread::scope(|scope| {
            for group in ["a", "b"] {
                let batcher = &batcher;
                scope.spawn(move || match join(batcher, group, group) {
                    BatchRole::Leader(leader) => assert_eq!(send(leader).0, [group]),
                    _ => panic!("this caller is the only one of its group"),
                });
            }
            wait_for_keys(&batcher, 2);
            assert!(matches!(join(&batcher, "c", "c"), BatchRole::Single(None)));
            drop(busy);
        });
        assert!(is_idle(&batcher));
    }

    #[test]
    fn batch_is_bounded_by_keys_and_by_bytes() {
        for (batcher, key) in [
            (Batcher::new(2, 1000, 100), "k"),
            (Batcher::new(100, 4, 100), "ke"),
        ] {
            let busy = busy(&batcher);
            thread::scope(|scope| {
                for _ in 0..4 {
                    let batcher = &batcher;
                    scope.spawn(move || assert!(join_and_check(batcher, key)));
                }
                wait_for_keys(&batcher, 4);
                let sizes: Vec<_> = {
                    let state = batcher.state.lock();
                    state
                        .gathering
                        .iter()
                        .map(|batch| batch.keys.len())
                        .collect()
                };
                assert_eq!(sizes, [2, 2]);
                let refused = join(&batcher, "group", key);
                assert!(matches!(refused, BatchRole::Single(None)));
                drop(busy);
            });
            assert!(is_idle(&batcher));
        }
        let batcher = Batcher::new(100, 4, 100);
        let _busy = busy(&batcher);
        let refused = join(&batcher, "group", "longer");
        assert!(matches!(refused, BatchRole::Single(None)));
    }

    /// A deadline, and a clock that passes it once the test advances `clock`. Condition variables
    /// wait in real time, for at most [`STEP`].
    fn deadline_by(clock: &Clock) -> (Instant, impl FnMut() -> Instant + '_) {
        let (start, origin): (Instant, Tick) = (Instant::now(), clock.now());
        let now = move || start + STEP * u32::from(clock.now() > origin);
        (start + STEP, now)
    }

    const STEP: Duration = Duration::from_millis(5);

    #[test]
    fn waiter_that_times_out_does_not_affect_the_others() {
        let batcher = batcher();
        let busy = busy(&batcher);
        let clock = Clock::manual();
        thread::scope(|scope| {
            let leaving = scope.spawn(|| {
                let (deadline, now) = deadline_by(&clock);
                batcher.join("group", "a", deadline, now)
            });
            wait_for_keys(&batcher, 1);
            let staying = scope.spawn(|| join_and_check(&batcher, "b"));
            wait_for_keys(&batcher, 2);
            clock.advance(STEP);
            assert!(matches!(leaving.join().unwrap(), BatchRole::TimedOut));
            drop(busy);
            assert!(staying.join().unwrap());
        });
        assert!(is_idle(&batcher));
    }

    #[test]
    fn last_waiter_that_times_out_removes_the_batch() {
        let batcher = batcher();
        let busy = busy(&batcher);
        let late = batcher.join("group", "a", Instant::now(), Instant::now);
        assert!(matches!(late, BatchRole::TimedOut));
        assert!(batcher.state.lock().gathering.is_empty());
        drop(busy);
        assert!(is_idle(&batcher));
    }

    #[test]
    fn waiters_of_a_panicking_leader_get_no_result() {
        let batcher = batcher();
        let busy = busy(&batcher);
        let waited = thread::scope(|scope| {
            let callers: Vec<_> = (0..8)
                .map(|n| {
                    let batcher = &batcher;
                    scope.spawn(move || {
                        catch_unwind(AssertUnwindSafe(|| {
                            match join(batcher, "group", &n.to_string()) {
                                BatchRole::Leader(_leader) => panic!("in the transport"),
                                BatchRole::Waiter(result, _) => assert!(result.is_none()),
                                _ => panic!("there was room"),
                            }
                        }))
                        .is_ok()
                    })
                })
                .collect();
            wait_for_keys(&batcher, 8);
            drop(busy);
            let waited = callers.into_iter().map(|caller| caller.join().unwrap());
            waited.filter(|waited| *waited).count()
        });
        assert_eq!(waited, 7);
        assert!(is_idle(&batcher));
    }

    /// Leaders succeed, give up or panic, waiters time out at any moment, and there are more groups than
    /// batches. No call hangs, each gets the result of its own key, and all counts return to zero.
    #[test]
    fn random_outcomes_leave_the_batcher_idle() {
        let batcher = Batcher::new(5, 1000, 100);
        let one = |thread: usize, n: usize| {
            let group = ["a", "b", "c"][(thread + n) % 3];
            let key = format!("{thread}-{n}");
            let patience = match n % 5 {
                0 => LONG,
                _ => Duration::from_micros((thread * 37 + n * 101) as u64 % 300),
            };
            match batcher.join(group, &key, Instant::now() + patience, Instant::now) {
                BatchRole::Leader(leader) => match n % 4 {
                    0 => drop(leader),
                    // Unlike `panic!`, this does not run the panic hook.
                    1 => resume_unwind(Box::new("in the transport")),
                    _ => {
                        thread::yield_now();
                        let (asked, place) = send(leader);
                        assert_eq!(asked[place], key);
                    }
                },
                BatchRole::Waiter(result, place) => {
                    assert!(result.is_none_or(|asked| asked[place] == key));
                }
                BatchRole::Single(Some(_guard)) => thread::yield_now(),
                BatchRole::TimedOut => {
                    assert!(patience < LONG, "a waiter with a long deadline timed out")
                }
                BatchRole::Single(None) => {}
            }
        };
        let on_purpose = |cause: Box<dyn std::any::Any + Send>| {
            assert_eq!(cause.downcast_ref(), Some(&"in the transport"));
        };
        thread::scope(|scope| {
            for thread in 0..24 {
                let one = &one;
                scope.spawn(move || {
                    for n in 0..500 {
                        catch_unwind(AssertUnwindSafe(|| one(thread, n)))
                            .unwrap_or_else(on_purpose);
                    }
                });
            }
        });
        assert!(is_idle(&batcher));
    }

    /// The bound of three requests depends on this: a gathering batch begins when those that were
    /// under way have ended, and waits for none that began later.
    #[test]
    fn batch_waits_only_for_batches_that_were_under_way() {
        let batcher = batcher();
        let mut busy = busy(&batcher);
        let both_lead = Barrier::new(2);
        thread::scope(|scope| {
            for (n, group) in ["a", "b"].into_iter().enumerate() {
                let (batcher, both_lead) = (&batcher, &both_lead);
                scope.spawn(move || {
                    let BatchRole::Leader(leader) = join(batcher, group, "key") else {
                        panic!("this caller is the only one of its group");
                    };
                    // Neither ends before the other has begun.
                    both_lead.wait();
                    send(leader);
                });
                wait_for_keys(batcher, n + 1);
            }
            busy.leaders.clear();
        });
        drop(busy);
        assert!(is_idle(&batcher));
    }
}

#[cfg(not(larder_loom))]
mod deadlines {
    use super::*;
    use crate::context::Context;
    use crate::error::{Error, ErrorKind, Result};
    use crate::http::client::health::watch::Watch;
    use crate::http::client::peer::HttpPeer;
    use crate::http::client::peer::batch_values::BatchResult;
    use crate::http::client::transport::target::Target;
    use crate::http::client::transport::url::PeerUrl;
    use crate::http::client::transport::{
        DefaultTransport, IdleConnections, Transport, TransportRequest, TransportResponse,
    };
    use crate::http::config::Config;
    use crate::http::membership::Membership;
    use crate::pb::GetRequest;
    use crate::peers::{PeerResponse, ProtoGetter};
    use crate::sync::atomic::{AtomicUsize, Ordering};
    use crate::sync::eventually;
    use crossbeam_channel::{Receiver, Sender, unbounded};

    /// A peer that answers single requests, but none for the key "held". It does not answer batches: each
    /// ends at the deadline of its caller, or is released.
    struct HangingBatches {
        released: Receiver<()>,
        ended: Receiver<()>,
        /// The batches that ended at the deadline of their caller.
        late: AtomicUsize,
    }

    impl Transport for HangingBatches {
        fn round_trip(
            &self,
            ctx: &Context,
            request: TransportRequest<'_>,
        ) -> Result<TransportResponse> {
            let is_batch = request.method() == "POST";
            if !is_batch && !request.path().ends_with("held") {
                let mut response = TransportResponse::new(200, &b"\x0a\x01x"[..]);
                response.set_header("content-type", "application/x-protobuf")?;
                return Ok(response);
            }
            match ctx.deadline() {
                None if is_batch => _ = self.released.recv_timeout(LONG),
                None => _ = self.ended.recv_timeout(LONG),
                Some(deadline) => {
                    thread::sleep(deadline.saturating_duration_since(Instant::now()));
                    self.late.fetch_add(1, Ordering::SeqCst);
                }
            }
            Err(ctx.err().unwrap_or(Error::new(ErrorKind::Peer, "refused")))
        }
    }

    impl IdleConnections for HangingBatches {
        fn close_idle(&self) {}
    }

    /// A peer whose second of two requests is batched.
    fn peer() -> (HttpPeer, Arc<HangingBatches>, [Sender<()>; 2]) {
        let url = PeerUrl::parse("http://127.0.0.1:1").expect("a URL");
        let config = Config {
            max_connections_per_peer: 3,
            ..Config::for_test()
        };
        let ((release, released), (end, ended)) = (unbounded(), unbounded());
        let transport = Arc::new(HangingBatches {
            released,
            ended,
            late: AtomicUsize::new(0),
        });
        let by = DefaultTransport {
            transport: transport.clone(),
            connections: transport.clone(),
        };
        let target = Target::new(&url, &Arc::new(config));
        let watch = Watch::new(LONG, LONG);
        let peer = HttpPeer::new(target, "id", Arc::new(Membership::new()), by, watch);
        (peer, transport, [release, end])
    }

    fn get(peer: &HttpPeer, ctx: &Context, key: &str) -> Result<PeerResponse> {
        let request = GetRequest {
            group: "group".into(),
            key: key.into(),
        };
        peer.get(ctx, &request)
    }

    fn until(peer: &HttpPeer, condition: impl Fn(&BatcherState<BatchResult>) -> bool) {
        eventually(|| condition(&peer.batcher.state.lock()));
    }

    /// A caller with much time waits in a batch after one that has little time and leads it. Returns the
    /// result of the first, and how many batches ended at the deadline of the second.
    fn wait_for_a_leader_in_a_hurry() -> (Result<PeerResponse>, usize) {
        let (peer, transport, [release, end]) = peer();
        let (peer, background) = (&peer, &Context::background());
        thread::scope(|scope| {
            scope.spawn(move || get(peer, background, "held"));
            until(peer, |state| state.callers == 1);
            for running in 1..=MAX_RUNNING {
                scope.spawn(move || get(peer, background, "batched"));
                until(peer, |state| state.running == running);
            }
            let soon = background.with_timeout(Duration::from_millis(300));
            let hurried = scope.spawn(move || get(peer, &soon, "in a hurry"));
            let members = |state: &BatcherState<_>| state.gathering.front().map(|b| b.members);
            until(peer, |state| members(state) == Some(1));
            let patient = scope.spawn(move || get(peer, background, "key"));
            until(peer, |state| members(state) == Some(2));
            // One batch ends.
            release.send(()).expect("they wait");
            eventually(|| hurried.is_finished());
            drop((release, end));
            let late = transport.late.load(Ordering::SeqCst);
            (patient.join().expect("no panic"), late)
        })
    }

    #[test]
    fn waiter_is_not_failed_by_the_deadline_of_its_leader() {
        for _ in 0..20 {
            let (result, late) = wait_for_a_leader_in_a_hurry();
            assert_eq!(result.expect("its own request").value, "x");
            if late > 0 {
                return;
            }
        }
        panic!("the second caller never led");
    }
}

#[cfg(larder_loom)]
mod model {
    use super::*;
    use loom::sync::Arc;

    #[test]
    fn loom_waiters_get_their_own_results_and_nothing_is_left() {
        loom::model(|| {
            let batcher = Arc::new(batcher());
            let Busy { leaders, singles } = busy(&batcher);
            drop(singles);
            let callers: Vec<_> = ["a", "b"]
                .into_iter()
                .map(|key| {
                    let batcher = batcher.clone();
                    thread::spawn(move || assert!(join_and_check(&batcher, key)))
                })
                .collect();
            drop(leaders);
            for caller in callers {
                caller.join().unwrap();
            }
            assert!(is_idle(&batcher));
        });
    }

    #[test]
    fn loom_notification_consumed_by_a_leaving_waiter_is_passed_on() {
        loom::model(|| {
            let batcher = Arc::new(batcher());
            let Busy { leaders, singles } = busy(&batcher);
            drop(singles);
            let staying = {
                let batcher = batcher.clone();
                thread::spawn(move || assert!(join_and_check(&batcher, "stays")))
            };
            let leaving = {
                let batcher = batcher.clone();
                // The deadline passes before the clock is read a second time: the waiter has waited
                // and was woken.
                let deadline = Instant::now() + LONG;
                let mut looks = [deadline - LONG].into_iter();
                let now = move || looks.next().unwrap_or(deadline);
                thread::spawn(
                    move || match batcher.join("group", "leaves", deadline, now) {
                        BatchRole::Leader(leader) => drop(send(leader)),
                        BatchRole::TimedOut | BatchRole::Waiter(..) | BatchRole::Single(_) => {}
                    },
                )
            };
            drop(leaders);
            staying.join().unwrap();
            leaving.join().unwrap();
            assert!(is_idle(&batcher));
        });
    }

    #[test]
    fn loom_waiter_of_a_leader_that_gives_up_gets_no_result() {
        loom::model(|| {
            let batcher = Arc::new(batcher());
            let Busy { leaders, singles } = busy(&batcher);
            drop(singles);
            let callers: Vec<_> = ["a", "b"]
                .into_iter()
                .map(|key| {
                    let batcher = batcher.clone();
                    thread::spawn(move || match join(&batcher, "group", key) {
                        BatchRole::Leader(leader) => drop(leader),
                        BatchRole::Waiter(result, _) => assert!(result.is_none()),
                        BatchRole::Single(Some(_)) => {}
                        _ => panic!("there is room and time"),
                    })
                })
                .collect();
            drop(leaders);
            for caller in callers {
                caller.join().unwrap();
            }
            assert!(is_idle(&batcher));
        });
    }
}
