//! Permits to run a getter: at most so many at a time, and the load with the earliest deadline gets the next
//! one.

#[cfg(all(test, not(larder_loom)))]
mod tests;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::context::Context;
use crate::sync::{Arc, Condvar, Mutex};

/// The permits of a group.
///
/// A permit that is given back goes to a waiting load at once, so no later load takes it.
pub(crate) struct LoadPermits {
    state: Mutex<PermitQueues>,
    max: usize,
    /// The longest wait of a load without a deadline.
    max_wait: Duration,
}

#[derive(Default)]
struct PermitQueues {
    /// The permits in use, by [`LoadClass`].
    taken: [usize; 2],
    /// The waiting loads, by [`LoadClass`].
    waiting: [WaitingLoads; 2],
    /// The number of the next load that waits.
    next: u64,
}

/// Waiting loads in the order of their places. A load that is not here any more has got its permit.
#[derive(Default)]
struct WaitingLoads(VecDeque<(Place, Arc<Condvar>)>);

impl WaitingLoads {
    fn find(&self, place: Place) -> Result<usize, usize> {
        self.0.binary_search_by_key(&place, |(place, _)| *place)
    }

    fn insert(&mut self, place: Place, granted: Arc<Condvar>) {
        let (Ok(at) | Err(at)) = self.find(place);
        self.0.insert(at, (place, granted));
    }

    /// Whether the load was there.
    fn remove(&mut self, place: Place) -> bool {
        let found = self.find(place);
        found.is_ok_and(|at| self.0.remove(at).is_some())
    }
}

/// The place of a waiting load: that with the earliest deadline is first, and of equal ones that which came
/// first.
type Place = (Urgency, u64);

/// The keys that a load is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LoadClass {
    /// Keys that this process owns.
    Own,
    /// Keys of a peer that does not answer, or that asks for them in place of the owner. Such loads have
    /// half of the permits at most, rounded up.
    Fallback,
}

/// The order in which waiting loads get permits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Urgency {
    /// The getter runs already: see [`LoadPermit::lend`].
    Resumed,
    /// The load has a deadline.
    By(Instant),
    /// No caller waits for the load.
    Background,
}

impl PermitQueues {
    fn has_room(&self, class: LoadClass, max: usize) -> bool {
        let [own, fallback] = self.taken;
        own + fallback < max && (class == LoadClass::Own || fallback < max.div_ceil(2))
    }

    /// Gives free permits to waiting loads.
    fn grant(&mut self, max: usize) {
        loop {
            let first = |class: LoadClass| {
                let (place, _) = self.waiting[class as usize].0.front()?;
                self.has_room(class, max).then_some((*place, class))
            };
            let first = [LoadClass::Own, LoadClass::Fallback].map(first);
            let first = first.into_iter().flatten().min_by_key(|(place, _)| *place);
            let Some((_, class)) = first else {
                return;
            };
            if let Some((_, granted)) = self.waiting[class as usize].0.pop_front() {
                self.taken[class as usize] += 1;
                granted.notify_one();
            }
        }
    }
}

impl LoadPermits {
    pub(crate) fn new(max: usize, max_wait: Duration) -> Arc<LoadPermits> {
        Arc::new(LoadPermits {
            state: Mutex::default(),
            max,
            max_wait,
        })
    }

    pub(crate) fn max(&self) -> usize {
        self.max
    }

    /// A permit, if one is free. Then no load waits for it.
    pub(crate) fn try_acquire(self: &Arc<Self>, class: LoadClass) -> Option<LoadPermit> {
        let mut state = self.state.lock();
        if !state.has_room(class, self.max) {
            return None;
        }
        state.taken[class as usize] += 1;
        drop(state);
        Some(self.permit(class))
    }

    /// A place among the loads that wait.
    pub(crate) fn queue(self: &Arc<Self>, class: LoadClass, urgency: Urgency) -> QueuedLoad {
        let granted = Arc::new(Condvar::new());
        let mut state = self.state.lock();
        let place = (urgency, state.next);
        state.next += 1;
        state.waiting[class as usize].insert(place, granted.clone());
        // A permit may have become free since the caller tried.
        state.grant(self.max);
        drop(state);
        QueuedLoad {
            permits: self.clone(),
            class,
            place,
            granted,
            has_permit: false,
        }
    }

