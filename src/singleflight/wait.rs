//! The end of a flight, and the wait for it.

use std::time::Instant;

use crate::context::Context;
use crate::error::{Error, ErrorKind};
use crate::sync::{Arc, Condvar, Mutex, OnceLock};
use crate::threads::recursion::LoadId;

/// The end and the result of a flight. Its waiters share it.
pub(super) struct Outcome<T> {
    state: Mutex<OutcomeState>,
    changed: Condvar,
    /// The result of a finished flight. It is outside the lock, so that waiters clone it in parallel.
    pub(super) result: OnceLock<T>,
}

impl<T> Default for Outcome<T> {
    fn default() -> Self {
        Outcome {
            state: Mutex::default(),
            changed: Condvar::new(),
            result: OnceLock::new(),
        }
    }
}

#[derive(Default)]
struct OutcomeState {
    /// `None` while the flight is under way. Set under the lock, after `result`. A waiter checks it
    /// under the same lock before it sleeps, so it does not miss the wake-up of `changed`.
    end: Option<FlightEnd>,
    /// Whether a waiter may sleep. If not, the end of the flight wakes none: a wake-up is a system call also
    /// if it finds no thread.
    has_sleeper: bool,
}

/// How a flight ended.
#[derive(Clone, Copy)]
pub(super) enum FlightEnd {
    Finished,
    Abandoned,
    Refused,
    Panicked,
}

/// How a wait ended.
#[derive(Debug)]
pub(crate) enum Waited<T> {
    /// The flight has this result.
    Finished(T),
    /// The leader abandoned the flight. The waiter has to join again.
    Abandoned,
    /// The leader abandoned the flight, because no more work may begin.
    Refused,
    /// The leader panicked.
    Panicked,
    /// This waiter's own deadline or cancellation came first. The flight goes on.
    Left(Error),
}

/// Waits for a flight that another caller leads.
pub(crate) struct Waiter<T> {
    pub(super) id: LoadId,
    pub(super) outcome: Arc<Outcome<T>>,
}

impl<T: Clone> Waiter<T> {
    pub(crate) fn id(&self) -> LoadId {
        self.id
    }

    /// Waits until the flight is over or `ctx` has ended.
    pub(crate) fn wait(&self, ctx: &Context) -> Waited<T>
    where
        T: Send + Sync + 'static,
    {
        self.wait_until(ctx, None)
    }

    /// Like [`wait`](Self::wait), and no longer than until the given time.
    pub(crate) fn wait_until(&self, ctx: &Context, until: Option<Instant>) -> Waited<T>
    where
        T: Send + Sync + 'static,
    {
        // A cancellation wakes all waiters of the flight, and each checks its own context. The
        // callback takes the lock, so it cannot run between a waiter's check and its wait.
        let _subscription = ctx.cancellable().then(|| {
            let outcome = self.outcome.clone();
            ctx.on_cancel(move || {
                let _state = outcome.state.lock();
                outcome.changed.notify_all();
            })
        });
        self.wait_unsubscribed(ctx, until)
    }

    /// Like [`wait_until`](Self::wait_until), but a cancellation does not wake the waiter.
    pub(super) fn wait_unsubscribed(&self, ctx: &Context, until: Option<Instant>) -> Waited<T> {
        let Outcome { state, changed, .. } = &*self.outcome;
        let deadline = ctx.deadline().into_iter().chain(until).min();
        let mut state = state.lock();
        let end = loop {
            if let Some(end) = state.end {
                break end;
            }
            if ctx.is_cancelled() {
                return Waited::Left(ErrorKind::Cancelled.into());
            }
            state.has_sleeper = true;
            state = match deadline {
                None => changed.wait(state),
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Waited::Left(ErrorKind::DeadlineExceeded.into());
                    }
                    changed.wait_timeout(state, left)
                }
            };
        };
        drop(state);
        self.over(end)
    }

    /// The end of the wait, if the flight is over.
    pub(crate) fn poll(&self) -> Option<Waited<T>> {
        let end = self.outcome.state.lock().end?;
        Some(self.over(end))
    }

    fn over(&self, end: FlightEnd) -> Waited<T> {
        match (self.outcome.result.get(), end) {
            (Some(value), _) => Waited::Finished(value.clone()),
            (None, FlightEnd::Panicked) => Waited::Panicked,
            (None, FlightEnd::Refused) => Waited::Refused,
            (None, _) => Waited::Abandoned,
        }
    }
}

/// Wakes the waiters of a flight when it is dropped.
pub(super) struct WakeWaiters<T> {
    pub(super) outcome: Arc<Outcome<T>>,
    pub(super) end: FlightEnd,
}

impl<T> Drop for WakeWaiters<T> {
    fn drop(&mut self) {
        let mut state = self.outcome.state.lock();
        state.end = Some(self.end);
        let has_sleeper = state.has_sleeper;
        drop(state);
        if has_sleeper {
            self.outcome.changed.notify_all();
        }
    }
}
