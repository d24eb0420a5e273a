//! Threads for loads whose callers must be able to return before the load ends. The groups of a registry
//! share one pool.

#[cfg(all(test, larder_loom))]
mod loom_models;
#[cfg(all(test, not(larder_loom)))]
mod tests;

use std::any::Any;
use std::cell::Cell;
use std::collections::VecDeque;
use std::io;
use std::time::{Duration, Instant};

use crate::error::{Error, ErrorKind, Result};
use crate::panics::caught;
use crate::sync::plain_atomic::{AtomicUsize, Ordering};
use crate::sync::{Arc, Condvar, Mutex, MutexGuard, spawn};
use crate::threads::nesting::Origin;

/// The caller that a job works for.
pub(crate) enum JobFor {
    /// A caller of this process.
    Own,
    /// A client of the server. Such jobs take at most half of the threads, so that clients cannot
    /// keep this process's own callers from loading. If these are busy, a job waits for one until the
    /// given time. The value is dropped when the job has ended.
    Client(Option<Arc<dyn Any + Send + Sync>>, Instant),
}

struct Job {
    busy: BusyJob,
    /// Dropped after `run`.
    guard: Option<Arc<dyn Any + Send + Sync>>,
    run: Run,
}

type Run = Box<dyn FnOnce(BusyGuard<'_>) + Send>;

/// A pool of up to a number of threads, which start when needed and end when idle.
///
/// No job waits in a queue for a busy thread. A job gets a thread at once or is refused. Only the job of a
/// client waits for a while, on the thread that submits it.
///
/// A group gets another thread only while it has fewer than are left. So a group whose getter hangs takes
/// at most half of the threads, two such groups two thirds, and there are always threads for the others.
pub(crate) struct LoaderPool {
    shared: Arc<PoolShared>,
    /// One for each size of stack.
    sets: Mutex<Vec<Arc<ThreadSet>>>,
}

/// A group's share of a pool.
pub(crate) struct LoaderShare {
    set: Arc<ThreadSet>,
    group: Arc<GroupThreads>,
}

/// The threads with one size of stack. Its drop ends them.
struct ThreadSet(Worker);

impl Drop for ThreadSet {
    fn drop(&mut self) {
        let worker = &self.0;
        worker.pool.state.lock().sets[worker.number].is_closed = true;
        worker.has_job.notify_all();
    }
}

/// All that a thread of a set needs.
#[derive(Clone)]
struct Worker {
    pool: Arc<PoolShared>,
    /// The index of the set in [`PoolState::sets`].
    number: usize,
    /// In bytes; std's default without.
    stack_size: Option<usize>,
    /// Idle threads sleep on it at once. A receiver of crossbeam-channel yields its processor several times
    /// before it sleeps. Then Linux gives it a processor later when its next job comes, if the machine is busy.
    has_job: Arc<Condvar>,
}

struct PoolShared {
    state: Mutex<PoolState>,
    idle_timeout: Duration,
}

struct PoolState {
    /// The id of the process whose threads are counted.
    process: u32,
    max_threads: usize,
    /// The jobs that run or were sent to a thread.
    busy: usize,
    busy_for_clients: usize,
    sets: Vec<SetState>,
    /// The callers that wait for a thread for the job of a client, in the order of their arrival.
    waiting: VecDeque<Arc<ThreadWaiter>>,
}

/// A thread of a set has a job, or drops what its job left, or waits for a job.
#[derive(Default)]
struct SetState {
    live: usize,
    /// Threads that have a job, or will receive one that was sent.
    busy: usize,
    /// Threads that drop what their job left. A drop may run user code, which may wait for another job.
    ending: usize,
    /// The jobs that were sent. There is a thread for each, which may not be waiting yet: see [`BusyGuard`].
    sent: VecDeque<Job>,
    is_closed: bool,
}

impl SetState {
    /// Whether there is a thread for each job.
    fn has_threads(&self) -> bool {
        self.busy + self.ending <= self.live
    }
}

/// The threads of one group. The counts change under the lock of [`PoolShared::state`].
struct GroupThreads {
    max: usize,
    busy: AtomicUsize,
    busy_for_clients: AtomicUsize,
}

/// A caller that waits for a thread. The thread that finds room for its job begins the job in its place,
/// and removes it from [`PoolState::waiting`]. So no later caller takes the room.
struct ThreadWaiter {
    job: BusyJob,
    begun: Condvar,
}

/// The counts in which a job appears.
#[derive(Clone)]
struct BusyJob {
    set: usize,
    group: Arc<GroupThreads>,
    for_client: bool,
}

impl PoolState {
    /// Forgets the idle threads of the process that this one was forked from: it has none of them.
    fn notice_fork(&mut self) {
        let process = std::process::id();
        if self.process != process {
            self.process = process;
            for set in &mut self.sets {
                set.live = set.busy + set.ending;
            }
        }
    }

    fn has_room(&self, job: &BusyJob) -> bool {
        let left = self.max_threads.saturating_sub(self.busy);
        let busy = job.group.busy.load(Ordering::Relaxed);
        let for_clients = job.group.busy_for_clients.load(Ordering::Relaxed);
        let is_over = job.for_client
            && (for_clients >= job.group.max.div_ceil(2)
                || self.busy_for_clients >= self.max_threads.div_ceil(2));
        busy < job.group.max && busy < left && !is_over
    }

    fn begin(&mut self, job: &BusyJob) {
        let for_client = usize::from(job.for_client);
        self.busy += 1;
        self.busy_for_clients += for_client;
        self.sets[job.set].busy += 1;
        job.group.busy.fetch_add(1, Ordering::Relaxed);
        job.group
            .busy_for_clients
            .fetch_add(for_client, Ordering::Relaxed);
    }

    fn end(&mut self, job: &BusyJob) {
        let for_client = usize::from(job.for_client);
        self.busy -= 1;
        self.busy_for_clients -= for_client;
        self.sets[job.set].busy -= 1;
        job.group.busy.fetch_sub(1, Ordering::Relaxed);
        job.group
            .busy_for_clients
            .fetch_sub(for_client, Ordering::Relaxed);
        self.begin_waiting();
    }

    /// Begins the jobs of waiting callers for which there is room.
    fn begin_waiting(&mut self) {
        while let Some(at) = self.waiting.iter().position(|w| self.has_room(&w.job)) {
            if let Some(waiter) = self.waiting.remove(at) {
                self.begin(&waiter.job);
                waiter.begun.notify_one();
            }
        }
    }
}

/// Counts one of the pool's threads as busy until it is dropped.
///
/// A job drops it before it publishes its result. Otherwise a caller that gets the result and submits
/// another job at once could be refused, although there are as many threads as callers.
pub(crate) struct BusyGuard<'a> {
    worker: &'a Worker,
    job: BusyJob,
    /// Whether the thread counts as ending.
    is_ending: &'a Cell<bool>,
}

