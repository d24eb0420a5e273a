//! Model of the rounds of requests to all peers.

use super::*;
use crate::clock::Clock;
use crate::loom_models::explore;
use crate::sync::atomic::AtomicUsize;
use crate::sync::thread;

/// Two gets begin a round at the same time. If one asks the peers while the other one does, that one waits, and
/// its wait ends with the round. (loom's waits have no time-out, so a lost notification would be a deadlock.)
#[test]
fn one_get_at_a_time_asks_the_peers() {
    explore(|| {
        let now = Clock::manual().now();
        let state = Arc::new((MaxUnverified::new(None), AtomicUsize::new(0)));
        let ask = move |state: &(MaxUnverified, AtomicUsize)| {
            let (unverified, asking) = state;
            let round = unverified.begin_round(&Context::background(), now);
            if let Some(mut round) = round {
                assert_eq!(asking.fetch_add(1, Ordering::SeqCst), 0);
                asking.fetch_sub(1, Ordering::SeqCst);
                round.paused_until = Some(now.after(Duration::from_secs(1)));
            }
        };
        let other = {
            let state = state.clone();
            thread::spawn(move || ask(&state))
        };
        ask(&state);
        other.join().expect("no panic");
        let (unverified, _) = &*state;
        assert!(!unverified.round.lock().is_under_way);
        let during_pause = unverified.begin_round(&Context::background(), now);
        assert!(during_pause.is_none());
    });
}
