//! Models of the pool: jobs that are submitted while its threads become idle, end, or drop what a job left.
//! Loom reports a deadlock if no thread takes a job, whose result the model waits for, or if a thread does not
//! end with its pool.

use super::*;
use crate::sync::{atomic, thread};

/// Explores the orders with two preemptions, for 5 s at most.
fn explore(explored: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(2);
    builder.max_duration = Some(Duration::from_secs(5));
    builder.check(explored);
}

const HOUR: Duration = Duration::from_secs(3600);

/// The number of jobs that published their result.
#[derive(Clone, Default)]
struct Results(Arc<(Mutex<usize>, Condvar)>);

impl Results {
    fn publish(&self) {
        *self.0.0.lock() += 1;
        self.0.1.notify_all();
    }

    fn wait_for(&self, count: usize) {
        let (published, changed) = &*self.0;
        let mut published = published.lock();
        while *published < count {
            published = changed.wait(published);
        }
    }

    /// Submits a job that ends before it publishes its result, as a load does.
    fn submit(&self, share: &LoaderShare) -> Result<()> {
        let results = self.clone();
        share.submit(JobFor::Own, move |busy| {
            drop(busy);
            results.publish();
        })
    }
}

/// Counts the jobs that run at the same time.
#[derive(Clone)]
struct Running {
    now: Arc<atomic::AtomicUsize>,
    most: Arc<AtomicUsize>,
}

impl Running {
    fn new() -> Running {
        Running {
            now: Arc::new(atomic::AtomicUsize::new(0)),
            most: Arc::default(),
        }
    }

    fn submit(&self, share: &LoaderShare, job_for: JobFor, results: &Results) -> Result<()> {
        let (running, results) = (self.clone(), results.clone());
        share.submit(job_for, move |busy| {
            let now = 1 + running.now.fetch_add(1, Ordering::SeqCst);
            running.most.fetch_max(now, Ordering::SeqCst);
            running.now.fetch_sub(1, Ordering::SeqCst);
            drop(busy);
            results.publish();
        })
    }

    fn most(&self) -> usize {
        self.most.load(Ordering::SeqCst)
    }
}

fn client() -> JobFor {
    JobFor::Client(None, Instant::now() + HOUR)
}

/// The threads that were started and have not ended.
fn live(share: &LoaderShare) -> usize {
    share.set.0.pool.state.lock().sets[0].live
}

/// The caller gets the result of the only thread, and submits the next job while that thread looks for one or
/// falls asleep. The job is neither refused nor given to a second thread, and the thread does not miss it.
#[test]
fn loom_caller_with_a_result_finds_the_thread_idle() {
    explore(|| {
        let share = LoaderPool::new(2, HOUR).share(1, None);
        let results = Results::default();
        for count in 1..=2 {
            results.submit(&share).expect("the thread is idle");
            results.wait_for(count);
        }
        assert_eq!(live(&share), 1);
    });
}

/// The next job comes before, while or after the thread ends because it is idle.
#[test]
fn loom_job_is_not_sent_to_a_thread_that_ends() {
    explore(|| {
        let share = LoaderPool::new(2, Duration::ZERO).share(1, None);
        let results = Results::default();
        for count in 1..=2 {
            results.submit(&share).expect("no thread is busy");
            results.wait_for(count);
        }
    });
}

/// The pool is dropped while a job is sent to an idle thread. The job runs, and then the thread ends.
#[test]
fn loom_job_runs_although_its_pool_is_dropped() {
    explore(|| {
        let share = LoaderPool::new(2, HOUR).share(1, None);
        let results = Results::default();
        results.submit(&share).expect("no thread is busy");
        results.wait_for(1);
        results.submit(&share).expect("the thread is idle");
        drop(share);
        results.wait_for(2);
    });
}

/// The first job leaves a value whose drop waits for the second job. That one is sent before, while or after
/// the drop begins, and another thread runs it.
#[test]
fn loom_job_does_not_wait_for_a_drop() {
    struct WaitsInDrop(Results);
    impl Drop for WaitsInDrop {
        fn drop(&mut self) {
            self.0.wait_for(2);
        }
    }
    explore(|| {
        let share = LoaderPool::new(2, HOUR).share(1, None);
        let results = Results::default();
        let left = WaitsInDrop(results.clone());
        let submitted = share.submit(JobFor::Own, move |busy| {
            drop(busy);
            left.0.publish();
            left
        });
        submitted.expect("no thread is busy");
        results.wait_for(1);
        results.submit(&share).expect("no thread is busy");
        results.wait_for(2);
        assert!(live(&share) <= 2);
    });
}

/// Two clients submit at the same time, and one thread is for clients. The second one waits for the first
/// one's end and is woken by it. This process's own job is refused by neither.
#[test]
fn loom_client_that_waits_gets_the_thread_of_another() {
    explore(|| {
        let share = Arc::new(LoaderPool::new(4, HOUR).share(2, None));
        let (of_clients, results) = (Running::new(), Results::default());
        let other = {
            let (share, of_clients, results) = (share.clone(), of_clients.clone(), results.clone());
            thread::spawn(move || of_clients.submit(&share, client(), &results))
        };
        of_clients
            .submit(&share, client(), &results)
            .expect("a thread in time");
        results.submit(&share).expect("a thread is left");
        other.join().unwrap().expect("a thread in time");
        results.wait_for(3);
        assert_eq!(of_clients.most(), 1);
        assert!(live(&share) <= 2);
    });
}

/// A client begins to wait for a thread while the pool gets its first ones.
#[test]
fn loom_client_that_waits_gets_a_thread_that_is_added() {
    explore(|| {
        let pool = LoaderPool::new(0, HOUR);
        let (share, results) = (pool.share(1, None), Results::default());
        let waiting = {
            let results = results.clone();
            thread::spawn(move || Running::new().submit(&share, client(), &results))
        };
        pool.set_max_threads(1);
        waiting.join().unwrap().expect("a thread in time");
        results.wait_for(1);
    });
}

/// Two groups submit a job at the same time to a pool of one thread. The second job is refused, or runs after
/// the first one, on its thread.
#[test]
fn loom_groups_together_have_no_more_threads_than_their_pool() {
    explore(|| {
        let pool = LoaderPool::new(1, HOUR);
        let [one, two] = [(); 2].map(|()| pool.share(1, None));
        let (running, results) = (Running::new(), Results::default());
        let other = {
            let (running, results) = (running.clone(), results.clone());
            thread::spawn(move || running.submit(&two, JobFor::Own, &results))
        };
        let submitted = [
            running.submit(&one, JobFor::Own, &results),
            other.join().unwrap(),
        ];
        let admitted = submitted.iter().filter(|result| result.is_ok()).count();
        assert!(admitted > 0, "nothing else runs");
        results.wait_for(admitted);
        assert_eq!((running.most(), live(&one)), (1, 1));
        assert_eq!(pool.shared.state.lock().busy, 0);
    });
}
