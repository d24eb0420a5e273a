//! Threads for loads whose callers must be able to return before the load ends.

use std::any::Any;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, unbounded};

use crate::error::{Error, ErrorKind, Result};
use crate::nesting::Origin;
use crate::panics::caught;
use crate::sync::{Arc, Condvar, Mutex, MutexGuard, thread};

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
    for_client: bool,
    /// Dropped after `run`.
    kept: Option<Arc<dyn Any + Send + Sync>>,
    run: Box<dyn FnOnce(BusyGuard<'_>) + Send>,
}

/// A pool of up to a fixed number of threads, which start when needed and end when idle.
///
/// It has no queue. A job gets a thread at once or is refused; only the job of a client waits a while,
/// on the thread that submits it.
pub(crate) struct LoaderPool {
    shared: Arc<PoolShared>,
    /// Dropped with the pool, which ends the threads. The channel holds no more jobs than there are
    /// threads without one. It is not a rendezvous channel, which would refuse a job while an idle
    /// thread is not yet receiving: see [`BusyGuard`].
    jobs: Sender<Job>,
    name: String,
    max_threads: usize,
    /// In bytes; std's default without.
    stack_size: Option<usize>,
}

struct PoolShared {
    threads: Mutex<ThreadCounts>,
    /// Notified when a thread becomes idle while [`ThreadCounts::waiting`] is not 0.
    idle: Condvar,
    jobs: Receiver<Job>,
    idle_timeout: Duration,
}

#[derive(Default)]
struct ThreadCounts {
    live: usize,
    /// Threads that have a job, or will receive one that was sent. The others wait for a job or are
    /// about to.
    busy: usize,
    /// The busy threads whose job is [`JobFor::Client`].
    busy_for_clients: usize,
    /// The callers that wait for a thread for the job of a client.
    waiting: usize,
    /// The threads that drop what their job left. A drop may run user code, which may submit another
    /// job and wait for it: see [`LoaderPool::replace_caller`].
    ending: Vec<thread::ThreadId>,
    /// The threads whose places others have taken. They end with their jobs.
    replaced: Vec<thread::ThreadId>,
}

impl ThreadCounts {
    fn has_room(&self, for_client: bool, max_threads: usize) -> bool {
        let own_part = for_client && self.busy_for_clients == max_threads.div_ceil(2);
        self.busy < max_threads && !own_part
    }

    fn begin(&mut self, for_client: bool) {
        self.busy += 1;
        self.busy_for_clients += usize::from(for_client);
    }

    fn end(&mut self, for_client: bool) {
        self.busy -= 1;
        self.busy_for_clients -= usize::from(for_client);
    }
}

/// Counts one of the pool's threads as busy until it is dropped.
///
/// A job drops it before it publishes its result. Otherwise a caller that gets the result and submits
/// another job at once could be refused, although there are as many threads as callers.
pub(crate) struct BusyGuard<'a> {
    pool: &'a PoolShared,
    for_client: bool,
}

impl Drop for BusyGuard<'_> {
    fn drop(&mut self) {
        let mut threads = self.pool.threads.lock();
        threads.end(self.for_client);
        if threads.waiting > 0 {
            self.pool.idle.notify_one();
        }
    }
}

impl LoaderPool {
    pub(crate) fn new(name: &str, max_threads: usize) -> LoaderPool {
        LoaderPool::with_idle_timeout(name, max_threads, IDLE_TIMEOUT)
    }

    fn with_idle_timeout(name: &str, max_threads: usize, idle_timeout: Duration) -> LoaderPool {
        let (sender, receiver) = unbounded();
        LoaderPool {
            shared: Arc::new(PoolShared {
                threads: Mutex::new(ThreadCounts::default()),
                idle: Condvar::new(),
                jobs: receiver,
                idle_timeout,
            }),
            jobs: sender,
            // std panics if a thread's name contains a NUL.
            name: format!("larder-load-{}", name.replace('\0', "?")),
            max_threads,
            stack_size: None,
        }
    }