impl Drop for BusyGuard<'_> {
    fn drop(&mut self) {
        let mut state = self.worker.pool.state.lock();
        state.end(&self.job);
        if std::thread::panicking() {
            // The other values of the job are dropped after the guard.
            state.sets[self.job.set].ending += 1;
            self.is_ending.set(true);
        }
    }
}

impl Default for LoaderPool {
    fn default() -> Self {
        LoaderPool::new(DEFAULT_MAX_THREADS, IDLE_TIMEOUT)
    }
}

impl LoaderPool {
    fn new(max_threads: usize, idle_timeout: Duration) -> LoaderPool {
        let state = PoolState {
            process: std::process::id(),
            max_threads,
            busy: 0,
            busy_for_clients: 0,
            sets: Vec::new(),
            waiting: VecDeque::new(),
        };
        LoaderPool {
            shared: Arc::new(PoolShared {
                state: Mutex::new(state),
                idle_timeout,
            }),
            sets: Mutex::default(),
        }
    }

    /// Changes the number of threads. Jobs that run are not affected.
    pub(crate) fn set_max_threads(&self, threads: usize) {
        let mut state = self.shared.state.lock();
        state.max_threads = threads;
        state.begin_waiting();
    }

    /// A share of at most `max_threads` threads, with stacks of this size.
    pub(crate) fn share(&self, max_threads: usize, stack_size: Option<usize>) -> LoaderShare {
        let mut sets = self.sets.lock();
        let found = sets.iter().find(|set| set.0.stack_size == stack_size);
        let set = found.cloned().unwrap_or_else(|| {
            let set = Arc::new(ThreadSet(Worker {
                pool: self.shared.clone(),
                number: sets.len(),
                stack_size,
                has_job: Arc::default(),
            }));
            self.shared.state.lock().sets.push(SetState::default());
            sets.push(set.clone());
            set
        });
        LoaderShare {
            set,
            group: Arc::new(GroupThreads {
                max: max_threads,
                busy: AtomicUsize::new(0),
                busy_for_clients: AtomicUsize::new(0),
            }),
        }
    }
}

impl LoaderShare {
    /// Runs `job` on a thread of the pool, which is busy until the job drops its [`BusyGuard`]. The value
    /// that `job` returns is dropped after it.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Overloaded`] if all threads that the job may have are busy, or the system refuses a
    /// new one.
    pub(crate) fn submit<T>(
        &self,
        job_for: JobFor,
        job: impl FnOnce(BusyGuard<'_>) -> T + Send + 'static,
    ) -> Result<()> {
        let origin = Origin::here();
        let run = Box::new(move |busy: BusyGuard<'_>| {
            let (worker, is_ending) = (busy.worker, busy.is_ending);
            origin.run(|| {
                let rest = job(busy);
                if std::mem::needs_drop::<T>() && !is_ending.replace(true) {
                    worker.begin_ending();
                }
                drop(rest);
            });
        });
        self.send(job_for, run)
    }

