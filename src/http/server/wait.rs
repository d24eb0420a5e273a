//! Waits for the load of a request: until its time is over, its client has left, or the connection has
//! to make room for another.

use std::any::Any;
use std::cell::OnceCell;
use std::time::{Duration, Instant};

use super::abandoned::{AbandonedLoads, StartedLoad};
use super::connections::{Activity, Connection};
use crate::error::{ErrorKind, Result};
use crate::group::ClientWaiter;
use crate::sync::Arc;
use crate::wire;

/// The bounds of a request's waits for loads.
#[derive(Clone, Copy)]
pub(crate) struct LoadLimits<'a> {
    pub max_request_time: Duration,
    /// When the first wait of the request began. A request that is answered anew has no more time for that.
    pub began: &'a OnceCell<Instant>,
    /// `None` if another server has the connection: then it is not known whether the client left.
    pub connection: Option<(&'a Connection, &'a Arc<AbandonedLoads>)>,
}

/// One request's wait for a load.
///
/// The thread wakes up after 10, 20, 40, 80, 160 ms and then every 200 ms to see whether its client
/// has left, which costs a wake-up and one system call. A load of up to 10 ms costs none.
pub(crate) struct LoadWait<'a> {
    limits: LoadLimits<'a>,
    /// Whether the request has a time-out.
    pub has_timeout: bool,
    pub deadline: Instant,
    /// The end of the getter's context. It is later than that of the exchange: a client that receives
    /// [`ErrorKind::Loading`] asks again.
    pub load_deadline: Instant,
    /// When to respond that the value is still loaded; `None` if the request has no time-out, because
    /// its client does not expect that response, or one of 0.
    loading_at: Option<Instant>,
    /// See [`ClientWaiter::thread_by`].
    thread_by: Instant,
    step: Duration,
    /// When the end of the client's requests was noticed.
    gone_since: Option<Instant>,
    loads: Vec<Arc<StartedLoad>>,
    /// The reason that the wait ended before its load; `None` if it did not.
    pub end: Option<ErrorKind>,
}

impl<'a> LoadWait<'a> {
    /// A wait of a request with this time-out. The first one begins now.
    pub(crate) fn new(limits: LoadLimits<'a>, timeout: Option<Duration>) -> Self {
        let now = Instant::now();
        let began = *limits.began.get_or_init(|| now);
        let max = limits.max_request_time;
        let time = timeout.map_or(max, |timeout| timeout.min(max));
        let has_time = timeout.is_some_and(|timeout| !timeout.is_zero());
        let loading_at = has_time.then(|| began + wire::loading_after(time));
        let deadline = began + time;
        let load_deadline = if has_time { began + max } else { deadline };
        LoadWait {
            limits,
            has_timeout: timeout.is_some(),
            deadline,
            load_deadline,
            loading_at,
            thread_by: loading_at.unwrap_or(deadline).min(now + THREAD_WAIT),
            step: FIRST_STEP,
            gone_since: None,
            loads: Vec::new(),
            end: None,
        }
    }

    /// Whether the thread is to leave, because of the client or for the sake of other clients.
    fn is_client_gone(&mut self, now: Instant) -> bool {
        let Some((connection, _)) = self.limits.connection else {
            return false;
        };
        if connection.is_evicted() {
            return true;
        }
        if self.gone_since.is_none() && connection.has_ended() {
            // The client may have closed only its sending side and still read. So a load that ends
            // soon is still answered. But meanwhile the connection may be closed to make room.
            self.gone_since = Some(now);
            connection.set_activity(Activity::Gone);
        }
        self.gone_since
            .is_some_and(|since| now - since >= GONE_AFTER)
    }
}

impl ClientWaiter for LoadWait<'_> {
    fn start(&mut self) -> Result<Option<Arc<dyn Any + Send + Sync>>> {
        if let Some((connection, abandoned)) = self.limits.connection {
            if !connection.is_from_peer() {
                let load = abandoned.start(connection.addr.ip().to_canonical())?;
                self.loads.push(load.clone());
                return Ok(Some(load));
            }
        }
        Ok(None)
    }

    fn thread_by(&self) -> Instant {
        self.thread_by
    }

    fn answer_by(&self) -> Instant {
        self.loading_at.unwrap_or(self.deadline)
    }

    fn next_step(&mut self) -> Option<Instant> {
        let now = Instant::now();
        let is_first = self.step == FIRST_STEP;
        let end = if self.loading_at.is_some_and(|at| now >= at) {
            // Also if this thread is so late that the time is over: a client that still waits asks again.
            Some(ErrorKind::Loading)
        } else if now >= self.deadline {
            Some(ErrorKind::DeadlineExceeded)
        } else if !is_first && self.is_client_gone(now) {
            Some(ErrorKind::Cancelled)
        } else {
            None
        };
        if end.is_some() {
            self.end = end;
            self.loads.drain(..).for_each(|load| load.abandon());
            return None;
        }
        let next = now + self.step;
        self.step = (self.step * 2).min(LONGEST_STEP);
        Some(next.min(self.answer_by()))
    }
}

/// How long a request waits for a loader thread. Clients that ask for many new keys at once are served
/// one after the other while the getter is quick. If it hangs, a client has its answer before its own
/// time-out (1 s by default).
const THREAD_WAIT: Duration = Duration::from_millis(500);

const FIRST_STEP: Duration = Duration::from_millis(10);
const LONGEST_STEP: Duration = Duration::from_millis(200);

/// How long a request is still waited for after its client has closed its sending side.
const GONE_AFTER: Duration = Duration::from_millis(500);

#[cfg(all(test, not(larder_loom)))]
mod tests {
    use super::*;

    /// How a wait ends whose thread runs again after the deadline.
    fn end_of_late_wait(timeout: Option<Duration>) -> Option<ErrorKind> {
        let limits = LoadLimits {
            max_request_time: Duration::from_millis(1),
            began: &OnceCell::new(),
            connection: None,
        };
        let mut wait = LoadWait::new(limits, timeout);
        while Instant::now() < wait.deadline {
            std::thread::yield_now();
        }
        assert_eq!(wait.next_step(), None);
        wait.end
    }

    #[test]
    fn late_thread_tells_a_client_that_may_still_wait_that_the_value_is_loaded() {
        let (hour, zero) = (Duration::from_secs(3600), Duration::ZERO);
        assert_eq!(end_of_late_wait(Some(hour)), Some(ErrorKind::Loading));
        let spent = Some(ErrorKind::DeadlineExceeded);
        assert_eq!(end_of_late_wait(Some(zero)), spent);
        assert_eq!(end_of_late_wait(None), spent);
    }

    #[test]
    fn value_is_in_time_before_the_client_is_told_that_it_is_loaded() {
        let limits = LoadLimits {
            max_request_time: Duration::from_secs(60),
            began: &OnceCell::new(),
            connection: None,
        };
        let wait = LoadWait::new(limits, Some(Duration::from_secs(8)));
        assert_eq!(wait.deadline - wait.answer_by(), Duration::from_secs(1));
        let wait = LoadWait::new(limits, None);
        assert_eq!(wait.answer_by(), wait.deadline);
    }

    #[test]
    fn all_waits_of_a_request_end_by_the_deadline_of_the_first() {
        let limits = LoadLimits {
            max_request_time: Duration::from_secs(60),
            began: &OnceCell::new(),
            connection: None,
        };
        let first = LoadWait::new(limits, None);
        while Instant::now() == first.deadline - limits.max_request_time {
            std::thread::yield_now();
        }
        assert_eq!(LoadWait::new(limits, None).deadline, first.deadline);
    }
}
