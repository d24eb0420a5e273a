//! Permits to run a getter: loads that wait, leave, and lend theirs.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use loom::model;

use crate::context::Context;
use crate::sync::Arc;
use crate::sync::atomic::AtomicUsize;
use crate::sync::thread;
use crate::threads::load_permits::{LoadClass, LoadPermits, Urgency};
use crate::threads::nesting::{hold_permit, lend_permit, release_permit};

const MAX_WAIT: Duration = Duration::from_secs(3600);

/// The getters that run.
#[derive(Clone)]
struct Running(Arc<AtomicUsize>);

impl Running {
    fn new() -> Running {
        Running(Arc::new(AtomicUsize::new(0)))
    }

    fn run(&self, max: usize) {
        assert!(self.0.fetch_add(1, Ordering::SeqCst) < max);
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

fn later() -> Instant {
    Instant::now() + Duration::from_secs(3600)
}

/// Waits for a permit, as `Inner::permit_lead` does, and runs with it. False if `ctx` ended before.
fn load(permits: &Arc<LoadPermits>, running: &Running, ctx: &Context) -> bool {
    let permit = permits.try_acquire(LoadClass::Own).or_else(|| {
        let mut queued = permits.queue(LoadClass::Own, Urgency::By(later()));
        queued.wait(later(), ctx)
    });
    let Some(permit) = permit else {
        return false;
    };
    let _held = hold_permit(permit);
    running.run(1);
    release_permit();
    true
}

#[test]
fn one_load_runs_at_a_time_and_each_gets_its_turn() {
    model(|| {
        let (permits, running) = (LoadPermits::new(1, MAX_WAIT), Running::new());
        let others: Vec<_> = (0..2)
            .map(|_| {
                let (permits, running) = (permits.clone(), running.clone());
                thread::spawn(move || load(&permits, &running, &Context::background()))
            })
            .collect();
        assert!(load(&permits, &running, &Context::background()));
        for other in others {
            assert!(other.join().unwrap());
        }
        assert_eq!(permits.usage(), (0, 0));
    });
}

#[test]
fn load_that_leaves_never_keeps_a_permit() {
    model(|| {
        let (permits, running) = (LoadPermits::new(1, MAX_WAIT), Running::new());
        let first = permits.try_acquire(LoadClass::Own);
        let (ctx, canceller) = Context::background().with_cancel();
        let leaving = {
            let (permits, running) = (permits.clone(), running.clone());
            thread::spawn(move || load(&permits, &running, &ctx))
        };
        let patient = {
            let (permits, running) = (permits.clone(), running.clone());
            thread::spawn(move || load(&permits, &running, &Context::background()))
        };
        canceller.cancel();
        drop(first);
        leaving.join().unwrap();
        assert!(patient.join().unwrap());
        assert_eq!(permits.usage(), (0, 0));
    });
}

#[test]
fn getter_that_waits_for_another_load_lets_it_run() {
    model(|| {
        let (permits, running) = (LoadPermits::new(1, MAX_WAIT), Running::new());
        let outer = permits.try_acquire(LoadClass::Own);
        let _held = hold_permit(outer.expect("it is free"));
        let nested = {
            let (permits, running) = (permits.clone(), running.clone());
            thread::spawn(move || load(&permits, &running, &Context::background()))
        };
        {
            let _lent = lend_permit(&Context::background());
            assert!(nested.join().unwrap());
        }
        running.run(1);
        release_permit();
        assert_eq!(permits.usage(), (0, 0));
    });
}