    /// The same pool, whose threads have stacks of `stack_size` bytes.
    pub(crate) fn with_stack_size(self, stack_size: Option<usize>) -> LoaderPool {
        LoaderPool { stack_size, ..self }
    }

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
        let run = Box::new(move |busy: BusyGuard<'_>| {
            let pool = busy.pool;
            origin.run(|| {
                let rest = job(busy);
                if std::mem::needs_drop::<T>() {
                    pool.threads.lock().ending.push(thread::current().id());
                    drop(rest);
                }
            });
        });
        let (until, kept) = match job_for {
            JobFor::Own => (None, None),
            JobFor::Client(kept, until) => (Some(until), kept),
        };
        let for_client = until.is_some();
        let job = Job {
            for_client,
            kept,
            run,
        };
        {
            let mut threads = self.shared.wait_for_room(until, self.max_threads)?;
            threads.begin(for_client);
            if threads.busy <= threads.live {
                drop(threads);
                // The pool holds a receiver, so the channel is open and `send` succeeds.
                let sent = self.jobs.send(job);
                return sent.map_err(|_| ErrorKind::Overloaded.into());
            }
            threads.live += 1;
        }
        self.spawn(Some(job)).inspect_err(|_| {
            let mut threads = self.shared.threads.lock();
            threads.live -= 1;
            threads.end(for_client);
        })
    }

    /// If this is a thread of the pool whose job has ended, starts a thread in its place, and lets it
    /// end. It counts as idle, but it will wait for the job that it is about to submit. So it could
    /// wait for itself.
    fn replace_caller(&self) -> Result<()> {
        let caller = thread::current().id();
        if !self.shared.threads.lock().ending.contains(&caller) {
            return Ok(());
        }
        self.spawn(None)?;
        let mut threads = self.shared.threads.lock();
        threads.ending.retain(|id| *id != caller);
        threads.replaced.push(caller);
        Ok(())
    }

    fn spawn(&self, first: Option<Job>) -> Result<()> {
        let shared = self.shared.clone();
        let mut thread = thread::Builder::new().name(self.name.clone());
        if let Some(stack_size) = self.stack_size {
            thread = thread.stack_size(stack_size);
        }
        let spawned = thread.spawn(move || shared.work(first));
        spawned
            .map(drop)
            .map_err(|e| Error::with_source(ErrorKind::Overloaded, "no thread for the load", e))
    }

    #[cfg(all(test, not(larder_loom)))]
    fn live(&self) -> usize {
        self.shared.threads.lock().live
    }
}

impl PoolShared {
    /// Waits until a job may have a thread: that of a client until the given time, another not at all.
    fn wait_for_room(
        &self,
        until: Option<Instant>,
        max_threads: usize,
    ) -> Result<MutexGuard<'_, ThreadCounts>> {
        let mut threads = self.threads.lock();
        while !threads.has_room(until.is_some(), max_threads) {
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            let left = left.filter(|left| !left.is_zero());
            let left = left.ok_or(ErrorKind::Overloaded)?;
            threads.waiting += 1;
            threads = self.idle.wait_timeout(threads, left);
            threads.waiting -= 1;
        }
        Ok(threads)
    }

    /// Runs jobs until none comes for `idle_timeout`, or until the pool is dropped.
    fn work(&self, first: Option<Job>) {
        let mut job = first;
        loop {
            if let Some(job) = job {
                let Job {
                    for_client,
                    kept,
                    run,
                } = job;
                let pool = self;
                let busy = BusyGuard { pool, for_client };
                // If the job panics, the panic hook reports the panic, and the job's guards release
                // its waiters. The thread continues.
                caught(move || run(busy));
                drop(kept);
                if self.is_replaced() {
                    return;
                }
            }
            job = self.jobs.recv_timeout(self.idle_timeout).ok();
            if job.is_none() {
                let mut threads = self.threads.lock();
                // If all live threads count as busy, a job was sent that this thread has to receive.
                if threads.busy < threads.live {
                    threads.live -= 1;
                    return;
                }
            }
        }
    }

    /// Notes the end of this thread's job. Returns whether another thread has taken its place.
    fn is_replaced(&self) -> bool {
        let this = thread::current().id();
        let mut threads = self.threads.lock();
        threads.ending.retain(|id| *id != this);
        let replaced = threads.replaced.len();
        threads.replaced.retain(|id| *id != this);
        threads.replaced.len() < replaced
    }
}

const IDLE_TIMEOUT: Duration = Duration::from_secs(10);

#[cfg(all(test, not(larder_loom)))]
mod tests {
    use super::*;
    use std::sync::mpsc;

    /// A job that reports its start and ends on a signal.
    fn held(
        pool: &LoaderPool,
        job_for: JobFor,
    ) -> (Result<()>, mpsc::Receiver<()>, mpsc::Sender<()>) {
        let (began, has_begun) = mpsc::channel();
        let (end, end_signal) = mpsc::channel();
        let submitted = pool.submit(job_for, move |_busy| {
            let _ = began.send(());
            let _ = end_signal.recv();
        });
        (submitted, has_begun, end)
    }

    #[test]
    fn job_is_refused_at_once_when_all_threads_are_busy() {
        let pool = LoaderPool::new("test", 2);
        let jobs = [held(&pool, JobFor::Own), held(&pool, JobFor::Own)];
        jobs.iter()
            .for_each(|(_, begun, _)| begun.recv().expect("it runs"));
        let (refused, ..) = held(&pool, JobFor::Own);
        assert_eq!(refused.map_err(|e| e.kind()), Err(ErrorKind::Overloaded));
    }