    /// Not generic: a program has this code once, and not for each kind of job.
    fn send(&self, job_for: JobFor, run: Run) -> Result<()> {
        let (until, guard) = match job_for {
            JobFor::Own => (None, None),
            JobFor::Client(guard, until) => (Some(until), guard),
        };
        let worker = &self.set.0;
        let busy = BusyJob {
            set: worker.number,
            group: self.group.clone(),
            for_client: until.is_some(),
        };
        let mut state = worker.pool.begin(&busy, until)?;
        let job = Job { busy, guard, run };
        let set = &mut state.sets[worker.number];
        if set.has_threads() {
            set.sent.push_back(job);
            drop(state);
            worker.has_job.notify_one();
            return Ok(());
        }
        set.live += 1;
        drop(state);
        let busy = job.busy.clone();
        worker.spawn(Some(job)).map_err(|e| {
            let mut state = worker.pool.state.lock();
            state.sets[worker.number].live -= 1;
            state.end(&busy);
            Error::with_source(ErrorKind::Overloaded, "no thread for the load", e)
        })
    }
}

impl Worker {
    fn spawn(&self, first: Option<Job>) -> io::Result<()> {
        let worker = self.clone();
        spawn("larder-load", self.stack_size, move || worker.work(first)).map(drop)
    }

    /// Counts this thread as ending. A job may have been sent to it since it dropped its [`BusyGuard`]; then
    /// another thread starts, since the drops that follow may wait for that job.
    fn begin_ending(&self) {
        let mut state = self.pool.state.lock();
        let set = &mut state.sets[self.number];
        set.ending += 1;
        if set.has_threads() {
            return;
        }
        set.live += 1;
        drop(state);
        if let Err(e) = self.spawn(None) {
            self.pool.state.lock().sets[self.number].live -= 1;
            log::warn!("no thread for a load, which waits for the end of another one: {e}");
        }
    }

    /// Runs jobs until none comes for the idle time-out, or until the set is dropped.
    fn work(&self, mut first: Option<Job>) {
        while let Some(Job { busy, guard, run }) = first.take().or_else(|| self.receive()) {
            let is_ending = Cell::new(false);
            let busy = BusyGuard {
                worker: self,
                job: busy,
                is_ending: &is_ending,
            };
            // If the job panics, the panic hook reports the panic, and the job's guards release
            // its waiters. The thread continues.
            caught(move || run(busy));
            drop(guard);
            if is_ending.get() {
                self.pool.state.lock().sets[self.number].ending -= 1;
            }
        }
    }

    /// The next job. `None` if this thread is to end.
    fn receive(&self) -> Option<Job> {
        let mut end = None;
        let mut state = self.pool.state.lock();
        loop {
            let set = &mut state.sets[self.number];
            if let Some(job) = set.sent.pop_front() {
                return Some(job);
            }
            let now = Instant::now();
            let end = *end.get_or_insert_with(|| now + self.pool.idle_timeout);
            let left = end.saturating_duration_since(now);
            if set.is_closed || left.is_zero() {
                set.live -= 1;
                return None;
            }
            state = self.has_job.wait_timeout(state, left);
        }
    }
}

impl PoolShared {
    /// Begins a job. Waits until it may have a thread: that of a client until the given time, another
    /// not at all.
    fn begin(&self, job: &BusyJob, until: Option<Instant>) -> Result<MutexGuard<'_, PoolState>> {
        let mut state = self.state.lock();
        state.notice_fork();
        if state.has_room(job) {
            state.begin(job);
            return Ok(state);
        }
        let until = until.ok_or(ErrorKind::Overloaded)?;
        let waiter = Arc::new(ThreadWaiter {
            job: job.clone(),
            begun: Condvar::new(),
        });
        state.waiting.push_back(waiter.clone());
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if !left.is_zero() {
                state = waiter.begun.wait_timeout(state, left);
            }
            let mut waiting = state.waiting.iter();
            match waiting.position(|other| Arc::ptr_eq(other, &waiter)) {
                None => return Ok(state),
                Some(at) if left.is_zero() => {
                    state.waiting.remove(at);
                    return Err(ErrorKind::Overloaded.into());
                }
                Some(_) => {}
            }
        }
    }
}

/// A group with default options has at most half of them: see [`LoaderPool`].
const DEFAULT_MAX_THREADS: usize = 1024;

const IDLE_TIMEOUT: Duration = Duration::from_secs(10);
