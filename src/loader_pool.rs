//! Threads for loads that their callers must be able to leave.

use std::fmt;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, unbounded};

use crate::error::{Error, ErrorKind, Result};
use crate::nesting::Origin;
use crate::panics::caught;
use crate::sync::{Arc, Mutex, thread};

type Job = Box<dyn FnOnce(Turn<'_>) + Send>;

/// Up to a fixed number of threads, started when needed and ended when idle.
///
/// It queues nothing: a job gets a thread at once or is refused.
pub(crate) struct LoaderPool {
    shared: Arc<Shared>,
    sender: Sender<Job>,
    name: String,
    max_threads: usize,
}

struct Shared {
    threads: Mutex<Threads>,
    jobs: Receiver<Job>,
    idle_timeout: Duration,
}

struct Threads {
    live: usize,
    /// Threads that wait for a job, or are about to, and that nobody has promised one yet. A
    /// submitter takes one off before it sends; so a sent job always has a thread that will
    /// receive it.
    idle: usize,
}

/// A thread's being busy with a job.
///
/// The job drops it when its work is done and only the news is left to tell. Otherwise a caller
/// that hears of its result and comes back at once could find the thread busy still, and be
/// refused though there are as many threads as callers.
pub(crate) struct Turn<'a>(&'a Shared);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.threads.lock().idle += 1;
    }
}

impl LoaderPool {
    pub(crate) fn new(name: &str, max_threads: usize) -> LoaderPool {
        LoaderPool::with_idle_timeout(name, max_threads, IDLE_TIMEOUT)
    }

    fn with_idle_timeout(name: &str, max_threads: usize, idle_timeout: Duration) -> LoaderPool {
        let (sender, jobs) = unbounded();
        LoaderPool {
            shared: Arc::new(Shared {
                threads: Mutex::new(Threads { live: 0, idle: 0 }),
                jobs,
                idle_timeout,
            }),
            sender,
            // The system's names end at a NUL, and std panics at one.
            name: format!("larder-load-{}", name.replace('\0', "?")),
            max_threads,
        }
    }

    /// Runs `job` on a thread of the pool, which is busy until the job drops its [`Turn`].
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Overloaded`], at once, if all threads are busy or the system gives no more.
    pub(crate) fn submit(&self, job: impl FnOnce(Turn<'_>) + Send + 'static) -> Result<()> {
        let origin = Origin::here();
        let job = move |turn: Turn<'_>| origin.run(|| job(turn));
        let promised = {
            let mut threads = self.shared.threads.lock();
            if threads.idle > 0 {
                threads.idle -= 1;
                true
            } else if threads.live < self.max_threads {
                threads.live += 1;
                false
            } else {
                return Err(ErrorKind::Overloaded.into());
            }
        };
        if promised {
            // The pool holds a receiver, so the channel is open.
            return self
                .sender
                .send(Box::new(job))
                .map_err(|_| ErrorKind::Overloaded.into());
        }
        let shared = self.shared.clone();
        let spawned = thread::Builder::new()
            .name(self.name.clone())
            .spawn(move || shared.work(Box::new(job)));
        spawned.map(drop).map_err(|e| {
            self.shared.threads.lock().live -= 1;
            Error::with_source(ErrorKind::Overloaded, "no thread for the load", e)
        })
    }

    #[cfg(all(test, not(larder_loom)))]
    fn live(&self) -> usize {
        self.shared.threads.lock().live
    }
}

impl Shared {
    fn work(&self, first: Job) {
        let mut job = Some(first);
        loop {
            if let Some(job) = job.take() {
                let turn = Turn(self);
                // A panic has been reported by the panic hook, and the job's own guards have told
                // whoever waits for it; the thread goes on.
                caught(move || job(turn));
            }
            job = self.jobs.recv_timeout(self.idle_timeout).ok();
            if job.is_none() {
                let mut threads = self.threads.lock();
                // With no thread left unpromised, this one has a job coming: it must go on
                // receiving, or a job would be sent that nobody takes.
                if threads.idle > 0 {
                    threads.idle -= 1;
                    threads.live -= 1;
                    return;
                }
            }
        }
    }
}

impl fmt::Debug for LoaderPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoaderPool")
            .field("max_threads", &self.max_threads)
            .finish_non_exhaustive()
    }
}

const IDLE_TIMEOUT: Duration = Duration::from_secs(10);

#[cfg(all(test, not(larder_loom)))]
mod tests {
    use super::*;
    use std::sync::mpsc;

    /// Jobs that report when they began, and end when told.
    fn held(pool: &LoaderPool) -> (Result<()>, mpsc::Receiver<()>, mpsc::Sender<()>) {
        let (began, has_begun) = mpsc::channel();
        let (end, told_to_end) = mpsc::channel();
        let submitted = pool.submit(move |_turn| {
            let _ = began.send(());
            let _ = told_to_end.recv();
        });
        (submitted, has_begun, end)
    }

    #[test]
    fn a_job_beyond_the_threads_is_refused_at_once() {
        let pool = LoaderPool::new("test", 2);
        let jobs = [held(&pool), held(&pool)];
        jobs.iter()
            .for_each(|(_, begun, _)| begun.recv().expect("it runs"));
        let (refused, ..) = held(&pool);
        assert_eq!(refused.map_err(|e| e.kind()), Err(ErrorKind::Overloaded));
    }

    #[test]
    fn a_thread_whose_job_has_news_is_free_for_the_next() {
        let pool = LoaderPool::new("test", 1);
        let (done, wait) = mpsc::channel();
        let ids: std::collections::HashSet<_> = (0..1000)
            .map(|_| {
                let done = done.clone();
                pool.submit(move |turn| {
                    drop(turn);
                    let _ = done.send(thread::current().id());
                })
                .expect("the thread is free");
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
            pool.submit(move |turn| {
                drop(turn);
                let _ = done.send(());
            })
            .expect("there is room");
            wait.recv().expect("it ran");
            // Sometimes before the thread gives up, sometimes after, sometimes just then.
            while pool.live() > 3 {
                thread::yield_now();
            }
        }
        while pool.live() > 0 {
            thread::yield_now();
        }
    }

    #[test]
    fn a_panicking_job_frees_its_thread() {
        let pool = LoaderPool::new("test", 1);
        pool.submit(|_turn| std::panic::resume_unwind(Box::new("quietly")))
            .expect("there is room");
        let (done, wait) = mpsc::channel();
        // The panicking job held on to its turn.
        while pool
            .submit({
                let done = done.clone();
                move |_turn| {
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