    /// The job of a client that does not wait for a thread.
    fn client() -> JobFor {
        JobFor::Client(None, Instant::now())
    }

    #[test]
    fn job_of_a_client_waits_for_a_thread_until_its_time() {
        let pool = LoaderPool::new("test", 2);
        let (first, begun, end) = held(&pool, client());
        first.expect("a thread is idle");
        begun.recv().expect("it runs");
        let soon = JobFor::Client(None, Instant::now() + Duration::from_millis(20));
        let (refused, ..) = held(&pool, soon);
        assert_eq!(refused.map_err(|e| e.kind()), Err(ErrorKind::Overloaded));
        thread::scope(|scope| {
            let waiters = [0, 1].map(|_| {
                scope.spawn(|| {
                    let until = Instant::now() + Duration::from_secs(20);
                    let (submitted, begun, _end) = held(&pool, JobFor::Client(None, until));
                    submitted.expect("a thread in time");
                    begun.recv().expect("it runs");
                })
            });
            while pool.shared.threads.lock().waiting < waiters.len() {
                thread::yield_now();
            }
            drop(end);
        });
        assert_eq!(pool.shared.threads.lock().waiting, 0);
    }

    #[test]
    fn clients_leave_half_of_the_threads_to_own_callers() {
        let pool = LoaderPool::new("test", 3);
        let clients = [held(&pool, client()), held(&pool, client())];
        let (refused, ..) = held(&pool, client());
        assert_eq!(refused.map_err(|e| e.kind()), Err(ErrorKind::Overloaded));
        let (own, begun, _end) = held(&pool, JobFor::Own);
        own.expect("a thread is left");
        begun.recv().expect("it runs");
        let [(_, begun, end), _kept] = clients;
        begun.recv().expect("it runs");
        drop(end);
        while held(&pool, client()).0.is_err() {
            thread::yield_now();
        }
    }

    #[test]
    fn drop_after_a_job_may_wait_for_another_job() {
        struct WaitsForJob(Arc<LoaderPool>, mpsc::Sender<()>);
        impl Drop for WaitsForJob {
            fn drop(&mut self) {
                for _ in 0..2 {
                    let (done, wait) = mpsc::channel();
                    let job = move |busy: BusyGuard<'_>| {
                        drop(busy);
                        let _ = done.send(());
                    };
                    self.0.submit(JobFor::Own, job).expect("a thread is idle");
                    wait.recv_timeout(Duration::from_secs(20)).expect("it ran");
                }
                let _ = self.1.send(());
            }
        }
        let pool = Arc::new(LoaderPool::new("test", 1));
        for _ in 0..3 {
            let (dropped, wait) = mpsc::channel();
            let rest = WaitsForJob(pool.clone(), dropped);
            let submitted = pool.submit(JobFor::Own, move |busy| {
                drop(busy);
                rest
            });
            submitted.expect("a thread is idle");
            wait.recv().expect("it is dropped");
        }
        while pool.live() != 1 {
            thread::yield_now();
        }
    }

    #[test]
    fn thread_is_idle_before_its_job_publishes() {
        let pool = LoaderPool::new("test", 1);
        let (done, wait) = mpsc::channel();
        let ids: std::collections::HashSet<_> = (0..1000)
            .map(|_| {
                let done = done.clone();
                pool.submit(JobFor::Own, move |busy| {
                    drop(busy);
                    let _ = done.send(thread::current().id());
                })
                .expect("the thread is idle");
                wait.recv().expect("it ran")
            })
            .collect();
        assert_eq!(ids.len(), 1);
    }

    #[test]
    fn idle_threads_end_and_new_jobs_still_run() {
        let pool = LoaderPool::with_idle_timeout("test", 4, Duration::from_millis(1));
        for _ in 0..50 {
            let (done, wait) = mpsc::channel();
            pool.submit(JobFor::Own, move |busy| {
                drop(busy);
                let _ = done.send(());
            })
            .expect("not all threads are busy");
            wait.recv().expect("it ran");
            // The next job comes before, while or after the thread ends.
            while pool.live() > 3 {
                thread::yield_now();
            }
        }
        while pool.live() > 0 {
            thread::yield_now();
        }
    }

    #[test]
    fn panicking_job_frees_its_thread() {
        let pool = LoaderPool::new("test", 1);
        pool.submit(JobFor::Own, |_busy| {
            std::panic::resume_unwind(Box::new("quietly"))
        })
        .expect("not all threads are busy");
        let (done, wait) = mpsc::channel();
        // The panicking job holds its guard until it has unwound.
        while pool
            .submit(JobFor::Own, {
                let done = done.clone();
                move |_busy| {
                    let _ = done.send(());
                }
            })
            .is_err()
        {
            thread::yield_now();
        }
        wait.recv().expect("it ran");
    }
}
