//! Threads for loads whose callers must be able to return before the load ends. The groups of a registry
//! share one pool.

mod queue;
#[cfg(all(test, not(larder_loom)))]
mod tests;

use std::any::Any;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::error::{Error, ErrorKind, Result};
use crate::nesting::Origin;
use crate::panics::caught;
use crate::sync::plain_atomic::{AtomicUsize, Ordering};
use crate::sync::{Arc, Condvar, Mutex, MutexGuard, thread};
use queue::JobQueue;

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
    kept: Option<Arc<dyn Any + Send + Sync>>,
    run: Box<dyn FnOnce(BusyGuard<'_>) + Send>,
}

/// A pool of up to a number of threads, which start when needed and end when idle.
///
/// It has no queue of jobs. A job gets a thread at once or is refused; only the job of a client waits a
/// while, on the thread that submits it.
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
    pool: Arc<PoolShared>,
    set: Arc<ThreadSet>,
    group: Arc<GroupThreads>,
}

/// The threads with one size of stack. Its drop ends them.
struct ThreadSet {
    /// The index of its counts in [`PoolState::sets`].
    number: usize,
    /// In bytes; std's default without.
    stack_size: Option<usize>,
    /// It holds no more jobs than there are threads without one. It is not a rendezvous channel, which
    /// would refuse a job while an idle thread is not yet receiving: see [`BusyGuard`].
    jobs: Arc<JobQueue<Job>>,
}

impl Drop for ThreadSet {
    fn drop(&mut self) {
        self.jobs.close();
    }
}

struct PoolShared {
    state: Mutex<PoolState>,
    idle_timeout: Duration,
}

struct PoolState {
    max_threads: usize,
    /// The jobs that run or were sent to a thread.
    busy: usize,
    busy_for_clients: usize,
    sets: Vec<SetCounts>,
    /// The callers that wait for a thread for the job of a client, in the order of their arrival.
    waiting: VecDeque<Arc<ThreadWaiter>>,
}

#[derive(Default)]
struct SetCounts {
    live: usize,
    /// Threads that have a job, or will receive one that was sent. The others wait for a job or are
    /// about to.
    busy: usize,
    /// The threads that drop what their job left. A drop may run user code, which may submit another
    /// job and wait for it: see [`LoaderShare::replace_caller`].
    ending: Vec<thread::ThreadId>,
    /// The threads whose places others have taken. They end with their jobs.
    replaced: Vec<thread::ThreadId>,
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
    pool: &'a PoolShared,
    job: BusyJob,
}

impl Drop for BusyGuard<'_> {
    fn drop(&mut self) {
        self.pool.state.lock().end(&self.job);
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
        let found = sets.iter().find(|set| set.stack_size == stack_size);
        let set = found.cloned().unwrap_or_else(|| {
            let set = Arc::new(ThreadSet {
                number: sets.len(),
                stack_size,
                jobs: Arc::new(JobQueue::new()),
            });
            self.shared.state.lock().sets.push(SetCounts::default());
            sets.push(set.clone());
            set
        });
        LoaderShare {
            pool: self.shared.clone(),
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
    /// Runs `job` on a thread of the pool, which is busy until the job drops its [`BusyGuard`].
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Overloaded`] if all threads that the job may have are busy, or the system refuses a
    /// new one.
    ///
    /// The job returns the values that are dropped after it.
    pub(crate) fn submit<T>(
        &self,
        job_for: JobFor,
        job: impl FnOnce(BusyGuard<'_>) -> T + Send + 'static,
    ) -> Result<()> {
        self.replace_caller()?;
        let origin = Origin::here();
        let number = self.set.number;
        let run = Box::new(move |busy: BusyGuard<'_>| {
            let pool = busy.pool;
            origin.run(|| {
                let rest = job(busy);
                if std::mem::needs_drop::<T>() {
                    let this = thread::current().id();
                    pool.state.lock().sets[number].ending.push(this);
                    drop(rest);
                }
            });
        });
        let (until, kept) = match job_for {
            JobFor::Own => (None, None),
            JobFor::Client(kept, until) => (Some(until), kept),
        };
        let busy = BusyJob {
            set: number,
            group: self.group.clone(),
            for_client: until.is_some(),
        };
        let mut state = self.pool.begin(&busy, until)?;
        let job = Job { busy, kept, run };
        let set = &mut state.sets[number];
        if set.busy <= set.live {
            drop(state);
            self.set.jobs.send(job);
            return Ok(());
        }
        set.live += 1;
        drop(state);
        let busy = job.busy.clone();
        self.spawn(Some(job)).inspect_err(|_| {
            let mut state = self.pool.state.lock();
            state.sets[number].live -= 1;
            state.end(&busy);
        })
    }

    /// If this is a thread of the pool whose job has ended, starts a thread in its place, and lets it
    /// end. It counts as idle, but it will wait for the job that it is about to submit. So it could
    /// wait for itself.
    fn replace_caller(&self) -> Result<()> {
        let (caller, number) = (thread::current().id(), self.set.number);
        if !self.pool.state.lock().sets[number].ending.contains(&caller) {
            return Ok(());
        }
        self.spawn(None)?;
        let set = &mut self.pool.state.lock().sets[number];
        set.ending.retain(|id| *id != caller);
        set.replaced.push(caller);
        Ok(())
    }

    fn spawn(&self, first: Option<Job>) -> Result<()> {
        let (pool, jobs, number) = (self.pool.clone(), self.set.jobs.clone(), self.set.number);
        let mut thread = thread::Builder::new().name("larder-load".into());
        if let Some(stack_size) = self.set.stack_size {
            thread = thread.stack_size(stack_size);
        }
        let spawned = thread.spawn(move || pool.work(number, &jobs, first));
        spawned
            .map(drop)
            .map_err(|e| Error::with_source(ErrorKind::Overloaded, "no thread for the load", e))
    }
}

impl PoolShared {
    /// Begins a job. Waits until it may have a thread: that of a client until the given time, another
    /// not at all.
    fn begin(&self, job: &BusyJob, until: Option<Instant>) -> Result<MutexGuard<'_, PoolState>> {
        let mut state = self.state.lock();
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

    /// Runs jobs until none comes for `idle_timeout`, or until the set is dropped.
    fn work(&self, number: usize, jobs: &JobQueue<Job>, first: Option<Job>) {
        let mut job = first;
        loop {
            if let Some(job) = job {
                let Job { busy, kept, run } = job;
                let (pool, job) = (self, busy);
                let busy = BusyGuard { pool, job };
                // If the job panics, the panic hook reports the panic, and the job's guards release
                // its waiters. The thread continues.
                caught(move || run(busy));
                drop(kept);
                if self.is_replaced(number) {
                    return;
                }
            }
            job = jobs.receive(self.idle_timeout);
            if job.is_none() {
                let set = &mut self.state.lock().sets[number];
                // If all live threads count as busy, a job was sent that this thread has to receive.
                if set.busy < set.live {
                    set.live -= 1;
                    return;
                }
            }
        }
    }

    /// Notes the end of this thread's job. Returns whether another thread has taken its place.
    fn is_replaced(&self, number: usize) -> bool {
        let this = thread::current().id();
        let set = &mut self.state.lock().sets[number];
        set.ending.retain(|id| *id != this);
        let replaced = set.replaced.len();
        set.replaced.retain(|id| *id != this);
        set.replaced.len() < replaced
    }
}

/// A group with default options has at most half of them: see [`LoaderPool`].
const DEFAULT_MAX_THREADS: usize = 1024;

const IDLE_TIMEOUT: Duration = Duration::from_secs(10);