    fn permit(self: &Arc<Self>, class: LoadClass) -> LoadPermit {
        LoadPermit {
            permits: self.clone(),
            class,
        }
    }

    fn give_back(&self, class: LoadClass) {
        let mut state = self.state.lock();
        state.taken[class as usize] -= 1;
        state.grant(self.max);
    }

    /// The number of permits in use, and of loads that wait.
    #[cfg(test)]
    pub(crate) fn usage(&self) -> (usize, usize) {
        let state = self.state.lock();
        let waiting = state.waiting.iter().map(|waiting| waiting.0.len()).sum();
        (state.taken.iter().sum(), waiting)
    }

    /// How many loads have waited so far.
    #[cfg(all(test, not(larder_loom)))]
    pub(crate) fn waits(&self) -> u64 {
        self.state.lock().next
    }
}

/// Allows one run of the getter, until it is dropped.
pub(crate) struct LoadPermit {
    permits: Arc<LoadPermits>,
    class: LoadClass,
}

impl LoadPermit {
    /// Gives the permit back while its getter waits for another load. Otherwise getters that wait for each
    /// other's keys could hold all permits, and no key would be loaded.
    pub(crate) fn lend(self, deadline: Option<Instant>) -> LentPermit {
        LentPermit {
            deadline,
            permits: self.permits.clone(),
            class: self.class,
        }
    }
}

impl Drop for LoadPermit {
    fn drop(&mut self) {
        self.permits.give_back(self.class);
    }
}

/// A permit that its getter [lent](LoadPermit::lend).
pub(crate) struct LentPermit {
    permits: Arc<LoadPermits>,
    class: LoadClass,
    /// The deadline of the call that the getter waits for.
    deadline: Option<Instant>,
}

impl LentPermit {
    /// A permit again: the getter waits before all other loads. At the deadline of its call, or at `by` because the
    /// other getters hang, it gets one that is over the limit.
    #[cold]
    pub(crate) fn resume(&self, by: Instant) -> LoadPermit {
        let by = self.deadline.map_or(by, |deadline| deadline.min(by));
        let mut queued = self.permits.queue(self.class, Urgency::Resumed);
        let permit = queued.wait(by, &Context::background());
        permit.unwrap_or_else(|| {
            self.permits.state.lock().taken[self.class as usize] += 1;
            self.permits.permit(self.class)
        })
    }

    /// How long the getters of one call wait to go on.
    pub(crate) fn longest_resume(&self) -> Duration {
        self.permits.max_wait.max(SHORTEST_RESUME)
    }
}

/// A load that waits for a permit. Its drop leaves the queue. If it has been given a permit in that moment,
/// the next load gets it.
pub(crate) struct QueuedLoad {
    permits: Arc<LoadPermits>,
    class: LoadClass,
    place: Place,
    /// Notified when the load gets its permit, and when its context is cancelled.
    granted: Arc<Condvar>,
    has_permit: bool,
}

impl QueuedLoad {
    /// Waits for the permit until the given time, or until `ctx` is cancelled. `None` if there is none by
    /// then. The load keeps its place.
    pub(crate) fn wait(&mut self, until: Instant, ctx: &Context) -> Option<LoadPermit> {
        // The callback takes the lock, so it cannot run between the check and the wait below.
        let _subscription = ctx.cancellable().then(|| {
            let (permits, granted) = (self.permits.clone(), self.granted.clone());
            ctx.on_cancel(move || {
                let _state = permits.state.lock();
                granted.notify_one();
            })
        });
        let mut state = self.permits.state.lock();
        while state.waiting[self.class as usize].find(self.place).is_ok() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || ctx.is_cancelled() {
                return None;
            }
            state = self.granted.wait_timeout(state, left);
        }
        drop(state);
        self.has_permit = true;
        Some(self.permits.permit(self.class))
    }
}

impl Drop for QueuedLoad {
    fn drop(&mut self) {
        if self.has_permit {
            return;
        }
        let mut state = self.permits.state.lock();
        let left = state.waiting[self.class as usize].remove(self.place);
        drop(state);
        if !left {
            self.permits.give_back(self.class);
        }
    }
}

/// The longest wait of a getter that goes on, if the loads wait less.
const SHORTEST_RESUME: Duration = Duration::from_secs(1);
